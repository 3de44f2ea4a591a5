"""Certificates of smoothing whose deviation depends on the input.

Source: arXiv:2110.05365 (Sukenik, Kuvshinov, Guennemann), sections 3 and 4; the formulas for the
worst case are derived again here, by the lemma of Neyman and Pearson.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import NonNegativeFloat, PositiveInt
from scipy import linalg, special, stats
from torch import Tensor

from robustfront.certifiers.base import CERTIFIERS
from robustfront.certifiers.smoothing import Smoothing, within
from robustfront.errors import ConfigError, SoundnessError
from robustfront.threats import Norm

Array = npt.NDArray[np.float64]

# What the probability at the other input may be wrong by; and how much radii are shortened.
_ERROR = 1e-11
_MISSED = 1e-12
_SHORTER = 3e-7
_CHUNK = 2048
_BISECTIONS = 60


def lower_probability(
    p_lower: npt.ArrayLike,
    sigma0: npt.ArrayLike,
    sigma1: npt.ArrayLike,
    distance: npt.ArrayLike,
    dimension: npt.ArrayLike,
) -> Array:
    """The least probability that a class has under noise at another input.

    At x0 the class has a probability of at least `p_lower` under N(x0, sigma0^2 I); the result is a
    lower bound of that at x1 under N(x1, sigma1^2 I), over all classifiers: the worst set is a
    ball (sigma1 < sigma0), the outside of one (sigma1 > sigma0) or a half-space.

    All arguments broadcast, float64; the result is exact to 1e-10, and never above the exact value.

    Args:
        p_lower: in [0, 1].
        sigma0, sigma1: deviations, above 0, in pixel units.
        distance: ||x1 - x0||_2, at least 0.
        dimension: of the inputs, a whole number above 0.

    Raises:
        ValueError: an argument outside its range.

    Source: arXiv:2110.05365, theorem 1 and its two cases; non-central chi-squared probabilities.
    """
    p, s0, s1, a, n = _broadcast(p_lower, sigma0, sigma1, distance, dimension)
    _require("p_lower", p, (p >= 0) & (p <= 1), "in [0, 1]")
    _require("sigma0", s0, (s0 > 0) & np.isfinite(s0), "above 0")
    _require("sigma1", s1, (s1 > 0) & np.isfinite(s1), "above 0")
    _require("distance", a, (a >= 0) & np.isfinite(a), "0 or more")
    _require_dimension(n)
    found = np.empty(p.shape)
    for part in _chunks(p.size):
        rows = tuple(value.reshape(-1)[part] for value in (p, s0, s1, a, n))
        found.reshape(-1)[part] = _lower(*rows)
    return found


def certified_radius(
    p_lower: npt.ArrayLike, sigma: npt.ArrayLike, rate: npt.ArrayLike, dimension: npt.ArrayLike
) -> Array:
    """The l2 radius within which the smoothed class cannot change, 0 where p_lower <= 1/2.

    For a deviation with |log sigma(x) - log sigma(x')| <= rate ||x - x'||_2: the largest distance
    at which neither a deviation as small nor one as large as the rate allows could bring the class
    below 1/2. rate = 0 is classical smoothing, sigma Phi^-1(p_lower).

    All arguments broadcast, float64; the result is exact to a relative 1e-6, and never above the
    exact value; infinite where p_lower is 1.

    Args:
        p_lower: lower bound of the class' probability at x, in [0, 1].
        sigma: deviation at x, above 0, in pixel units.
        rate: semi-elasticity r, at least 0, per pixel unit.
        dimension: of the inputs, a whole number above 0.

    Raises:
        ValueError: an argument outside its range.

    Source: arXiv:2110.05365, theorems 2 and 3: only the ends of the interval of deviations matter,
    and the worst case grows with the distance.
    """
    p, s, r, n = _broadcast(p_lower, sigma, rate, dimension)
    _require("p_lower", p, (p >= 0) & (p <= 1), "in [0, 1]")
    _require("sigma", s, (s > 0) & np.isfinite(s), "above 0")
    _require("rate", r, (r >= 0) & np.isfinite(r), "0 or more")
    _require_dimension(n)
    found = np.empty(p.shape)
    for part in _chunks(p.size):
        rows = tuple(value.reshape(-1)[part] for value in (p, s, r, n))
        found.reshape(-1)[part] = _radius(*rows)
    return found


def deviation_limits(p_lower: npt.ArrayLike, dimension: npt.ArrayLike) -> tuple[Array, Array]:
    """The smallest and the largest sigma1 / sigma0 for which anything can be certified.

    Beyond them the class may fall to 1/2 even at distance 0. Both come close to 1 in many
    dimensions, which is what makes input-dependent smoothing hard there.

    Source: arXiv:2110.05365, theorem 4, with exact quantiles in place of its bound.
    """
    p, n = _broadcast(p_lower, dimension)
    median = stats.chi2.ppf(0.5, n)
    low, high = stats.chi2.ppf(1 - p, n), stats.chi2.isf(1 - p, n)
    return np.sqrt(low / median), np.sqrt(high / median)


def _lower(p: Array, s0: Array, s1: Array, a: Array, n: Array) -> Array:
    """`lower_probability` of rows."""
    log_ratio = np.log(s1 / s0)
    other = 1 - p
    worst = np.where(other > 0, 1.0, 0.0)
    inside = (other > 0) & (other < 1)
    # Of the same deviation: a half-space, in closed form.
    same = inside & (log_ratio == 0)
    worst[same] = special.ndtr(a[same] / s0[same] + special.ndtri(other[same]))
    rest = inside & ~same
    smooth = rest & _is_smooth(_kappa(log_ratio, a), s0, n)
    worst[smooth] = _worst_by_quadrature(
        other[smooth], s0[smooth], log_ratio[smooth], a[smooth], n[smooth]
    )
    rough = rest & ~(smooth & np.isfinite(worst))
    worst[rough] = _worst_by_quantiles(
        other[rough], s0[rough], log_ratio[rough], a[rough], n[rough]
    )
    return np.where(inside, 1 - np.minimum(worst + _ERROR, 1), 1 - worst)


def _kappa(log_ratio: Array, a: Array) -> Array:
    """The curvature of the worst set: above 0 for a ball, below for the outside of one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-np.expm1(2 * log_ratio) / (2 * a))


