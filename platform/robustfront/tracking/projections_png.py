"""A front of three objectives, seen from three sides."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from itertools import combinations

from robustfront.tracking.front import Front
from robustfront.tracking.front_view import INK, MUTED, View
from robustfront.tracking.picture import blank, plain, png

_SIZE = (11.0, 4.2)  # inches


def render(front: Front) -> bytes:
    """The picture as PNG: one panel for each pair of objectives, members of the front outlined."""
    figure = blank(*_SIZE, dpi=200)
    panels = figure.subplots(1, 3)
    for axes, (x, y) in zip(panels, combinations(front.objectives, 2), strict=True):
        view = View(replace(front, x=x, y=y))
        axes.set_xlabel(view.x.label, color=INK, parse_math=False)
        axes.set_ylabel(view.y.label, color=INK, parse_math=False)
        plain(axes, size=9)
        for series in view.methods():
            for member, size, edge in ((False, 5.5, "white"), (True, 8, INK)):
                rows = series.rows[series.rows["pareto"] == member]
                label = series.label if member else "_"
                look = {"color": series.colour, "markersize": size, "markeredgecolor": edge}
                axes.plot(*view.points(rows).T, series.marker, label=label, **look)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5)
    title = textwrap.shorten(f"{front.name}: {front.subtitle}", 120)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=MUTED, parse_math=False)
    return png(figure)
