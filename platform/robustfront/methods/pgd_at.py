"""PGD adversarial training."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField
from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, cross_entropies


@METHODS.register
class PGDAT(Method):
    """Adversarial training: the loss is mean CE(f(x_adv), y), x_adv maximises it in the threat set.

    Batch norm: one train-mode forward, of x_adv; the search runs in eval mode.
    Source: arXiv:1706.06083, equation 2.1.
    Deviates: the search runs in eval mode, as arXiv:2010.00467 recommends; the official code ran it
    on the training graph.
    """

    type: Literal["pgd_at"] = "pgd_at"
    inner: AttackField = PGD(steps=10)

    @property
    def forward_equivalents(self) -> float:
        """The search, then one forward and one full backward."""
        return self.inner.forward_equivalents + 3

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """One term, `adversarial_ce`."""
        x_adv = self.inner(model, x, cross_entropies(y), ctx.threat, ctx.rng)
        adversarial = F.cross_entropy(model(x_adv), y)
        return LossTerms(adversarial, {"adversarial_ce": adversarial})
