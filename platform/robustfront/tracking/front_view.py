"""What both pictures of a front show: which points, in which look, within which limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustfront.ledger import ENDS
from robustfront.search.pareto import attainment, staircase
from robustfront.tracking.front import Front, Plain, is_error, is_radius
from robustfront.tracking.front_labels import metric_label, parameter_lines, value_text

Points = NDArray[np.float64]

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#a6a6a6"
DOMINATED, BAND, BARS = "#f3f4f6", "#cfd9e6", "#8a8a8a"

# Okabe & Ito's palette for colour-blind readers, without yellow, which is too light for points
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NOTHING_YET = "no finished trial yet"
_SUSPECT = "suspect (gradient masking)"
# the same shapes for matplotlib and plotly
_SHAPES = (
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle-up"),
    ("D", "diamond"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
    ("p", "pentagon"),
)
_STATE_SHAPES = {
    "pruned": ("o", "circle-open"),
    "diverged": ("x", "x-thin-open"),
    "failed": ("^", "triangle-up-open"),
    "paused": ("D", "diamond-open"),
    "running": ("s", "square-open"),
}


@dataclass(frozen=True, eq=False)
class Series:
    """Trials that look the same."""

    label: str
    colour: str
    marker: str  # matplotlib's name of the shape
    symbol: str  # plotly's
    rows: pd.DataFrame
    filled: bool


@dataclass(frozen=True)
class Axis:
    """One metric in the unit it is shown in: errors in per cent."""

    metric: str
    scale: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """Its title."""
        return metric_label(self.metric) + (" (%)" if is_error(self.metric) else "")

    @property
    def sign(self) -> float:
        """-1 where more is better."""
        return -1.0 if is_radius(self.metric) else 1.0

    @property
    def end(self) -> float:
        """Where lines and areas that go on for ever are cut: outside, on the worse side."""
        beyond = self.high - self.low
        return self.low - beyond if self.sign < 0 else max(self.high, self.scale) + beyond

    def text(self, row: Mapping[str, Plain]) -> str:
        """A trial's value with its interval: `12.5% (9.3–16.4%)`."""
        value, low, high = (row.get(self.metric + end) for end in ("", "_low", "_high"))
        if not is_error(self.metric):
            return value_text(value)
        if low is None or high is None:
            return f"{value:.1%}"
        return f"{value:.1%} ({f'{low:.1%}'.rstrip('%')}–{high:.1%})"


