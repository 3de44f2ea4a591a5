"""CROWN-IBP as a training objective."""

from typing import Literal

import torch
from torch import Tensor

from robustfront.certifiers.propagation import Bounds
from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Bounding, Share


@METHODS.register
class CROWNIBPTraining(Bounding):
    """CROWN-IBP: the cross-entropy at margins between linear bounds and interval bounds.

    robust = mean log sum_k exp(-m_k), m = beta_t m_CROWN-IBP + (1 - beta_t) m_IBP, beta_t from 1 at
    the start of the radius' ramp to `final_beta` at its end. With 0 the model is to be certified by
    `ibp`, with 1 by `crown_ibp`.

    `fused`: in place of a linear function for each wrong class, one for all: the sum of exp(-m_k)
    is bounded from above, each exponential by the line between its ends, and its logarithm taken.

    For models that are a sequence of Linear, Conv2d, batch norm, ReLU and Dropout.
    Batch norm: one pass of x, whose statistics all bounds use.
    Source: arXiv:1906.06316, equations 10 to 12; loss fusion arXiv:2002.12920, section 3.3.
    Official code: huanzhang12/CROWN-IBP.
    Deviates: as `Bounding` does.
    """

    type: Literal["crown_ibp"] = "crown_ibp"
    final_beta: Share = 0.0
    fused: bool = False

    @property
    def forward_equivalents(self) -> float:
        """At the full radius, where with `final_beta` 0 interval bounds are left."""
        return self.forward_equivalents_at(1.0)

    def forward_equivalents_at(self, strength: float) -> float:
        """Interval bounds, and a backward pass of one function, or of one for each wrong class."""
        if self._beta(strength) == 0:
            return 9
        return 20 if self.fused else 40

    def traces(self, ctx: StepContext) -> bool:
        """Unless all weight lies on interval bounds."""
        return self._beta(ctx.strength) > 0

    def lower(self, known: Bounds, rule: Tensor, ctx: StepContext) -> Tensor:
        """The mean of both bounds; `fused`: -log of that of both sums, (N, 1)."""
        beta = self._beta(ctx.strength)
        if beta == 0:
            return known.lower(rule)
        if self.fused:
            return -log_sum_of_both(known, rule, beta)[:, None]
        linear = known.backward(rule)
        return linear if beta == 1 else beta * linear + (1 - beta) * known.lower(rule)

    def _beta(self, strength: float) -> float:
        return 1 - (1 - self.final_beta) * strength


def log_sum_of_both(known: Bounds, rule: Tensor, beta: float) -> Tensor:
    """log of an upper bound of sum_k exp(z_k - z_y), (N,): beta linear + (1 - beta) interval."""
    high, low = -known.lower(rule), known.lower(-rule)
    shift = high.detach().amax(1, keepdim=True)
    least, most = torch.exp(low - shift), torch.exp(high - shift)
    width = high - low
    # The slope of the line between the ends; where there is next to none, that of the exponential.
    narrow = width < 1e-4
    slope = torch.where(narrow, most, (most - least) / torch.where(narrow, 1, width))
    rows = (slope[:, :, None] * rule).sum(1, keepdim=True)
    linear = (least - slope * low).sum(1) - known.backward(rows)[:, 0]
    # Never above the intervals' own sum, nor below 0, but for rounding.
    both = beta * linear.clamp(min=1e-30) + (1 - beta) * most.sum(1)
    return torch.log(both) + shift[:, 0]
