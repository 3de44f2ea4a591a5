"""Ends a worker that makes no progress, so that another one takes its place."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from robustfront.errors import is_full
from robustfront.executors.task import Message, Task
from robustfront.training.team import Team

_STORY = "silence-{}.txt"  # in the trial's folder, by rank: where a silent worker's threads were


def watched(messages: Iterator[Message], task: Task, timeout: float | None) -> Iterator[Message]:
    """The same messages; if one takes longer than so many seconds, this process ends."""
    while message := _next_or_die(messages, Path(task.folder), timeout):
        yield message


def silence(task: Task) -> str:
    """Where to read what workers did when they were ended for their silence; else empty."""
    stories = sorted(Path(task.folder).glob(_STORY.format("*")))
    told = " and ".join(str(story) for story in stories if story.stat().st_size)
    return f", at last because it made no progress (see {told})" if told else ""


def _next_or_die(
    messages: Iterator[Message], folder: Path, timeout: float | None
) -> Message | None:
    if timeout is None:
        return next(messages, None)
    # A thread of the interpreter's own, which a deadlock cannot stop.
    with _open(folder / _STORY.format(Team.here().rank)) as story:
        faulthandler.dump_traceback_later(timeout, exit=True, file=story)
        try:
            return next(messages, None)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _open(path: Path) -> IO[str]:
    """The file, or on a full disk none: that is for the trial itself to find out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except OSError as error:
        if not is_full(error):
            raise
        return open(os.devnull, "w")
