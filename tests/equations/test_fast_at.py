"""Fast-AT: mean cross-entropy of what one step from a random start finds."""

import numpy as np
import pytest
import torch
from numpy_reference import (
    Watched,
    batch_norm_net,
    cross_entropy,
    examples,
    f64,
    linear_net,
    log_softmax,
    logits,
    running,
    separated,
)
from torch.nn import functional as F

from robustfront.attacks import FGSM
from robustfront.methods import FastAT, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

EPS = 0.2
SET = Threat(norm="linf", eps="1/5")


def context() -> StepContext:
    return StepContext(SET, Rng((0, "fast_at")), 0.0)


def slope(net, x, y):
    """Of the cross-entropy to the pixels (N, 12)."""
    p = np.exp(log_softmax(logits(net, x)))
    return (p - np.eye(4)[y]) @ f64(net[-1].weight)


def test_the_loss():
    net, (x, _, y) = linear_net(), examples()
    labels, clean = y.numpy(), f64(x)
    start = f64(SET.sample(x, Rng((0, "fast_at")).child("restart", 0)))

    def moved(at, size):
        stepped = at + size * EPS * np.sign(slope(net, at, labels))
        return np.clip(np.clip(stepped, clean - EPS, clean + EPS), 0, 1)

    def loss_at(found):
        return cross_entropy(logits(net, found), labels).mean()

    expected = loss_at(moved(start, 1.25))
    assert separated(expected, loss_at(start), loss_at(moved(clean, 1.25)), loss_at(clean))
    assert abs(expected / loss_at(moved(start, 1)) - 1) > 1e-3
    unclipped = start + 1.25 * EPS * np.sign(slope(net, start, labels))
    assert separated(expected, loss_at(unclipped), loss_at(np.clip(unclipped, 0, 1)))

    loss = FastAT().loss(net, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["adversarial_ce"].item() == pytest.approx(expected, rel=1e-5)


def test_from_the_input_with_a_step_of_eps_it_is_fgsm_adversarial_training():
    net, (x, _, y) = linear_net(), examples()
    x_adv = FGSM()(net, x, lambda z: F.cross_entropy(z, y, reduction="none"), SET, Rng((0,)))
    watched = Watched(net).train()
    FastAT(start="zero", rel_step_size=1).loss(watched, x, y, context())
    assert torch.equal(watched.trained_on[0], x_adv)


def test_batch_norm_sees_the_adversarial_inputs_once():
    net, (x, _, y) = batch_norm_net(), examples()
    start = f64(net[1].running_mean), f64(net[1].running_var)
    watched = Watched(net).train()

    FastAT().loss(watched, x, y, context())

    assert len(watched.trained_on) == 1 and watched.eval_passes == 1
    mean, var = running(start, f64(watched.trained_on[0]))
    np.testing.assert_allclose(f64(net[1].running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(f64(net[1].running_var), var, rtol=1e-5)


def test_a_step_costs_five_forwards():
    assert FastAT().forward_equivalents == 5
