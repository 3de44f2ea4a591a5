"""The front as a page of its own: points that tell their trial, and the members as a table.

The page loads nothing: MLflow shows it in a frame that may run scripts and nothing else.
"""

from __future__ import annotations

from html import escape
from string import Template

import numpy as np
import plotly.graph_objects as go

from robustfront.tracking.front import Front, plain_rows
from robustfront.tracking.front_labels import metric_label, parameter_lines
from robustfront.tracking.front_view import (
    BAND,
    BARS,
    DOMINATED,
    FAINT,
    INK,
    MUTED,
    NOTHING_YET,
    Axis,
    Points,
    Series,
    View,
)

Settings = dict[str, object]

_CONTROLS = {
    "displaylogo": False,
    "showSendToCloud": False,  # plotly's default is a button that uploads the chart
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>$name</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; padding: 14px 18px; max-width: 1200px; background: #fff; color: $ink;
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 20px; line-height: 1.25; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 14px 0 4px; }
p { margin: 0; color: $muted; }
.chart { height: 66vh; min-height: 400px; max-height: 640px; }
.chart > div { height: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: $muted; font-weight: 500; border-bottom: 1px solid $faint; }
th, td { padding: 3px 10px 3px 0; vertical-align: top; }
td { border-bottom: 1px solid #ececec; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 180px; padding-right: 0; }
summary { cursor: pointer; color: $muted; margin-top: 14px; }
</style>
</head>
<body>
<h1>$name</h1>
<p>$subtitle</p>
<p>$summary</p>
<p>$note</p>
<div class="chart">$chart</div>
$space
$members
$hidden
</body>
</html>
""")


def render(front: Front) -> str:
    """The page as HTML."""
    view = View(front)
    chart = _figure(view).to_html(
        full_html=False, include_plotlyjs=True, div_id="front", config=_CONTROLS
    )
    return _PAGE.substitute(
        name=escape(front.name),
        subtitle=escape(front.subtitle),
        summary=escape(view.summary),
        note=escape(view.note),
        chart=chart,
        space=_space(view),
        members=_members(view),
        hidden=_hidden(view),
        ink=INK,
        muted=MUTED,
        faint=FAINT,
    )


def _figure(view: View) -> go.Figure:
    traces = [] if view.finished.empty else _surfaces(view)
    traces += [_curve(series, points) for series, points in view.curves()]
    traces += [_trials(view, series) for series in (*view.others(), *view.methods())]
    layout = {
        "template": "none",
        "autosize": True,
        "margin": {"l": 56, "r": 44, "t": 8, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"size": 12, "color": INK}},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
        "modebar": {"orientation": "v"},
        "xaxis": _axis(view.x),
        "yaxis": _axis(view.y),
        "annotations": [_nothing_yet()] if view.finished.empty else [],
    }
    return go.Figure({"data": traces, "layout": layout})


def _space(view: View) -> str:
    """All trials by three objectives, to be turned; nothing where there are not three."""
    names = view.front.objectives
    if len(names) != 3 or view.finished.empty:
        return ""
    traces = [
        _line(
            np.empty((0, 2)),
            escape(series.label),
            type="scatter3d",
            mode="markers",
            **dict(zip("xyz", (100 * series.rows[name] for name in names), strict=True)),
            hoverinfo="text",
            hovertext=["<br>".join(map(escape, view.hover(r))) for r in plain_rows(series.rows)],
            marker={
                "size": np.where(series.rows["pareto"], 7, 4),
                "symbol": np.where(series.rows["pareto"], "diamond", "circle"),
                "color": series.colour,
            },
        )
        for series in view.methods()
    ]
    titles = (f"{metric_label(name)} (%)" for name in names)
    scene = {
        f"{axis}axis": {"title": {"text": escape(title)}}
        for axis, title in zip("xyz", titles, strict=True)
    }
    layout = {"template": "none", "scene": scene, "margin": {"l": 0, "r": 0, "t": 8, "b": 0}}
    chart = go.Figure({"data": traces, "layout": layout}).to_html(
        full_html=False, include_plotlyjs=False, div_id="space", config=_CONTROLS
    )
    return f'<h2>All three objectives</h2>\n<div class="chart">{chart}</div>'


def _curve(series: Series, points: Points) -> Settings:
    """A model at several weights."""
    look = {"mode": "lines+markers", "marker": {"size": 5}, "line": {"width": 1.2}}
    name = f"{escape(series.label)} by weight"
    return _line(points, name, **look) | {"marker": {"size": 5, "color": series.colour}}


def _axis(axis: Axis) -> Settings:
    return {
        "title": {"text": escape(axis.label), "standoff": 8},
        "range": [axis.low, axis.high],
        "gridcolor": "#ececec",
        "linecolor": FAINT,
        "tickfont": {"color": MUTED},
        "zeroline": False,
    }


def _nothing_yet() -> Settings:
    where = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    return {**where, "text": NOTHING_YET, "font": {"size": 18, "color": MUTED}}


def _surfaces(view: View) -> list[Settings]:
    area: Settings = {"fill": "toself", "line": {"width": 0}}
    traces = [_line(view.above(view.outline), "", fillcolor=DOMINATED, **area)]
    if view.seeds > 1:
        label = f"best to worst of {view.seeds} seeds"
        band = view.between(view.outline, view.attained(1.0))
        median = {"color": MUTED, "width": 1.3, "dash": "dash"}
        traces += [
            _line(band, label, fillcolor=BAND, **area),
            _line(view.attained(0.5), "median of seeds", line=median),
        ]
    return [*traces, *_bars(view), _line(view.outline, "front", line={"color": INK, "width": 1.8})]


def _line(points: Points, label: str, **look: object) -> Settings:
    x, y = points.T
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": label,
        "showlegend": bool(label),
        "hoverinfo": "skip",
        **look,
    }


def _bars(view: View) -> list[Settings]:
    x, y = view.points(view.front.members).T
    look = {"color": BARS, "thickness": 1, "width": 3, "symmetric": False}
    trace = _line(view.points(view.front.members), "", mode="markers", marker={"size": 0.1})
    for name, axis, centre in (("error_x", view.x, x), ("error_y", view.y, y)):
        if len(bars := view.bars(axis.metric)):
            trace[name] = {"array": bars[:, 1] - centre, "arrayminus": centre - bars[:, 0], **look}
    return [trace]


def _trials(view: View, series: Series) -> Settings:
    # members last: they lie on top, and the legend shows the look of the first
    rows = series.rows.sort_values("pareto", kind="stable")
    x, y = view.points(rows).T
    return {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "name": escape(series.label),
        "showlegend": bool(view.inside(rows).any()),
        "legendrank": 1 if series.filled else 1000,
        "hoverinfo": "text",
        "hovertext": [
            "<br>".join(escape(line) for line in view.hover(row)) for row in plain_rows(rows)
        ],
        "marker": _markers(series, rows["pareto"].tolist()),
    }


def _markers(series: Series, pareto: list[bool]) -> Settings:
    look: Settings = {"symbol": series.symbol, "color": series.colour}
    if not series.filled:
        return {**look, "size": 6, "line": {"color": series.colour, "width": 1}}
    return {
        **look,
        "size": [14 if member else 10 for member in pareto],
        "opacity": [1.0 if member else 0.7 for member in pareto],
        "line": {"color": [INK if member else "white" for member in pareto], "width": 1.2},
    }


def _members(view: View) -> str:
    if view.front.members.empty:
        return ""
    head = ["#", "trial", "seed", *(metric_label(axis.metric) for axis in view.axes), "parameters"]
    rows = [
        [
            str(row["number"]),
            str(row["trial"]),
            str(row["seed"]),
            *(axis.text(row) for axis in view.axes),
            " · ".join(parameter_lines(row, view.front.parameters)),
        ]
        for row in plain_rows(view.front.members)
    ]
    return f"<h2>Front</h2>\n{_table(head, rows)}"


def _hidden(view: View) -> str:
    if view.hidden.empty:
        return ""
    head = ["#", "trial", "seed", "state"]
    rows = [[str(row[key]) for key in ("number", *head[1:])] for row in plain_rows(view.hidden)]
    return f"<details><summary>Trials not shown</summary>\n{_table(head, rows)}</details>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(tag: str, cells: list[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>\n"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n{line("th", head)}{body}</table></div>'
