"""Job files: every problem at once and to the point, overrides, paths, identities."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robustfront.attacks import PGD
from robustfront.config import MoAsha, TrialConfig, load_trial
from robustfront.errors import ConfigError
from robustfront.problems import overlaid, parse_overrides, validated
from robustfront.search.plan import Plan, check, load_plan

BASE: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "digits", "train_size": 200, "val_size": 100},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
}
TRADES = {"type": "trades"}


def write(folder: Path, content: dict[str, Any] | str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def plan_of(folder: Path, *sets: str, **changes: Any) -> Plan:
    return load_plan(write(folder, {**BASE, **changes}), parse_overrides(list(sets)))


def problems_of(folder: Path, content: dict[str, Any] | str, *sets: str) -> tuple[str, ...]:
    path = write(folder, content)
    with pytest.raises(ConfigError) as caught:
        load_plan(path, parse_overrides(list(sets)))
    assert caught.value.where == str(path)
    return caught.value.problems


def trial(**changes: Any) -> TrialConfig:
    base = {key: value for key, value in BASE.items() if key != "name"}
    return TrialConfig.model_validate(overlaid(base, changes))


# -- one problem, one line: the key, what was found, what is allowed, the nearest guess

ONE_PROBLEM: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": (
        {"sede": 3},
        ["sede: unknown key; did you mean 'seed'?", "allowed: data, model,"],
    ),
    "unknown nested key": (
        {"train": {"epoch": 3}},
        ["train.epoch: unknown key; did you mean 'epochs'?", "batch_size"],
    ),
    "unknown key in a union": (
        {"method": {"type": "trades", "betta": 3}},
        ["method.betta: unknown key; did you mean 'beta'? (allowed: type, beta, inner)"],
    ),
    "unknown key in a union in a union": (
        {"method": {"type": "pgd_at", "inner": {"type": "pgd", "stepz": 3}}},
        ["method.inner.stepz: unknown key; did you mean 'steps'?", "restarts"],
    ),
    "unknown key in the short form of final": (
        {"evaluate": {"final": {"type": "pgd", "stepz": 3}}},
        ["evaluate.final.", "stepz: unknown key; did you mean 'steps'?"],
    ),
    "a key of another method": (
        {"method": {"type": "standard", "beta": 3}},
        ["method.beta: unknown key (allowed: type)"],
    ),
    "wrong type": (
        {"train": {"epochs": "ten"}},
        ["train.epochs: ", "valid integer", "got 'ten'"],
    ),
    "a word for a mapping": (
        {"method": "trades"},
        ["method: ", "dictionary", "got 'trades'"],
    ),
    "nothing for a mapping": ({"train": None}, ["train: ", "got None"]),
    "wrong item of a list": (
        {"model": {"type": "mlp", "hidden": [8, 0]}},
        ["model.hidden.1: ", "greater than 0", "got 0"],
    ),
    "linf radius above 1": (
        {"threat": {"norm": "linf", "eps": 8}},
        ["threat", "eps: an linf radius lies in [0, 1]", "got 8", "did you mean 8/255?"],
    ),
    "linf training radius above 1": (
        {"train_threat": {"eps": 8}},
        ["train_threat.eps: an linf radius lies in [0, 1]", "got 8", "did you mean 8/255?"],
    ),
    "negative radius": (
        {"train_threat": {"eps": "-1/10"}},
        ["train_threat.eps: a radius is 0 or more, got '-1/10'"],
    ),
    "a radius that is no number": (
        {"train_threat": {"eps": "eight"}},
        ["train_threat.eps: write a number or a fraction such as 8/255, got 'eight'"],
    ),
    "a radius that YAML reads as false": (
        {"train_threat": {"eps": False}},
        ["train_threat.eps: write a number or a fraction", "got False"],
    ),
    "an infinite radius": (
        {"train_threat": {"eps": float("inf")}},
        ["train_threat.eps: write a number or a fraction", "got inf"],
    ),
    "division by zero": (
        {"train_threat": {"eps": "1/0"}},
        ["train_threat.eps: write a number or a fraction", "got '1/0'"],
    ),
    "wrong literal": (
        {"evaluate": {"attack": {"type": "pgd", "start": "uniforn"}}},
        ["evaluate.attack.start: got 'uniforn'; did you mean 'uniform'?", "gaussian, zero"],
    ),
    "wrong norm": (
        {"train_threat": {"norm": "l3"}},
        ["train_threat.norm: got 'l3'", "(allowed: linf, l2, l1, segment)"],
    ),
    "missing key": ({"data": {"type": "arrays"}}, ["data.path: is missing"]),
    "missing type": (
        {"data": {"val_size": 100}},
        ["data: `type` is missing (allowed: ", "digits", "mnist"],
    ),
    "unknown type": (
        {"method": {"type": "trade"}},
        ["method.type: got 'trade'; did you mean 'trades'?", "(allowed: alp, ", ", trades, "],
    ),
    "unknown nested type": (
        {"train": {"optimizer": {"type": "sdg"}}},
        ["train.optimizer.type: got 'sdg'; did you mean 'sgd'? (allowed: sgd, adam)"],
    ),
    "not a number": (
        {"train": {"optimizer": {"type": "sgd", "lr": float("nan")}}},
        ["train.optimizer.lr: ", "finite", "got nan"],
    ),
    "infinite": (
        {"smoothing": {"sigma": float("inf")}},
        ["smoothing.sigma: ", "finite", "got inf"],
    ),
    "beta and lambda": (
        {"method": {"type": "trades", "beta": 3, "lambda": 2}},
        ["method: beta is 1/lambda: give one of them, not both"],
    ),
    "lambda 0": (
        {"method": {"type": "trades", "lambda": 0}},
        ["method: lambda is a number above 0, got 0"],
    ),
    "mix that does not sum to 1": (
        {"train_threat": {"mix": {"linf": 0.5, "l2": 0.4}}},
        ["train_threat.mix: the weights of a mix sum to 1, these to 0.9"],
    ),
    "negative mix": (
        {"train_threat": {"mix": {"linf": 1.5, "l2": -0.5}}},
        ["train_threat.mix.l2: ", "greater than or equal to 0", "got -0.5"],
    ),
    "mix of an unknown norm": (
        {"train_threat": {"mix": {"linf": 0.5, "l3": 0.5}}},
        ["train_threat.mix.l3", "got 'l3'", "(allowed: linf, l2, l1, segment)"],
    ),
    "unknown objective": (
        {"objectives": ["standard_error", "robust_eror"]},
        [
            "objectives: got 'robust_eror'; did you mean 'robust_error'?",
            "val/robust_error/linf_0.1",
        ],
    ),
    "objective twice": (
        {"objectives": ["standard_error", "standard_error"]},
        ["objectives: one is given twice"],
    ),
    "no objective": ({"objectives": []}, ["objectives: ", "at least 1"]),
    "threat twice": (
        {"threat": [{"norm": "linf", "eps": "1/10"}, {"norm": "linf", "eps": 0.1}]},
        ["threat: given twice (linf_0.1, linf_0.1)"],
    ),
    "no threat": ({"threat": []}, ["threat: ", "at least 1"]),
    "two step sizes": (
        {"evaluate": {"attack": {"type": "pgd", "step_size": 0.1, "rel_step_size": 1}}},
        ["evaluate.attack: give step_size or rel_step_size, not both"],
    ),
    "more than a GPU": (
        {"resources": {"gpu": 4}},
        ["resources.gpu: ", "one GPU or a share of it", "got 4"],
    ),
    "no CPU": ({"resources": {"cpu": 0}}, ["resources.cpu: ", "greater than 0", "got 0"]),
    "a name that is a path": ({"name": "../a"}, ["name: ", "pattern", "got '../a'"]),
    "unknown sampler": (
        {"search": {"sampler": "tpee"}},
        ["search.sampler: got 'tpee'; did you mean 'tpe'? (allowed: random, tpe, nsga2, gp, grid)"],
    ),
    "unknown scheduler": (
        {"search": {"scheduler": {"type": "asha"}}},
        ["search.scheduler.type: ", "mo_asha", "got 'asha'"],
    ),
    "a scheduler that never stops": (
        {"search": {"scheduler": {"type": "mo_asha", "grace_epochs": 10}}, "train": {"epochs": 10}},
        ["search: scheduler.grace_epochs: got 10, it would never stop a trial of 10 epochs"],
    ),
    "a rung that keeps everybody": (
        {"search": {"scheduler": {"type": "mo_asha", "reduction_factor": 1}}},
        ["search.scheduler.reduction_factor: ", "greater than or equal to 2", "got 1"],
    ),
    "a budget smaller than one trial": (
        {"search": {"budget": {"epochs": 3}}, "train": {"epochs": 4}},
        ["search: budget.epochs: got 3, one trial has 4 epochs"],
    ),
    "a budget that is never spent": (
        {"search": {"budget": {"gpu_hours": 8}}},
        ["search: budget.gpu_hours: would never be spent, resources.gpu is 0"],
    ),
    "a budget of nothing": (
        {"search": {"budget": {"cpu_hours": 0}}},
        ["search.budget.cpu_hours: ", "greater than 0", "got 0"],
    ),
    "unequal shares": (
        {"resources": {"workers": 3}, "train": {"batch_size": 32}},
        ["resources: workers: got 3, a batch of 32 does not divide into equal shares"],
    ),
    "workers on a share of a GPU": (
        {"resources": {"workers": 2, "gpu": 0.5}},
        ["resources.workers: ", "whole GPUs"],
    ),
    "a seed twice": ({"search": {"seeds": [0, 0]}}, ["search.seeds: ", "twice"]),
    "how to count to many": (
        {"search": {"max_concurrent": "many"}},
        ["search.max_concurrent: ", "auto", "got 'many'"],
    ),
    "a mapping for a folder": (
        {"data": {"type": "mnist", "root": {"a": "b"}}},
        ["data.root: ", "got {'a': 'b'}"],
    ),
    "a training norm without a radius": (
        {"train_threat": {"norm": "l2"}},
        ["train_threat: ", "eps: is missing; the job measures no l2 threat"],
    ),
    "a port that is no number": (
        {"ledger": {"url": "postgresql://h:notaport/x"}},
        ["ledger.url: ", "notaport"],
    ),
    "a number for radii": ({"train_threat": {"radii": 5}}, ["train_threat.radii: ", "got 5"]),
    "nothing for radii": ({"train_threat": {"radii": None}}, ["train_threat.radii: ", "None"]),
    "a list for a norm": (
        {"train_threat": {"norm": ["l2"]}},
        ["train_threat.norm: ", "got ['l2']"],
    ),
}


@pytest.mark.parametrize(("changes", "fragments"), ONE_PROBLEM.values(), ids=ONE_PROBLEM)
def test_each_problem_is_one_line(
    tmp_path: Path, changes: dict[str, Any], fragments: list[str]
) -> None:
    problems = problems_of(tmp_path, {**BASE, **changes})
    assert len(problems) == 1, problems
    assert problems[0].startswith(fragments[0]), problems[0]
    assert all(fragment in problems[0] for fragment in fragments), problems[0]


@pytest.mark.parametrize("eps", ["-1", "eight", False, None, float("nan")])
def test_a_wrong_radius_is_reported_once_where_it_stands(tmp_path: Path, eps: Any) -> None:
    problems = problems_of(tmp_path, {**BASE, "threat": {"norm": "linf", "eps": eps}})
    assert len(problems) == 1, problems
    assert problems[0].startswith("threat")


@pytest.mark.parametrize("threat", [{"norm": "linf"}, {"norm": "l3", "eps": 1}, {"eps": 1}])
def test_a_threat_in_part_is_reported_once(tmp_path: Path, threat: dict[str, Any]) -> None:
    problems = problems_of(tmp_path, {**BASE, "threat": threat})
    assert len(problems) == 1, problems


@pytest.mark.parametrize("norm", [["linf"], {"a": 1}, None, 2])
def test_a_norm_of_a_wrong_type_is_a_problem_not_a_crash(tmp_path: Path, norm: Any) -> None:
    problems = problems_of(tmp_path, {**BASE, "threat": {"norm": norm, "eps": "1/10"}})
    assert problems[0].startswith("threat")


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    content = {
        "name": "a b",
        "data": {"type": "digits", "val_size": -1},
        "threat": {"norm": "linf", "eps": 3},
        "method": {"type": "trades", "betta": 1, "inner": {"steps": 0}},
        "train": {"optimizer": {"type": "sdg"}, "schedule": {"type": "cosine", "warm": 1}},
        "serch": {},
    }
    problems = problems_of(tmp_path, content)
    keys = [line.split(": ")[0] for line in problems]
    expected = ["name", "data.val_size", "model", "method.betta", "method.inner.steps"]
    expected += ["train.optimizer.type", "train.schedule.warm", "serch"]
    assert set(expected) <= set(keys)
    assert any(key.startswith("threat") for key in keys)
    assert len(keys) == len(expected) + 1


def test_what_a_radius_is_missing_for_hides_no_other_problem(tmp_path: Path) -> None:
    changes = {"train_threat": {"norm": "l1"}, "train": {"epochs": "ten"}, "sede": 3}
    problems = problems_of(tmp_path, {**BASE, **changes})
    assert sorted(line.split(": ")[0] for line in problems) == [
        "sede",
        "train.epochs",
        "train_threat",
    ]


def test_all_that_a_search_cannot_do_is_told_at_once(tmp_path: Path) -> None:
    search = {
        "sampler": "random",
        "warm_start": ["earlier"],
        "scheduler": {"type": "mo_asha", "grace_epochs": 9},
        "budget": {"epochs": 1, "gpu_hours": 1},
    }
    (problem,) = problems_of(tmp_path, {**BASE, "train": {"epochs": 3}, "search": search})
    for fragment in ("warm_start: ", "scheduler.grace_epochs: ", "budget.epochs: ", "gpu_hours: "):
        assert fragment in problem


def test_the_error_says_how_many_and_stands_alone(tmp_path: Path) -> None:
    path = write(tmp_path, {**BASE, "sede": 3, "trial": 1})
    with pytest.raises(ConfigError) as caught:
        load_plan(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: 2 problems"
    assert len(lines) == 2
    assert all(line.startswith("  ") for line in lines)


# -- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "the key 'name' is given twice"),
        ("train: {epochs: 1, epochs: 2}\n", "the key 'epochs' is given twice"),
        ("train:\n  optimizer: {lr: 1}\n  optimizer: {lr: 2}\n", "'optimizer' is given twice"),
        ("- a\n- b\n", "a mapping of keys is expected, got list"),
        ("", "a mapping of keys is expected, got NoneType"),
        ("a: [1, 2\n", "while parsing"),
        ("a:\n\t- b\n", "line 2"),
        ("[a, b]: 1\n", "a key is a plain word"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
    ],
)
def test_yaml_that_cannot_be_read_is_one_problem(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert message in problem
    assert "\n" not in problem


def test_a_key_given_twice_in_json_is_one_problem(tmp_path: Path) -> None:
    path = write(tmp_path, '{"data": {"type": "digits", "type": "mnist"}}', "config.json")
    with pytest.raises(ConfigError, match="1 problem\n  the key 'type' is given twice"):
        load_trial(path)


def test_merge_keys_give_what_is_not_said_and_hide_no_key_given_twice(tmp_path: Path) -> None:
    text = yaml.safe_dump(BASE) + "evaluate:\n  attack: &pgd {type: pgd, steps: 7}\n"
    plan = load_plan(write(tmp_path, text + "  final: {<<: *pgd, restarts: 3, steps: 9}\n"))
    assert plan.job.evaluate.final.attack == PGD(steps=9, restarts=3)
    assert plan.job.evaluate.attack == PGD(steps=7)
    for twice in ("{<<: *pgd, <<: *pgd}", "{<<: *pgd, steps: 1, steps: 2}"):
        (problem,) = problems_of(tmp_path, text + f"  final: {twice}\n")
        assert "is given twice" in problem


def test_a_mapping_that_holds_itself_is_a_problem(tmp_path: Path) -> None:
    text = yaml.safe_dump(BASE) + "method: &m {type: trades, inner: *m}\n"
    assert len(problems_of(tmp_path, text)) == 1
    with pytest.raises(ConfigError, match="method: a mapping in it holds itself"):
        parse_overrides(["method=&m {type: trades, inner: *m}"])


@pytest.mark.parametrize("name", ["deep.yaml", "deep.json"])
def test_what_is_nested_too_deeply_is_a_problem(tmp_path: Path, name: str) -> None:
    deep = "[" * 3000 + "]" * 3000
    path = write(tmp_path, f'{{"method": {deep}}}', name)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_plan(path)
    with pytest.raises(ConfigError, match="method: nested too deeply"):
        parse_overrides([f"method={deep}"])


def test_a_file_that_is_missing_or_no_text_is_one_problem(tmp_path: Path) -> None:
    write(tmp_path, BASE, "tiny.yaml")
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'tiny\.yaml'\?"):
        load_plan(tmp_path / "tiiny.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_plan(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_plan(tmp_path / "binary.yaml")
    (tmp_path / "half.json").write_text('{"data": ')
    with pytest.raises(ConfigError, match="line 1"):
        load_trial(tmp_path / "half.json")


# -- search spaces


@pytest.mark.parametrize(
    ("space", "fragments"),
    [
        (
            {"threat.eps": {"uniform": [0, 0.5]}},
            ["threat.eps: cannot be searched, it is fixed for the whole job", "train_threat"],
        ),
        (
            {"train.optimizer.lrr": {"choice": [0.5]}},
            ["train.optimizer.lrr: unknown key; did you mean 'lr'?"],
        ),
        (
            {"train.optimizer.lr": {"uniform": [0, 0.5]}},
            ["train.optimizer.lr = 0.0", "greater than 0"],
        ),
        ({"train_threat.eps": {"uniform": [-0.1, 0.5]}}, ["train_threat.eps = -0.1", "0 or more"]),
        ({"method.type": {"choice": ["standard", "trade"]}}, ["did you mean 'trades'?"]),
        ({"train.epochs": {"loguniform": [1, 3]}}, ["did you mean 'log_uniform'?"]),
        ([1], ["a search space is a mapping of keys"]),
    ],
)
def test_problems_of_a_search_space(tmp_path: Path, space: Any, fragments: list[str]) -> None:
    problems = problems_of(tmp_path, {**BASE, "search_space": space})
    text = "\n".join(problems)
    assert all(fragment in text for fragment in fragments), text
    assert all(line.startswith("search_space: ") for line in problems)


def test_a_search_space_is_no_problem_itself_and_hides_none(tmp_path: Path) -> None:
    space = {
        "method.type": {"choice": []},
        "method.beta": {"log_uniform": [1, 2], "when": {"method.type": "trades"}},
        "train.optimizer.lrr": {"choice": [0.5]},
        "threat.eps": {"uniform": [0, 0.5]},
        "train.epochs": {"choice": [1]},
    }
    write(tmp_path, space, "space.yaml")
    for given in (space, "space.yaml"):
        problems = problems_of(tmp_path, {**BASE, "search_space": given})
        assert len(problems) == 3, problems
        for fragment in ("method.type.choice: ", "lrr: unknown key", "threat.eps: cannot be"):
            assert sum(fragment in line for line in problems) == 1
    assert str(tmp_path / "space.yaml") in problems[0]


def test_a_search_space_file_that_is_missing_names_the_file_and_a_guess(tmp_path: Path) -> None:
    write(tmp_path, {"train.epochs": {"choice": [1]}}, "space.yaml")
    text = "\n".join(problems_of(tmp_path, {**BASE, "search_space": "spice.yaml"}))
    assert str(tmp_path / "spice.yaml") in text
    assert "no such file; did you mean 'space.yaml'?" in text


def test_a_grid_needs_points_for_what_is_continuous(tmp_path: Path) -> None:
    space = {"train.optimizer.lr": {"log_uniform": [0.1, 0.5]}, "train.epochs": {"choice": [1]}}
    content = {**BASE, "search_space": space, "search": {"sampler": "grid"}}
    (problem,) = problems_of(tmp_path, content)
    assert problem.startswith("search_space: train.optimizer.lr: continuous; add `points: n`")


def test_problems_of_the_job_and_of_its_space_are_reported_together(tmp_path: Path) -> None:
    space = {"threat.eps": {"uniform": [0, 1]}, "train.epochz": {"choice": [1]}}
    text = "\n".join(problems_of(tmp_path, {**BASE, "sede": 3, "search_space": space}))
    assert "sede: unknown key" in text
    assert "threat.eps: cannot be searched" in text
    assert "train.epochz: unknown key" in text


# -- what YAML makes of numbers


@pytest.mark.parametrize(
    ("search", "epochs", "stops"),
    [
        ({}, 2, True),
        ({"sampler": "random", "trials": 5}, 10, True),
        ({"scheduler": None}, 10, False),
        ({"sampler": "grid"}, 10, False),
        ({}, 1, False),
    ],
)
def test_trials_are_stopped_early_unless_the_job_says_otherwise_or_they_cannot_be(
    tmp_path: Path, search: dict[str, Any], epochs: int, stops: bool
) -> None:
    space = {"method.type": {"choice": ["standard", "trades"]}}
    plan = plan_of(tmp_path, search=search, train={"epochs": epochs}, search_space=space)
    expected = MoAsha(mode="promote") if stops else None
    assert plan.job.search.scheduler == expected
    # written out, for the day when the default is another one
    assert plan.settings["search"]["scheduler"] == (expected and expected.model_dump())


def test_a_sweep_from_before_there_was_a_default_scheduler_goes_on_without_one(
    tmp_path: Path,
) -> None:
    settings = plan_of(tmp_path, search={"trials": 3}).settings
    stored = {**settings, "search": {"trials": 3}}
    assert check(stored, "job.yaml").job.search.scheduler is None


def test_yaml_traps_are_read_as_meant(tmp_path: Path) -> None:
    text = """
