"""Perturbations that no method here trains against: how robustness carries over to them."""

from typing import TYPE_CHECKING

from robustfront.unseen.base import UNSEEN, Unseen
from robustfront.unseen.elastic import Elastic
from robustfront.unseen.patch import Patch
from robustfront.unseen.rotation_translation import RotationTranslation

if TYPE_CHECKING:
    UnseenField = Unseen
else:
    UnseenField = UNSEEN.field()

__all__ = ["UNSEEN", "Elastic", "Patch", "RotationTranslation", "Unseen", "UnseenField"]
