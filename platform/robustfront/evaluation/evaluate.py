"""Running a classifier and its attacks over a set of examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustfront.attacks import ATTACKS, Attack, eval_mode, misclassification
from robustfront.data import Split
from robustfront.errors import ConfigError, DataError, nearest
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

    The random starts depend on `key` and on each example's position, not on `batch_size`, which is
    halved where the device has too little memory for it.
    """
    names = ["plain", *(f"{threat.name}/{attack.name}" for threat in threats)]
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    first = 0
    with eval_mode(model):
        while first < len(split):
            x, y = split.batch(slice(first, first + batch_size))
            try:
                found = _predictions(model, x, y, threats, attack, key, split.start + first)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            for name, predictions in zip(names, found, strict=True):
                rows[name].append(predictions)
            first += batch_size
    joined = {name: torch.cat(parts).cpu().numpy() for name, parts in rows.items()}
    return Records(split.y.cpu().numpy(), joined.pop("plain"), joined)


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
        DataError: inputs outside [0, 1] or of the wrong shape.
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
    return measure(model, Split(x, y, 1.0), parsed, suite, (seed, "evaluate"))


def _predictions(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threats: Sequence[Threat],
    attack: Attack,
    key: Key,
    first: int,
) -> list[Tensor]:
    """Predicted classes of a batch, plain and under the attack within each threat."""
    found = [_predict(model, x)]
    for threat in threats:
        rng = Rng((*key, threat.name, attack.name), first)
        found.append(_predict(model, attack(model, x, misclassification(y), threat, rng)))
    return found


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)  # type: ignore[no-any-return]
