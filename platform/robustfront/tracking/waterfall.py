"""Certified error of a smoothed classifier by radius, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from robustfront.evaluation.intervals import clopper_pearson
from robustfront.evaluation.records import Records
from robustfront.files import write_bytes
from robustfront.tracking.front import csv_of
from robustfront.tracking.front_view import COLOURS, INK, MUTED
from robustfront.tracking.picture import blank, plain, png

_POINTS = 101


def waterfall(records: Records, key: str) -> pd.DataFrame:
    """`radius` (of `<norm>/<certifier>`), `certified_error`, and its 95 % interval over examples,
    `low` and `high`.

    To the largest radius of any example; what is beyond says nothing about the model, but how many
    draws there were.
    """
    right = records.smoothed[key.partition("/")[2]] == records.label
    radii = np.where(right, records.radii[key], -1.0)
    places = np.linspace(0, max(float(radii.max(initial=0.0)), 1e-9), _POINTS)
    wrong = (radii[None] < places[:, None]).sum(axis=1)
    low, high = clopper_pearson(wrong, np.full(_POINTS, len(radii)))
    error = wrong / len(radii)
    return pd.DataFrame({"radius": places, "certified_error": error, "low": low, "high": high})


def render(tables: Mapping[str, pd.DataFrame], title: str) -> bytes:
    """The curves as PNG, each with its band and its end marked."""
    figure = blank(6.0, 3.8)
    axes = figure.subplots()
    for (name, table), colour in zip(tables.items(), COLOURS, strict=False):
        x = table["radius"]
        axes.fill_between(x, 100 * table["low"], 100 * table["high"], color=colour, alpha=0.15)
        axes.plot(
            x,
            100 * table["certified_error"],
            color=colour,
            label=name.replace("/", ", ").replace("_", " "),
        )
        axes.axvline(float(x.iloc[-1]), color=colour, lw=0.8, ls=":")
    axes.set_xlabel("radius (dotted: the largest that any example has)", color=INK, fontsize=9)
    axes.set_ylabel("certified error in %, 95 % over examples", color=INK, fontsize=9)
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    plain(axes)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, loc="left", fontsize=9, color=MUTED, parse_math=False)
    return png(figure)


def write(records: Records, folder: Path, split: str, title: str) -> None:
    """`waterfall-<split>.png`, and `waterfall-<split>-<verifier>.csv` for each that smooths."""
    tables = {key: waterfall(records, key) for key in records.radii}
    for key, table in tables.items():
        name = f"waterfall-{split}-{key.replace('/', '-')}.csv"
        write_bytes(folder / name, csv_of(table).encode())
    if tables:
        write_bytes(folder / f"waterfall-{split}.png", render(tables, title))
