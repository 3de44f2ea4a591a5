"""How far a measurement has got, so that it goes on after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustfront.evaluation.records import Records, read_arrays
from robustfront.files import write_bytes


class Progress:
    """Predictions so far, plain and under each threat, and the stages that are over.

    Args:
        y: labels (N,).
        stages: how many stages there are, by name of the threat.
        path: where it is kept, if it is: records, readable at any time.
        identity: of the measurement. What is found at `path` is gone on with if it has the same.

    Raises:
        DataError: the file at `path` cannot be read.
    """

    def __init__(
        self, y: Tensor, stages: Mapping[str, int], path: Path | None = None, identity: str = ""
    ) -> None:
        self.path, self.identity, self.of = path, identity, dict(stages)
        self.y = y.cpu()
        self.plain = torch.full_like(self.y, -1)
        self.attacked = {name: self.plain.clone() for name in stages}
        self.passed = {name: torch.zeros_like(self.y) for name in stages}
        if path is not None and path.exists():
            self._go_on(path, read_arrays(path))

    @property
    def records(self) -> Records:
        """What is known so far."""
        attacked = {name: found.numpy() for name, found in self.attacked.items()}
        return Records(self.y.numpy(), self.plain.numpy(), attacked)

    @property
    def share(self) -> float:
        """How much is done, in [0, 1]."""
        done = sum(int(passed.sum()) for passed in self.passed.values())
        return done / max(len(self.y) * sum(self.of.values()), 1)

    def standing(self, name: str, stage: int) -> Tensor:
        """The examples that a stage, counted from 0, has yet to attack: still right, (M,)."""
        found = torch.where(self.passed[name] > 0, self.attacked[name], self.plain)
        waiting: Tensor = ((found == self.y) & (self.passed[name] <= stage)).nonzero()[:, 0]
        return waiting

    def note(self, name: str, rows: Tensor, predictions: Tensor, stage: int) -> None:
        """Some examples have been attacked in a stage."""
        self.attacked[name][rows] = predictions
        self.passed[name][rows] = stage + 1
        self._save()

    def finish(self, name: str, stage: int) -> None:
        """A stage is over for all examples; those that did not stand keep their prediction."""
        first = self.passed[name] == 0
        self.attacked[name][first] = self.plain[first]
        self.passed[name].clamp_(min=stage + 1)
        self._save()

    def _save(self) -> None:
        if self.path is not None:
            passed = {f"passed:{name}": found.numpy() for name, found in self.passed.items()}
            more = {**passed, "identity": np.array(self.identity)}
            write_bytes(self.path, self.records.to_bytes(more))

    def _go_on(self, path: Path, found: Mapping[str, np.ndarray]) -> None:
        if str(found.get("identity")) != self.identity:
            return
        records = Records.load(path)
        self.plain.copy_(torch.from_numpy(records.plain))
        for name in self.of:
            self.attacked[name].copy_(torch.from_numpy(records.attacked[name]))
            self.passed[name].copy_(torch.from_numpy(found[f"passed:{name}"]))
