"""Perturbations that no method here trains against: how robustness carries over to them."""

from typing import TYPE_CHECKING

from robustfront.unseen.base import UNSEEN, Unseen
from robustfront.unseen.elastic import Elastic
from robustfront.unseen.fog import Fog
from robustfront.unseen.gabor import Gabor
from robustfront.unseen.geometric import Geometric
from robustfront.unseen.jpeg import JPEG
from robustfront.unseen.patch import Patch
from robustfront.unseen.rotation_translation import RotationTranslation
from robustfront.unseen.snow import Snow

if TYPE_CHECKING:
    UnseenField = Unseen
else:
    UnseenField = UNSEEN.field()

__all__ = [
    "JPEG",
    "UNSEEN",
    "Elastic",
    "Fog",
    "Gabor",
    "Geometric",
    "Patch",
    "RotationTranslation",
    "Snow",
    "Unseen",
    "UnseenField",
]
