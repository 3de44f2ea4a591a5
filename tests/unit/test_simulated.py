"""Sweeps that replay recorded learning curves under a virtual clock."""

from pathlib import Path
from typing import Any

import pytest

from robustfront.errors import ConfigError, DataError
from robustfront.executors.simulated import simulate
from robustfront.ledger import Event, SweepState
from robustfront.search.curves import Curves, Nearest
from robustfront.search.space import Space

EPOCHS = 3
SPACE = {
    "method.type": {"choice": ["standard", "trades"]},
    "method.beta": {"log_uniform": [0.1, 10], "when": {"method.type": "trades"}},
    "train.optimizer.lr": {"uniform": [0.1, 1.1]},
}
SETTINGS: dict[str, Any] = {
    "name": "recorded",
    "data": {"type": "digits"},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
    "search_space": SPACE,
    "train": {"epochs": EPOCHS},
}


def curve(robust: float) -> list[dict[str, float]]:
    """A trade-off: standard and robust error sum to one; slower the smaller the robust error."""
    seconds = {"train_seconds": 3 - 2 * robust, "evaluate_seconds": 1.0}
    return [
        {"standard_error": 1 - robust / epoch, "robust_error": robust / epoch, **seconds}
        for epoch in range(1, EPOCHS + 1)
    ]


@pytest.fixture
def curves() -> Curves:
    trades = [
        ({"method.type": "trades", "method.beta": beta, "train.optimizer.lr": lr}, curve(beta / 20))
        for beta in (0.2, 1.0, 5.0)
        for lr in (0.2, 0.9)
    ]
    standard = [({"method.type": "standard", "train.optimizer.lr": 0.5}, curve(1.0))]
    return Curves(SETTINGS, trades + standard)


def test_the_nearest_curve_makes_the_same_choices(curves: Curves) -> None:
    nearest = Nearest(curves, Space.parse(SPACE, "space"))
    assert nearest({"method.type": "standard", "train.optimizer.lr": 0.2}) == curve(1.0)
    # beta is compared by its logarithm: 2 is nearer to 1 than to 5, 2.4 is not
    for beta, recorded in [(0.1, 0.2), (2.0, 1.0), (2.4, 5.0), (9.0, 5.0)]:
        values = {"method.type": "trades", "method.beta": beta, "train.optimizer.lr": 0.3}
        assert nearest(values) == curve(recorded / 20)
    only = Nearest(Curves(SETTINGS, curves.trials[:-1]), Space.parse(SPACE, "space"))
    with pytest.raises(DataError, match="standard"):
        only({"method.type": "standard", "train.optimizer.lr": 0.2})


def test_curves_come_back_from_their_file(curves: Curves, tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    curves.save(path)
    again = Curves.load(path)
    assert (again.settings, again.trials[0][0]) == (curves.settings, curves.trials[0][0])
    for (_, mine), (_, theirs) in zip(curves.trials, again.trials, strict=True):
        for before, after in zip(mine, theirs, strict=True):
            assert after == pytest.approx(before, abs=1e-5)
    path.write_text('{"job": {}, "reports": ["a"], "trials": [[{}, [[1, 2]]]]}')
    with pytest.raises(DataError, match=r"curves\.json: no learning curves"):
        Curves.load(path)


def test_curves_of_a_sweep_are_those_of_its_finished_trials() -> None:
    state = SweepState()
    state.apply(Event("created", body={"job": SETTINGS, "uid": "u"}))
    values = {"method.type": "standard", "train.optimizer.lr": 0.5}
    for name in ("a", "b"):
        body = {"number": 0, "seed": 0, "values": values, "latent": {}, "attrs": {}}
        body["config"] = {"resources": {"cpu": 1}}
        state.apply(Event("proposed", name, body=body))
    for epoch, report in enumerate(curve(0.5), 1):
        metrics = {**report, "train/loss": 1.0}
        state.apply(Event("reported", "a", step=epoch, body={"metrics": metrics}))
    state.apply(Event("finished", "a"))
    assert Curves.of(state).trials == [(values, curve(0.5))]


def test_a_played_sweep_is_what_the_curves_say(curves: Curves) -> None:
    done = simulate(curves, {"sampler": "random", "trials": 6, "scheduler": None}, concurrency=1)
    nearest = Nearest(curves, Space.parse(SPACE, "space"))
    seconds = 0.0
    for trial in done.state.trials.values():
        assert trial.status == "finished"
        expected = nearest(trial.values)
        assert trial.reports == dict(enumerate(expected, 1))
        seconds += sum(r["train_seconds"] + r["evaluate_seconds"] for r in expected)
    epochs, clock, volume = done.trace[-1]
    assert (epochs, clock) == (6 * EPOCHS, pytest.approx(seconds))
    assert [row[2] for row in done.trace] == sorted(row[2] for row in done.trace)
    assert 0 < volume < 1


def test_trials_beside_each_other_share_the_virtual_clock(curves: Curves) -> None:
    search = {"sampler": "random", "trials": 8, "scheduler": None}
    one, four = (simulate(curves, search, concurrency=n) for n in (1, 4))
    assert {t.id for t in one.state.trials.values()} == {t.id for t in four.state.trials.values()}
    assert one.trace[-1][1] / 4 <= four.trace[-1][1] < one.trace[-1][1] / 2
    assert one.trace[-1][2] == four.trace[-1][2]


def test_halving_and_budgets_are_played_too(curves: Curves) -> None:
    search = {
        "sampler": "tpe",
        "trials": 40,
        "scheduler": {"type": "mo_asha", "mode": "promote"},
        "budget": {"epochs": 50},
    }
    done = simulate(curves, search, concurrency=4)
    assert {"finished", "paused"} <= {t.status for t in done.state.trials.values()}
    # what runs when the budget is spent pauses after its epoch
    assert 50 <= done.state.cost.epochs < 54
    again = simulate(curves, search, concurrency=4)
    assert again.trace == done.trace


def test_problems_of_a_search_are_told(curves: Curves) -> None:
    with pytest.raises(ConfigError, match="tqe"):
        simulate(curves, {"sampler": "tqe"}, concurrency=1)
