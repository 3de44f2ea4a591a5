"""Data sets in memory: their configuration's interface, splits and augmentation."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt, field_validator
from torch import Tensor

from robustfront.errors import ConfigError
from robustfront.randomness import Rng, seed_of
from robustfront.registry import Component, Registry

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# Examples read at once where a whole set in float64 would not fit.
_CHUNK = 1024


@dataclass(frozen=True)
class RawData:
    """A data set as it lies on disk; the arrays may be read-only.

    Args:
        x_train: images (N, C, H, W).
        y_train: classes (N,), 0 to K - 1.
        x_test: as x_train, kept apart until the end.
        y_test: as y_train.
        scale: what divides images to bring them to [0, 1].
    """

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    scale: float


class Augment(Component):
    """A random shift, then a random reflection, the same for all channels of an image.

    Args:
        crop: black pixels added on each side before a window of the old size is cut.
        flip: left and right are exchanged in half of the images.
    """

    crop: NonNegativeInt = 0
    flip: bool = False

    def apply(self, x: Tensor, rng: Rng) -> Tensor:
        """Augmented images, on the device of x (N, C, H, W)."""
        if not (self.crop or self.flip):
            return x
        channels, height, width = x.shape[1:]
        down, right, mirror = rng.uniform(x.new_empty(len(x), 3, dtype=torch.float32)).unbind(1)
        offsets = 2 * self.crop + 1
        rows = torch.arange(height, device=x.device) + (down * offsets).long()[:, None]
        columns = torch.arange(width, device=x.device).expand(len(x), -1)
        if self.flip:
            columns = torch.where(mirror[:, None] < 0.5, columns.flip(1), columns)
        columns = columns + (right * offsets).long()[:, None]
        padded = F.pad(x, (self.crop,) * 4)
        example = torch.arange(len(x), device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[None, :, None, None]
        return padded[example, channel, rows[:, None, :, None], columns[:, None, None, :]]


class DataConfig(Component, ABC):
    """A data set, how much of it is used, and how training examples are augmented.

    Args:
        train_size: training examples; None takes all that validation leaves.
        val_size: validation examples, cut from the training data first; None takes a tenth.
        split_seed: of the permutation that the cut is made in.
        augment: what training does to each image; None does nothing.
        only_classes: the classes that are used, which become 0, 1, ... in this order; None: all.
    """

    type: str
    train_size: PositiveInt | None = None
    val_size: PositiveInt | None = None
    split_seed: NonNegativeInt = 0
    augment: Augment | None = None
    only_classes: tuple[NonNegativeInt, ...] | None = None

    @field_validator("only_classes")
    @classmethod
    def _different_classes(cls, chosen: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if chosen is not None and len(set(chosen)) != max(len(chosen), 2):
            raise ValueError(f"two or more different classes, got {list(chosen)}")
        return chosen

    @property
    def outputs(self) -> int:
        """How many classes a model tells apart."""
        return self.classes if self.only_classes is None else len(self.only_classes)

    def selected(self, raw: RawData) -> RawData:
        """The examples of the classes that are used, with their new labels.

        Raises:
            ConfigError: there is no such class.
        """
        if self.only_classes is None:
            return raw
        if max(self.only_classes) >= self.classes:
            raise ConfigError(
                "data",
                [
                    f"data.only_classes: got {list(self.only_classes)}, the classes of "
                    f"{self.type} are 0 to {self.classes - 1}"
                ],
            )
        label = np.full(self.classes, -1)
        label[list(self.only_classes)] = np.arange(len(self.only_classes))
        train, test = label[raw.y_train], label[raw.y_test]
        return RawData(
            raw.x_train[train >= 0],
            train[train >= 0],
            raw.x_test[test >= 0],
            test[test >= 0],
            raw.scale,
        )

    @abstractmethod
    def load(self) -> RawData:
        """All of the data.

        Raises:
            DataError: they are missing or unreadable.
        """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image, known without reading the images."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """K, known without reading the images."""

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation by channel; None measures them on the training split."""
        return None

    @property
    def is_local(self) -> bool:
        """Whether `load` needs no network."""
        return True


DATA: Registry[DataConfig] = Registry("data set")


