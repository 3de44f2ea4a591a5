"""Search spaces: reading, suggesting, grids and probes."""

import json
import math
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler

from robustfront.errors import SearchSpaceError
from robustfront.search.domains import Latent
from robustfront.search.space import Space, Values
from robustfront.search.study import new_study

EXAMPLE: dict[str, Any] = {
    "method.beta": {"log_uniform": [0.5, 12], "when": {"method.type": "trades"}, "points": 3},
    "method.type": {"choice": ["pgd_at", "trades"]},
    "train_threat.eps": {"uniform": [0, "4/10"], "points": 3},
    "method.inner.steps": {"int_uniform": [1, 3]},
    "train_threat.mix": {"simplex": ["linf", "l2", "l1"], "points": 3},
}


def parse(raw: object) -> Space:
    return Space.parse(raw, "space.yaml")


def problems(raw: object) -> tuple[str, ...]:
    with pytest.raises(SearchSpaceError) as caught:
        parse(raw)
    assert caught.value.where == "space.yaml"
    return caught.value.problems


def replay(space: Space, latent: Latent) -> Values:
    study = new_study(RandomSampler(seed=0), 1)
    study.enqueue_trial(latent)
    trial = study.ask()
    values = space.suggest(trial)
    assert trial.params == latent
    return values


def test_entries_stand_after_what_they_depend_on_whatever_the_order_of_the_file() -> None:
    space, turned = parse(EXAMPLE), parse(dict(reversed(EXAMPLE.items())))
    assert set(space.keys) == set(EXAMPLE)
    assert space.keys.index("method.type") < space.keys.index("method.beta")
    assert space == turned
    assert space.sample(3) == turned.sample(3)


def test_values_are_resolved_readable_and_inside_their_ranges() -> None:
    space = parse(EXAMPLE)
    types = set()
    for seed in range(60):
        values = space.sample(seed)
        assert json.loads(json.dumps(values)) == values
        types.add(values["method.type"])
        assert ("method.beta" in values) == (values["method.type"] == "trades")
        assert 0.5 <= values.get("method.beta", 1) <= 12
        assert 0 <= values["train_threat.eps"] <= 0.4
        assert len(repr(values["train_threat.eps"]).split(".")[1]) <= 10
        assert values["method.inner.steps"] in (1, 2, 3)
        assert isinstance(values["method.inner.steps"], int)
        assert list(values["train_threat.mix"]) == ["linf", "l2", "l1"]
    assert types == {"pgd_at", "trades"}


def test_sample_repeats_and_takes_any_seed() -> None:
    space = parse(EXAMPLE)
    assert space.sample(2**62 + 5) == space.sample(2**62 + 5)
    assert space.sample(1) != space.sample(2)


def test_rounding_stays_inside_a_range_whose_ends_have_more_digits() -> None:
    domain = parse({"eps": {"uniform": ["1/3", "2/3"]}}).entries[0].domain
    assert domain.value("eps", {"eps": 1 / 3}) == 1 / 3
    assert domain.value("eps", {"eps": 2 / 3}) == 2 / 3
    assert domain.value("eps", {"eps": 0.45678912}) == 0.456789


def test_optuna_knows_every_latent_parameter() -> None:
    assert set(parse(EXAMPLE).distributions) == {
        "method.type",
        "method.beta",
        "method.inner.steps",
        "train_threat.eps",
        "train_threat.mix/linf",
        "train_threat.mix/l2",
        "train_threat.mix/l1",
    }


def test_choices_of_every_kind_come_back_as_they_were() -> None:
    items = ["trades", 3, 0.5, None, True, [1, 2], {"type": "pgd", "steps": 5}]
    space = parse({"key": {"choice": items}})
    seen = [replay(space, latent)["key"] for latent in space.grid()]
    assert seen == items
    assert space.latent({"key": {"steps": 5, "type": "pgd"}}) == {
        "key": '{"steps": 5, "type": "pgd"}'
    }


# --- simplex ---------------------------------------------------------------------------------


def test_weights_are_uniform_on_the_simplex() -> None:
    space = parse({"mix": {"simplex": ["linf", "l2", "l1"]}})
    study = new_study(RandomSampler(seed=0), 1)
    weights = np.array([list(space.suggest(study.ask())["mix"].values()) for _ in range(1500)])
    assert (weights >= 0).all()
    assert np.abs(weights.sum(axis=1) - 1).max() < 1e-12
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18, P(w > 1/2) = 1/4; normalised uniforms have 1/7
    assert weights.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert weights.var(axis=0) == pytest.approx([1 / 18] * 3, abs=0.006)
    assert (weights > 0.5).mean(axis=0) == pytest.approx([1 / 4] * 3, abs=0.04)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-12, 1.0), min_size=2, max_size=6))
