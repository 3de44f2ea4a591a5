"""Free adversarial training: one backward serves the weights and the perturbation."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from robustfront.attacks import PGD, Attack
from robustfront.methods import LossTerms, Method, StepContext
from robustfront.updates.base import UPDATES, Update, detached

_DELTA = "free_delta"


@UPDATES.register
class Free(Update):
    """Each batch is trained on `replays` times, at inputs that its own gradients move uphill.

    With delta kept from the batch before (0 at first), `replays` times: one backward of the
    method's loss at x + delta gives both gradients; the optimiser steps on the weights, and
    delta = P(delta + rel_step_size * eps * direction(grad_x)). With the method `standard` this is
    Free-AT; other methods see x + delta in the place of their clean inputs. Divide the epochs by
    `replays` to train on as many batches as without.

    Source: arXiv:1904.12843, algorithm 1.
    Deviates: P projects onto the ball and the box of the present image, the original onto the ball.
    """

    type: Literal["free"] = "free"
    replays: PositiveInt = 8
    rel_step_size: PositiveFloat = 1.0

    # Each place in the batch has its own perturbation.
    alone: ClassVar[bool] = True
    searches: ClassVar[bool] = True

    @property
    def steps_per_batch(self) -> int:
        """One for each replay."""
        return self.replays

    def guard(self, method: Method) -> Attack:
        """PGD-10: the perturbation moves by one step at a time."""
        return PGD(steps=10)

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Method,
        batch: tuple[Tensor, Tensor],
        ctx: StepContext,
    ) -> LossTerms:
        """All replays of a batch; returns the loss of the last one."""
        x, y = batch
        delta = ctx.memory.get(_DELTA, torch.zeros_like(x))
        for replay in range(self.replays):
            x_adv = ctx.threat.project(x + delta, x).requires_grad_()
            optimizer.zero_grad(set_to_none=True)
            again = replace(ctx, rng=ctx.rng.child("replay", replay))
            loss = method.loss(model, x_adv, y, again)
            loss.total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                assert x_adv.grad is not None
                moved = ctx.threat.step(x_adv, x, x_adv.grad, self.rel_step_size, None)
                delta = ctx.threat.project(moved, x) - x
        ctx.memory[_DELTA] = delta
        return detached(loss)
