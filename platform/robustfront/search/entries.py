"""The entries of a search space: which key is searched, over which domain, and when."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from robustfront.errors import SearchSpaceError, nearest
from robustfront.search.domains import DISTRIBUTIONS, Domain

_OPTIONS = ("when", "points")
_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


@dataclass(frozen=True)
class Entry:
    """One key of a search space.

    Args:
        when: the values other keys must have for this one to be searched, all of them.
    """

    key: str
    domain: Domain
    when: Mapping[str, tuple[Any, ...]]

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether it is searched beside these values of the entries before it."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())


def read_entries(raw: object, where: str) -> tuple[Entry, ...]:
    """The entries of a search space, each after those it depends on.

    The order depends on the keys only, not on their order in the file.

    Raises:
        SearchSpaceError: with every problem.
    """
    if not isinstance(raw, Mapping):
        raise SearchSpaceError(where, [f"a search space is a mapping of keys, got {raw!r}"])
    problems: list[str] = []
    domains = {key: _domain(key, spec, problems) for key, spec in raw.items()}
    conditions = {key: _conditions(key, raw[key], domains, problems) for key in domains}
    order = _order(conditions, problems)
    entries = tuple(
        Entry(key, domain, conditions[key]) for key in order if (domain := domains[key]) is not None
    )
    if not problems:
        for key, needed in requirements(entries).items():
            problems += [
                f"{key}.when: can never hold, nothing is left for {other}"
                for other, allowed in needed.items()
                if not allowed
            ]
    if problems:
        raise SearchSpaceError(where, problems)
    return entries


def requirements(entries: Sequence[Entry]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """For each key, what all keys it depends on, directly or not, must be for it to be searched."""
    needed: dict[str, dict[str, tuple[Any, ...]]] = {}
    for entry in entries:
        merged: dict[str, tuple[Any, ...]] = {}
        for demands in (*(needed[key] for key in entry.when), entry.when):
            for key, allowed in demands.items():
                merged[key] = tuple(v for v in merged.get(key, allowed) if v in allowed)
        needed[entry.key] = merged
    return needed


def _domain(key: object, spec: object, problems: list[str]) -> Domain | None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        problems.append(f"{key}: a key is a dotted path such as method.beta, got {key!r}")
        return None
    if not isinstance(spec, Mapping):
        problems.append(f"{key}: write a mapping such as {{choice: [...]}}, got {spec!r}")
        return None
    unknown = [name for name in spec if name not in (*DISTRIBUTIONS, *_OPTIONS)]
    for name in unknown:
        hint = nearest(name, [*DISTRIBUTIONS, *_OPTIONS])
        problems.append(f"{key}: no distribution is named {name!r}{hint}")
    found = [name for name in DISTRIBUTIONS if name in spec]
    if len(found) != 1:
        if not unknown:
            count = " and ".join(found) or "none"
            allowed = ", ".join(DISTRIBUTIONS)
            problems.append(f"{key}: write exactly one distribution, got {count} ({allowed})")
        return None
    points = _points(key, spec, problems)
    try:
        return DISTRIBUTIONS[found[0]](spec[found[0]], points)
    except ValueError as error:
        problems.append(f"{key}.{found[0]}: {error}")
        return None


def _points(key: str, spec: Mapping[str, Any], problems: list[str]) -> int | None:
    points = spec.get("points")
    if points is None:
        return None
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        problems.append(f"{key}.points: an integer of at least 2, got {points!r}")
        return None
    return points


def _conditions(
    key: str, spec: object, domains: Mapping[str, Domain | None], problems: list[str]
) -> dict[str, tuple[Any, ...]]:
    when = spec.get("when", {}) if isinstance(spec, Mapping) else {}
    if not isinstance(when, Mapping):
        problems.append(f"{key}.when: a mapping of other keys to their values, got {when!r}")
        return {}
    conditions = {}
    for other, wanted in when.items():
        if other not in domains:
            hint = nearest(other, sorted(str(known) for known in domains if known != key))
            problems.append(f"{key}.when: no entry is named {other!r}{hint}")
            continue
        domain, values = domains[other], wanted if isinstance(wanted, list) else [wanted]
        if not values:
            problems.append(f"{key}.when: {other} has an empty list of values")
        try:
            read = tuple(domain.condition(value) for value in values) if domain else ()
        except ValueError as error:
            problems.append(f"{key}.when: {other} is {error}")
            continue
        conditions[other] = read
    return conditions


def _order(
    conditions: Mapping[str, Mapping[str, tuple[Any, ...]]], problems: list[str]
) -> Sequence[str]:
    graph = {key: sorted(conditions[key], key=str) for key in sorted(conditions, key=str)}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        cycle = error.args[1]
        problems.append(f"{cycle[0]}.when: conditions go in a circle: {' -> '.join(cycle)}")
        return []