name: traps
data: {type: digits, val_size: 100}
model: {type: linear}
threat: {norm: linf, eps: 8/255}
train: {optimizer: {type: sgd, lr: 1e-3}}
"""
    plan = load_plan(write(tmp_path, text))
    assert plan.job.train.optimizer.lr == 0.001
    assert plan.job.threat[0].eps == Fraction(8, 255)
    assert plan.job.threat[0].name == "linf_8_255"


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ("8/255", Fraction(8, 255)),
        ("0.031", Fraction(31, 1000)),
        (0.1, Fraction(1, 10)),
        ("1e-3", Fraction(1, 1000)),
        (0, Fraction(0)),
        (1, Fraction(1)),
    ],
)
def test_a_radius_is_kept_exact_through_json(given: Any, exact: Fraction) -> None:
    config = trial(**{"threat.eps": given})
    again = TrialConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert config.threat[0].eps == again.threat[0].eps == exact
    assert config.train_threat.eps == again.train_threat.eps == exact


# -- --set


def test_overrides_are_read_as_yaml() -> None:
    sets = ["a=1", "b.c=8/255", "d=[1, 2]", "e={f: no}", "g=x=y", " h =null", "i="]
    assert parse_overrides(sets) == {
        "a": 1,
        "b.c": "8/255",
        "d": [1, 2],
        "e": {"f": False},
        "g": "x=y",
        "h": None,
        "i": None,
    }


@pytest.mark.parametrize(
    "setting", ["nothing", "=3", "a: b", "a=[1", "a={b: 1, b: 2}", "a=2024-99-99"]
)
def test_a_setting_that_cannot_be_read_is_a_problem(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["fine=1", setting])
    assert caught.value.where == "--set"
    assert len(caught.value.problems) == 1


def test_all_settings_that_cannot_be_read_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["nothing", "a=[1", "b=2"])
    assert len(caught.value.problems) == 2


def test_overrides_replace_values_and_leave_the_rest(tmp_path: Path) -> None:
    given = {"type": "trades", "inner": {"type": "pgd", "steps": 3}}
    plan = plan_of(tmp_path, "train.epochs=2", "method.beta=3", "search.trials=5", method=given)
    assert plan.job.train.epochs == 2
    assert plan.job.search.trials == 5
    method = plan.job.method.model_dump(mode="json")
    assert (method["beta"], method["inner"]["steps"]) == (3.0, 3)


def test_an_override_of_a_key_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, BASE, "train.epoch=2")
    assert problems[0].startswith("train.epoch: unknown key; did you mean 'epochs'?")


# -- overlays


def test_a_type_that_changes_takes_the_old_settings_away() -> None:
    raw = {"method": {"type": "trades", "beta": 3}, "train": {"epochs": 2}}
    changed = overlaid(raw, {"method.type": "pgd_at"})
    assert changed == {"method": {"type": "pgd_at"}, "train": {"epochs": 2}}
    assert overlaid(raw, {"method.type": "trades"}) == raw
    assert raw["method"] == {"type": "trades", "beta": 3}, "the original was changed"


def test_a_type_is_set_before_the_settings_that_need_it() -> None:
    for keys in (("method.beta", "method.type"), ("method.type", "method.beta")):
        values = {"method.beta": 3, "method.type": "trades"}
        changed = overlaid(
            {"method": {"type": "pgd_at", "inner": {}}}, {k: values[k] for k in keys}
        )
        assert changed == {"method": {"type": "trades", "beta": 3}}


def test_an_outer_type_is_set_before_an_inner_one() -> None:
    values = {"method.inner.type": "fgsm", "method.type": "trades", "method.beta": 3}
    changed = overlaid({"method": {"type": "pgd_at"}}, values)
    assert changed == {"method": {"type": "trades", "inner": {"type": "fgsm"}, "beta": 3}}


def test_a_searched_inner_type_reaches_the_trial(tmp_path: Path) -> None:
    space = {
        "method.type": {"choice": ["trades", "pgd_at"]},
        "method.inner.type": {"choice": ["fgsm", "pgd"]},
    }
    plan = plan_of(tmp_path, search_space=space, method=TRADES)
    for values in plan.space.configurations() or ():
        method = plan.job.trial(values, seed=0).method.model_dump()
        assert (method["type"], method["inner"]["type"]) == tuple(
            values[key] for key in ("method.type", "method.inner.type")
        )


def test_the_short_form_of_final_keeps_its_examples_when_the_attack_changes(
    tmp_path: Path,
) -> None:
    final = {"type": "pgd", "steps": 7, "examples": 10}
    plan = plan_of(tmp_path, "evaluate.final.type=fgsm", evaluate={"final": final})
    assert plan.job.evaluate.final.attack.name == "fgsm"
    assert plan.job.evaluate.final.examples == 10


def test_a_nested_part_keeps_the_other_defaults() -> None:
    inner = trial(method={"type": "trades", "inner": {"steps": 3}}).method.model_dump()["inner"]
    assert (inner["type"], inner["steps"], inner["start"]) == ("pgd", 3, "gaussian")
    optimizer = trial(**{"train.optimizer.lr": 0.01}).train.optimizer.model_dump()
    assert (optimizer["type"], optimizer["lr"], optimizer["momentum"]) == ("sgd", 0.01, 0.9)
    final = trial(**{"evaluate.final.examples": 7}).evaluate.final
    assert (final.examples, final.attack) == (7, PGD(steps=50, restarts=5))
    fresh = trial(method={"type": "trades", "inner": {"type": "fgsm"}}).method.model_dump()
    assert "steps" not in fresh["inner"]


def test_the_short_and_the_long_form_of_final_are_equal() -> None:
    short = trial(evaluate={"final": {"type": "pgd", "steps": 7, "examples": 9}})
    long = trial(evaluate={"final": {"attack": {"type": "pgd", "steps": 7}, "examples": 9}})
    assert short == long


def test_the_training_threat_follows_the_threat_of_the_job() -> None:
    threats = [{"norm": "linf", "eps": "8/255"}, {"norm": "l2", "eps": 0.5}]
    config = trial(threat=threats)
    assert (config.train_threat.norm, config.train_threat.eps) == ("linf", Fraction(8, 255))
    assert config.train_threat.radii == {"linf": Fraction(8, 255), "l2": Fraction(1, 2)}
    config = trial(threat=threats, **{"train_threat.norm": "l2"})
    assert config.train_threat.eps == Fraction(1, 2)
    config = trial(threat=threats, **{"train_threat.eps": "4/255"})
    assert config.train_threat.threats(64)["linf"].eps == Fraction(4, 255)


# -- paths


def test_paths_are_relative_to_the_file_and_those_of_set_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, here = tmp_path / "jobs", tmp_path / "here"
    jobs.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    write(tmp_path, {"train.epochs": {"choice": [1, 2]}}, "space.yaml")
    content = {
        **BASE,
        "data": {"type": "mnist", "root": ["../data", "/abs"]},
        "search_space": "../space.yaml",
        "storage": "out",
    }
    job = write(jobs, content)
    plan = load_plan(job)
    assert plan.settings["data"]["root"] == [str(tmp_path / "data"), "/abs"]
    assert plan.job.storage == str(jobs / "out")
    assert plan.space.keys == ("train.epochs",)
    plan = load_plan(job, parse_overrides(["data.root=mine", "storage=there"]))
    assert plan.settings["data"]["root"] == str(here / "mine")
    assert plan.job.storage == str(here / "there")
    assert plan.space.keys == ("train.epochs",)
    plan = load_plan(job, {"data": {"type": "mnist", "root": "~/mine"}})
    assert plan.settings["data"]["root"] == str(Path("~/mine").expanduser())


# -- identity

MATTERS: dict[str, Any] = {
    "data.train_size": 150,
    "data.val_size": 90,
    "data.split_seed": 1,
    "data.augment": {"crop": 1},
    "model.type": "mlp",
    "threat.eps": "1/5",
    "threat.norm": "l2",
    "train_threat.eps": "1/20",
    "train_threat": {"norm": "l2", "eps": "1/10"},
    "train_threat.mix": {"linf": 0.5, "l2": 0.5},
    "train_threat.radii": {"linf": "1/10", "l2": 2},
    "method.type": "trades",
    "smoothing.sigma": 0.1,
    "train.epochs": 3,
    "train.batch_size": 64,
    "train.optimizer.lr": 0.05,
    "train.optimizer.type": "adam",
    "init_from": "sweeps/base/trials/0123",
    "train.schedule.type": "cosine",
    "train.eps_ramp.end": 2,
    "train.clip_norm": 1.0,
    "train.ema": 0.99,
    "train.select": "best",
    "train.precision": "float32",
    "evaluate.attack.steps": 3,
    "seed": 1,
}
IRRELEVANT: dict[str, Any] = {
    "resources.cpu": 2,
    "resources.gpu": 1,
    "objectives": ["standard_error"],
    "evaluate.batch_size": 10,
    "evaluate.final.examples": 10,
}


def test_each_setting_that_matters_changes_the_id() -> None:
    ids = {key: trial(**{key: value}).id for key, value in MATTERS.items()}
    assert len(set(ids.values()) | {trial().id}) == len(MATTERS) + 1
    fields = set(TrialConfig.model_fields) - {"objectives", "resources", "update"}
    assert {key.split(".")[0] for key in MATTERS} == fields, "a field is not tried"


@pytest.mark.parametrize("key", IRRELEVANT)
def test_what_only_says_how_to_run_does_not_change_the_id(key: str) -> None:
    changed = trial(**{key: IRRELEVANT[key]})
    assert changed != trial()
    assert changed.id == trial().id


def test_where_the_data_lie_does_not_change_the_id() -> None:
    here, there = (trial(data={"type": "mnist", "root": root}) for root in ("a", ["b", "c"]))
    assert here != there
    assert here.id == there.id
    assert here.id != trial(data={"type": "fashion_mnist", "root": "a"}).id


def test_defaults_that_are_written_out_do_not_change_the_id() -> None:
    written = trial(method={"type": "standard"}, **{"train.optimizer.lr": "1e-1", "seed": 0})
    assert written.id == trial().id
    assert len(trial().id) == 12


def test_a_resolved_trial_reads_back_equal_with_the_same_id() -> None:
    changes: dict[str, Any] = {
        "threat": [{"norm": "linf", "eps": "8/255"}, {"norm": "l1", "eps": 3}],
        "method": {"type": "trades", "lambda": 0.3, "inner": {"steps": 3}},
        "train.optimizer": {"type": "adam", "betas": [0.5, 0.9]},
        "train_threat.mix": {"linf": 0.25, "l1": 0.75},
        "evaluate.final": {"type": "pgd", "steps": 3, "examples": None},
        "data.augment": {"flip": True},
    }
    for config in (trial(), trial(**changes)):
        again = TrialConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
        assert again == config
        assert again.id == config.id
        assert again.parameters() == config.parameters()


def test_a_config_json_is_a_trial_and_a_job_file_without_its_search(tmp_path: Path) -> None:
    job = write(tmp_path, {**BASE, "search": {"trials": 3}, "method": TRADES})
    config = load_trial(job, {"seed": 4})
    assert (config.seed, config.method.type) == (4, "trades")
    dumped = tmp_path / "config.json"
    dumped.write_text(json.dumps(config.model_dump(mode="json")))
    assert load_trial(dumped) == config
    with pytest.raises(ConfigError, match="sede: unknown key"):
        load_trial(job, {"sede": 4})


# -- what a job makes of proposed values


def test_a_trial_is_the_job_with_values_set(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, method={**TRADES, "beta": 5}, train={"epochs": 4})
    config = plan.job.trial({"method.beta": 2.5, "train_threat.eps": 0.05}, seed=3)
    assert (config.method.model_dump()["beta"], config.seed, config.train.epochs) == (2.5, 3, 4)
    assert config.train_threat.eps == Fraction(1, 20)
    assert config.threat[0].eps == Fraction(1, 10)
    assert not hasattr(config, "search")
    assert plan.job.trial({}, 0).id == plan.job.trial({}, 0).id


def test_a_trial_outside_the_domain_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(ConfigError, match=r"train\.optimizer\.lr: .*greater than 0"):
        plan.job.trial({"train.optimizer.lr": -1}, 0)


def test_parameters_are_flat_and_say_what_follows_from_them() -> None:
    config = trial(
        threat=[{"norm": "linf", "eps": "1/10"}, {"norm": "l2", "eps": 1}],
        method={"type": "trades", "beta": 4},
        train_threat={"eps": "1/20", "mix": {"linf": 0.5, "l2": 0.5}},
        model={"type": "mlp", "hidden": [8, 4]},
    )
    parameters = config.parameters()
    expected = {
        "method.type": "trades",
        "method.beta": 4.0,
        "method.lambda": 0.25,
        "method.inner.start": "gaussian",
        "train_threat.eps": "0.05",
        "train_threat.mix.l2": 0.5,
        "train_threat.radius.linf": "0.05",
        "train_threat.radius.l2": "0.5",
        "threat.0.eps": "0.1",
        "threat.1.norm": "l2",
        "model.hidden": "[8, 4]",
        "train.optimizer.lr": 0.1,
        "seed": 0,
    }
    assert expected.items() <= parameters.items()
    assert all(isinstance(v, str | int | float | bool | None) for v in parameters.values())
    assert not [key for key in parameters if key.startswith(("resources", "objectives"))]


def test_parameters_without_a_reference_radius_use_the_dimension() -> None:
    config = trial(train_threat={"mix": {"linf": 0.5, "l2": 0.5}})
    radius = float(config.parameters()["train_threat.radius.l2"])
    assert radius == pytest.approx(0.1 * np.sqrt(np.sqrt(64)), rel=1e-5)
    assert "method.lambda" not in trial(method={"type": "trades", "beta": 0}).parameters()


@pytest.mark.parametrize("inner", ["square", "apgd_t", "fab_t", "autoattack", "apgd"])
def test_attacks_that_need_labels_are_for_evaluations(inner: str) -> None:
    attack = {"type": inner} | ({"loss": "dlr"} if inner == "apgd" else {})
    base = {key: value for key, value in BASE.items() if key in TrialConfig.model_fields}
    _, problems = validated(TrialConfig, {**base, "method": {"type": "pgd_at", "inner": attack}})
    assert len(problems) == 1
    assert problems[0].startswith("method")
    assert "is for evaluations (allowed for training: " in problems[0]
