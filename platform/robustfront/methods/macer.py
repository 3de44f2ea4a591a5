"""Training that makes certified radii large, without an attack."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.methods.base import METHODS, LossTerms, StepContext
from robustfront.methods.noisy import Noisy, logits_of, mean_log_probability

_INSIDE = 1e-6  # probabilities this close to 0 or 1 have probits without a useful gradient


@METHODS.register
class MACER(Noisy):
    """MACER: the cross-entropy of the soft smoothed classifier, and a hinge on its radius.

    loss = mean -log p_y + weight (sigma / 2) mean 1[right, 0 < gap <= gamma] (gamma - gap), p the
    mean of softmax f(x + n_i), gap = Phi^-1(q_y) - max_k Phi^-1(q_k), q the mean of
    softmax beta f(x + n_i).

    Batch norm: one train-mode forward, of all copies.
    Source: arXiv:2001.02378, equation 10 and algorithm 1. Official code: RuntianZ/macer.
    Deviates: examples whose probabilities lie within 1e-6 of 0 or 1 have no hinge, where the code
    drops those whose terms are not finite.
    """

    type: Literal["macer"] = "macer"
    copies: PositiveInt = 16
    weight: NonNegativeFloat = 12.0
    gamma: PositiveFloat = 8.0
    beta: PositiveFloat = 16.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """`smoothed_ce` and `radius`, the hinge before its weight."""
        logits = logits_of(model, x, self.noises(x, ctx))
        smoothed = F.nll_loss(mean_log_probability(logits), y)
        hinge = ctx.sigma / 2 * self._hinge(mean_log_probability(self.beta * logits).exp(), y)
        total = smoothed + self.weight * hinge
        return LossTerms(total, {"smoothed_ce": smoothed, "radius": hinge})

    def _hinge(self, q: Tensor, y: Tensor) -> Tensor:
        own = q.gather(1, y[:, None])[:, 0]
        other = q.scatter(1, y[:, None], -1.0).amax(1)
        inside = (own > other) & (own < 1 - _INSIDE) & (other > _INSIDE)
        # Where there is no hinge, the probits are of numbers that have a gradient.
        own, other = torch.where(inside, own, 0.75), torch.where(inside, other, 0.25)
        gap = torch.special.ndtri(own) - torch.special.ndtri(other)
        counted = inside & (gap <= self.gamma)
        return torch.where(counted, self.gamma - gap, 0).sum() / len(y)
