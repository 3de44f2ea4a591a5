"""The trials of a factorial design: the same search in each of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from robustfront.config import Job
from robustfront.ledger import Trial
from robustfront.search.members import members, objectives_of
from robustfront.search.samplers import PastProposal, Proposal, Proposer
from robustfront.search.space import Space


class CellProposer:
    """A search in each cell; proposal number n is the next one of cell n modulo their number.

    So a study that is stopped has the same number of trials in each cell, or one more. All cells
    have the same seed: with a random sampler and the same nuisance, the same configurations.

    Args:
        job: with an ablation.
    """

    def __init__(self, job: Job) -> None:
        assert job.ablation is not None
        self._cells = job.ablation.cells()
        self._tuned_for = job.tuned_for
        search, ablation = job.search, job.ablation
        self._spaces = [Space.parse(ablation.nuisance_in(cell), "") for cell in self._cells]
        self._proposers = [
            Proposer(space, search.sampler, search.sampler_seed, objectives=1)
            for space in self._spaces
        ]

    def propose(self, number: int) -> Proposal | None:
        """The next configuration; None where its cell has no other."""
        turn, cell = divmod(number, len(self._cells))
        own = self._proposers[cell].propose(turn)
        if own is None:
            return None
        values = {**self._cells[cell].settings, **own.values}
        attrs = {**own.attrs, "cell": self._cells[cell].name}
        return replace(own, number=number, values=values, attrs=attrs)

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """The objectives of a running proposal; None where it failed."""
        turn, cell = divmod(number, len(self._cells))
        self._proposers[cell].tell(turn, None if values is None else [values[self._tuned_for]])

    def prune(self, number: int) -> None:
        """A running proposal was stopped early."""
        turn, cell = divmod(number, len(self._cells))
        self._proposers[cell].prune(turn)

    def restore(self, proposals: Sequence[PastProposal]) -> None:
        """Rebuild the searches; to be called first."""
        for at, proposer in enumerate(self._proposers):
            proposer.restore(
                [self._own(past) for past in proposals if self._cell_of(past.proposal) == at]
            )

    def _cell_of(self, proposal: Proposal) -> int:
        return proposal.number % len(self._cells)

    def _own(self, past: PastProposal) -> PastProposal:
        """As the proposer of its cell knows it."""
        turn, cell = divmod(past.proposal.number, len(self._cells))
        keys = self._spaces[cell].keys
        values = {key: v for key, v in past.proposal.values.items() if key in keys}
        objectives = past.objectives and (past.objectives[self._tuned_for],)
        attrs = {key: v for key, v in past.proposal.attrs.items() if key != "cell"}
        own = replace(past.proposal, number=turn, values=values, attrs=attrs)
        return replace(past, proposal=own, objectives=objectives)


def chosen_numbers(trials: Iterable[Trial], job: Job) -> dict[int, int]:
    """The number of the best proposal of each cell, by the first seed, by the cell's place."""
    assert job.ablation is not None
    count = len(job.ablation.cells())
    best: dict[int, tuple[float, int]] = {}
    for trial in trials:
        if trial.seed == job.search.seeds[0] and trial.status in ("finished", "diverged"):
            found = (objectives_of(trial, job)[job.tuned_for], trial.number)
            cell = trial.number % count
            best[cell] = min(found, best.get(cell, found))
    return {cell: number for cell, (_, number) in sorted(best.items())}


def worth_measuring(trials: Iterable[Trial], job: Job) -> list[Trial]:
    """The trials that the test split is for: the front, or all seeds of each cell's best."""
    every = list(trials)
    if job.ablation is None:
        return members(every, job)
    chosen = {*chosen_numbers(every, job).values()}
    return [trial for trial in every if trial.number in chosen and trial.status == "finished"]


def proposer_of(job: Job, space: Space) -> Proposer | CellProposer:
    """What proposes a job's configurations."""
    if job.ablation is not None:
        return CellProposer(job)
    search = job.search
    return Proposer(space, search.sampler, search.sampler_seed, len(job.objectives))
