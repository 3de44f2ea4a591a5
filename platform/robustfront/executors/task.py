"""What crosses between driver and worker: plain text, never live objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from robustfront.config import Job

Message = dict[str, Any]
"""What a worker says: {"epoch", "metrics"} after an epoch, {"share"} while it measures,
{"measured": metrics, "suspect": reasons, or None where nobody looked for any}, and at the end
{"end", "reason"}; an end is finished, diverged, failed, crashed, full or unsound."""


@dataclass(frozen=True)
class Task:
    """Train one trial, or measure or certify a finished one on the test split, by its
    `evaluate.final`.

    Args:
        config: the trial's resolved configuration.
        folder: the trial's folder, the same on every machine.
        siblings: other members of the front, whose adversarial examples are tried on a trial that
            is measured.
        own_data: whether its data are other than the job's, which are at hand.
    """

    kind: Literal["train", "measure", "certify"]
    trial: str
    config: dict[str, Any]
    folder: str
    siblings: tuple[str, ...] = ()
    own_data: bool = False


def task_of(
    kind: Literal["train", "measure", "certify"],
    trial: str,
    config: dict[str, Any],
    folder: Path,
    job: Job,
    siblings: tuple[str, ...] = (),
) -> Task:
    """A task for a trial of the sweep in a folder."""
    changed = ablated_data(config["data"], job)
    return Task(kind, trial, config, str(folder / "trials" / trial), siblings, changed)


def ablated_data(data: dict[str, Any], job: Job) -> bool:
    """Whether the data of a trial are not those that the job loads."""
    if job.ablation is None:
        return False
    cut = ("train_size", "augment")  # from what is loaded
    loaded = job.data.model_dump(mode="json")
    return any(loaded.get(key) != value for key, value in data.items() if key not in cut)


class Work(Protocol):
    """What an executor runs: hands out tasks, and hears what becomes of them."""

    folder: Path
    job: Job

    def next(self) -> Task | Literal["wait", "done"]:
        """The next task."""

    def started(self, task: Task) -> None:
        """A worker begins, or goes on with, a task."""

    def heard(self, task: Task, message: Message) -> bool:
        """A worker's message; whether the worker may go on."""

    def lost(self, task: Task, reason: str) -> None:
        """No worker survives a task, after all retries."""

    def halt(self, reason: str) -> None:
        """What happens cannot be written down any more."""
