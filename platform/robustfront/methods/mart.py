"""MART."""

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
    kl_divergence,
    log_complement,
)


@METHODS.register
class MART(Method):
    """MART: misclassified examples count for more.

    loss = mean BCE(p(x_adv), y) + beta * mean KL(p(x) || p(x_adv)) (1 - p_y(x)),
    BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k), x_adv maximises the cross-entropy.

    All arguments get gradients, the weight 1 - p_y(x) included.
    Batch norm: two train-mode forwards, x then x_adv; the search runs in eval mode.
    Source: OpenReview:rklOg6EFwS (Wang et al., ICLR 2020), equations 10 and 11. Official code:
    YisenWang/MART.
    Deviates: logarithms are exact, where the code adds 1e-12 to 1e-4 to their arguments.
    """

    type: Literal["mart"] = "mart"
    beta: NonNegativeFloat = 5.0  # weight of the KL term
    inner: AttackField = PGD(steps=10, start="gaussian")

    @property
    def forward_equivalents(self) -> float:
        """The search, then two forwards and two full backwards."""
        return self.inner.forward_equivalents + 6

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """Two terms, `boosted_ce` and `weighted_kl` (before its weight)."""
        x_adv = self.inner(model, x, cross_entropies(y), ctx.threat, ctx.rng)
        logits, logits_adv = model(x), model(x_adv)
        runner_up = logits_adv.scatter(1, y[:, None], -float("inf")).argmax(dim=1)
        boosted = F.cross_entropy(logits_adv, y) - log_complement(logits_adv, runner_up).mean()
        log_p = F.log_softmax(logits, dim=1)
        unsure = 1 - log_p.exp().gather(1, y[:, None])[:, 0]
        weighted = (kl_divergence(log_p, logits_adv) * unsure).mean()
        terms = {"boosted_ce": boosted, "weighted_kl": weighted}
        return LossTerms(boosted + self.beta * weighted, terms)
