"""Measures finished trials of a sweep on the test split once more, with another suite."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from robustfront.config import Final, Job, TrialConfig
from robustfront.errors import ConfigError, StorageError
from robustfront.executors.task import Message, Task, task_of
from robustfront.ledger import Event, Ledger, SweepState
from robustfront.problems import validated
from robustfront.search.members import members


def with_suite(
    state: SweepState, job: Job, trials: Sequence[str], final: Final
) -> dict[str, dict[str, Any]]:
    """The configurations of finished trials with another suite, by their ids.

    Raises:
        ConfigError: the suite does not fit one of them; the same problem of many is told once.
    """
    configs: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    resources = {**job.resources.model_dump(mode="json"), "workers": 1}
    if resources["gpu"] == "auto":
        resources["gpu"] = 1.0
    for trial in trials:
        known = state.trials[trial].config
        evaluate = {**known["evaluate"], "final": final.model_dump(mode="json")}
        configs[trial] = {**known, "evaluate": evaluate, "resources": resources}
        for line in validated(TrialConfig, configs[trial])[1]:
            problems.setdefault(line, trial)
    if problems:
        raise ConfigError("trials", [f"{trial}: {line}" for line, trial in problems.items()])
    return configs


class Remeasurement:
    """Hands out trials to be measured, and commits what comes back.

    Args:
        configs: by the ids of finished trials, see `with_suite`.
        kind: what is done with them.
        listener: hears the share that is done of a trial: (id, share).
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        job: Job,
        configs: Mapping[str, dict[str, Any]],
        kind: Literal["measure", "certify"],
        listener: Callable[[str, float], None] = lambda trial, share: None,
    ) -> None:
        self.folder, self.ledger, self.job = folder, ledger, job
        self.state = SweepState.of(ledger.read())
        self.problems: list[str] = []
        self.halted = False
        self._configs, self._kind, self._listener = configs, kind, listener
        self._queue = deque(configs)
        self._crashes: Counter[str] = Counter()
        self._under_way: set[str] = set()

    def next(self) -> Task | Literal["wait", "done"]:
        """The next trial."""
        if self.halted or not self._queue:
            # One that crashes comes again.
            return "wait" if self._under_way and not self.halted else "done"
        trial = self._queue.popleft()
        self._under_way.add(trial)
        # Members of one front; cells of an ablation have other threats and data.
        front = [] if self.job.ablation else members(self.state.trials.values(), self.job)
        siblings = tuple(member.id for member in front if member.id != trial)
        config = self._configs[trial]
        return task_of(self._kind, trial, config, self.folder, self.job, siblings)

    def started(self, task: Task) -> None:
        """Nothing to write down."""

    def heard(self, task: Task, message: Message) -> bool:
        """A worker's message; whether the worker may go on."""
        if self.halted:
            return False
        if "share" in message:
            self._listener(task.trial, message["share"])
            return True
        if "measured" in message:
            self._commit(task.trial, message["measured"], message["suspect"])
            return not self.halted
        self._under_way.discard(task.trial)
        if message["end"] in ("full", "unsound"):
            self.halt(message["reason"])
        elif message["end"] == "crashed" and self._crashes[task.trial] < self.job.retries:
            self._crashes[task.trial] += 1
            self._queue.append(task.trial)
        elif message["end"] != "finished":
            self.problems.append(f"{task.trial}: {message['reason']}")
        return False

    def lost(self, task: Task, reason: str) -> None:
        """No worker survives a trial, after all retries."""
        self.heard(task, {"end": "failed", "reason": reason})

    def halt(self, reason: str) -> None:
        """Hand out and write down nothing more."""
        if not self.halted:
            self.halted = True
            self.problems.append(reason)

    def _commit(self, trial: str, metrics: dict[str, float], suspect: list[str] | None) -> None:
        known = self.state.trials[trial]
        suspect = known.suspect if suspect is None else suspect
        if metrics.items() <= known.test.items() and suspect == known.suspect:
            return  # measured before, with the same result
        body = {"metrics": metrics, "suspect": suspect}
        event = Event("measured", trial, known.attempt, known.measured, body)
        try:
            for committed in self.ledger.append([event]):
                self.state.apply(committed)
        except StorageError as error:
            self.halt(str(error))