def _is_smooth(kappa: Array, s0: Array, n: Array) -> npt.NDArray[np.bool_]:
    """Where few nodes integrate over the orthogonal part of the noise to 1e-12.

    The fewer dimensions, the nearer is the end of a ball, where the integrand has a kink. In few
    dimensions only where the quantiles of far-off distributions lose digits.
    """
    spread = np.abs(kappa) * s0 * np.sqrt(2 * n)
    return np.asarray(spread <= np.select([n >= 784, n >= 100], [1.0, 0.4], 1e-3))


def _worst_by_quantiles(p_b: Array, s0: Array, log_ratio: Array, a: Array, n: Array) -> Array:
    """By non-central chi-squared distributions: probability of the worst set at the other input."""
    spread = np.expm1(2 * log_ratio) * s0  # (s1^2 - s0^2) / s0
    lambda0 = np.square(a / spread)
    lambda1 = lambda0 * np.exp(2 * log_ratio)
    scale = np.exp(-2 * log_ratio)
    shrinks = log_ratio < 0
    found = np.empty_like(p_b)
    for rows, quantile, probability in (
        (shrinks, _quantile, _below),
        (~shrinks, _upper_quantile, _above),
    ):
        q = quantile(p_b[rows], n[rows], lambda0[rows])
        found[rows] = probability(scale[rows] * q, n[rows], lambda1[rows])
    return found


def _either(central: Callable[..., Any], general: Callable[..., Any]) -> Callable[..., Array]:
    """The distribution itself where there is no shift: scipy's general one is NaN there."""

    def act(value: Array, n: Array, shift: Array) -> Array:
        plain = shift < 1e-12 * n
        found = np.empty_like(value)
        found[plain] = central(value[plain], n[plain])
        found[~plain] = general(value[~plain], n[~plain], shift[~plain])
        return found

    return act


_quantile = _either(stats.chi2.ppf, stats.ncx2.ppf)
_upper_quantile = _either(stats.chi2.isf, stats.ncx2.isf)
_below = _either(stats.chi2.cdf, stats.ncx2.cdf)
_above = _either(stats.chi2.sf, stats.ncx2.sf)


# -- without cancellation: the part along the difference in closed form, the rest by quadrature


