"""Metrics as pure functions of predictions; errors are fractions in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def standard_error(label: np.ndarray, plain: np.ndarray) -> float:
    """Share of examples (N,) that the plain prediction gets wrong."""
    return float(np.mean(plain != label))


def robust_error(label: np.ndarray, plain: np.ndarray, attacked: Sequence[np.ndarray]) -> float:
    """Share of examples wrong plainly or under any of the attacks: a lower bound.

    With the predictions of several threats this is the error on their union, for each example.
    """
    wrong = plain != label
    for prediction in attacked:
        wrong = wrong | (prediction != label)
    return float(np.mean(wrong))
