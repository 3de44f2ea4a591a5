"""A sweep that learns from earlier ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import robustfront as rf
from robustfront.search.samplers import Proposer
from robustfront.sweep import resume
from tiny_job import call, write_job

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

SPACE = {"method.beta": {"log_uniform": [0.5, 12]}}
FIRST: dict[str, Any] = {
    "search_space": SPACE,
    "search": {"sampler": "random", "trials": 3, "scheduler": None},
    "train": {"epochs": 1, "batch_size": 32, "optimizer": {"type": "sgd", "lr": 0.1}},
}
WARM = {"sampler": "tpe", "trials": 2, "scheduler": None, "warm_start": ["first"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        job = write_job(folder, **{**FIRST, "name": "first"})
        assert rf.run(job, executor="inline").problems == ()
        yield folder


def test_the_sampler_is_told_what_earlier_sweeps_found_also_after_they_are_gone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: list[Any] = []
    original = Proposer.restore

    def listening(self: Proposer, proposals: Any) -> None:
        restored.append(list(proposals))
        original(self, proposals)

    monkeypatch.setattr(Proposer, "restore", listening)
    first = rf.Sweep.open("first")
    job = write_job(home, "warm.yaml", **{**FIRST, "name": "warm", "search": WARM})
    assert rf.run(job, executor="inline").problems == ()
    known = [(p.proposal.values, p.objectives, p.state) for p in restored[0]]
    assert known == [
        (t.values, (t.metrics["standard_error"], t.metrics["robust_error"]), "complete")
        for t in first.state.trials.values()
    ]
    (home / "sweeps" / "first").rename(home / "sweeps" / "away")
    try:
        longer = resume("warm", set={"search.trials": 3})
    finally:
        (home / "sweeps" / "away").rename(home / "sweeps" / "first")
    assert longer.problems == ()
    assert [t.number for t in longer.state.trials.values()] == [0, 1, 2]
    assert restored[1][:3] == restored[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"search": {**WARM, "warm_start": ["frist"]}},
            "no sweep 'frist' here; did you mean 'first'?",
        ),
        ({"search": {**WARM, "sampler": "random"}}, "random does not learn from earlier sweeps"),
        ({"search": WARM, "threat": {"norm": "linf", "eps": "1/5"}}, "first: has other threat"),
        ({"search": WARM, "objectives": ["robust_error"]}, "first: has other objectives"),
        (
            {"search": WARM, "search_space": {"method.beta": {"uniform": [50, 60]}}},
            "first: no finished trial fits",
        ),
    ],
)
def test_a_sweep_that_cannot_be_learnt_from_is_refused(
    home: Path, changes: dict[str, Any], told: str
) -> None:
    write_job(home, "bad.yaml", **{**FIRST, "name": "bad", **changes})
    before = set(home.rglob("*"))
    for command in ("run", "validate"):
        done = call(home, command, "bad.yaml")
        assert done.returncode == 2, done.stderr
        assert told in done.stderr and "Traceback" not in done.stderr
    assert set(home.rglob("*")) == before