def test_rounded_weights_sum_to_one(latents: list[float]) -> None:
    names = [f"n{i}" for i in range(len(latents))]
    domain = parse({"mix": {"simplex": names}}).entries[0].domain
    latent = {f"mix/{name}": u for name, u in zip(names, latents, strict=True)}
    weights = domain.value("mix", latent)
    assert all(0 <= weight <= 1 for weight in weights.values())
    assert abs(math.fsum(weights.values()) - 1) < 1e-12
    assert domain.value("mix", domain.latent("mix", weights)) == weights


def test_corners_and_the_degenerate_point_of_a_simplex() -> None:
    domain = parse({"mix": {"simplex": ["linf", "l2", "l1"]}}).entries[0].domain
    for corner in domain.extremes():
        assert domain.value("mix", domain.latent("mix", corner)) == corner
    ones = {"mix/linf": 1.0, "mix/l2": 1.0, "mix/l1": 1.0}
    assert domain.value("mix", ones) == {"linf": 0.333334, "l2": 0.333333, "l1": 0.333333}


# --- conditions ------------------------------------------------------------------------------

CHAIN: dict[str, Any] = {
    "a": {"choice": [1, 2, 3]},
    "b": {"int_uniform": [1, 4], "when": {"a": [1, 2]}},
    "c": {"choice": ["x", "y"], "when": {"b": 4, "a": 2}},
}


def test_conditions_chain_and_hold_together() -> None:
    space = parse(CHAIN)
    grid = [replay(space, latent) for latent in space.grid()]
    assert len(grid) == 2 * 4 + 1 + 1  # a in {1, 2} with each b, one of them with two c; a = 3
    assert {"a": 3} in grid
    assert [values for values in grid if "c" in values] == [
        {"a": 2, "b": 4, "c": "x"},
        {"a": 2, "b": 4, "c": "y"},
    ]
    assert space.size() == 10
    assert list(space.configurations() or ()) == grid


def test_probes_carry_what_their_conditions_need_and_nothing_else() -> None:
    probes = parse(CHAIN).probes()
    assert ("c", {"a": 2, "b": 4, "c": "y"}) in probes
    assert ("b", {"a": 1, "b": 4}) in probes
    assert len(probes) == 3 + 2 + 2
    corners = [values for key, values in parse(EXAMPLE).probes() if key == "train_threat.mix"]
    assert corners[0] == {"train_threat.mix": {"linf": 1.0, "l2": 0.0, "l1": 0.0}}
    assert len(corners) == 3
    ends = [values for key, values in parse(EXAMPLE).probes() if key == "method.beta"]
    assert ends == [{"method.type": "trades", "method.beta": end} for end in (0.5, 12.0)]


# --- grids and sizes -------------------------------------------------------------------------


def test_grid_of_the_example() -> None:
    space = parse(EXAMPLE)
    grid = [replay(space, latent) for latent in space.grid()]
    # (pgd_at, or trades with 3 betas) x 3 radii x 3 numbers of steps x 6 lattice points
    assert len(grid) == 4 * 3 * 3 * 6
    assert len({json.dumps(values, sort_keys=True) for values in grid}) == len(grid)
    assert {values.get("method.beta") for values in grid} == {None, 0.5, 2.44949, 12.0}
    assert {values["train_threat.eps"] for values in grid} == {0.0, 0.2, 0.4}
    mixes = {tuple(values["train_threat.mix"].values()) for values in grid}
    assert mixes == {
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 1.0),
        (0.5, 0.5, 0.0),
        (0.5, 0.0, 0.5),
        (0.0, 0.5, 0.5),
    }
    assert space.size() is None
    assert space.configurations() is None


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"int_uniform": [1, 10], "points": 4}, [1, 4, 7, 10]),
        ({"int_uniform": [1, 3], "points": 9}, [1, 2, 3]),
        ({"int_uniform": [-1, 1]}, [-1, 0, 1]),
        ({"log_int_uniform": [1, 100], "points": 3}, [1, 10, 100]),
        ({"log_uniform": ["1e-3", 0.1], "points": 3}, [0.001, 0.01, 0.1]),
        ({"uniform": [0.5, 0.5]}, [0.5]),
        ({"uniform": [-1, "1/2"], "points": 2}, [-1.0, 0.5]),
    ],
)
def test_levels_of_ranges(spec: dict[str, Any], values: list[float]) -> None:
    space = parse({"key": spec})
    assert [replay(space, latent)["key"] for latent in space.grid()] == values


