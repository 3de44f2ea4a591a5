"""Adversarial training against the worst of several norms."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField, Surrogate, eval_mode
from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, cross_entropies


@METHODS.register
class MaxAT(Method):
    """MAX: each example is trained on within the norm that hurts it most.

    loss = mean max over norms CE(f(x_adv_norm), y), over the norms of `train_threat.mix`.

    Batch norm: one train-mode forward, of the chosen inputs; searches and choice run in eval mode.
    Source: arXiv:1904.13000, section 4 (the "max" strategy).
    Deviates: the default search is PGD from a uniform start, where fra31/robust-finetuning, whose
    figures are compared with E-AT's, takes APGD from x (`inner: {type: apgd, start: zero}`).
    """

    type: Literal["max_at"] = "max_at"
    inner: AttackField = PGD(steps=10)

    @property
    def forward_equivalents(self) -> float:
        """One forward and one full backward."""
        return 3

    @property
    def forward_equivalents_per_norm(self) -> float:
        """A search, and a forward of what it found."""
        return self.inner.forward_equivalents + 1

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """One term, `adversarial_ce`."""
        surrogate = cross_entropies(y)
        found = [
            self.inner(model, x, surrogate, ball, ctx.rng.child(norm))
            for norm, ball in ctx.balls.items()
        ]
        adversarial = F.cross_entropy(model(worst_of(model, found, surrogate)), y)
        return LossTerms(adversarial, {"adversarial_ce": adversarial})


def worst_of(model: nn.Module, found: Sequence[Tensor], surrogate: Surrogate) -> Tensor:
    """Of each example the input with the largest surrogate value, (N, C, H, W)."""
    with eval_mode(model), torch.no_grad():
        values = torch.stack([surrogate(model(x_adv)) for x_adv in found])
    return torch.stack([*found])[values.argmax(0), torch.arange(len(found[0]))]
