"""The Pareto front of a sweep: who is on it, as table and record; `write` adds the pictures."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustfront.evaluation.intervals import clopper_pearson
from robustfront.evaluation.metrics import TRANSFER
from robustfront.files import write_bytes
from robustfront.ledger import ENDS
from robustfront.search.pareto import hypervolume, non_dominated

_IDENTITY = ("trial", "number", "seed", "state")
_AUDIT = "val/audit/"

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def is_error(metric: str) -> bool:
    """Whether a metric is a share of examples: `robust_error`, `test/robust_error/union/apgd`."""
    return any(part.endswith("_error") for part in metric.split("/"))


def is_radius(metric: str) -> bool:
    """Whether more of a metric is better: `val/average_certified_radius/l2/smoothing`."""
    return "average_certified_radius" in metric.split("/")


@dataclass(frozen=True, eq=False)
class Front:
    """The trials of a sweep, seen in two metrics; errors are minimised, radii maximised.

    Args:
        name: the sweep.
        x: metric across, usually `standard_error`.
        y: metric upwards, usually `robust_error`.
        trials: one row per trial: `trial`, `number`, `seed`, `state`, one column per metric and per
            resolved searched parameter. `val_examples` counts the examples of the metrics,
            `<split>_examples` those of the metrics named `<split>/...`.
        parameters: the columns that are searched parameters.
        data: what the trials are trained on.
        objectives: what decides who is on the front, where that is more than x and y.
        chances: by number of the configuration, the probability that it is on the front.
        problems: what could not be read, and so is missing from them.
        names: what short names of metrics stand for: `val/standard_error`, ...
    """

    name: str
    x: str
    y: str
    trials: pd.DataFrame
    parameters: tuple[str, ...]
    data: str
    objectives: tuple[str, ...] = ()
    chances: Mapping[int, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def subtitle(self) -> str:
        """What is shown was measured on what: "digits, linf 0.1, pgd20, val split"."""
        shown = dict.fromkeys([self.x, self.y, *self.objectives])
        long = [self.names.get(metric, metric) for metric in shown]
        by = [metric.split("/")[2:] for metric in long if is_error(metric) or is_radius(metric)]
        threats = dict.fromkeys(name.replace("_", " ") for parts in by for name in parts[:-1])
        evaluators = dict.fromkeys(name for parts in by for name in parts[-1:])
        splits = dict.fromkeys(metric.split("/")[0] for metric in long if "/" in metric)
        split = [f"{' and '.join(splits)} split"] if splits else []
        return ", ".join([self.data, *threats, *evaluators, *split])

    @cached_property
    def every(self) -> pd.DataFrame:
        """All trials, also where a sweep has no result yet: with the columns of both metrics."""
        columns = dict.fromkeys(
            [*_IDENTITY, *self.trials.columns, self.x, self.y, *self.objectives]
        )
        return self.trials.reset_index(drop=True).reindex(columns=list(columns))

    @cached_property
    def table(self) -> pd.DataFrame:
        """The trials where both metrics are finite, with `pareto` and each error's 95 % interval.

        An interval stands in `<metric>_low` and `<metric>_high`, after its metric.
        """
        measured = np.asarray(np.isfinite(self.points(self.every)).all(axis=1))
        table = self.every.loc[measured].reset_index(drop=True)
        finished = (table["state"] == "finished").to_numpy()
        member = np.zeros(len(table), dtype=bool)
        member[finished] = non_dominated(self._ranked(table[finished]))
        table.insert(len(_IDENTITY), "pareto", member)
        if self.chances:
            chances = table["number"].map(dict(self.chances))
            table.insert(len(_IDENTITY) + 1, "pareto_probability", chances)
        for column in table.columns.difference(list(self.parameters)):
            if is_error(column):
                _insert_interval(table, column)
            elif column.endswith("_examples"):
                table[column] = table[column].astype("Int64")
        return table

    @cached_property
    def members(self) -> pd.DataFrame:
        """The finished trials that no other finished trial dominates, by growing x."""
        return self.table[self.table["pareto"]].sort_values([self.x, self.y, "number"])

    @cached_property
    def hypervolume(self) -> float:
        """Volume between the front and `reference`; 0 without a finished trial."""
        return hypervolume(self._ranked(self.members), self.reference)

    @property
    def ranked_by(self) -> list[str]:
        """The metrics that decide who is on the front."""
        return list(self.objectives or (self.x, self.y))

    @property
    def reference(self) -> list[float]:
        """The worst of these: errors of 1, radii of 0."""
        return [0.0 if is_radius(name) else 1.0 for name in self.ranked_by]

    @property
    def diverged_share(self) -> float:
        """Diverged trials among those that ended; 0 before the first did."""
        ended = [self.count(state) for state in ENDS]
        return self.count("diverged") / sum(ended) if sum(ended) else 0.0

    def count(self, state: str) -> int:
        """Trials in a state."""
        return int((self.every["state"] == state).sum())

    def points(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """(x, y) of some trials, (N, 2); NaN where a metric is missing."""
        return rows[[self.x, self.y]].to_numpy(dtype=float, na_value=np.nan)

    def _ranked(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        signs = [-1.0 if is_radius(name) else 1.0 for name in self.ranked_by]
        return rows[self.ranked_by].to_numpy(dtype=float, na_value=np.nan) * signs

    @cached_property
    def of_radii(self) -> Front | None:
        """The same across, the average certified radius upwards; None where nothing was smoothed.

        Other trials may be on it.
        """
        known = [n for n in self.every.columns if n.startswith("val/average_certified_radius/")]
        return replace(self, y=known[0], objectives=(), chances={}) if known else None

    @cached_property
    def audits(self) -> pd.DataFrame:
        """What the methods' theory says of finished trials, if anything, by their parameters."""
        names = [name for name in self.every.columns if name.startswith(_AUDIT)]
        known = [*_IDENTITY[:3], *self.parameters, *names]
        rows = self.every.loc[self.every["state"] == "finished", known]
        rows = rows.dropna(subset=names, how="all") if names else rows[:0]
        short = {name: name.removeprefix(_AUDIT) for name in names}
        return rows.sort_values([*self.parameters, "seed"]).rename(columns=short)

    @cached_property
    def transfer(self) -> pd.DataFrame:
        """How often examples of one member fool another: threat, source, target, error; may be
        empty."""
        rows = [
            {"threat": threat, "source": source, "target": trial, "error": error}
            for name in self.every.columns
            if name.startswith(TRANSFER)
            for threat, source in [name.removeprefix(TRANSFER).split("/")]
            for trial, error in zip(self.members["trial"], self.members[name], strict=True)
            if source in {*self.members["trial"]} and pd.notna(error)
        ]
        return pd.DataFrame(rows, columns=["threat", "source", "target", "error"])

    def to_csv(self) -> str:
        """The table, errors in full precision, an empty cell where there is no value."""
        return csv_of(self.table)

    def to_json(self) -> str:
        """The table and the front as JSON, null where there is no value."""
        record = {
            "sweep": self.name,
            "measured": self.subtitle,
            "objectives": self.ranked_by,
            "reference": self.reference,
            "hypervolume": self.hypervolume,
            "diverged_share": self.diverged_share,
            "front": plain_rows(self.members),
            "trials": plain_rows(self.table),
        }
        return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """Writes `pareto.csv`, `.json`, `.png` and `.html`, each whole or not at all; `audit.csv`
        where a method's theory says something, `transfer.csv` and `.png` where it is known how far
        adversarial examples carry over, `projections.png` where there are three objectives,
        `radius.csv` and `.png` where there are certified radii."""
        from robustfront.tracking import front_html, front_png, projections_png, transfer_png

        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "pareto.csv", self.to_csv().encode())
        write_bytes(folder / "pareto.json", self.to_json().encode())
        write_bytes(folder / "pareto.png", front_png.render(self))
        write_bytes(folder / "pareto.html", front_html.render(self).encode())
        if len(self.objectives) == 3 and not self.members.empty:
            write_bytes(folder / "projections.png", projections_png.render(self))
        if self.of_radii is not None:
            write_bytes(folder / "radius.csv", self.of_radii.to_csv().encode())
            write_bytes(folder / "radius.png", front_png.render(self.of_radii))
        if not self.audits.empty:
            write_bytes(folder / "audit.csv", csv_of(self.audits).encode())
        if not self.transfer.empty:
            write_bytes(folder / "transfer.csv", csv_of(self.transfer).encode())
            write_bytes(folder / "transfer.png", transfer_png.render(self))


def _insert_interval(table: pd.DataFrame, metric: str) -> None:
    split = metric.split("/")[0] if "/" in metric else "val"
    if f"{split}_examples" not in table or table[f"{split}_examples"].isna().all():
        return
    n = table[f"{split}_examples"].to_numpy(dtype=float, na_value=np.nan)
    error = table[metric].to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(n) & np.isfinite(error)
    bounds = np.full((2, len(table)), np.nan)
    bounds[:, known] = clopper_pearson(np.rint(error[known] * n[known]), n[known])
    place = list(table.columns).index(metric) + 1
    table.insert(place, f"{metric}_high", bounds[1])
    table.insert(place, f"{metric}_low", bounds[0])


def csv_of(table: pd.DataFrame) -> str:
    """A table as text, numbers in full precision, an empty cell where there is no value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    for row in plain_rows(table):
        writer.writerow(
            json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in row.values()
        )
    return out.getvalue()


def plain_rows(table: pd.DataFrame) -> list[dict[str, Plain]]:
    """The rows as JSON values, None for what is missing or not finite."""
    rows = table.itertuples(index=False, name=None)
    return [dict(zip(table.columns, map(_plain, row), strict=True)) for row in rows]


def _plain(value: object) -> Plain:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
