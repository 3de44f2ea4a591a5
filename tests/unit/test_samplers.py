"""Proposals: repeatable, never twice the same, and the same again after a rebuild."""

import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from robustfront.errors import ConfigError, SearchSpaceError
from robustfront.search.samplers import SAMPLERS, PastProposal, Proposal, Proposer
from robustfront.search.space import Space, Values

SPACE = Space.parse(
    {
        "method.type": {"choice": ["pgd_at", "trades"]},
        "method.beta": {"log_uniform": [0.5, 12], "when": {"method.type": "trades"}},
        "method.steps": {"int_uniform": [1, 10], "when": {"method.type": "pgd_at"}},
        "train_threat.eps": {"uniform": [0, "4/10"]},
        "train_threat.mix": {"simplex": ["linf", "l2", "l1"]},
    },
    "space.yaml",
)
SMALL = Space.parse(
    {
        "a": {"choice": ["x", "y"]},
        "b": {"int_uniform": [1, 5], "when": {"a": "x"}},
    },
    "small.yaml",
)


def objectives(values: Values) -> tuple[float, float]:
    """A made-up trade-off between both objectives."""
    eps, strength = values["train_threat.eps"], values.get("method.beta", 6) / 12
    return eps + 0.1 * strength, abs(values["train_threat.mix"]["l2"] - 0.3) + (0.4 - eps)


class Sweep:
    """A sweep that keeps `lag` trials running, and a ledger from which it can be rebuilt."""

    def __init__(self, sampler: str, lag: int) -> None:
        self.sampler, self.lag = sampler, lag
        self.proposer = Proposer(SPACE, sampler, seed=3, objectives=2)
        self.ledger: dict[int, PastProposal] = {}

    def restart(self) -> None:
        """What a crash and `resume` do; the ledger holds JSON, in no particular order."""
        past = [
            PastProposal(
                Proposal(**json.loads(json.dumps(asdict(p.proposal)))), p.state, p.objectives
            )
            for p in reversed(self.ledger.values())
        ]
        self.proposer = Proposer(SPACE, self.sampler, seed=3, objectives=2)
        self.proposer.restore(past)

    def go_on(self, until: int) -> None:
        for number in range(len(self.ledger), until):
            proposal = self.proposer.propose(number)
            assert proposal is not None
            assert proposal.number == number
            self.ledger[number] = PastProposal(proposal, "running")
            if number >= self.lag:
                self.finish(number - self.lag)

    def finish(self, number: int) -> None:
        """Most complete; now and then one is pruned or fails."""
        proposal = self.ledger[number].proposal
        if number % 11 == 6:
            self.proposer.tell(number, None)
            self.ledger[number] = PastProposal(proposal, "failed")
        elif number % 7 == 4:
            self.proposer.prune(number)
            self.ledger[number] = PastProposal(proposal, "pruned")
        else:
            told = objectives(proposal.values)
            self.proposer.tell(number, told)
            self.ledger[number] = PastProposal(proposal, "complete", told)

    @property
    def proposals(self) -> list[Proposal]:
        return [past.proposal for past in self.ledger.values()]


# Past the ten random trials; NSGA-II past two generations of 12, stopped inside the third.
CASES = [("random", 12, 5), ("tpe", 12, 5), ("tpe", 24, 17), ("nsga2", 12, 5), ("nsga2", 45, 38)]


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize(("sampler", "trials", "stop"), [*CASES, ("gp", 15, 13)])
def test_a_rebuilt_study_goes_on_as_if_nothing_had_happened(
    sampler: str, trials: int, stop: int, lag: int
) -> None:
    whole, broken = Sweep(sampler, lag), Sweep(sampler, lag)
    whole.go_on(trials)
    broken.go_on(stop)
    broken.restart()
    broken.go_on(trials)
    assert broken.proposals == whole.proposals


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_what_is_told_matters_once_there_is_enough_of_it(sampler: str) -> None:
    def last(sign: float, trials: int) -> Values:
        proposer = Proposer(SPACE, sampler, seed=0, objectives=1)
        for number in range(trials):
            proposal = proposer.propose(number)
            assert proposal is not None
            proposer.tell(number, [sign * objectives(proposal.values)[0]])
        assert proposal is not None
        return proposal.values

    assert last(1, 10) == last(-1, 10)
    assert last(1, 14) != last(-1, 14)


def test_random_depends_on_seed_and_number_only() -> None:
    one, two = (Proposer(SPACE, "random", seed=7, objectives=2) for _ in range(2))
    one.propose(0)
    one.tell(0, [1.0, 0.0])
    assert one.propose(5) == two.propose(5)
    other = Proposer(SPACE, "random", seed=8, objectives=2)
    assert other.propose(5) != Proposer(SPACE, "random", seed=7, objectives=2).propose(5)


