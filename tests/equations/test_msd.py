"""MSD: each step of the search is that of the norm with the largest loss."""

import numpy as np
import pytest
import torch
from numpy_reference import (
    BALLS as ALL_BALLS,
)
from numpy_reference import (
    Watched,
    cross_entropy,
    examples,
    f64,
    linear_net,
    log_softmax,
    logits,
    separated,
)

from robustfront.attacks import PGD
from robustfront.methods import MSD, PGDAT, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

BALLS = {**ALL_BALLS, "linf": Threat(norm="linf", eps="3/20")}  # about as strong as l2
RELATIVE, STEPS = 0.4, 4


def context(**balls: Threat) -> StepContext:
    return StepContext(BALLS["linf"], Rng((0, "msd")), 0.0, balls or BALLS)


def in_linf_and_l2(net, x, y):
    """The search in NumPy, of which the last iterate and the best one."""
    weight, at = f64(net[-1].weight), f64(x)
    clean, best, highest = at, at, np.full(len(x), -np.inf)
    for _ in range(STEPS):
        grad = (np.exp(log_softmax(logits(net, at))) - np.eye(4)[y]) @ weight
        inf = np.clip(
            np.clip(at + RELATIVE * 0.15 * np.sign(grad), clean - 0.15, clean + 0.15), 0, 1
        )
        two = at + RELATIVE * 0.5 * grad / np.linalg.norm(grad, axis=1, keepdims=True)
        delta = np.clip(two, 0, 1) - clean
        length = np.maximum(np.linalg.norm(delta, axis=1, keepdims=True), 0.5)
        candidates = np.stack([inf, clean + delta * 0.5 / length])
        values = np.stack([cross_entropy(logits(net, some), y) for some in candidates])
        which = values.argmax(0)
        at = candidates[which, np.arange(len(x))]
        value = values.max(0)
        best = np.where((value > highest)[:, None], at, best)
        highest = np.maximum(value, highest)
        yield which, best


def test_the_loss():
    net, (x, _, y) = linear_net(), examples(24)
    labels = y.numpy()
    steps = list(in_linf_and_l2(net, x, labels))
    assert len(set(np.concatenate([which for which, _ in steps]))) == 2, "both norms are chosen"
    expected = cross_entropy(logits(net, steps[-1][1]), labels).mean()
    two = {"linf": BALLS["linf"], "l2": BALLS["l2"]}
    pgd = PGD(steps=STEPS, rel_step_size=RELATIVE, start="zero")
    alone = [
        PGDAT(inner=pgd).loss(net, x, y, StepContext(ball, Rng((0,)), 0.0)).total.item()
        for ball in two.values()
    ]
    assert expected > max(alone) * 1.001
    assert separated(expected, min(alone), cross_entropy(logits(net, f64(x)), labels).mean())

    loss = MSD(steps=STEPS, rel_step_size=RELATIVE).loss(net, x, y, context(**two))

    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert loss.terms["adversarial_ce"].item() == pytest.approx(expected, rel=1e-4)


def test_every_input_lies_in_one_of_the_balls_and_in_the_box():
    net, (x, _, y) = linear_net(), examples(24)
    watched = Watched(net).train()
    MSD().loss(watched, x, y, context())
    (x_adv,) = watched.trained_on
    inside = [ball.distance(x_adv, x) <= float(ball.eps) * (1 + 1e-4) for ball in BALLS.values()]
    assert torch.stack(inside).any(0).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert watched.eval_passes == 10 * (1 + 3)


def test_within_one_norm_it_is_pgd_that_keeps_the_best():
    net, (x, _, y) = linear_net(), examples()
    one = {"linf": BALLS["linf"]}
    ours = MSD(steps=5, rel_step_size=0.2).loss(net, x, y, context(**one))
    pgd = PGD(steps=5, rel_step_size=0.2, start="zero")  # on a linear model the last is the best
    theirs = PGDAT(inner=pgd).loss(net, x, y, context())
    torch.testing.assert_close(ours.total, theirs.total)


def test_what_it_costs():
    method = MSD(steps=10)
    assert method.forward_equivalents + 3 * method.forward_equivalents_per_norm == 53
