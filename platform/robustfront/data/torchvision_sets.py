"""MNIST, Fashion-MNIST and CIFAR-10 through torchvision: found in a folder, or downloaded."""

from __future__ import annotations

import contextlib
import io
import tempfile
from abc import ABC
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator

from robustfront.data.base import DataConfig, Images, Labels, RawData
from robustfront.errors import DataError

# Where torchvision keeps each set under its root.
_FOLDERS = {
    "MNIST": "MNIST",
    "FashionMNIST": "FashionMNIST",
    "CIFAR10": "cifar-10-batches-py",
}


def _one_or_several(value: Any) -> Any:
    several = value if isinstance(value, list | tuple) else [value]
    if not several or not all(isinstance(folder, str) for folder in several):
        raise ValueError("a folder, or a list of folders")
    return tuple(several)


class TorchvisionConfig(DataConfig, ABC):
    """A set that torchvision reads.

    Args:
        root: one folder, or several in the order they are searched; the first that holds the set is
            used, else it is downloaded into the first.
    """

    torchvision_name: ClassVar[str]
    root: Annotated[tuple[str, ...], BeforeValidator(_one_or_several)] = ("data",)

    @property
    def is_local(self) -> bool:
        """Whether a root holds the set."""
        return bool(self._held())

    def load(self) -> RawData:
        """Read, or download.

        Raises:
            DataError: no root holds the set and it cannot be downloaded, its files are damaged, or
                torchvision is not here.
        """
        name = self.torchvision_name
        dataset = _dataset(name)
        held = self._held()
        if not held:
            _download(dataset, name, self._roots())
        home = held[0] if held else self._roots()[0]
        try:
            (x_train, y_train), (x_test, y_test) = (
                _read(dataset, home, train) for train in (True, False)
            )
        except Exception as error:  # torchvision's readers fail in many ways on a damaged file
            raise DataError(
                f"{home / _FOLDERS[name]}: not a whole copy of {name} ({_one_line(error)}); "
                "remove the folder to download it again"
            ) from error
        return RawData(x_train, y_train, x_test, y_test, scale=255)

    def _roots(self) -> list[Path]:
        return [Path(root) for root in self.root]

    def _held(self) -> list[Path]:
        folder = _FOLDERS[self.torchvision_name]
        return [root for root in self._roots() if (root / folder).is_dir()]


def _dataset(name: str) -> Any:
    try:
        from torchvision import datasets  # slow to import, and only these sets need it
    except ImportError as error:
        raise DataError(f"{name} is read by torchvision, which is not here ({error})") from error
    return getattr(datasets, name)


def _read(dataset: Any, root: Path, train: bool) -> tuple[Images, Labels]:
    examples = dataset(str(root), train=train, download=False)
    images = np.asarray(examples.data)
    x = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
    y = np.asarray(examples.targets, dtype=np.int64)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images but {len(y)} labels")
    return np.ascontiguousarray(x), y


def _download(dataset: Any, name: str, roots: list[Path]) -> None:
    """Into the first root, by way of a folder of its own: what stands there is always whole."""
    silence = io.StringIO()
    created = [path for path in (roots[0], *roots[0].parents) if not path.exists()]
    try:
        roots[0].mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=roots[0], prefix=f".{name}-") as fresh,
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            dataset(fresh, train=True, download=True)
            target = roots[0] / _FOLDERS[name]
            if not target.exists():
                (Path(fresh) / _FOLDERS[name]).rename(target)
    except (OSError, RuntimeError, HTTPException) as error:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise DataError(
            f"{name} is in none of {', '.join(map(str, roots))} (no folder {_FOLDERS[name]}), and "
            f"it cannot be downloaded ({_one_line(error)}); on a machine with network run "
            f"torchvision.datasets.{name}(FOLDER, download=True), copy FOLDER here and name it in "
            "data.root"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