@dataclass(frozen=True)
class Split:
    """Examples on their device, images as stored.

    Args:
        x: images (M, C, H, W), x / scale in [0, 1]; splits may share them.
        y: classes (N,).
        scale: what divides images to bring them to [0, 1].
        rows: which images are those of the split, (N,); None: all, in order.
        start: position of its first example in the split it is a part of.
    """

    x: Tensor
    y: Tensor
    scale: float
    rows: Tensor | None = None
    start: int = 0

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Some of the examples: x float32 in [0, 1], y int64."""
        rows = index if self.rows is None else self.rows[index]
        return self.x[rows].float() / self.scale, self.y[index]

    def first(self, n: int) -> Split:
        """The first n examples."""
        return self.part(slice(0, n))

    def part(self, rows: slice) -> Split:
        """Some consecutive examples."""
        start = self.start + (rows.start or 0)
        if self.rows is None:
            return Split(self.x[rows], self.y[rows], self.scale, start=start)
        return Split(self.x, self.y[rows], self.scale, self.rows[rows], start)


@dataclass(frozen=True)
class DataSet:
    """The three splits, with what a model needs to know of them.

    Args:
        train: what is trained on.
        val: what the search's objectives are measured on.
        test: what only the final suite reads.
        shape: (C, H, W) of an image.
        classes: K.
        mean: of each channel, in [0, 1] pixel units.
        std: of each channel, likewise.
    """

    train: Split
    val: Split
    test: Split
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def split_data(config: DataConfig, raw: RawData, device: torch.device) -> DataSet:
    """Cut validation, then training, from a permutation of the training data of the classes used.

    The permutation depends on the split seed alone, so validation is the same at any training size.

    Raises:
        ConfigError: more examples are asked for than there are.
    """
    raw = config.selected(raw)
    val_size, train_size = _sizes(config, len(raw.y_train))
    source = np.random.Generator(np.random.PCG64(seed_of("split", config.split_seed)))
    order = source.permutation(len(raw.y_train))
    val, train = order[:val_size], order[val_size : val_size + train_size]

    images, labels = _tensor(raw.x_train, device), _tensor(raw.y_train, device)

    def chosen(index: npt.NDArray[np.int64]) -> Split:
        rows = torch.from_numpy(index).to(device)
        return Split(images, labels[rows], raw.scale, rows)

    mean, std = config.normalisation or _statistics(raw.x_train, train, raw.scale)
    return DataSet(
        train=chosen(train),
        val=chosen(val),
        test=split_of_test(raw, device),
        shape=config.shape,
        classes=config.outputs,
        mean=mean,
        std=std,
    )


def split_of_test(raw: RawData, device: torch.device) -> Split:
    """The test split."""
    return Split(_tensor(raw.x_test, device), _tensor(raw.y_test, device), raw.scale)


def _tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """On a CPU a view: the trials of a node share what lies in its object store."""
    with warnings.catch_warnings():
        # The store's arrays are read-only; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def _sizes(config: DataConfig, available: int) -> tuple[int, int]:
    val_size = config.val_size or max(1, available // 10)
    left = available - val_size
    if left < 1:
        problem = (
            f"data.val_size: {val_size} asked for, but {config.type} has {available} training "
            f"examples and at least one must be left to train on"
        )
    elif config.train_size is not None and config.train_size > left:
        problem = (
            f"data.train_size: {config.train_size} asked for, but of the {available} training "
            f"examples of {config.type} only {left} are left after data.val_size = {val_size}"
        )
    else:
        return val_size, config.train_size or left
    raise ConfigError("data", [problem])


def _statistics(
    x: Images, index: npt.NDArray[np.int64], scale: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, to four digits as they are usually published."""
    total = np.zeros(x.shape[1])
    squares = np.zeros(x.shape[1])
    for start in range(0, len(index), _CHUNK):
        chunk = x[index[start : start + _CHUNK]] / np.float64(scale)
        total += chunk.sum((0, 2, 3))
        squares += np.square(chunk).sum((0, 2, 3))
    count = len(index) * x.shape[2] * x.shape[3]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std[std < 1e-6] = 1  # a constant channel carries nothing, whatever its scale
    return _digits(mean), _digits(std)


def _digits(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)
