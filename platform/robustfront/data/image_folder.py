"""Images in folders named after their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from robustfront.data.base import DATA, DataConfig, Images, Labels, RawData
from robustfront.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SHOWN = 5


@DATA.register
class ImageFolder(DataConfig):
    """PNG or JPEG files in `train/CLASS/` and `test/CLASS/`; classes are numbered by name.

    Source: the layout of torchvision.datasets.ImageFolder.

    Args:
        root: the folder with `train` and `test`.
        size: height and width that images are resized to, bilinearly.
        channels: 1 for grey, 3 for colour.
    """

    type: Literal["image_folder"] = "image_folder"
    root: str
    size: PositiveInt
    channels: Literal[1, 3] = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """As configured."""
        return self.channels, self.size, self.size

    @property
    def classes(self) -> int:
        """Folders under `train`."""
        return len(self._names())

    def load(self) -> RawData:
        """Read every image."""
        train, test = self._files("train"), self._files("test")
        problems = [
            f"no image ({', '.join(_SUFFIXES)}) in {part}"
            for part, files in (("train/CLASS", train), ("test/CLASS", test))
            if not files
        ]
        names = self._names()
        unknown = sorted({path.parent.name for path in test} - set(names))
        problems += [f"test/{name}: no such class in train" for name in unknown]
        empty = sorted(set(names) - {path.parent.name for path in train})
        problems += [f"train/{name}: no image" for name in empty if train]
        if problems:
            raise self._error(problems)
        return RawData(*self._read(train, names), *self._read(test, names), scale=255)

    def _names(self) -> list[str]:
        names = _folders(Path(self.root) / "train")
        if not names:
            raise self._error(["no folder train/CLASS"])
        return names

    def _files(self, part: str) -> list[Path]:
        folder = Path(self.root) / part
        return [
            path
            for name in _folders(folder)
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in _SUFFIXES
        ]

    def _read(self, files: list[Path], names: list[str]) -> tuple[Images, Labels]:
        from PIL import Image  # only this set needs it

        mode = "L" if self.channels == 1 else "RGB"
        pixels = np.empty((len(files), self.size, self.size, self.channels), dtype=np.uint8)
        problems = []
        for row, path in zip(pixels, files, strict=True):
            try:
                with Image.open(path) as image:
                    small = image.convert(mode).resize(row.shape[:2], Image.Resampling.BILINEAR)
            except (OSError, ValueError, SyntaxError) as error:
                problems.append(f"{path.relative_to(self.root)}: {error}")
            else:
                row[:] = np.asarray(small).reshape(row.shape)
        if problems:
            raise self._error(problems)
        y = np.array([names.index(path.parent.name) for path in files], dtype=np.int64)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), y

    def _error(self, problems: list[str]) -> DataError:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        return DataError(
            "\n  ".join([f"{self.root}: not an image folder", *problems[:_SHOWN], *more])
        )


def _folders(folder: Path) -> list[str]:
    return (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    )
