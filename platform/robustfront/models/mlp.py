"""A fully connected network."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from pydantic import PositiveInt
from torch import nn

from robustfront.models.base import MODELS, ModelConfig


@MODELS.register
class MLP(ModelConfig):
    """Fully connected layers with ReLU between them; without hidden layers, `linear`.

    Size: 269,322 parameters for MNIST with two hidden layers of 256.
    Source: the usual baseline; PyTorch's default initialisation.

    Args:
        hidden: widths of the hidden layers.
    """

    type: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (256, 256)

    def build(self, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, nn.Module]:
        """The stem is the first layer."""
        first, *sizes = (*self.hidden, classes)
        rest: list[nn.Module] = []
        for inputs, outputs in pairwise((first, *sizes)):
            rest += [nn.ReLU(), nn.Linear(inputs, outputs)]
        stem = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), first))
        return stem, nn.Sequential(*rest)