@dataclass(frozen=True, eq=False)
class View:
    """A front as it is drawn; coordinates are in the unit of the axes."""

    front: Front

    @cached_property
    def x(self) -> Axis:
        """Across."""
        return self._axis(self.front.x, 0)

    @cached_property
    def y(self) -> Axis:
        """Upwards."""
        return self._axis(self.front.y, 1)

    @property
    def finished(self) -> pd.DataFrame:
        """The trials that compete for the front."""
        return self.front.table[self.front.table["state"] == "finished"]

    def points(self, rows: pd.DataFrame) -> Points:
        """(x, y) of some trials, (N, 2)."""
        return self.front.points(rows) * [self.x.scale, self.y.scale]

    def bars(self, metric: str) -> Points:
        """Ends of the members' confidence intervals in one metric, (N, 2); (0, 2) without any."""
        columns = [f"{metric}_low", f"{metric}_high"]
        if columns[0] not in self.front.members:
            return np.empty((0, 2))
        return 100 * self.front.members[columns].to_numpy(dtype=float)

    def methods(self) -> list[Series]:
        """The finished trials, by method where methods differ in the table."""
        rows = self.finished
        if "method.type" not in rows:
            return [Series("finished", COLOURS[0], *_SHAPES[0], rows, True)] if len(rows) else []
        names = rows["method.type"].astype(str)
        return [
            Series(
                name,
                COLOURS[index % len(COLOURS)],
                *_SHAPES[index % len(_SHAPES)],
                rows[names == name],
                filled=True,
            )
            for index, name in enumerate(sorted(set(names)))
        ]

    def curves(self) -> list[tuple[Series, Points]]:
        """Errors of models at several weights, for each finished trial that has them."""
        found = []
        for series in self.methods():
            for _, row in series.rows.iterrows():
                values = row.dropna()
                weights = [
                    name.removeprefix(f"{self.x.metric}/weight_")
                    for name in values.index.astype(str)
                    if name.startswith(f"{self.x.metric}/weight_")
                    and not name.endswith(("_low", "_high"))
                ]
                ends = [f"/weight_{weight}" for weight in sorted(weights, key=float)]
                known = [end for end in ends if self.y.metric + end in values]
                points = [
                    [values[axis.metric + end] * axis.scale for axis in self.axes] for end in known
                ]
                if points:
                    found.append((series, np.array(points, dtype=float)))
        return found

    def others(self) -> list[Series]:
        """The trials that are no candidates, by state."""
        table = self.front.table
        return [
            Series(state, FAINT, *shapes, table[table["state"] == state], filled=False)
            for state, shapes in _STATE_SHAPES.items()
            if (table["state"] == state).any()
        ]

    @cached_property
    def outline(self) -> Points:
        """The front's staircase, (M, 2), from beyond the upper to beyond the right end."""
        return self._prolonged(self.points(self.front.members))

    def attained(self, level: float) -> Points:
        """The staircase that this share of the seeds attain, prolonged as `outline` is."""
        groups = [self.points(rows) * self._signs for _, rows in self.finished.groupby("seed")]
        return self._prolonged(attainment(groups, level) * self._signs)

    def above(self, outline: Points) -> Points:
        """The polygon of what lies behind an outline."""
        return np.vstack([outline, [self.x.end, self.y.end]])

    def between(self, best: Points, worst: Points) -> Points:
        """The polygon between two outlines."""
        return np.vstack([best, worst[::-1]])

    @property
    def seeds(self) -> int:
        """Different seeds among the finished trials."""
        return int(self.finished["seed"].nunique())

    @property
    def summary(self) -> str:
        """Hypervolume and trials by state, in one line."""
        counts = {state: self.front.count(state) for state in (*ENDS, "paused", "running")}
        states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        total = len(self.front.trials)
        trials = f"{total} trial{'s' if total != 1 else ''}" + (f": {states}" if states else "")
        if self.finished.empty or not (is_error(self.front.x) and is_error(self.front.y)):
            return trials
        return f"hypervolume {self.front.hypervolume:.4f} · {trials}"

    def inside(self, rows: pd.DataFrame) -> NDArray[np.bool_]:
        """Which of some trials lie within the axes, (N,)."""
        low, high = [self.x.low, self.y.low], [self.x.high, self.y.high]
        points = self.points(rows)
        return np.asarray(((points >= low) & (points <= high)).all(axis=1))

    @cached_property
    def hidden(self) -> pd.DataFrame:
        """The trials outside the picture: beyond the axes, or without a result."""
        table = self.front.table
        shown = table["trial"][self.inside(table)]
        return self.front.every[~self.front.every["trial"].isin(shown)]

    @property
    def note(self) -> str:
        """What the picture leaves out, and which of its points to doubt; may be empty."""
        states = self.hidden["state"]
        measured = self.hidden["trial"].isin(self.front.table["trial"])
        left_out = [
            _counted(states[measured], "beyond the axes"),
            _counted(states[~measured & (states != "running")], "without a result"),
        ]
        parts = ["not shown: " + ", ".join(filter(None, left_out))] if any(left_out) else []
        return " · ".join([*parts, *self._suspects()])

    def hover(self, row: Mapping[str, Plain]) -> list[str]:
        """What a pointed-at trial tells, line by line."""
        lines = [f"trial {row['trial']} · #{row['number']} · seed {row['seed']}", str(row["state"])]
        if row["pareto"]:
            lines[1] += ", on the front"
        if isinstance(chance := row.get("pareto_probability"), float):
            lines[1] += f" (probability {chance:.2f})"
        lines += [f"{metric_label(axis.metric)} {axis.text(row)}" for axis in self.axes]
        if row.get("suspect") is True:
            lines.append(_SUSPECT)
        return lines + parameter_lines(row, self.front.parameters)

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Across and upwards."""
        return self.x, self.y

    def _suspects(self) -> list[str]:
        table = self.front.table
        count = int(table["suspect"].eq(True).sum()) if "suspect" in table else 0
        return [f"{count} {_SUSPECT}"] if count else []

    @property
    def _signs(self) -> list[float]:
        return [self.x.sign, self.y.sign]

    def _prolonged(self, corners: Points) -> Points:
        steps = staircase(corners * self._signs) * self._signs
        return np.vstack([[steps[0, 0], self.y.end], steps, [self.x.end, steps[-1, 1]]])

    def _axis(self, metric: str, index: int) -> Axis:
        scale = 100.0 if is_error(metric) else 1.0
        values = self.front.points(self.finished)[:, index] * scale
        needed = self.front.points(self.front.members)[:, index] * scale
        if not len(values):
            return Axis(metric, scale, -0.02 * scale, 1.02 * scale)
        ends = self.bars(metric).ravel()
        low, high = _limits(values, np.concatenate([needed, ends[np.isfinite(ends)]]))
        if is_error(metric):
            edge = 0.02 * (high - low)
            low, high = max(low, -edge), min(high, 100 + edge)
        return Axis(metric, scale, low, high)


def _limits(values: Points, needed: Points) -> tuple[float, float]:
    """A range with some air around all that is needed and all values, far outliers above apart.

    Collapsed trials (every prediction the same class) finish far from the front and would squeeze
    it. Far means beyond Tukey's outer fence, three interquartile ranges above the upper quartile;
    outliers are left out where they would more than double the range.
    """
    lower, upper = np.percentile(values, [25, 75])
    near = values[values <= upper + 3 * (upper - lower)]
    low = min(values.min(), needed.min())
    high, farthest = max(near.max(), needed.max()), values.max()
    if farthest - low <= 2 * (high - low):
        high = max(high, farthest)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return float(low - air), float(high + air)


def _counted(states: pd.Series[str], where: str) -> str:
    counts = Counter(states)
    return f"{', '.join(f'{n} {state}' for state, n in counts.items())} {where}" if counts else ""
