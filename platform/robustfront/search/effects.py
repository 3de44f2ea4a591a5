"""What the factors of a design do to an error: effects, interactions, importance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from robustfront.ablation import model_matrix

Array = npt.NDArray[np.float64]
Levels = Mapping[str, str]

LEVEL = 0.95
_DRAWS = 2000
_MOST = 1e4  # beyond which as many degrees of freedom are all


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One error in the cells of a design.

    Args:
        names: the levels of each factor.
        cells: the levels of each cell that was run.
        values: of each cell, the error for each seed, (S,); empty where there is none.
        mistakes: of each cell, the share of its seeds with which each example is a mistake, (N,);
            None where only errors are known.
    """

    names: Mapping[str, Sequence[str]]
    cells: Sequence[Levels]
    values: Sequence[Array]
    mistakes: Sequence[Array] | None = None


class Effects:
    """The effects of factors on the mean error of their cells.

    The error of a cell is the mean plus main effects plus interactions of two factors, fitted by
    least squares to the cells there are, each with the same weight; without the interactions where
    a fraction cannot tell them. A full design's effects are differences of plain means.

    Intervals of 95 % are from 2,000 draws. A draw takes test examples with replacement, the same
    ones for all cells, and moves the mean of each cell by what its seeds leave open: normal, with a
    variance that is drawn, too. A cell has few seeds, so its variance is moderated: raised towards
    that of all cells, the more the more alike theirs are; one cell whose seeds are far apart, or
    where one has diverged, widens what it is part of and little else. With one seed intervals are
    about the examples alone.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), chapter 2, for
    examples; Smyth, Linear models and empirical Bayes methods (2004), sections 3 and 6, for
    variances; Westfall and Young, Resampling-Based Multiple Testing (1993), for `p_family`.

    Args:
        compared: the factor whose levels are compared with its first one in `gaps`.
    """

    def __init__(self, outcomes: Outcomes, compared: str) -> None:
        self.names, self.compared = outcomes.names, compared
        kept = [at for at, values in enumerate(outcomes.values) if len(values)]
        self.cells = [outcomes.cells[at] for at in kept]
        self._values = [outcomes.values[at] for at in kept]
        self._mistakes = outcomes.mistakes and [outcomes.mistakes[at] for at in kept]
        self.means = np.array([values.mean() for values in self._values])
        grid = [
            dict(zip(self.names, levels, strict=True))
            for levels in itertools.product(*self.names.values())
        ]
        self._grid = grid
        self.with_interactions = self._tells(_terms(self.names))
        self.known = self._tells(self._parts)
        here, there = (model_matrix(self.names, self._parts, cells) for cells in (self.cells, grid))
        # From the means of the cells to the fitted errors of the whole grid.
        self._fit = there @ np.linalg.pinv(here) if len(self.cells) else np.zeros((len(grid), 0))

    def _tells(self, parts: Sequence[tuple[str, ...]]) -> bool:
        """Whether the cells can tell the effects of some terms apart."""
        if not self.cells:
            return False
        matrix = model_matrix(self.names, parts, self.cells)
        return bool(np.linalg.matrix_rank(matrix) == matrix.shape[1])

    # -- tables

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Each level against the first of its factor, and differences of such differences.

        Columns: `term`, `levels`, `effect`, `low`, `high`, `p_family`: the probability of an effect
        as clear as this among all of the table, were there none.
        """
        rows = []
        for factor, (first, *others) in self.names.items():
            for level in others:
                row = self._mean({factor: level}) - self._mean({factor: first})
                rows.append((factor, f"{level} - {first}", row))
        for a, b in itertools.combinations(self.names, 2) if self.with_interactions else ():
            for at, to in itertools.product(self.names[a][1:], self.names[b][1:]):
                row = self._gap(a, at, {b: to}) - self._gap(a, at, {b: self.names[b][0]})
                rows.append((f"{a} x {b}", f"({at}) at ({to})", row))
        return self._table(["term", "levels"], rows)

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """The compared factor's levels against its first, by the levels of each other factor.

        Columns: `level`, `factor`, `at`, `effect`, `low`, `high`, `p_family`; `factor` is empty for
        the gap over all cells.
        """
        first, *others = self.names[self.compared]
        rows = []
        for level in others:
            rows.append((level, "", "", self._gap(self.compared, level, {})))
            for factor, levels in self.names.items() if self.with_interactions else ():
                if factor != self.compared:
                    for at in levels:
                        rows.append(
                            (level, factor, at, self._gap(self.compared, level, {factor: at}))
                        )
        return self._table(["level", "factor", "at"], rows)

    @cached_property
    def importance(self) -> pd.DataFrame:
        """Each term's share of the variance between cells, the part of noise subtracted.

        Columns: `term`, `share`, `low`, `high`. What the terms leave is `other`.
        """
        maps = {" x ".join(part): self._component(part) for part in self._parts if part}
        rest = self._rest()
        if rest is not None:
            maps["other"] = rest
        noise = {term: _mean_square_of_noise(map_, self._noise) for term, map_ in maps.items()}
        variance = np.stack(
            [np.square(map_ @ self.means).mean() - noise[term] for term, map_ in maps.items()]
        )
        # The noise of the data and that of the draw.
        drawn = np.stack(
            [
                np.square(self._draws @ map_.T).mean(axis=1) - 2 * noise[term]
                for term, map_ in maps.items()
            ]
        )
        low, high = np.quantile(_shares(drawn), _ends(), axis=1)
        shares = _shares(variance[:, None])[:, 0]
        # Shares at the end of their range are outside what the draws reach.
        return pd.DataFrame(
            {
                "term": list(maps),
                "share": shares,
                "low": np.minimum(low, shares),
                "high": np.maximum(high, shares),
            }
        )

    # -- linear functions of the means of the cells

    @property
    def _parts(self) -> list[tuple[str, ...]]:
        parts = _terms(self.names)
        return parts if self.with_interactions else [part for part in parts if len(part) < 2]

    def _mean(self, levels: Levels) -> Array:
        """The mean fitted error where some factors have some levels, as weights of the cells."""
        rows = [_within(cell, levels) for cell in self._grid]
        mean: Array = self._fit[rows].mean(axis=0)
        return mean

    def _gap(self, factor: str, level: str, where: Levels) -> Array:
        """A level against the first one, where other factors have some levels."""
        first = self.names[factor][0]
        return self._mean({**where, factor: level}) - self._mean({**where, factor: first})

    def _component(self, part: tuple[str, ...]) -> Array:
        """A term's deviations over the grid, (cells of the grid, cells)."""
        rows = []
        for cell in self._grid:
            row = self._mean({name: cell[name] for name in part})
            for lower in _terms({name: self.names[name] for name in part}):
                if len(lower) < len(part):
                    sign = -1 if (len(part) - len(lower)) % 2 else 1
                    row = row + sign * self._mean({name: cell[name] for name in lower})
            rows.append(row)
        return np.stack(rows)

    def _rest(self) -> Array | None:
        """What the fit leaves of the cells; None where it leaves nothing."""
        here = [
            next(at for at, cell in enumerate(self._grid) if cell == known) for known in self.cells
        ]
        rest: Array = np.eye(len(self.cells)) - self._fit[here]
        return rest if np.abs(rest).max() > 1e-8 else None

    # -- draws

    @cached_property
    def _noise(self) -> Array:
        """The variance of each cell's mean that its seeds leave."""
        variance, _ = moderated(self._values)
        return variance / [len(values) for values in self._values]

    @cached_property
    def _draws(self) -> Array:
        """Means of the cells in each bootstrap draw, (draws, cells)."""
        source = np.random.Generator(np.random.PCG64(0))
        drawn = np.repeat(self.means[None], _DRAWS, axis=0)
        if self._mistakes is not None:
            drawn = drawn + _of_examples(self._mistakes, source)
        return drawn + _of_seeds(self._values, source)

    def _table(self, heads: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
        """Rows whose last entry are weights of the cells, as effects with intervals."""
        weights: Array = np.stack([row[-1] for row in rows])
        effect = weights @ self.means
        moved = self._draws @ weights.T - effect
        half = np.quantile(np.abs(moved), LEVEL, axis=0)
        # In units in which each effect is as likely to be large: variances may be infinite.
        unit = half.clip(min=1e-300)
        largest = np.abs(moved / unit).max(axis=1)
        clearer = largest[:, None] >= np.abs(effect / unit)[None] - 1e-12
        names = {head: [row[at] for row in rows] for at, head in enumerate(heads)}
        found = {"effect": effect, "low": effect - half, "high": effect + half}
        return pd.DataFrame({**names, **found, "p_family": clearer.mean(axis=0)})


def _terms(names: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The mean, the factors, and the pairs of them."""
    pairs = itertools.combinations(names, 2)
    return [(), *((name,) for name in names), *pairs]


def _within(cell: Levels, levels: Levels) -> bool:
    return all(cell[name] == level for name, level in levels.items())


def moderated(values: Sequence[Array]) -> tuple[Array, float]:
    """The variance of one value in each cell, and how many values that of all cells counts for.

    (d s^2 + d_0 s_0^2) / (d + d_0), of a cell's own s^2 with d degrees of freedom and of s_0^2,
    which counts for d_0: fitted to how far log s^2 varies between cells beyond chance, infinite
    where it does not. 0 where no cell has two values that differ.

    Source: Smyth (2004), section 6.2.
    Deviates: where d_0 is finite an s^2 above that is kept, for a few cells that are unlike many
    others are not what the fit supposes.
    """
    freedom = np.array([len(own) - 1 for own in values], dtype=np.float64)
    squares = np.array([np.square(own - own.mean()).sum() for own in values])
    if not squares.any():
        return squares, math.inf
    pooled = squares.sum() / freedom.sum()
    some = freedom > 0
    d, own = freedom[some], squares[some] / freedom[some]
    logs = np.log(own.clip(min=1e-5 * pooled)) - digamma(d / 2) + np.log(d / 2)
    beyond = logs.var(ddof=1) - polygamma(1, d / 2).mean() if some.sum() > 1 else 0.0
    if beyond <= polygamma(1, _MOST):
        return np.full(len(values), pooled), math.inf
    half = brentq(lambda x: polygamma(1, x) - beyond, 1e-3, _MOST)
    prior = np.exp(logs.mean() + digamma(half) - np.log(half))
    variance = (squares + 2 * half * prior) / (freedom + 2 * half)
    variance[some] = np.maximum(variance[some], own)
    return variance, 2 * half


def _of_seeds(values: Sequence[Array], source: np.random.Generator) -> Array:
    """How far the means of the cells may be off by their few seeds, (draws, cells)."""
    variance, prior = moderated(values)
    counts = np.array([len(own) for own in values])
    freedom = max(int(counts.sum()) - len(counts), 1)
    # Of the variance that all cells share, then of each cell's own.
    shared = freedom / source.chisquare(freedom, (_DRAWS, 1))
    own = np.ones(len(counts))
    if math.isfinite(prior):
        d = counts - 1 + prior
        own = d / source.chisquare(d, (_DRAWS, len(d)))
    moved: Array = np.sqrt(shared * own * variance / counts)
    return moved * source.standard_normal((_DRAWS, len(counts)))


def _of_examples(mistakes: Sequence[Array], source: np.random.Generator) -> Array:
    """How the means of the cells move when test examples are drawn anew, (draws, cells)."""
    moved = np.zeros((_DRAWS, len(mistakes)))
    for n in dict.fromkeys(len(own) for own in mistakes):
        columns = [at for at, own in enumerate(mistakes) if len(own) == n]
        table = np.stack([mistakes[at] for at in columns])
        weights = source.multinomial(n, np.full(n, 1 / n), size=_DRAWS) / n
        moved[:, columns] = (weights - 1 / n) @ table.T
    return moved


def _mean_square_of_noise(map_: Array, noise: Array) -> float:
    return float((np.square(map_) @ noise).mean())


def _shares(variance: Array) -> Array:
    """Columns of variances as shares of their sum, nothing below 0."""
    clipped = variance.clip(min=0)
    shares: Array = clipped / clipped.sum(axis=0).clip(min=1e-300)
    return shares


def _ends() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2
