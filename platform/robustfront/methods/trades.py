"""TRADES."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import NonNegativeFloat, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField
from robustfront.methods.base import (
    METHODS,
    LossTerms,
    Method,
    StepContext,
    divergences,
    kl_divergence,
)


@METHODS.register
class Trades(Method):
    """TRADES: clean cross-entropy plus beta times the KL divergence to the worst prediction nearby.

    loss = mean CE(f(x), y) + beta * mean KL(p(x) || p(x_adv)), x_adv maximises that KL.

    `beta` is 1/lambda of the paper; `lambda` is accepted in its place. Both arguments of the outer
    KL get gradients; the search sees p(x) fixed.
    Batch norm: two train-mode forwards, x then x_adv; the search runs in eval mode.
    Source: arXiv:1901.08573, equation 5 and algorithm 1. Official code: yaodongyu/TRADES.
    Deviates: p(x) of the search is computed once, not in every inner step (the same numbers, 1.4
    times faster), and the outer pass reuses its logits, so batch norm sees x once, not twice; l2
    steps are of 2.5 eps / steps (the code: 2 eps / steps), and a zero gradient moves nothing (the
    code takes a random direction).
    """

    type: Literal["trades"] = "trades"
    beta: NonNegativeFloat = 6.0  # weight of the robust term; 0 is standard training
    inner: AttackField = PGD(steps=10, start="gaussian")

    @model_validator(mode="before")
    @classmethod
    def _lambda_is_one_over_beta(cls, raw: Any) -> Any:
        if not (isinstance(raw, Mapping) and "lambda" in raw):
            return raw
        if "beta" in raw:
            raise ValueError("beta is 1/lambda: give one of them, not both")
        rest = {key: value for key, value in raw.items() if key != "lambda"}
        try:
            return {**rest, "beta": 1 / float(raw["lambda"])}
        except (TypeError, ValueError, ZeroDivisionError):
            raise ValueError(f"lambda is a number above 0, got {raw['lambda']!r}") from None

    @property
    def forward_equivalents(self) -> float:
        """p(x) once, the search, then two forwards and two full backwards."""
        return self.inner.forward_equivalents + 7

    def derived(self) -> dict[str, float]:
        """`lambda`, the paper's trade-off parameter (none for beta = 0)."""
        return {"lambda": 1 / self.beta} if self.beta else {}

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """Two terms, `clean_ce` and `robust_kl` (before its weight)."""
        x_adv = self.inner(model, x, divergences(model, x), ctx.threat, ctx.rng)
        logits, logits_adv = model(x), model(x_adv)
        clean = F.cross_entropy(logits, y)
        robust = kl_divergence(F.log_softmax(logits, dim=1), logits_adv).mean()
        return LossTerms(clean + self.beta * robust, {"clean_ce": clean, "robust_kl": robust})
