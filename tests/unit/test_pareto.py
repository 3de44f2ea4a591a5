"""Fronts, volumes and attainment surfaces against brute force, with ties and failed trials."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robustfront.search.pareto import Points, attainment, hypervolume, non_dominated, staircase

NAN, INF = math.nan, math.inf


def grids(objectives: int, least: int = 0) -> st.SearchStrategy[Points]:
    """Points on a coarse grid: many ties and copies, and now and then a failed trial."""
    values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, NAN, INF, -INF])
    rows = st.integers(least, 12)
    return rows.flatmap(lambda n: hnp.arrays(np.float64, (n, objectives), elements=values))


def brute_force(points: Points) -> list[bool]:
    finite = [bool(np.isfinite(p).all()) for p in points]
    return [
        finite[i]
        and not any(
            finite[j] and (points[j] <= points[i]).all() and (points[j] < points[i]).any()
            for j in range(len(points))
        )
        for i in range(len(points))
    ]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3).flatmap(grids))
def test_non_dominated_is_what_the_definition_says(points: Points) -> None:
    assert non_dominated(points).tolist() == brute_force(points)


def test_non_dominated_on_a_small_set() -> None:
    points = np.array([[1, 3], [2, 2], [2, 2], [3, 1], [3, 2], [NAN, 0], [0, INF], [1, 4]])
    expected = [True, True, True, True, False, False, False, False]
    assert non_dominated(points).tolist() == expected


@pytest.mark.parametrize("empty", [np.zeros(0), np.zeros((0, 2)), np.array([[NAN, 1.0]])])
def test_nothing_comes_of_nothing(empty: Points) -> None:
    assert not non_dominated(empty).any()
    assert hypervolume(empty, [1, 1]) == 0.0
    assert attainment([empty], 1.0).shape == (0, 2)
    assert staircase(empty).shape == (0, 2)


def test_hypervolume_exactly() -> None:
    assert hypervolume(np.array([[1.0, 1.0]]), [3, 3]) == 4.0
    assert hypervolume(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 1.0]]), [3, 3]) == 3.0
    assert hypervolume(np.array([[1.0, 1.0, 1.0]]), [2, 3, 4]) == 6.0
    assert hypervolume(np.array([[0.25], [0.5]]), [1.0]) == 0.75


def test_hypervolume_ignores_what_lies_beyond_the_reference_and_failures() -> None:
    points = np.array([[1.0, 1.0], [0.0, 3.0], [5.0, -9.0], [NAN, 0.0], [-INF, 0.0]])
    assert hypervolume(points, [3, 3]) == 4.0
    assert hypervolume(points[1:3], [3, 3]) == 0.0


@settings(max_examples=100, deadline=None)
@given(grids(2))
def test_hypervolume_counts_dominated_cells(points: Points) -> None:
    finite = points[np.isfinite(points).all(axis=1)]
    middles = np.arange(0.125, 1.25, 0.25)
    cells = [(x, y) for x in middles for y in middles]
    dominated = sum(any((point <= cell).all() for point in finite) for cell in cells)
    assert hypervolume(points, [1.25, 1.25]) == pytest.approx(dominated / 16, abs=1e-12)


def test_attainment_of_three_seeds() -> None:
    seeds = [np.array([[1.0, 3.0]]), np.array([[2.0, 2.0]]), np.array([[3.0, 1.0]])]
    assert attainment(seeds, 1 / 3).tolist() == [[1, 3], [2, 2], [3, 1]]
    assert attainment(seeds, 0.5).tolist() == [[2, 3], [3, 2]]
    assert attainment(seeds, 1.0).tolist() == [[3, 3]]


def test_a_seed_without_points_attains_nothing() -> None:
    seeds = [np.array([[1.0, 1.0]]), np.array([[NAN, 0.0]])]
    assert attainment(seeds, 0.5).tolist() == [[1, 1]]
    assert attainment(seeds, 1.0).shape == (0, 2)
    assert attainment([], 0.5).shape == (0, 2)


def test_a_level_that_is_not_exact_in_binary_asks_for_no_seed_more() -> None:
    seeds = [np.array([[float(i), float(i)]]) for i in range(10)]
    assert attainment(seeds, 0.1 + 0.2).tolist() == [[2, 2]]


@pytest.mark.parametrize("level", [0.0, -0.5, 1.5, NAN])
def test_attainment_refuses_other_levels(level: float) -> None:
    with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
        attainment([np.array([[1.0, 1.0]])], level)


@settings(max_examples=100, deadline=None)
@given(st.lists(grids(2), min_size=1, max_size=5), st.data())
def test_attainment_counts_seeds(seeds: list[Points], data: st.DataObject) -> None:
    needed = data.draw(st.integers(1, len(seeds)))
    corners = attainment(seeds, needed / len(seeds))
    assert (np.diff(corners[:, 0]) > 0).all()
    assert (np.diff(corners[:, 1]) < 0).all()
    finite = [points[np.isfinite(points).all(axis=1)] for points in seeds]
    for target in np.stack(np.meshgrid(*[np.arange(0, 1.25, 0.25)] * 2), axis=-1).reshape(-1, 2):
        by = sum(any((point <= target).all() for point in points) for points in finite)
        assert any((corner <= target).all() for corner in corners) == (by >= needed)


def test_staircase_goes_right_then_down() -> None:
    points = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [2.0, 2.0], [3.0, 3.0], [NAN, 0.0]])
    assert staircase(points).tolist() == [[1, 3], [2, 3], [2, 2], [3, 2], [3, 1]]
    assert staircase(points[:1]).tolist() == [[3, 1]]
