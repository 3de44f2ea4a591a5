"""CROWN-IBP as a training objective."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from robustfront.certifiers.propagation import Bounds, Region
from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Bounding, Share, verified_ce, whole


@METHODS.register
class CROWNIBPTraining(Bounding):
    """CROWN-IBP: the cross-entropy at margins between linear bounds and interval bounds.

    robust = mean log sum_k exp(-m_k), m = beta_t m_CROWN-IBP + (1 - beta_t) m_IBP, beta_t from 1 at
    the start of the radius' ramp to `final_beta` at its end. With 0 the model is to be certified by
    `ibp`, with 1 by `crown_ibp`.

    For models that are a sequence of Linear, Conv2d, batch norm, ReLU and Dropout.
    Batch norm: one pass of x, whose statistics all bounds use.
    Source: arXiv:1906.06316, equations 10 to 12. Official code: huanzhang12/CROWN-IBP.
    Deviates: one linear function for each wrong class, no loss fusion.
    """

    type: Literal["crown_ibp"] = "crown_ibp"
    final_beta: Share = 0.0

    @property
    def forward_equivalents(self) -> float:
        """Interval bounds, and a backward pass of some functions for each wrong class."""
        return 40

    def regions(
        self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext
    ) -> list[list[Region]]:
        """Everything that the threat allows."""
        return [whole(ctx.threat, x)]

    def robust(self, margins: Sequence[Tensor], ctx: StepContext) -> Mapping[str, Tensor]:
        """`robust` alone."""
        return {"robust": verified_ce(margins[0]).mean()}

    def traces(self, ctx: StepContext) -> bool:
        """Unless all weight lies on interval bounds."""
        return self._beta(ctx) > 0

    def lower(self, known: Bounds, rule: Tensor, ctx: StepContext) -> Tensor:
        """The mean of both bounds."""
        beta = self._beta(ctx)
        if beta == 0:
            return known.lower(rule)
        linear = known.backward(rule)
        return linear if beta == 1 else beta * linear + (1 - beta) * known.lower(rule)

    def _beta(self, ctx: StepContext) -> float:
        return 1 - (1 - self.final_beta) * ctx.strength
