"""One gradient step on the method's loss."""

from typing import Literal

import torch
from torch import Tensor, nn

from robustfront.methods import LossTerms, Method, StepContext
from robustfront.updates.base import UPDATES, Update, detached


@UPDATES.register
class Plain(Update):
    """Backward, then one step of the optimiser."""

    type: Literal["plain"] = "plain"

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Method,
        batch: tuple[Tensor, Tensor],
        ctx: StepContext,
    ) -> LossTerms:
        """One step on the gradient of the loss."""
        optimizer.zero_grad(set_to_none=True)
        loss = method.loss(model, *batch, ctx)
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return detached(loss)
