"""Training on the dual of a linear relaxation."""

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from robustfront.certifiers.propagation import Bounds
from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Bounding


@METHODS.register
class COAP(Bounding):
    """COAP: the cross-entropy at the least margins that a linear relaxation of the network leaves.

    robust = mean log sum_k exp(-m_k), m_k a feasible value of the relaxation's dual: each ReLU that
    may be on or off lies between two parallel lines. What it sees is bounded in the same way, layer
    by layer, with a pass for each unit: for networks with few hidden layers and units.

    For models that are a sequence of Linear, Conv2d, batch norm, ReLU and Dropout.
    Batch norm: one pass of x, whose statistics all bounds use.
    Source: arXiv:1711.00851, section 3 and algorithm 1; l2 arXiv:1805.12514. Official code:
    locuslab/convex_adversarial.
    Deviates: exact bounds of hidden units only, no random projections; `fast_init` and
    `regularise` are those of arXiv:2103.17268, off unless asked for.
    """

    dual: ClassVar[bool] = True

    type: Literal["coap"] = "coap"
    regularise: NonNegativeFloat = 0.0
    fast_init: bool = False

    @property
    def forward_equivalents(self) -> float:
        """As measured on a network of one hidden layer; with more it grows with the units."""
        return 40

    def lower(self, known: Bounds, rule: Tensor, ctx: StepContext) -> Tensor:
        """By a backward pass."""
        return known.backward(rule)
