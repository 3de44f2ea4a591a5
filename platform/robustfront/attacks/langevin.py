"""Langevin sampling of perturbations."""

from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from robustfront.attacks.base import ATTACKS, Attack, Surrogate, input_gradient
from robustfront.attacks.pgd import Start, first_iterate, require_one_step_size
from robustfront.randomness import Rng
from robustfront.threats import Eps, PerturbationSet


@ATTACKS.register
class Langevin(Attack):
    """Projected Langevin sampling: perturbations of large surrogate are likely, not certain.

    laplace:  x_{k+1} = P(x_k + step * direction(grad surrogate + sqrt(2 step T) xi))
    gaussian: x_{k+1} = P(x_k + step * direction(grad surrogate) + sqrt(2 step T) xi)

    with xi ~ Laplace(0, 1) or N(0, 1) of each pixel, step in the threat's units and T the
    `temperature`: surrogate units per unit of log-density. T = 0 is PGD, step by step. Gradients
    are those of each example's own surrogate, so T does not depend on the batch size.
    `step_size`, `rel_step_size` and `start` are those of PGD.

    Source: DALE, arXiv:2110.15767, algorithm 1 (the sampler: lines 3 to 6).
    Deviates: l2 and l1 steps have the length of `step`, as those of PGD have, where the paper's
    are as long as the gradient; for linf and gaussian noise the sign is taken before the noise is
    added, as the official code does.
    """

    type: Literal["langevin"] = "langevin"
    steps: PositiveInt = 10
    step_size: Eps | None = None
    rel_step_size: PositiveFloat | None = None
    start: Start = "gaussian"
    temperature: NonNegativeFloat = 1e-3
    noise: Literal["laplace", "gaussian"] = "laplace"

    @model_validator(mode="after")
    def _one_step_size(self) -> Self:
        require_one_step_size(self.step_size, self.rel_step_size)
        return self

    @property
    def name(self) -> str:
        """`langevin10`."""
        return f"langevin{self.steps}"

    @property
    def forward_equivalents(self) -> float:
        """A forward and a gradient for each step."""
        return 2 * self.steps

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
        """The last iterate."""
        absolute = None if self.step_size is None else float(self.step_size)
        relative = self.rel_step_size or 2.5 / self.steps
        step = threat.radius(x) * relative if absolute is None else torch.full_like(x[:1], absolute)
        scale = (2 * self.temperature * step).sqrt()
        # as PGD with one restart draws its start
        x_adv = first_iterate(self.start, x, threat, rng.child("restart", 0))
        for k in range(self.steps):
            grad = input_gradient(model, x_adv, surrogate)
            noise = self._noise(x, rng.child("noise", k)) * scale
            inside = self.noise == "laplace"
            with torch.no_grad():
                x_adv = threat.step(x_adv, x, grad + noise * inside, relative, absolute)
                x_adv = threat.project(x_adv + noise * (not inside), x)
        return x_adv

    def _noise(self, x: Tensor, rng: Rng) -> Tensor:
        if self.noise == "gaussian":
            return rng.normal(x)
        # by the inverse of its distribution function: one draw a pixel, and no infinity
        centred = rng.uniform(x) - 0.5
        return -torch.sign(centred) * torch.log1p((-2 * centred.abs()).clamp(min=-1 + 1e-7))
