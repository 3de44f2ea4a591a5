"""A front of three objectives, seen from three sides."""

from __future__ import annotations

import io
import textwrap
from dataclasses import replace
from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robustfront.tracking.front import Front
from robustfront.tracking.front_view import FAINT, INK, MUTED, View

_SIZE = (11.0, 4.2)  # inches


def render(front: Front) -> bytes:
    """The picture as PNG: one panel for each pair of objectives, members of the front outlined."""
    figure = Figure(figsize=_SIZE, dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for axes, (x, y) in zip(panels, combinations(front.objectives, 2), strict=True):
        view = View(replace(front, x=x, y=y))
        axes.set_xlabel(view.x.label, color=INK, parse_math=False)
        axes.set_ylabel(view.y.label, color=INK, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(color=FAINT, labelcolor=MUTED, labelsize=9)
        axes.grid(color="#ececec", linewidth=0.6)
        axes.set_axisbelow(True)
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
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
