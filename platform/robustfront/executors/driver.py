"""The driver of a sweep: hands out trials, commits what comes back before anybody else sees it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robustfront.executors.task import Message, Task
from robustfront.ledger import Event, Ledger, SweepState, Trial
from robustfront.search.members import members, objectives_of
from robustfront.search.plan import Plan
from robustfront.search.samplers import PastProposal, Proposal, Proposer

Failed = Literal["resume", "restart", "skip"]


class Driver:
    """The only writer of a sweep's ledger.

    Args:
        folder: the sweep's folder.
        failed: what to do with trials that failed before: go on from their last epoch, begin
            again, or leave them.
    """

    def __init__(self, folder: Path, ledger: Ledger, plan: Plan, failed: Failed = "resume") -> None:
        self.folder, self.ledger, self.job = folder, ledger, plan.job
        self.state = SweepState.of(ledger.read())
        self.problems: list[str] = []
        self.listeners: list[Callable[[], None]] = []
        self.exhausted = False
        self._training: set[str] = set()  # handed out and not ended
        self._asked: set[str] = set()  # members of the front handed out to be measured
        self._queue: deque[str] = deque()
        self._resume(failed)
        search = self.job.search
        objectives = len(self.job.objectives)
        self._proposer = Proposer(plan.space, search.sampler, search.sampler_seed, objectives)
        self._proposer.restore(self._past())
        self._next_number = 1 + max((t.number for t in self.state.trials.values()), default=-1)

    # -- what the executor asks

    def next(self) -> Task | Literal["wait", "done"]:
        """The next task: interrupted trials first, then new ones, then measuring the front."""
        while not self._queue and self._next_number < self.job.search.trials and not self.exhausted:
            self._propose()
        if self._queue:
            trial_id = self._queue.popleft()
            self._training.add(trial_id)
            return self._task("train", trial_id)
        if self._training:
            return "wait"
        for trial in self.front():
            if not trial.test and trial.id not in self._asked:
                self._asked.add(trial.id)
                return self._task("measure", trial.id)
        return "done"

    # -- what the executor tells

    def started(self, task: Task) -> None:
        """A worker begins, or goes on with, a task."""
        if task.kind == "train":
            self._commit(task.trial, "started", self.state.trials[task.trial].starts)

    def heard(self, task: Task, message: Message) -> bool:
        """A worker's message; whether the worker may go on."""
        if "epoch" in message:
            return self._reported(task.trial, message["epoch"], message["metrics"])
        if "measured" in message:
            self._commit(task.trial, "measured", 0, {"metrics": message["measured"]})
            return True
        if task.kind == "measure":
            if message["end"] != "finished":
                self.problems.append(f"final measurement of {task.trial}: {message['reason']}")
        elif message["end"] == "finished":
            self._finished(task.trial)
        else:
            self._end(task.trial, message["end"], message["reason"])
        return False

    def crashed(self, task: Task, reason: str) -> None:
        """A task cannot go on, after all retries."""
        self.heard(task, {"end": "failed", "reason": reason})

    # -- what others look at

    def front(self) -> list[Trial]:
        """The finished trials that no other one dominates."""
        return members(self.state.trials.values(), self.job)

    @property
    def complete(self) -> bool:
        """Whether every trial of the sweep has ended."""
        ended = all(trial.ended for trial in self.state.trials.values())
        return ended and (self.exhausted or self._next_number >= self.job.search.trials)

    @property
    def total(self) -> int:
        """Trials of the whole sweep."""
        known = len(self.state.trials)
        if self.exhausted:
            return known
        missing = max(0, self.job.search.trials - self._next_number)
        return known + missing * len(self.job.search.seeds)

    # -- inside

    def _task(self, kind: Literal["train", "measure"], trial: str) -> Task:
        """A task with the resources the job asks for now."""
        resources = self.job.resources.model_dump(mode="json")
        config = {**self.state.trials[trial].config, "resources": resources}
        return Task(kind, trial, config, str(self.folder / "trials" / trial))

    def _reported(self, trial: str, epoch: int, metrics: dict[str, float]) -> bool:
        """A missing or non-finite objective ends this trial as diverged, and no other."""
        if self.state.trials[trial].ended:
            return False
        bad = [name for name in self.job.objectives if not math.isfinite(metrics.get(name, np.nan))]
        if bad:
            shown = metrics.get(bad[0], "missing")
            self._end(trial, "diverged", f"epoch {epoch}: {bad[0]} is {shown}")
            return False
        self._commit(trial, "reported", epoch, {"metrics": metrics})
        return True

    def _finished(self, trial: str) -> None:
        if self.state.trials[trial].ended:
            return
        self._commit(trial, "finished")
        self._forget_state(trial)
        self._conclude(trial)

    def _forget_state(self, trial: str) -> None:
        """Remove what training would go on from."""
        state = self.folder / "trials" / trial / "checkpoint" / "state.safetensors"
        state.unlink(missing_ok=True)

    def _resume(self, failed: Failed) -> None:
        for trial in list(self.state.trials.values()):
            if trial.status == "failed" and failed == "restart":
                self._restart(trial)
            if not trial.ended or (trial.status == "failed" and failed == "resume"):
                self._queue.append(trial.id)

    def _restart(self, trial: Trial) -> None:
        self._forget_state(trial.id)
        event = Event("restarted", trial.id, trial.attempt + 1)
        self._apply(self.ledger.append([event]))

    def _propose(self) -> None:
        proposal = self._proposer.propose(self._next_number)
        if proposal is None:
            self.exhausted = True
            return
        self._next_number += 1
        events = []
        for seed in self.job.search.seeds:
            config = self.job.trial(proposal.values, seed)
            body = {
                "number": proposal.number,
                "seed": seed,
                "values": proposal.values,
                "latent": proposal.latent,
                "attrs": proposal.attrs,
                "config": config.model_dump(mode="json"),
            }
            events.append(Event("proposed", config.id, body=body))
        committed = self.ledger.append(events)
        self._apply(committed)
        self._queue.extend(event.trial for event in committed)
        if not committed:
            # Other words for a configuration that is there already.
            self._proposer.tell(proposal.number, None)

    def _commit(
        self, trial: str, kind: Any, step: int = 0, body: dict[str, Any] | None = None
    ) -> None:
        event = Event(kind, trial, self.state.trials[trial].attempt, step, body or {})
        self._apply(self.ledger.append([event]))

    def _apply(self, events: Iterable[Event]) -> None:
        for event in events:
            self.state.apply(event)
        for listener in self.listeners:
            listener()

    def _end(self, trial: str, kind: Literal["failed", "diverged"], reason: str) -> None:
        """Failed, or diverged: then the job says whether that counts as the worst or as failed."""
        if self.state.trials[trial].ended:
            return
        if self.job.on_divergence == "fail":
            kind = "failed"
        self._commit(trial, kind, self.state.trials[trial].starts, {"reason": reason})
        self._conclude(trial)

    def _conclude(self, trial: str) -> None:
        self._training.discard(trial)
        number = self.state.trials[trial].number
        replicates = self._replicates(number)
        if all(replicate.ended for replicate in replicates):
            self._proposer.tell(number, self._objectives(replicates))

    def _replicates(self, number: int) -> list[Trial]:
        return [trial for trial in self.state.trials.values() if trial.number == number]

    def _objectives(self, replicates: list[Trial]) -> list[float] | None:
        """Means over the seeds; 1, the worst error, for a diverged one; None if one failed."""
        if any(trial.status == "failed" for trial in replicates):
            return None
        rows = [objectives_of(trial, self.job) for trial in replicates]
        return [float(mean) for mean in np.mean(rows, axis=0)]

    def _past(self) -> list[PastProposal]:
        queued = set(self._queue)
        numbers = sorted({trial.number for trial in self.state.trials.values()})
        return [self._past_proposal(self._replicates(number), queued) for number in numbers]

    def _past_proposal(self, replicates: list[Trial], queued: set[str]) -> PastProposal:
        first = replicates[0]
        proposal = Proposal(first.number, first.values, first.latent, first.attrs)
        if any(trial.id in queued for trial in replicates):
            return PastProposal(proposal, "running", None)
        objectives = self._objectives(replicates)
        if objectives is None:
            return PastProposal(proposal, "failed", None)
        return PastProposal(proposal, "complete", tuple(objectives))
