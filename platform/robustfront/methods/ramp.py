"""RAMP."""

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import APGD, AttackField
from robustfront.methods.base import (
    METHODS,
    LossTerms,
    Method,
    StepContext,
    cross_entropies,
    kl_divergence,
)
from robustfront.methods.max_at import worst_of
from robustfront.threats import Norm


@METHODS.register
class RAMP(Method):
    """RAMP: the worst of two key norms, whose predictions are paired, and gradient projection.

    loss = mean CE(f(x_max), y) + pairing_weight * mean KL(p(x_q) || p(x_r)), the second mean over
    the examples that are right at x_q; x_q and x_r maximise the CE within the two `key_norms`,
    x_max is the one with the larger CE. Without pairing it is MAX over the two norms. Unless the
    job names another update it is `gradient_projection`.

    Batch norm: train-mode forwards of x_max, x_q and x_r, of x_max alone where nothing is paired;
    searches and choice run in eval mode.
    Source: arXiv:2402.06827, section 4. Official code: uiuc-focal-lab/RAMP.
    Deviates: the code adds 1e-12 to the logits of the pairing term.
    """

    default_update: ClassVar[str] = "gradient_projection"

    type: Literal["ramp"] = "ramp"
    pairing_weight: NonNegativeFloat = 5.0  # lambda of the paper: 5 from scratch, 1.5 fine-tuning
    key_norms: tuple[Norm, Norm] = ("linf", "l1")  # q and r: those hardest to have at once
    inner: AttackField = APGD(steps=10, start="zero")

    @field_validator("key_norms")
    @classmethod
    def _two_norms(cls, key_norms: tuple[Norm, Norm]) -> tuple[Norm, Norm]:
        if key_norms[0] == key_norms[1]:
            raise ValueError(f"two different norms, got {key_norms[0]} twice")
        return key_norms

    @property
    def required_norms(self) -> tuple[Norm, ...]:
        """The two."""
        return self.key_norms

    @property
    def forward_equivalents(self) -> float:
        """Two searches, a forward of each to choose, one forward and one full backward; with
        pairing two of these more."""
        return 2 * (self.inner.forward_equivalents + 1) + (9 if self.pairing_weight else 3)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """Two terms, `adversarial_ce` and `pairing_kl` (before its weight)."""
        surrogate = cross_entropies(y)
        found = [
            self.inner(model, x, surrogate, ctx.balls[norm], ctx.rng.child(norm))
            for norm in self.key_norms
        ]
        adversarial = F.cross_entropy(model(worst_of(model, found, surrogate)), y)
        if not self.pairing_weight:
            return LossTerms(adversarial, {"adversarial_ce": adversarial})
        first, second = (model(x_adv) for x_adv in found)
        right = (first.argmax(1) == y).to(x.dtype)
        divergences = kl_divergence(F.log_softmax(first, dim=1), second)
        pairing = (right * divergences).sum() / right.sum().clamp(min=1)
        total = adversarial + self.pairing_weight * pairing
        return LossTerms(total, {"adversarial_ce": adversarial, "pairing_kl": pairing})
