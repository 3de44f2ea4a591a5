"""Attacks on linear models f(x) = Wx + b, whose worst case is known.

The worst margin in a ball is margin - eps * (dual norm of the difference of two rows of W).
"""

import numpy as np
import pytest
import torch
from numpy_reference import f64, source
from torch import Tensor, nn

from robustfront.attacks import FGSM, PGD, Attack, misclassification
from robustfront.randomness import Rng
from robustfront.threats import Threat

DUAL = {
    "linf": lambda w: np.abs(w).sum(),
    "l2": lambda w: np.sqrt((w**2).sum()),
    "l1": lambda w: np.abs(w).max(),
}
SMALL = {"linf": "1/50", "l2": "1/10", "l1": "1/4"}  # the box stays out of reach of x near 0.5
EXACT = PGD(steps=100, rel_step_size=0.5)


def binary(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Model, x around the middle of the box, y: the likelier class of each example."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    with torch.no_grad():
        net[1].weight.normal_(generator=source("w", seed)).mul_(0.5)
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    x = 0.5 + 0.2 * (torch.rand(16, 2, 3, 4, generator=source("x", seed)) - 0.5)
    return net, x, net(x).argmax(1)


def margin(net: nn.Sequential, x: Tensor, y: Tensor) -> np.ndarray:
    """Logit of the true class minus the other, in float64."""
    z = f64(x) @ f64(net[1].weight).T + f64(net[1].bias)
    return z[np.arange(len(y)), y] - z[np.arange(len(y)), 1 - y]


def direction(net: nn.Sequential, y: Tensor) -> np.ndarray:
    """What the margin grows along, (N, D)."""
    weight = f64(net[1].weight)
    return weight[y] - weight[1 - y]


def attacked(attack: Attack, threat: Threat, net: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    return attack(net, x, misclassification(y), threat, Rng((0, "closed form")))


@pytest.mark.parametrize("start", ["uniform", "zero", "gaussian"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_reaches_margin_minus_eps_times_the_dual_norm(norm, start):
    net, x, y = binary()
    threat = Threat(norm=norm, eps=SMALL[norm])
    w = direction(net, y)
    worst = margin(net, x, y) - float(threat.eps) * np.array([DUAL[norm](row) for row in w])
    for other in set(DUAL) - {norm}:  # a wrong dual norm would be noticed
        assert abs(DUAL[other](w[0]) / DUAL[norm](w[0]) - 1) > 0.05

    found = attacked(EXACT.model_copy(update={"start": start}), threat, net, x, y)

    np.testing.assert_allclose(margin(net, found, y), worst, atol=1e-4)
    assert (margin(net, found, y) >= worst - 1e-5).all()
    assert found.min() > 0 and found.max() < 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_with_its_default_steps_loses_under_five_percent_of_the_way(norm):
    net, x, y = binary()
    threat = Threat(norm=norm, eps=SMALL[norm])
    way = float(threat.eps) * np.array([DUAL[norm](row) for row in direction(net, y)])

    found = attacked(PGD(), threat, net, x, y)

    assert ((margin(net, x, y) - margin(net, found, y)) / way).min() > 0.95


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_exact_on_a_binary_linear_model(norm):
    net, x, y = binary(1)
    threat = Threat(norm=norm, eps=SMALL[norm])
    worst = margin(net, x, y) - float(threat.eps) * np.array(
        [DUAL[norm](row) for row in direction(net, y)]
    )

    found = attacked(FGSM(), threat, net, x, y)

    np.testing.assert_allclose(margin(net, found, y), worst, atol=1e-4)


@pytest.mark.parametrize("attack", [EXACT, FGSM()])
def test_at_the_box_an_linf_attack_reaches_the_clipped_worst_case(attack):
    net, x, y = binary(2)
    x = ((x - 0.5) * 5 + 0.5).clamp(0, 1)
    threat = Threat(norm="linf", eps="3/10")
    w = direction(net, y)
    best = np.clip(f64(x) - 0.3 * np.sign(w), 0, 1)
    worst = margin(net, x, y) + (w * (best - f64(x))).sum(1)
    unclipped = margin(net, x, y) - 0.3 * np.abs(w).sum(1)
    assert np.median((worst - unclipped) / np.abs(worst)) > 0.05

    found = attacked(attack, threat, net, x, y)

    np.testing.assert_allclose(margin(net, found, y), worst, atol=1e-4)


def share_of_the_way(attack: Attack, pixels: int, eps: float) -> np.ndarray:
    """What an l1 attack takes from the margin, as a share of what the ball and the box allow.

    The best point moves the pixels with the largest weights to the box until eps is spent.
    """
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2))
    with torch.no_grad():
        net[1].weight.normal_(generator=source("w")).mul_(2 / pixels**0.5)
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    x = torch.rand(8, 1, 1, pixels, generator=source("x"))
    y = net(x).argmax(1)
    w = direction(net, y)
    steepest = np.argsort(-np.abs(w), axis=1)
    room = np.take_along_axis(np.where(w > 0, f64(x), 1 - f64(x)), steepest, 1)
    spent = np.diff(np.minimum(room.cumsum(1), eps), axis=1, prepend=0)
    assert ((spent > 0).sum(1) > eps).all()  # more pixels than one, each to its end
    way = (spent * np.take_along_axis(np.abs(w), steepest, 1)).sum(1)
    found = attacked(attack, Threat(norm="l1", eps=eps), net, x, y)
    return (margin(net, x, y) - margin(net, found, y)) / way


@pytest.mark.parametrize(("pixels", "eps"), [(24, 3), (784, 10), (3072, 12)])
@pytest.mark.parametrize("start", ["zero", "uniform"])
def test_at_the_box_default_l1_pgd_goes_nine_tenths_of_the_way(start, pixels, eps):
    shares = share_of_the_way(PGD(start=start), pixels, eps)
    assert shares.min() > 0.9
    assert shares.max() < 1 + 1e-4


def test_at_the_box_more_steps_of_l1_pgd_are_not_weaker():
    few, many = (share_of_the_way(PGD(steps=steps), 784, 10) for steps in (20, 100))
    assert many.mean() > few.mean() - 0.01


def test_with_several_classes_the_nearest_one_decides():
    """Few steps cannot mislead here: one competitor is far closer than all others."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 4))
    with torch.no_grad():
        net[1].weight.normal_(generator=source("many")).mul_(0.5)
        net[1].bias.copy_(torch.tensor([30.0, 29.0, 0.0, 0.0]) - net[1].weight.sum(1) / 2)
    _, x, _ = binary()
    threat = Threat(norm="l2", eps=SMALL["l2"])
    z, weight = f64(net(x)), f64(net[1].weight)
    worst = z[:, 0] - z[:, 1] - 0.1 * np.linalg.norm(weight[0] - weight[1])

    found = attacked(EXACT, threat, net, x, torch.zeros(len(x), dtype=torch.int64))

    np.testing.assert_allclose(f64(net(found))[:, 0] - f64(net(found))[:, 1], worst, atol=1e-4)
