"""TRADES with the hinge loss, and the two sides of its bound."""

import numpy as np
import pytest
import torch
from numpy_reference import BALLS, examples, f64, linear_net, logits, separated

from robustfront.attacks import PGD, Noise
from robustfront.methods import StepContext, TradesHinge
from robustfront.randomness import Rng
from robustfront.threats import Threat

INNER = PGD(steps=3, start="gaussian")
BETA = 0.2


def context(threat=BALLS["linf"]) -> StepContext:
    return StepContext(threat, Rng((0, "hinge")), 0.0)


def two_classes(scale: float = 4.0) -> torch.nn.Sequential:
    net = linear_net(scale)
    small = torch.nn.Linear(12, 2)
    with torch.no_grad():
        small.weight.copy_(net[1].weight[:2])
        small.bias.copy_(net[1].bias[:2])
    return torch.nn.Sequential(net[0], small)


def hinge(t):
    return np.maximum(0, 1 - t)


def test_the_loss_of_two_classes_is_that_of_the_paper():
    net, (x, _, _) = two_classes(8.0), examples(40)
    y = torch.arange(40) % 2
    signs = 2 * y.numpy() - 1

    def f(images):
        z = logits(net, f64(images))
        return z[:, 1] - z[:, 0]

    score = net(x).detach()
    score = score[:, 1] - score[:, 0]
    x_adv = INNER(net, x, lambda z: -score * (z[:, 1] - z[:, 0]), BALLS["linf"], context().rng)
    clean, boundary = hinge(f(x) * signs), hinge(BETA * f(x) * f(x_adv))
    expected = clean.mean() + boundary.mean()
    assert 0 < (boundary > 0).mean() < 1
    assert separated(
        boundary.mean(),
        hinge(f(x) * f(x_adv) / BETA).mean(),  # lambda for 1/lambda
        hinge(BETA * signs * f(x_adv)).mean(),  # the label for the prediction
        hinge(BETA * f(x) ** 2).mean(),
        boundary.sum(),
        least=0.02,
    )
    assert separated(clean.mean(), hinge(f(x_adv) * signs).mean(), clean.sum())

    loss = TradesHinge(inner=INNER, beta=BETA).loss(net, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["boundary_hinge"].item() == pytest.approx(boundary.mean(), rel=1e-5)


def test_both_passes_get_gradients():
    net, (x, _, _) = two_classes(), examples(40)
    y = torch.arange(40) % 2
    method = TradesHinge(inner=INNER, beta=BETA)
    (grad,) = torch.autograd.grad(
        method.loss(net, x, y, context()).terms["boundary_hinge"], [net[1].weight]
    )
    with torch.no_grad():
        score = net(x)[:, 1] - net(x)[:, 0]
    x_adv = INNER(net, x, lambda z: -score * (z[:, 1] - z[:, 0]), BALLS["linf"], context().rng)
    a, b = (net(some)[:, 1] - net(some)[:, 0] for some in (x, x_adv))
    both = (1 - BETA * a * b).clamp(min=0).mean()
    (expected,) = torch.autograd.grad(both, [net[1].weight], retain_graph=True)
    one = (1 - BETA * a.detach() * b).clamp(min=0).mean()
    assert separated(f64(expected), f64(torch.autograd.grad(one, [net[1].weight])[0]))
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("attack", [PGD(steps=20), PGD(steps=1), Noise()])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("beta", [0.01, 0.2, 5.0])
def test_no_example_is_beyond_its_bound_at_the_attack_s_point(attack, classes, beta):
    """Theorem 3.1 holds example by example at one and the same point."""
    net, (x, _, y) = two_classes() if classes == 2 else linear_net(4.0), examples(200)
    threat = Threat(norm="linf", eps="1/20")
    found = TradesHinge(beta=beta).audit(net, x, y % classes, attack, threat, Rng((0,)))
    assert 0 < found["delta_lhs"].mean() < 1
    assert bool((found["gap"] >= 0).all())
    torch.testing.assert_close(found["gap"], found["delta_rhs"] - found["delta_lhs"])


def test_the_audit_of_a_linear_model_is_known_in_closed_form():
    net, (x, _, _) = two_classes(), examples(200)
    y, eps = torch.arange(200) % 2, 0.02
    inside = x.clamp(eps, 1 - eps)
    z = logits(net, f64(inside))
    score, signs = z[:, 1] - z[:, 0], 2 * y.numpy() - 1
    weight = f64(net[1].weight)
    reach = eps * np.abs(weight[1] - weight[0]).sum()
    worst = score * signs - reach
    attacked = worst * signs
    left, right = (
        (worst <= 0).mean(),
        (hinge(score * signs) + hinge(BETA * score * attacked)).mean(),
    )

    audit = TradesHinge(beta=BETA).audit(
        net, inside, y, PGD(steps=10), Threat(norm="linf", eps="1/50"), Rng((0,))
    )

    assert audit["delta_lhs"].mean().item() == pytest.approx(left, abs=1e-6)
    assert audit["delta_rhs"].mean().item() == pytest.approx(right, rel=1e-4)


def test_what_it_costs_and_how_lambda_is_given():
    method = TradesHinge.model_validate({"lambda": 5, "inner": {"steps": 20}})
    assert method.beta == pytest.approx(0.2)
    assert method.derived() == {"lambda": pytest.approx(5)}
    assert method.forward_equivalents == 40 + 7
