"""Randomness as a function of its key."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustfront.randomness import Rng, generator, seed_of

LAWS = {"uniform": stats.uniform(), "normal": stats.norm(), "exponential": stats.expon()}
each_law = pytest.mark.parametrize("law", LAWS)


def drawn(rng: Rng, law: str, n: int = 20_000) -> np.ndarray:
    return getattr(rng, law)(torch.empty(n, 1, dtype=torch.float64)).flatten().numpy()


@each_law
def test_draws_follow_their_law(law):
    assert stats.kstest(drawn(Rng((0, 1)), law), LAWS[law].cdf).pvalue > 1e-3


@each_law
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 9),
    st.lists(st.integers(1, 11), min_size=1, max_size=6),
    st.integers(0, 20),
)
def test_draws_do_not_depend_on_how_examples_are_batched(law, block, sizes, skipped):
    whole = Rng((3,), block=block)
    expected = [getattr(whole, law)(torch.empty(skipped + sum(sizes), 2, 3)) for _ in range(2)]
    first = skipped
    for size in sizes:
        rng = Rng((3,), first=first, block=block)
        for call in range(2):
            part = getattr(rng, law)(torch.empty(size, 2, 3))
            assert torch.equal(part, expected[call][first : first + size])
        first += size


@each_law
def test_every_call_is_a_new_draw_and_every_example_has_its_own(law):
    rng = Rng((0,), block=100)
    first, second = drawn(rng, law), drawn(rng, law)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04
    assert abs(np.corrcoef(first[:-100], first[100:])[0, 1]) < 0.04  # the same row of two blocks
    assert len(np.unique(first)) == len(first)


def test_sources_of_different_keys_are_uncorrelated():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, "noise"), (0, 0, "mix"), (10, 0)]
    keys += [("1", 0, 0), (0, 0, "0")]  # text is not a number
    samples = [drawn(Rng(key), "normal") for key in keys]
    for first, other in itertools.combinations(samples, 2):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.04


def test_different_laws_of_one_source_are_uncorrelated():
    samples = [drawn(Rng((0,)), law) for law in LAWS]
    for first, other in itertools.combinations(samples, 2):
        assert abs(stats.spearmanr(first, other).statistic) < 0.04


def test_children_are_sources_of_their_own_for_the_same_examples():
    parent = Rng((0, 1), first=5, block=7)
    names = [("attack",), ("noise",), ("restart", 0), ("restart", 1)]
    children = [parent.child(*name) for name in names]
    samples = [drawn(rng, "normal") for rng in (parent, *children)]
    for first, other in itertools.combinations(samples, 2):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.04
    for child in children:
        assert (child.first, child.block) == (5, 7)


def test_a_child_does_not_depend_on_what_its_parent_drew():
    fresh, used = Rng((0,)), Rng((0,))
    drawn(used, "normal", 3)
    assert np.array_equal(drawn(fresh.child("a"), "normal"), drawn(used.child("a"), "normal"))


def test_draws_take_shape_and_type_of_their_example():
    for law in LAWS:
        for like in (torch.empty(3, 2, 4), torch.empty(0, 5), torch.empty(2, dtype=torch.float64)):
            found = getattr(Rng((0,)), law)(like)
            assert found.shape == like.shape and found.dtype == like.dtype


def test_the_global_generator_plays_no_part():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = drawn(Rng((0,)), "uniform")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert np.array_equal(drawn(Rng((0,)), "uniform"), first)


def test_seeds_are_distinct_and_fit_a_generator():
    keys = [(seed, epoch, step) for seed in range(12) for epoch in range(12) for step in range(12)]
    keys += [(seed, purpose) for seed in range(12) for purpose in ("init", "order", "dropout")]
    keys += [(), (0,), ("0",), (0, 0), ("0, 0",), (1, 23), (12, 3)]
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert min(seeds) >= 0 and max(seeds) < 2**63
    first, again = (torch.rand(3, generator=generator("cpu", 0, "a")) for _ in range(2))
    assert torch.equal(first, again)


def test_seeds_are_the_same_in_every_process_and_release():
    assert seed_of(0, 1, "order") == 4365688119967752521
