"""One row an example: label, plain prediction, prediction under each attack."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from robustfront.errors import ConfigError, DataError, SoundnessError, nearest
from robustfront.evaluation import metrics

UNDECIDED = -1
ABSTAINED = -2

# What np.load and the archive raise on a file that is not what it seems.
_DAMAGED = (AttributeError, ValueError, TypeError, KeyError, BadZipFile, zlib.error)


_KINDS = ("attacked", "certified", "smoothed", "radii", "draws", "sigmas")  # fields by name


@dataclass(frozen=True)
class Records:
    """The primary result of an evaluation; every error is computed from it.

    Args:
        label: (N,) int64.
        plain: prediction on the input itself, (N,) int64.
        attacked: prediction under an attack by `<threat>/<attack>`, (N,) int64 each.
        certified: by `<threat>/<certifier>`, (N,) int8 each: 1 where the plain prediction is proved
            right everywhere, 0 where not, -1 where nobody has tried.
        smoothed: prediction of a smoothed classifier by the certifier that smooths, (N,) int64:
            ABSTAINED where it has none, UNDECIDED where nobody has tried. Certificates of that name
            are about it.
        radii: certified radii of these by `<norm>/<certifier>`, (N,) float64 each.
        draws: what these follow from: how often each class came among the draws that chose one,
            and among those that bound its probability, (N, 2, K) int64 each.
        sigmas: standard deviation of the noise of these draws, (N,) float64 each.

    Raises:
        SoundnessError: something is proved that an attack, or the plain prediction, contradicts.
    """

    label: np.ndarray
    plain: np.ndarray
    attacked: Mapping[str, np.ndarray] = field(default_factory=dict)
    certified: Mapping[str, np.ndarray] = field(default_factory=dict)
    smoothed: Mapping[str, np.ndarray] = field(default_factory=dict)
    radii: Mapping[str, np.ndarray] = field(default_factory=dict)
    draws: Mapping[str, np.ndarray] = field(default_factory=dict)
    sigmas: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, found in self.certified.items():
            threat, _, verifier = name.partition("/")
            against = {
                attack: predictions
                for attack, predictions in self.attacked.items()
                if attack.partition("/")[0] == threat
            } | {"no attack": self.plain}
            if verifier in self.smoothed:
                # Attacks were on the classifier itself, which says nothing about the smoothed one.
                against = {"no attack": self.smoothed[verifier]}
            for attack, predictions in against.items():
                wrong = np.flatnonzero((found == 1) & (predictions != self.label))
                if len(wrong):
                    raise SoundnessError(
                        f"{name}: {len(wrong)} certified examples are contradicted by {attack} "
                        f"(the first: {wrong[0]})"
                    )

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """The records of consecutive parts of a split, measured alike."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.plain for part in parts]),
            *(
                {
                    name: np.concatenate([getattr(part, kind)[name] for part in parts])
                    for name in getattr(parts[0], kind)
                }
                for kind in _KINDS
            ),
        )

    def rows(self, n: int) -> Records:
        """The first n examples."""
        first = [{k: found[:n] for k, found in getattr(self, kind).items()} for kind in _KINDS]
        return Records(self.label[:n], self.plain[:n], *first)

    def without(self, verifier: str) -> Records:
        """Without the certificates of one verifier."""
        kept = {k: v for k, v in self.certified.items() if k.partition("/")[2] != verifier}
        return replace(self, certified=kept)

    def part(self, name: str, n: int) -> Records:
        """The first n examples, under one attack."""
        return Records(self.label[:n], self.plain[:n], {name: self.attacked[name][:n]})

    def mistakes(self, split: str) -> dict[str, np.ndarray]:
        """Which examples each error counts, (N,) bool, by the error's name.

        `robust_error` is that on the union where there are several threats.
        """
        standard = metrics.mistakes(self.label, self.plain)
        union = metrics.mistakes(self.label, self.plain, list(self.attacked.values()))
        long = {
            f"{split}/robust_error/{name}": metrics.mistakes(self.label, self.plain, [attacked])
            for name, attacked in self.attacked.items()
        }
        if len(self.attacked) > 1:
            attacks = {name.partition("/")[2] for name in self.attacked}
            long[f"{split}/robust_error/union/{'-'.join(sorted(attacks))}"] = union
        return {
            "standard_error": standard,
            "robust_error": union,
            f"{split}/standard_error": standard,
            **long,
            **self._unproven(split),
            **self._smoothed_mistakes(split),
        }

    def _smoothed_mistakes(self, split: str) -> dict[str, np.ndarray]:
        """Where a smoothed classifier is wrong or abstains; `smoothed_error` of the first."""
        long = {f"{split}/smoothed_error/{v}": p != self.label for v, p in self.smoothed.items()}
        short = {"smoothed_error": next(iter(long.values()))} if long else {}
        return {**short, **long}

    def _unproven(self, split: str) -> dict[str, np.ndarray]:
        """`certified_error` is that on the union: each threat must be proved for an example, by
        whichever verifier. Where something is smoothed it is about the first smoothed classifier.
        """
        long = {
            f"{split}/certified_error/{name}": found != 1 for name, found in self.certified.items()
        }
        open_: dict[str, dict[str, np.ndarray]] = {}
        for name, found in self.certified.items():
            threat, _, verifier = name.partition("/")
            open_.setdefault(threat, {})[verifier] = found != 1
        for verifier in dict.fromkeys(name.partition("/")[2] for name in self.certified):
            parts = [found[verifier] for found in open_.values() if verifier in found]
            if 1 < len(parts) == len(open_):
                wrong = np.logical_or.reduce(parts)
                long[f"{split}/certified_error/union/{verifier}"] = wrong
        smoothed = next(iter(self.smoothed), None)
        if smoothed is not None:
            open_ = {t: {smoothed: f[smoothed]} for t, f in open_.items() if smoothed in f}
        each = [np.logical_and.reduce([*found.values()]) for found in open_.values()]
        short = {"certified_error": np.logical_or.reduce(each)} if each else {}
        return {**short, **long}

    def union(self, threats: Sequence[str] | None = None) -> np.ndarray:
        """Which examples are wrong plainly or under any attack within some threats, (N,) bool.

        Args:
            threats: names such as `linf_8_255`, or with an attack `linf_8_255/pgd20`; None: all.

        Raises:
            ConfigError: a threat that was not measured.
        """
        known = [*dict.fromkeys(name.partition("/")[0] for name in self.attacked), *self.attacked]
        chosen = list(self.attacked) if threats is None else list(threats)
        if wrong := [name for name in chosen if name not in known]:
            problems = [f"got {name!r}{nearest(name, known)}" for name in wrong]
            raise ConfigError("threats", problems)
        within = [n for n in self.attacked if n in chosen or n.partition("/")[0] in chosen]
        return metrics.mistakes(self.label, self.plain, [self.attacked[name] for name in within])

    def errors(self, split: str) -> dict[str, float]:
        """Every error by its name, and the number of examples."""
        means = {name: float(np.mean(wrong)) for name, wrong in self.mistakes(split).items()}
        return {**means, **self._of_smoothed(split), f"{split}/examples": float(len(self))}

    def _of_smoothed(self, split: str) -> dict[str, float]:
        """Average certified radius (0 where wrong), share of abstentions, and how far the classes'
        accuracies are apart (their standard deviation)."""
        found: dict[str, float] = {}
        for key, radii in self.radii.items():
            right = self.smoothed[key.partition("/")[2]] == self.label
            mean = float(np.where(right, radii, 0.0).mean())
            found[f"{split}/average_certified_radius/{key}"] = mean
        for verifier, predictions in self.smoothed.items():
            right = predictions == self.label
            by_class = [right[self.label == label].mean() for label in np.unique(self.label)]
            found |= {
                f"{split}/abstention_rate/{verifier}": float((predictions == ABSTAINED).mean()),
                f"{split}/class_spread/{verifier}": float(np.std(by_class)),
            }
        return found

    def to_bytes(self, more: Mapping[str, np.ndarray] | None = None) -> bytes:
        """As an .npz archive, with `more` arrays that are no records."""
        buffer = io.BytesIO()
        arrays = {
            f"{kind}:{name}": array
            for kind in _KINDS
            for name, array in getattr(self, kind).items()
        }
        np.savez_compressed(
            buffer,
            allow_pickle=False,
            label=self.label,
            plain=self.plain,
            **arrays,
            **(more or {}),
        )
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Records:
        """Read what `to_bytes` gave.

        Raises:
            DataError: no such file, or not records.
        """
        arrays = read_arrays(path)
        named: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in _KINDS}
        for key, array in arrays.items():
            kind, _, name = key.partition(":")
            if name and kind in named:
                named[kind][name] = array
        try:
            return cls(arrays["label"], arrays["plain"], **named)
        except KeyError as error:
            raise DataError(f"{path}: not records ({error} is missing)") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz archive by name.

    Raises:
        DataError: no such file, or something else.
    """
    try:
        # Opened here: np.load would leave its own handle open on a file that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, EOFError, *_DAMAGED) as error:
        raise DataError(f"{path}: not records ({error})") from None
