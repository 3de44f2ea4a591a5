"""Attacks on linear models f(x) = Wx + b, whose worst case is known.

The worst margin in a ball is margin - eps * (dual norm of the difference of two rows of W).
"""

import numpy as np
import pytest
import torch
from numpy_reference import f64, source
from scipy.optimize import linprog
from torch import Tensor, nn

from robustfront.attacks import (
    APGD,
    FGSM,
    PGD,
    Attack,
    Misclassification,
    Square,
    TargetedAPGD,
    TargetedFAB,
)
from robustfront.attacks.apgd import _Momentum, checkpoints
from robustfront.attacks.apgd_t import rivals
from robustfront.attacks.fab_t import to_hyperplane
from robustfront.attacks.goals import DifferenceOfLogitsRatio, TargetedDLR
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
    return attack(net, x, Misclassification(y), threat, Rng((0, "closed form")))


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


SUITE = [
    APGD(),
    APGD(loss="dlr"),
    APGD(restarts=5, shrinking_radius=True),
    TargetedAPGD(),
    TargetedAPGD(shrinking_radius=True),
    TargetedFAB(),
]


def on_the_verge(norm: str) -> tuple[nn.Sequential, Tensor, Tensor, Threat, np.ndarray]:
    """A linear model, examples of which about half can be fooled, and their worst margins."""
    net, x, y = binary(3)
    x = torch.cat([x + 0.02 * k for k in range(8)])
    y = net(x).argmax(1)
    reach = np.array([DUAL[norm](row) for row in direction(net, y)])
    eps = float(np.median(margin(net, x, y) / reach))
    return net, x, y, Threat(norm=norm, eps=eps), margin(net, x, y) - eps * reach


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", SUITE, ids=lambda a: f"{a.name}-{len(a.model_fields_set)}")
def test_each_attack_of_the_suite_finds_the_exact_robust_error(attack, norm):
    net, x, y, threat, worst = on_the_verge(norm)
    assert 0.3 < (worst < 0).mean() < 0.7
    clear = np.abs(worst) > 1e-4

    fooled = (net(attacked(attack, threat, net, x, y)).argmax(1) != y).numpy()

    assert clear.sum() > 100
    np.testing.assert_array_equal(fooled[clear], (worst < 0)[clear])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", [APGD(), APGD(start="zero")], ids=["random", "zero"])
def test_apgd_reaches_margin_minus_eps_times_the_dual_norm(attack, norm):
    net, x, y = binary()
    threat = Threat(norm=norm, eps=SMALL[norm])
    worst = margin(net, x, y) - float(threat.eps) * np.array(
        [DUAL[norm](row) for row in direction(net, y)]
    )
    # A surrogate without labels: no example leaves the search.
    surrogate = Misclassification(y).loss

    found = attack(net, x, surrogate, threat, Rng((0, "closed form")))

    np.testing.assert_allclose(margin(net, found, y), worst, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_fools_nobody_who_cannot_be_fooled(norm):
    net, x, y, threat, worst = on_the_verge(norm)
    fooled = (net(attacked(Square(queries=2000), threat, net, x, y)).argmax(1) != y).numpy()
    assert not fooled[worst > 1e-4].any()
    assert fooled[worst < 0].mean() > {"linf": 0.95, "l2": 0.5, "l1": 0.5}[norm]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_shortest_way_to_a_hyperplane_within_the_box(norm):
    """Against a linear program for linf and l1, and the optimality conditions for l2."""
    n, d = 12, 15
    x = torch.rand(n, 1, 3, 5, generator=source("x", 5))
    x[:, 0, 0, :2] = torch.tensor([0.0, 1.0])
    slope = torch.randn(n, 1, 3, 5, generator=source("w", 5))
    rise = 0.6 * torch.randn(n, generator=source("r", 5))
    found = f64(to_hyperplane(x, slope, rise, norm)).reshape(n, d)
    size, w, low = np.abs(found), f64(slope).reshape(n, d), f64(x).reshape(n, d)
    assert (low + found > -1e-6).all() and (low + found < 1 + 1e-6).all()
    np.testing.assert_allclose((w * found).sum(1), f64(rise), atol=1e-5)
    for i in range(n):
        bounds = list(zip(-low[i], 1 - low[i], strict=True))
        if norm == "l2":
            # the pixels that are not at the box move in proportion to their slope
            free = (low[i] + found[i] > 1e-6) & (low[i] + found[i] < 1 - 1e-6) & (size[i] > 1e-9)
            rate = size[i][free] / np.abs(w[i][free])
            assert np.ptp(rate) < 1e-4 * rate.max()
            assert (size[i][~free] <= rate.max() * np.abs(w[i][~free]) + 1e-6).all()
            continue
        # variables: positive and negative parts of d, and for linf their bound
        most = [1.0] if norm == "linf" else []
        cost = np.array([0.0] * 2 * d + most) if most else np.ones(2 * d)
        limits = [(0, up) for _, up in bounds] + [(0, -down) for down, _ in bounds]
        equal = np.concatenate([w[i], -w[i], np.zeros(len(most))])[None]
        above = np.hstack([np.eye(d), np.eye(d), -np.ones((d, 1))]) if most else None
        best = linprog(
            cost,
            above,
            np.zeros(d) if most else None,
            equal,
            [float(rise[i])],
            limits + [(0, None)] * len(most),
        )
        length = size[i].max() if norm == "linf" else size[i].sum()
        assert length == pytest.approx(best.fun, abs=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_hyperplane_out_of_reach_is_approached_as_far_as_the_box_allows(norm):
    x = torch.full((1, 1, 1, 4), 0.25)
    slope = torch.tensor([1.0, -2.0, 0.5, 0.0]).view(1, 1, 1, 4)
    found = to_hyperplane(x, slope, torch.tensor([100.0]), norm)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.75, -0.25, 0.75, 0.0]))