def test_tpe_finds_the_better_half() -> None:
    proposer = Proposer(SPACE, "tpe", seed=1, objectives=1)
    found = []
    for number in range(40):
        proposal = proposer.propose(number)
        assert proposal is not None
        found.append(proposal.values["train_threat.eps"])
        proposer.tell(number, [found[-1]])
    assert sum(found[30:]) / 10 < 0.1 < sum(found[:10]) / 10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_finite_space_is_exhausted_without_repetition(sampler: str) -> None:
    proposer = Proposer(SMALL, sampler, seed=0, objectives=1)
    seen = []
    for number in range(SMALL.size() or 0):
        proposal = proposer.propose(number)
        assert proposal is not None
        assert proposal.values not in seen
        seen.append(proposal.values)
        proposer.tell(number, [float(number)])
    assert {values["a"] for values in seen} == {"x", "y"}
    assert proposer.propose(6) is None


def test_the_last_configuration_is_found_however_rare_it_is() -> None:
    rare = Space.parse(
        {
            "a": {"choice": list(range(40))},
            "b": {"choice": list(range(40)), "when": {"a": 0}},
        },
        "rare.yaml",
    )
    proposer = Proposer(rare, "random", seed=0, objectives=1)
    proposals = [proposer.propose(number) for number in range(80)]
    assert sum(proposal is not None for proposal in proposals) == rare.size() == 79


def test_an_infinite_branch_is_found_by_a_sampler_that_prefers_a_single_point() -> None:
    space = Space.parse(
        {"a": {"choice": ["best", "rest"]}, "b": {"uniform": [0, 1], "when": {"a": "rest"}}}, "s"
    )
    proposer = Proposer(space, "tpe", seed=0, objectives=1)
    for number in range(20):
        proposal = proposer.propose(number)
        assert proposal is not None
        proposer.tell(number, [0.0 if proposal.values["a"] == "best" else 1.0])


def test_a_grid_is_taken_in_order_and_by_number() -> None:
    def values(*numbers: int) -> list[Any]:
        proposer = Proposer(SMALL, "grid", seed=0, objectives=2)
        return [p and p.values for p in map(proposer.propose, numbers)]

    whole = values(*range(7))
    assert whole == [{"a": "x", "b": b} for b in range(1, 6)] + [{"a": "y"}, None]
    assert values(4, 2) == [whole[4], whole[2]]


def test_a_grid_needs_an_end_of_values() -> None:
    with pytest.raises(SearchSpaceError, match="add `points: n`"):
        Proposer(SPACE, "grid", seed=0, objectives=2)


def test_an_unknown_sampler_is_refused_with_a_guess() -> None:
    with pytest.raises(ConfigError) as caught:
        Proposer(SPACE, "nsga", seed=0, objectives=2)
    assert caught.value.problems == (
        "no sampler is named 'nsga'; did you mean 'nsga2'? (allowed: random, tpe, nsga2, gp, grid)",
    )


@pytest.mark.parametrize("told", [[1.0], [1.0, math.nan], [math.inf, 0.0], [1.0, 2.0, 3.0], []])
def test_only_finite_objectives_are_told(told: list[float]) -> None:
    proposer = Proposer(SPACE, "random", seed=0, objectives=2)
    proposer.propose(0)
    with pytest.raises(ValueError, match="tell 2 finite objectives, or None if it failed"):
        proposer.tell(0, told)
    proposer.tell(0, [1.0, 2.0])  # the refused values left it running


@pytest.mark.parametrize("told", [[1.0, 2.0], None])
def test_nothing_is_told_twice_or_of_what_was_never_proposed(told: list[float] | None) -> None:
    proposer = Proposer(SPACE, "random", seed=0, objectives=2)
    with pytest.raises(ValueError, match="proposal 0 is not running: it was never made"):
        proposer.tell(0, told)
    proposer.propose(0)
    proposer.tell(0, told)
    for again in (lambda: proposer.tell(0, told), lambda: proposer.prune(0)):
        with pytest.raises(ValueError, match="proposal 0 is not running: it has ended"):
            again()
    with pytest.raises(ValueError, match="proposal 0 was made before"):
        proposer.propose(0)


def test_a_running_proposal_can_be_told_after_a_rebuild_and_others_cannot() -> None:
    sweep = Sweep("tpe", lag=2)
    sweep.go_on(6)
    sweep.restart()
    sweep.finish(4)
    with pytest.raises(ValueError, match="it has ended"):
        sweep.proposer.tell(0, [1.0, 2.0])


def test_restore_refuses_what_does_not_fit() -> None:
    proposer = Proposer(SMALL, "random", seed=0, objectives=1)
    foreign = PastProposal(Proposal(0, {"c": 1}, {"c": 1}), "running")
    with pytest.raises(ValueError, match=r"proposal 0: not in the space: \['c'\]"):
        proposer.restore([foreign])
    proposal = proposer.propose(0)
    assert proposal is not None
    with pytest.raises(ValueError, match="proposal 0 was made before"):
        proposer.restore([PastProposal(proposal, "running")])


@pytest.mark.parametrize(
    ("sampler", "all_of_them"), [("tpe", False), ("nsga2", True), ("gp", True)]
)
def test_crossover_and_the_gaussian_process_see_every_key(sampler: str, all_of_them: bool) -> None:
    proposal = Proposer(SPACE, sampler, seed=0, objectives=2).propose(0)
    assert proposal is not None
    assert (proposal.latent.keys() == SPACE.distributions.keys()) == all_of_them
    assert ("method.beta" in proposal.values) != ("method.steps" in proposal.values)
