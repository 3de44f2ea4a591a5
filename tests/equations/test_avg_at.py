"""AVG: cross-entropies within every norm, weighted by the shares."""

import numpy as np
import pytest
import torch
from numpy_reference import (
    BALLS,
    Watched,
    cross_entropy,
    examples,
    f64,
    linear_net,
    logits,
    separated,
)

from robustfront.attacks import PGD
from robustfront.methods import PGDAT, AvgAT, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Norm, Threat

INNER = PGD(steps=3, start="zero")
SHARES: dict[Norm, float] = {"linf": 0.2, "l2": 0.3, "l1": 0.5}


def context(**balls: Threat) -> StepContext:
    shares = {norm: 1.0 for norm in balls} or SHARES
    return StepContext(BALLS["linf"], Rng((0, "avg_at")), 0.0, balls or BALLS, shares)


def test_the_loss():
    net, (x, _, y) = linear_net(), examples()

    def ce(z):
        return torch.nn.functional.cross_entropy(z, y, reduction="none")

    each = [
        cross_entropy(logits(net, f64(INNER(net, x, ce, ball, Rng((0,))))), y.numpy()).mean()
        for ball in BALLS.values()
    ]
    expected = np.dot([0.2, 0.3, 0.5], each)
    assert separated(expected, sum(each), max(each), min(each))
    assert abs(np.mean(each) / expected - 1) > 1e-3
    watched = Watched(net).train()

    loss = AvgAT(inner=INNER).loss(watched, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert set(loss.terms) == {f"adversarial_ce_{norm}" for norm in BALLS}
    for norm, value in zip(BALLS, each, strict=True):
        assert loss.terms[f"adversarial_ce_{norm}"].item() == pytest.approx(value, rel=1e-5)
    assert len(watched.trained_on) == 3
    distances = [
        ball.distance(x_adv, x).max().item() / float(ball.eps)
        for ball, x_adv in zip(BALLS.values(), watched.trained_on, strict=True)
    ]
    assert distances == pytest.approx([1, 1, 1], rel=1e-3)


def test_within_one_norm_it_is_pgd_adversarial_training():
    net, (x, _, y) = linear_net(), examples()
    theirs = PGDAT(inner=INNER).loss(net, x, y, context())
    ours = AvgAT(inner=INNER).loss(net, x, y, context(linf=BALLS["linf"]))
    assert torch.equal(ours.total, theirs.total)


def test_what_it_costs():
    method = AvgAT(inner=PGD(steps=10))
    assert method.forward_equivalents + 3 * method.forward_equivalents_per_norm == 69
