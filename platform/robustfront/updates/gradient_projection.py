"""RAMP's gradient projection: what an epoch of natural training knows joins the robust epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.methods import LossTerms, Method, StepContext
from robustfront.updates.base import UPDATES, NewOptimizer, Step
from robustfront.updates.plain import Plain


@UPDATES.register
class GradientProjection(Plain):
    """After each epoch the weights also move along what natural training would have changed.

    A copy of the model is trained on the same batches with the plain cross-entropy. With g_a and
    g_n what the epoch has changed in a parameter tensor of the model and of the copy, and b =
    `share`: theta = theta_0 + (1 - b) g_a + b max(0, cos(g_a, g_n)) g_n.

    The copy starts anew from the model in each epoch, with an optimiser that has no momentum yet,
    at the same learning rates. Batch norm keeps the statistics of the model. The copy sees no noise
    of `smoothing.sigma`. The running average of `train.ema` follows steps: a projection enters it
    with those of the next epoch, that of the last epoch never.
    Source: arXiv:2402.06827, section 4.3. Official code: uiuc-focal-lab/RAMP.
    Deviates: the code mixes running means and variances of batch norm as well; both models are
    trained side by side, the code trains one after the other.
    """

    type: Literal["gradient_projection"] = "gradient_projection"  # type: ignore[assignment]
    share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of natural training; 0 is a plain epoch

    @property
    def own_equivalents(self) -> float:
        """A forward and a full backward of the copy."""
        return 3

    @contextmanager
    def epoch(self, model: nn.Module, new_optimizer: NewOptimizer) -> Iterator[Step]:
        """Steps of model and copy; at the end of the epoch the projection."""
        natural = copy.deepcopy(model)
        learner = new_optimizer(natural)
        start = [weight.detach().clone() for weight in model.parameters()]

        def step(
            net: nn.Module,
            optimizer: torch.optim.Optimizer,
            method: Method,
            batch: tuple[Tensor, Tensor],
            ctx: StepContext,
        ) -> LossTerms:
            loss = self.step(net, optimizer, method, batch, ctx)
            for mine, theirs in zip(learner.param_groups, optimizer.param_groups, strict=True):
                mine["lr"] = theirs["lr"]
            x, y = batch
            learner.zero_grad(set_to_none=True)
            F.cross_entropy(natural(x), y).backward()  # type: ignore[no-untyped-call]
            learner.step()
            return loss

        yield step
        with torch.no_grad():
            weights = zip(model.parameters(), natural.parameters(), start, strict=True)
            for robust, other, old in weights:
                robust.copy_(old + projected(robust - old, other - old, self.share))


def projected(robust: Tensor, natural: Tensor, share: float) -> Tensor:
    """(1 - share) g_a + share max(0, cos(g_a, g_n)) g_n of two changes of one tensor."""
    sizes = torch.linalg.vector_norm(robust) * torch.linalg.vector_norm(natural)
    cosine = (robust * natural).sum() / sizes.clamp(min=torch.finfo(robust.dtype).tiny)
    joined: Tensor = (1 - share) * robust + share * cosine.clamp(min=0) * natural
    return joined
