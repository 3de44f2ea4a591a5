"""Perturbation sets: projection, sampling, steps, mixtures, and radii as exact numbers."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from robustfront.config import TrialConfig
from robustfront.randomness import Rng
from robustfront.threats import Mixture, Threat, TrainThreat, eps_text, parse_eps

NORMS = ["linf", "l2", "l1"]
EPS = {"linf": Fraction(3, 10), "l2": Fraction(3, 2), "l1": Fraction(6)}
MIX = {"linf": 0.5, "l2": 0.25, "l1": 0.25}
SLACK = {"linf": 1e-5, "l2": 1e-5, "l1": 1e-4}  # relative; fp32 sums of the l1 norm overshoot
ROUNDING = 2e-7  # of x + delta in fp32

shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
radii = st.sampled_from([Fraction(1, 1000), Fraction(8, 255), Fraction(3, 10), Fraction(1)])
norms = st.sampled_from(NORMS)
seeds = st.integers(0, 10**6)
several = settings(max_examples=60, deadline=None, derandomize=True)


def pair(shape: tuple[int, ...], seed: int, far: float = 2.0) -> tuple[Tensor, Tensor]:
    """x in the box, a share of its pixels at the ends, and a point that may lie outside."""
    source = torch.Generator().manual_seed(seed)
    x = (1.5 * torch.rand(shape, generator=source) - 0.25).clamp(0, 1)
    return x, x + far * (2 * torch.rand(shape, generator=source) - 1)


def radius_for(norm: str, share: Fraction, dimension: int) -> Fraction:
    """A radius that is `share` of the largest that matters."""
    longest = {"linf": 1, "l2": dimension**0.5, "l1": dimension}[norm]
    return share * Fraction(longest)


def assert_inside(found: Tensor, x: Tensor, threat: Threat) -> None:
    eps = float(threat.eps)
    dimension = x[0].numel()
    order = {"linf": 1, "l2": dimension**0.5, "l1": dimension}[threat.norm]
    assert found.min() >= 0 and found.max() <= 1
    slack = eps * SLACK[threat.norm] + ROUNDING * order
    assert (threat.distance(found, x) <= eps + slack).all()


@several
@given(norms, radii, shapes, seeds)
def test_projection_lands_in_ball_and_box(norm, share, shape, seed):
    x, far = pair(shape, seed)
    threat = Threat(norm=norm, eps=radius_for(norm, share, x[0].numel()))
    found = threat.project(far, x)
    assert_inside(found, x, threat)
    assert found.dtype == x.dtype and found.shape == x.shape


@several
@given(norms, radii, shapes, seeds)
def test_projection_twice_is_projection_once(norm, share, shape, seed):
    x, far = pair(shape, seed)
    threat = Threat(norm=norm, eps=radius_for(norm, share, x[0].numel()))
    once = threat.project(far, x)
    torch.testing.assert_close(threat.project(once, x), once, rtol=0, atol=2e-6)


@several
@given(norms, shapes, seeds)
def test_projection_leaves_points_of_the_set_where_they_are(norm, shape, seed):
    x, near = pair(shape, seed, far=0.2)
    near = near.clamp(0, 1)
    largest = float(Threat(norm=norm, eps=0).distance(near, x).max())
    threat = Threat(norm=norm, eps=min(largest * 1.01 + 1e-6, 1) if norm == "linf" else largest + 1)
    torch.testing.assert_close(threat.project(near, x), near, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_gives_the_input_bit_for_bit(norm):
    x, far = pair((4, 1, 5, 5), 0)
    threat = Threat(norm=norm, eps=0)
    assert torch.equal(threat.project(far, x), x)
    assert torch.equal(threat.project(torch.full_like(x, torch.nan), x), x)
    assert torch.equal(threat.sample(x, Rng((0,))), x)
    mixture = Mixture([(threat, 3), (Threat(norm="linf", eps=0), 1)])
    assert torch.equal(mixture.project(far, x), x)
    assert torch.equal(mixture.sample(x, Rng((0,))), x)


def test_a_projection_does_not_share_memory_with_its_input():
    x, _ = pair((2, 1, 3, 3), 0)
    found = Threat(norm="linf", eps=0).project(x, x)
    found += 1
    assert x.max() <= 1


@several
@given(radii, shapes, seeds)
def test_the_linf_projection_is_the_nearest_point(eps, shape, seed):
    x, far = pair(shape, seed)
    found = Threat(norm="linf", eps=eps).project(far, x)
    nearest = np.clip(
        far.double().numpy(),
        np.maximum(0, x.double().numpy() - float(eps)),
        np.minimum(1, x.double().numpy() + float(eps)),
    )
    np.testing.assert_allclose(found.double().numpy(), nearest, rtol=0, atol=1e-6)


def l1_reference(delta: np.ndarray, low: np.ndarray, high: np.ndarray, eps: float) -> np.ndarray:
    """The nearest point of l1 ball and box to one delta (D,), by sorting, in float64.

    ||clip(soft(delta, t), low, high)||_1 is piecewise linear in t: the pieces end where a value
    leaves its bound (|delta| - bound) and where it reaches zero (|delta|).
    """

    def shrunk(t: float) -> np.ndarray:
        return np.clip(np.sign(delta) * np.maximum(np.abs(delta) - t, 0), low, high)

    size, bound = np.abs(delta), np.where(delta > 0, high, -low)
    ends = np.unique(np.concatenate([[0.0], size, np.maximum(size - bound, 0)]))
    norm = np.array([np.abs(shrunk(t)).sum() for t in ends])
    if norm[0] <= eps:
        return shrunk(0.0)
    last = np.flatnonzero(norm > eps)[-1]
    share = (norm[last] - eps) / (norm[last] - norm[last + 1])
    return shrunk(ends[last] + share * (ends[last + 1] - ends[last]))


@several
@given(st.sampled_from([Fraction(1, 100), Fraction(1, 10), Fraction(1, 2)]), shapes, seeds)
def test_the_l1_projection_is_the_nearest_point(share, shape, seed):
    x, far = pair(shape, seed)
    eps = float(share) * x[0].numel()
    found = Threat(norm="l1", eps=eps).project(far, x)
    for i in range(len(x)):
        origin = x[i].double().numpy().ravel()
        nearest = l1_reference(far[i].double().numpy().ravel() - origin, -origin, 1 - origin, eps)
        np.testing.assert_allclose(
            found[i].double().numpy().ravel() - origin, nearest, rtol=0, atol=2e-5
        )


def test_the_l1_projection_meets_the_optimality_conditions():
    x, far = pair((6, 3, 16, 16), 5)
    threat = Threat(norm="l1", eps=12)
    moves = zip(far, threat.project(far, x), x, strict=True)
    for u, d, origin in ((a - o, b - o, o) for a, b, o in moves):
        zero = d.abs() <= 1e-6
        bound = torch.where(u > 0, 1 - origin, origin)
        held = (d.abs() >= bound - 1e-6) & ~zero
        shrunk = (u.abs() - d.abs())[~zero & ~held]
        threshold = shrunk.mean()
        assert held.any() and zero.any() and len(shrunk) > 1
        assert (shrunk - threshold).abs().max() < 1e-5  # one threshold for all that is free
        assert (shrunk > 0).all() and (u * d >= 0).all()
        assert (u.abs()[held] - threshold >= d.abs()[held] - 1e-5).all()
        assert (u.abs()[zero & (bound > 1e-6)] <= threshold + 1e-5).all()


def test_the_l1_projection_spends_all_of_the_budget():
    x, far = pair((16, 3, 16, 16), 3)
    eps = 12.0
    threat = Threat(norm="l1", eps=eps)
    delta = (far - x).flatten(1)
    naive = torch.stack(
        [
            torch.from_numpy(
                l1_reference(row.double().numpy(), np.full(768, -9.0), np.full(768, 9.0), eps)
            )
            for row in delta
        ]
    ).view_as(x)
    clipped = (x + naive).clamp(0, 1)
    assert (threat.distance(clipped, x.double()) < 0.95 * eps).all()

    spent = threat.distance(threat.project(far, x), x)

    torch.testing.assert_close(spent, torch.full_like(spent, eps), rtol=1e-4, atol=0)


def test_the_l2_projection_keeps_the_direction_that_the_box_leaves():
    x = torch.full((1, 1, 1, 2), 0.5)
    far = x + torch.tensor([3.0, 0.4]).view(1, 1, 1, 2)  # the box leaves (0.5, 0.4)
    found = Threat(norm="l2", eps="1/10").project(far, x)
    expected = torch.tensor([0.5, 0.4]) * 0.1 / 0.41**0.5
    torch.testing.assert_close((found - x).flatten(), expected)


# --- sampling ---------------------------------------------------------------------------------


@several
@given(norms, radii, shapes, seeds)
def test_samples_lie_in_ball_and_box(norm, share, shape, seed):
    x, _ = pair(shape, seed)
    threat = Threat(norm=norm, eps=radius_for(norm, share, x[0].numel()))
    assert_inside(threat.sample(x, Rng((seed,))), x, threat)


def offsets(norm: str, eps: float, n: int = 20_000) -> np.ndarray:
    """Samples around the middle of the box, which is out of reach, over eps, (n, 6)."""
    x = torch.full((n, 1, 2, 3), 0.5, dtype=torch.float64)
    found = Threat(norm=norm, eps=eps).sample(x, Rng((0, norm)))
    return ((found - x) / eps).flatten(1).numpy()


@pytest.mark.parametrize("norm", NORMS)
def test_samples_are_uniform_in_the_ball(norm):
    d, delta = 6, offsets(norm, 0.4)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    radius = np.linalg.norm(delta, order, axis=1)

    assert radius.mean() == pytest.approx(d / (d + 1), abs=0.005)
    assert stats.kstest(radius**d, "uniform").pvalue > 1e-3
    assert stats.kstest(radius ** (d - 1), "uniform").pvalue < 1e-6
    assert np.abs(delta.mean(axis=0)).max() < 0.02
    correlation = np.corrcoef(delta.T)
    assert np.abs(correlation - np.eye(d)).max() < 0.04
    for column in delta.T:
        # a coordinate: U(-1, 1); c (1 - v^2)^((d - 1) / 2); d / 2 (1 - |v|)^(d - 1)
        law = {
            "linf": stats.uniform(0, 1),
            "l2": stats.beta(0.5, (d + 1) / 2),
            "l1": stats.beta(1, d),
        }[norm]
        value = column**2 if norm == "l2" else np.abs(column)
        assert stats.kstest(value, law.cdf).pvalue > 1e-4


def test_samples_differ_between_examples_and_draws():
    x = torch.full((2, 1, 2, 3), 0.5)
    for norm in NORMS:
        threat, rng = Threat(norm=norm, eps=EPS[norm]), Rng((0,))
        first, second = threat.sample(x, rng), threat.sample(x, rng)
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first, second)


# --- steps ------------------------------------------------------------------------------------


def test_an_linf_step_moves_every_pixel_by_the_sign_of_its_slope():
    x, grad = torch.full((1, 1, 1, 3), 0.5), torch.tensor([2.0, -0.1, 0.0]).view(1, 1, 1, 3)
    threat = Threat(norm="linf", eps="1/10")
    expected = torch.tensor([0.1, -0.1, 0.0])
    moved = (threat.step(x, x, grad, 1.0, None) - x).flatten()
    torch.testing.assert_close(moved, expected)
    moved = (threat.step(x, x, grad, 1.0, 0.02) - x).flatten()
    torch.testing.assert_close(moved, 0.2 * expected)


def test_an_l2_step_goes_along_the_gradient_of_each_example():
    x = torch.full((2, 1, 1, 2), 0.5)
    grad = torch.tensor([[3.0, 4.0], [0.0, -1e-12]]).view(2, 1, 1, 2)
    moved = Threat(norm="l2", eps="1/2").step(x, x, grad, 0.2, None) - x
    expected = torch.tensor([[0.06, 0.08], [0.0, -0.1]]).view(2, 1, 1, 2)
    torch.testing.assert_close(moved, expected)


def test_an_l1_step_goes_towards_the_best_point_of_ball_and_box():
    x = torch.tensor([1.0, 0.5, 0.7, 0.0]).view(1, 1, 1, 4)
    grad = torch.tensor([9.0, 2.0, -3.0, -8.0]).view(1, 1, 1, 4)
    threat = Threat(norm="l1", eps=1)
    # pixels at the box cannot move; 0.7 goes to the third, the steepest, what is left to the second
    best = torch.tensor([0.0, 0.3, -0.7, 0.0])
    torch.testing.assert_close((threat.step(x, x, grad, 0.25, None) - x).flatten(), best / 4)
    torch.testing.assert_close((threat.step(x, x, grad, 9.0, None) - x).flatten(), best)
    elsewhere = x + torch.tensor([0.0, 0.0, 0.0, 0.5]).view(1, 1, 1, 4)
    moved = threat.step(elsewhere, x, grad, 9.0, None) - x
    torch.testing.assert_close(moved.flatten(), best)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [0.01, 0.4, 1.0])
def test_a_step_has_the_length_that_was_asked_for(norm, size):
    """For l1 at most up to the best point of the ball."""
    x = torch.full((5, 3, 4, 4), 0.5)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    threat = Threat(norm=norm, eps="1/2")
    length = torch.full((5,), min(size, 0.5) if norm == "l1" else size)
    for moved in (threat.step(x, x, grad, 2 * size, None), threat.step(x, x, grad, 7.0, size)):
        torch.testing.assert_close(threat.distance(moved, x), length)
        assert ((moved - x) * grad).sum() > 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e-10, 1e10, 1e25])
def test_the_length_of_a_step_does_not_depend_on_the_length_of_the_gradient(norm, scale):
    x = torch.full((4, 1, 4, 4), 0.5)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    threat = Threat(norm=norm, eps="1/5")
    expected = threat.step(x, x, grad, 0.5, None)
    torch.testing.assert_close(threat.step(x, x, grad * scale, 0.5, None), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing(norm):
    x = torch.full((2, 1, 2, 2), 0.5)
    assert torch.equal(Threat(norm=norm, eps=1).step(x, x, torch.zeros_like(x), 1.0, None), x)


# --- mixtures ---------------------------------------------------------------------------------


def test_a_mixture_acts_on_each_part_by_its_own_threat():
    x, far = pair((7, 1, 3, 3), 1)
    grad = far - 0.5
    parts = [(Threat(norm=norm, eps=EPS[norm]), n) for norm, n in (("linf", 3), ("l2", 0))]
    parts.append((Threat(norm="l1", eps=EPS["l1"]), 4))
    mixture = Mixture(parts)
    linf, l1 = parts[0][0], parts[2][0]

    projected, stepped = mixture.project(far, x), mixture.step(far, x, grad, 0.1, None)

    assert torch.equal(projected[:3], linf.project(far[:3], x[:3]))
    assert torch.equal(projected[3:], l1.project(far[3:], x[3:]))
    assert torch.equal(stepped[:3], linf.step(far[:3], x[:3], grad[:3], 0.1, None))
    assert torch.equal(stepped[3:], l1.step(far[3:], x[3:], grad[3:], 0.1, None))


@pytest.mark.parametrize("empty", NORMS)
def test_a_mixture_samples_each_part_from_its_own_ball(empty):
    """A share that is small beside the batch may get none of it."""
    x, _ = pair((8, 1, 3, 3), 1)
    parts = [(Threat(norm=norm, eps="1/10"), 0 if norm == empty else 4) for norm in NORMS]
    sampled = Mixture(parts).sample(x, Rng((0,))).split([n for _, n in parts])
    for (threat, _), found, origin in zip(
        parts, sampled, x.split([n for _, n in parts]), strict=True
    ):
        if threat.norm != empty:
            assert_inside(found, origin, threat)
            assert (found != origin).any()


def test_shares_of_a_batch_are_right_on_average():
    threat = TrainThreat(norm="linf", eps="1/10", mix={"linf": 0.55, "l2": 0.15, "l1": 0.3})
    n, draws = 7, 4000
    sizes = np.zeros((draws, 3))
    for i in range(draws):
        drawn = threat.draw(n, 100, 1.0, Rng((0, i)))
        assert [ball.norm for ball, _ in drawn.parts] == ["linf", "l2", "l1"]
        sizes[i] = [size for _, size in drawn.parts]
    assert (sizes.sum(axis=1) == n).all()
    # rounding moves a size by less than one: its mean is known to 4 * 0.5 / sqrt(4000)
    np.testing.assert_allclose(sizes.mean(axis=0), np.array([0.55, 0.15, 0.3]) * n, atol=0.032)
    assert np.abs(sizes - np.array([0.55, 0.15, 0.3]) * n).max() < 1


@given(st.integers(1, 300), st.integers(0, 100), st.integers(0, 100), seeds)
@several
def test_the_parts_of_a_batch_are_all_of_it(n, first, second, seed):
    first, second = min(first, second) / 100, abs(first - second) / 100
    mix = {"linf": first, "l2": second, "l1": 1 - first - second}
    drawn = TrainThreat(eps="1/10", mix=mix).draw(n, 50, 1.0, Rng((seed,)))
    if isinstance(drawn, Threat):
        assert max(mix.values()) == pytest.approx(1)
    else:
        assert sum(size for _, size in drawn.parts) == n
        for ball, size in drawn.parts:
            assert abs(size - mix[ball.norm] * n) < 1 + 1e-6


def test_a_mix_of_one_norm_is_that_ball():
    threat = TrainThreat(norm="l2", eps="1/2", mix={"l2": 1.0, "linf": 0.0})
    assert threat.draw(8, 100, 1.0, Rng((0,))) == Threat(norm="l2", eps="1/2")
    assert TrainThreat(norm="l2", eps="1/2").draw(8, 100, 1.0, Rng((0,))) == Threat(
        norm="l2", eps="1/2"
    )


def test_the_strength_scales_every_radius():
    threat = TrainThreat(norm="linf", eps="1/10", mix={"linf": 0.5, "l2": 0.5})
    full, half = (threat.draw(8, 100, strength, Rng((0,))) for strength in (1.0, 0.5))
    assert [b.eps for b, _ in half.parts] == [b.eps / 2 for b, _ in full.parts]
    assert [b.eps for b, _ in threat.draw(8, 100, 0.0, Rng((0,))).parts] == [0, 0]


def test_radii_of_other_norms_keep_the_ratio_of_the_references():
    threat = TrainThreat(
        norm="linf", eps="4/255", mix=MIX, radii={"linf": "8/255", "l2": "1/2", "l1": 12}
    )
    balls = threat.threats(3072)
    assert {norm: ball.eps for norm, ball in balls.items()} == {
        "linf": Fraction(4, 255),
        "l2": Fraction(1, 4),
        "l1": Fraction(6),
    }
    assert all(ball.norm == norm for norm, ball in balls.items())


def test_radii_without_references_are_geometric_means_of_inner_and_outer_balls():
    """Inside the linf ball of eps fits the l2 ball of eps; around it lies that of eps sqrt(d)."""
    d = 400
    balls = TrainThreat(norm="linf", eps="1/10", mix=MIX).threats(d)
    assert float(balls["l2"].eps) == pytest.approx((0.1 * 0.1 * d**0.5) ** 0.5, rel=1e-5)
    assert float(balls["l1"].eps) == pytest.approx((0.1 * 0.1 * d) ** 0.5, rel=1e-5)
    balls = TrainThreat(norm="l2", eps="1/2", mix=MIX).threats(d)
    assert float(balls["linf"].eps) == pytest.approx((0.5 * 0.5 / d**0.5) ** 0.5, rel=1e-5)
    assert float(balls["l1"].eps) == pytest.approx((0.5 * 0.5 * d**0.5) ** 0.5, rel=1e-5)
    balls = TrainThreat(norm="l1", eps=12, mix=MIX).threats(d)
    assert float(balls["l2"].eps) == pytest.approx((12 * 12 / d**0.5) ** 0.5, rel=1e-5)
    assert float(balls["linf"].eps) == pytest.approx((12 * 12 / d) ** 0.5, rel=1e-5)


def test_an_linf_radius_that_follows_is_at_most_the_whole_box():
    balls = TrainThreat(norm="l1", eps=100, mix=MIX).threats(4)
    assert balls["linf"].eps == 1


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"linf": 0.5, "l2": 0.4}, "sum to 1"),
        ({"linf": 0.7, "l2": 0.7}, "sum to 1"),
        ({"linf": 1.5, "l2": -0.5}, "greater than or equal to 0"),
        ({"l3": 1.0}, "'linf', 'l2', 'l1' or 'segment'"),
    ],
)
def test_a_mix_that_is_none_is_refused(mix, message):
    with pytest.raises(ValidationError, match=message):
        TrainThreat(eps="1/10", mix=mix)


def trial(**fields: object) -> TrialConfig:
    return TrialConfig.model_validate(
        {"data": {"type": "digits"}, "model": {"type": "linear"}, **fields}
    )


def test_training_follows_the_threat_that_is_measured():
    measured = [{"norm": "l2", "eps": "1/2"}, {"norm": "linf", "eps": "8/255"}]
    follows = trial(threat=measured).train_threat
    assert (follows.norm, follows.eps) == ("l2", Fraction(1, 2))
    assert follows.radii == {"l2": Fraction(1, 2), "linf": Fraction(8, 255)}
    other = trial(threat=measured, train_threat={"norm": "linf"}).train_threat
    assert (other.norm, other.eps) == ("linf", Fraction(8, 255))
    own = trial(threat=measured, train_threat={"eps": "1/4"}).train_threat
    assert (own.norm, own.eps) == ("l2", Fraction(1, 4))


def test_training_follows_the_threat_when_python_objects_are_given():
    threat = Threat(norm="linf", eps="8/255")
    assert trial(threat=threat).train_threat.eps == Fraction(8, 255)
    assert trial(threat=[threat]).train_threat.norm == "linf"


# --- radii as text ----------------------------------------------------------------------------


@given(st.fractions(min_value=0, max_value=1000))
@several
def test_a_fraction_survives_its_text(eps):
    assert parse_eps(eps_text(eps)) == eps
    assert Threat.model_validate(Threat(norm="l1", eps=eps).model_dump(mode="json")).eps == eps
    assert Threat.parse(f"l1:{eps_text(eps)}").eps == eps


@given(st.floats(min_value=0, max_value=1e6, allow_nan=False))
@several
def test_a_float_is_the_shortest_decimal_that_is_this_float(value):
    assert float(parse_eps(value)) == value
    assert parse_eps(value) == parse_eps(repr(value))
    assert parse_eps(eps_text(parse_eps(value))) == parse_eps(value)


@pytest.mark.parametrize(
    ("given_as", "exact", "text", "name"),
    [
        ("8/255", Fraction(8, 255), "8/255", "linf_8_255"),
        (" 2 / 10 ".replace(" ", ""), Fraction(1, 5), "0.2", "linf_0.2"),
        (0.1, Fraction(1, 10), "0.1", "linf_0.1"),
        ("1e-3", Fraction(1, 1000), "0.001", "linf_0.001"),
        (1e-7, Fraction(1, 10**7), "0.0000001", "linf_0.0000001"),
        (1, Fraction(1), "1", "linf_1"),
        (0, Fraction(0), "0", "linf_0"),
        (Fraction(1, 64), Fraction(1, 64), "0.015625", "linf_0.015625"),
    ],
)
def test_a_radius_is_kept_exact(given_as, exact, text, name):
    threat = Threat(norm="linf", eps=given_as)
    assert (threat.eps, eps_text(threat.eps), threat.name) == (exact, text, name)


@pytest.mark.parametrize(
    "wrong",
    ["eight", "8/0", "", "nan", "inf", float("nan"), float("inf"), True, None, [1], "1/2/3"],
)
def test_what_is_not_a_number_is_refused(wrong):
    with pytest.raises(ValueError, match="write a number or a fraction such as 8/255"):
        parse_eps(wrong)


@pytest.mark.parametrize("negative", [-1, "-8/255", -1e-9])
def test_a_negative_radius_is_refused(negative):
    with pytest.raises(ValueError, match="0 or more"):
        parse_eps(negative)


def test_an_linf_radius_above_one_is_refused_with_a_guess():
    with pytest.raises(ValidationError, match="did you mean 8/255"):
        Threat(norm="linf", eps=8)
    assert Threat(norm="l1", eps=8).eps == 8


@pytest.mark.parametrize("text", ["linf", "linf8/255", "l3:0.1", "linf:", "linf:2", ":0.1"])
def test_a_text_that_is_no_threat_is_refused(text):
    with pytest.raises(ValueError):
        Threat.parse(text)


@several
@given(shapes, seeds)
def test_a_segment_changes_the_first_pixel_alone_and_is_a_part_of_the_linf_ball(shape, seed):
    x, far = pair(shape, seed)
    segment, ball = (Threat(norm=norm, eps="1/10") for norm in ("segment", "linf"))
    grad = far - 0.5
    for found in (
        segment.project(far, x),
        segment.sample(x, Rng((seed,))),
        segment.project(segment.step(x, x, grad, 1.0, None), x),
    ):
        assert torch.equal(found.flatten(1)[:, 1:], x.flatten(1)[:, 1:])
        assert (segment.distance(found, x) <= 0.1 + ROUNDING).all()
        assert torch.equal(ball.project(found, x), found)
    stepped = segment.project(segment.step(x, x, grad, 1.0, None), x).flatten(1)[:, 0]
    way = torch.sign(grad.flatten(1)[:, 0])
    assert torch.allclose(stepped, (x.flatten(1)[:, 0] + 0.1 * way).clamp(0, 1))
    whole = ball.project(far, x)
    outside = (whole != x).flatten(1)[:, 1:].any(1)
    assert torch.isinf(segment.distance(whole, x)).equal(outside)


def test_a_segment_is_no_part_of_a_mix():
    with pytest.raises(ValidationError, match="not of a segment"):
        TrainThreat.model_validate({"mix": {"segment": 0.5, "linf": 0.5}})
