"""Clean logit pairing as it is used beside DALE."""

from typing import Literal

from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField
from robustfront.methods.base import (
    METHODS,
    LossTerms,
    Method,
    StepContext,
    cross_entropies,
    distances,
)


@METHODS.register
class CLP(Method):
    """Logit pairing beside the clean loss: an input shall get the logits of its adversarial one.

    loss = mean CE(f(x), y) + weight * mean ||f(x_adv) - f(x)||_2, x_adv maximises the CE.

    This is the baseline of DALE's experiments; the method of the paper that coined the name pairs
    different noisy images and is `clp_noise`.
    Batch norm: two train-mode forwards, x then x_adv; the search runs in eval mode.
    Source: arXiv:2110.15767, section 5 (arobey1/advbench).
    """

    type: Literal["clp"] = "clp"
    weight: NonNegativeFloat = 1.0  # of the pairing term
    inner: AttackField = PGD(steps=10, start="gaussian")

    @property
    def forward_equivalents(self) -> float:
        """The search, then two forwards and two full backwards."""
        return self.inner.forward_equivalents + 6

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """Two terms, `clean_ce` and `pairing` (before its weight)."""
        x_adv = self.inner(model, x, cross_entropies(y), ctx.threat, ctx.rng)
        logits, logits_adv = model(x), model(x_adv)
        clean = F.cross_entropy(logits, y)
        pairing = distances(logits_adv, logits).mean()
        terms = {"clean_ce": clean, "pairing": pairing}
        return LossTerms(clean + self.weight * pairing, terms)