@lru_cache(maxsize=32)
def _nodes(n: int, count: int) -> tuple[Array, Array]:
    """Gauss quadrature for chi-squared with n - 1 degrees of freedom: nodes, weights."""
    if n == 1:
        return np.zeros(1), np.ones(1)
    alpha, k = (n - 3) / 2, np.arange(count)
    below = np.sqrt(k[1:] * (k[1:] + alpha))
    values, vectors = linalg.eigh_tridiagonal(2 * k + 1 + alpha, below)
    return 2 * values, np.square(vectors[0])


def _worst_by_quadrature(p_b: Array, s0: Array, log_ratio: Array, a: Array, n: Array) -> Array:
    """The same for rows whose sets are nearly half-spaces, each dimension on its own.

    NaN where no set was found whose probability at x0 is the one that is asked for.
    """
    found = np.empty_like(p_b)
    for size in np.unique(n):
        rows = n == size
        own = _Sets(s0[rows], log_ratio[rows], a[rows], int(size))
        probit = special.ndtri(p_b[rows])
        threshold, miss = own.threshold(probit, None)
        # Doubles near 1 are coarse: above 1/2 a miss counts by the probability that it changes.
        missed = np.abs(miss) * np.exp(-np.square(np.maximum(probit, 0)) / 2) > _MISSED
        found[rows] = np.where(missed, np.nan, special.ndtr(own.probit_at_other(threshold)))
    return found


class _Sets:
    """Worst sets { t - kappa ||x - x0||^2 >= s }, t along the difference, for rows of settings."""

    def __init__(self, s0: Array, log_ratio: Array, a: Array, n: int) -> None:
        self.s0, self.s1, self.a, self.n = s0, s0 * np.exp(log_ratio), a, n
        self.kappa = np.where(a > 0, _kappa(log_ratio, np.where(a > 0, a, 1)), 0.0)
        spread = float((np.abs(self.kappa) * s0).max(initial=0.0) * np.sqrt(2 * n))
        count = 10 if spread <= 0.05 else 16 if spread <= 0.2 else 28 if spread <= 0.5 else 48
        self.nodes, self.weights = _nodes(n, count)
        # The other side of a ball is out of reach where few nodes suffice, unless n is small.
        with np.errstate(divide="ignore"):
            reach = 1 / (2 * np.abs(self.kappa) * np.maximum(s0, self.s1))
        self.has_far_side = bool((reach < 12).any())

    def threshold(self, probit: Array, start: Array | None) -> tuple[Array, Array]:
        """s for which the set has a probability at x0, given by its probit; by how much it misses.

        The miss is in probits, below 0 where the set is too small.
        """
        slope = -1 / (self.s0 * np.sqrt(1 + 2 * self.n * np.square(self.kappa * self.s0)))
        if start is None:
            start = probit / slope - self.kappa * self.n * np.square(self.s0)
        origin = np.zeros_like(start)
        s, miss = start, self._probit(start, origin, self.s0) - probit
        for _ in range(12):
            if float(np.abs(miss).max(initial=0.0)) < 1e-13:
                break
            # At first the slope of a normal distribution of the same variance; then a secant.
            following = s - miss / slope
            there = self._probit(following, origin, self.s0) - probit
            gained = there - miss
            moved = np.abs(gained) > 1e-12
            slope = np.where(moved, gained / np.where(moved, following - s, 1), slope)
            s, miss = following, there
        return s, miss

    def probit_at_other(self, s: Array) -> Array:
        """The probit of the set's probability at the other input."""
        return self._probit(s, self.a, self.s1)

    def _probit(self, s: Array, mean: Array, deviation: Array) -> Array:
        kappa, v = self.kappa[:, None], deviation[:, None]
        c = s[:, None] + kappa * np.square(v) * self.nodes
        inner = 1 - 4 * kappa * c
        root = np.sqrt(np.maximum(inner, 0))
        near = 2 * c / (1 + root)
        inside = special.ndtr(-(near - mean[:, None]) / v)
        if self.has_far_side:
            with np.errstate(divide="ignore", invalid="ignore"):
                far = (1 + root) / (2 * kappa)
            beyond = special.ndtr(-(far - mean[:, None]) / v)
            ball = np.where(inner < 0, 0.0, inside - beyond)
            outside = np.where(inner < 0, 1.0, inside + special.ndtr((far - mean[:, None]) / v))
            inside = np.where(kappa > 0, ball, np.where(kappa < 0, outside, inside))
        # Rounding of the weights' sum must not lead beyond what a probit is defined for.
        probability = np.clip(inside @ self.weights, 1e-300, 1 - 2**-53)
        return np.asarray(special.ndtri(probability))


