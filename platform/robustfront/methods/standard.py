"""Standard training."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.methods.base import METHODS, LossTerms, Method, StepContext


@METHODS.register
class Standard(Method):
    """Empirical risk minimisation: the loss is mean CE(f(x), y).

    With `smoothing.sigma` > 0 this is Gaussian data augmentation.

    Source: arXiv:1902.02918, section 3.3, for the augmented form.
    """

    type: Literal["standard"] = "standard"

    @property
    def forward_equivalents(self) -> float:
        """One forward, one full backward."""
        return 3

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """One term, `clean_ce`."""
        clean = F.cross_entropy(model(x), y)
        return LossTerms(clean, {"clean_ce": clean})
