"""Free-AT: the same backward moves the weights and the perturbation, which outlives its batch."""

import copy

import numpy as np
import pytest
import torch
from numpy_reference import BALLS, cross_entropy, examples, f64, linear_net, log_softmax
from torch import nn

from robustfront.config import TrialConfig
from robustfront.methods import PGDAT, Standard, StepContext
from robustfront.problems import validated
from robustfront.randomness import Rng
from robustfront.threats import Threat
from robustfront.updates import Free, Plain

LR = 0.3


def context(threat: Threat, memory=None) -> StepContext:
    rng = Rng((0, "free"))
    return StepContext(threat, rng, 0.0, memory={} if memory is None else memory)


def stepped(update, method, ctx, batches) -> tuple[nn.Module, list[float]]:
    net = linear_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    return net, [float(update.step(net, optimizer, method, batch, ctx).total) for batch in batches]


def by_hand(batches, eps, replays, persists=True, moves_after=True):
    """Weights (K, D) and biases after linf Free-AT on a linear model, and the last losses."""
    net = linear_net()
    w, b = f64(net[-1].weight), f64(net[-1].bias)
    delta, losses = 0.0, []
    for x, y in batches:
        clean, labels = f64(x), y.numpy()
        if not persists:
            delta = 0.0
        for _ in range(replays):
            at = np.clip(np.clip(clean + delta, clean - eps, clean + eps), 0, 1)
            z = at @ w.T + b
            loss = cross_entropy(z, labels).mean()
            slope = (np.exp(log_softmax(z)) - np.eye(len(b))[labels]) / len(labels)
            uphill = slope @ w
            w, b = w - LR * slope.T @ at, b - LR * slope.sum(0)
            if moves_after:
                moved = np.clip(at + eps * np.sign(uphill), clean - eps, clean + eps)
                delta = np.clip(moved, 0, 1) - clean
        losses.append(loss)
    return w, b, losses


def two_batches():
    x, other, y = examples()
    return [(x, y), (other, y.roll(1))]


def test_weights_and_losses():
    threat, eps = Threat(norm="linf", eps="1/10"), 0.1
    w, b, losses = by_hand(two_batches(), eps, 3)
    for wrong in (
        by_hand(two_batches(), eps, 3, persists=False),
        by_hand(two_batches(), eps, 3, moves_after=False),
        by_hand(two_batches(), eps, 2),
        by_hand(two_batches(), eps / 2, 3),
    ):
        assert np.abs(wrong[0] - w).max() > 1e-4

    net, found = stepped(Free(replays=3), Standard(), context(threat), two_batches())

    np.testing.assert_allclose(f64(net[-1].weight), w, atol=1e-6)
    np.testing.assert_allclose(f64(net[-1].bias), b, atol=1e-6)
    np.testing.assert_allclose(found, losses, rtol=1e-5)


@pytest.mark.parametrize("norm", BALLS)
def test_without_a_radius_it_is_plain_training_on_replayed_batches(norm):
    threat, batches = Threat(norm=norm, eps=0), two_batches()
    free, _ = stepped(Free(replays=2), Standard(), context(threat), batches)
    twice = [batch for batch in batches for _ in range(2)]
    plain, _ = stepped(Plain(), Standard(), context(threat), twice)
    for a, b in zip(free.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("norm", BALLS)
def test_what_is_kept_stays_in_the_ball_and_the_box(norm):
    ctx, batches = context(BALLS[norm]), two_batches()
    stepped(Free(replays=4), Standard(), ctx, batches)
    x, delta = batches[-1][0], ctx.memory["free_delta"]
    assert 0.5 * float(BALLS[norm].eps) < BALLS[norm].distance(x + delta, x).max()
    assert (BALLS[norm].distance(x + delta, x) <= float(BALLS[norm].eps) * (1 + 1e-4)).all()
    assert (x + delta).min() >= -1e-6 and (x + delta).max() <= 1 + 1e-6


def test_it_wraps_any_method():
    ctx = context(BALLS["linf"])
    net, losses = stepped(Free(replays=2), PGDAT(), ctx, two_batches())
    plain, others = stepped(Plain(), PGDAT(), context(BALLS["linf"]), two_batches())
    assert np.isfinite(losses).all() and losses != others
    assert not torch.equal(net[-1].weight, plain[-1].weight)


def test_a_batch_s_examples_are_left_as_they_were():
    batches = two_batches()
    before = copy.deepcopy(batches)
    stepped(Free(replays=2), Standard(), context(BALLS["linf"]), batches)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, before, strict=True))
    assert not any(x.requires_grad or x.grad is not None for x, _ in batches)


def test_several_workers_are_refused():
    raw = {
        "data": {"type": "digits"},
        "model": {"type": "linear"},
        "threat": {"norm": "linf", "eps": "1/10"},
        "update": {"type": "free"},
    }
    config, _ = validated(TrialConfig, raw)
    assert config is not None and config.step_equivalents() == 8 * 3
    _, problems = validated(TrialConfig, raw | {"resources": {"workers": 2}})
    assert "workers: got 2, the update 'free' has one worker only" in problems[0]
