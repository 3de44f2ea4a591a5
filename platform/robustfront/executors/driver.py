"""The driver of a sweep: hands out trials, commits what comes back before anybody else sees it."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robustfront.config import Job, MoAsha
from robustfront.cost import Cost
from robustfront.errors import StorageError
from robustfront.evaluation.metrics import TRANSFER
from robustfront.executors.packing import Packing, shape_of
from robustfront.executors.task import Message, Task, task_of
from robustfront.ledger import Event, Ledger, SweepState, Trial
from robustfront.search.cells import chosen_numbers, proposer_of, worth_measuring
from robustfront.search.members import mistakes_by_number, objectives_of
from robustfront.search.mo_asha import Halving
from robustfront.search.plan import Plan
from robustfront.search.replicates import can_matter
from robustfront.search.samplers import PastProposal, Proposal

Failed = Literal["resume", "restart", "skip"]


class Driver:
    """The only writer of a sweep's ledger.

    Configurations are explored with the first seed; the others are for those that can still be on
    the front once the search has ended.

    Args:
        folder: the sweep's folder.
        failed: what to do with trials that failed before: go on from their last epoch, begin
            again, or leave them.
    """

    def __init__(self, folder: Path, ledger: Ledger, plan: Plan, failed: Failed = "resume") -> None:
        self.folder, self.ledger, self.job = folder, ledger, plan.job
        self.state = SweepState()
        self.problems: list[str] = []
        self.listeners: list[Callable[[Event], None]] = []
        self.exhausted = False
        self.complete = False  # nothing was left to do when somebody last asked
        self.halted = False  # what happens cannot be written down any more
        self._training: set[str] = set()  # handed out and not ended
        self._asked: set[str] = set()  # members of the front handed out to be measured
        self._queue: deque[str] = deque()
        self._settled = False  # no configuration is to be trained with another seed
        self._crashes: Counter[tuple[str, str]] = Counter()  # by kind of task and trial
        self._paused: dict[str, None] = {}  # in the order in which they paused
        self._by_number: dict[int, dict[int, Trial]] = {}  # of a proposal -> seed -> trial
        self._halving = _halving(plan.job)
        self._packing = Packing()
        for event in ledger.read():
            self._observe(event)
        self._resume(failed)
        self._proposer = proposer_of(self.job, plan.space)
        warm = [
            PastProposal(
                Proposal(-1 - at, past["values"], plan.space.latent(past["values"])),
                "complete",
                tuple(past["objectives"]),
            )
            for at, past in enumerate(self.state.warm)
        ]
        self._proposer.restore(warm + [self._past(number) for number in self._by_number])
        self._next_number = 1 + max(self._by_number, default=-1)

    # -- what the executor asks

    def next(self) -> Task | Literal["wait", "done"]:
        """The next task: interrupted trials, those worth more epochs, new ones, replicates; at the
        end the members of the front, or the best of each cell, are measured."""
        try:
            return "done" if self.halted else self._next()
        except StorageError as error:
            self.halt(str(error))
            return "done"

    def _next(self) -> Task | Literal["wait", "done"]:
        trial = self._next_trial()
        if trial is not None:
            if self._is_being_measured(trial):
                self._queue.appendleft(trial)
                return "wait"
            self._training.add(trial)
            return self._task("train", trial)
        if self._training:
            return "wait"
        front = self.front()
        for member in front:
            siblings = () if self.job.ablation else tuple(o.id for o in front if o is not member)
            if member.id not in self._asked and not self._is_measured(member, siblings):
                self._asked.add(member.id)
                return replace(self._task("measure", member.id), siblings=siblings)
        self.complete = True
        return "done"

    def _is_measured(self, member: Trial, siblings: Collection[str]) -> bool:
        """On the test split, and with the examples of all siblings: an extension brings new ones,
        and what was measured before is read from the trial's folder."""
        if not member.test:
            return False
        tried = {name.split("/")[-1] for name in member.test if name.startswith(TRANSFER)}
        return self.job.evaluate.gates is None or tried.issuperset(siblings)

    # -- what the executor tells

    def started(self, task: Task) -> None:
        """A worker begins, or goes on with, a task."""
        if task.kind != "train" or self.halted:
            return
        try:
            self._commit(task.trial, "started", self.state.trials[task.trial].starts)
        except StorageError as error:
            self.halt(str(error))

    def heard(self, task: Task, message: Message) -> bool:
        """A worker's message; whether the worker may go on."""
        try:
            return not self.halted and self._heard(task, message)
        except StorageError as error:
            self.halt(str(error))
            return False

    def halt(self, reason: str) -> None:
        """Hand out and write down nothing more; a later `resume` finds all as it was."""
        if not self.halted:
            self.halted = True
            self.problems.append(reason)

    def _heard(self, task: Task, message: Message) -> bool:
        if "epoch" in message:
            return self._reported(task.trial, message["epoch"], message["metrics"])
        if "share" in message:
            return True
        if "measured" in message:
            body = {"metrics": message["measured"], "suspect": message.get("suspect", [])}
            self._commit(task.trial, "measured", self.state.trials[task.trial].measured, body)
            return True
        if message["end"] == "full":
            raise StorageError(message["reason"])
        if message["end"] == "unsound":
            self.halt(message["reason"])
            return False
        if message["end"] == "crashed" and self._tries_again(task, message["reason"]):
            return False
        if task.kind == "measure":
            if message["end"] != "finished":
                self.problems.append(f"final measurement of {task.trial}: {message['reason']}")
        elif message["end"] == "finished":
            self._finished(task.trial)
        else:
            self._end(task.trial, message["end"] == "diverged", message["reason"])
        return False

    def lost(self, task: Task, reason: str) -> None:
        """No worker survives a task, after all retries."""
        self.heard(task, {"end": "failed", "reason": reason})

    # -- what others look at

    def front(self) -> list[Trial]:
        """The finished trials that no other one dominates; of an ablation the best of each cell."""
        return worth_measuring(self.state.trials.values(), self.job)

    @property
    def total(self) -> int:
        """Trials of the whole sweep, as far as they are known."""
        missing = 0 if self.exhausted else max(0, self.job.search.trials - self._next_number)
        return len(self.state.trials) + missing

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return self.job.search.budget.spent(self.state.cost)

    # -- which trial is next

    def _next_trial(self) -> str | None:
        if self.spent:
            return None
        if self._queue:
            return self._queue.popleft()
        if (promoted := self._promoted()) is not None:
            return promoted
        while not self.exhausted and self._next_number < self.job.search.trials:
            self._propose()
            if self._queue:
                return self._queue.popleft()
        if self._training:
            return None
        # Nothing new comes: the best of a rung need not wait until it is one of three.
        if (promoted := self._promoted(least=1)) is not None:
            return promoted
        self._prune_paused()
        self._replicate()
        return self._queue.popleft() if self._queue else None

    def _promoted(self, least: int = 0) -> str | None:
        """A paused trial that is worth more epochs; those that got farthest first."""
        for trial in sorted(self._paused, key=lambda name: -self.state.trials[name].epoch):
            if self._wanted(self.state.trials[trial], self.state.trials[trial].epoch, least):
                del self._paused[trial]
                return trial
        return None

    def _is_being_measured(self, trial: str) -> bool:
        """Whether another trial is just finding out what this one needs of a GPU."""
        resources, config = self.job.resources, self.state.trials[trial].config
        if resources.gpu != "auto" or resources.workers > 1:
            return False
        if self._packing.share(config) is not None:
            return False
        others = (self.state.trials[other].config for other in self._training)
        return any(shape_of(other) == shape_of(config) for other in others)

    def _prune_paused(self) -> None:
        """The search has ended, and nobody wants more of the trials that paused."""
        paused = [self.state.trials[name] for name in self._paused]
        reason = "not among the best of its rung when the search ended"
        self._apply(self.ledger.append([_pruned(trial, reason) for trial in paused]))
        for trial in paused:
            self._conclude(trial)

    def _propose(self) -> None:
        proposal = self._proposer.propose(self._next_number)
        if proposal is None and self.job.ablation is None:
            self.exhausted = True
            return
        self._next_number += 1
        if proposal is None:
            return  # its cell has no other, the next may
        if not self._add([proposal], self.job.search.seeds[0]):
            # Other words for a configuration that is there already.
            self._proposer.tell(proposal.number, None)

    def _replicate(self) -> None:
        """Queue the next seed of the configurations that can still be on the front."""
        if self._settled or len(self.job.search.seeds) == 1:
            return
        contenders = sorted(self._contenders())
        for seed in self.job.search.seeds[1:]:
            missing = [n for n in contenders if seed not in self._by_number[n]]
            if self._add([_proposal(self._first(number)) for number in missing], seed):
                return
        self._settled = True

    def _first(self, number: int) -> Trial:
        """The trial of a proposal with the first seed."""
        return self._by_number[number][self.job.search.seeds[0]]

    def _contenders(self) -> set[int]:
        """Numbers of the proposals that may be on the front, for all one knows, or are chosen."""
        if self.job.ablation is not None:
            return {*chosen_numbers(self.state.trials.values(), self.job).values()}
        mistakes, problems = mistakes_by_number(self.state, self.job, self.folder)
        self.problems += [f"{problem}; the trial gets no replicates" for problem in problems]
        return can_matter(mistakes)

    def _add(self, proposals: Iterable[Proposal], seed: int) -> list[str]:
        """Commit and queue new trials; those that are there already are left out."""
        events = []
        for proposal in proposals:
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
        added = [event.trial for event in committed]
        self._queue.extend(added)
        return added

    # -- what becomes of a trial

    def _reported(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> bool:
        """A missing or non-finite objective ends this trial as diverged, and no other."""
        trial = self.state.trials[trial_id]
        if trial.ended or trial.status == "paused":
            return False
        bad = [name for name in self.job.objectives if not math.isfinite(metrics.get(name, np.nan))]
        if bad:
            shown = metrics.get(bad[0], "missing")
            self._end(trial_id, True, f"epoch {epoch}: {bad[0]} is {shown}")
            return False
        if epoch not in trial.reports:  # a retry tells again what was judged before
            report = Event("reported", trial.id, trial.attempt, epoch, {"metrics": metrics})
            # In one transaction, or a crash in between would lose the verdict.
            self._apply(self.ledger.append([report, *self._verdict(trial, epoch, metrics)]))
        if trial.status == "pruned":
            self._conclude(trial)
        return trial.status == "running"

    def _verdict(self, trial: Trial, epoch: int, metrics: dict[str, float]) -> list[Event]:
        """What ends or interrupts a trial after a report, if anything does."""
        if epoch >= trial.config["train"]["epochs"]:
            return []
        pause = Event("paused", trial.id, trial.attempt, epoch)
        scheduler = self.job.search.scheduler
        if scheduler is not None and metrics.get("collapsed"):
            return [_pruned(trial, f"its robustness collapsed in epoch {epoch}")]
        if scheduler is not None and self._is_judged(trial, epoch):
            self._record(trial, epoch, metrics)
            # What is stopped is lost, so somebody always goes on; what pauses can wait.
            if not self._wanted(trial, epoch, least=int(scheduler.mode == "stop")):
                late = _pruned(trial, f"not among the best after {epoch} epochs")
                return [late if scheduler.mode == "stop" else pause]
        cost = self.state.cost + Cost.of(metrics, trial.config["resources"])
        return [pause] if self.job.search.budget.spent(cost) else []

    def _wanted(self, trial: Trial, epoch: int, least: int) -> bool:
        """Whether a trial that has trained for so many epochs is worth more."""
        return not self._is_judged(trial, epoch) or self._halving.wants(trial.id, epoch, least)

    def _is_judged(self, trial: Trial, epoch: int) -> bool:
        """Whether the halving looks at a trial after an epoch."""
        scheduler, train = self.job.search.scheduler, trial.config["train"]
        return (
            scheduler is not None
            and self._halving.is_rung(epoch)
            and epoch < train["epochs"]
            and trial.seed == self.job.search.seeds[0]
            and (scheduler.in_ramp or epoch >= train["eps_ramp"]["end"])
        )

    def _record(self, trial: Trial, epoch: int, metrics: dict[str, float]) -> None:
        objectives = [metrics[name] for name in self.job.objectives]
        self._halving.record(trial.id, epoch, objectives)

    def _tries_again(self, task: Task, reason: str) -> bool:
        """Queue a task that crashed once more, unless it has crashed too often."""
        self._crashes[task.kind, task.trial] += 1
        if self._crashes[task.kind, task.trial] > self.job.retries:
            return False
        if task.kind == "measure":
            self._asked.discard(task.trial)
        elif not self.state.trials[task.trial].ended:
            starts = self.state.trials[task.trial].starts
            self._commit(task.trial, "crashed", starts, {"reason": reason})
            self._training.discard(task.trial)
            self._queue.append(task.trial)
        return True

    def _finished(self, trial_id: str) -> None:
        trial = self.state.trials[trial_id]
        if not trial.ended:
            self._commit(trial_id, "finished")
            self._conclude(trial)

    def _end(self, trial_id: str, diverged: bool, reason: str) -> None:
        """Failed, or diverged: then the job says whether that counts as the worst or as failed."""
        trial = self.state.trials[trial_id]
        if trial.ended:
            return
        kind = "diverged" if diverged and self.job.on_divergence == "worst" else "failed"
        self._commit(trial_id, kind, trial.starts, {"reason": reason})
        self._conclude(trial)

    def _conclude(self, trial: Trial) -> None:
        """A trial has ended: the search learns from it."""
        self._training.discard(trial.id)
        if trial.status in ("finished", "pruned"):
            self._forget_state(trial.id)
        if trial.seed != self.job.search.seeds[0]:
            return
        if trial.status == "pruned":
            self._proposer.prune(trial.number)
        else:
            self._proposer.tell(trial.number, self._objectives(trial))

    def _objectives(self, trial: Trial) -> list[float] | None:
        """What the search is told of an ended trial; None where it failed."""
        return None if trial.status == "failed" else objectives_of(trial, self.job)

    def _forget_state(self, trial: str) -> None:
        """Remove what training would go on from."""
        state = self.folder / "trials" / trial / "checkpoint" / "state.safetensors"
        state.unlink(missing_ok=True)

    # -- after an interruption

    def _resume(self, failed: Failed) -> None:
        for trial in list(self.state.trials.values()):
            if trial.status == "failed" and failed == "restart":
                self._restart(trial)
            again = trial.status == "failed" and failed == "resume"
            if again or not (trial.ended or trial.status == "paused"):
                self._queue.append(trial.id)

    def _restart(self, trial: Trial) -> None:
        self._forget_state(trial.id)
        event = Event("restarted", trial.id, trial.attempt + 1)
        self._apply(self.ledger.append([event]))

    def _past(self, number: int) -> PastProposal:
        trial = self._first(number)
        proposal = _proposal(trial)
        if trial.id in self._queue or trial.status == "paused":
            return PastProposal(proposal, "running", None)
        if trial.status in ("failed", "pruned"):
            return PastProposal(proposal, trial.status, None)
        return PastProposal(proposal, "complete", tuple(objectives_of(trial, self.job)))

    # -- inside

    def _task(self, kind: Literal["train", "measure"], trial: str) -> Task:
        """A task with the resources the job asks for now."""
        resources = self.job.resources.model_dump(mode="json")
        config = {**self.state.trials[trial].config, "resources": resources}
        if resources["gpu"] == "auto":
            resources["gpu"] = self._gpu_share(kind, trial)
        return task_of(kind, trial, config, self.folder, self.job)

    def _gpu_share(self, kind: Literal["train", "measure"], trial: str) -> float:
        """As measured; twice as much after each crash, which too little memory may have caused."""
        share = self._packing.share(self.state.trials[trial].config)
        if share is None or self.job.resources.workers > 1:
            return 1.0
        return float(min(1.0, share * 2 ** self._crashes[kind, trial]))

    def _commit(
        self, trial: str, kind: Any, step: int = 0, body: dict[str, Any] | None = None
    ) -> None:
        event = Event(kind, trial, self.state.trials[trial].attempt, step, body or {})
        self._apply(self.ledger.append([event]))

    def _apply(self, events: Iterable[Event]) -> None:
        for event in events:
            self._observe(event)
            for listener in self.listeners:
                listener(event)

    def _observe(self, event: Event) -> None:
        """Keep up with a committed event, a new one or one of an earlier run."""
        self.state.apply(event)
        if not event.trial:
            return
        trial = self.state.trials[event.trial]
        if event.kind == "proposed":
            self._by_number.setdefault(trial.number, {})[trial.seed] = trial
        elif event.kind == "reported":
            self._packing.observe(trial.config, event.body["metrics"])
            if self._is_judged(trial, event.step):
                self._record(trial, event.step, event.body["metrics"])
        elif event.kind == "paused":
            self._paused[trial.id] = None
            self._training.discard(trial.id)
        elif event.kind in ("started", "pruned", "restarted"):
            self._paused.pop(trial.id, None)
            if event.kind == "restarted":
                self._halving.forget(trial.id)


def _halving(job: Job) -> Halving:
    scheduler = job.search.scheduler or MoAsha()
    return Halving(scheduler.grace_epochs, scheduler.reduction_factor)


def _pruned(trial: Trial, reason: str) -> Event:
    return Event("pruned", trial.id, trial.attempt, trial.starts, {"reason": reason})


def _proposal(trial: Trial) -> Proposal:
    return Proposal(trial.number, trial.values, trial.latent, trial.attrs)
