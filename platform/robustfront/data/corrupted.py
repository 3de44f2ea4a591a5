"""Common corruptions from files: test images with noise, blur, weather, compression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from robustfront.data.base import DataConfig, RawData, Split, split_of_test
from robustfront.errors import DataError, nearest

_LABELS = "labels.npy"


class Corrupted:
    """A folder with `labels.npy` and one `<corruption>.npy` each, as CIFAR-10-C has them.

    Images (M, H, W, C) or (M, H, W) uint8, labels (M,) of 0 to K - 1; M counts all severities.

    Source: arXiv:1903.12261; its files are at zenodo.org/records/2535967. No pickle is read.

    Args:
        folder: where the files are.
        config: the data set whose test images were corrupted: their shape and classes.

    Raises:
        DataError: no such folder or labels, or files of another shape or type, all of them named.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.folder, self.config = folder, config
        if not (folder / _LABELS).is_file():
            found = sorted(path.name for path in folder.glob("*.npy"))
            guess = nearest(_LABELS, found) if found else " (it holds no .npy file)"
            raise DataError(f"{folder / _LABELS}: no such file{guess}")
        self.names = sorted(path.stem for path in folder.glob("*.npy") if path.name != _LABELS)
        problems = [*self._problems()]
        if problems:
            raise DataError("\n  ".join([f"{folder}: corrupted images that do not fit", *problems]))

    def read(self, name: str, device: torch.device) -> Split:
        """The images under one corruption, of the classes that are used."""
        images, labels = self._array(name), self._array("labels").astype(np.int64)
        x = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        raw = RawData(x[:0], labels[:0], x, labels, 255)
        return split_of_test(self.config.selected(raw), device)

    def _problems(self) -> Iterator[str]:
        labels, last = self._array("labels"), self.config.classes - 1
        if labels.dtype.kind not in "iu" or labels.ndim != 1 or not len(labels):
            yield f"{_LABELS}: labels are integers (M,), got {labels.dtype} {labels.shape}"
        elif labels.min() < 0 or labels.max() > last:
            yield f"{_LABELS}: labels are 0 to {last}, got {labels.min()} to {labels.max()}"
        if not self.names:
            yield f"no <corruption>.npy beside {_LABELS}"
        channels, height, width = self.config.shape
        allowed: list[tuple[int, ...]] = [(len(labels), height, width, channels)]
        allowed += [(len(labels), height, width)] * (channels == 1)
        for name in self.names:
            images = self._array(name)
            if images.dtype != np.uint8:
                yield f"{name}.npy: images are uint8, these are {images.dtype}"
            if images.shape not in allowed:
                expected = " or ".join(map(str, allowed))
                yield f"{name}.npy: shape {images.shape}, expected {expected}"

    def _array(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path}: not an array that can be read ({error})") from error
        return array
