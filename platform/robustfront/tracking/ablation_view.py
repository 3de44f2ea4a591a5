"""An ablation as it is looked at: what its factors do to each error; `write` adds pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from robustfront.ablation import Ablation
from robustfront.config import Job, TrialConfig
from robustfront.errors import DataError
from robustfront.evaluation.records import Records
from robustfront.files import write_bytes
from robustfront.ledger import SweepState, Trial
from robustfront.search.cells import chosen_numbers
from robustfront.search.effects import Effects, Outcomes
from robustfront.tracking.front import csv_of

_MOST_NOTES = 8
_Mistakes = dict[str, np.ndarray]
_ERRORS = ("standard_error", "robust_error", "certified_error", "smoothed_error")
# Of all examples together, so that only seeds say how sure they are.
_NUMBERS = ("class_spread", "average_certified_radius")


@dataclass(frozen=True, eq=False)
class AblationView:
    """What the factors of a design do to each error.

    Args:
        name: the sweep.
        subtitle: what was measured, and how often.
        effects: by error, as far as it was measured.
        notes: what is missing or cannot be told.
    """

    name: str
    subtitle: str
    effects: dict[str, Effects]
    notes: tuple[str, ...] = ()

    @cached_property
    def table(self) -> pd.DataFrame:
        """All effects and gaps: `error`, `term`, `levels`, `effect`, `low`, `high`, `p_family`."""
        parts = []
        for error, effects in self.effects.items():
            gaps = effects.gaps
            where = (gaps["factor"] + " " + gaps["at"]).str.strip().replace("", "everywhere")
            first = effects.names[effects.compared][0]
            gaps = gaps.assign(term="gap, " + where, levels=gaps["level"] + f" - {first}")
            for part in (effects.effects, gaps):
                parts.append(part.assign(error=error)[_COLUMNS])
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)

    def to_csv(self) -> str:
        """The table in full precision."""
        return csv_of(self.table)

    def write(self, folder: Path) -> None:
        """Writes `effects.csv`, `importance.csv`, `gaps.png` and `effects.png`, each whole or not
        at all."""
        from robustfront.tracking import ablation_png

        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "effects.csv", self.to_csv().encode())
        if self.effects:
            shares = [e.importance.assign(error=name) for name, e in self.effects.items()]
            write_bytes(folder / "importance.csv", csv_of(pd.concat(shares)).encode())
            write_bytes(folder / "gaps.png", ablation_png.gaps(self))
            write_bytes(folder / "effects.png", ablation_png.effects(self))


_COLUMNS = ["error", "term", "levels", "effect", "low", "high", "p_family"]


def ablation_of(
    folder: Path, job: Job, state: SweepState, split: str | None = None
) -> AblationView:
    """The effects in an ablation, by the best trial of each cell with all seeds.

    Args:
        split: None: test where all of them are measured, else val.
    """
    assert job.ablation is not None
    cells, seeds = job.ablation.cells(), len(job.search.seeds)
    chosen = chosen_numbers(state.trials.values(), job)
    counted = {
        at: [t for t in state.trials.values() if t.number == number]
        for at, number in chosen.items()
    }
    if split is None:
        split = _split(state, job, [t for trials in counted.values() for t in trials])
    notes: list[str] = []
    found = []
    for at, cell in enumerate(cells):
        tables = _read(folder, counted.get(at, []), split, notes)
        if len(tables) < seeds:
            notes.append(f"{cell.name}: {seeds - len(tables)} of {seeds} seeds are missing")
        found.append(tables)
    diverged = sum(t.status == "diverged" for trials in counted.values() for t in trials)
    if diverged:
        notes.append(f"{diverged} diverged trials count as the worst errors")
    if len(notes) > _MOST_NOTES:
        notes = [*notes[:_MOST_NOTES], f"and {len(notes) - _MOST_NOTES} more"]
    effects = _analysed(job.ablation, found, notes)
    by = job.evaluate.attack if split == "val" else job.evaluate.final.attack
    several = f"{seeds} seed{'s' if seeds > 1 else ''}"
    subtitle = f"{len(cells)} cells, {several}, {by.name}, {split} split"
    return AblationView(folder.name, subtitle, effects, tuple(notes))


def _split(state: SweepState, job: Job, counted: list[Trial]) -> str:
    """Test once the study has ended and its choice is measured."""
    measured = all(trial.test for trial in counted if trial.status == "finished")
    ended = all(trial.ended for trial in state.trials.values())
    explored = 1 + max((trial.number for trial in state.trials.values()), default=-1)
    whole = ended and explored >= job.search.trials
    return "test" if counted and measured and whole else "val"


def _read(folder: Path, trials: list[Trial], split: str, notes: list[str]) -> list[_Mistakes]:
    """What each trial gets wrong, as far as it is known; `notes` get the problems."""
    found = []
    for trial in trials:
        try:
            mistakes = _mistakes(folder, trial, split)
        except DataError as error:
            notes.append(str(error))
        else:
            found += [mistakes] if mistakes else []
    return found


def _analysed(
    ablation: Ablation, found: list[list[_Mistakes]], notes: list[str]
) -> dict[str, Effects]:
    """The effects on each error that was measured; `notes` get what cannot be told."""
    levels = [dict(cell.levels) for cell in ablation.cells()]
    effects = {}
    for error in (*_ERRORS, *_NUMBERS):
        known = [[table[error] for table in tables if error in table] for tables in found]
        if not any(known):
            continue
        values = [np.array([wrong.mean() for wrong in some]) for some in known]
        outcomes = Outcomes(ablation.names, levels, values, [_mean(some) for some in known])
        analysed = Effects(outcomes, ablation.compared)
        if not analysed.known:
            notes.append(f"{error}: too few cells are measured to tell effects apart")
            continue
        if not analysed.with_interactions:
            notes.append(f"{error}: too few cells for interactions, main effects only")
        effects[error] = analysed
    return effects


def _mistakes(folder: Path, trial: Trial, split: str) -> _Mistakes:
    """Which examples a trial gets wrong, by error; nothing before it is measured.

    One entry stands for all examples: a trial that diverged has no records.
    """
    if trial.status == "diverged":
        return {error: np.ones(1) for error in _ERRORS}
    config = TrialConfig.model_validate(trial.config)
    own = folder / "trials" / trial.id
    if split == "val":
        if trial.status != "finished":
            return {}
        return _told(Records.load(own / "records.npz"), "val")
    if not trial.test:
        return {}
    found = Records.load(own / f"test-{config.evaluate.final.attack.name}.npz").mistakes("test")
    certificates = own / "test-certified.npz"
    if certificates.exists():
        proofs = _told(Records.load(certificates), "test")
        wanted = ("certified_error", "smoothed_error", *_NUMBERS)
        found |= {k: v for k, v in proofs.items() if k in wanted}
    return found


def _told(records: Records, split: str) -> _Mistakes:
    """Which examples are wrong, by error; numbers of all of them as if of one example."""
    found = records.mistakes(split)
    for name, value in records.errors(split).items():
        kind = name.split("/")[1] if "/" in name else ""
        if kind in _NUMBERS:
            found[kind] = np.array([value])
    return found


def _mean(tables: list[np.ndarray]) -> np.ndarray:
    """The share of seeds with which each example is wrong; the longest part that all have."""
    if not tables:
        return np.zeros(0)
    n = min((len(table) for table in tables if len(table) > 1), default=1)
    every = [np.broadcast_to(table, n) if len(table) == 1 else table[:n] for table in tables]
    mean: np.ndarray = np.mean(every, axis=0)
    return mean
