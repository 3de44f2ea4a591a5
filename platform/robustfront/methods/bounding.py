"""What methods that train on bounds share: one pass, initialisation, regularisers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from robustfront.attacks import PGD, Attack, AttackField
from robustfront.certifiers.propagation import (
    Ball,
    Bounds,
    Box,
    Interval,
    Region,
    margins_of,
    propagate,
    regions_of,
)
from robustfront.methods.base import LossTerms, Method, StepContext, cross_entropies
from robustfront.threats import Mixture, PerturbationSet, Threat

Share = Annotated[float, Field(ge=0, le=1)]

_TOLERANCE = 0.5  # of the regularisers
_LEAST = 1e-6  # radius at which they are evaluated before the ramp begins


class Bounding(Method):
    """Trains on lower bounds of margins over regions around each example.

    loss = kappa_t CE(f(x), y) + (1 - kappa_t) robust + regularisers, kappa_t from 1 at the start of
    the radius' ramp to `kappa` at its end.

    All of it is one pass: clean examples, centres and radii together. Batch norm takes the
    statistics of the clean examples; searches run in eval mode.

    Deviates: the regularisers are of all regions of a method, where the code of CURE takes those of
    linf, and of MTL-IBP and its like those of the whole threat; weights that follow a sum, as in a
    residual network, begin like others, where those of arXiv:2103.17268 begin with half the size.

    Args:
        kappa: weight of the clean cross-entropy at the full radius.
        regularise: weight of the two regularisers of the ramp, falling to 0 at the full radius.
        l1: weight of the sum of all weights' sizes.
        fast_init: weights whose bounds neither explode nor vanish with depth.
    """

    looks_inside: ClassVar[bool] = True
    dual: ClassVar[bool] = False  # see `propagate`

    kappa: Share = 0.0
    regularise: NonNegativeFloat = 0.5
    l1: NonNegativeFloat = 0.0
    fast_init: bool = True

    def regions(
        self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext
    ) -> list[list[Region]]:
        """Regions to bound, each group of them for the whole batch: everything that is allowed."""
        return [whole(ctx.threat, x)]

    def robust(self, margins: Sequence[Tensor], ctx: StepContext) -> Mapping[str, Tensor]:
        """The robust term as `robust`, and its parts by name, scalars.

        Args:
            margins: lower bounds (N, K - 1) for each group of regions.
        """
        return {"robust": verified_ce(margins[0]).mean()}

    def traces(self, ctx: StepContext) -> bool:
        """Whether its bounds need a backward pass, too."""
        return False

    def lower(self, known: Bounds, rule: Tensor, ctx: StepContext) -> Tensor:
        """Bounds of the margins that a specification names: interval bounds."""
        return known.lower(rule)

    def initialise(self, model: nn.Module) -> None:
        """Normal weights with a variance of 2 pi / fan_in^2, in all layers but the last.

        Source: arXiv:2103.17268, section 3.2.
        """
        if not self.fast_init:
            return
        *layers, _ = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        for layer in layers:
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / fan_in)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """`clean_ce`, `robust` and its parts, `tightness`, `balance`, all before their weights."""
        groups = self.regions(model, x, y, ctx)
        weight = self.regularise * (1 - ctx.strength)
        kappa = 1 - (1 - self.kappa) * ctx.strength
        clean = x if kappa > 0 or has_batch_norm(model) else None
        every = [region for group in groups for region in group]
        known = propagate(model, every, clean, weight > 0, self.traces(ctx), self.dual)
        rule = margins_of(y.repeat(len(groups)), known.classes)
        margins = self.lower(known, rule, ctx).chunk(len(groups))
        terms = dict(self.robust(margins, ctx))
        total = (1 - kappa) * terms["robust"]
        if kappa > 0:
            terms["clean_ce"] = F.cross_entropy(known.clean, y)
            total = total + kappa * terms["clean_ce"]
        if weight > 0 and known.hidden:
            terms["tightness"], terms["balance"] = tightness(known), balance(known)
            total = total + weight * (terms["tightness"] + terms["balance"])
        if self.l1:
            terms["l1"] = _size_of_weights(model)
            total = total + self.l1 * terms["l1"]
        # The same names in every step: what takes no part is 0.
        for name in ("clean_ce", "tightness", "balance"):
            terms.setdefault(name, x.new_zeros(()))
        return LossTerms(total, terms)


class Mixing(Bounding):
    """A mixture of what an attack finds and of interval bounds over the whole threat.

    `robust` is given the margins at attacked inputs, then the bounds.

    Args:
        weight: of the bounds; 1 is IBP, 0 adversarial training.
        inner: the attack.
    """

    weight: Share
    inner: AttackField = PGD(steps=8, rel_step_size=0.25)

    @property
    def forward_equivalents(self) -> float:
        """The search; clean, attacked input and bounds, each with centre and radius."""
        return self.inner.forward_equivalents + 18

    def regions(
        self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext
    ) -> list[list[Region]]:
        """An input that the attack finds, and everything that the threat allows."""
        found = searched(self.inner, model, x, y, ctx)
        return [[Box(found, torch.zeros_like(found))], whole(ctx.threat, x)]


def verified_ce(margins: Tensor) -> Tensor:
    """-log of the least probability that the label has, (N,), of lower bounds of margins."""
    return F.softplus(torch.logsumexp(-margins, dim=1))


def whole(threat: PerturbationSet, x: Tensor) -> list[Region]:
    """All that a threat allows; a little where it allows nothing."""
    return regions_of(_not_empty(threat), x)


def parts_around(threat: PerturbationSet, x: Tensor, found: Tensor, share: float) -> list[Region]:
    """Regions with `share` of the threat's radius, inside the threat, as near to `found` as can be.

    Source: arXiv:2210.04871 (SABR), section 3, for linf.
    """
    threat = _not_empty(threat)
    if isinstance(threat, Mixture):
        sizes = [size for _, size in threat.parts]
        pieces = zip(threat.parts, torch.split(x, sizes), torch.split(found, sizes), strict=True)
        return [r for (ball, _), a, b in pieces for r in parts_around(ball, a, b, share)]
    if not isinstance(threat, Threat):
        raise TypeError(f"bounds are for balls, not for {threat!r}")
    if threat.is_box:
        (box,) = regions_of(threat, x)
        assert isinstance(box, Box)
        radius = share * box.radius
        lower, upper = box.centre - box.radius + radius, box.centre + box.radius - radius
        return [Box(found.clamp(lower, upper), radius)]
    centre = threat.scaled(1 - share).project(found, x)
    return [Ball(centre, threat.scaled(share), torch.ones_like(x[:1]))]


def searched(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
    """Where the cross-entropy is large within the threat."""
    return attack(model, x, cross_entropies(y), ctx.threat, ctx.rng)


def tightness(known: Bounds) -> Tensor:
    """How far the mean radius grows beyond that of the inputs, by layer.

    Source: arXiv:2103.17268, section 3.3.
    """
    ratios = torch.stack([known.start / seen.radius.mean() for seen in known.hidden])
    return F.relu(_TOLERANCE - ratios).mean() / _TOLERANCE


def balance(known: Bounds) -> Tensor:
    """How unequal units that are always on and those that are always off are, by layer.

    Source: arXiv:2103.17268, section 3.3.
    """
    penalties = [penalty for seen in known.hidden for penalty in _imbalances(seen)]
    stacked = torch.stack(penalties)
    finite = torch.where(torch.isfinite(stacked), stacked, 0)
    return finite.sum() / (_TOLERANCE * len(known.hidden))


def _imbalances(seen: Interval) -> list[Tensor]:
    """Of the means, then of the spreads, of the units that are on and those that are off."""
    centre = seen.centre
    on, off = (seen.lower > 0).to(centre.dtype), (seen.upper < 0).to(centre.dtype)
    spread = (centre - centre.mean()).square()
    means = (centre * on).mean(), -(centre * off).mean()
    spreads = (spread * on).sum(), (spread * off).sum()
    found = []
    for one, other in (means, spreads):
        # A division by 0 would make the gradient NaN even where the value is left out.
        some = (one > 0) & (other > 0)
        ratio = torch.where(some, one, 1) / torch.where(some, other, 1)
        penalty = F.relu(_TOLERANCE - torch.minimum(ratio, 1 / ratio))
        found.append(torch.where(some, penalty, 0))
    return found


def _not_empty(threat: PerturbationSet) -> PerturbationSet:
    if isinstance(threat, Mixture):
        return Mixture([(_not_empty(ball), n) for ball, n in threat.parts], threat.before)  # type: ignore[misc]
    if isinstance(threat, Threat) and threat.eps < _LEAST:
        return Threat(norm=threat.norm, eps=f"{_LEAST:f}")
    return threat


def has_batch_norm(model: nn.Module) -> bool:
    """Whether its bounds depend on clean examples while it trains."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _size_of_weights(model: nn.Module) -> Tensor:
    sizes = [
        layer.weight.abs().sum()
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    return torch.stack(sizes).sum()
