"""Randomized smoothing as a certifier: what noise around an input says of its neighbourhood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from scipy import special
from torch import Tensor, nn

from robustfront.certifiers.base import CERTIFIERS, Certifier, Lower
from robustfront.errors import ConfigError
from robustfront.randomness import Noise, whole_normal_error
from robustfront.threats import BALLS, Norm, Threat

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@CERTIFIERS.register
class Smoothing(Certifier):
    """Classical smoothing: g(x) is the class that f gives most often under noise N(0, sigma^2 I).

    For each example `n0` draws choose a class and `n` others, independent of these, bound its
    probability from below; where the bound p is above 1/2, g gives that class within the l2 radius
    sigma Phi^-1(p), else g abstains, which is an error at every radius.

    Guarantee: for each example on its own, what is said of g (class, radius, certificates for all
    threats at once) is wrong with a probability of at most `alpha`. Of m examples alpha m are
    expected to be wrong in the worst case. It is about the ideal g, not about a vote of few draws.

    `looks` are numbers of draws before `n` at which the bound is looked at already, each with its
    share alpha / (looks + 1); an example is left alone once everything asked of it is decided: its
    class, and each threat. Radii, and their average, then say hardly more than what was asked;
    curves over the radius need all draws. An example whose chosen class is not its label is given
    up after the first look, an error whatever follows, and recorded as abstained where that look
    leaves its class open: the share of abstentions is then overstated.

    `noise: gaussian` certifies the l2 radius sigma Phi^-1(p); linf and l1 balls by the l2 ball
    around them. `noise: uniform` on [-L, L], L = sqrt(3) sigma, certifies the l1 radius
    2 L (p - 1/2), and little of linf and l2: 2 L (1 - (3/2 - p)^(1/d)), times sqrt(d) for l2.
    `noise: splitting` certifies as much: each pixel becomes the middle of its cell, [0, 1] being
    cut every 2 L at a random place; the classifier then sees few values only.

    Noise in fp32 is not exactly translated by x, which a malicious model could use. `grid: 255`
    rounds Gaussian noise to multiples of 1/255, as the images are, in whole numbers: certificates
    then hold exactly, for all changes on the grid. Probabilities are lowered by what rounding of
    the thresholds may be wrong by.

    `precision: bfloat16` runs the model so; the certificates are about that model.

    Source: arXiv:1902.02918, theorem 1, PREDICT and CERTIFY; uniform noise arXiv:2002.08118,
    splitting arXiv:2103.10834; looks: the union bound over stages, as in arXiv:2110.14524, section
    4; the grid: arXiv:2207.07209.
    Deviates: `n` is 10,000 by default, where the code draws 100,000: the largest radius is 3.20
    sigma in place of 3.81; radii are rounded down; noise in fp32 unless there is a grid, whose
    noise is not clipped.

    Args:
        noise, sigma: None: those of training; gaussian where there was none.
        batch: noisy images at once.
    """

    norms: ClassVar[tuple[Norm, ...]] = BALLS
    needs_anchors: ClassVar[bool] = False

    type: Literal["smoothing"] = "smoothing"
    noise: Noise | None = None
    sigma: PositiveFloat | None = None
    n0: PositiveInt = 100
    n: PositiveInt = 10000
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    looks: tuple[PositiveInt, ...] = ()
    batch: PositiveInt = 1000
    grid: PositiveInt | None = None
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _whole_normal(self) -> Self:
        if self.grid is not None and self.law != "gaussian":
            raise ValueError(f"grid: got {self.grid}, allowed with gaussian noise only")
        return self

    @field_validator("looks")
    @classmethod
    def _grow(cls, looks: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if list(looks) != sorted({*looks}):
            raise ValueError("numbers of draws grow from look to look")
        if looks and looks[-1] >= info.data.get("n", math.inf):
            raise ValueError(f"the last look is at n = {info.data['n']} draws by itself")
        return looks

    @property
    def law(self) -> Noise:
        """That of the noise."""
        return self.noise or "gaussian"

    @property
    def name(self) -> str:
        """`smoothing`, `grid_smoothing`, `uniform_smoothing` or `splitting_smoothing`."""
        if self.law == "gaussian":
            return "grid_smoothing" if self.grid else "smoothing"
        return f"{self.law}_smoothing"

    @property
    def norm(self) -> Norm:
        """That of the radii that it is about."""
        return "l2" if self.law == "gaussian" else "l1"

    def prepare(self, model: nn.Module) -> Lower:
        """Raises: it bounds probabilities, not logits."""
        raise ConfigError(
            "method",
            [f"{self.name} certifies by sampling (rf.certify); it has no bounds of logits"],
        )

    def deviations(self, x: Tensor, anchors: Tensor | None) -> Array:
        """The noise at each input, (N,).

        Args:
            anchors: training images, for deviations that depend on them.

        Raises:
            ConfigError: nobody has said how large it is.
        """
        if self.sigma is None:
            raise ConfigError("certify.sigma", ["is missing, and the model was trained without"])
        return np.full(len(x), float(self.sigma))

    def radii(self, p_lower: Array, sigma: Array, dimension: int, norm: Norm = "l2") -> Array:
        """The certified radii (N,) in a norm of lower bounds of probabilities; 0 up to 1/2."""
        p = np.maximum(p_lower, 0.5)
        if self.law != "gaussian":
            half = math.sqrt(3) * sigma
            if norm == "l1":
                found = 2 * half * (p - 0.5)
            else:
                side = -2 * half * np.expm1(np.log(1.5 - p) / dimension)
                found = side if norm == "linf" else side * math.sqrt(dimension)
        else:
            found = within(norm, sigma * special.ndtri(p), dimension)
        return np.asarray(found * (1 - 2e-13))

    def all_looks(self) -> list[int]:
        """Every number of draws at which the bound is looked at, `n` the last."""
        return [*self.looks, self.n]

    def most(self, sigma: float, dimension: int, norm: Norm = "l2") -> float:
        """The largest radius that so many draws can certify: all of them agree."""
        deviation = np.array([sigma])
        p = self.p_where_all_agree() - self.slack(deviation, dimension)
        return float(self.radii(p, deviation, dimension, norm)[0])

    def p_where_all_agree(self) -> Array:
        """The lower bound of a probability where all `n` draws give the class, (1,)."""
        n = np.array([self.n])
        return lower_bounds(n, n, self.alpha / len(self.all_looks()))

    def slack(self, sigma: Array, dimension: int) -> Array:
        """How far the probability of a class (N,) may be from that under exact noise."""
        if self.grid is None:
            return np.zeros(len(sigma))
        each = [whole_normal_error(float(s) * self.grid) for s in sigma]
        return dimension * np.array(each)


def lower_bounds(successes: Counts, draws: Counts, alpha: float) -> Array:
    """Lower bounds of probabilities by Clopper and Pearson, each right with 1 - alpha; (N,).

    Source: arXiv:1902.02918, LowerConfBound: the alpha quantile of Beta(k, n - k + 1), 0 for k = 0.
    """
    k, n = np.asarray(successes, np.float64), np.asarray(draws, np.float64)
    bound = special.betaincinv(np.maximum(k, 1), n - k + 1, alpha)
    return np.asarray(np.where(k > 0, bound, 0.0))


def upper_bounds(successes: Counts, draws: Counts, alpha: float) -> Array:
    """The same from above."""
    return np.asarray(1 - lower_bounds(np.asarray(draws) - successes, draws, alpha))


def within(norm: Norm, radius: Array, dimension: int) -> Array:
    """The radius in a norm of the largest ball within an l2 ball.

    Source: ||.||_2 <= ||.||_1 and ||.||_2 <= sqrt(d) ||.||_inf.
    """
    return radius / math.sqrt(dimension) if norm == "linf" else radius


def out_of_reach(
    certifier: Smoothing, sigma: float, threats: Sequence[Threat], dimension: int
) -> list[str]:
    """Threats that no number of agreeing draws could certify, with what could be.

    Args:
        sigma: the noise; where it depends on the input, some may have enough: no threat is told.
    """
    if certifier.needs_anchors:
        return []
    return [
        f"{threat.name}: {certifier.n} draws with sigma {sigma:g} and alpha {certifier.alpha:g} "
        f"certify an {threat.norm} radius of {most:.4g} at most"
        for threat in threats
        if (most := certifier.most(sigma, dimension, threat.norm)) < float(threat.eps)
    ]
