"""The contract of an attack: subclasses search, the final outer method guards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.randomness import Rng
from robustfront.registry import Component, Registry
from robustfront.threats import PerturbationSet

Surrogate = Callable[[Tensor], Tensor]
"""Logits (N, K) to the values (N,) that an attack makes large."""


class Attack(Component):
    """Looks for the input of a perturbation set with the largest surrogate value."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How metrics call it, for instance `pgd20`."""

    @property
    @abstractmethod
    def forward_equivalents(self) -> float:
        """Cost for each example in forward passes; a gradient to the input counts as one more."""

    @abstractmethod
    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """Adversarial inputs (N, C, H, W); the model is in eval mode, gradients are enabled."""

    @final
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """Adversarial inputs within the set, detached; the model is left as it was.

        Raises:
            ValueError: an input outside [0, 1] or not finite.
        """
        require_unit_range(x)
        with eval_mode(model), torch.enable_grad():
            x_adv = self.search(model, x, surrogate, threat, rng)
        return threat.project(x_adv.detach(), x)


ATTACKS: Registry[Attack] = Registry("attack")


def require_unit_range(x: Tensor) -> None:
    """Raise ValueError unless all values of x lie in [0, 1]."""
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError("attacks take inputs in [0, 1]; normalisation belongs into the model")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module gets back exactly the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def input_gradient(model: nn.Module, x: Tensor, surrogate: Surrogate) -> Tensor:
    """Gradient of the summed surrogate to the input (N, C, H, W); weights get no gradient."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(surrogate(model(x)).sum(), x)[0]


def misclassification(y: Tensor) -> Surrogate:
    """Cross-entropy to the labels y (N,), larger by 1000 where the prediction is wrong.

    The step has no gradient; it makes the choice among restarts prefer an input that is
    misclassified to one that is only less certain, so more restarts never find fewer errors.
    """

    def value(logits: Tensor) -> Tensor:
        wrong = (logits.argmax(1) != y).to(logits.dtype)
        return F.cross_entropy(logits, y, reduction="none") + 1000 * wrong

    return value
