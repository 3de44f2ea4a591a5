"""ALP: cross-entropy of the adversarial inputs plus the mean distance of the logits to theirs."""

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
    linear_net,
    logits,
    separated,
)

from robustfront.attacks import PGD
from robustfront.methods import ALP, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

ANYWHERE = Threat(norm="linf", eps=1)  # projects nothing away
WEIGHT = 0.7


def context() -> StepContext:
    return StepContext(ANYWHERE, Rng((0, "alp")), 0.0)


def probed(x_adv: torch.Tensor, at: torch.Tensor | None = None) -> ALP:
    at = torch.zeros(len(x_adv), 4) if at is None else at
    return ALP(weight=WEIGHT).model_copy(update={"inner": Probe(found=x_adv, logits=at)})


def test_the_loss():
    net, (x, x_adv, y) = linear_net(), examples()
    z, z_adv = logits(net, f64(x)), logits(net, f64(x_adv))
    clean = cross_entropy(z, y.numpy()).mean()
    adversarial = cross_entropy(z_adv, y.numpy()).mean()
    each = np.linalg.norm(z_adv - z, axis=1)
    expected = adversarial + WEIGHT * each.mean()
    assert separated(
        expected,
        clean + WEIGHT * each.mean(),
        (clean + adversarial) / 2 + WEIGHT * each.mean(),
        adversarial + WEIGHT * (each**2).mean(),
        adversarial + WEIGHT * each.sum(),
        adversarial + WEIGHT * np.linalg.norm(z_adv - z) / len(z),
        adversarial + each.mean(),
    )

    loss = probed(x_adv).loss(net, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert set(loss.terms) == {"adversarial_ce", "pairing"}
    assert loss.terms["adversarial_ce"].item() == pytest.approx(adversarial, rel=1e-5)
    assert loss.terms["pairing"].item() == pytest.approx(each.mean(), rel=1e-5)


def test_the_gradient_reaches_the_weights_through_both_logits():
    net, (x, x_adv, y) = linear_net(), examples()
    bias, weight = f64(net[-1].bias), f64(net[-1].weight)

    def loss(w, fixed=None):
        z, z_adv = f64(x) @ (w if fixed is None else fixed).T, f64(x_adv) @ w.T
        distance = np.linalg.norm(z_adv - z, axis=1).mean()
        return cross_entropy(z_adv + bias, y.numpy()).mean() + WEIGHT * distance

    expected = gradient(loss, weight)
    assert separated(expected, gradient(lambda w: loss(w, fixed=weight), weight))

    probed(x_adv).loss(net, x, y, context()).total.backward()

    np.testing.assert_allclose(f64(net[-1].weight.grad), expected, atol=1e-5)


def test_the_search_makes_the_cross_entropy_large_in_eval_mode():
    check_search_climbs_cross_entropy(probed, context())


def test_batch_norm_sees_the_clean_then_the_adversarial_inputs():
    check_batch_norm_sees_clean_then_adversarial(probed, context())


def test_logits_that_are_equal_have_a_finite_gradient():
    net, (x, _, y) = linear_net(), examples()
    probed(x).loss(net, x, y, context()).total.backward()
    assert torch.isfinite(net[-1].weight.grad).all()


def test_a_step_with_ten_inner_steps_costs_26_forwards():
    assert ALP(inner=PGD(steps=10)).forward_equivalents == 2 * 10 + 6