def test_auto_pgd_looks_at_its_steps_where_the_paper_does():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(10))[:2] == [2, 3]


def test_auto_pgd_halves_the_step_of_who_oscillates_or_stalls():
    """Three examples: one rises always, one in three of four steps, one only at first."""
    x = torch.full((3, 1, 2, 2), 0.5)
    rule = _Momentum(Threat(norm="l2", eps=1), x, x, 100)
    backs = []
    for k in range(41):
        rose = torch.tensor([True, k % 4 != 0, k < 22])
        highest = torch.tensor([float(k), float(k), float(min(k, 21))])
        back = rule.review(k, rose, x, highest)
        assert (back is not None) == (k + 1 in (22, 41))
        if back is not None:
            backs.append(back.tolist())
    # 16 of 22 are at most 75 %; 22 of 22 are not, then the best has not improved
    assert backs == [[False, True, False], [False, True, True]]
    assert rule.size.flatten().tolist() == [2.0, 0.5, 1.0]


def test_the_ratios_of_logit_differences_are_those_of_the_paper():
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0, 0.0], [0.0, 4.0, 1.0, 2.5, -1.0]])
    y, target = torch.tensor([0, 3]), torch.tensor([3, 2])
    ratio = DifferenceOfLogitsRatio(y)(logits)
    np.testing.assert_allclose(ratio[0], -(3 - 1) / (3 - 0.5), rtol=1e-6)
    np.testing.assert_allclose(ratio[1], 1000 - (2.5 - 4) / (4 - 1), rtol=1e-6)
    aimed = TargetedDLR(y, target)(logits)
    np.testing.assert_allclose(aimed[0], -(3 + 2) / (3 - (0.5 + 0) / 2), rtol=1e-6)
    np.testing.assert_allclose(aimed[1], 1000 - (2.5 - 1) / (4 - (1 + 0) / 2), rtol=1e-6)
    shifted = DifferenceOfLogitsRatio(y)(7 * logits + 3)
    torch.testing.assert_close(shifted, ratio)


def test_with_few_classes_the_ratios_are_plain_differences():
    logits, y = torch.tensor([[2.0, 0.5]]), torch.tensor([0])
    assert DifferenceOfLogitsRatio(y)(logits).item() == pytest.approx(-1.5)
    assert TargetedDLR(y, torch.tensor([1]))(logits).item() == pytest.approx(-1.5)
    three = torch.tensor([[2.0, 0.5, 1.0]])
    assert DifferenceOfLogitsRatio(y)(three).item() == pytest.approx(-1 / 1.5)
    assert TargetedDLR(y, torch.tensor([1]))(three).item() == pytest.approx(-1.5)


def test_targets_are_the_likeliest_wrong_classes():
    net = nn.Flatten()
    x = torch.tensor([0.1, 0.9, 0.3, 0.8]).view(1, 1, 1, 4).expand(3, -1, -1, -1)
    order = rivals(net, x, torch.tensor([1, 0, 3]))
    assert order.tolist() == [[3, 2, 0], [1, 3, 2], [1, 2, 0]]
