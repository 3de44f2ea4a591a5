"""A sweep that stops early: at rungs, when its budget is spent, and after every kind of crash."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustfront.evaluation.records import Records
from robustfront.executors.driver import Driver
from robustfront.executors.task import Message, Task
from robustfront.ledger import Event, Ledger, SweepState
from robustfront.search.plan import check
from robustfront.search.samplers import Proposer

EPOCHS = 9
JOB: dict[str, Any] = {
    "name": "halved",
    "data": {"type": "digits", "train_size": 200, "val_size": 100},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
    "search_space": {"train.optimizer.lr": {"uniform": [0.01, 1]}},
    "train": {"epochs": EPOCHS},
}
STOP = {"type": "mo_asha", "grace_epochs": 1, "reduction_factor": 3}
PROMOTE = {**STOP, "mode": "promote"}


class Play:
    """Drivers of one sweep, one after the other, with workers that only pretend."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.plan = check({**JOB, **changes}, "job.yaml")
        self.ledger = Ledger.create(folder)
        self.ledger.append([Event("created", body={"job": {}, "uid": "u", "version": "1"})])
        self.trained: dict[str, list[int]] = {}  # trial -> epochs in their order

    def driver(self) -> Driver:
        return Driver(self.folder, self.ledger, self.plan)

    def run(self, driver: Driver, until: int | None = None) -> Driver:
        """Work one by one; after `until` epochs in all everything is killed."""
        while isinstance(task := driver.next(), Task):
            driver.started(task)
            if task.kind == "measure":
                driver.heard(task, {"measured": {"test/examples": 1.0}})
                driver.heard(task, {"end": "finished", "reason": ""})
                continue
            for message in self.work(driver, task):
                if not driver.heard(task, message):
                    break
                if until is not None and sum(map(len, self.trained.values())) >= until:
                    return driver
        assert task == "done" and driver.complete
        return driver

    def work(self, driver: Driver, task: Task) -> Iterator[Message]:
        """What a worker says, the epochs that are on disk first."""
        done = self.trained.setdefault(task.trial, [])
        trial = driver.state.trials[task.trial]
        for epoch in range(1, EPOCHS + 1):
            if epoch not in done:
                done.append(epoch)
            yield {"epoch": epoch, "metrics": self.metrics(trial.number, trial.seed, epoch)}
        self.leave_records(task, trial.number, trial.seed)
        yield {"end": "finished", "reason": ""}

    def errors(self, number: int, seed: int, epoch: int) -> tuple[float, float]:
        """Made up: a trade-off, some configurations clearly worse, all better with time."""
        draw = np.random.default_rng(number).random(2)
        gain = 0.2 * (EPOCHS - epoch) / EPOCHS
        standard = round(0.1 + 0.2 * draw[0] + 0.2 * draw[1], 2)
        robust = round(0.6 - 0.2 * draw[0] + 0.2 * draw[1], 2)
        return standard + gain + 0.01 * seed, robust + gain

    def metrics(self, number: int, seed: int, epoch: int) -> dict[str, float]:
        standard, robust = self.errors(number, seed, epoch)
        cost = {"train_seconds": 3.0, "evaluate_seconds": 1.0, "gpu_seconds": 0.0}
        return {"standard_error": standard, "robust_error": robust, **cost}

    def leave_records(self, task: Task, number: int, seed: int) -> None:
        label, at = np.zeros(100, dtype=np.int64), np.arange(100)
        standard, robust = (round(100 * e) for e in self.errors(number, seed, EPOCHS))
        records = Records(
            label,
            (at < standard).astype(np.int64),
            {"linf_0.1/pgd20": (at < robust).astype(np.int64)},
        )
        Path(task.folder).mkdir(parents=True, exist_ok=True)
        (Path(task.folder) / "records.npz").write_bytes(records.to_bytes())

    def table(self) -> list[tuple[Any, ...]]:
        """What a sweep amounts to."""
        state = SweepState.of(self.ledger.read())
        return [(t.id, t.status, t.reason, t.reports) for t in state.trials.values()]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Play]]:
    made: list[Play] = []

    def begin(name: str = "sweep", **changes: Any) -> Play:
        made.append(Play(tmp_path / name, **changes))
        return made[-1]

    yield begin
    for one in made:
        one.ledger.close()