def _radius(p: Array, s: Array, r: Array, n: Array) -> Array:
    """`certified_radius` of rows."""
    found = np.zeros_like(p)
    found[p == 1] = np.inf
    with np.errstate(invalid="ignore"):
        classical = s * special.ndtri(p)
    flat = (p > 0.5) & (p < 1) & (r == 0)
    found[flat] = classical[flat] * (1 - 2e-13)
    rest = np.flatnonzero((p > 0.5) & (p < 1) & (r > 0))
    for size in np.unique(n[rest]):
        rows = rest[n[rest] == size]
        found[rows] = _radius_in(p[rows], s[rows], r[rows], int(size), classical[rows])
    return found


def _radius_in(p: Array, s: Array, r: Array, n: int, classical: Array) -> Array:
    """Of rows of one dimension with a rate: a guess, improved and then proved, or bisected."""
    guess: Array = classical / np.sqrt(1 + 2 * n * np.square(r * s))
    found = guess.copy()
    good = _is_smooth(r * np.exp(2 * r * guess), s, np.full_like(s, float(n)))
    if good.any():
        improved = _improved(p[good], s[good], r[good], n, guess[good])
        found[good] = improved * (1 - _SHORTER)
    proved = good.copy()
    proved[good] = _holds(p[good], s[good], r[good], n, found[good])
    left = ~proved
    found[left] = _bisected(p[left], s[left], r[left], n, classical[left])
    return found


def _improved(p: Array, s: Array, r: Array, n: int, a: Array) -> Array:
    """Where the growing deviation, the tighter one, brings the class to 1/2; `a` is a guess."""
    probit, start = np.asarray(special.ndtri(1 - p)), None
    slope = np.sqrt(1 + 2 * n * np.square(r * s)) / s
    for _ in range(6):
        own = _Sets(s, r * a, a, n)
        start, _ = own.threshold(probit, start)
        miss = own.probit_at_other(start)
        moved = a - miss / slope
        # Never beyond half of the way to 0 at once.
        a = np.maximum(moved, a / 2)
        if float(np.abs(miss).max(initial=0.0)) < 1e-11:
            break
    return a


def _holds(p: Array, s: Array, r: Array, n: int, a: Array) -> npt.NDArray[np.bool_]:
    """Whether the class stays above 1/2 at a distance, for both ends of the deviations."""
    size = np.full_like(s, float(n))
    ends = [_lower(p, s, s * np.exp(sign * r * a), a, size) for sign in (-1, 1)]
    return np.asarray((ends[0] > 0.5) & (ends[1] > 0.5))


def _bisected(p: Array, s: Array, r: Array, n: int, classical: Array) -> Array:
    """The same by halving the interval from 0 to the classical radius; its lower end."""
    low, high = np.zeros_like(p), classical.copy()
    if not len(p):
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        holds = _holds(p, s, r, n, middle)
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
        if ((high - low) <= _SHORTER * low).all():
            break
    return low


# -- arguments


def _broadcast(*values: npt.ArrayLike) -> tuple[Array, ...]:
    arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
    return tuple(np.array(array) for array in arrays)


def _require(name: str, values: Array, right: npt.NDArray[np.bool_], allowed: str) -> None:
    if not right.all():
        wrong = values[~right].flat[0]
        raise ValueError(f"{name}: got {wrong:g}, allowed is {allowed}")


def _require_dimension(n: Array) -> None:
    whole = (n >= 1) & (n == np.floor(n)) & np.isfinite(n)
    _require("dimension", n, np.asarray(whole), "a whole number above 0")


def _chunks(size: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, size, _CHUNK)]


# -- the certifier