def test_a_grid_needs_points_for_what_is_continuous() -> None:
    space = parse(
        {
            "eps": {"uniform": [0, 1]},
            "mix": {"simplex": ["linf", "l2"]},
            "steps": {"int_uniform": [1, 2]},
        }
    )
    with pytest.raises(SearchSpaceError) as caught:
        space.grid()
    assert caught.value.where == "space.yaml"
    assert caught.value.problems == tuple(
        f"{key}: continuous; add `points: n`, the number of values in a grid"
        for key in ("eps", "mix")
    )


def test_the_empty_space_has_one_configuration() -> None:
    space = parse({})
    assert (space.size(), space.grid(), space.sample(0), space.probes()) == (1, [{}], {}, [])


def test_size_does_not_enumerate_what_decides_nothing() -> None:
    assert parse({f"k{i}": {"int_uniform": [1, 1000]} for i in range(9)}).size() == 1000**9


def test_latent_refuses_keys_that_are_not_active_together() -> None:
    with pytest.raises(ValueError, match="these need: a, b$"):
        parse(CHAIN).latent({"a": 1})
    with pytest.raises(ValueError, match="these need: a$"):
        parse(CHAIN).latent({"a": 3, "b": 1})
    with pytest.raises(ValueError, match=r"never 9 \(allowed: 1, 2, 3\)"):
        parse(CHAIN).latent({"a": 9})


# --- problems --------------------------------------------------------------------------------

TYPE = {"choice": ["pgd_at", "trades"]}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (3, "k: write a mapping such as {choice: [...]}, got 3"),
        (
            {"unifrom": [0, 1]},
            "k: no distribution is named 'unifrom'; did you mean 'uniform'? (allowed: choice, "
            "uniform, log_uniform, int_uniform, log_int_uniform, simplex, when, points)",
        ),
        (
            {"points": 3},
            "k: write exactly one distribution, got none (choice, uniform, log_uniform, "
            "int_uniform, log_int_uniform, simplex)",
        ),
        (
            {"uniform": [0, 1], "choice": [0, 1]},
            "k: write exactly one distribution, got choice and uniform (choice, uniform, "
            "log_uniform, int_uniform, log_int_uniform, simplex)",
        ),
        ({"uniform": [0]}, "k.uniform: a range takes two numbers, [low, high], got [0]"),
        ({"uniform": 3}, "k.uniform: a range takes two numbers, [low, high], got 3"),
        ({"uniform": [2, 1]}, "k.uniform: the low end 2.0 of a range is above its high end 1.0"),
        (
            {"uniform": [0, "a lot"]},
            "k.uniform: an end of a range is a number or a fraction such as 4/10, got 'a lot'",
        ),
        (
            {"uniform": [0, ".inf"]},
            "k.uniform: an end of a range is a number or a fraction such as 4/10, got '.inf'",
        ),
        (
            {"uniform": [0, math.inf]},
            "k.uniform: an end of a range is a number or a fraction such as 4/10, got inf",
        ),
        (
            {"uniform": [0, "1e999"]},
            "k.uniform: an end of a range is a number or a fraction such as 4/10, got '1e999'",
        ),
        (
            {"uniform": [False, 1]},
            "k.uniform: an end of a range is a number or a fraction such as 4/10, got False",
        ),
        (
            {"uniform": [0, "1/0"]},
            "k.uniform: an end of a range is a number or a fraction such as 4/10, got '1/0'",
        ),
        (
            {"int_uniform": [0, 1.5]},
            "k.int_uniform: an end of a range is an integer, got 1.5",
        ),
        (
            {"log_uniform": [0, 1]},
            "k.log_uniform: the low end of a logarithmic range is above 0, got 0.0",
        ),
        (
            {"log_int_uniform": [0, 8]},
            "k.log_int_uniform: the low end of a logarithmic range is above 0, got 0",
        ),
        ({"choice": []}, "k.choice: choice takes a list of at least one value, got []"),
        ({"choice": "trades"}, "k.choice: choice takes a list of at least one value, got 'trades'"),
        ({"choice": [1, 2, 1]}, "k.choice: choice names the same value twice: 1"),
        ({"choice": [0, False]}, "k.choice: choice names the same value twice: False"),
        ({"choice": [[1], [1]]}, "k.choice: choice names the same value twice: [1]"),
        (
            {"choice": [math.nan]},
            "k.choice: a choice is a finite number, a text, true, false, null, or a list or "
            "mapping of these, got nan",
        ),
        (
            {"choice": [{1, 2}]},
            "k.choice: a choice is a finite number, a text, true, false, null, or a list or "
            "mapping of these, got {1, 2}",
        ),
        (
            {"choice": [1, 2], "points": 2},
            "k.choice: points is for ranges and simplexes; a grid takes every choice",
        ),
        ({"uniform": [0, 1], "points": 1}, "k.points: an integer of at least 2, got 1"),
        ({"uniform": [0, 1], "points": True}, "k.points: an integer of at least 2, got True"),
        (
            {"simplex": ["linf"]},
            "k.simplex: simplex takes a list of two or more different names, got ['linf']",
        ),
        (
            {"simplex": ["linf", "l2", "l2"]},
            "k.simplex: simplex takes a list of two or more different names, "
            "got ['linf', 'l2', 'l2']",
        ),
        (
            {"simplex": ["linf", False]},
            "k.simplex: simplex takes a list of two or more different names, got ['linf', False]",
        ),
        (
            {"uniform": [0, 1], "when": "type"},
            "k.when: a mapping of other keys to their values, got 'type'",
        ),
        (
            {"uniform": [0, 1], "when": {"tpye": "trades"}},
            "k.when: no entry is named 'tpye'; did you mean 'type'? (allowed: eps, mix, steps, "
            "type)",
        ),
        (
            {"uniform": [0, 1], "when": {"type": "trade"}},
            "k.when: type is never 'trade' (allowed: 'pgd_at', 'trades')",
        ),
        (
            {"uniform": [0, 1], "when": {"type": ["trades", False]}},
            "k.when: type is never False (allowed: 'pgd_at', 'trades'); YAML reads an unquoted "
            "yes, no, on, off as true or false: quote it",
        ),
        ({"uniform": [0, 1], "when": {"type": []}}, "k.when: type has an empty list of values"),
        (
            {"uniform": [0, 1], "when": {"steps": 9}},
            "k.when: steps is never 9 (allowed: from 1 to 5)",
        ),
        (
            {"uniform": [0, 1], "when": {"eps": 0}},
            "k.when: eps is continuous; a condition names a choice or an integer",
        ),
        (
            {"uniform": [0, 1], "when": {"mix": {"linf": 1}}},
            "k.when: mix is a simplex; a condition names a choice or an integer",
        ),
        (
            {"choice": [1, 2], "when": {"k": 1}},
            "k.when: conditions go in a circle: k -> k",
        ),
    ],
)
def test_one_problem_is_named(spec: object, problem: str) -> None:
    raw = {
        "type": TYPE,
        "eps": {"uniform": [0, 1]},
        "steps": {"int_uniform": [1, 5]},
        "mix": {"simplex": ["linf", "l2"]},
        "k": spec,
    }
    assert problems(raw) == (problem,)


