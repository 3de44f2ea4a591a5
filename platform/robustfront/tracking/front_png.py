"""The front as a picture for a paper."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from robustfront.tracking.front import Front
from robustfront.tracking.front_labels import parameter_labels, telling_parameter, value_text
from robustfront.tracking.front_view import (
    BAND,
    BARS,
    DOMINATED,
    INK,
    MUTED,
    NOTHING_YET,
    Series,
    View,
)
from robustfront.tracking.picture import blank, plain, png

_SIZE = (7.0, 5.0)  # inches
_DPI = 200
_LEGEND_COLUMNS = 5


def render(front: Front) -> bytes:
    """The picture as PNG."""
    view = View(front)
    figure = blank(*_SIZE, dpi=_DPI)
    axes = figure.add_subplot()
    _frame(axes, view)
    _surfaces(axes, view)
    _bars(axes, view)
    for series in view.others():
        if view.inside(series.rows).any():
            _hollow(axes, view, series)
    for series, points in view.curves():
        axes.plot(*points.T, ".-", color=series.colour, linewidth=1, markersize=4, zorder=2.8)
    for series in view.methods():
        _filled(axes, view, series)
    _legend(figure, axes, view)
    _member_labels(figure, axes, view)
    return png(figure)


def _frame(axes: Axes, view: View) -> None:
    axes.set_xlim(view.x.low, view.x.high)
    axes.set_ylim(view.y.low, view.y.high)
    axes.set_xlabel(view.x.label, color=INK, parse_math=False)
    axes.set_ylabel(view.y.label, color=INK, parse_math=False)
    plain(axes, size=9)
    lines = [view.front.subtitle, view.summary, view.note]
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, 95))
    above = axes.annotate(
        text,
        (0, 1),
        xytext=(0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color=MUTED,
        linespacing=1.35,
        va="bottom",
        parse_math=False,
    )
    axes.annotate(
        textwrap.shorten(view.front.name, 50),
        (0, 1),
        xytext=(0, 4),
        xycoords=above,
        textcoords="offset points",
        fontsize=13,
        fontweight="bold",
        color=INK,
        va="bottom",
        parse_math=False,
    )


def _surfaces(axes: Axes, view: View) -> None:
    if view.finished.empty:
        axes.text(
            0.5, 0.5, NOTHING_YET, transform=axes.transAxes, ha="center", color=MUTED, fontsize=12
        )
        return
    axes.fill(*view.above(view.outline).T, color=DOMINATED, linewidth=0, zorder=0)
    axes.plot(*view.outline.T, color=INK, linewidth=1.3, zorder=2, label="front")
    if view.seeds > 1:
        median, worst = view.attained(0.5), view.attained(1.0)
        axes.plot(*median.T, color=MUTED, linewidth=1, linestyle="--", label="median of seeds")
        band = view.between(view.outline, worst)
        label = f"best to worst of {view.seeds} seeds"
        axes.fill(*band.T, color=BAND, linewidth=0, zorder=0.5, label=label)


def _bars(axes: Axes, view: View) -> None:
    x, y = view.points(view.front.members).T
    across, upwards = view.bars(view.x.metric), view.bars(view.y.metric)
    axes.errorbar(
        x,
        y,
        xerr=np.abs(across.T - x) if len(across) else None,
        yerr=np.abs(upwards.T - y) if len(upwards) else None,
        fmt="none",
        ecolor=BARS,
        elinewidth=0.8,
        capsize=2,
        capthick=0.8,
        zorder=1.9,
    )


def _hollow(axes: Axes, view: View, series: Series) -> None:
    axes.plot(
        *view.points(series.rows).T,
        series.marker,
        color=series.colour,
        markerfacecolor="none",
        markersize=4,
        markeredgewidth=0.8,
        zorder=2.5,
        label=series.label,
    )


def _filled(axes: Axes, view: View, series: Series) -> None:
    inner = series.rows[~series.rows["pareto"]]
    axes.plot(
        *view.points(inner).T,
        series.marker,
        color=series.colour,
        alpha=0.7,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=3,
    )
    on_front = series.rows[series.rows["pareto"]]
    axes.plot(
        *view.points(on_front).T,
        series.marker,
        color=series.colour,
        markersize=8,
        markeredgecolor=INK,
        markeredgewidth=1.0,
        zorder=4,
    )


def _legend(figure: Figure, axes: Axes, view: View) -> None:
    methods = [
        Line2D([], [], ls="", marker=series.marker, color=series.colour, label=series.label)
        for series in view.methods()
    ]
    handles = methods + axes.get_legend_handles_labels()[0]
    if not handles:
        return
    legend = figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=_LEGEND_COLUMNS,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handletextpad=0.5,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _member_labels(figure: Figure, axes: Axes, view: View) -> None:
    members = view.front.members
    parameter = telling_parameter(members, view.front.parameters)
    if parameter is None:
        return
    name = parameter_labels(view.front.parameters)[parameter]
    texts = [
        axes.annotate(
            f"{name} {value_text(value)}",
            point,
            xytext=(-6, -5),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7.5,
            color=MUTED,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=5,
            parse_math=False,
        )
        for point, value in zip(view.points(members), members[parameter], strict=True)
    ]
    figure.draw_without_rendering()
    taken = [axes.spines["left"].get_window_extent(), axes.spines["bottom"].get_window_extent()]
    for text in texts:
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
