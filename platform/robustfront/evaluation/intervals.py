"""Confidence intervals of measured error rates."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special


@overload
def clopper_pearson(errors: int, n: int, confidence: float = 0.95) -> tuple[float, float]: ...


@overload
def clopper_pearson(
    errors: ArrayLike, n: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...


def clopper_pearson(errors, n, confidence=0.95):  # type: ignore[no-untyped-def]
    """Two-sided Clopper-Pearson interval of an error probability, elementwise over arrays.

    lower = B(a/2; k, n - k + 1), upper = B(1 - a/2; k + 1, n - k) with a = 1 - confidence and B the
    quantile of the beta distribution; lower = 0 for k = 0, upper = 1 for k = n.

    Guarantee: covers the true probability in at least `confidence` of all draws of the n examples.

    Args:
        errors: examples counted as errors, k with 0 <= k <= n.
        n: independent examples.
        confidence: coverage, 0 < confidence < 1.
    Raises:
        ValueError: a count or the confidence outside those ranges.
    Source: Clopper & Pearson 1934, Biometrika 26(4), doi:10.1093/biomet/26.4.404.
    """
    k, total = np.broadcast_arrays(np.asarray(errors), np.asarray(n))
    if np.any(k < 0) or np.any(k > total):
        raise ValueError(f"errors lie between 0 and the number of examples, got {errors} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, got {confidence}")
    tail = (1 - confidence) / 2
    # the beta distribution needs positive parameters: the two ends are set by hand
    low = np.where(k == 0, 0.0, special.betaincinv(np.maximum(k, 1), total - k + 1, tail))
    high = np.where(k == total, 1.0, special.betaincinv(k + 1, np.maximum(total - k, 1), 1 - tail))
    return (float(low), float(high)) if low.ndim == 0 else (low, high)
