"""Adversarial logit pairing."""

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
class ALP(Method):
    """Adversarial logit pairing: an input and its adversarial example shall get the same logits.

    loss = mean CE(f(x_adv), y) + weight * mean ||f(x_adv) - f(x)||_2, x_adv maximises the CE.

    A textbook case of gradient masking: measure it with strong attacks only. Constant logits have
    no pairing term at all: on MNIST with Adam, weights of 1 and more end there, 0.3 does not.
    Batch norm: two train-mode forwards, x then x_adv; the search runs in eval mode.
    Source: arXiv:1803.06373, section 4.1; the loss is that of DALE's baseline (arobey1/advbench).
    Deviates: the paper trains on clean examples as well and squares the distance.
    """

    type: Literal["alp"] = "alp"
    weight: NonNegativeFloat = 1.0  # of the pairing term
    inner: AttackField = PGD(steps=10, start="gaussian")

    @property
    def forward_equivalents(self) -> float:
        """The search, then two forwards and two full backwards."""
        return self.inner.forward_equivalents + 6

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """Two terms, `adversarial_ce` and `pairing` (before its weight)."""
        x_adv = self.inner(model, x, cross_entropies(y), ctx.threat, ctx.rng)
        logits, logits_adv = model(x), model(x_adv)
        adversarial = F.cross_entropy(logits_adv, y)
        pairing = distances(logits_adv, logits).mean()
        terms = {"adversarial_ce": adversarial, "pairing": pairing}
        return LossTerms(adversarial + self.weight * pairing, terms)
