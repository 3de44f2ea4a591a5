"""What every model shares: its configuration's interface, and the normalisation around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustfront.errors import ConfigError
from robustfront.registry import Component, Registry


class ModelConfig(Component, ABC):
    """A network architecture.

    Building draws from torch's global generator and from nothing else: seed it before.
    """

    smallest: ClassVar[int] = 1  # least height and width of an image

    type: str

    @abstractmethod
    def build(self, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, nn.Module]:
        """Stem and body for normalised images of a shape (C, H, W).

        Returns:
            The first linear layer, which must see fp32, and the rest, which ends in raw logits.
        """


MODELS: Registry[ModelConfig] = Registry("model")


class Classifier(nn.Module):
    """Logits (N, K) of images (N, C, H, W) in [0, 1]: normalisation, stem, body.

    Normalisation and stem run in fp32 under any autocast: bfloat16 values just below 1 are 1/256
    apart, so an attack's steps would be rounded away before the network saw them. The body runs as
    the caller's autocast says; logits are fp32.

    Args:
        stem: the first linear layer.
        body: the rest.
        mean: of each channel, in [0, 1] pixel units.
        std: of each channel, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, stem: nn.Module, body: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.body = body
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Raw logits, fp32."""
        with torch.autocast(x.device.type, enabled=False):
            features = self.stem((x - self.mean) / self.std)
        logits: Tensor = self.body(features)
        return logits.float()


def build_model(
    config: ModelConfig,
    shape: tuple[int, int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    """A fresh classifier for images of a shape (C, H, W), in train mode, on the CPU.

    Raises:
        ConfigError: the images are too small for the model.
    """
    least = config.smallest
    if min(shape[1:]) < least:
        raise ConfigError(
            "model",
            [
                f"model.type: {config.type} needs images of {least}x{least} pixels or more, "
                f"these are {shape[1]}x{shape[2]} (shape {shape})"
            ],
        )
    stem, body = config.build(shape, classes)
    return Classifier(stem, body, mean, std)
