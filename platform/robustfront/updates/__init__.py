"""How a loss becomes a step of the optimiser; an update wraps any method."""

from typing import TYPE_CHECKING

from robustfront.updates.base import UPDATES, Update
from robustfront.updates.free import Free
from robustfront.updates.plain import Plain

if TYPE_CHECKING:
    UpdateField = Update
else:
    UpdateField = UPDATES.field()

__all__ = ["UPDATES", "Free", "Plain", "Update", "UpdateField"]
