"""What the pictures of a front call metrics, parameters and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from robustfront.tracking.front import Plain

_GREEK = {
    "eps": "ε",
    "lambda": "λ",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "kappa": "κ",
    "sigma": "σ",
    "tau": "τ",
}
# sections whose parameters are known by their own name
_PLAIN_SECTIONS = ("method", "smoothing", "train")
_SECTION_NAMES = {"train_threat": "train"}


def metric_label(metric: str) -> str:
    """`Robust error`; for a long name also threat, evaluator and split."""
    split, *rest = metric.split("/") if "/" in metric else ("", metric)
    quantity, *details = (part.replace("_", " ") for part in rest)
    return ", ".join([quantity[:1].upper() + quantity[1:], *details, *filter(None, [split])])


def parameter_labels(parameters: Sequence[str]) -> dict[str, str]:
    """A short name for each parameter, its full name where two would get the same."""
    short = {parameter: _short(parameter) for parameter in parameters}
    names = list(short.values())
    return {
        parameter: label if names.count(label) == 1 else parameter
        for parameter, label in short.items()
    }


def parameter_lines(row: Mapping[str, Plain], parameters: Sequence[str]) -> list[str]:
    """A trial's active parameters, method first: `ε (train) 0.12`, `mix linf 0.50 · l2 0.50`."""
    active = [name for name in parameters if row[name] is not None]
    labels = parameter_labels(active)
    mixes: dict[str, list[str]] = {}
    lines = []
    for name in sorted(active, key=lambda name: name != "method.type"):
        section, _, leaf = name.rpartition(".")
        if section.endswith("mix"):
            mixes.setdefault(section, []).append(f"{leaf} {_weight_text(row[name])}")
        else:
            lines.append(f"{labels[name]} {value_text(row[name])}")
    return lines + [f"mix {' · '.join(weights)}" for weights in mixes.values()]


def telling_parameter(members: pd.DataFrame, parameters: Sequence[str]) -> str | None:
    """The numeric parameter whose ranks follow the front most closely; None if none does.

    Only parameters that are active in every member are compared, by |Spearman correlation| with the
    position on the front, which must reach one half; those of the optimiser say how well a trial
    was trained, not what it trades.
    """
    position = np.arange(len(members))
    best, chosen = 0.5, None
    for name in parameters:
        values = pd.to_numeric(members[name], errors="coerce")
        if (
            ".mix." in name
            or name.startswith("train.")
            or values.isna().any()
            or values.nunique() < 2
        ):
            continue
        strength = abs(np.corrcoef(values.rank(), position)[0, 1])
        if strength > best:
            best, chosen = strength, name
    return chosen


def value_text(value: object) -> str:
    """Three significant digits of a fractional number, other values as they are."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(parameter: str) -> str:
    section, _, leaf = parameter.rpartition(".")
    section = section.rpartition(".")[2]
    if leaf == "type" and section:
        return section
    label = _GREEK.get(leaf, leaf.replace("_", " "))
    if not section or section in _PLAIN_SECTIONS:
        return label
    return f"{label} ({_SECTION_NAMES.get(section, section)})"


def _weight_text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
