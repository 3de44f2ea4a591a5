"""Logistic regression on pixels."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from robustfront.models.base import MODELS, ModelConfig


@MODELS.register
class Linear(ModelConfig):
    """One affine map from pixels to logits; its robust error has a closed form.

    Size: 7,850 parameters for MNIST, 30,730 for CIFAR-10.
    Source: closed form in arXiv:1412.6572, section 5.
    """

    type: Literal["linear"] = "linear"

    def build(self, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, nn.Module]:
        """All of it is stem."""
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)), nn.Identity()
