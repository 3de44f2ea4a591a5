"""Factorial designs: named factors, the cells of their levels, and what is tuned in each cell."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PlainSerializer, PositiveInt, model_validator
from pydantic.functional_validators import BeforeValidator

from robustfront.errors import nearest
from robustfront.registry import Component
from robustfront.threats import eps_text, parse_eps

Settings = dict[str, Any]  # by dotted key
_BY = "by"


def _one_part(value: Any) -> Fraction:
    share = parse_eps(value)
    if share.numerator != 1:
        raise ValueError(f"1, 1/2, 1/3, ... of the cells, got {value!r}")
    return share


Part = Annotated[Fraction, BeforeValidator(_one_part), PlainSerializer(eps_text, return_type=str)]


@dataclass(frozen=True)
class Cell:
    """One combination of levels.

    Args:
        levels: of each factor, by name.
        settings: what they set.
    """

    levels: Mapping[str, str]
    settings: Settings

    @property
    def name(self) -> str:
        """Levels on one line."""
        return ", ".join(f"{factor} {level}" for factor, level in self.levels.items())


class Ablation(Component):
    """A factorial design in place of a search: every combination of levels is a cell.

    A factor is a list of values of the setting it is named after, `method.type: [pgd_at, ibp]`, or
    a name with named levels, each of which sets several things: `shape: {box: {threat.norm: linf},
    ball: {threat.norm: l2}}`. A value that depends on another factor says on which:
    `threat.eps: {by: shape, box: 1/10, ball: 1/2}`.

    In each cell the nuisance parameters are tuned with the same number of trials and the first
    seed, on the validation split; what is best is trained with the other seeds too, and measured
    on the test split.

    Args:
        nuisance: entries of a search space; `when` may name a factor's setting.
        fraction: of the cells, those whose levels' places sum to a multiple of its denominator: for
            factors of two levels the half fraction of the highest resolution.
        tune_for: the objective; None: the last one.
        compare: the factor whose levels are compared with its first one; None: the first factor.
    """

    factors: Annotated[dict[str, list[Any] | dict[str, Settings]], Field(min_length=1)]
    nuisance: dict[str, Any] = {}
    trials_per_cell: PositiveInt = 1
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2)
    fraction: Part = Fraction(1)
    tune_for: str | None = None
    compare: str | None = None

    @model_validator(mode="after")
    def _is_a_design(self) -> Self:
        problems = [problem for name in self.factors for problem in self._problems(name)]
        if self.compare is not None and self.compare not in self.factors:
            found = f"{self.compare!r}{nearest(self.compare, [*self.factors])}"
            problems.append(f"compare: got {found}")
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds: one is given twice")
        if not problems:
            problems = self._clashes()
        if not problems and self.rank() < 1 + sum(len(names) - 1 for names in self.names.values()):
            problems.append("fraction: too few cells are left to tell the factors' effects apart")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def names(self) -> dict[str, list[str]]:
        """The levels of each factor."""
        return {factor: [_text(level) for level in given] for factor, given in self.factors.items()}

    @property
    def compared(self) -> str:
        """The factor whose levels are compared with its first one."""
        return self.compare or next(iter(self.factors))

    def cells(self) -> list[Cell]:
        """The cells that are run, the last factor changing fastest."""
        names = self.names
        return [
            Cell(levels := dict(zip(names, chosen, strict=True)), self._settings(levels))
            for chosen, places in zip(
                itertools.product(*names.values()),
                itertools.product(*(range(len(known)) for known in names.values())),
                strict=True,
            )
            if sum(places) % self.fraction.denominator == 0
        ]

    def nuisance_in(self, cell: Cell) -> dict[str, Any]:
        """The search space of a cell: conditions on the factors' settings are decided."""
        entries = {}
        for key, entry in self.nuisance.items():
            when = entry.get("when") if isinstance(entry, Mapping) else None
            if not isinstance(when, Mapping):
                entries[key] = entry
                continue
            if all(
                cell.settings[name] in (wanted if isinstance(wanted, list) else [wanted])
                for name, wanted in when.items()
                if name in cell.settings
            ):
                left = {name: some for name, some in when.items() if name not in cell.settings}
                entries[key] = {k: v for k, v in entry.items() if k != "when"}
                if left:
                    entries[key]["when"] = left
        return entries

    def rank(self) -> int:
        """How many numbers, the mean and main effects among them, the cells can tell."""
        levels = [cell.levels for cell in self.cells()]
        terms = [(), *((factor,) for factor in self.factors)]
        return int(np.linalg.matrix_rank(model_matrix(self.names, terms, levels)))

    def _settings(self, levels: Mapping[str, str]) -> Settings:
        found: Settings = {}
        for factor, given in self.factors.items():
            if isinstance(given, list):
                chosen = {factor: next(v for v in given if _text(v) == levels[factor])}
            else:
                chosen = given[levels[factor]]
            for key, value in chosen.items():
                if isinstance(value, dict) and _BY in value:
                    value = value[levels[value[_BY]]]
                found[key] = value
        return found

    def _problems(self, factor: str) -> list[str]:
        given, where = self.factors[factor], f"factors.{factor}"
        if len(given) < 2:
            return [f"{where}: a factor has two levels or more"]
        if isinstance(given, list):
            odd = [v for v in given if not isinstance(v, str | int | float | bool | None)]
            problems = [f"{where}: a level is a plain value, got {value!r}" for value in odd]
            if len(set(map(_text, given))) < len(given):
                problems.append(f"{where}: one level is given twice")
            return problems
        return [
            f"{where}.{level}.{key}: {problem}"
            for level, settings in given.items()
            for key, value in settings.items()
            if isinstance(value, dict) and _BY in value and (problem := self._wrong_by(value))
        ]

    def _wrong_by(self, value: Mapping[str, Any]) -> str:
        other = value[_BY]
        if not isinstance(other, str) or other not in self.factors:
            return f"by: got {other!r}{nearest(other, [*self.factors])}"
        wanted, found = {*self.names[other]}, {*value} - {_BY}
        if wanted == found:
            return ""
        return f"a value for each level of {other} ({', '.join(self.names[other])}) and no other"

    def _clashes(self) -> list[str]:
        """Settings of two factors, or of a factor and the nuisance."""
        owners: dict[str, str] = dict.fromkeys(self.nuisance, "nuisance")
        problems: dict[str, None] = {}
        for factor, given in self.factors.items():
            keys = [factor] if isinstance(given, list) else [k for s in given.values() for k in s]
            for key in keys:
                if owners.setdefault(key, factor) != factor:
                    problems[f"{key}: set by {owners[key]} and by {factor}"] = None
        return list(problems)


def model_matrix(
    names: Mapping[str, Sequence[str]],
    terms: Sequence[tuple[str, ...]],
    cells: Sequence[Mapping[str, str]],
) -> npt.NDArray[np.float64]:
    """A column for each combination of levels, other than first ones, of each term's factors.

    Args:
        names: the levels of each factor.
        terms: the factors of each; () is the mean.
        cells: the level of each factor.
    """
    columns = [
        [float(all(cell[f] == at for f, at in zip(term, levels, strict=True))) for cell in cells]
        for term in terms
        for levels in itertools.product(*(names[factor][1:] for factor in term))
    ]
    return np.array(columns).T


def _text(level: Any) -> str:
    """A level as a name: as YAML writes it."""
    return json.dumps(level) if level is None or isinstance(level, bool) else str(level)
