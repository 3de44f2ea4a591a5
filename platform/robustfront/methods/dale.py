"""DALE: adversarial learning under a constraint on the clean loss."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import AttackField, Langevin
from robustfront.methods.base import (
    METHODS,
    LossTerms,
    Method,
    StepContext,
    divergences,
    kl_divergence,
    log_complement,
)


@METHODS.register
class DALE(Method):
    """Dual adversarial learning: perturbations are sampled, not maximised over; the clean loss is
    held below `rho`.

    objective, constraint by `form`:
        nominal: min mean CE(f(x_adv), y)          subject to mean CE(f(x), y) <= rho
        reverse: min mean CE(f(x), y)              subject to mean CE(f(x_adv), y) <= rho
        kl:      min mean KL(p(x) || p(x_adv))     subject to mean CE(f(x), y) <= rho

    loss = objective + nu * constrained. With `rho` the dual variable nu follows each batch:
    nu <- max(0, nu + dual_lr * (constrained - rho)), from `nu`; without, it stays `nu`.
    x_adv is drawn with density rising in log(1 - p_y) (for `kl` in the divergence).
    Batch norm: two train-mode forwards, x then x_adv; the search runs in eval mode.
    Source: arXiv:2110.15767, problem P-CON and algorithm 1. Official code: arobey1/advbench.
    Deviates: nu is the one of the batch before when a batch is learned from, as in the official
    code; the sampler is that of `langevin` (its own `Deviates` holds).
    """

    type: Literal["dale"] = "dale"
    form: Literal["nominal", "reverse", "kl"] = "nominal"
    nu: NonNegativeFloat = 1.0  # weight of the constrained loss, at first or for good
    rho: PositiveFloat | None = 0.1  # what the constrained loss may be; null: nu is fixed
    dual_lr: PositiveFloat = 1e-3
    inner: AttackField = Langevin(steps=10)

    @property
    def forward_equivalents(self) -> float:
        """The sampler (and p(x) once for `kl`), then two forwards and two full backwards."""
        return self.inner.forward_equivalents + 6 + (self.form == "kl")

    def memory(self) -> dict[str, Tensor]:
        """The dual variable."""
        return {} if self.rho is None else {"nu": torch.tensor(self.nu)}

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """The two losses by name, and with `rho` the dual variable `nu` and the `slack` left."""
        kl = self.form == "kl"
        surrogate = divergences(model, x) if kl else lambda logits: log_complement(logits, y)
        x_adv = self.inner(model, x, surrogate, ctx.threat, ctx.rng)
        logits, logits_adv = model(x), model(x_adv)
        terms = {"clean_ce": F.cross_entropy(logits, y)}
        if kl:
            divergence = kl_divergence(F.log_softmax(logits, dim=1), logits_adv)
            terms["robust_kl"] = divergence.mean()
        else:
            terms["adversarial_ce"] = F.cross_entropy(logits_adv, y)
        clean, robust = terms.values()
        objective, constrained = (clean, robust) if self.form == "reverse" else (robust, clean)
        if self.rho is None:
            return LossTerms(objective + self.nu * constrained, terms)
        nu = ctx.memory["nu"].clamp(min=0)
        slack = self.rho - constrained.detach()
        ctx.memory["nu"] = nu - self.dual_lr * slack
        return LossTerms(objective + nu * constrained, {**terms, "nu": nu, "slack": slack})
