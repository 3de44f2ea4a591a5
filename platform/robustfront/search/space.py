"""Search spaces: from the keys and ranges of a YAML file to configurations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler
from optuna.trial import Trial

from robustfront.errors import SearchSpaceError
from robustfront.search.domains import Latent
from robustfront.search.entries import Entry, read_entries, requirements
from robustfront.search.study import new_study

Values = dict[str, Any]  # active keys and what they are set to; JSON-able


@dataclass(frozen=True)
class Space:
    """What a sweep may vary; each entry stands after those its condition names.

    `method.beta: {log_uniform: [0.5, 12], when: {method.type: trades}, points: 5}` is searched
    only beside the method it belongs to, and takes 5 values in a grid.
    """

    entries: tuple[Entry, ...]
    where: str

    @classmethod
    def parse(cls, raw: object, where: str) -> Space:
        """A space from the mapping of a YAML file.

        Raises:
            SearchSpaceError: with every problem of the file.
        """
        return cls(read_entries(raw, where), where)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that may be set."""
        return tuple(entry.key for entry in self.entries)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every latent parameter, conditions apart."""
        found: dict[str, BaseDistribution] = {}
        for entry in self.entries:
            found |= entry.domain.distributions(entry.key)
        return found

    def suggest(self, trial: Trial) -> Values:
        """The configuration of a trial: its active keys, resolved."""
        values: Values = {}
        for entry in self.entries:
            if entry.active(values):
                distributions = entry.domain.distributions(entry.key)
                latent = {name: _suggest(trial, name, d) for name, d in distributions.items()}
                values[entry.key] = entry.domain.value(entry.key, latent)
        return values

    def latent(self, values: Mapping[str, Any]) -> Latent:
        """Latent parameters from which `suggest` makes these values.

        Raises:
            ValueError: keys other than the active ones, or a value that is not in its domain.
        """
        active = [entry for entry in self.entries if entry.active(values)]
        if {entry.key for entry in active} != set(values):
            expected = ", ".join(entry.key for entry in active)
            raise ValueError(f"values for {', '.join(values)}; these need: {expected}")
        found: Latent = {}
        for entry in active:
            found |= entry.domain.latent(entry.key, values[entry.key])
        return found

    def grid(self) -> list[Latent]:
        """Latent parameters of a full factorial design, for `Study.enqueue_trial`.

        Integers without `points` take every value of their range.

        Raises:
            SearchSpaceError: continuous entries without `points`.
        """
        levels = {entry.key: entry.domain.levels() for entry in self.entries}
        finite = {key: some for key, some in levels.items() if some is not None}
        missing = [
            f"{key}: continuous; add `points: n`, the number of values in a grid"
            for key in levels
            if key not in finite
        ]
        if missing:
            raise SearchSpaceError(self.where, missing)
        return [self.latent(values) for values in _combinations(self.entries, finite)]

    def configurations(self) -> Iterator[Values] | None:
        """Every configuration, made one by one; None without an end."""
        values = self._finite()
        return None if values is None else _combinations(self.entries, values)

    def size(self) -> int | None:
        """How many configurations there are; None without an end."""
        values = self._finite()
        if values is None:
            return None
        # only what decides about other entries is enumerated; the rest is multiplied
        deciding = {key for entry in self.entries for key in entry.when}
        switches = [entry for entry in self.entries if entry.key in deciding]
        free = [entry for entry in self.entries if entry.key not in deciding]
        return sum(
            math.prod(len(values[entry.key]) for entry in free if entry.active(setting))
            for setting in _combinations(switches, values)
        )

    def probes(self) -> list[tuple[str, Values]]:
        """Each extreme value of each key, with what its conditions need; to check against fields.

        Pairs of the key and the values to set: the key's own and those of its conditions.
        """
        needed = requirements(self.entries)
        found = []
        for entry in self.entries:
            others = {key: allowed[0] for key, allowed in needed[entry.key].items()}
            found += [
                (entry.key, {**others, entry.key: value}) for value in entry.domain.extremes()
            ]
        return found

    def sample(self, rng_seed: int) -> Values:
        """One random configuration."""
        study = new_study(RandomSampler(seed=rng_seed % 2**32), objectives=1)
        return self.suggest(study.ask())

    def _finite(self) -> dict[str, Sequence[Any]] | None:
        values = {entry.key: entry.domain.values() for entry in self.entries}
        finite = {key: some for key, some in values.items() if some is not None}
        return finite if len(finite) == len(values) else None


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def _combinations(
    entries: Sequence[Entry], levels: Mapping[str, Sequence[Any]], values: Values | None = None
) -> Iterator[Values]:
    """Every assignment of levels to the entries that are active in it."""
    values = values or {}
    if not entries:
        yield values
        return
    entry, rest = entries[0], entries[1:]
    if not entry.active(values):
        yield from _combinations(rest, levels, values)
        return
    for level in levels[entry.key]:
        yield from _combinations(rest, levels, {**values, entry.key: level})
