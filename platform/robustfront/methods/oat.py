"""Once-for-all adversarial training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField
from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, cross_entropies
from robustfront.models.conditioned import given

Weight = Annotated[float, Field(ge=0, le=1)]


@METHODS.register
class OAT(Method):
    """Once-for-all training: one model that is told the weight of robustness, and gives a front.

    loss = mean (1 - w) CE(f(x; w), y) + w CE(f(x_adv; w), y), w drawn for each example from
    `weights`, x_adv maximises the cross-entropy at its w.

    The model of the job gets FiLM layers that see w, and two of each batch norm. After the last
    epoch its errors are measured at each of the `weights`: a curve beside the trial's own point,
    which is that of `weight`. `robustfront.models.given(model, w)` gives a loaded model another w.

    Batch norm: a train-mode forward of x through the clean ones, one of x_adv through the
    adversarial ones; the search runs in eval mode on the latter.
    Source: arXiv:2010.11828, equation 3 and section 3.3. Official code: VITA-Group/Once-for-All-
    Adversarial-Training.
    Deviates: none but those of the model's layers (`models.conditioned`).
    """

    type: Literal["oat"] = "oat"
    weights: Annotated[tuple[Weight, ...], Field(min_length=2)] = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
    weight: Weight = 0.4  # at which the trial is a point of the front
    inner: AttackField = PGD(steps=10)

    @model_validator(mode="after")
    def _different_weights(self) -> Self:
        if len(set(self.weights)) < len(self.weights):
            raise ValueError("weights: one is given twice")
        return self

    @property
    def forward_equivalents(self) -> float:
        """The search, then two forwards and two full backwards."""
        return self.inner.forward_equivalents + 6

    @property
    def condition(self) -> float:
        """The weight of the trial's own point."""
        return self.weight

    @property
    def curve(self) -> tuple[float, ...]:
        """All weights it trains with."""
        return self.weights

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """Two terms, `clean_ce` and `adversarial_ce`, weighted by each example's own weight."""
        rng = ctx.rng.child("weight")
        drawn = (rng.uniform(x[:, 0, 0, 0]) * len(self.weights)).long()
        weight = x.new_tensor(self.weights)[drawn.clamp(max=len(self.weights) - 1)]
        with given(model, weight, adversarial=True):
            x_adv = self.inner(model, x, cross_entropies(y), ctx.threat, ctx.rng)
            logits_adv = model(x_adv)
        with given(model, weight, adversarial=False):
            logits = model(x)
        clean = ((1 - weight) * F.cross_entropy(logits, y, reduction="none")).mean()
        adversarial = (weight * F.cross_entropy(logits_adv, y, reduction="none")).mean()
        return LossTerms(clean + adversarial, {"clean_ce": clean, "adversarial_ce": adversarial})
