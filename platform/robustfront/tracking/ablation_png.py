"""The pictures of an ablation: gaps by level, and all effects with their intervals."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustfront.search.effects import Effects
from robustfront.tracking.ablation_view import AblationView
from robustfront.tracking.front_view import COLOURS, FAINT, INK, MUTED
from robustfront.tracking.picture import blank, plain, png

_PANEL = (3.6, 2.7)  # inches


def gaps(view: AblationView) -> bytes:
    """The compared factor's levels against its first one: a row for each error, a column for each
    other factor."""
    some = next(iter(view.effects.values()), None)
    factors = [] if some is None else [name for name in some.names if name != some.compared]
    rows, columns = max(len(view.effects), 1), max(len(factors), 1)
    figure, panels = _figure(rows, columns)
    for row, (error, effects) in zip(panels, view.effects.items(), strict=False):
        for axes, factor in zip(row, factors or [""], strict=True):
            _gaps(axes, effects, factor)
            if factor == (factors or [""])[0]:
                label = f"gap in {error.replace('_', ' ')},\npoints"
                axes.set_ylabel(label, color=INK, fontsize=9, parse_math=False)
    if some is not None:
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=5, frameon=False, fontsize=8)
        first = some.names[some.compared][0]
        _title(figure, view, f"{some.compared} against {first}, 95 % intervals")
    return png(figure)


def effects(view: AblationView) -> bytes:
    """Every effect with its interval, a column for each error."""
    count = max((len(e.effects) for e in view.effects.values()), default=1)
    figure = blank(3.4 * len(view.effects) + 2.6, 0.26 * count + 1.4)
    panels = figure.subplots(1, len(view.effects), squeeze=False, sharey=True)[0]
    for axes, (error, analysed) in zip(panels, view.effects.items(), strict=True):
        table = analysed.effects
        places = np.arange(len(table))[::-1]
        clear = (table["p_family"] < 0.05).to_numpy()
        for chosen, colour in ((clear, COLOURS[1]), (~clear, MUTED)):
            part, at = table[chosen], places[chosen]
            axes.errorbar(
                100 * part["effect"], at, xerr=_arms(part), fmt="o", ms=4, color=colour, lw=1.2
            )
        names = [f"{row.term}: {row.levels}" for row in table.itertuples()]
        axes.set_yticks(places, names, fontsize=7.5, color=INK, parse_math=False)
        axes.axvline(0, color=FAINT, lw=0.8)
        axes.set_xlabel(f"{error.replace('_', ' ')}, points", color=INK, fontsize=9)
        plain(axes)
    _title(figure, view, "effects with 95 % intervals; coloured: p < 0.05 among all of the table")
    return png(figure)


def _gaps(axes: Axes, effects: Effects, factor: str) -> None:
    table = effects.gaps[effects.gaps["factor"] == factor]
    levels = list(effects.names[factor]) if factor else [""]
    others = list(effects.names[effects.compared][1:])
    for at, level in enumerate(others):
        part = table[table["level"] == level].set_index("at").reindex(levels)
        # Side by side, so that intervals stay apart.
        places = np.arange(len(levels)) + (at - (len(others) - 1) / 2) * 0.12
        axes.errorbar(
            places,
            100 * part["effect"],
            yerr=_arms(part),
            color=COLOURS[at % len(COLOURS)],
            marker="o",
            ms=4,
            lw=1.2,
            capsize=2,
            label=level,
        )
    axes.axhline(0, color=FAINT, lw=0.8)
    axes.set_xticks(range(len(levels)), levels, fontsize=8, color=MUTED, parse_math=False)
    axes.set_xlabel(factor, color=INK, fontsize=9, parse_math=False)
    axes.set_xlim(-0.5, len(levels) - 0.5)
    plain(axes)


def _arms(part: pd.DataFrame) -> np.ndarray:
    """Lengths of the intervals to both sides, in points."""
    return 100 * np.stack([part["effect"] - part["low"], part["high"] - part["effect"]])


def _figure(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    width, height = _PANEL
    figure = blank(max(width * columns, 5.5), height * rows + 0.9)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _title(figure: Figure, view: AblationView, what: str) -> None:
    text = "\n".join(textwrap.wrap(f"{view.name}: {what} ({view.subtitle})", 90))
    figure.suptitle(text, x=0.01, ha="left", fontsize=9, color=MUTED, parse_math=False)
