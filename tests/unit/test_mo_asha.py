"""Who goes on at a rung: the rule on tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustfront.search.mo_asha import Halving, best, epsilon_net

# Three fronts: rows 0, 2, 4; then 1, 5; then 3.
TABLE = np.array([[0.1, 0.9], [0.3, 0.8], [0.5, 0.5], [0.9, 0.9], [0.2, 0.6], [0.6, 0.55]])


def test_better_fronts_come_first() -> None:
    order = best(TABLE, 6)
    assert set(order[:3]) == {0, 2, 4}
    assert set(order[3:5]) == {1, 5}
    assert order[5] == 3


def test_within_a_front_the_one_that_dominates_most_and_then_the_farthest() -> None:
    # Alone rows 0, 2, 4 dominate 0.09, 0.25 and 0.32; from row 4 row 0 is farther than row 2.
    assert best(TABLE, 3) == [4, 0, 2]
    assert best(TABLE, 1) == [4]


def test_distances_are_taken_after_scaling() -> None:
    # From row 1 row 2 is farther as the objectives are, row 0 once their ranges are the same.
    points = np.array([[0.1, 0.6], [0.2, 0.5], [0.5, 0.499]])
    assert best(points, 2) == [1, 0]


def test_an_epsilon_net_spreads() -> None:
    line = np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0], [9.0, 1.0], [10.0, 0.0]])
    assert epsilon_net(line, 5, first=0)[:2] == [0, 4]
    assert set(epsilon_net(line, 3, first=0)) == {0, 4, 2}
    assert epsilon_net(line, 2, first=3) == [3, 0]


points = st.integers(1, 30).flatmap(
    lambda n: st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5)).map(list), min_size=n, max_size=n
    )
)


@given(points, st.integers(1, 30))
def test_no_one_left_out_dominates_one_chosen(rows: list[list[int]], count: int) -> None:
    table = np.array(rows, dtype=float)
    chosen = best(table, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(rows))
    left = set(range(len(rows))) - set(chosen)
    for out in left:
        for into in chosen:
            assert not ((table[out] <= table[into]).all() and (table[out] < table[into]).any())


@pytest.mark.parametrize(
    ("grace", "factor", "expected"), [(1, 3, [1, 3, 9]), (2, 2, [2, 4, 8]), (5, 4, [5, 20])]
)
def test_rungs(grace: int, factor: int, expected: list[int]) -> None:
    halving = Halving(grace, factor)
    assert [epoch for epoch in range(1, 21) if halving.is_rung(epoch)] == [
        epoch for epoch in [*expected, 16] if epoch <= 20 and (factor == 2 or epoch != 16)
    ]


def test_the_share_that_goes_on_is_rounded_down_but_never_to_nobody() -> None:
    halving = Halving(1, 3)
    wanted = []
    for at, error in enumerate([0.5, 0.6, 0.7, 0.4, 0.8, 0.3]):
        halving.record(str(at), 1, [error, error])
        wanted.append(halving.wants(str(at), 1))
    # The best of one to five trials goes on; of six it is the best two.
    assert wanted == [True, False, False, True, False, True]
    assert halving.wants("3", 1) and not halving.wants("0", 1)


def test_those_that_can_wait_wait_until_one_of_three_goes_on() -> None:
    halving = Halving(1, 3)
    for at, error in enumerate([0.5, 0.6, 0.7]):
        assert not any(halving.wants(str(some), 1, least=0) for some in range(at))
        halving.record(str(at), 1, [error, error])
    assert [halving.wants(str(at), 1, least=0) for at in range(3)] == [True, False, False]


def test_a_trial_that_begins_again_no_longer_counts() -> None:
    halving = Halving(1, 2)
    for name, error in [("a", 0.1), ("b", 0.2), ("c", 0.3)]:
        halving.record(name, 1, [error, error])
    assert [halving.wants(name, 1) for name in "abc"] == [True, False, False]
    halving.forget("a")
    assert [halving.wants(name, 1) for name in "bc"] == [True, False]


def test_what_is_told_twice_counts_once() -> None:
    halving = Halving(1, 2)
    halving.record("a", 1, [0.2, 0.2])
    halving.record("b", 1, [0.3, 0.3])
    halving.record("b", 1, [0.1, 0.1])
    assert not halving.wants("b", 1)
