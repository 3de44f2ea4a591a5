"""Random search: what an attack has to beat."""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from robustfront.attacks.base import ATTACKS, Attack, Surrogate, best_of
from robustfront.randomness import Rng
from robustfront.threats import PerturbationSet


@ATTACKS.register
class Noise(Attack):
    """The worst of several uniform draws from the set.

    Source: arXiv:1902.06705, section 5.3 (random search must not find what a gradient does not).
    """

    type: Literal["noise"] = "noise"
    draws: PositiveInt = 100

    @property
    def name(self) -> str:
        """`noise100`."""
        return f"noise{self.draws}"

    @property
    def forward_equivalents(self) -> float:
        """A forward for each draw."""
        return self.draws

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """The draw with the largest surrogate."""

        def draw(_: int, rows: Tensor | slice, rng: Rng) -> Tensor:
            return threat.sample(x[rows], rng)

        return best_of(self.draws, draw, model, x, surrogate, rng)
