"""MAX: cross-entropy of the input of the norm that hurts each example most."""

import numpy as np
import pytest
import torch
from numpy_reference import (
    BALLS,
    Watched,
    batch_norm_net,
    cross_entropy,
    examples,
    f64,
    linear_net,
    logits,
    running,
    separated,
)

from robustfront.attacks import PGD
from robustfront.methods import PGDAT, MaxAT, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

INNER = PGD(steps=3, start="zero")


def context(**balls: Threat) -> StepContext:
    return StepContext(BALLS["linf"], Rng((0, "max_at")), 0.0, balls or BALLS)


def found(net, x, y, balls=BALLS):
    def ce(z):
        return torch.nn.functional.cross_entropy(z, y, reduction="none")

    return [INNER(net, x, ce, ball, Rng((0,))) for ball in balls.values()]


def test_the_loss_takes_the_worst_norm_of_each_example():
    net, (x, _, y) = linear_net(), examples(40)
    each = np.stack(
        [cross_entropy(logits(net, f64(x_adv)), y.numpy()) for x_adv in found(net, x, y)]
    )
    assert len(set(each.argmax(0))) > 1, "not the same norm for all"
    expected = each.max(0).mean()
    # the largest mean of a norm is what a choice for the whole batch would give
    others = [each.mean(), each.min(0).mean(), each.max(0).sum(), each.sum(0).mean()]
    assert separated(expected, *others)
    assert abs(each.mean(1).max() / expected - 1) > 1e-3

    loss = MaxAT(inner=INNER).loss(net, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["adversarial_ce"].item() == pytest.approx(expected, rel=1e-5)


def test_within_one_norm_it_is_pgd_adversarial_training():
    net, (x, _, y) = linear_net(), examples()
    theirs = PGDAT(inner=INNER).loss(net, x, y, context())
    ours = MaxAT(inner=INNER).loss(net, x, y, context(linf=BALLS["linf"]))
    assert torch.equal(ours.total, theirs.total)


def test_batch_norm_sees_the_chosen_inputs_once():
    net, (x, _, y) = batch_norm_net(), examples()
    start = f64(net[1].running_mean), f64(net[1].running_var)
    watched = Watched(net).train()
    MaxAT(inner=INNER).loss(watched, x, y, context())
    (chosen,) = watched.trained_on
    mean, var = running(start, f64(chosen))
    np.testing.assert_allclose(f64(net[1].running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(f64(net[1].running_var), var, rtol=1e-5)
    assert watched.eval_passes == 3 * (INNER.steps + 1)


def test_what_it_costs():
    method = MaxAT(inner=PGD(steps=10))
    assert method.forward_equivalents + 3 * method.forward_equivalents_per_norm == 66
