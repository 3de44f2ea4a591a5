"""Single-step adversarial training."""

from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD
from robustfront.attacks.pgd import Start
from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, cross_entropies


@METHODS.register
class FastAT(Method):
    """Adversarial training with one step from a random start; FGSM-AT from the input itself.

    loss = mean CE(f(x_adv), y), x_adv = P(x_0 + rel_step_size * eps * direction(grad CE)).

    FGSM-AT is `start: zero, rel_step_size: 1`. Single steps may collapse: within an epoch the model
    learns to fool the step and loses all robustness, which the step itself does not see. So the
    trainer measures PGD-10 on training examples after each epoch (`train/guard_error`), and says
    `collapsed` where that error lies 20 points above its lowest; a scheduler stops such a trial.
    Batch norm: one train-mode forward, of x_adv; the step is searched in eval mode.
    Source: arXiv:2001.03994, algorithm 3 and section 5.
    Deviates: the step is searched in eval mode, as every search here (the official code: train
    mode); the guard takes 512 examples, where the code takes one batch and 5 steps.
    """

    type: Literal["fast_at"] = "fast_at"
    start: Start = "uniform"
    rel_step_size: PositiveFloat = 1.25  # in units of eps

    @property
    def forward_equivalents(self) -> float:
        """One step, then one forward and one full backward."""
        return 5

    @property
    def searches(self) -> bool:
        """It does, with steps of its own."""
        return True

    @property
    def single_step(self) -> bool:
        """Yes."""
        return True

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """One term, `adversarial_ce`."""
        step = PGD(steps=1, rel_step_size=self.rel_step_size, start=self.start)
        x_adv = step(model, x, cross_entropies(y), ctx.threat, ctx.rng)
        adversarial = F.cross_entropy(model(x_adv), y)
        return LossTerms(adversarial, {"adversarial_ce": adversarial})
