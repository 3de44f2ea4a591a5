"""The contract of an attack: subclasses search, the final outer method guards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from robustfront.attacks.goals import Goal
from robustfront.randomness import Rng
from robustfront.registry import Component, Registry
from robustfront.threats import Norm, PerturbationSet

Surrogate = Callable[[Tensor], Tensor]
"""Logits (N, K) to the values (N,) that an attack makes large."""


class Attack(Component):
    """Looks for the input of a perturbation set with the largest surrogate value."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "segment")

    @property
    @abstractmethod
    def name(self) -> str:
        """How metrics call it, for instance `pgd20`."""

    @property
    @abstractmethod
    def forward_equivalents(self) -> float:
        """Cost for each example in forward passes; a gradient to the input counts as one more."""

    @property
    def needs_labels(self) -> bool:
        """Whether it is for evaluations only: its surrogate is a `Goal`, which knows the labels."""
        return False

    @property
    def single_step(self) -> bool:
        """Whether it is one gradient step, which a model may learn to fool and nothing else."""
        return False

    def stages(self, threat: PerturbationSet) -> Sequence[Attack]:
        """Attacks to be made one after the other, each on what those before have not fooled."""
        return [self]

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
    return value_and_gradient(model, x, surrogate)[1]


def value_and_gradient(model: nn.Module, x: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """The surrogate (N,) and the gradient of its sum to the input (N, C, H, W)."""
    x = x.detach().requires_grad_()
    value = surrogate(model(x))
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def goal_of(attack: Attack, surrogate: Surrogate) -> Goal:
    """The surrogate of an attack that needs the labels.

    Raises:
        TypeError: it does not know them.
    """
    if not isinstance(surrogate, Goal):
        raise TypeError(f"{attack.name} is for evaluations: its surrogate has to know the labels")
    return surrogate


def part_of(surrogate: Surrogate, rows: Tensor | slice) -> Surrogate:
    """The surrogate of some examples; one that is no goal is only ever asked for all."""
    return surrogate.rows(rows) if isinstance(surrogate, Goal) else surrogate


def best_of(
    runs: int,
    run: Callable[[int, Tensor | slice, Rng], Tensor],
    model: nn.Module,
    x: Tensor,
    surrogate: Surrogate,
    rng: Rng,
) -> Tensor:
    """For each example the input with the largest surrogate that several runs find.

    Args:
        run: the adversarial inputs of one run, by its number, for some rows of the batch. With a
            goal, the rows that earlier runs have fooled take no part.
    """
    best = run(0, slice(None), rng.child("restart", 0))
    if runs == 1:
        return best
    with torch.no_grad():
        highest = surrogate(model(best))
    for number in range(1, runs):
        rows = torch.arange(len(x), device=x.device)
        if isinstance(surrogate, Goal):
            rows = rows[~surrogate.fooled(highest)]
        if not len(rows):
            break
        found = run(number, rows, rng.child("restart", number).rows(rows))
        with torch.no_grad():
            value = part_of(surrogate, rows)(model(found))
            better = value > highest[rows]
            best = best.index_copy(0, rows[better], found[better])
            highest = highest.index_copy(0, rows[better], value[better])
    return best
