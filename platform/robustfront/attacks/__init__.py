"""Attacks: searches for the worst point of a perturbation set."""

from typing import TYPE_CHECKING

from robustfront.attacks.base import ATTACKS, Attack, Surrogate, eval_mode, misclassification
from robustfront.attacks.fgsm import FGSM
from robustfront.attacks.langevin import Langevin
from robustfront.attacks.pgd import PGD

if TYPE_CHECKING:
    AttackField = Attack
else:
    AttackField = ATTACKS.field()

__all__ = [
    "ATTACKS",
    "FGSM",
    "PGD",
    "Attack",
    "AttackField",
    "Langevin",
    "Surrogate",
    "eval_mode",
    "misclassification",
]
