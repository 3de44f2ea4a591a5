"""How a loss becomes a step of the optimiser; an update wraps any method."""

from typing import TYPE_CHECKING

from robustfront.updates.base import UPDATES, NewOptimizer, Step, Update
from robustfront.updates.free import Free
from robustfront.updates.gradient_projection import GradientProjection
from robustfront.updates.plain import Plain

if TYPE_CHECKING:
    UpdateField = Update
else:
    UpdateField = UPDATES.field()

__all__ = [
    "UPDATES",
    "Free",
    "GradientProjection",
    "NewOptimizer",
    "Plain",
    "Step",
    "Update",
    "UpdateField",
]
