"""Every error a user can meet.

RobustfrontError
+-- ConfigError          a job, a trial's configuration or a command-line option is wrong
|   +-- SearchSpaceError     the same for a search space
+-- DataError            data, weights or a checkpoint cannot be read
+-- StorageError         a disk is full or the ledger's database does not answer; `resume` goes on
+-- TrialError           one trial cannot go on; the sweep does
|   +-- Diverged             its loss or one of its objectives is not finite
|   +-- OutOfMemory          its device has no memory left
+-- SoundnessError       a certificate is contradicted by an attack; the job stops

The command line turns ConfigError and DataError into exit code 2 and a message without a traceback.
"""

import errno
from collections.abc import Sequence
from difflib import get_close_matches


class RobustfrontError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(RobustfrontError):
    """One file (or command line) with all of its problems.

    Args:
        where: the file or the option that is wrong.
        problems: one line each: the key, what was found, what is allowed, the nearest guess.
    """

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{where}: {count}", *(f"  {line}" for line in problems)]))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, tuple[str, ...]]]:
        return type(self), (self.where, self.problems)


class SearchSpaceError(ConfigError):
    """A search space that cannot be read, or that sets what does not exist."""


class DataError(RobustfrontError):
    """Data, weights or a checkpoint that are missing or unreadable."""


class StorageError(RobustfrontError):
    """What has happened cannot be written down; later, `resume` can go on."""


class TrialError(RobustfrontError):
    """One trial cannot go on; the others are not concerned."""


class Diverged(TrialError):
    """The loss or an objective of a trial is not finite."""


class OutOfMemory(TrialError):
    """The device of a trial has no memory left."""


class SoundnessError(RobustfrontError):
    """A certified example was attacked successfully in the same threat set."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def nearest(found: object, allowed: Sequence[str]) -> str:
    """Text that helps with a wrong name: the closest allowed one, then all of them."""
    close = get_close_matches(str(found), allowed, n=1)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    return f"{guess} (allowed: {', '.join(allowed)})"