@pytest.mark.parametrize("raw", [None, ["method.type"], "text"])
def test_a_space_is_a_mapping(raw: object) -> None:
    assert problems(raw) == (f"a search space is a mapping of keys, got {raw!r}",)


@pytest.mark.parametrize("key", [False, "a/b", "a b", "", "a..b", 3])
def test_keys_are_dotted_paths(key: object) -> None:
    assert problems({key: TYPE}) == (
        f"{key}: a key is a dotted path such as method.beta, got {key!r}",
    )


def test_all_problems_are_reported_at_once() -> None:
    found = problems(
        {
            "a": {"uniform": [1, 0], "points": 0, "when": {"b": 1}},
            "c": {"choose": [1]},
            "d": {"choice": [1], "when": {"a": 0.5}},  # a is broken itself: nothing more to say
        }
    )
    assert [line.split(":")[0] for line in found] == ["a.points", "a.uniform", "c", "a.when"]


def test_conditions_in_a_circle() -> None:
    found = problems(
        {
            "a": {"choice": [1, 2], "when": {"b": 1}},
            "b": {"choice": [1, 2], "when": {"a": 1}},
        }
    )
    assert len(found) == 1
    assert "when: conditions go in a circle: " in found[0]


def test_conditions_that_never_hold_together() -> None:
    contradiction = {
        "type": TYPE,
        "beta": {"int_uniform": [1, 2], "when": {"type": "trades"}},
        "steps": {"int_uniform": [1, 2], "when": {"type": "pgd_at", "beta": 1}},
    }
    assert problems(contradiction) == ("steps.when: can never hold, nothing is left for type",)


def test_optuna_stays_as_loud_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    parse(EXAMPLE).sample(0)
    assert optuna.logging.get_verbosity() == before
    assert capsys.readouterr().err == ""