def search(scheduler: Any, trials: int = 20, **more: Any) -> dict[str, Any]:
    return {"sampler": "random", "trials": trials, "scheduler": scheduler, **more}


# -- stopping


def test_trials_that_are_not_among_the_best_of_their_rung_are_pruned(
    play: Callable[..., Play], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []
    for name in ("tell", "prune"):
        original = getattr(Proposer, name)

        def listening(
            self: Any, number: int, *rest: Any, _f: Any = original, _n: str = name
        ) -> None:
            told.append((_n, number))
            _f(self, number, *rest)

        monkeypatch.setattr(Proposer, name, listening)
    sweep = play(search=search(STOP))
    driver = sweep.run(sweep.driver())
    trials = list(driver.state.trials.values())
    assert {t.status for t in trials} == {"finished", "pruned"}
    assert {t.epoch for t in trials} <= {1, 3, EPOCHS}
    assert all(t.epoch == EPOCHS for t in trials if t.status == "finished")
    pruned = {t.number for t in trials if t.status == "pruned"}
    assert len(pruned) > len(trials) / 2
    assert sorted(told) == sorted(("prune" if n in pruned else "tell", n) for n in range(20))
    assert driver.front() and all(t.status == "finished" for t in driver.front())
    assert driver.state.cost.epochs == sum(map(len, sweep.trained.values())) < 20 * EPOCHS / 2


def test_without_a_scheduler_everything_runs_to_its_end(play: Callable[..., Play]) -> None:
    sweep = play(search=search(None, trials=5))
    driver = sweep.run(sweep.driver())
    assert [t.status for t in driver.state.trials.values()] == ["finished"] * 5


def test_a_trial_whose_robustness_collapses_is_stopped_by_a_scheduler_only(
    play: Callable[..., Play], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Play.metrics

    def collapsing(self: Play, number: int, seed: int, epoch: int) -> dict[str, float]:
        collapsed = float(number == 0 and epoch >= 2)
        better = {"standard_error": 0.0, "robust_error": 0.0} if number == 0 else {}
        return metrics(self, number, seed, epoch) | better | {"collapsed": collapsed}

    monkeypatch.setattr(Play, "metrics", collapsing)
    for scheduler in (STOP, PROMOTE, None):
        mode = "none" if scheduler is None else scheduler.get("mode", "stop")
        sweep = play(mode, search=search(scheduler, trials=9))
        first, *_ = sweep.run(sweep.driver()).state.trials.values()
        assert first.status == ("finished" if scheduler is None else "pruned")
        assert first.epoch == (EPOCHS if scheduler is None else 2)
        assert first.reason == ("" if scheduler is None else "its robustness collapsed in epoch 2")


def test_nothing_is_decided_before_the_ramp_ends(play: Callable[..., Play]) -> None:
    train = {"epochs": EPOCHS, "eps_ramp": {"end": 2}}
    sweep = play(search=search(STOP), train=train)
    epochs = {t.epoch for t in sweep.run(sweep.driver()).state.trials.values()}
    assert epochs == {3, EPOCHS}
    hasty = play("hasty", search=search({**STOP, "in_ramp": True}), train=train)
    assert 1 in {t.epoch for t in hasty.run(hasty.driver()).state.trials.values()}


# -- pausing and promoting


def test_a_paused_trial_goes_on_where_it_was_once_it_is_among_the_best(
    play: Callable[..., Play],
) -> None:
    sweep = play(search=search(PROMOTE))
    driver = sweep.run(sweep.driver())
    trials = list(driver.state.trials.values())
    assert {t.status for t in trials} == {"finished", "pruned"}
    assert {t.epoch for t in trials} <= {1, 3, EPOCHS}
    assert max(t.starts for t in trials) > 1, "somebody was promoted"
    for epochs in sweep.trained.values():
        assert epochs == sorted(set(epochs)), "no epoch is trained twice"
    # Successive halving at its end: nobody below a rung is better than all who passed it.
    passed = sum(t.epoch > 1 for t in trials)
    assert passed >= len(trials) / 3


def test_promotion_finds_the_best_that_stopping_lost(play: Callable[..., Play]) -> None:
    """Whoever is among the best third in the end has been trained to the next rung."""
    sweep = play(search=search(PROMOTE))
    driver = sweep.run(sweep.driver())
    trials = list(driver.state.trials.values())
    halving = driver._halving
    for trial in trials:
        assert (trial.epoch > 1) or not halving.wants(trial.id, 1)


@pytest.mark.parametrize("trials", [1, 2, 8])
def test_the_best_of_a_small_sweep_is_trained_to_its_end(
    play: Callable[..., Play], trials: int
) -> None:
    driver = (sweep := play(search=search(PROMOTE, trials=trials))).run(sweep.driver())
    statuses = {t.number: t.status for t in driver.state.trials.values()}
    assert list(statuses.values()).count("finished") == 1
    assert set(statuses.values()) <= {"finished", "pruned"}


# -- the budget


@pytest.mark.parametrize("scheduler", [None, STOP, PROMOTE])
def test_a_spent_budget_ends_the_sweep_and_a_larger_one_goes_on(
    play: Callable[..., Play], scheduler: Any
) -> None:
    whole = play("whole", search=search(scheduler, trials=20))
    whole.run(whole.driver())
    sweep = play("budget", search=search(scheduler, trials=20, budget={"epochs": 22}))
    driver = sweep.run(sweep.driver())
    assert driver.spent
    assert driver.state.cost.epochs == 22
    statuses = [t.status for t in driver.state.trials.values()]
    assert "running" not in statuses and "paused" in statuses
    sweep.plan = check({**JOB, "search": search(scheduler, trials=20)}, "job.yaml")
    driver = sweep.run(sweep.driver())
    assert sorted(sweep.table()) == sorted(whole.table())


def test_hours_are_counted(play: Callable[..., Play]) -> None:
    sweep = play(search=search(None, budget={"cpu_hours": 4 * 21 / 3600}))
    driver = sweep.run(sweep.driver())
    assert driver.state.cost.epochs == 21
    assert driver.state.cost.cpu_seconds == pytest.approx(84)


# -- kills


@pytest.mark.parametrize("scheduler", [STOP, PROMOTE])
@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_a_killed_sweep_decides_as_one_that_was_left_alone(
    play: Callable[..., Play], scheduler: Any, seeds: list[int]
) -> None:
    alone = play("alone", search=search(scheduler, seeds=seeds))
    alone.run(alone.driver())
    total = sum(map(len, alone.trained.values()))
    killed = play("killed", search=search(scheduler, seeds=seeds))
    for epochs in range(1, total, 7):
        killed.run(killed.driver(), until=epochs)
    killed.run(killed.driver())
    assert killed.table() == alone.table()
    assert killed.trained == alone.trained


# -- replicates


def test_only_what_can_be_on_the_front_is_trained_with_other_seeds(
    play: Callable[..., Play],
) -> None:
    sweep = play(search=search(None, seeds=[0, 1, 2]))
    driver = sweep.run(sweep.driver())
    seeds: dict[int, list[int]] = {}
    for trial in driver.state.trials.values():
        seeds.setdefault(trial.number, []).append(trial.seed)
    front = {t.number for t in driver.front() if t.seed == 0}
    replicated = {number for number, some in seeds.items() if len(some) > 1}
    assert front <= replicated and len(replicated) < 20
    assert driver.total == len(driver.state.trials) == sum(map(len, seeds.values()))


def test_replicates_are_not_pruned_and_the_search_hears_of_the_first_seed_only(
    play: Callable[..., Play], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, Any]] = []
    tell = Proposer.tell

    def listening(self: Proposer, number: int, values: Any) -> None:
        told.append((number, values))
        tell(self, number, values)

    monkeypatch.setattr(Proposer, "tell", listening)
    sweep = play(search=search(STOP, seeds=[0, 1]))
    driver = sweep.run(sweep.driver())
    assert all(t.status == "finished" for t in driver.state.trials.values() if t.seed == 1)
    numbers = [number for number, _ in told]
    assert len(numbers) == len(set(numbers))
    for number, values in told:
        assert values == pytest.approx(sweep.errors(number, 0, EPOCHS))


def test_a_trial_without_records_gets_no_replicates_and_stops_nothing(
    play: Callable[..., Play], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Play, "leave_records", lambda *_: None)
    sweep = play(search=search(None, trials=2, seeds=[0, 1]))
    driver = sweep.run(sweep.driver())
    assert len(driver.state.trials) == 2
    assert len(driver.problems) == 2, "each is told once"
    assert "not records" in driver.problems[0]
