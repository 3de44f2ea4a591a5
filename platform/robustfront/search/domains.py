"""The distributions of a search space: choices, ranges and simplexes.

A domain turns *latent* parameters, which Optuna knows, into the *value* a configuration gets.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import combinations, pairwise
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Latent = dict[str, str | int | float | bool | None]

# The smallest latent of a simplex; uniform draws below it have probability 1e-12.
_TINY = 1e-12


class Domain(ABC):
    """The values one key of a search space can take."""

    @abstractmethod
    def distributions(self, key: str) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each latent parameter."""

    @abstractmethod
    def value(self, key: str, latent: Mapping[str, Any]) -> Any:
        """The value of these latent parameters."""

    @abstractmethod
    def latent(self, key: str, value: Any) -> Latent:
        """Latent parameters that give this value.

        Raises:
            ValueError: it is not a value of this domain.
        """

    @abstractmethod
    def extremes(self) -> Sequence[Any]:
        """Both ends of a range, every choice, every corner of a simplex."""

    @abstractmethod
    def values(self) -> Sequence[Any] | None:
        """Every value; None without an end."""

    def levels(self) -> Sequence[Any] | None:
        """The values of a grid; None without an end of values and without `points`."""
        return self.values()

    @abstractmethod
    def condition(self, raw: object) -> Any:
        """The value that a `when` names.

        Raises:
            ValueError: this domain never takes it.
        """


@dataclass(frozen=True)
class Choice(Domain):
    """One of a list of values. Lists and mappings are known to Optuna by their JSON text."""

    items: tuple[Any, ...]

    @classmethod
    def parse(cls, raw: object, points: int | None) -> Choice:
        """From the list of a search space."""
        if not isinstance(raw, list) or not raw:
            raise ValueError(f"choice takes a list of at least one value, got {raw!r}")
        if points is not None:
            raise ValueError("points is for ranges and simplexes; a grid takes every choice")
        for item in raw:
            try:
                json.dumps(item, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    "a choice is a finite number, a text, true, false, null, or a list or mapping "
                    f"of these, got {item!r}"
                ) from None
        # 0 equals false and 1 equals 1.0 in Python, and so in Optuna
        labels = [_label(item) for item in raw]
        twice = [item for at, item in enumerate(raw) if labels[at] in labels[:at]]
        if twice:
            raise ValueError(f"choice names the same value twice: {twice[0]!r}")
        return cls(tuple(raw))

    def distributions(self, key: str) -> dict[str, BaseDistribution]:
        """One categorical parameter."""
        return {key: CategoricalDistribution([_label(item) for item in self.items])}

    def value(self, key: str, latent: Mapping[str, Any]) -> Any:
        """The item with this label."""
        return next(item for item in self.items if _label(item) == latent[key])

    def latent(self, key: str, value: Any) -> Latent:
        """The label."""
        return {key: _label(self.condition(value))}

    def extremes(self) -> Sequence[Any]:
        """Every item."""
        return self.items

    def values(self) -> Sequence[Any]:
        """Every item."""
        return self.items

    def condition(self, raw: object) -> Any:
        """The item that equals it."""
        for item in self.items:
            if item == raw and isinstance(item, bool) == isinstance(raw, bool):
                return item
        problem = f"never {raw!r} (allowed: {', '.join(map(repr, self.items))})"
        if isinstance(raw, bool):
            problem += "; YAML reads an unquoted yes, no, on, off as true or false: quote it"
        raise ValueError(problem)


@dataclass(frozen=True)
class Range(Domain):
    """Numbers from low to high, ends included, uniform on a linear or a logarithmic scale.

    Values that are not integers are rounded to 6 significant digits, to be readable.
    """

    low: float
    high: float
    integer: bool
    log: bool
    points: int | None

    @classmethod
    def parse(cls, raw: object, points: int | None, *, integer: bool, log: bool) -> Range:
        """From the two ends of a search space."""
        if not isinstance(raw, list) or len(raw) != 2:
            raise ValueError(f"a range takes two numbers, [low, high], got {raw!r}")
        low, high = (_number(end, integer=integer) for end in raw)
        if low > high:
            raise ValueError(f"the low end {low} of a range is above its high end {high}")
        if log and low <= 0:
            raise ValueError(f"the low end of a logarithmic range is above 0, got {low}")
        return cls(low, high, integer, log, points)

    def distributions(self, key: str) -> dict[str, BaseDistribution]:
        """One numeric parameter."""
        if self.integer:
            return {key: IntDistribution(int(self.low), int(self.high), log=self.log)}
        return {key: FloatDistribution(self.low, self.high, log=self.log)}

    def value(self, key: str, latent: Mapping[str, Any]) -> int | float:
        """The number, rounded but still inside the range."""
        return self._tidy(latent[key])

    def latent(self, key: str, value: Any) -> Latent:
        """The number itself."""
        if not self.low <= value <= self.high or (self.integer and value != int(value)):
            raise ValueError(f"{value} is not in the range [{self.low}, {self.high}]")
        return {key: value}

    def extremes(self) -> Sequence[int | float]:
        """Both ends."""
        return list(dict.fromkeys([self.low, self.high]))

    def levels(self) -> Sequence[int | float] | None:
        """So many numbers as `points` says, equally far apart on the range's scale."""
        if self.points is None:
            return self.values()
        shares = [step / (self.points - 1) for step in range(self.points)]
        numbers = [self.low + (self.high - self.low) * share for share in shares]
        if self.log:
            numbers = [self.low * (self.high / self.low) ** share for share in shares]
        return list(dict.fromkeys(self._tidy(number) for number in numbers))

    def values(self) -> Sequence[int | float] | None:
        """The integers of the range, or the only number."""
        if self.integer:
            return range(int(self.low), int(self.high) + 1)
        return [self.low] if self.low == self.high else None

    def condition(self, raw: object) -> Any:
        """An integer of the range; an exact number of a continuous range has probability 0."""
        values = self.values()
        if values is None:
            raise ValueError("continuous; a condition names a choice or an integer")
        if raw not in values or isinstance(raw, bool):
            raise ValueError(f"never {raw!r} (allowed: from {self.low} to {self.high})")
        return values[values.index(raw)]

    def _tidy(self, number: float) -> int | float:
        rounded = round(number) if self.integer else float(f"{number:.6g}")
        return min(max(rounded, self.low), self.high)


