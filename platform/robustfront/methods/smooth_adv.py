"""Adversarial training of smoothed classifiers."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField
from robustfront.methods.base import METHODS, LossTerms, StepContext, cross_entropies
from robustfront.methods.noisy import Averaged, Noisy, logits_of


@METHODS.register
class SmoothAdv(Noisy):
    """SmoothAdv: adversarial inputs of the soft smoothed classifier, trained on with their noise.

    x' maximises -log mean_i p_y(x' + n_i) within the threat, the n_i being the same for all steps;
    loss = mean_i CE(f(x' + n_i), y).

    Batch norm: one train-mode forward, of all noisy copies of x'; the search runs in eval mode.
    Source: arXiv:1906.04584, section 3, SmoothAdv with PGD. Official code:
    Hadisalman/smoothing-adversarial.
    Deviates: four steps of 2.5 / steps times eps by default, where the code takes ten of 2 / steps;
    the radius grows by `train.eps_ramp`, whose default is none; the code's grows over ten epochs.
    """

    type: Literal["smooth_adv"] = "smooth_adv"
    inner: AttackField = PGD(steps=4, start="zero")

    @property
    def forward_equivalents(self) -> float:
        """For each copy the search, one forward and one full backward."""
        return self.copies * (self.inner.forward_equivalents + 3)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """One term, `adversarial_ce`."""
        noises = self.noises(x, ctx)
        x_adv = self.inner(Averaged(model, noises), x, cross_entropies(y), ctx.threat, ctx.rng)
        logits = logits_of(model, x_adv, noises)
        adversarial = F.cross_entropy(logits.flatten(0, 1), y.repeat(self.copies))
        return LossTerms(adversarial, {"adversarial_ce": adversarial})
