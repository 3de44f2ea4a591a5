"""The fast gradient sign method and its l2 and l1 counterparts."""

from typing import Literal

from torch import Tensor, nn

from robustfront.attacks.base import ATTACKS, Attack, Surrogate, input_gradient
from robustfront.randomness import Rng
from robustfront.threats import PerturbationSet


@ATTACKS.register
class FGSM(Attack):
    """One steepest-ascent step of length eps from the input itself.

    x_adv = P(x + eps * sign(grad_x surrogate)) for linf; for l2 along the unit gradient; for l1 the
    best point for the linearised surrogate.

    Source: arXiv:1412.6572, section 4.
    """

    type: Literal["fgsm"] = "fgsm"

    @property
    def name(self) -> str:
        """`fgsm`."""
        return self.type

    @property
    def forward_equivalents(self) -> float:
        """One forward, one gradient to the input."""
        return 2

    @property
    def single_step(self) -> bool:
        """Yes."""
        return True

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """A single step; `rng` is not used."""
        return threat.step(x, x, input_gradient(model, x, surrogate), 1.0, None)
