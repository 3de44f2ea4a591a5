"""What methods for smoothed classifiers share: several noisy copies of each example."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.methods.base import Method, StepContext


class Noisy(Method):
    """Trains on `copies` noisy copies of each example, `smoothing.sigma` being the noise.

    Batch norm: one train-mode forward, of all copies.
    """

    draws_noise: ClassVar[bool] = True

    copies: PositiveInt = 2

    @property
    def forward_equivalents(self) -> float:
        """One forward and one full backward for each copy."""
        return 3 * self.copies

    def noises(self, x: Tensor, ctx: StepContext) -> list[Tensor]:
        """As many as there are copies, (N, C, H, W) each, independent of each other."""
        sources = [ctx.rng.child("noise", number) for number in range(self.copies)]
        return [source.noise(x, ctx.sigma, ctx.noise) for source in sources]


class Averaged(nn.Module):
    """The soft smoothed classifier of some fixed noises.

    Args:
        noises: (N, C, H, W) each.
    """

    def __init__(self, model: nn.Module, noises: list[Tensor]) -> None:
        super().__init__()
        self.model, self.noises = model, noises

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of mean probabilities, (N, K), which are logits of these."""
        return mean_log_probability(logits_of(self.model, x, self.noises))


def logits_of(model: nn.Module, x: Tensor, noises: list[Tensor]) -> Tensor:
    """Logits (m, N, K) of the noisy copies, in one pass."""
    found: Tensor = model(torch.cat([x + noise for noise in noises]))
    return found.view(len(noises), len(x), -1)


def mean_log_probability(logits: Tensor) -> Tensor:
    """log of the mean over copies (m, N, K) of softmax, (N, K)."""
    log_p = F.log_softmax(logits, dim=2)
    return torch.logsumexp(log_p, dim=0) - torch.log(log_p.new_tensor(float(len(logits))))
