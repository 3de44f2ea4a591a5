"""Running a classifier and its attacks over a set of examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from robustfront.attacks import ATTACKS, Attack, Misclassification, eval_mode
from robustfront.data import Split
from robustfront.errors import ConfigError, DataError, Diverged, nearest
from robustfront.evaluation.progress import Progress
from robustfront.evaluation.records import Records
from robustfront.randomness import Key, Rng
from robustfront.threats import Threat


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
    """As `measure`, yielding after each stage of a batch; goes on where `progress` stands."""
    first = 0
    while first < len(split):
        rows = slice(first, min(first + batch_size, len(split)))
        try:
            yield from _measuring_batch(model, split, rows, threats, attack, key, progress)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            continue
        first += batch_size


def _measuring_batch(
    model: nn.Module,
    split: Split,
    rows: slice,
    threats: Sequence[Threat],
    attack: Attack,
    key: Key,
    progress: Progress,
) -> Iterator[None]:
    x, y = split.batch(rows)
    plain = _predict(model, x)
    progress.plain[rows] = plain.cpu()
    for threat, name in zip(threats, stages_of(threats, attack), strict=True):
        rng = Rng((*key, threat.name, attack.name), split.start + rows.start)
        predictions, passed = progress.so_far(name, rows, plain)
        for number, stage in enumerate(attack.stages(threat)):
            index = ((predictions == y) & (passed <= number)).nonzero()[:, 0]
            if len(index) and threat.eps:
                goal, random = Misclassification(y[index]), rng.child(stage.name).rows(index)
                x_adv = stage(model, x[index], goal, threat, random)
                predictions = predictions.index_copy(0, index, _predict(model, x_adv))
            progress.note(name, rows, predictions, number)
            yield


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threats: Sequence[str],
    suite: str | Attack = "pgd",
    seed: int = 0,
) -> Records:
    """Records of a classifier of your own.

    Args:
        model: logits (N, K) from inputs in [0, 1]; put into eval mode meanwhile.
        x: (N, C, H, W) float32 in [0, 1], on the model's device.
        y: (N,) int64.
        threats: such as `linf:8/255`.
        suite: an attack, or the name of one (then with its defaults).
        seed: of the attack's random starts.

    Raises:
        ConfigError: a threat or suite that does not exist.
        DataError: inputs outside [0, 1] or of the wrong shape; logits that are not finite.
    """
    if x.dim() != 4 or len(x) != len(y) or not len(x):
        raise DataError(f"x (N, C, H, W) and y (N,) are expected, got {x.shape} and {y.shape}")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise DataError("x must lie in [0, 1]; normalisation belongs into the model")
    if isinstance(suite, str):
        if suite not in ATTACKS.classes:
            raise ConfigError("suite", [f"got {suite!r}{nearest(suite, [*ATTACKS.classes])}"])
        suite = ATTACKS.classes[suite]()
    try:
        parsed = [Threat.parse(text) for text in threats]
    except ValueError as error:
        raise ConfigError("threats", [str(error)]) from None
    if len(set(parsed)) < len(parsed):
        raise ConfigError("threats", [f"one is given twice: {', '.join(threats)}"])
    # On a CPU a small batch stays in the cache, and the attacks take half the time.
    batch_size = 128 if x.device.type == "cpu" else 1000
    try:
        return measure(model, Split(x, y, 1.0), parsed, suite, (seed, "evaluate"), batch_size)
    except Diverged as error:
        raise DataError(str(error)) from None


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with eval_mode(model):
        logits = model(x)
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).flatten(1).any(1).sum())
        raise Diverged(f"the model's logits are not finite for {bad} of {len(x)} inputs")
    return logits.argmax(1)  # type: ignore[no-any-return]
