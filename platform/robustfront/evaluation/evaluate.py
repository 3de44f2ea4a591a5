"""Running a classifier and its attacks over a set of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustfront.attacks import PGD, Attack, AttackField, Misclassification, eval_mode
from robustfront.data import Corrupted, Split
from robustfront.errors import ConfigError, DataError, Diverged
from robustfront.evaluation.metrics import mistakes
from robustfront.evaluation.progress import Progress
from robustfront.evaluation.records import Records
from robustfront.problems import configured
from robustfront.randomness import Key, Rng
from robustfront.threats import Threat
from robustfront.unseen import Unseen


def measure(
    model: nn.Module,
    split: Split,
    threats: Sequence[Threat],
    attack: Attack,
    key: Key,
    batch_size: int = 500,
) -> Records:
    """Predictions of the model, plain and under the attack within each threat, in full precision.

    An attack is made on the examples that are still right; what it fools keeps that prediction.
    Random draws depend on `key` and on each example's position, not on `batch_size`, which is
    halved where the device has too little memory for it.

    Raises:
        Diverged: the logits are not finite.
    """
    progress = Progress(split.y, stages_of(threats, attack))
    for _ in measuring(model, split, threats, attack, key, batch_size, progress):
        pass
    return progress.records


def stages_of(threats: Sequence[Threat], attack: Attack) -> dict[str, int]:
    """How many stages an attack has within each threat, by the name that records give it."""
    return {f"{threat.name}/{attack.name}": len(attack.stages(threat)) for threat in threats}


def measuring(
    model: nn.Module,
    split: Split,
    threats: Sequence[Threat],
    attack: Attack,
    key: Key,
    batch_size: int,
    progress: Progress,
) -> Iterator[None]:
    """As `measure`, yielding after each batch of a stage; goes on where `progress` stands."""
    every = torch.arange(len(split))
    _note_plain(model, split, batch_size, progress)
    for threat, name in zip(threats, stages_of(threats, attack), strict=True):
        rng = Rng((*key, threat.name, attack.name), split.start)
        for number, stage in enumerate(attack.stages(threat)):
            standing = progress.standing(name, number) if threat.eps else every[:0]
            predict = partial(_attacked, model, split, stage, threat, rng.child(stage.name))
            for rows, found in _batches(standing, batch_size, predict):
                progress.note(name, rows, found, number)
                yield
            progress.finish(name, number)
            yield


def measure_changed(
    model: nn.Module, split: Split, unseen: Sequence[Unseen], key: Key, batch_size: int = 500
) -> Records:
    """Predictions of the model, plain and under perturbations other than balls.

    Raises:
        Diverged: the logits are not finite.
    """
    progress = Progress(split.y, dict.fromkeys([one.name for one in unseen], 1))
    for _ in measuring_changed(model, split, unseen, key, batch_size, progress):
        pass
    return progress.records


def measuring_changed(
    model: nn.Module,
    split: Split,
    unseen: Sequence[Unseen],
    key: Key,
    batch_size: int,
    progress: Progress,
) -> Iterator[None]:
    """As `measure_changed`, yielding after each batch; goes on where `progress` stands."""

    def changed(one: Unseen, rows: Tensor) -> Tensor:
        rng = Rng((*key, one.name), split.start).rows(rows)
        return _predict(model, one(model, *_batch(split, rows), rng))

    _note_plain(model, split, batch_size, progress)
    for one in unseen:
        standing = progress.standing(one.name, 0)
        for rows, found in _batches(standing, batch_size, partial(changed, one)):
            progress.note(one.name, rows, found, 0)
            yield
        progress.finish(one.name, 0)
        yield


def measure_corrupted(
    model: nn.Module, corrupted: Corrupted, device: torch.device, batch_size: int = 500
) -> dict[str, float]:
    """Standard error under each corruption, all severities together, by its name.

    Raises:
        DataError: a file cannot be read.
        Diverged: the logits are not finite.
    """
    errors = {}
    for name in corrupted.names:
        split = corrupted.read(name, device)
        found = _every(split, batch_size, partial(_plainly, model, split))
        errors[name] = float((found != split.y.cpu().numpy()).mean())
    return errors


def transfer_error(
    source: nn.Module,
    target: nn.Module,
    split: Split,
    threat: Threat,
    key: Key,
    batch_size: int = 500,
) -> float:
    """Share of examples that the target gets wrong plainly or at what PGD-20 finds on the source.

    Raises:
        Diverged: the target's logits are not finite.
    """
    attack, rng = PGD(steps=20), Rng((*key, threat.name), split.start)

    def attacked(rows: Tensor) -> Tensor:
        x, y = _batch(split, rows)
        return _predict(target, attack(source, x, Misclassification(y), threat, rng.rows(rows)))

    plain = _every(split, batch_size, partial(_plainly, target, split))
    found = _every(split, batch_size, attacked)
    return float(mistakes(split.y.cpu().numpy(), plain, [found]).mean())


def _batch(split: Split, rows: Tensor) -> tuple[Tensor, Tensor]:
    return split.batch(rows.to(split.y.device))


def _note_plain(model: nn.Module, split: Split, batch_size: int, progress: Progress) -> None:
    every = torch.arange(len(split))
    for rows, found in _batches(every, batch_size, partial(_plainly, model, split)):
        progress.plain[rows] = found


def _plainly(model: nn.Module, split: Split, rows: Tensor) -> Tensor:
    """Predictions for some examples as they are."""
    return _predict(model, _batch(split, rows)[0])


def _attacked(
    model: nn.Module,
    split: Split,
    attack: Attack,
    threat: Threat,
    rng: Rng,
    rows: Tensor,
) -> Tensor:
    """Predictions for some examples under an attack."""
    x, y = _batch(split, rows)
    return _predict(model, attack(model, x, Misclassification(y), threat, rng.rows(rows)))


def _batches(
    rows: Tensor, batch_size: int, predict: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Predictions batch by batch; a batch that the device has no memory for is cut in two."""
    first = 0
    while first < len(rows):
        some = rows[first : first + batch_size]
        try:
            yield some, predict(some).cpu()
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            continue
        first += batch_size