@CERTIFIERS.register
class InputDependent(Smoothing):
    """Smoothing with more noise far from the training images: N(0, sigma(x)^2 I) at x.

    sigma(x) = sigma exp(rate (d_k(x) - centre)), d_k the mean l2 distance to the k nearest training
    images (unchanged, without the validation split). d_k is 1-Lipschitz, so log sigma has the
    Lipschitz constant `rate`, which `certified_radius` needs; it is checked on the images that are
    certified. Everything else, the guarantee too, is as in `smoothing`.

    Source: arXiv:2110.05365, sections 4 and 5: k = 20, rates around 0.01.
    Deviates: `centre` is by default the mean d_k of training images among the others, so that sigma
    is its own mean there; the paper has one number for each data set (5 for CIFAR-10, 1.5 for
    MNIST).

    Args:
        noise: gaussian; None: that of training, which must be gaussian then.
        sigma: None: that of training.
        rate: r, per pixel unit; large ones cost radius in many dimensions: r sigma sqrt(2 d) <= 0.4
            costs up to 7 %.
    """

    needs_anchors: ClassVar[bool] = True

    type: Literal["input_dependent"] = "input_dependent"  # type: ignore[assignment]
    noise: Literal["gaussian"] | None = None
    rate: NonNegativeFloat = 0.01
    k: PositiveInt = 20
    centre: float | None = None

    @property
    def name(self) -> str:
        """`input_dependent`, or `grid_input_dependent`."""
        return "grid_input_dependent" if self.grid else "input_dependent"

    def deviations(self, x: Tensor, anchors: Tensor | None) -> Array:
        """sigma(x), (N,).

        Raises:
            ConfigError: no base sigma, or too few training images to be `k` neighbours.
            SoundnessError: sigma changes faster than the rate allows.
        """
        base = super().deviations(x, anchors)
        if anchors is None or len(anchors) <= self.k:
            found = "none" if anchors is None else str(len(anchors))
            problem = f"got {self.k}, more training images than that are needed ({found} are there)"
            raise ConfigError("certify.k", [problem])
        flat = x.flatten(1).double()
        known = anchors.flatten(1).double()
        centre = self.centre
        if centre is None:
            some = known[:_CENTRED]
            # An image is its own nearest one.
            nearest = torch.cdist(some, known, compute_mode=_EXACT).topk(self.k + 1, largest=False)
            centre = float(nearest.values[:, 1:].mean())
        distances = torch.cdist(flat, known, compute_mode=_EXACT)
        nearest = distances.topk(self.k, largest=False)
        exponent = self.rate * (nearest.values.mean(1) - centre)
        deviations: Array = base * np.exp(exponent.cpu().numpy())
        require_semi_elastic(flat, deviations, self.rate)
        return deviations

    def remark(self, dimension: int) -> str:
        """How far sigma may change within a certified radius: the necessary condition."""
        low, high = deviation_limits(self.p_where_all_agree(), dimension)
        at_most = float(min(-np.log(low[0]), np.log(high[0])))
        said = (
            f"{self.name}, rate {self.rate:g}: in {dimension} dimensions sigma may change by "
            f"{100 * np.expm1(at_most):.2g} % at most within a certified radius"
        )
        return said + (f", which is below {at_most / self.rate:.3g}" if self.rate else "")

    def radii(self, p_lower: Array, sigma: Array, dimension: int, norm: Norm = "l2") -> Array:
        """`certified_radius`, and the largest balls within."""
        return within(norm, certified_radius(p_lower, sigma, self.rate, dimension), dimension)


def require_semi_elastic(x: Tensor, sigma: Array, rate: float) -> None:
    """Raise unless |log sigma(x) - log sigma(x')| <= rate ||x - x'||_2 for all pairs of rows.

    Raises:
        SoundnessError: a pair of inputs whose deviations are further apart: certificates with this
            rate would be wrong.
    """
    logs = torch.from_numpy(np.log(sigma)).to(x.device)
    apart = (logs[:, None] - logs[None]).abs()
    allowed = rate * torch.cdist(x, x, compute_mode=_EXACT)
    excess = float((apart - allowed).max()) if len(x) else 0.0
    if excess > 1e-9:
        raise SoundnessError(
            f"log sigma(x) of two images differs by {excess:.3g} more than the rate {rate:g} allows"
        )


_CENTRED = 500  # training images whose mean distance is the default centre
_EXACT = "donot_use_mm_for_euclid_dist"  # the other one cancels
