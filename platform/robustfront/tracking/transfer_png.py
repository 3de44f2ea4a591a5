"""How often adversarial examples of one member of the front fool another, as a heat map."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from robustfront.tracking.front import Front
from robustfront.tracking.front_view import INK, MUTED
from robustfront.tracking.picture import blank, png

_SIDE = 0.75  # inches of a cell


def render(front: Front) -> bytes:
    """The picture as PNG: a map for each threat, members in the order of the front."""
    threats = list(dict.fromkeys(front.transfer["threat"]))
    order = [trial for trial in front.members["trial"] if trial in {*front.transfer["target"]}]
    side = max(3.2, _SIDE * len(order) + 1.6)
    figure = blank(side * len(threats), side + 0.5)
    names = _names(front, order)
    for axes, threat in zip(
        figure.subplots(1, len(threats), squeeze=False)[0], threats, strict=True
    ):
        found = front.transfer[front.transfer["threat"] == threat]
        _map(axes, found.pivot(index="source", columns="target", values="error"), names)
        axes.set_title(threat.replace("_", " "), fontsize=9, color=INK, parse_math=False)
    figure.suptitle(
        f"{front.name}: errors in % at adversarial examples of another model (PGD-20, test split)",
        fontsize=9,
        color=INK,
        parse_math=False,
        wrap=True,
    )
    return png(figure)


def _names(front: Front, order: list[str]) -> dict[str, str]:
    """Trials by the first letters of their id, with the method where methods differ."""
    rows = front.members.set_index("trial")
    methods = rows["method.type"] if "method.type" in rows else pd.Series("", index=rows.index)
    return {trial: f"{methods[trial]}\n{trial[:6]}".strip() for trial in order}


def _map(axes: Axes, table: pd.DataFrame, names: dict[str, str]) -> None:
    values = 100 * table.reindex(index=list(names), columns=list(names)).to_numpy(dtype=float)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(
                column,
                row,
                f"{value:.1f}",
                color="white" if value > 60 else INK,
                fontweight="bold" if row == column else "normal",
                fontsize=8,
                ha="center",
                va="center",
            )
    ticks = range(len(names))
    axes.set_xticks(ticks, list(names.values()), fontsize=7, color=MUTED, parse_math=False)
    axes.set_yticks(ticks, list(names.values()), fontsize=7, color=MUTED, parse_math=False)
    axes.set_xlabel("attacked", fontsize=8, color=MUTED)
    axes.set_ylabel("examples made on", fontsize=8, color=MUTED)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
