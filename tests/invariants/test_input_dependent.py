"""The certificate of smoothing with an input-dependent deviation, against exact values."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

from robustfront.certifiers import InputDependent
from robustfront.certifiers.input_dependent import (
    certified_radius,
    deviation_limits,
    lower_probability,
)
from robustfront.estimate import estimate
from robustfront.search.plan import load_plan

JOBS = Path(__file__).parents[2] / "jobs"

# N, sigma0, sigma1, distance, p_A -> lower bound of p_A at the other input; by mpmath with 40
# digits, as a mixture of central chi-squared distributions.
PROBABILITIES = [
    (2, 1.0, 0.5, 0.5, 0.9, 0.6081529886132849),
    (2, 1.0, 0.5, 1.5, 0.99, 0.8388235328566881),
    (2, 1.0, 0.5, 2.5, 0.999, 0.8062155725624753),
    (100, 1.0, 0.7, 5.0, 0.999999999999999, 0.9483886769868546),
    (104, 1.0, 0.8, 3.0, 0.999999, 0.7341150874824011),
    (150, 1.0, 0.72, 5.0, 0.999999999999, 0.4383811369751692),
    (200, 1.0, 0.78, 4.0, 0.9999999999999, 0.9379615067387734),
    (300, 1.0, 0.85, 3.0, 0.9999, 0.10564995465911656),
    (300, 1.0, 1.15, 5.0, 0.9999999999999, 0.8543253478874596),
]
# N, sigma, rate, p_A -> radius, likewise.
RADII = [
    (3072, 0.25, 0.01, 0.9, 0.3143977897),
    (3072, 0.25, 0.01, 0.99, 0.5706952806),
    (3072, 0.25, 0.01, 0.999, 0.7580723532),
    (150528, 0.25, 0.01, 0.99, 0.3423533501419065),
    (150528, 0.25, 0.01, 0.999, 0.4546578095056567),
    (150528, 0.25, 0.01, 0.99993092483300939297, 0.5606399381981780),
]


def test_probabilities_and_radii_of_the_table() -> None:
    n, s0, s1, a, p, exact = np.array(PROBABILITIES).T
    found = lower_probability(p, s0, s1, a, n)
    assert (np.abs(found - exact) < 1e-10).all()
    assert (found <= exact).all()
    n, s, r, p, exact = np.array(RADII).T
    radii = certified_radius(p, s, r, n)
    assert (radii <= exact * (1 + 1e-9)).all()  # the table has ten digits
    assert (radii >= exact * (1 - 1e-6)).all()


def test_the_whole_table_where_it_is_at_hand(data_root: Path) -> None:
    path = data_root.parent / "methods" / "ids_reference.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    rows = list(csv.DictReader(path.read_text().splitlines()))

    def columns(kind: str, *names: str) -> list[np.ndarray]:
        return [np.array([float(r[k]) for r in rows if r["row_type"] == kind]) for k in names]

    *given, exact = columns("xi", "p_A", "sigma0", "sigma1", "a", "N", "pA_lower_at_x1")
    found = lower_probability(*given)
    assert len(found) > 100
    assert (np.abs(found - exact) < 1e-10).all()
    assert (found <= exact + 1e-15).all()
    *given, exact = columns("radius", "p_A", "sigma0", "r", "N", "R_cert")
    radii = certified_radius(*given)
    assert len(radii) > 50
    assert (radii <= exact).all() and (radii >= exact * (1 - 1e-6)).all()


@pytest.mark.parametrize("ratio", [0.97, 1.03])
def test_the_worst_set_is_that_of_a_simulation(ratio: float) -> None:
    """The ball (or its outside) with mass p_B at x0, sampled from around x1."""
    n, s0, a, p_b, draws = 50, 0.5, 0.6, 0.1, 400_000
    s1 = ratio * s0
    source = np.random.default_rng(0)
    centre = a * s0**2 / (s0**2 - s1**2)  # along the difference, from x0

    def squares(mean: float, deviation: float) -> np.ndarray:
        along = mean + deviation * source.standard_normal(draws)
        return (along - centre) ** 2 + deviation**2 * source.chisquare(n - 1, draws)

    level = p_b if ratio < 1 else 1 - p_b
    radius = np.quantile(squares(0, s0), level)
    other = squares(a, s1)
    mass = np.mean(other <= radius) if ratio < 1 else np.mean(other > radius)
    assert lower_probability(1 - p_b, s0, s1, a, n) == pytest.approx(1 - mass, abs=0.005)


def test_one_dimension_by_hand() -> None:
    """Intervals of a line: two normal probabilities, the threshold found by bisection."""
    s0, s1, a, p_b = 1.0, 0.8, 0.5, 0.2
    centre = a * s0**2 / (s0**2 - s1**2)
    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        mass = special.ndtr((centre + middle) / s0) - special.ndtr((centre - middle) / s0)
        low, high = (middle, high) if mass < p_b else (low, middle)
    there = special.ndtr((centre + low - a) / s1) - special.ndtr((centre - low - a) / s1)
    assert lower_probability(1 - p_b, s0, s1, a, 1) == pytest.approx(1 - there, abs=1e-9)


def test_limits_and_invariances() -> None:
    source = np.random.default_rng(1)
    size = 400
    p = source.uniform(0.5, 0.99999, size)
    s = source.uniform(0.05, 1.5, size)
    r = np.exp(source.uniform(np.log(1e-4), np.log(0.05), size))
    n = source.choice([2, 50, 784, 3072, 12288, 150528], size).astype(float)
    classical = s * special.ndtri(p)
    radii = certified_radius(p, s, r, n)
    assert np.isfinite(radii).all()
    assert (radii <= classical).all() and (radii > 0).all()
    assert np.allclose(certified_radius(p, s, 0, n), classical, rtol=1e-9)
    assert (certified_radius(p, s, 0, n) <= classical).all()
    assert np.allclose(certified_radius(p, s, 1e-12, n), classical, rtol=1e-5)
    assert np.allclose(certified_radius(p, 2 * s, r / 2, n), 2 * radii, rtol=2e-6)
    assert (certified_radius(p, s, 1.5 * r, n) <= radii * (1 + 1e-6)).all()
    assert (certified_radius(np.minimum(p + 1e-4, 1), s, r, n) >= radii * (1 - 1e-6)).all()
    # At the radius the class is just above 1/2, for both ends of the deviation.
    for sign in (-1, 1):
        assert (lower_probability(p, s, s * np.exp(sign * r * radii), radii, n) > 0.5).all()
    beyond = radii * (1 + 1e-5)
    ends = [lower_probability(p, s, s * np.exp(k * r * beyond), beyond, n) for k in (-1, 1)]
    assert (np.minimum(*ends) < 0.5 + 1e-7).all()


def test_both_ways_of_computing_agree_where_both_work() -> None:
    from robustfront.certifiers import input_dependent as own

    source = np.random.default_rng(2)
    for n in (784.0, 3072.0, 150528.0):
        s0 = source.uniform(0.1, 1, 60)
        a = source.uniform(0.1, 2, 60) * s0
        # so that the spread of the orthogonal part lies between 0.1 and 0.9
        kappa = source.uniform(0.1, 0.9, 60) / (s0 * np.sqrt(2 * n)) * source.choice([-1, 1], 60)
        log_ratio = 0.5 * np.log1p(-2 * kappa * a)
        p_b = np.exp(source.uniform(np.log(1e-5), np.log(0.5), 60))
        rows = p_b, s0, log_ratio, a, np.full(60, n)
        difference = own._worst_by_quadrature(*rows) - own._worst_by_quantiles(*rows)
        assert np.abs(difference).max() < 1e-11


def test_in_a_few_hundred_dimensions_nothing_is_above_what_quantiles_give() -> None:
    """Where the end of a ball is near, few nodes would be wrong by up to the whole probability."""
    from robustfront.certifiers import input_dependent as own

    source = np.random.default_rng(3)
    n = np.repeat([100.0, 104, 128, 150, 200, 300], 400)
    size = len(n)
    a = np.exp(source.uniform(np.log(0.05), np.log(9), size))
    kappa = source.uniform(0.03, 1.1, size) / np.sqrt(2 * n) * source.choice([-1, 1], size)
    log_ratio = 0.5 * np.log1p(-2 * np.where(2 * kappa * a < 1, kappa, -kappa) * a)
    p = 1 - np.exp(source.uniform(np.log(2e-16), np.log(0.5), size))
    exact = 1 - own._worst_by_quantiles(1 - p, np.ones(size), log_ratio, a, n)
    found = lower_probability(p, 1, np.exp(log_ratio), a, n)
    assert (found <= exact).all()
    assert (found >= exact - 1e-10).all()


def test_a_set_that_is_not_found_is_left_to_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustfront.certifiers import input_dependent as own

    n, s0, s1, a, p, exact = PROBABILITIES[3]
    monkeypatch.setattr(own, "_is_smooth", lambda kappa, s0, n: np.ones_like(n, dtype=bool))
    assert exact - 1e-10 < lower_probability(p, s0, s1, a, n) <= exact


def test_no_argument_in_range_gives_nan() -> None:
    p = np.array([0, 1e-300, 1e-9, 0.5, 0.5 + 1e-12, 0.9, 1 - 1e-16, 1])[:, None, None, None]
    s = np.array([1e-3, 0.25, 3])[:, None, None]
    r = np.array([0, 1e-9, 1e-3, 0.1, 2])[:, None]
    n = np.array([1, 2, 3, 784, 150528])
    radii = certified_radius(p, s, r, n)
    assert not np.isnan(radii).any()
    assert (radii[:4] == 0).all() and np.isinf(radii[-1]).all() and (radii[4:] >= 0).all()
    ratio = np.array([0.5, 0.999, 1 - 1e-12, 1, 1 + 1e-12, 1.001, 2])[:, None, None]
    a = np.array([0, 1e-9, 0.1, 3])[:, None]
    found = lower_probability(p[..., None], 0.25, 0.25 * ratio, a, n)
    assert not np.isnan(found).any()
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[-1] == 1).all()


def test_limits_of_the_ratio_are_those_of_central_quantiles() -> None:
    low, high = deviation_limits([0.9, 0.999, 0.9], [784, 3072, 150528])
    np.testing.assert_allclose(low, [0.96780, 0.96083, 0.99767], atol=6e-6)
    np.testing.assert_allclose(high, [1.03255, 1.03968, 1.00234], atol=6e-6)
    assert (
        lower_probability(0.9, 1, 0.9679, 0, 784) > 0.5 > lower_probability(0.9, 1, 0.9677, 0, 784)
    )


def test_the_necessary_condition_is_told_before_anything_runs() -> None:
    """Nothing can be certified where sigma may change by more than the limits allow."""
    certifier = InputDependent(sigma=0.5, rate=0.05, n=10000)
    said = certifier.remark(784)
    p = 0.001 ** (1 / 10000)
    at_most = min(-np.log(deviation_limits(p, 784)[0]), np.log(deviation_limits(p, 784)[1]))
    assert f"sigma may change by {100 * np.expm1(at_most):.2g} % at most" in said
    assert f"which is below {at_most / 0.05:.3g}" in said
    assert certifier.most(100.0, 784) < at_most / 0.05 < 1.2 * certifier.most(100.0, 784)
    assert InputDependent(rate=0).remark(784).endswith("within a certified radius")
    plan = load_plan(JOBS / "input_dependent_smoothing.yaml", {"data": {"type": "digits"}})
    remarks = estimate(plan).remarks
    assert [r.split(":")[0].split(" ")[-1] for r in remarks] == ["0.01", "0.03", "0.05"]
    assert "in 64 dimensions" in remarks[0]
    elsewhere = {"data": {"type": "digits"}, "resources": {"gpu": 1}}
    told = estimate(load_plan(JOBS / "input_dependent_smoothing.yaml", elsewhere))
    assert told.remarks == remarks
    assert (told.final_seconds is None) == (not torch.cuda.is_available())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.1, 0.25, 0.01, 784), "p_lower: got 1.1"),
        ((np.nan, 0.25, 0.01, 784), "p_lower"),
        ((0.9, 0, 0.01, 784), "sigma: got 0, allowed is above 0"),
        ((0.9, 0.25, -1, 784), "rate: got -1"),
        ((0.9, 0.25, 0.01, 7.5), "dimension: got 7.5, allowed is a whole number"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certified_radius(*arguments)
