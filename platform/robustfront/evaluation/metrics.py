"""Metrics as pure functions of predictions; an error is the share of examples that are mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TRANSFER = "test/transfer/"  # then threat/trial: the error at examples found on that trial's model


def mistakes(
    label: np.ndarray, plain: np.ndarray, attacked: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Which examples are wrong plainly or under any of the attacks, (N,) bool.

    Without attacks their share is the standard error, with them a lower bound of the robust error;
    with the predictions under several threats, of the error on their union.
    """
    wrong = np.asarray(plain != label)
    for prediction in attacked:
        wrong = wrong | (prediction != label)
    return wrong
