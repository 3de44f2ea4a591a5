"""Projected gradient ascent."""

from typing import Literal, Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from robustfront.attacks.base import (
    ATTACKS,
    Attack,
    Surrogate,
    best_of,
    input_gradient,
    part_of,
)
from robustfront.randomness import Rng
from robustfront.threats import Eps, PerturbationSet

Start = Literal["uniform", "gaussian", "zero"]


@ATTACKS.register
class PGD(Attack):
    """Projected gradient ascent; returns the last iterate, the best one of several restarts.

    x_{k+1} = P(x_k + step * direction(grad surrogate(f(x_k)))), direction by the norm.

    The step is `step_size` in the threat's units, or `rel_step_size` times eps; where neither is
    given it is 2.5 / steps times eps, so that every point of the ball can be reached.
    `start`: uniform in the set; `gaussian`, x + 0.001 N(0, 1) as TRADES does; or `zero`, x itself.

    Source: arXiv:1706.06083, section 2.1; the default step is from its official code's appendix.
    """

    type: Literal["pgd"] = "pgd"
    steps: PositiveInt = 20
    step_size: Eps | None = None
    rel_step_size: PositiveFloat | None = None
    start: Start = "uniform"
    restarts: PositiveInt = 1

    @model_validator(mode="after")
    def _one_step_size(self) -> Self:
        require_one_step_size(self.step_size, self.rel_step_size)
        return self

    @property
    def name(self) -> str:
        """`pgd20`, or `pgd20x5` with five restarts."""
        return f"pgd{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def forward_equivalents(self) -> float:
        """A forward and a gradient for each step; one forward more to compare restarts."""
        return self.restarts * (2 * self.steps + (self.restarts > 1))

    @property
    def single_step(self) -> bool:
        """With one."""
        return self.steps == 1

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """The last iterate of the run with the largest surrogate value, for each example."""

        def run(_: int, rows: Tensor | slice, rng: Rng) -> Tensor:
            return self._run(model, x[rows], part_of(surrogate, rows), threat, rng)

        return best_of(self.restarts, run, model, x, surrogate, rng)

    def _run(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        x_adv = first_iterate(self.start, x, threat, rng)
        absolute = None if self.step_size is None else float(self.step_size)
        relative = self.rel_step_size or 2.5 / self.steps
        for _ in range(self.steps):
            grad = input_gradient(model, x_adv, surrogate)
            with torch.no_grad():
                x_adv = threat.project(threat.step(x_adv, x, grad, relative, absolute), x)
        return x_adv


def require_one_step_size(step_size: object, rel_step_size: object) -> None:
    """Raise ValueError where a step has two sizes."""
    if step_size is not None and rel_step_size is not None:
        raise ValueError("give step_size or rel_step_size, not both")


def first_iterate(start: Start, x: Tensor, threat: PerturbationSet, rng: Rng) -> Tensor:
    """Where a search begins, (N, C, H, W)."""
    if start == "uniform":
        return threat.sample(x, rng)
    if start == "gaussian":
        return x + 0.001 * rng.normal(x)
    return x
