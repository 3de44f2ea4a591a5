"""Learning curves of a sweep that was run, to compare searches on them in seconds."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution

from robustfront.errors import DataError
from robustfront.ledger import SweepState
from robustfront.search.plan import Plan, check, new_plan
from robustfront.search.space import Space, Values

Report = dict[str, float]
Choices = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Curves:
    """What was measured after each epoch of some configurations of one search space.

    Args:
        settings: the job they are from, its search space inline.
        trials: pairs of a configuration's values and its reports, epoch by epoch.
    """

    settings: dict[str, Any]
    trials: list[tuple[Values, list[Report]]]

    @classmethod
    def of(cls, state: SweepState) -> Curves:
        """The finished trials of a sweep, with what its search looks at and what it costs."""
        job = check(state.job, "job.yaml").job
        names = [*job.objectives, "train_seconds", "evaluate_seconds"]
        trials = []
        for trial in state.trials.values():
            if trial.status == "finished":
                reports = [trial.reports[epoch] for epoch in sorted(trial.reports)]
                kept = [{name: report[name] for name in names} for report in reports]
                trials.append((trial.values, kept))
        return cls(state.job, trials)

    @classmethod
    def load(cls, path: Path) -> Curves:
        """Read what `save` wrote.

        Raises:
            DataError: no such file, or no curves.
        """
        try:
            raw = json.loads(path.read_text())
            names = raw["reports"]
            trials = [
                (values, [dict(zip(names, row, strict=True)) for row in rows])
                for values, rows in raw["trials"]
            ]
            return cls(raw["job"], trials)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no learning curves ({error})") from None

    def save(self, path: Path) -> None:
        """As JSON, one line a trial, every number to five digits after the point."""
        names = list(self.trials[0][1][0])
        lines = [
            json.dumps([values, [[round(report[name], 5) for name in names] for report in reports]])
            for values, reports in self.trials
        ]
        head = json.dumps({"job": self.settings, "reports": names})[:-1]
        path.write_text(f'{head}, "trials": [\n' + ",\n".join(lines) + "\n]}\n")

    def plan(self, search: Mapping[str, Any]) -> Plan:
        """The job they are from with another search.

        Raises:
            ConfigError: with every problem of that search.
        """
        return new_plan({**self.settings, "search": dict(search)}, "search")


class Nearest:
    """Finds the recorded curve nearest to a configuration, each range scaled to [0, 1]."""

    def __init__(self, curves: Curves, space: Space) -> None:
        self.space = space
        groups: dict[Choices, list[tuple[list[float], list[Report]]]] = defaultdict(list)
        for values, reports in curves.trials:
            choices, place = _place(values, space)
            groups[choices].append((place, reports))
        self._groups = {
            choices: (np.array([place for place, _ in rows]), [reports for _, reports in rows])
            for choices, rows in groups.items()
        }

    def __call__(self, values: Values) -> list[Report]:
        """The reports of the configuration that makes the same choices and is nearest.

        Raises:
            DataError: none makes the same choices.
        """
        choices, place = _place(values, self.space)
        if choices not in self._groups:
            raise DataError(f"no curve was recorded with {dict(choices)}")
        places, curves = self._groups[choices]
        return curves[int(np.square(places - np.array(place)).sum(axis=1).argmin())]


def _place(values: Values, space: Space) -> tuple[Choices, list[float]]:
    """The choices of a configuration, and where in each range it lies."""
    choices, place = [], []
    distributions = space.distributions
    for name, value in sorted(space.latent(values).items()):
        distribution = distributions[name]
        if isinstance(distribution, CategoricalDistribution):
            choices.append((name, value))
            continue
        low, high, at = distribution.low, distribution.high, float(value)  # type: ignore[attr-defined,arg-type]
        if distribution.log:  # type: ignore[attr-defined]
            low, high, at = math.log(low), math.log(high), math.log(at)
        place.append((at - low) / (high - low) if high > low else 0.0)
    return tuple(choices), place
