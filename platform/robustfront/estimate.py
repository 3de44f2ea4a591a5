"""What a job will cost, from the sweeps that were here or one timed training step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from robustfront.certifiers import InputDependent
from robustfront.config import Job, TrialConfig
from robustfront.data import DataSet, split_data
from robustfront.errors import RobustfrontError
from robustfront.executors.choose import checked_data, cores, kinds, local_concurrency
from robustfront.methods import StepContext
from robustfront.randomness import Rng
from robustfront.search.plan import Plan
from robustfront.search.space import Space
from robustfront.sweep import Sweep, sweep_folders
from robustfront.training.determinism import reset_process

_SAMPLES = 16  # random configurations whose costs are averaged
_STEPS = 3  # timed steps; the first only warms up


@dataclass(frozen=True)
class Estimate:
    """The cost of a plan.

    Args:
        trials: configurations.
        forward_equivalents: forward passes of one example, over all trials.
        seconds: of wall time on this machine; None where data or device are not here.
        final: forward passes of the final suite's attacks and draws for one model, at most.
        final_seconds: how long that takes.
        basis: what the seconds were measured by.
        reason: why there are no seconds.
        remarks: what limits certificates, known before anything is run.
    """

    trials: int
    forward_equivalents: float | None
    seconds: float | None
    concurrency: int
    final: float | None = None
    final_seconds: float | None = None
    basis: str = ""
    reason: str = ""
    remarks: tuple[str, ...] = ()


def estimate(plan: Plan) -> Estimate:
    """The cost of training every configuration to its end with the first seed.

    Early stopping takes from it; further seeds come on top, and the final measurement of the front,
    which is told for one of its members.

    Raises:
        ConfigError: too few examples, or images too small for a model.
        DataError: the data, which are on this machine, cannot be read.
    """
    job = plan.job
    size = None if job.ablation else plan.space.size()
    trials = min(job.search.trials, size or job.search.trials)
    concurrency = local_concurrency(job)
    if not all(config.data.is_local for config in kinds(job)):
        reason = "its data are not on this machine yet"
        return Estimate(trials, None, None, concurrency, reason=reason)
    data = split_data(job.data, checked_data(job), torch.device("cpu"))
    sampled = _sampled(plan)
    passes = trials * float(np.mean([_forward_equivalents(config, data) for config in sampled]))
    final = float(np.mean([config.final_equivalents(len(data.test)) for config in sampled]))
    known = Estimate(trials, passes, None, concurrency, final, remarks=_remarks(sampled, data))
    measured = _measured_before(job)
    if measured is None and job.resources.gpu and not torch.cuda.is_available():
        return replace(known, reason="no GPU is here to time it on")
    if (asked := job.resources.cpu * job.resources.workers) > cores():
        reason = f"resources.cpu: a trial takes {asked} cores, this machine has {cores()}"
        return replace(known, reason=reason)
    pace, basis = measured or (_seconds_per_forward(sampled[0], data), "a step timed here")
    seconds = passes * pace / max(concurrency, 1)
    return replace(known, seconds=seconds, final_seconds=final * pace, basis=basis)


def _sampled(plan: Plan) -> list[TrialConfig]:
    """Random configurations, of an ablation from all of its cells in turn."""
    job, ablation = plan.job, plan.job.ablation
    if ablation is None:
        return [job.trial(plan.space.sample(index), 0) for index in range(_SAMPLES)]
    found = []
    for index, cell in enumerate(ablation.cells()):
        space = Space.parse(ablation.nuisance_in(cell), "ablation.nuisance")
        found.append(job.trial({**cell.settings, **space.sample(index)}, 0))
    return found


def _remarks(sampled: list[TrialConfig], data: DataSet) -> tuple[str, ...]:
    used = [config.certifier(final) for config in sampled for final in (False, True)]
    size = math.prod(data.shape)
    return tuple(dict.fromkeys(c.remark(size) for c in used if isinstance(c, InputDependent)))


def _forward_equivalents(config: TrialConfig, data: DataSet) -> float:
    sizes = len(data.train), len(data.val)
    epochs = range(1, config.train.epochs + 1)
    return sum(config.forward_equivalents(*sizes, epoch) for epoch in epochs)


def _measured_before(job: Job) -> tuple[float, str] | None:
    """Seconds for one forward pass in the newest sweep here of this model, data and device."""
    newest_first = sorted(sweep_folders(), key=lambda folder: -folder.stat().st_mtime)
    for folder in newest_first:
        try:
            sweep = Sweep.open(folder)
        except RobustfrontError:
            continue  # another command's concern
        cost = sweep.state.cost
        if _comparable(sweep.job, job) and cost.forward_equivalents:
            seconds = cost.cpu_seconds / (sweep.job.resources.cpu * sweep.job.resources.workers)
            return seconds / cost.forward_equivalents, f"the {cost.epochs} epochs of {sweep.name}"
    return None


def _comparable(theirs: Job, ours: Job) -> bool:
    """Whether one job's pace tells the other's."""
    same = ("model", "resources")
    shapes = theirs.data.shape == ours.data.shape
    return shapes and all(getattr(theirs, key) == getattr(ours, key) for key in same)


def _seconds_per_forward(config: TrialConfig, data: DataSet) -> float:
    reset_process(config.resources.cpu, config.seed)
    device = torch.device(config.resources.device)
    model = config.build_model(data.shape, data.classes, data.mean, data.std)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = config.train.optimizer.build(model)
    x, y = data.train.batch(slice(0, config.train.batch_size))
    x, y = x.to(device), y.to(device)
    size, train_threat, rng = x[0].numel(), config.train_threat, Rng((0, "estimate"))
    threat = train_threat.draw(len(x), size, 1.0, rng)
    balls = train_threat.balls(size, 1.0, config.method.required_norms)
    ctx = StepContext(threat, rng, 0.0, balls, train_threat.shares(), config.method.memory())
    started = 0.0
    with config.update.epoch(model, config.train.optimizer.build) as take:
        for step in range(1 + _STEPS):
            if step == 1:
                started = time.perf_counter()
            take(model, optimizer, config.method, (x, y), ctx)
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - started
    return taken / (_STEPS * len(x) * config.step_equivalents())
