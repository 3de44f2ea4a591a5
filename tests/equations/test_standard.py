"""Standard training: mean cross-entropy on the inputs as they are."""

import numpy as np
import pytest
import torch
from numpy_reference import (
    Watched,
    batch_norm_net,
    cross_entropy,
    examples,
    f64,
    gradient,
    linear_net,
    logits,
    running,
    separated,
)

from robustfront.methods import Standard, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

CTX = StepContext(Threat(norm="linf", eps="3/10"), Rng((0, "standard")), 0.0)


def test_the_loss_is_the_mean_cross_entropy_of_the_clean_inputs():
    net, (x, x_adv, y) = linear_net(), examples()
    each = cross_entropy(logits(net, f64(x)), y.numpy())
    expected = each.mean()
    adversarial = cross_entropy(logits(net, f64(x_adv)), y.numpy()).mean()
    assert separated(expected, each.sum(), adversarial, expected / 4)

    loss = Standard().loss(net, x, y, CTX)

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert set(loss.terms) == {"clean_ce"}
    assert loss.terms["clean_ce"].item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_that_of_the_mean_cross_entropy():
    net, (x, _, y) = linear_net(), examples()
    bias = f64(net[-1].bias)

    def loss(weight):
        return cross_entropy(f64(x) @ weight.T + bias, y.numpy()).mean()

    Standard().loss(net, x, y, CTX).total.backward()

    expected = gradient(loss, f64(net[-1].weight))
    np.testing.assert_allclose(f64(net[-1].weight.grad), expected, atol=1e-5)


def test_batch_norm_sees_the_clean_inputs_once():
    net, (x, _, y) = batch_norm_net(), examples()
    start = f64(net[1].running_mean), f64(net[1].running_var)
    mean, var = running(start, f64(x))
    assert separated(mean, start[0], running(start, f64(x), f64(x))[0])
    watched = Watched(net).train()

    Standard().loss(watched, x, y, CTX)

    assert len(watched.trained_on) == 1 and torch.equal(watched.trained_on[0], x)
    assert watched.eval_passes == 0
    np.testing.assert_allclose(f64(net[1].running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(f64(net[1].running_var), var, rtol=1e-5)


def test_a_step_costs_a_forward_and_a_full_backward():
    assert Standard().forward_equivalents == 3
