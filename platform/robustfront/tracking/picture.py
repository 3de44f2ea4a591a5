"""What all pictures have in common: how they begin, look and are saved."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robustfront.tracking.front_view import FAINT, MUTED


def blank(width: float, height: float, dpi: int = 160) -> Figure:
    """A figure of so many inches that no window shows."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, size: int = 8) -> None:
    """Axes to the left and below, a faint grid behind everything, labels of a size in points."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=MUTED, labelsize=size)
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)


def png(figure: Figure) -> bytes:
    """The same bytes each time."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
