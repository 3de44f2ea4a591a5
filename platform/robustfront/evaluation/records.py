"""One row an example: label, plain prediction, prediction under each attack."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from robustfront.errors import DataError
from robustfront.evaluation import metrics

# What np.load and the archive raise on a file that is not what it seems.
_DAMAGED = (ValueError, TypeError, KeyError, BadZipFile, zlib.error)


@dataclass(frozen=True)
class Records:
    """The primary result of an evaluation; every error is computed from it.

    Args:
        label: (N,) int64.
        plain: prediction on the input itself, (N,) int64.
        attacked: prediction under an attack by `<threat>/<attack>`, (N,) int64 each.
    """

    label: np.ndarray
    plain: np.ndarray
    attacked: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)

    def errors(self, split: str) -> dict[str, float]:
        """Every error by its long metric name, `standard_error`, `robust_error`, and their number.

        `robust_error` is that of the union where there are several threats.
        """
        robust = {
            f"{split}/robust_error/{name}": metrics.robust_error(self.label, self.plain, [attacked])
            for name, attacked in self.attacked.items()
        }
        union = metrics.robust_error(self.label, self.plain, list(self.attacked.values()))
        if len(self.attacked) > 1:
            attacks = {name.partition("/")[2] for name in self.attacked}
            robust[f"{split}/robust_error/union/{'-'.join(sorted(attacks))}"] = union
        standard = metrics.standard_error(self.label, self.plain)
        return {
            "standard_error": standard,
            "robust_error": union,
            f"{split}/standard_error": standard,
            f"{split}/examples": float(len(self)),
            **robust,
        }

    def to_bytes(self) -> bytes:
        """As an .npz archive."""
        buffer = io.BytesIO()
        arrays = {f"attacked:{name}": array for name, array in self.attacked.items()}
        np.savez_compressed(
            buffer, allow_pickle=False, label=self.label, plain=self.plain, **arrays
        )
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Records:
        """Read what `to_bytes` gave.

        Raises:
            DataError: no such file, or not records.
        """
        try:
            # Opened here: np.load would leave its own handle open on a file that is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                attacked = {
                    key.partition(":")[2]: arrays[key]
                    for key in arrays.files
                    if key.startswith("attacked:")
                }
                return cls(arrays["label"], arrays["plain"], attacked)
        except (
            OSError,
            EOFError,
            ValueError,
            TypeError,
            KeyError,
            BadZipFile,
            zlib.error,
        ) as error:
            raise DataError(f"{path}: not records ({error})") from None
