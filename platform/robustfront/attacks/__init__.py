"""Attacks: searches for the worst point of a perturbation set."""

from typing import TYPE_CHECKING

from robustfront.attacks.apgd import APGD
from robustfront.attacks.apgd_t import TargetedAPGD
from robustfront.attacks.autoattack import AutoAttack
from robustfront.attacks.base import ATTACKS, Attack, Surrogate, eval_mode
from robustfront.attacks.fab_t import TargetedFAB
from robustfront.attacks.fgsm import FGSM
from robustfront.attacks.goals import Goal, Misclassification
from robustfront.attacks.langevin import Langevin
from robustfront.attacks.noise import Noise
from robustfront.attacks.pgd import PGD
from robustfront.attacks.square import Square

if TYPE_CHECKING:
    AttackField = Attack
else:
    AttackField = ATTACKS.field()

__all__ = [
    "APGD",
    "ATTACKS",
    "FGSM",
    "PGD",
    "Attack",
    "AttackField",
    "AutoAttack",
    "Goal",
    "Langevin",
    "Misclassification",
    "Noise",
    "Square",
    "Surrogate",
    "TargetedAPGD",
    "TargetedFAB",
    "eval_mode",
]
