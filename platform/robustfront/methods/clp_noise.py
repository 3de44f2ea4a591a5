"""Clean logit pairing of noisy images."""

from typing import Literal

from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, distances


@METHODS.register
class CLPNoise(Method):
    """Clean logit pairing: two different noisy images shall get similar logits; no attack at all.

    loss = mean CE(f(x + n), y) + weight * mean over pairs ||f(x_i + n_i) - f(x_j + n_j)||_2,
    n ~ N(0, sigma^2). Neighbours in the random order of a batch make a pair.

    Where it seems robust, gradients are masked: measure it with strong attacks only.
    Batch norm: one train-mode forward, of the noisy inputs.
    Source: arXiv:1803.06373, section 4.2.
    Deviates: pairs are neighbours, where the paper pairs the halves of a batch (the order is random
    in both), so that workers that share a batch form the same ones; an image without a neighbour is
    in no pair; the distance is not squared, as in the other pairing losses here.
    """

    type: Literal["clp_noise"] = "clp_noise"
    weight: NonNegativeFloat = 0.5  # of the pairing term
    sigma: NonNegativeFloat = 0.5  # of the noise, in pixel units

    @property
    def forward_equivalents(self) -> float:
        """One forward and one full backward."""
        return 3

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """Two terms, `noisy_ce` and `pairing` (before its weight)."""
        logits = model(x + self.sigma * ctx.rng.normal(x))
        noisy = F.cross_entropy(logits, y)
        pairs = len(logits) // 2
        apart = distances(logits[: 2 * pairs : 2], logits[1 : 2 * pairs : 2])
        pairing = apart.sum() / max(pairs, 1)
        return LossTerms(noisy + self.weight * pairing, {"noisy_ce": noisy, "pairing": pairing})