def plain_predictions(
    model: nn.Module, split: Split, batch_size: int = 500
) -> npt.NDArray[np.int64]:
    """The class of each example, (N,).

    Raises:
        Diverged: the logits are not finite.
    """
    return _every(split, batch_size, partial(_plainly, model, split))


def _every(
    split: Split, batch_size: int, predict: Callable[[Tensor], Tensor]
) -> npt.NDArray[np.int64]:
    """Predictions for all examples of a split, (N,)."""
    parts = [found for _, found in _batches(torch.arange(len(split)), batch_size, predict)]
    return torch.cat(parts).numpy()


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threats: str | Sequence[str],
    suite: str | Mapping[str, Any] | Attack = "pgd",
    seed: int = 0,
) -> Records:
    """Records of a classifier of your own.

    Args:
        model: logits (N, K) from inputs in [0, 1]; put into eval mode meanwhile.
        x: (N, C, H, W) float32 in [0, 1], on the model's device.
        y: (N,) int64.
        threats: such as `linf:8/255`; one or several.
        suite: an attack, its name (then with its defaults), or its settings as in a job file.
        seed: of the attack's random starts.

    Raises:
        ConfigError: a threat or suite that does not exist.
        DataError: inputs outside [0, 1] or of the wrong shape; labels that the model has no logit
            for; logits that are not finite.
    """
    if x.dim() != 4 or len(x) != len(y) or not len(x):
        raise DataError(f"x (N, C, H, W) and y (N,) are expected, got {x.shape} and {y.shape}")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise DataError("x must lie in [0, 1]; normalisation belongs into the model")
    attack = suite if isinstance(suite, Attack) else configured(AttackField, suite, "suite")
    each = [threats] if isinstance(threats, str) else threats
    try:
        parsed = [Threat.parse(text) for text in each]
    except ValueError as error:
        raise ConfigError("threats", [str(error)]) from None
    if len(set(parsed)) < len(parsed):
        raise ConfigError("threats", [f"one is given twice: {', '.join(each)}"])
    # On a CPU a small batch stays in the cache.
    batch_size = 250 if x.device.type == "cpu" else 1000
    try:
        with channels_last(model), full_precision():
            _require_labels(model, x, y)
            return measure(model, Split(x, y, 1.0), parsed, attack, (seed, "evaluate"), batch_size)
    except Diverged as error:
        raise DataError(str(error)) from None


def _require_labels(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Known before any attack: on a GPU, a label out of range ends its use by the process."""
    with eval_mode(model), torch.no_grad():
        classes = model(x[:1]).shape[1]
    least, most = int(y.min()), int(y.max())
    if least < 0 or most >= classes:
        raise DataError(
            f"labels lie in 0 to {classes - 1}, as many as logits, got {least} to {most}"
        )


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Convolutions in the layout in which they are fastest, for a while."""
    weights = [(p, p.data) for p in model.parameters() if p.dim() == 4]
    for parameter, data in weights:
        # `contiguous` would leave a kernel for one channel as it is, and the layer's output too.
        parameter.data = data.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 or bf16 inside the products of float32 numbers, for a while."""
    gpu, cpu = torch.backends.cudnn, torch.backends.mkldnn
    products = (torch.backends.cuda.matmul, cpu.matmul)  # type: ignore[attr-defined]
    each = (*products, gpu.conv, cpu.conv)  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in each]
    try:
        for part in each:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(each, before, strict=True):
            part.fp32_precision = precision


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with eval_mode(model):
        logits = model(x)
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).flatten(1).any(1).sum())
        raise Diverged(f"the model's logits are not finite for {bad} of {len(x)} inputs")
    return logits.argmax(1)  # type: ignore[no-any-return]
