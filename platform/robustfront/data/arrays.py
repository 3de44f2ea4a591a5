"""A data set of the user's own in one NumPy file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from robustfront.data.base import DATA, DataConfig, Images, RawData
from robustfront.errors import DataError

_KEYS = ("x_train", "y_train", "x_test", "y_test")
Array = npt.NDArray[Any]
Header = tuple[tuple[int, ...], np.dtype[Any]]


@DATA.register
class Arrays(DataConfig):
    """An .npz file with x_train, y_train, x_test and y_test.

    x: (N, C, H, W) or (N, H, W), uint8 or floats in [0, 1]. y: (N,), integers 0 to K - 1.

    Source: numpy.savez or numpy.savez_compressed; pickled objects are not read.

    Args:
        path: the file.
    """

    type: Literal["arrays"] = "arrays"
    path: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """From the header of x_train."""
        headers = _read_headers(self.path)
        self._stop_at(_header_problems(headers))
        size = headers["x_train"][0]
        return (size[1] if len(size) == 4 else 1, size[-2], size[-1])

    @property
    def classes(self) -> int:
        """From the training labels."""
        self._stop_at(_header_problems(_read_headers(self.path)))
        arrays = _read_arrays(self.path, ("y_train",))
        self._stop_at(_label_problems(arrays))
        return int(arrays["y_train"].max()) + 1

    def load(self) -> RawData:
        """Read and check everything."""
        headers = _read_headers(self.path)
        problems = _header_problems(headers)
        sound = [
            name for name in _KEYS if name in headers and not _own_problem(name, headers[name])
        ]
        arrays = _read_arrays(self.path, sound)
        problems += [
            line for name in ("x_train", "x_test") for line in _range_problems(name, arrays)
        ]
        self._stop_at(problems + _label_problems(arrays))
        return RawData(
            _images(arrays["x_train"]),
            arrays["y_train"].astype(np.int64),
            _images(arrays["x_test"]),
            arrays["y_test"].astype(np.int64),
            scale=255 if arrays["x_train"].dtype == np.uint8 else 1,
        )

    def _stop_at(self, problems: list[str]) -> None:
        if problems:
            count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
            raise DataError("\n  ".join([f"{self.path}: {count}", *problems]))


def _read_headers(path: str) -> dict[str, Header]:
    """Shape and type of each array, without reading the arrays."""
    try:
        with Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
            return {
                name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()
            }
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise DataError(f"{path}: not an .npz file of numpy.savez ({error})") from error


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    return shape, dtype


def _read_arrays(path: str, names: Sequence[str]) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: damaged ({error})") from error


def _header_problems(headers: dict[str, Header]) -> list[str]:
    problems = []
    sound: dict[str, Header] = {}
    for name in _KEYS:
        if name not in headers:
            problems.append(f"{name}: missing{_guess(name, list(headers))}")
        elif problem := _own_problem(name, headers[name]):
            problems.append(f"{name}: {problem}")
        else:
            sound[name] = headers[name]
    for part in ("train", "test"):
        if {f"x_{part}", f"y_{part}"} <= sound.keys():
            images, labels = sound[f"x_{part}"][0][0], sound[f"y_{part}"][0][0]
            if images != labels:
                problems.append(f"y_{part}: {labels} labels for {images} images")
    if {"x_train", "x_test"} <= sound.keys():
        (train, train_type), (test, test_type) = sound["x_train"], sound["x_test"]
        if train[1:] != test[1:]:
            problems.append(f"x_test: images of shape {test[1:]}, but {train[1:]} in x_train")
        if train_type.kind != test_type.kind:
            problems.append(f"x_test: {test_type}, but {train_type} in x_train")
    return problems


def _own_problem(name: str, header: Header) -> str | None:
    """What is wrong with one array as far as its header tells."""
    shape, dtype = header
    if name.startswith("y"):
        if dtype.kind not in "iu":
            return f"labels are integers, these are {dtype}"
        return (
            None if len(shape) == 1 and shape[0] else f"labels have shape (N,), N > 0; got {shape}"
        )
    if dtype != np.uint8 and dtype.kind != "f":
        return f"images are uint8 or floats in [0, 1], these are {dtype}"
    if len(shape) not in (3, 4) or not all(shape):
        return f"images have shape (N, C, H, W) or (N, H, W), none of it 0; got {shape}"
    return None


def _guess(name: str, found: list[str]) -> str:
    close = get_close_matches(name, [key for key in found if key not in _KEYS], n=1)
    guess = f"; is '{close[0]}' meant?" if close else ""
    return f"{guess} (the file holds: {', '.join(found) or 'nothing'})"


def _range_problems(name: str, arrays: dict[str, Array]) -> list[str]:
    if name not in arrays or arrays[name].dtype == np.uint8:
        return []
    low, high = arrays[name].min(), arrays[name].max()
    if np.isnan(low):  # the least of values with a NaN among them is NaN
        return [f"{name}: contains NaN"]
    if low < 0 or high > 1:
        return [f"{name}: floats lie in [0, 1], these in [{low:g}, {high:g}]"]
    return []


def _label_problems(arrays: dict[str, Array]) -> list[str]:
    if "y_train" not in arrays:
        return []
    known = np.unique(arrays["y_train"])
    if not np.array_equal(known, np.arange(len(known))):
        return [f"y_train: labels are 0 to K - 1, each at least once; got {_listed(known)}"]
    unknown = np.setdiff1d(arrays.get("y_test", known), known)
    return [f"y_test: labels {_listed(unknown)} do not occur in y_train"] if len(unknown) else []


def _listed(labels: Array) -> str:
    return ", ".join(map(str, labels[:10])) + (", ..." if len(labels) > 10 else "")


def _images(x: Array) -> Images:
    four = x if x.ndim == 4 else x[:, None]
    if four.dtype == np.uint8:
        return np.ascontiguousarray(four, dtype=np.uint8)
    return np.ascontiguousarray(four, dtype=np.float32)
