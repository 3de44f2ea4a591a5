"""Running a classifier and its attacks over a set of examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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

    The random starts depend on `key` and on each example's position, not on `batch_size`.
    """
    plain: list[Tensor] = []
    attacked: dict[str, list[Tensor]] = {f"{threat.name}/{attack.name}": [] for threat in threats}
    with eval_mode(model):
        for first in range(0, len(split), batch_size):
            x, y = split.batch(slice(first, first + batch_size))
            plain.append(_predict(model, x))
            for threat, rows in zip(threats, attacked.values(), strict=True):
                rng = Rng((*key, threat.name, attack.name), first)
                x_adv = attack(model, x, misclassification(y), threat, rng)
                rows.append(_predict(model, x_adv))
    return Records(
        split.y.cpu().numpy(),
        _joined(plain),
        {name: _joined(rows) for name, rows in attacked.items()},
    )


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


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)  # type: ignore[no-any-return]


def _joined(rows: list[Tensor]) -> np.ndarray:
    return torch.cat(rows).cpu().numpy()
