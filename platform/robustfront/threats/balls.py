"""The l-infinity, l2 and l1 balls and a segment, each intersected with the box [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal, Protocol

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from robustfront.problems import validated
from robustfront.randomness import Rng
from robustfront.registry import Component
from robustfront.threats.radius import Eps, eps_text

Norm = Literal["linf", "l2", "l1", "segment"]
"""The shape of a set around each input. `segment`: the first pixel alone may change, by eps; in
`linear_margin` it is what tells the classes apart."""

BALLS: tuple[Norm, ...] = ("linf", "l2", "l1")

# Each halves the interval of the threshold, at first as long as the largest entry: after these it
# is shorter than what fp32 can tell apart there.
_BISECTIONS = 26


def require_within_the_box(norm: object, eps: Fraction) -> Fraction:
    """The radius itself.

    Raises:
        ValueError: an linf radius, or that of a segment, above 1, the whole range of a pixel.
    """
    if norm in ("linf", "segment") and eps > 1:
        found = eps_text(eps)
        raise ValueError(
            f"an {norm} radius lies in [0, 1] (pixel units), got {found}; did you mean {found}/255?"
        )
    return eps


class PerturbationSet(Protocol):
    """What an attack needs of a set of allowed inputs around each x (N, C, H, W)."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """A point of the set near x_adv; x_adv itself where it lies in the set."""

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """A random point of the set for each x."""

    def step(
        self, x_adv: Tensor, x: Tensor, grad: Tensor, relative: float, absolute: float | None
    ) -> Tensor:
        """x_adv moved uphill, not projected; `absolute` replaces `relative` * eps."""

    def radius(self, x: Tensor) -> Tensor:
        """The radius of each x, (N, 1, 1, 1)."""

    def part(self, rows: slice) -> PerturbationSet:
        """The set of some consecutive examples of a batch."""


class Threat(Component):
    """A ball of radius `eps` in [0, 1] pixel units around each input, within the box [0, 1]."""

    norm: Norm
    eps: Eps

    @field_validator("eps")
    @classmethod
    def _within_the_box(cls, eps: Fraction, info: ValidationInfo) -> Fraction:
        return require_within_the_box(info.data.get("norm"), eps)

    @classmethod
    def parse(cls, text: str) -> Threat:
        """A threat from `linf:8/255`.

        Raises:
            ValueError: another form, an unknown norm, or a radius outside its range.
        """
        norm, colon, eps = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not colon:
            raise ValueError(f"write a threat as NORM:EPS, for instance linf:8/255, got {text!r}")
        threat, problems = validated(cls, {"norm": norm, "eps": eps})
        if threat is None:
            raise ValueError(f"{text}: {'; '.join(problems)}")
        return threat

    @property
    def name(self) -> str:
        """How metrics call it: `linf_8_255`, `l2_0.5`."""
        return f"{self.norm}_{eps_text(self.eps).replace('/', '_')}"

    @property
    def is_box(self) -> bool:
        """Whether it allows each value an interval of its own."""
        return self.norm in ("linf", "segment")

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest allowed value of each, where it is a box."""
        eps = float(self.eps)
        if self.norm == "segment":
            reach = _first_pixel(x) * eps
            return (x - reach).clamp(min=0), (x + reach).clamp(max=1)
        return (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Norm of the perturbation, (N,)."""
        return size_of(x_adv - x, self.norm)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """A point of set and box: the nearest one, but for l2 the box, then the ball.

        For l2 the order matters: shrinking towards x stays in the box, clipping after it would lose
        radius. eps = 0 gives x itself, bit for bit.
        """
        eps = float(self.eps)
        if eps == 0:
            return x.clone()
        if self.is_box:
            return torch.clamp(x_adv, *self.ends(x))
        if self.norm == "l2":
            delta = x_adv.clamp(0, 1) - x
            norms = _per_example(torch.linalg.vector_norm(delta.flatten(1), dim=1), x)
            return (x + delta * (eps / norms.clamp(min=eps))).clamp(0, 1)
        return x + _project_l1_box(x_adv - x, -x, 1 - x, eps)

    def radius(self, x: Tensor) -> Tensor:
        """The same for all examples."""
        return torch.full_like(x[:, :1, :1, :1], float(self.eps))

    def part(self, rows: slice) -> Threat:
        """The same for all examples."""
        return self

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """Uniform in the ball, then projected onto the box."""
        eps = float(self.eps)
        if self.is_box:
            delta = (2 * rng.uniform(x) - 1) * eps  # the projection leaves a segment its pixel
        elif self.norm == "l2":
            direction = rng.normal(x)
            length = rng.uniform(x[:, :1, :1, :1]) ** (1 / math.prod(x.shape[1:])) * eps
            norms = torch.linalg.vector_norm(direction.flatten(1), dim=1)
            delta = direction * (length / _per_example(norms, x))
        else:
            # d + 1 exponentials over their sum are uniform on the simplex; the last is the slack
            size, sign = rng.exponential(x), torch.sign(rng.uniform(x) - 0.5)
            total = size.flatten(1).sum(1) + rng.exponential(x[:, 0, 0, 0])
            delta = sign * size * (eps / _per_example(total, x))
        return self.project(x + delta, x)

    def scaled(self, factor: float | Fraction) -> Threat:
        """The set with a multiple of the radius; a box at most the whole range of a pixel."""
        eps = self.eps * Fraction(factor)
        return Threat(norm=self.norm, eps=min(eps, Fraction(1)) if self.is_box else eps)

    def step(
        self,
        x_adv: Tensor,
        x: Tensor,
        grad: Tensor,
        relative: float | Tensor,
        absolute: float | None,
    ) -> Tensor:
        """A step uphill of length `relative` * eps (or `absolute`) in this norm, not projected.

        `relative` may be of each example, (N, 1, 1, 1). All but l1: steepest ascent. l1: towards
        the point of ball and box where the linearised loss is largest, and not beyond it; steepest
        ascent would pile up on pixels that are at the box already. A zero gradient moves nothing.
        """
        size = relative * float(self.eps) if absolute is None else absolute
        if self.is_box:
            way = torch.sign(grad)
            return x_adv + size * (way * _first_pixel(x) if self.norm == "segment" else way)
        if self.norm == "l2":
            return step_in_l2(x_adv, grad, size)
        return step_in_l1(x_adv, x, grad, float(self.eps), size)


def size_of(delta: Tensor, norm: Norm) -> Tensor:
    """Norm of each example's values, (N,)."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "segment":
        others = flat[:, 1:].abs().sum(1)
        return torch.where(others == 0, flat[:, 0].abs(), math.inf)
    sizes: Tensor = torch.linalg.vector_norm(flat, 2.0 if norm == "l2" else 1.0, dim=1)
    return sizes


def _first_pixel(like: Tensor) -> Tensor:
    """1 for the first value of an input, 0 for the others, (1, ...)."""
    mask = torch.zeros_like(like[:1])
    mask.view(-1)[0] = 1
    return mask


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


def step_in_l2(x_adv: Tensor, grad: Tensor, size: float | Tensor) -> Tensor:
    """Along the gradient; a zero gradient moves nothing.

    Args:
        size: of the step, or of each example's, (N, 1, 1, 1).
    """
    # First by the largest entry: squares of very small or large entries are 0 or infinite.
    largest = _per_example(grad.flatten(1).abs().amax(1), grad)
    scaled = grad / largest.clamp(min=torch.finfo(grad.dtype).tiny)
    norms = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp(min=1e-30)
    return x_adv + size * scaled / _per_example(norms, grad)


def step_in_l1(
    x_adv: Tensor, x: Tensor, grad: Tensor, eps: float | Tensor, size: float | Tensor
) -> Tensor:
    """Towards the best point of ball and box, not beyond it; a zero gradient moves nothing.

    Args:
        eps: the radius, or those of the examples, (N, 1).
        size: of the step, or of each example's, (N, 1, 1, 1).
    """
    way = _best_l1_vertex(x, grad, eps) - x_adv
    length = _per_example(way.flatten(1).abs().sum(1), grad)
    share = (size / length.clamp(min=1e-30)).clamp(max=1)
    return x_adv + way * share * grad.flatten(1).any(1).reshape(-1, 1, 1, 1)


def _best_l1_vertex(x: Tensor, grad: Tensor, eps: float | Tensor) -> Tensor:
    """argmax <grad, z> over the l1 ball and the box: the steepest pixels as far as they can go.

    Pixels as steep as the last one that moves, to the precision of the bisection, share what is
    left of the radius.
    """
    slope, room = grad.flatten(1).abs(), torch.where(grad > 0, 1 - x, x).flatten(1)

    def steeper(least: Tensor) -> Tensor:
        # room where slope > least; written as numbers: flags take a CPU four times as long
        return torch.gt(slope, least, out=torch.empty_like(slope)).mul_(room)

    low, high = bracket(lambda least: steeper(least).sum(1, keepdim=True), slope, eps)
    move = steeper(high)
    last = steeper(low) - move
    left = (eps - move.sum(1, keepdim=True)).clamp(min=0)
    total = last.sum(1, keepdim=True)
    move += last * (left / total.clamp(min=1e-30)).clamp(max=1)
    return x + move.view_as(x) * torch.sign(grad)


def bracket(
    spent: Callable[[Tensor], Tensor], sizes: Tensor, most: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Thresholds (N, 1) between 0 and the largest of `sizes` (N, D) where `spent` meets `most`.

    Of a falling function `spent` of the threshold, 0 at the largest size: more than `most` at the
    first threshold unless that is 0, at most `most` at the second.
    """
    high = sizes.amax(1, keepdim=True)
    low = torch.zeros_like(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = spent(middle) <= most
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return low, high


def _project_l1_box(delta: Tensor, lower: Tensor, upper: Tensor, eps: float) -> Tensor:
    """argmin ||d - delta||_2 subject to ||d||_1 <= eps and lower <= d <= upper; 0 is feasible.

    d_i = clip(sign(delta_i) max(|delta_i| - t, 0), lower_i, upper_i) with the smallest t >= 0 that
    respects eps; the norm falls with t, so t is found by bisection, from the feasible side.
    """
    size, room = delta.abs().flatten(1), torch.where(delta > 0, upper, -lower).flatten(1)
    nothing = torch.zeros_like(room)

    def shrunk(threshold: Tensor) -> Tensor:
        return torch.clamp(size - threshold, nothing, room)

    inside = shrunk(size.new_zeros(())).sum(1, keepdim=True) <= eps
    _, high = bracket(lambda threshold: shrunk(threshold).sum(1, keepdim=True), size, eps)
    return torch.sign(delta) * shrunk(torch.where(inside, 0.0, high)).view_as(delta)
