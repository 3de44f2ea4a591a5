"""Interval bounds in NumPy, from their definition: ends of intervals, no centre or radius."""

from __future__ import annotations

import numpy as np
import torch
from numpy_reference import Array, f64, source
from torch import nn

from robustfront.methods import LossTerms, Method, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

LINF = Threat(norm="linf", eps="1/10")


def two_layers() -> nn.Sequential:
    """Twelve pixels, eight hidden units, four classes."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        for layer in (net[1], net[3]):
            layer.weight.normal_(0, 0.6, generator=source("layer", layer.in_features))
            layer.bias.normal_(0, 0.3, generator=source("bias", layer.in_features))
    return net


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, an input within LINF of it, labels."""
    x = torch.rand(6, 1, 3, 4, generator=source("images"))
    step = torch.rand(6, 1, 3, 4, generator=source("step")) - 0.5
    return x, (x + 0.18 * step).clamp(0, 1), torch.tensor([0, 1, 2, 3, 0, 1])


def context(strength: float = 1.0, threat: Threat = LINF) -> StepContext:
    return StepContext(threat.scaled(strength), Rng((0, "bounds")), 0.0, strength=strength)


def of_layer(weight: Array, bias: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The ends of W z + b over low <= z <= high, each from the end its weight asks for."""
    least = np.where(weight[None] > 0, low[:, None], high[:, None])
    most = np.where(weight[None] > 0, high[:, None], low[:, None])
    return (weight * least).sum(2) + bias, (weight * most).sum(2) + bias


def margins(net: nn.Sequential, low: Array, high: Array, y: Array) -> Array:
    """Least z_y - z_k for k != y, (N, K - 1), the last layer joined with the difference."""
    low, high = of_layer(f64(net[1].weight), f64(net[1].bias), low, high)
    low, high = np.maximum(low, 0), np.maximum(high, 0)
    weight, bias = f64(net[3].weight), f64(net[3].bias)
    found = np.empty((len(y), 3))
    for n, label in enumerate(y):
        others = [k for k in range(4) if k != label]
        rows, shifts = weight[label] - weight[others], bias[label] - bias[others]
        found[n] = of_layer(rows, shifts, low[n : n + 1], high[n : n + 1])[0][0]
    return found


def box(x: torch.Tensor, eps: float) -> tuple[Array, Array]:
    """The pixels within eps, cut by [0, 1]."""
    flat = f64(x)
    return np.maximum(flat - eps, 0), np.minimum(flat + eps, 1)


def at(net: nn.Sequential, x: torch.Tensor, y: Array) -> Array:
    """Plain margins (N, K - 1)."""
    return margins(net, f64(x), f64(x), y)


def verified(m: Array) -> Array:
    """log(1 + sum exp(-m)), (N,)."""
    return np.log1p(np.exp(-m).sum(1))


def loss_of(method: Method, net: nn.Sequential, ctx: StepContext) -> LossTerms:
    x, _, y = images()
    return method.loss(net.train(), x, y, ctx)
