"""Certified training for linf and l2 at once."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField
from robustfront.certifiers.propagation import Region
from robustfront.methods.base import METHODS, StepContext, cross_entropies, kl_divergence
from robustfront.methods.bounding import Bounding, Share, parts_around, verified_ce
from robustfront.threats import Norm, Threat


@METHODS.register
class CURE(Bounding):
    """CURE: small bounding regions within the linf and the l2 ball, and their bounds aligned.

    With CE_p the cross-entropy at the bounds over a region of the p-ball around what an attack
    finds in it (SABR), of `share_linf` and `share_l2` of its radius:

    joint:  robust = (1 - alpha) mean CE_linf + alpha mean CE_l2
    max:    robust = mean max(CE_linf, CE_l2)
    random: robust = mean CE_linf of one half of the batch and CE_l2 of the other

    plus `align` KL(p_q || p_r), mean over the examples that are certified under q = `align_from`, p
    the softmax of the bounds (gradients through both sides; without a meaning, and left out, for
    `random`). The update `gradient_projection` is what it takes unless told otherwise.

    `l2_term: box` is the paper's: a box of linf radius share_l2 * eps around the l2 attack, which
    with its 1e-5 is l2 adversarial training. `ball` bounds an l2 ball by the dual norm of the first
    layer, inside the threat; share_l2 = 1 is then all of the l2 ball, certified.

    Batch norm: one pass of x, whose statistics all bounds use; searches run in eval mode.
    Source: arXiv:2410.03000, sections 4.1 to 4.3. Official code: uiuc-focal-lab/CURE.
    Deviates: l2 iterates stay in their ball (in the code they leave it); the projection acts from
    the first epoch, the code's after the ramp of the radius, and has the share of its own update;
    bounds are aligned in one direction at a time, where the code can add up both.
    """

    default_update = "gradient_projection"

    type: Literal["cure"] = "cure"
    combine: Literal["joint", "max", "random"] = "max"
    alpha: Share = 0.5  # of the l2 term in `joint`
    share_linf: Share = 0.4
    share_l2: Share = 1e-5
    l2_term: Literal["box", "ball"] = "box"
    align: NonNegativeFloat = 2.0
    align_from: Literal["linf", "l2"] = "l2"
    inner: AttackField = PGD(steps=8, rel_step_size=0.5)

    @property
    def required_norms(self) -> tuple[Norm, ...]:
        """Both."""
        return ("linf", "l2")

    @property
    def forward_equivalents(self) -> float:
        """One search and one region an example in `random`, else two; clean examples with them."""
        if self.combine == "random":
            return self.inner.forward_equivalents + 9
        return 2 * self.inner.forward_equivalents + 15

    def regions(
        self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext
    ) -> list[list[Region]]:
        """Of linf and of l2 for each example; in `random` of linf for the first half only."""
        if self.combine != "random":
            every = slice(None)
            return [self._around(norm, model, x, y, ctx, every) for norm in self.required_norms]
        # Batches are shuffled: the first half is any half.
        middle = len(x) // 2
        halves = slice(0, middle), slice(middle, None)
        pairs = zip(self.required_norms, halves, strict=True)
        parts = [self._around(norm, model, x, y, ctx, half) for norm, half in pairs if len(x[half])]
        return [[region for part in parts for region in part]]

    def robust(self, margins: Sequence[Tensor], ctx: StepContext) -> Mapping[str, Tensor]:
        """`robust`, `ce_linf`, `ce_l2` and `alignment` (before its weight)."""
        if len(margins) == 1:
            return {"robust": verified_ce(margins[0]).mean()}
        of = dict(zip(self.required_norms, margins, strict=True))
        linf, l2 = verified_ce(of["linf"]), verified_ce(of["l2"])
        if self.combine == "joint":
            robust = (1 - self.alpha) * linf.mean() + self.alpha * l2.mean()
        else:
            robust = torch.maximum(linf, l2).mean()
        terms = {"ce_linf": linf.mean(), "ce_l2": l2.mean()}
        if self.align:
            other = "linf" if self.align_from == "l2" else "l2"
            terms["alignment"] = aligned(of[self.align_from], of[other])  # type: ignore[index]
            robust = robust + self.align * terms["alignment"]
        return {"robust": robust, **terms}

    def _around(
        self, norm: Norm, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext, rows: slice
    ) -> list[Region]:
        x, y, ball = x[rows], y[rows], ctx.balls[norm]
        rng = ctx.rng.child(norm)
        found = self.inner(model, x, cross_entropies(y), ball, rng)
        if norm == "linf":
            return parts_around(ball, x, found, self.share_linf)
        if self.l2_term == "box":
            ball = Threat(norm="linf", eps=min(ball.eps, 1))
        return parts_around(ball, x, found, self.share_l2)


def aligned(reference: Tensor, other: Tensor) -> Tensor:
    """KL(p_reference || p_other) of the bounds' softmax, mean over what the reference certifies.

    Args:
        reference, other: lower bounds of margins (N, K - 1).
    """
    certified = (reference > 0).all(1)
    own = F.pad(-reference, (1, 0))  # upper bounds of z_k - z_y, that of y first
    divergence = kl_divergence(F.log_softmax(own, dim=1), F.pad(-other, (1, 0)))
    return (divergence * certified).sum() / certified.sum().clamp(min=1)
