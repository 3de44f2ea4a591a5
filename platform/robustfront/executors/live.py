"""What a sweep looks like while it runs: its trials, its front and hypervolume, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from robustfront.executors.driver import Driver
from robustfront.ledger import ENDS, STATUSES, Event, Trial
from robustfront.search.cells import worth_measuring
from robustfront.search.members import sweep_hypervolume
from robustfront.threats import Norm

_ROWS = 12
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "diverged": "yellow"}


class Display:
    """A live view of a driver on a terminal; elsewhere one line for each trial that ends.

    Args:
        note: a line from outside, for instance that the tracking server does not answer.
    """

    def __init__(self, driver: Driver, concurrency: int, note: Callable[[], str]) -> None:
        self.driver, self.concurrency, self.note = driver, concurrency, note
        self.console = Console()
        self.started = time.monotonic()
        self._ended = sum(trial.ended for trial in driver.state.trials.values())
        self._live = Live(
            console=self.console,
            get_renderable=self._render,
            refresh_per_second=2,
            transient=True,
            auto_refresh=self.console.is_terminal,
        )

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        else:
            self.driver.listeners.append(self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()
        else:
            self.driver.listeners.remove(self._tell)

    def _tell(self, event: Event) -> None:
        trial = self.driver.state.trials.get(event.trial)
        if trial is None or event.kind not in ENDS:
            return
        self._ended += 1
        line = f"[{self._ended}/{self.driver.total}] {trial.id} {trial.status} "
        self.console.print(Text(line + (trial.reason or _errors(trial, self.driver))))

    def _render(self) -> ConsoleRenderable:
        driver = self.driver
        trials = list(driver.state.trials.values())
        front = worth_measuring(trials, driver.job)
        parts: list[ConsoleRenderable] = [self._header(trials), _trial_table(trials, driver, front)]
        if driver.job.ablation is None:
            volume = sweep_hypervolume(front, driver.job)
            parts.append(Text(f"front: {len(front)} trials, hypervolume {volume:.4f}"))
        if note := self.note():
            parts.append(Text(note, style="yellow"))
        return Group(*parts)

    def _header(self, trials: list[Trial]) -> ConsoleRenderable:
        epochs = self.driver.total * self.driver.job.train.epochs
        done = sum(self.driver.job.train.epochs if trial.ended else trial.epoch for trial in trials)
        line = Table.grid(padding=(0, 2))
        counts = Text()
        for status in STATUSES:
            if count := self.driver.state.count(status):
                counts.append(f"{count} {status}  ", style=_COLOURS.get(status, ""))
        line.add_row(
            Text(self.driver.folder.name, style="bold"),
            ProgressBar(total=epochs, completed=done, width=24),
            counts,
            Text(self._time_left(trials, epochs - done)),
        )
        return line

    def _time_left(self, trials: list[Trial], epochs: int) -> str:
        seconds = [r["train_seconds"] for t in trials for r in list(t.reports.values())]
        elapsed = time.monotonic() - self.started
        if not seconds or not epochs:
            return f"{_clock(elapsed)} elapsed"
        left = float(np.mean(seconds)) * epochs / self.concurrency
        return f"{_clock(elapsed)} elapsed, about {_clock(left)} of training left"


def _trial_table(trials: list[Trial], driver: Driver, front: list[Trial]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "state", "epoch", *driver.job.objectives):
        table.add_column(name, no_wrap=True)
    table.add_column("configuration")  # the one that gives way on a narrow terminal
    on_front = {trial.id for trial in front}
    running = [trial for trial in trials if trial.status == "running"]
    ended = [trial for trial in trials if trial.ended]
    for trial in (running + ended[::-1])[:_ROWS]:
        errors = [
            f"{100 * trial.metrics[name]:.1f} %" if name in trial.metrics else ""
            for name in driver.job.objectives
        ]
        table.add_row(
            f"{trial.id} {'*' if trial.id in on_front else ''}",
            Text(trial.status, style=_COLOURS.get(trial.status, "")),
            f"{trial.epoch}/{trial.config['train']['epochs']}",
            *errors,
            Text(trial.reason or summary(trial), no_wrap=True, overflow="ellipsis"),
        )
    return table


def summary(trial: Trial) -> str:
    """The searched values of a trial on one line."""
    return " ".join(f"{key.split('.', 1)[-1]}={_short(v)}" for key, v in trial.values.items())


def _short(value: object) -> str:
    if isinstance(value, dict):
        if {*value} <= {*get_args(Norm)}:
            return "/".join(f"{share:.2f}" for share in value.values())
        return "{" + " ".join(f"{key}={_short(some)}" for key, some in value.items()) + "}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _errors(trial: Trial, driver: Driver) -> str:
    shown = [f"{name} {trial.metrics[name]:.4f}" for name in driver.job.objectives]
    return f"{', '.join(shown)}  {summary(trial)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Shares:
    """How much is done of each of some trials that are measured."""

    def __init__(self, trials: Sequence[str], suite: str) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(),
        )
        self._tasks = {
            trial: self._bars.add_task(f"{trial} {suite}", total=1.0, start=False)
            for trial in trials
        }

    def __enter__(self) -> Shares:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tell(self, trial: str, share: float) -> None:
        """So much of a trial is done."""
        self._bars.start_task(self._tasks[trial])
        self._bars.update(self._tasks[trial], completed=share)
