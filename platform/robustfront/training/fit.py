"""Training one configuration, one report an epoch."""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustfront.attacks import Attack
from robustfront.config import GUARDED, TrialConfig
from robustfront.data import DataSet, Split, split_data
from robustfront.errors import DataError, Diverged
from robustfront.evaluation.certify import anchors_for, certified
from robustfront.evaluation.evaluate import measure
from robustfront.evaluation.records import Records
from robustfront.methods import StepContext
from robustfront.models.conditioned import given
from robustfront.randomness import Key, Rng, generator, seed_of
from robustfront.threats import Threat
from robustfront.training.checkpoint import (
    load_weights,
    optimizer_state,
    read_tensors,
    read_trained,
    restore_optimizer,
    write_tensors,
)
from robustfront.training.determinism import reset_process
from robustfront.training.team import Team
from robustfront.updates import Step

Metrics = dict[str, float]

COLLAPSE = 0.2  # rise of the error that the guard finds (arXiv:2001.03994, official code)


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave.

    Args:
        epoch: how many epochs are done, from 1.
        metrics: by the names of the long form (`val/robust_error/...`) and the short ones.
        records: predictions of this epoch's model on the validation split.
        save: writes the checkpoint from which training goes on after this epoch.
    """

    epoch: int
    metrics: Metrics
    records: Records
    save: Callable[[Path], None]


def fit(
    config: TrialConfig, resume_from: Path | None = None, data: DataSet | None = None
) -> Iterator[EpochReport]:
    """Train, measuring on the validation split after each epoch.

    Every random draw is a function of (seed, epoch, step, purpose), so training that goes on from a
    checkpoint ends with the same weights as training that was never interrupted (bit for bit on a
    CPU with the same number of threads).

    Args:
        config: all values resolved.
        resume_from: a file that `EpochReport.save` wrote.
        data: read already; must be what `config.data` says.

    Raises:
        Diverged: the loss or the weights are not finite.
        DataError: the data, the checkpoint or the weights to begin with cannot be read.
    """
    reset_process(config.resources.cpu, config.seed)
    device = torch.device(config.resources.device)
    if data is None:
        data = split_data(config.data, config.data.load(), device)
    run = _Run.start(config, data, device)
    if resume_from is not None:
        run.restore(resume_from)
    elif config.init_from is not None:
        run.begin_with(Path(config.init_from))
    for epoch in range(run.epoch, config.train.epochs):
        started = time.perf_counter()
        means = run.train_epoch(epoch)
        trained = time.perf_counter()
        run.epoch = epoch + 1
        records = run.measure_val()
        cost = run.cost(trained - started, time.perf_counter() - trained)
        metrics = run.summarise(records) | means | run.guarded() | run.concluded() | cost
        run.history.append(metrics)
        yield EpochReport(run.epoch, metrics, records, run.save)


class _WithNoise(nn.Module):
    """The model behind additive noise that stays the same for all passes of one step."""

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.noise)  # type: ignore[no-any-return]


def _clip_before_each_step(
    optimizer: torch.optim.Optimizer, model: nn.Module, limit: float
) -> None:
    """Every update steps through the optimiser, so none can forget to clip."""

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), limit)

    optimizer.register_step_pre_hook(clip)


def _optimizer_of(config: TrialConfig, team: Team, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = config.train.optimizer.build(model)
    team.mean_gradients(model, optimizer)  # before they are clipped
    if config.train.clip_norm is not None:
        _clip_before_each_step(optimizer, model, config.train.clip_norm)
    return optimizer


@dataclass
class _Run:
    """Everything that changes while a configuration is trained."""

    config: TrialConfig
    data: DataSet
    device: torch.device
    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    team: Team
    memory: dict[str, Tensor]  # of the method
    epoch: int = 0
    history: list[Metrics] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_metrics: Metrics = field(default_factory=dict)

    @classmethod
    def start(cls, config: TrialConfig, data: DataSet, device: torch.device) -> _Run:
        torch.manual_seed(seed_of(config.seed, "init"))
        model: nn.Module = config.build_model(data.shape, data.classes, data.mean, data.std)
        config.method.initialise(model)
        team = Team.here()
        model = team.join(model)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = copy.deepcopy(model) if config.train.ema else None
        optimizer = _optimizer_of(config, team, model)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what an earlier trial in this process has held
            torch.cuda.reset_peak_memory_stats(device)
        memory = {name: value.to(device) for name, value in config.method.memory().items()}
        return cls(config, data, device, model, average, optimizer, team, memory)

    def _new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return _optimizer_of(self.config, self.team, model)

    @property
    def measured(self) -> nn.Module:
        """The model that is measured: the running average where there is one."""
        return self.average or self.model

    def train_epoch(self, epoch: int) -> Metrics:
        """One pass over the training split; the mean of each loss term.

        The last examples of the random order are left out where they do not fill a batch.
        """
        total = len(self.data.train)
        size, steps = self._batches
        source = generator("cpu", self.config.seed, epoch, "order")
        order = torch.randperm(total, generator=source).to(self.device)
        sums: dict[str, Tensor] = {}
        self.model.train()
        with self.config.update.epoch(self.model, self._new_optimizer) as take:
            for step in range(steps):
                self._set_rate(epoch + step / steps)
                index = order[step * size : (step + 1) * size]
                terms = self._train_step(take, index, epoch, step, epoch + step / steps)
                for name, value in terms.items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value
        return self._means(sums, steps, epoch)

    @property
    def _batches(self) -> tuple[int, int]:
        """Examples in a batch, batches in an epoch."""
        total = len(self.data.train)
        size = min(self.config.train.batch_size, total)
        size -= size % self.team.size
        return size, total // size

    def _train_step(
        self, take: Step, index: Tensor, epoch: int, step: int, now: float
    ) -> dict[str, Tensor]:
        config = self.config
        rows = self.team.share(len(index))
        key = (config.seed, epoch, step)
        rng = Rng(key, rows.start, block=len(index))
        # Dropout draws from the global generator.
        torch.manual_seed(seed_of(*key, "dropout"))
        x, y = self.data.train.batch(index[rows])
        if config.data.augment is not None:
            x = config.data.augment.apply(x, rng.child("augment"))
        x = x.contiguous(memory_format=torch.channels_last)
        net = self.model
        if config.smoothing.sigma and not config.method.draws_noise:
            noise = rng.child("noise").noise(x, config.smoothing.sigma, config.smoothing.noise)
            net = _WithNoise(net, noise)
        strength = config.train.eps_ramp.factor(now)
        mix = Rng((*key, "mix"), block=len(index))  # of the whole batch
        threat = config.train_threat.draw(len(index), x[0].numel(), strength, mix).part(rows)
        needed = config.method.required_norms
        balls = config.train_threat.balls(x[0].numel(), strength, needed)
        ctx = StepContext(
            threat,
            rng.child("attack"),
            now / config.train.epochs,
            balls,
            config.train_threat.shares(),
            self.memory,
            strength,
            config.smoothing.sigma,
            config.smoothing.noise,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            loss = take(net, self.optimizer, config.method, (x, y), ctx)
        self.team.mean(list(self.memory.values()))
        self._update_average(epoch, step)
        return {"loss": loss.total, **loss.terms}

    @property
    def _bfloat16(self) -> bool:
        precision = self.config.train.precision
        return precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")

    def _set_rate(self, now: float) -> None:
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = train.optimizer.lr * train.schedule.factor(now, train.epochs)

    @torch.no_grad()
    def _update_average(self, epoch: int, step: int) -> None:
        """Exponential moving average of the weights; buffers are copied."""
        decay = self.config.train.ema
        if self.average is None or decay is None:
            return
        # The first steps count for more: the start is random, not a good model.
        steps = epoch * self._batches[1] + step
        decay = min(decay, (1 + steps) / (10 + steps))
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)

    def _means(self, sums: dict[str, Tensor], steps: int, epoch: int) -> Metrics:
        weights = torch.stack([p.detach().sum() for p in self.model.parameters()]).sum()
        stacked = torch.stack(list(sums.values())) / steps
        self.team.mean([stacked])
        values = stacked.tolist()
        means = {f"train/{name}": value for name, value in zip(sums, values, strict=True)}
        wrong = [name for name, value in means.items() if not math.isfinite(value)]
        if wrong or not bool(torch.isfinite(weights)):
            raise Diverged(f"epoch {epoch + 1}: {wrong[0] if wrong else 'a weight'} is not finite")
        means["train/lr"] = self.optimizer.param_groups[0]["lr"]
        return means

    def measure_val(self) -> Records:
        """Predictions on the validation split, each worker's share brought together."""
        key: Key = ("evaluate", "val")
        attack = self.config.evaluate.attack
        return self._records(self.measured, self.data.val, self.config.threat, attack, key)

    def _records(
        self, model: nn.Module, split: Split, threats: Sequence[Threat], attack: Attack, key: Key
    ) -> Records:
        mine = split.part(self.team.share(len(split)))
        size, certifier = self.config.evaluate.batch_size, self.config.certifier()
        records = measure(model, mine, threats, attack, key, size)
        if certifier is not None and split is self.data.val:
            anchors = anchors_for(certifier, self.data.train)
            records = certified(model, mine, threats, certifier, records, anchors)
        return Records.joined(self.team.gather(records))

    def guarded(self) -> Metrics:
        """What a guard finds on training examples, and whether training has collapsed:
        whether that error lies far above its lowest."""
        guard = self.config.update.guard(self.config.method)
        if guard is None:
            return {}
        some = self.data.train.part(slice(0, GUARDED))
        threats = [*self.config.train_threat.threats(math.prod(self.data.shape)).values()]
        records = self._records(self.model, some, threats, guard, ("guard",))
        error = records.errors("train")["robust_error"]
        lowest = min([error, *(epoch["train/guard_error"] for epoch in self.history)])
        return {"train/guard_error": error, "collapsed": float(error - lowest > COLLAPSE)}

    def concluded(self) -> Metrics:
        """After the last epoch: errors at other weights of the model, and what its theory says."""
        if self.epoch < self.config.train.epochs:
            return {}
        found: Metrics = {}
        for weight in self.config.method.curve:
            with given(self.measured, weight):
                errors = self.measure_val().errors("val")
            found |= {f"{name}/weight_{weight:g}": e for name, e in errors.items() if "_er" in name}
        return found | self._audited()

    def _audited(self) -> Metrics:
        """Means of what the method's audit says of each validation example."""
        mine, config = self.data.val.part(self.team.share(len(self.data.val))), self.config
        size, rng = config.evaluate.batch_size, Rng(("evaluate", "val", "audit"), mine.start)
        values: dict[str, list[float]] = {}
        for first in range(0, len(mine), size):
            rows = torch.arange(first, min(first + size, len(mine)))
            x, y = mine.batch(rows.to(self.device))
            attack, threat = config.evaluate.attack, config.threat[0]
            found = config.method.audit(self.measured, x, y, attack, threat, rng.rows(rows))
            for name, each in found.items():
                values.setdefault(name, []).extend(each.tolist())
        parts: list[dict[str, list[float]]] = self.team.gather(values)
        return {
            f"val/audit/{name}": math.fsum(v for part in parts for v in part[name])
            / len(self.data.val)
            for name in parts[0]
        }

    def summarise(self, records: Records) -> Metrics:
        """This epoch's errors, the best epoch's, and the selected ones under the short names."""
        errors = records.errors("val")
        if not self.best_metrics or errors["robust_error"] < self.best_metrics["robust_error"]:
            self.best = {k: v.detach().clone() for k, v in self.measured.state_dict().items()}
            self.best_metrics = {**errors, "epoch": float(self.epoch)}
        chosen = self.best_metrics if self.config.train.select == "best" else errors
        best = {
            f"best/{name}": self.best_metrics[name]
            for name in ("standard_error", "robust_error", "epoch")
        }
        return errors | {name: chosen[name] for name in errors if "/" not in name} | best

    def cost(self, seconds: float, evaluate_seconds: float) -> Metrics:
        """What the epoch cost; `gpu_seconds` is all the time for which it held its GPU."""
        gpu = {}
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_reserved(self.device)
            total = torch.cuda.get_device_properties(self.device).total_memory
            gpu = {"gpu_memory_bytes": float(total)}
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024  # Linux counts KiB
        size, steps = self._batches
        return {
            "forward_equivalents": self.config.forward_equivalents(
                size * steps, len(self.data.val), self.epoch
            ),
            "train_seconds": seconds,
            "evaluate_seconds": evaluate_seconds,
            "gpu_seconds": (seconds + evaluate_seconds)
            * self.config.resources.gpus
            * self.team.size,
            "images_per_second": len(self.data.train) / seconds,
            "peak_memory_bytes": float(peak),
            **gpu,
        }

    def save(self, path: Path) -> None:
        """All that `restore` needs, in one file."""
        tensors, numbers = optimizer_state(self.optimizer)
        groups = {"model": self.model.state_dict(), "best": self.best, "optimizer": tensors}
        groups["memory"] = self.memory
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        meta: dict[str, Any] = {
            "trial": self.config.id,
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best_metrics,
            "optimizer": numbers,
        }
        write_tensors(path, groups, meta)

    def begin_with(self, folder: Path) -> None:
        """Take over the weights of a trained model.

        Raises:
            DataError: there are none, or they belong to another architecture.
        """
        _, weights, _ = read_trained(folder)
        for model in (self.model, self.average):
            if model is not None:
                load_weights(model, weights, folder)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            DataError: it cannot be read, or belongs to another configuration.
        """
        groups, meta = read_tensors(path)
        if meta.get("trial") != self.config.id:
            raise DataError(f"{path}: the checkpoint of another configuration")
        load_weights(self.model, groups["model"], path)
        if self.average is not None:
            load_weights(self.average, groups["average"], path)
        restore_optimizer(self.optimizer, groups.get("optimizer", {}), meta["optimizer"])
        self.memory = {name: t.to(self.device) for name, t in groups.get("memory", {}).items()}
        self.best = {name: tensor.to(self.device) for name, tensor in groups["best"].items()}
        self.best_metrics, self.history = meta["best"], meta["history"]
        self.epoch = meta["epoch"]
