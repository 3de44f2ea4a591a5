"""Multi steepest descent."""

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import Surrogate, eval_mode
from robustfront.attacks.base import input_gradient, require_unit_range
from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, cross_entropies


@METHODS.register
class MSD(Method):
    """Multi steepest descent: one search that takes, in every step, the norm that helps it most.

    loss = mean CE(f(x_adv), y); from x on, each step tries the projected step of every norm of
    `train_threat.mix` and keeps, for each example, the one with the largest cross-entropy; x_adv is
    the best point of the whole search. A step is `rel_step_size` times the norm's radius, 2.5/steps
    where it is not given.

    Batch norm: one train-mode forward, of x_adv; the search runs in eval mode.
    Source: arXiv:1909.04068, algorithm 1. Official code: locuslab/robust_union.
    Deviates: the search runs in eval mode (the code: train mode); l1 steps move towards the best
    vertex of ball and box, where the code moves along the 5 to 20 steepest pixels.
    """

    type: Literal["msd"] = "msd"
    steps: PositiveInt = 10
    rel_step_size: PositiveFloat | None = None

    @property
    def forward_equivalents(self) -> float:
        """A gradient to the input in each step, then one forward and one full backward."""
        return 2 * self.steps + 3

    @property
    def forward_equivalents_per_norm(self) -> float:
        """A forward of each step's candidate."""
        return self.steps

    @property
    def searches(self) -> bool:
        """It does, with steps of its own."""
        return True

    @property
    def single_step(self) -> bool:
        """With one."""
        return self.steps == 1

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """One term, `adversarial_ce`."""
        require_unit_range(x)
        with eval_mode(model), torch.enable_grad():
            x_adv = self._search(model, x, cross_entropies(y), ctx)
        adversarial = F.cross_entropy(model(x_adv), y)
        return LossTerms(adversarial, {"adversarial_ce": adversarial})

    def _search(
        self, model: nn.Module, x: Tensor, surrogate: Surrogate, ctx: StepContext
    ) -> Tensor:
        relative = self.rel_step_size or 2.5 / self.steps
        x_adv = best = x
        highest = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            grad = input_gradient(model, x_adv, surrogate)
            with torch.no_grad():
                candidates = torch.stack(
                    [
                        ball.project(ball.step(x_adv, x, grad, relative, None), x)
                        for ball in ctx.balls.values()
                    ]
                )
                values = torch.stack([surrogate(model(some)) for some in candidates])
                value, which = values.max(0)
                x_adv = candidates[which, rows]
                best = torch.where((value > highest).reshape(-1, 1, 1, 1), x_adv, best)
                highest = torch.maximum(value, highest)
        return best
