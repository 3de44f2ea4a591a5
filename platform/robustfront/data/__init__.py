"""Data sets: one a file, and how they are split and augmented."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustfront.data.arrays import Arrays
from robustfront.data.base import DATA, Augment, DataConfig, DataSet, RawData, Split, split_data
from robustfront.data.cifar10 import CIFAR10
from robustfront.data.concentric_spheres import ConcentricSpheres
from robustfront.data.corrupted import Corrupted
from robustfront.data.digits import Digits
from robustfront.data.fashion_mnist import FashionMNIST
from robustfront.data.image_folder import ImageFolder
from robustfront.data.linear_margin import LinearMargin
from robustfront.data.mnist import MNIST
from robustfront.errors import ConfigError, nearest
from robustfront.problems import configured

if TYPE_CHECKING:
    DataField = DataConfig
else:
    DataField = DATA.field()


def load_data(data: Mapping[str, Any] | DataConfig, split: str = "test") -> tuple[Tensor, Tensor]:
    """One split of a data set as tensors.

    Args:
        data: a data set, or its settings as in a job file: `{"type": "mnist", "root": "data"}`.
        split: `train`, `val` or `test`.

    Returns:
        x (N, C, H, W) float32 in [0, 1] and y (N,) int64.

    Raises:
        ConfigError: no such data set, setting or split.
        DataError: the data cannot be read.
    """
    config = data if isinstance(data, DataConfig) else configured(DataField, data, "data")
    if split not in ("train", "val", "test"):
        raise ConfigError("split", [f"got {split!r}{nearest(split, ['train', 'val', 'test'])}"])
    parts = split_data(config, config.load(), torch.device("cpu"))
    chosen: Split = getattr(parts, split)
    return chosen.batch(slice(None))


__all__ = [
    "CIFAR10",
    "DATA",
    "MNIST",
    "Arrays",
    "Augment",
    "ConcentricSpheres",
    "Corrupted",
    "DataConfig",
    "DataField",
    "DataSet",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "LinearMargin",
    "RawData",
    "Split",
    "load_data",
    "split_data",
]
