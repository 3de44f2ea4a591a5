"""The driver of a sweep, with an executor that only pretends to train."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustfront.executors.driver import Driver
from robustfront.executors.task import Message, Task
from robustfront.ledger import Event, Ledger, SweepState
from robustfront.search.plan import Plan, check

EPOCHS = 2
JOB: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "digits", "train_size": 200, "val_size": 100},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
    "search_space": {"train.optimizer.lr": {"log_uniform": [0.01, 1], "points": 4}},
    "train": {"epochs": EPOCHS},
    "search": {"sampler": "random", "trials": 5},
}
Outcome = Callable[[dict[str, Any]], list[Message]]


def plan_of(**changes: Any) -> Plan:
    return check({**JOB, **changes}, "job.yaml")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger.create(tmp_path)
    made.append([Event("created", body={"job": {}, "uid": "u", "version": "1"})])
    yield made
    made.close()


@pytest.fixture
def start(tmp_path: Path, ledger: Ledger) -> Callable[..., Driver]:
    """A driver; a second one finds what the first one left, as after a crash."""

    def begin(failed: Any = "resume", **changes: Any) -> Driver:
        return Driver(tmp_path, ledger, plan_of(**changes), failed)

    return begin


def errors(config: dict[str, Any]) -> tuple[float, float]:
    """A made-up trade-off: no configuration is better than another in both."""
    share = (math.log10(config["train"]["optimizer"]["lr"]) + 2) / 2
    return round(share, 3), round(1 - share, 3)


def metrics(standard: float, robust: float) -> dict[str, float]:
    return {"standard_error": standard, "robust_error": robust, "train_seconds": 1.0}


def trains(config: dict[str, Any]) -> list[Message]:
    """What a worker says of a trial that goes well."""
    reports = [{"epoch": e, "metrics": metrics(*errors(config))} for e in range(1, EPOCHS + 1)]
    return [*reports, {"end": "finished", "reason": ""}]


def measures(task: Task) -> Message:
    """What a worker says of a member of the front."""
    transferred = {f"test/transfer/linf_0.1/{sibling}": 0.4 for sibling in task.siblings}
    return {"measured": {"test/robust_error": 0.5, "test/examples": 50.0, **transferred}}


def work(driver: Driver, task: Task, outcome: Outcome = trains) -> None:
    """Do one task as an executor does."""
    driver.started(task)
    if task.kind == "measure":
        said = [measures(task), {"end": "finished", "reason": ""}]
    else:
        said = outcome(task.config)
    for message in said:
        if not driver.heard(task, message):
            return


def play(driver: Driver, outcome: Outcome = trains) -> list[Task]:
    """Do one task after the other; all tasks, in their order."""
    tasks = []
    while isinstance(task := driver.next(), Task):
        tasks.append(task)
        work(driver, task, outcome)
    assert task == "done"
    return tasks


def statuses(driver: Driver) -> list[str]:
    return [trial.status for trial in driver.state.trials.values()]


def trained(tasks: list[Task]) -> list[str]:
    return [task.trial for task in tasks if task.kind == "train"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """What the sampler is told."""
    from robustfront.search.samplers import Proposer

    calls: list[tuple[int, Any]] = []
    tell = Proposer.tell

    def listening(self: Proposer, number: int, values: Any) -> None:
        calls.append((number, None if values is None else list(values)))
        tell(self, number, values)

    monkeypatch.setattr(Proposer, "tell", listening)
    return calls


# -- proposals


def test_each_trial_is_committed_before_it_is_handed_out(
    start: Callable[..., Driver], ledger: Ledger
) -> None:
    driver = start()
    task = driver.next()
    assert isinstance(task, Task)
    (proposed,) = [event for event in ledger.read() if event.kind == "proposed"]
    assert (proposed.trial, proposed.body["number"]) == (task.trial, 0)
    lr = proposed.body["values"]["train.optimizer.lr"]
    assert task.config["train"]["optimizer"]["lr"] == lr
    assert task.folder == str(driver.folder / "trials" / task.trial)


def test_a_whole_sweep_in_the_ledger(start: Callable[..., Driver], ledger: Ledger) -> None:
    driver = start()
    tasks = play(driver)
    assert [task.kind for task in tasks] == ["train"] * 5 + ["measure"] * 5
    assert statuses(driver) == ["finished"] * 5
    assert [trial.number for trial in driver.state.trials.values()] == list(range(5))
    assert driver.state == SweepState.of(ledger.read())
    kinds = [event.kind for event in ledger.read() if event.trial == tasks[0].trial]
    assert kinds == ["proposed", "started", "reported", "reported", "finished", "measured"]
    assert driver.total == 5
    assert play(driver) == []


def test_the_trials_of_an_exhausted_space_are_all_there_is(start: Callable[..., Driver]) -> None:
    space = {"train.batch_size": {"choice": [16, 32, 64]}}
    driver = start(search_space=space)
    assert driver.total == 5
    assert len(trained(play(driver))) == 3
    assert driver.exhausted
    assert driver.total == 3
    again = start(search_space=space)
    assert play(again) == []
    assert again.total == 3


def test_a_grid_is_trained_once_from_end_to_end(start: Callable[..., Driver]) -> None:
    driver = start(search={"sampler": "grid", "trials": 9})
    play(driver)
    rates = [t.values["train.optimizer.lr"] for t in driver.state.trials.values()]
    assert sorted(rates) == pytest.approx([0.01, 10 ** (-4 / 3), 10 ** (-2 / 3), 1.0], rel=1e-5)


def test_other_words_for_the_same_configuration_are_trained_once(
    start: Callable[..., Driver], told: list[tuple[int, Any]]
) -> None:
    space = {"train_threat.eps": {"choice": ["1/10", 0.1, "1/5"]}}
    driver = start(search_space=space, search={"sampler": "grid", "trials": 3})
    play(driver)
    assert len(driver.state.trials) == 2
    assert sorted((number, values is None) for number, values in told) == [
        (0, False),
        (1, True),
        (2, False),
    ]
    assert play(start(search_space=space, search={"sampler": "grid", "trials": 3})) == []


# -- what may go wrong with a trial


def second_goes_wrong(*said: Message) -> Outcome:
    """The second trial says this instead of finishing."""
    seen: list[float] = []

    def outcome(config: dict[str, Any]) -> list[Message]:
        lr = config["train"]["optimizer"]["lr"]
        seen.extend([lr] if lr not in seen else [])
        return list(said) if seen.index(lr) == 1 else trains(config)

    return outcome


NAN = metrics(0.1, math.nan)
BAD_REPORTS = {
    "NaN": ({"epoch": 1, "metrics": NAN}, "epoch 1: robust_error is nan"),
    "infinite": ({"epoch": 1, "metrics": metrics(math.inf, 0)}, "standard_error is inf"),
    "missing": ({"epoch": 1, "metrics": {"standard_error": 0.1}}, "robust_error is missing"),
    "said so": ({"end": "diverged", "reason": "epoch 1: loss is not finite"}, "loss is not"),
}


@pytest.mark.parametrize(("report", "reason"), BAD_REPORTS.values(), ids=BAD_REPORTS)
def test_a_diverged_trial_counts_as_the_worst_and_hurts_no_other(
    start: Callable[..., Driver], told: list[tuple[int, Any]], report: Message, reason: str
) -> None:
    driver = start()
    play(driver, second_goes_wrong(report))
    assert statuses(driver) == ["finished", "diverged", "finished", "finished", "finished"]
    bad = list(driver.state.trials.values())[1]
    assert reason in bad.reason
    assert bad.reports == {}
    assert (1, [1.0, 1.0]) in told
    assert bad not in driver.front()
    assert len(driver.front()) == 4


def test_a_diverged_trial_may_count_as_failed(
    start: Callable[..., Driver], told: list[tuple[int, Any]]
) -> None:
    driver = start(on_divergence="fail")
    play(driver, second_goes_wrong({"epoch": 1, "metrics": NAN}))
    assert statuses(driver) == ["finished", "failed", "finished", "finished", "finished"]
    assert (1, None) in told


def test_the_last_finite_report_of_a_diverged_trial_does_not_count(
    start: Callable[..., Driver], told: list[tuple[int, Any]]
) -> None:
    driver = start()
    best = {"epoch": 1, "metrics": metrics(0.0, 0.0)}
    play(driver, second_goes_wrong(best, {"end": "diverged", "reason": "loss"}))
    assert list(driver.state.trials.values())[1] not in driver.front()
    assert (1, [1.0, 1.0]) in told


def test_a_trial_without_a_worker_is_failed_with_its_reason(
    start: Callable[..., Driver], told: list[tuple[int, Any]]
) -> None:
    driver = start()
    task = driver.next()
    assert isinstance(task, Task)
    driver.started(task)
    driver.heard(task, {"epoch": 1, "metrics": metrics(0.1, 0.2)})
    driver.lost(task, "its worker process died")
    trial = driver.state.trials[task.trial]
    assert (trial.status, trial.reason, trial.epoch) == ("failed", "its worker process died", 1)
    assert told == [(0, None)]
    play(driver)
    assert statuses(driver) == ["failed"] + ["finished"] * 4


def test_a_crash_is_retried_so_often_and_then_a_failure(
    start: Callable[..., Driver], ledger: Ledger, told: list[tuple[int, Any]]
) -> None:
    driver = start(search={"sampler": "random", "trials": 2}, retries=2)
    crash: Message = {"end": "crashed", "reason": "RuntimeError: poison"}
    poisoned = driver.next()
    assert isinstance(poisoned, Task)

    def outcome(config: dict[str, Any]) -> list[Message]:
        return [crash] if config == poisoned.config else trains(config)

    work(driver, poisoned, outcome)
    tasks = play(driver, outcome)
    assert trained(tasks).count(poisoned.trial) == 2
    trial = driver.state.trials[poisoned.trial]
    assert (trial.status, trial.reason, trial.starts) == ("failed", "RuntimeError: poison", 3)
    kinds = [event.kind for event in ledger.read() if event.trial == poisoned.trial]
    assert kinds == ["proposed", *["started", "crashed"] * 2, "started", "failed"]
    assert (0, None) in told and len(told) == 2
    assert statuses(driver) == ["failed", "finished"]


def test_a_crash_that_a_retry_mends_leaves_no_trace_in_the_result(
    start: Callable[..., Driver],
) -> None:
    driver = start(search={"sampler": "random", "trials": 1})
    crashes = [{"end": "crashed", "reason": "RuntimeError: once"}]
    play(driver, lambda config: [crashes.pop()] if crashes else trains(config))
    (trial,) = driver.state.trials.values()
    assert (trial.status, trial.reason, trial.starts) == ("finished", "", 2)


def test_after_its_end_nothing_more_of_a_trial_counts(
    start: Callable[..., Driver], ledger: Ledger, told: list[tuple[int, Any]]
) -> None:
    driver = start(search={"sampler": "random", "trials": 1})
    (task,) = [t for t in play(driver) if t.kind == "train"]
    before = [event for event in ledger.read() if event.trial == task.trial]
    assert not driver.heard(task, {"epoch": EPOCHS, "metrics": metrics(0.9, 0.9)})
    assert not driver.heard(task, {"end": "failed", "reason": "late"})
    driver.lost(task, "later")
    assert [event for event in ledger.read() if event.trial == task.trial] == before
    assert len(told) == 1


# -- the front and its final measurement


def test_a_measurement_that_crashes_is_tried_again(start: Callable[..., Driver]) -> None:
    driver = start(search={"sampler": "random", "trials": 1}, retries=1)
    train = driver.next()
    assert isinstance(train, Task)
    work(driver, train)
    for again in (True, False):
        measure = driver.next()
        assert isinstance(measure, Task)
        driver.heard(measure, {"end": "crashed", "reason": "RuntimeError: memory"})
        assert driver.problems == (
            [] if again else [f"final measurement of {train.trial}: RuntimeError: memory"]
        )
    assert driver.next() == "done"


def test_the_front_is_what_brute_force_finds(start: Callable[..., Driver]) -> None:
    rng = np.random.default_rng(3)
    driver = start(search={"sampler": "random", "trials": 40})

    def outcome(config: dict[str, Any]) -> list[Message]:
        report = {"epoch": 1, "metrics": metrics(*(rng.integers(0, 8, 2) / 8))}  # with ties
        return [report, {"end": "finished", "reason": ""}]

    tasks = play(driver, outcome)
    points = {
        trial.id: (trial.metrics["standard_error"], trial.metrics["robust_error"])
        for trial in driver.state.trials.values()
    }

    def dominated(p: tuple[float, float]) -> bool:
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points.values())

    expected = {trial for trial, point in points.items() if not dominated(point)}
    assert {trial.id for trial in driver.front()} == expected
    assert 1 < len(expected) < 40
    measured = [task.trial for task in tasks if task.kind == "measure"]
    assert sorted(measured) == sorted(expected)
    assert {t.id for t in driver.state.trials.values() if t.test} == expected
    assert [task.kind for task in tasks] == ["train"] * 40 + ["measure"] * len(expected)


def test_a_measurement_that_fails_is_a_problem_of_the_sweep_not_of_its_trial(
    start: Callable[..., Driver],
) -> None:
    driver = start(search={"sampler": "random", "trials": 1})
    train = driver.next()
    assert isinstance(train, Task)
    work(driver, train)
    measure = driver.next()
    assert isinstance(measure, Task)
    assert measure.kind == "measure"
    driver.started(measure)
    driver.lost(measure, "its worker process died")
    assert driver.next() == "done"
    (trial,) = driver.state.trials.values()
    assert (trial.status, trial.test, trial.starts) == ("finished", {}, 1)
    (problem,) = driver.problems
    assert trial.id in problem
    assert "its worker process died" in problem
    again = start(search={"sampler": "random", "trials": 1})
    assert [task.kind for task in play(again)] == ["measure"]
    assert again.problems == []


# -- several workers


def test_workers_wait_while_others_train_and_then_measure(start: Callable[..., Driver]) -> None:
    driver = start(search={"sampler": "random", "trials": 3})
    first, second = driver.next(), driver.next()
    assert isinstance(first, Task)
    assert isinstance(second, Task)
    assert first.trial != second.trial
    work(driver, second)
    third = driver.next()
    assert isinstance(third, Task)
    work(driver, third)
    assert driver.next() == "wait"
    assert driver.next() == "wait"
    work(driver, first)
    kinds = []
    while isinstance(task := driver.next(), Task):
        kinds.append((task.kind, task.trial))
        work(driver, task)
    assert task == "done"
    assert sorted(kinds) == sorted(("measure", trial) for trial in driver.state.trials)


def test_two_workers_never_measure_the_same_trial(start: Callable[..., Driver]) -> None:
    driver = start(search={"sampler": "random", "trials": 2})
    for _ in range(2):
        task = driver.next()
        assert isinstance(task, Task)
        work(driver, task)
    measured = []
    while isinstance(task := driver.next(), Task):  # none of them comes back in between
        measured.append(task.trial)
    assert sorted(measured) == sorted(driver.state.trials)


def test_a_retried_trial_is_started_again(start: Callable[..., Driver], ledger: Ledger) -> None:
    driver = start(search={"sampler": "random", "trials": 1})
    task = driver.next()
    assert isinstance(task, Task)
    driver.started(task)
    driver.heard(task, {"epoch": 1, "metrics": metrics(0.5, 0.5)})
    work(driver, task, lambda _: trains(task.config))  # reports epoch 1 again
    assert [e.step for e in ledger.read() if e.kind == "started"] == [0, 1]
    assert [e.step for e in ledger.read() if e.kind == "reported"] == [1, 2]
    assert driver.state.trials[task.trial].reports[1]["standard_error"] == 0.5


# -- going on


def leave(driver: Driver) -> list[Task]:
    """One trial finished, one failed, one running, one waiting when the driver dies."""
    tasks = []
    for _ in range(4):
        task = driver.next()
        assert isinstance(task, Task)
        tasks.append(task)
    work(driver, tasks[0])
    work(driver, tasks[1], lambda _: [{"end": "failed", "reason": "memory"}])
    driver.started(tasks[2])
    driver.heard(tasks[2], {"epoch": 1, "metrics": metrics(0.5, 0.5)})
    for task in tasks:
        state = Path(task.folder) / "checkpoint" / "state.safetensors"
        state.parent.mkdir(parents=True)
        state.touch()
    return tasks


@pytest.mark.parametrize("failed", ["resume", "restart", "skip"])
def test_interrupted_trials_come_first_and_failed_ones_as_asked(
    start: Callable[..., Driver], failed: str
) -> None:
    before = leave(start())
    driver = start(failed)
    tasks = play(driver)
    expected = [task.trial for task in before[1 if failed != "skip" else 2 :]]
    assert trained(tasks)[: len(expected)] == expected
    assert len(trained(tasks)) == len(set(trained(tasks))) == len(expected) + 1
    assert before[0].trial not in trained(tasks)
    trials = driver.state.trials
    assert statuses(driver).count("failed") == (failed == "skip")
    assert trials[before[1].trial].attempt == (failed == "restart")
    assert trials[before[2].trial].attempt == 0
    assert trials[before[2].trial].starts == 2
    assert len(trials) == 5


@pytest.mark.parametrize("failed", ["resume", "restart"])
def test_only_a_restart_takes_the_checkpoint_away(
    start: Callable[..., Driver], failed: str
) -> None:
    before = leave(start())
    start(failed)
    kept = [Path(t.folder, "checkpoint/state.safetensors").exists() for t in before]
    assert kept == [True, failed == "resume", True, True]


def test_a_restarted_trial_may_fail_and_be_restarted_again(
    start: Callable[..., Driver], ledger: Ledger
) -> None:
    changes = {"search": {"sampler": "random", "trials": 1}}

    def fails(config: dict[str, Any]) -> list[Message]:
        return [*trains(config)[:1], {"end": "failed", "reason": "memory"}]

    play(start(**changes), fails)
    for attempt in (1, 2):
        driver = start("restart", **changes)
        play(driver, fails)
        (trial,) = driver.state.trials.values()
        assert (trial.attempt, trial.status, trial.starts) == (attempt, "failed", 1)
    play(start("resume", **changes), fails)
    driver = start("resume", **changes)
    play(driver)
    (trial,) = driver.state.trials.values()
    assert (trial.attempt, trial.status, trial.epoch, trial.starts) == (2, "finished", EPOCHS, 3)
    assert len([e for e in ledger.read() if e.kind == "failed"]) == 4


def test_a_sweep_interrupted_after_every_message_is_the_same_in_the_end(
    start: Callable[..., Driver], tmp_path: Path
) -> None:
    alone = Ledger.create(tmp_path / "alone")
    alone.append([Event("created", body={"job": {}, "uid": "u", "version": "1"})])
    undisturbed = Driver(tmp_path / "alone", alone, plan_of())
    play(undisturbed)
    alone.close()
    for _ in range(60):
        driver = start()
        task = driver.next()
        if not isinstance(task, Task):
            break
        driver.started(task)
        if task.kind == "measure":
            driver.heard(task, measures(task))
            continue
        done = driver.state.trials[task.trial].epoch
        for message in trains(task.config)[: done + 1]:  # one message more than the last time
            driver.heard(task, message)
    assert task == "done"
    disturbed = {
        trial.id: (trial.number, trial.reports, trial.test, trial.status)
        for trial in driver.state.trials.values()
    }
    assert disturbed == {
        trial.id: (trial.number, trial.reports, trial.test, trial.status)
        for trial in undisturbed.state.trials.values()
    }


def test_a_finished_sweep_is_extended_by_trials_that_were_not_there(
    start: Callable[..., Driver],
) -> None:
    play(start())
    driver = start(search={"sampler": "random", "trials": 8})
    tasks = play(driver)
    assert [driver.state.trials[trial].number for trial in trained(tasks)] == [5, 6, 7]
    assert len(driver.state.trials) == driver.total == 8
    rates = {t.values["train.optimizer.lr"] for t in driver.state.trials.values()}
    assert len(rates) == 8


def test_listeners_hear_of_what_is_committed(start: Callable[..., Driver], ledger: Ledger) -> None:
    driver = start(search={"sampler": "random", "trials": 1})
    seen: list[tuple[int, int]] = []
    driver.listeners.append(lambda event: seen.append((event.seq, ledger.read()[-1].seq)))
    play(driver)
    assert seen == [(event.seq, event.seq) for event in ledger.read()[1:]]


def test_finished_trials_leave_no_training_state(start: Callable[..., Driver]) -> None:
    driver = start(search={"sampler": "random", "trials": 1})
    task = driver.next()
    assert isinstance(task, Task)
    state = Path(task.folder) / "checkpoint" / "state.safetensors"
    state.parent.mkdir(parents=True)
    state.touch()
    driver.started(task)
    for message in trains(task.config)[:-1]:
        driver.heard(task, message)
        assert state.exists()
    driver.heard(task, {"end": "finished", "reason": ""})
    assert not state.exists()
