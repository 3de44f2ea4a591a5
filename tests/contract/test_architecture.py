"""What holds for the whole repository: its shape, its registries, its files, its tools."""

import inspect
import json
import pickle
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import robustfront
from robustfront import attacks, certifiers, data, methods, models, unseen, updates
from robustfront.config import TrialConfig
from robustfront.methods import METHODS, StepContext
from robustfront.problems import overlaid, parse_overrides, read_mapping, validated
from robustfront.randomness import Rng
from robustfront.registry import Component
from robustfront.search.plan import load_plan
from robustfront.search.space import Space
from robustfront.training import optimizers, schedules
from tiny_job import command, environment, write_job

ROOT = Path(__file__).parents[2]
TRIAL: dict[str, Any] = {
    "data": {"type": "digits"},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
}


# -- the folder named platform


def test_platform_is_still_the_standard_library_s() -> None:
    assert callable(platform.system)
    assert platform.system()
    assert not (ROOT / "platform" / "__init__.py").exists()


# -- registries: one file, one component

FOLDERS: dict[str, tuple[ModuleType, Any, set[str], int]] = {
    # package, its registry, files that hold no component, least number of components
    "attacks": (attacks, attacks.ATTACKS, {"base", "goals"}, 2),
    "methods": (methods, methods.METHODS, {"base", "bounding", "noisy"}, 3),
    "models": (models, models.MODELS, {"base", "conditioned"}, 6),
    "data": (data, data.DATA, {"base", "corrupted", "drawn", "torchvision_sets"}, 6),
    "updates": (updates, updates.UPDATES, {"base"}, 1),
    "certifiers": (
        certifiers,
        certifiers.CERTIFIERS,
        {"base", "input_dependent", "propagation", "relaxation"},
        5,
    ),
    "unseen": (unseen, unseen.UNSEEN, {"base"}, 3),
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_of_a_folder_of_components_is_registered(folder: str) -> None:
    package, registry, allowed, least = FOLDERS[folder]
    assert package.__file__ is not None
    files = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {"__init__"}
    registered = {cls.__module__.rpartition(".")[2] for cls in registry.classes.values()}
    missing = files - registered - allowed
    assert not missing, f"register these in {folder}/__init__.py: {sorted(missing)}"
    assert len(registry.classes) >= least
    for cls in registry.classes.values():
        assert getattr(package, cls.__name__) is cls, f"{cls.__name__} is not exported"
        assert cls.__name__ in package.__all__


REGISTRIES = {
    **{folder: registry for folder, (_, registry, _, _) in FOLDERS.items()},
    "optimizers": optimizers.OPTIMIZERS,
    "schedules": schedules.SCHEDULES,
}
COMPONENTS = {
    f"{folder}/{name}": cls
    for folder, registry in REGISTRIES.items()
    for name, cls in registry.classes.items()
}
REQUIRED = {
    "data/arrays": {"path": "set.npz"},
    "data/image_folder": {"root": "images", "size": 8},
}


def test_there_are_as_many_components_as_were_seen_when_this_was_written() -> None:
    assert len(COMPONENTS) >= 24


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_named_described_and_goes_through_json_and_pickle(name: str) -> None:
    cls: type[Component] = COMPONENTS[name]
    kind = cls.model_fields["type"].default
    assert name.endswith(f"/{kind}")
    assert cls.__doc__, "it does not say what it is"
    component = cls.model_validate(REQUIRED.get(name, {}))
    text = json.dumps(component.model_dump(mode="json"))
    assert cls.model_validate(json.loads(text)) == component
    assert pickle.loads(pickle.dumps(component)) == component
    with pytest.raises(ValueError, match="frozen"):
        component.type = "other"  # type: ignore[attr-defined]


def test_one_module_alone_imports_auto_lirpa() -> None:
    sources = (ROOT / "platform").rglob("*.py")
    assert [p.stem for p in sources if 'import_module("auto_LiRPA' in p.read_text()] == [
        "relaxation"
    ]
    assert not [
        p for p in (ROOT / "platform").rglob("*.py") if "import auto_LiRPA" in p.read_text()
    ]


# -- methods: two files more for each


@pytest.mark.parametrize("name", METHODS.classes)
def test_a_method_says_where_it_comes_from_and_has_its_equations_tested(name: str) -> None:
    cls = METHODS.classes[name]
    assert re.search("Source: (arXiv|OpenReview):", inspect.getdoc(cls) or "")
    test = ROOT / "tests" / "equations" / f"test_{name}.py"
    assert test.is_file(), f"write {test}"
    assert "def test_" in test.read_text()


@pytest.mark.parametrize("name", METHODS.classes)
def test_a_method_says_whether_it_searches_for_adversarial_inputs(name: str) -> None:
    """One that does asks for gradients to its inputs."""
    settings = {**TRIAL, "model": {"type": "mlp", "hidden": [8]}, "method": {"type": name}}
    config = TrialConfig.model_validate(settings)
    model = config.build_model((1, 8, 8), 10)
    asked: list[bool] = []
    model.register_forward_pre_hook(lambda _, given: asked.append(given[0].requires_grad))
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    balls = config.train_threat.balls(64, 1.0, config.method.required_norms)
    shares = config.train_threat.shares()
    memory = config.method.memory()
    ctx = StepContext(config.threat[0], Rng((0,)), 0.5, balls, shares, memory, sigma=0.1)
    config.method.loss(model, x, y, ctx)
    assert any(asked) == config.method.searches
    _, problems = validated(TrialConfig, {**settings, "smoothing": {"noise": "splitting"}})
    assert bool(problems) == config.method.searches


def test_an_update_that_searches_has_no_noise_in_cells() -> None:
    settings = {**TRIAL, "update": {"type": "free"}, "smoothing": {"noise": "splitting"}}
    _, problems = validated(TrialConfig, settings)
    assert "free searches for adversarial examples" in "".join(problems)


def resolved(config: TrialConfig, key: str) -> Any:
    value: Any = config.model_dump()
    for part in key.split("."):
        value = value[part]
    return value


def inside(value: Any, domain: Mapping[str, Any]) -> bool:
    """Whether a default lies in the range of a search space."""
    if "choice" in domain:
        return value in domain["choice"]
    (ends,) = (domain[key] for key in domain if key.endswith("uniform"))
    low, high = (Fraction(str(end)) for end in ends)
    return bool(low <= Fraction(str(value)) <= high)


@pytest.mark.parametrize("name", METHODS.classes)
def test_a_method_has_a_search_space_of_its_fields_around_its_defaults(name: str) -> None:
    raw = read_mapping(ROOT / "search_spaces" / f"{name}.yaml")
    space = Space.parse(raw, name)
    assert space.keys
    base = {**TRIAL, "method": {"type": name}}
    config = TrialConfig.model_validate(base)
    for key in space.keys:
        assert inside(resolved(config, key), raw[key]), f"the default of {key} is outside"
    for key, values in space.probes():
        assert TrialConfig.model_validate(overlaid(base, values)), key


# -- every YAML file

JOBS = sorted((ROOT / "jobs").glob("**/*.y*ml"))
SPACES = sorted((ROOT / "search_spaces").glob("**/*.y*ml"))


def recipes(job: Path) -> list[list[str]]:
    """The settings of each command in a job's header."""
    command = rf"^#   robustfront run jobs/{job.name} ((?:.+\\\n#)*.+)$"
    found = re.findall(command, job.read_text(), re.MULTILINE)
    return [
        [word for word in shlex.split(words.replace("\\\n#", " ")) if word != "--set"]
        for words in found
    ]


RECIPES = [(job, settings) for job in JOBS for settings in recipes(job)]


@pytest.mark.parametrize(("job", "settings"), RECIPES, ids=[one[1][0] for one in RECIPES])
def test_the_recipes_in_the_headers_of_jobs_are_valid(
    job: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And search around the radius that they measure at."""
    monkeypatch.chdir(ROOT)
    plan = load_plan(job, parse_overrides(settings))
    for entry in plan.space.entries:
        if entry.key == "train_threat.eps":
            ends = [Fraction(str(value)) for value in entry.domain.extremes()]
            assert min(ends) <= plan.job.threat[0].eps <= max(ends)


def test_every_recipe_in_the_header_of_a_job_is_seen() -> None:
    assert len(RECIPES) >= 14
    written = sum(path.read_text().count("--set ") for path in JOBS)
    assert sum(len(settings) for _, settings in RECIPES) == written


def test_there_are_jobs_and_search_spaces_and_all_of_them_are_seen() -> None:
    assert len(JOBS) >= 2
    assert len(SPACES) >= 8
    for folder, seen in (("jobs", JOBS), ("search_spaces", SPACES)):
        assert set(seen) == {path for path in (ROOT / folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_is_valid_and_named_after_its_file(path: Path) -> None:
    plan = load_plan(path)
    assert plan.job.name == path.stem
    assert plan.space.keys or plan.job.ablation, "it searches nothing"
    assert path.read_text().startswith("# "), "it does not say which question it answers"


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_search_space_is_valid_and_used_or_of_a_method(path: Path) -> None:
    space = Space.parse(read_mapping(path), str(path))
    assert space.sample(0).keys() <= set(space.keys)
    used = {yaml.safe_load(job.read_text()).get("search_space") for job in JOBS}
    known = {f"../search_spaces/{path.name}"} & used or {path.stem} & METHODS.classes.keys()
    named = any(f"search_spaces/{path.name}" in job.read_text() for job in JOBS)
    question = named or path.stem in ("norm_mix", "optimizer", "sigma")
    assert known or question, "nothing uses it: write a job, or name its question here"
    methods_of_keys = ["trades"] if {"method.beta", "method.lambda"} & {*space.keys} else ["pgd_at"]
    for key, values in space.probes():
        method = path.stem if path.stem in METHODS.classes else methods_of_keys[0]
        base = {**TRIAL, "method": {"type": method}}
        assert TrialConfig.model_validate(overlaid(base, values)), key


# -- the package's public names


def test_all_names_are_there_and_no_others_are_needed() -> None:
    names = robustfront.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(robustfront, name).__module__.startswith("robustfront.")
    designed = {"run", "Sweep", "load_model", "load_data", "evaluate"}
    errors = {
        name
        for name, value in vars(sys.modules["robustfront.errors"]).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert set(names) == designed | errors | {"Job", "TrialConfig"} | (
        {"certify", "bounds"} & set(names)
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        robustfront.nothing  # noqa: B018


# -- tools

TOOLS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "lint-imports": [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_has_nothing_to_say(tool: str) -> None:
    done = subprocess.run(
        TOOLS[tool], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- one trial needs little

HIDING = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden}
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from robustfront.cli import main
main()
"""


def test_a_trial_needs_only_pytorch_pydantic_numpy_and_scipy(tmp_path: Path) -> None:
    hidden = {"ray", "optuna", "mlflow", "sqlalchemy", "pandas", "moocore", "plotly"}
    hidden |= {"matplotlib", "pyarrow", "auto_LiRPA"}
    job = write_job(tmp_path)
    prefix = [*command()[:2], HIDING.format(hidden=hidden)]
    done = subprocess.run(
        [*prefix, "trial", str(job), "--out", "one"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "checkpoint" / "last.safetensors").is_file()
    done = subprocess.run(
        [*prefix, "run", str(job), "--executor", "inline"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0, "they are not hidden"
    assert "No module named" in done.stderr
