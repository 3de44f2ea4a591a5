"""Adversarial training on several norms at once."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField
from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, cross_entropies


@METHODS.register
class AvgAT(Method):
    """AVG: each example is trained on within every norm.

    loss = sum over norms share * mean CE(f(x_adv_norm), y), shares and norms of `train_threat.mix`.

    Equal shares give the strategy of the paper.
    Batch norm: one train-mode forward for each norm, in the order of the mix; searches run in eval
    mode.
    Source: arXiv:1904.13000, section 4 (the "avg" strategy).
    """

    type: Literal["avg_at"] = "avg_at"
    inner: AttackField = PGD(steps=10)

    @property
    def forward_equivalents(self) -> float:
        """Nothing beside the norms."""
        return 0

    @property
    def forward_equivalents_per_norm(self) -> float:
        """A search, one forward and one full backward."""
        return self.inner.forward_equivalents + 3

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """For each norm a term, `adversarial_ce_linf` and so on (before its share)."""
        surrogate = cross_entropies(y)
        terms = {}
        for norm, ball in ctx.balls.items():
            x_adv = self.inner(model, x, surrogate, ball, ctx.rng.child(norm))
            terms[f"adversarial_ce_{norm}"] = F.cross_entropy(model(x_adv), y)
        weighted = [
            share * term for share, term in zip(ctx.shares.values(), terms.values(), strict=True)
        ]
        return LossTerms(torch.stack(weighted).sum(), terms)
