"""AutoAttack's standard protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robustfront.attacks.apgd import APGD
from robustfront.attacks.apgd_t import TargetedAPGD
from robustfront.attacks.base import ATTACKS, Attack, Surrogate, goal_of
from robustfront.attacks.fab_t import TargetedFAB
from robustfront.attacks.square import Square
from robustfront.randomness import Rng
from robustfront.threats import BALLS, Norm, PerturbationSet, Threat


@ATTACKS.register
class AutoAttack(Attack):
    """Auto-PGD on cross-entropy, targeted Auto-PGD, targeted FAB, Square Attack, in this order.

    Each attacks the examples that those before have not fooled. linf, l2: 100 steps, 9 targets. l1:
    five restarts and five targets of Auto-PGD in a shrinking radius. 5,000 queries of Square.

    Source: arXiv:2003.01690, section 5; l1: arXiv:2103.01208, section 6.
    """

    norms: ClassVar[tuple[Norm, ...]] = BALLS

    type: Literal["autoattack"] = "autoattack"

    @property
    def name(self) -> str:
        """`autoattack`."""
        return self.type

    @property
    def forward_equivalents(self) -> float:
        """For examples that are never fooled, in an linf or l2 ball."""
        return sum(stage.forward_equivalents for stage in _STANDARD)

    @property
    def needs_labels(self) -> bool:
        """As its parts do."""
        return True

    def stages(self, threat: PerturbationSet) -> Sequence[Attack]:
        """The four attacks."""
        sparse = isinstance(threat, Threat) and threat.norm == "l1"
        return _SPARSE if sparse else _STANDARD

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """A misclassified input where one is found, else x."""
        goal = goal_of(self, surrogate)
        found, standing = x, _standing(model, x, goal.y)
        for stage in self.stages(threat):
            rows = standing.nonzero()[:, 0]
            if not len(rows):
                break
            random = rng.child(stage.name).rows(rows)
            x_adv = stage(model, x[rows], goal.rows(rows), threat, random)
            fooled = ~_standing(model, x_adv, goal.y[rows])
            found = found.index_copy(0, rows[fooled], x_adv[fooled])
            standing = standing.index_fill(0, rows[fooled], False)
        return found


_STANDARD = (APGD(), TargetedAPGD(), TargetedFAB(), Square())
_SPARSE = (
    APGD(restarts=5, shrinking_radius=True),
    TargetedAPGD(targets=5, shrinking_radius=True),
    TargetedFAB(),
    Square(),
)


@torch.no_grad()
def _standing(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    right: Tensor = model(x).argmax(1) == y
    return right
