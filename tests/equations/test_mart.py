"""MART: boosted cross-entropy of the adversarial inputs plus the KL weighted by 1 - p_y(x)."""

import numpy as np
import pytest
import torch
from numpy_reference import (
    Probe,
    check_batch_norm_sees_clean_then_adversarial,
    check_search_climbs_cross_entropy,
    cross_entropy,
    examples,
    f64,
    gradient,
    kl,
    linear_net,
    log_softmax,
    logits,
    separated,
)

from robustfront.attacks import PGD
from robustfront.methods import MART, StepContext
from robustfront.methods.base import log_complement
from robustfront.randomness import Rng
from robustfront.threats import Threat

BETA = 3.0


def context() -> StepContext:
    return StepContext(Threat(norm="linf", eps=1), Rng((0, "mart")), 0.0)


def probed(x_adv: torch.Tensor, at: torch.Tensor | None = None) -> MART:
    at = torch.zeros(len(x_adv), 4) if at is None else at
    return MART(beta=BETA).model_copy(update={"inner": Probe(found=x_adv, logits=at)})


def boosted(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    p = np.exp(log_softmax(z))
    others = p.copy()
    others[np.arange(len(y)), y] = 0
    return cross_entropy(z, y) - np.log(1 - others.max(axis=1))


def p_of(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(z))[np.arange(len(y)), y]


def test_the_loss():
    net, (x, x_adv, labels) = linear_net(), examples()
    y = labels.numpy()
    z, z_adv = logits(net, f64(x)), logits(net, f64(x_adv))
    each = boosted(z_adv, y)
    highest = -np.log(1 - np.exp(log_softmax(z_adv)).max(axis=1))
    assert separated(
        each.mean(),
        each.sum(),
        boosted(z, y).mean(),
        cross_entropy(z_adv, y).mean(),
        (cross_entropy(z_adv, y) + highest).mean(),
    )
    weighted = kl(z, z_adv) * (1 - p_of(z, y))
    assert separated(
        weighted.mean(),
        weighted.sum(),
        (kl(z_adv, z) * (1 - p_of(z, y))).mean(),
        (kl(z, z_adv) * p_of(z, y)).mean(),
        (kl(z, z_adv) * (1 - p_of(z_adv, y))).mean(),
        kl(z, z_adv).mean(),
    )
    first, second = each.mean(), weighted.mean()
    expected = first + BETA * second
    assert separated(expected, first + second, first + second / BETA)

    loss = probed(x_adv).loss(net, x, labels, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["boosted_ce"].item() == pytest.approx(first, rel=1e-5)
    assert loss.terms["weighted_kl"].item() == pytest.approx(second, rel=1e-5)


def test_the_gradient_reaches_the_weights_through_every_argument():
    net, (x, x_adv, labels) = linear_net(4.0), examples()
    y, bias, weight = labels.numpy(), f64(net[-1].bias), f64(net[-1].weight)

    def loss(w, fixed=None):
        z, z_adv = f64(x) @ w.T + bias, f64(x_adv) @ w.T + bias
        unsure = 1 - p_of(z if fixed is None else f64(x) @ fixed.T + bias, y)
        return boosted(z_adv, y).mean() + BETA * (kl(z, z_adv) * unsure).mean()

    expected = gradient(loss, weight)
    assert separated(expected, gradient(lambda w: loss(w, fixed=weight), weight))

    probed(x_adv).loss(net, x, labels, context()).total.backward()

    np.testing.assert_allclose(f64(net[-1].weight.grad), expected, atol=1e-4)


def test_the_search_makes_the_cross_entropy_large_in_eval_mode():
    check_search_climbs_cross_entropy(probed, context())


def test_batch_norm_sees_the_clean_then_the_adversarial_inputs():
    check_batch_norm_sees_clean_then_adversarial(probed, context())


def test_saturated_logits_have_finite_values_and_gradients():
    z = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    value = log_complement(z, torch.tensor([0, 0]))
    np.testing.assert_allclose(f64(value), [-200, 0], atol=1e-4)
    value.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_log_complement_equals_the_logarithm():
    z, y = torch.randn(6, 5), torch.arange(6) % 5
    np.testing.assert_allclose(f64(log_complement(z, y)), np.log(1 - p_of(f64(z), y)), rtol=1e-5)


def test_a_step_with_ten_inner_steps_costs_26_forwards():
    assert MART(inner=PGD(steps=10)).forward_equivalents == 2 * 10 + 6
