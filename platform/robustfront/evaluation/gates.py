"""Checks that a robust error is not an artefact of masked gradients.

Source: arXiv:1902.06705 (the checklist), and the flags of AutoAttack's official code.
Deviates: noise has 100 draws, where 10,000 are advised for finalists. Longer searches are APGD of
100 steps after 40, and five times the restarts; either may be 2.5 points better (advised: PGD of
20, 40 and 100 steps, 1 point), since 1 point is two of 200 examples. Outputs are checked on one
batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from robustfront.attacks import APGD, FGSM, PGD, Attack, Noise, Square, eval_mode
from robustfront.attacks.base import input_gradient
from robustfront.attacks.goals import DifferenceOfLogitsRatio
from robustfront.data import Split
from robustfront.evaluation.evaluate import measure
from robustfront.evaluation.records import Records
from robustfront.randomness import Key
from robustfront.threats import Threat

POINT = 0.01  # by how much a stronger search may be worse
_SLOW = 0.025  # by how much a longer one may be better: on 200 examples 0.01 says little
_BLACK_BOX = 0.002  # by how much a search without gradients may be better
_UNEQUAL = 1e-4  # relative distance between two outputs for the same input
_REPEATS = 5


def masking(
    model: nn.Module, split: Split, threat: Threat, suite: Records, key: Key, batch_size: int
) -> Iterator[str]:
    """What speaks for masked gradients, a sentence for each check that fails.

    Args:
        model: logits of inputs in [0, 1].
        split: the examples to check with.
        suite: records of the same examples under the suite that is to be believed, in this threat.
    """
    yield from _outputs(model, split, batch_size)
    subject = _Subject(model, split, threat, key, batch_size)
    yield from _ranks(subject, suite)
    yield from _radii(subject)
    yield from _converged(subject)
    yield from _black_box(subject)


@dataclass(frozen=True)
class _Subject:
    model: nn.Module
    split: Split
    threat: Threat
    key: Key
    batch_size: int
    known: dict[tuple[Attack, Threat], np.ndarray] = field(default_factory=dict)

    def mistakes(self, attack: Attack, threat: Threat | None = None) -> np.ndarray:
        """Which examples are wrong plainly or under the attack, (N,); each is measured once."""
        case = attack, threat or self.threat
        if case not in self.known:
            key = (*self.key, "gates")
            records = measure(self.model, self.split, [case[1]], attack, key, self.batch_size)
            self.known[case] = records.mistakes("val")["robust_error"]
        return self.known[case]

    def error(self, attack: Attack, threat: Threat | None = None) -> float:
        """Their share."""
        return float(self.mistakes(attack, threat).mean())


def _outputs(model: nn.Module, split: Split, batch_size: int) -> Iterator[str]:
    """Logits, the same each time, with a gradient to the input."""
    x, y = split.batch(slice(0, batch_size))
    with eval_mode(model):
        with torch.no_grad():
            outputs = [model(x) for _ in range(_REPEATS)]
        right = outputs[0].argmax(1) == y
        with torch.enable_grad():
            slopes = input_gradient(model, x, DifferenceOfLogitsRatio(y))
    size = torch.linalg.vector_norm(outputs[0])
    apart = max(float(torch.linalg.vector_norm(other - outputs[0]) / size) for other in outputs)
    if not apart <= _UNEQUAL:
        yield f"outputs for the same inputs differ by {apart:.1e} of their size"
    sums = outputs[0].sum(1)
    if bool((outputs[0] >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all()):
        yield "the outputs are probabilities, attacks need logits"
    if flat := int((right & ~slopes.flatten(1).any(1)).sum()):
        yield f"no gradient to the input for {flat} of {len(x)} examples"


def _ranks(subject: _Subject, suite: Records) -> Iterator[str]:
    """Noise, one step, twenty steps, the suite: each at least as strong as the one before."""
    attacks = (Noise(draws=100), FGSM(), PGD(steps=20))
    errors = {attack.name: subject.error(attack) for attack in attacks}
    errors["the suite"] = float(suite.mistakes("val")["robust_error"].mean())
    names = list(errors)
    for weak, strong in zip(names, names[1:], strict=False):
        if errors[weak] > errors[strong] + POINT:
            yield (
                f"{weak} finds more errors than {strong} "
                f"({100 * errors[weak]:.1f} % and {100 * errors[strong]:.1f} %)"
            )


def _radii(subject: _Subject) -> Iterator[str]:
    """A larger ball holds more errors, and the largest one nothing but errors."""
    attack, factors = PGD(steps=20), (0, 0.5, 1, 2, 4)
    errors = [subject.error(attack, subject.threat.scaled(factor)) for factor in factors]
    for at, (less, more) in enumerate(zip(errors, errors[1:], strict=False)):
        if less > more + POINT:
            yield (
                f"fewer errors at {factors[at + 1]:g} eps ({100 * more:.1f} %) than at "
                f"{factors[at]:g} eps ({100 * less:.1f} %)"
            )
    if subject.threat.norm == "segment":
        return  # it never allows every input
    labels = subject.split.y.cpu().numpy()
    chance = np.bincount(labels).max() / len(labels)
    whole = subject.threat.model_copy(update={"eps": _everything(subject)})
    left = 1 - subject.error(attack, whole)
    if left > chance + POINT:
        yield f"{100 * left:.1f} % stay right where every input is allowed"


def _everything(subject: _Subject) -> int:
    """A radius whose ball holds all images."""
    pixels = subject.split.batch(slice(0, 1))[0].numel()
    largest = {"linf": 1, "l2": math.ceil(math.sqrt(pixels)), "l1": pixels, "segment": 1}
    return largest[subject.threat.norm]


def _converged(subject: _Subject) -> Iterator[str]:
    """More steps and restarts do not find much more."""
    # Within l1 one run finds little: the protocol of AutoAttack has five, in a shrinking radius.
    sparse = subject.threat.norm == "l1"
    base = APGD(steps=40, restarts=5 if sparse else 1, shrinking_radius=sparse)
    longer = base.model_copy(update={"steps": 100})
    restarted = base.model_copy(update={"restarts": 5 * base.restarts})
    error = subject.error(base)
    for more in (longer, restarted):
        gain = subject.error(more) - error
        if gain > _SLOW:
            yield f"{more.name} finds {100 * gain:.1f} points more errors than {base.name}"


def _black_box(subject: _Subject) -> Iterator[str]:
    """What Square Attack fools has been fooled with gradients."""
    if subject.threat.norm not in Square.norms:
        return
    with_gradients = subject.mistakes(PGD(steps=100)) | subject.mistakes(APGD(steps=100))
    alone = subject.mistakes(Square(queries=500)) & ~with_gradients
    # A single example may be chance: one of 200 is more than the tolerance.
    if alone.sum() > max(1, _BLACK_BOX * len(alone)):
        yield f"Square Attack fools {100 * alone.mean():.1f} points that gradients do not"
