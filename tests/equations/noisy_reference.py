"""Noisy copies of the examples, as a step draws them, and their logits in NumPy."""

from __future__ import annotations

import numpy as np
import torch
from numpy_reference import Array, f64, log_softmax
from numpy_reference import logits as plain_logits
from torch import nn

from robustfront.methods import StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

SIGMA = 0.4
BALL = Threat(norm="l2", eps="1/2")
POINT = Threat(norm="l2", eps=0)


def context(sigma: float = SIGMA, threat: Threat = BALL) -> StepContext:
    return StepContext(threat, Rng((0, "noisy")), 0.0, sigma=sigma)


def noises(x: torch.Tensor, copies: int) -> list[torch.Tensor]:
    """What a step draws, from the same keys."""
    return [SIGMA * Rng((0, "noisy", "noise", i)).normal(x) for i in range(copies)]


def copies_of(net: nn.Module, x: torch.Tensor, copies: int) -> Array:
    """Logits (m, N, K)."""
    return np.stack([plain_logits(net, f64(x + noise)) for noise in noises(x, copies)])


def softmax(z: Array) -> Array:
    return np.exp(log_softmax(z))
