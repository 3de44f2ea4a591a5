"""Consistency regularisation of noisy copies."""

from typing import Literal

from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.methods.base import METHODS, LossTerms, StepContext
from robustfront.methods.noisy import Noisy, logits_of, mean_log_probability


@METHODS.register
class Consistency(Noisy):
    """Consistency: noisy copies shall be classified right, alike, and surely.

    loss = mean_i CE(f(x + n_i), y) + weight mean_i KL(p || p_i) + entropy_weight H(p), with
    p_i = softmax f(x + n_i), p their mean, n_i ~ N(0, sigma^2); gradients through both sides.

    Weights that are too large collapse training at large sigma.
    Batch norm: one train-mode forward, of all copies.
    Source: arXiv:2006.04062 (Jeong and Shin, NeurIPS 2020), section 3. Official code:
    jh-jeong/smoothing-consistency.
    Deviates: none known.
    """

    type: Literal["consistency"] = "consistency"
    weight: NonNegativeFloat = 10.0
    entropy_weight: NonNegativeFloat = 0.5

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """`noisy_ce`, `divergence` and `entropy`, the last two before their weights."""
        logits = logits_of(model, x, self.noises(x, ctx))
        noisy = F.cross_entropy(logits.flatten(0, 1), y.repeat(self.copies))
        log_mean, log_p = mean_log_probability(logits), F.log_softmax(logits, dim=2)
        mean = log_mean.exp()
        divergence = (mean * (log_mean - log_p)).sum(2).mean()
        entropy = -(mean * log_mean).sum(1).mean()
        total = noisy + self.weight * divergence + self.entropy_weight * entropy
        terms = {"noisy_ce": noisy, "divergence": divergence, "entropy": entropy}
        return LossTerms(total, terms)
