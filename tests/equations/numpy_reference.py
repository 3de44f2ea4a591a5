"""What the equation tests compare with: NumPy in float64, and probes that record what is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from robustfront.attacks import Attack, Surrogate
from robustfront.methods import Method, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Norm, PerturbationSet, Threat

Array = np.ndarray

BALLS: dict[Norm, Threat] = {
    "linf": Threat(norm="linf", eps="1/10"),
    "l2": Threat(norm="l2", eps="1/2"),
    "l1": Threat(norm="l1", eps=1),
}


def log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(z: Array, y: Array) -> Array:
    """Of each example, (N,)."""
    return -log_softmax(z)[np.arange(len(y)), y]


def kl(z_p: Array, z_q: Array) -> Array:
    """KL(softmax(z_p) || softmax(z_q)) of each example, (N,)."""
    log_p, log_q = log_softmax(z_p), log_softmax(z_q)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def gradient(loss: Callable[[Array], float], at: Array) -> Array:
    """Central differences."""
    result, h = np.zeros_like(at), 1e-6
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = h
        result[index] = (loss(at + step) - loss(at - step)) / (2 * h)
    return result


def batch_norm(x: Array) -> Array:
    """Train mode, no affine map: statistics of the batch (N, F)."""
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


def running(start: tuple[Array, Array], *passes: Array) -> tuple[Array, Array]:
    """Running mean and variance after train-mode passes of (N, F), momentum 0.1."""
    mean, var = start
    for x in passes:
        mean, var = 0.9 * mean + 0.1 * x.mean(axis=0), 0.9 * var + 0.1 * x.var(axis=0, ddof=1)
    return mean, var


def f64(tensor: Tensor) -> Array:
    """As float64, images flattened to (N, D)."""
    array = tensor.detach().double().numpy()
    return array.reshape(len(array), -1) if array.ndim == 4 else array


def separated(value: float | Array, *wrong: float | Array, least: float = 0.05) -> bool:
    """Every wrong variant is 5 % (or `least`) or more away from the value."""
    value = np.asarray(value)
    gaps = [np.linalg.norm(np.asarray(w) - value) for w in wrong]
    return min(gaps) >= least * np.linalg.norm(value)


class Probe(Attack):
    """An attack that finds a given input and remembers how it was asked."""

    type: Literal["probe"] = "probe"
    found: Any = None
    logits: Any = None

    _modes: list[bool] = PrivateAttr(default_factory=list)
    _values: list[Tensor] = PrivateAttr(default_factory=list)

    @property
    def name(self) -> str:
        return self.type

    @property
    def forward_equivalents(self) -> float:
        return 0

    def search(
        self, model: nn.Module, x: Tensor, surrogate: Surrogate, threat: PerturbationSet, rng: Rng
    ) -> Tensor:
        self._modes.extend(module.training for module in model.modules())
        self._values.append(surrogate(self.logits))
        return self.found

    @property
    def modes(self) -> list[bool]:
        """`training` of every module during the search."""
        return self._modes

    @property
    def values(self) -> Array:
        """The surrogate at `logits`."""
        (value,) = self._values
        return f64(value)


class Watched(nn.Module):
    """A network that remembers the inputs of its train-mode passes and counts the others."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.trained_on: list[Tensor] = []
        self.eval_passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.trained_on.append(x.detach().clone())
        else:
            self.eval_passes += 1
        return self.net(x)


def check_search_climbs_cross_entropy(probed: Callable[..., Method], ctx: StepContext) -> None:
    """What the search of a method makes large, and in which mode.

    Args:
        probed: the method with a `Probe` that finds x_adv and looks at some logits.
    """
    net, (x, x_adv, y) = linear_net(), examples()
    at = torch.randn(len(y), 4)
    method: Any = probed(x_adv, at)

    method.loss(net.train(), x, y, ctx)

    np.testing.assert_allclose(method.inner.values, cross_entropy(f64(at), y.numpy()), rtol=1e-5)
    assert method.inner.modes and not any(method.inner.modes)


def check_batch_norm_sees_clean_then_adversarial(
    probed: Callable[..., Method], ctx: StepContext
) -> None:
    """Two train-mode passes of a method, x then x_adv, and nothing else."""
    net, (x, x_adv, y) = batch_norm_net(), examples()
    x_adv = 0.2 * x_adv  # statistics of its own
    start = f64(net[1].running_mean), f64(net[1].running_var)
    mean, var = running(start, f64(x), f64(x_adv))
    other = running(start, f64(x_adv), f64(x))
    assert np.abs(other[0] - mean).max() > 1e-3 and np.abs(other[1] - var).max() > 1e-3

    watched = Watched(net).train()
    probed(x_adv).loss(watched, x, y, ctx)

    assert torch.equal(watched.trained_on[0], x) and torch.equal(watched.trained_on[1], x_adv)
    np.testing.assert_allclose(f64(net[1].running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(f64(net[1].running_var), var, rtol=1e-5)


def source(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, repr(key))))


def linear_net(scale: float = 8.0) -> nn.Sequential:
    """Twelve pixels, four classes; confident, and blind to an image's brightness."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        weight = torch.randn(4, 12, generator=source("weight")) * scale / 12**0.5
        net[1].weight.copy_(weight - weight.mean(dim=1, keepdim=True))
        net[1].bias.normal_(generator=source("bias"))
    return net


def batch_norm_net() -> nn.Sequential:
    """The same behind a batch norm whose running statistics are far from those of a batch."""
    linear = linear_net(3.0)
    norm = nn.BatchNorm1d(12, affine=False)
    norm.running_mean.uniform_(0, 1, generator=source("mean"))
    norm.running_var.uniform_(0.5, 2, generator=source("var"))
    return nn.Sequential(linear[0], norm, linear[1])


def dropout_net() -> nn.Sequential:
    linear = linear_net()
    return nn.Sequential(linear[0], nn.Dropout(0.5), linear[1])


def logits(net: nn.Sequential, x: Array) -> Array:
    """Of the last layer, from what goes into it (N, D)."""
    return x @ f64(net[-1].weight).T + f64(net[-1].bias)


def examples(n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """x, x_adv and y: x_adv far from x, so that the plausible wrong losses differ."""
    x = torch.rand(n, 1, 3, 4, generator=source("x", 3))
    x_adv = (x + 0.5 * torch.randn(x.shape, generator=source("d", 3))).clamp(0, 1)
    return x, x_adv, torch.arange(n) % 4
