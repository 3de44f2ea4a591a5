"""What crosses between driver and worker: plain text, never live objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
"""What a worker says: {"epoch", "metrics"} after an epoch, {"measured": metrics}, and at the end
{"end": finished | diverged | failed | crashed | full, "reason"}."""


@dataclass(frozen=True)
class Task:
    """Train one trial, or measure a finished one with the final suite on the test split.

    Args:
        config: the trial's resolved configuration.
        folder: the trial's folder, the same on every machine.
    """

    kind: Literal["train", "measure"]
    trial: str
    config: dict[str, Any]
    folder: str
