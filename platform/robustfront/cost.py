"""What training costs: the time for which trials hold what they asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Cost of some epochs, their evaluation included.

    Args:
        cpu_seconds: seconds times the cores that were held.
        gpu_seconds: seconds times the GPUs, or the share of one, that were held.
        forward_equivalents: passes of one example forward through the model, the same on every
            machine; a pass back to input and weights counts as two.
    """

    epochs: int = 0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    forward_equivalents: float = 0.0

    @classmethod
    def of(cls, metrics: Mapping[str, float], resources: Mapping[str, Any]) -> Cost:
        """The cost of one epoch, from its report."""
        seconds = metrics.get("train_seconds", 0.0) + metrics.get("evaluate_seconds", 0.0)
        cores = resources["cpu"] * resources.get("workers", 1)
        passes = metrics.get("forward_equivalents", 0.0)
        return cls(1, seconds * cores, metrics.get("gpu_seconds", 0.0), passes)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.epochs + other.epochs,
            self.cpu_seconds + other.cpu_seconds,
            self.gpu_seconds + other.gpu_seconds,
            self.forward_equivalents + other.forward_equivalents,
        )
