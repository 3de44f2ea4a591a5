"""Small adversarial bounding regions."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from robustfront.attacks import PGD, AttackField
from robustfront.certifiers.propagation import Region
from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Bounding, Share, parts_around, searched, verified_ce


@METHODS.register
class SABR(Bounding):
    """SABR: interval bounds over a small region inside the threat, where an attack has found most.

    robust = mean log sum_k exp(-m_k) over a region of `share` (the paper's lambda) of the radius,
    its centre as near to x_adv as the threat allows. share = 1 is IBP; share = 0 is adversarial
    training.

    Batch norm: one pass of x, whose statistics the bounds use too; the search runs in eval mode.
    Source: arXiv:2210.04871, section 3. Official code: eth-sri/SABR.
    Deviates: steps do not shrink during the search; no shrinking of ReLUs. l2 and l1 (not in the
    paper): a ball of `share` * eps within the ball of eps.
    """

    type: Literal["sabr"] = "sabr"
    share: Share = 0.4
    inner: AttackField = PGD(steps=8, rel_step_size=0.5)

    @property
    def forward_equivalents(self) -> float:
        """The search; clean, centre and radius forward, and a full backward of each."""
        return self.inner.forward_equivalents + 9

    def regions(
        self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext
    ) -> list[list[Region]]:
        """A part of the threat around what the attack finds."""
        found = searched(self.inner, model, x, y, ctx)
        return [parts_around(ctx.threat, x, found, self.share)]

    def robust(self, margins: Sequence[Tensor], ctx: StepContext) -> Mapping[str, Tensor]:
        """`robust` alone."""
        return {"robust": verified_ce(margins[0]).mean()}
