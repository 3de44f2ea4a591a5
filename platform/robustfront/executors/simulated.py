"""Trials that replay recorded learning curves under a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustfront.executors.driver import Driver
from robustfront.executors.task import Task
from robustfront.ledger import Event, Ledger, SweepState
from robustfront.search.curves import Curves, Nearest, Report
from robustfront.search.members import sweep_hypervolume

_Running = tuple[float, int, Task, int, list[Report]]


class SimulatedExecutor:
    """Replays, for each trial, the recorded curve nearest to its configuration.

    Driver, sampler, scheduler and ledger are the real ones; only training is not.

    Args:
        concurrency: trials at once.
        clock: virtual seconds since the sweep began.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.clock = 0.0

    def run(self, driver: Driver, curve_of: Nearest) -> None:
        """Work until the driver has nothing more."""
        running: list[_Running] = []  # by the time of its next report
        order = 0
        while True:
            while len(running) < self.concurrency:
                task = driver.next()
                if not isinstance(task, Task):
                    break
                order += 1
                self._start(driver, task, order, curve_of, running)
            if not running:
                return
            self.clock, order_of, task, epoch, curve = heapq.heappop(running)
            if self._report(driver, task, epoch, curve):
                due = self.clock + _seconds(curve[epoch])
                heapq.heappush(running, (due, order_of, task, epoch + 1, curve))

    def _start(
        self, driver: Driver, task: Task, order: int, curve_of: Nearest, running: list[_Running]
    ) -> None:
        driver.started(task)
        if task.kind == "measure":
            driver.heard(task, {"end": "finished", "reason": ""})
            return
        trial = driver.state.trials[task.trial]
        curve = curve_of(trial.values)
        due = self.clock + _seconds(curve[trial.epoch])
        heapq.heappush(running, (due, order, task, trial.epoch + 1, curve))

    def _report(self, driver: Driver, task: Task, epoch: int, curve: list[Report]) -> bool:
        """Tell of an epoch; whether there are more to come."""
        if not driver.heard(task, {"epoch": epoch, "metrics": curve[epoch - 1]}):
            return False
        if epoch < task.config["train"]["epochs"]:
            return True
        driver.heard(task, {"end": "finished", "reason": ""})
        return False


def _seconds(report: Report) -> float:
    return report["train_seconds"] + report["evaluate_seconds"]


@dataclass(frozen=True)
class Simulation:
    """A sweep that was only played.

    Args:
        state: as the ledger of a real one would tell it.
        trace: after each finished trial: epochs spent, virtual seconds, hypervolume of the front.
    """

    state: SweepState
    trace: list[tuple[int, float, float]]


def simulate(curves: Curves, search: Mapping[str, Any], concurrency: int) -> Simulation:
    """Play a whole sweep in memory.

    Args:
        search: the `search` section of a job.

    Raises:
        ConfigError: with every problem of that section.
        DataError: the search makes choices that no curve was recorded with.
    """
    plan = curves.plan(search)
    ledger = Ledger.in_memory()
    try:
        driver = Driver(Path("simulated"), ledger, plan)
        executor = SimulatedExecutor(concurrency)
        trace: list[tuple[int, float, float]] = []

        def note(event: Event) -> None:
            if event.kind == "finished":
                volume = sweep_hypervolume(driver.front(), plan.job)
                trace.append((driver.state.cost.epochs, executor.clock, volume))

        driver.listeners.append(note)
        executor.run(driver, Nearest(curves, plan.space))
        return Simulation(driver.state, trace)
    finally:
        ledger.close()
