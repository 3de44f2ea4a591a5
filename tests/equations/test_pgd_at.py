"""PGD adversarial training: mean cross-entropy on adversarial inputs, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from numpy_reference import (
    Probe,
    Watched,
    batch_norm,
    batch_norm_net,
    cross_entropy,
    dropout_net,
    examples,
    f64,
    gradient,
    linear_net,
    logits,
    running,
    separated,
)
from torch import nn
from torch.nn import functional as F

from robustfront.attacks import PGD
from robustfront.methods import PGDAT, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

ANYWHERE = Threat(norm="linf", eps=1)  # projects nothing away


def context(threat: Threat = ANYWHERE) -> StepContext:
    return StepContext(threat, Rng((0, "pgd_at")), 0.0)


def probed(x_adv: torch.Tensor, at: torch.Tensor) -> PGDAT:
    return PGDAT().model_copy(update={"inner": Probe(found=x_adv, logits=at)})


def test_the_loss_is_the_mean_cross_entropy_of_the_adversarial_inputs():
    net, (x, x_adv, y) = linear_net(), examples()
    each = cross_entropy(logits(net, f64(x_adv)), y.numpy())
    expected = each.mean()
    clean = cross_entropy(logits(net, f64(x)), y.numpy()).mean()
    assert separated(expected, each.sum(), clean, clean + expected, (clean + expected) / 2)

    loss = probed(x_adv, torch.zeros(len(y), 4)).loss(net, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert set(loss.terms) == {"adversarial_ce"}
    assert loss.terms["adversarial_ce"].item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_holds_the_adversarial_inputs_fixed():
    net, (x, x_adv, y) = linear_net(), examples()
    bias = f64(net[-1].bias)

    def loss(weight, inputs):
        return cross_entropy(f64(inputs) @ weight.T + bias, y.numpy()).mean()

    weight = f64(net[-1].weight)
    expected = gradient(lambda w: loss(w, x_adv), weight)
    assert separated(expected, gradient(lambda w: loss(w, x), weight))

    probed(x_adv, torch.zeros(len(y), 4)).loss(net, x, y, context()).total.backward()

    np.testing.assert_allclose(f64(net[-1].weight.grad), expected, atol=1e-5)


def test_the_search_makes_the_cross_entropy_of_each_example_large():
    net, (x, x_adv, y) = linear_net(), examples()
    at = torch.randn(len(y), 4)
    method = probed(x_adv, at)

    method.loss(net.train(), x, y, context())

    expected = cross_entropy(f64(at), y.numpy())
    assert separated(expected, -expected, expected.mean())
    np.testing.assert_allclose(method.inner.values, expected, rtol=1e-5)
    assert method.inner.modes and not any(method.inner.modes)
    assert all(module.training for module in net.modules())


def test_with_batch_norm_the_search_uses_the_running_statistics():
    net, (x, _, y) = batch_norm_net(), examples()
    threat, inner = Threat(norm="linf", eps="3/10"), PGD(steps=5)

    def loss_at(searched: nn.Module) -> tuple[torch.Tensor, float]:
        found = inner(
            searched.eval(),
            x,
            lambda z: F.cross_entropy(z, y, reduction="none"),
            threat,
            Rng((0, "pgd_at")),
        )
        return found, cross_entropy(logits(net, batch_norm(f64(found))), y.numpy()).mean()

    in_train_mode = copy.deepcopy(net)
    in_train_mode[1] = nn.BatchNorm1d(12, affine=False, track_running_stats=False)
    x_adv, expected = loss_at(copy.deepcopy(net))
    assert separated(expected, loss_at(in_train_mode)[1])

    watched = Watched(net).train()
    loss = PGDAT(inner=inner).loss(watched, x, y, context(threat))

    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert len(watched.trained_on) == 1 and torch.equal(watched.trained_on[0], x_adv)


def test_with_dropout_the_search_drops_nothing():
    net, (x, _, y) = dropout_net(), examples()
    threat, inner = Threat(norm="l2", eps=1), PGD(steps=3)
    without = nn.Sequential(net[0], net[2])
    x_adv = inner(
        without, x, lambda z: F.cross_entropy(z, y, reduction="none"), threat, Rng((0, "pgd_at"))
    )
    watched = Watched(net).train()

    PGDAT(inner=inner).loss(watched, x, y, context(threat))

    assert torch.equal(watched.trained_on[0], x_adv)


def test_batch_norm_sees_the_adversarial_inputs_once():
    net, (x, x_adv, y) = batch_norm_net(), examples()
    x_adv = 0.2 * x_adv  # statistics of its own
    start = f64(net[1].running_mean), f64(net[1].running_var)
    mean, var = running(start, f64(x_adv))
    for passes in [(f64(x),), (f64(x), f64(x_adv)), (f64(x_adv), f64(x_adv))]:
        assert separated(mean, running(start, *passes)[0])

    probed(x_adv, torch.zeros(len(y), 4)).loss(net.train(), x, y, context())

    np.testing.assert_allclose(f64(net[1].running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(f64(net[1].running_var), var, rtol=1e-5)
    assert net[1].num_batches_tracked == 1


def test_the_search_leaves_the_gradients_of_the_weights_alone():
    net, (x, _, y) = linear_net(), examples()
    net[-1].weight.grad = torch.full_like(net[-1].weight, 7.0)

    PGDAT().loss(net, x, y, context(Threat(norm="linf", eps="1/10")))

    assert torch.equal(net[-1].weight.grad, torch.full_like(net[-1].weight, 7.0))
    assert net[-1].bias.grad is None


def test_a_step_with_ten_inner_steps_costs_23_forwards():
    assert PGDAT(inner=PGD(steps=10)).forward_equivalents == 2 * 10 + 3
