"""Which configurations can be on the front, given few examples and few seeds."""

import numpy as np

from robustfront.search.replicates import can_matter, membership

N = 400


def wrong(standard: float, robust: float, n: int = N) -> np.ndarray:
    """So many mistakes in each of two objectives, the first examples first."""
    at = np.arange(n)
    return np.column_stack([at < round(standard * n), at < round(robust * n)])


def test_a_front_without_rivals_is_certain() -> None:
    shares = membership({0: [wrong(0.1, 0.5)], 1: [wrong(0.3, 0.3)], 2: [wrong(0.5, 0.1)]})
    assert shares == {0: 1.0, 1: 1.0, 2: 1.0}


def test_what_is_far_behind_cannot_matter() -> None:
    shares = membership({0: [wrong(0.1, 0.3)], 1: [wrong(0.4, 0.6)]})
    assert shares == {0: 1.0, 1: 0.0}
    assert can_matter({0: [wrong(0.1, 0.3)], 1: [wrong(0.4, 0.6)]}) == {0}


def test_the_same_examples_are_drawn_for_all() -> None:
    # One more mistake among the same ones: worse in every draw that holds this example.
    ahead, behind = wrong(0.1, 0.3), wrong(0.1 + 1 / N, 0.3 + 1 / N)
    shares = membership({0: [ahead], 1: [behind]})
    assert shares[0] == 1.0
    # P(neither of two examples is drawn) = (1 - 2 / N)^N = 0.135
    assert 0.09 < shares[1] < 0.18


def test_errors_on_different_examples_are_uncertain() -> None:
    ahead, behind = wrong(0.10, 0.30), wrong(0.11, 0.31)[::-1]
    shares = membership({0: [ahead], 1: [behind]})
    assert 0.3 < shares[1] < 0.7
    assert can_matter({0: [ahead], 1: [behind]}) == {0, 1}


def test_seeds_that_disagree_make_uncertain_what_one_seed_makes_certain() -> None:
    steady = [wrong(0.2, 0.4)] * 3
    lucky, unlucky = wrong(0.1, 0.3), wrong(0.35, 0.55)
    assert membership({0: steady, 1: [unlucky]})[1] == 0.0
    both = membership({0: steady, 1: [lucky, unlucky, unlucky]})
    # a draw of three of its seeds beats the other one if two or more are the lucky one: 7 / 27
    assert 0.2 < both[1] < 0.33
    assert 0.65 < both[0] < 0.8


def test_the_draws_are_the_same_every_time() -> None:
    table = {0: [wrong(0.10, 0.30)], 1: [wrong(0.11, 0.31)[::-1]]}
    assert membership(table) == membership(table)
    assert membership({}) == {}