@dataclass(frozen=True)
class Simplex(Domain):
    """Non-negative weights of several names that sum to 1, uniform over all such weights.

    Every name has a latent u in (0, 1]; the weights are -log(u) over their sum, which is uniform
    on the simplex for independent uniform latents. They are rounded to 6 decimals, and the
    largest is corrected so that they still sum to 1.
    """

    names: tuple[str, ...]
    points: int | None

    @classmethod
    def parse(cls, raw: object, points: int | None) -> Simplex:
        """From the list of names of a search space."""
        names = raw if isinstance(raw, list) else []
        texts = {name for name in names if isinstance(name, str)}
        if len(texts) < 2 or len(texts) < len(names):
            raise ValueError(f"simplex takes a list of two or more different names, got {raw!r}")
        return cls(tuple(names), points)

    def distributions(self, key: str) -> dict[str, BaseDistribution]:
        """A uniform parameter `key/name` for each name."""
        return {f"{key}/{name}": FloatDistribution(_TINY, 1.0) for name in self.names}

    def value(self, key: str, latent: Mapping[str, Any]) -> dict[str, float]:
        """The weights; equal ones where every latent is 1."""
        sizes = [abs(math.log(latent[f"{key}/{name}"])) for name in self.names]
        total = math.fsum(sizes)
        return self._weights([size / total for size in sizes] if total else [1.0] * len(sizes))

    def latent(self, key: str, value: Any) -> Latent:
        """u = exp(-weight), so that a weight of 0 is exact."""
        return {f"{key}/{name}": math.exp(-value[name]) for name in self.names}

    def extremes(self) -> Sequence[dict[str, float]]:
        """The corners: all weight on one name."""
        return [{name: float(name == corner) for name in self.names} for corner in self.names]

    def levels(self) -> Sequence[dict[str, float]] | None:
        """The weights that are multiples of 1 / (points - 1)."""
        if self.points is None:
            return None
        return [self._weights(part) for part in _compositions(self.points - 1, len(self.names))]

    def values(self) -> None:
        """There is no end of weights."""
        return None

    def condition(self, raw: object) -> Any:
        """Never: weights have probability 0."""
        raise ValueError("a simplex; a condition names a choice or an integer")

    def _weights(self, shares: Sequence[float]) -> dict[str, float]:
        weights = {
            name: round(share / math.fsum(shares), 6)
            for name, share in zip(self.names, shares, strict=True)
        }
        largest = max(weights, key=lambda name: weights[name])
        rest = math.fsum(weight for name, weight in weights.items() if name != largest)
        return {**weights, largest: round(1 - rest, 6)}


DISTRIBUTIONS: Mapping[str, Callable[[object, int | None], Domain]] = {
    "choice": Choice.parse,
    "uniform": partial(Range.parse, integer=False, log=False),
    "log_uniform": partial(Range.parse, integer=False, log=True),
    "int_uniform": partial(Range.parse, integer=True, log=False),
    "log_int_uniform": partial(Range.parse, integer=True, log=True),
    "simplex": Simplex.parse,
}


def _label(item: Any) -> str | int | float | bool | None:
    if item is None or isinstance(item, str | int | float | bool):
        return item
    return json.dumps(item, sort_keys=True)


def _number(raw: object, *, integer: bool) -> int | float:
    kind = "an integer" if integer else "a number or a fraction such as 4/10"
    problem = f"an end of a range is {kind}, got {raw!r}"
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise ValueError(problem)
    try:
        exact = Fraction(str(raw).strip())
        number = float(exact)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(problem) from None
    if not integer:
        return number
    if exact.denominator != 1:
        raise ValueError(problem)
    return exact.numerator


def _compositions(total: int, parts: int) -> Iterator[list[int]]:
    """Every way to write `total` as an ordered sum of non-negative integers, by stars and bars."""
    places = total + parts - 1
    for bars in combinations(range(places), parts - 1):
        yield [right - left - 1 for left, right in pairwise((-1, *bars, places))]
