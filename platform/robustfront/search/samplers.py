"""Samplers: what a sweep tries next, as a function of the seed and of what it was told.

Optuna only advises. Its study lives in memory and can be rebuilt from the sweep's ledger at any
time; every proposal comes from a fresh sampler whose seed depends on the proposal's number, so
that a rebuilt study goes on exactly as one that was never interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from robustfront.errors import ConfigError, nearest
from robustfront.randomness import seed_of
from robustfront.search.domains import Latent
from robustfront.search.space import Space, Values
from robustfront.search.study import new_study, quiet

SAMPLERS = ("random", "tpe", "nsga2", "gp", "grid")

# Random trials before a model is used, and members of an NSGA-II generation: sweeps over robust
# training have tens of trials, not thousands.
_STARTUP = 10
_POPULATION = 12

# How often a sampler is asked again after it proposed what was proposed before.
_ATTEMPTS = 20

_PARENTS = "robustfront:parents"
_STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "pruned": TrialState.PRUNED,
}


@dataclass(frozen=True)
class Proposal:
    """A configuration to try, and what is needed to tell a rebuilt study of it; JSON-able.

    Args:
        values: the active keys of the search space, resolved.
        latent: Optuna's parameters.
        attrs: what the sampler must find again, such as the generation of NSGA-II.
    """

    number: int
    values: Values
    latent: Latent
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PastProposal:
    """A proposal and what became of it; `objectives` where it is complete."""

    proposal: Proposal
    state: Literal["running", "complete", "failed", "pruned"]
    objectives: tuple[float, ...] | None = None


class Proposer:
    """Proposes configurations one by one and learns from their objectives, all minimised.

    Proposals are numbered by the caller, upwards. `random` depends on (seed, number) only, but for
    a configuration that was proposed before, which is drawn again; `grid` on the number only; the
    others also on the proposals before it and what was told until then.

    Args:
        sampler: one of SAMPLERS. `tpe` is multivariate, by groups of keys that are active
            together, and counts running trials as bad ones. `nsga2` (generations of 12) and `gp`
            search all keys at once, those without effect included.

    Raises:
        ConfigError: an unknown sampler.
        SearchSpaceError: a grid over continuous entries without `points`.
    """

    def __init__(self, space: Space, sampler: str, seed: int, objectives: int) -> None:
        if sampler not in SAMPLERS:
            problem = f"no sampler is named {sampler!r}{nearest(sampler, SAMPLERS)}"
            raise ConfigError("search.sampler", [problem])
        self._space = space
        self._size = space.size()
        self._sampler = sampler
        self._seed = seed
        self._objectives = objectives
        self._grid = space.grid() if sampler == "grid" else None
        # crossover and the Gaussian process know only what all trials have in common
        self._always = space.distributions if sampler in ("nsga2", "gp") else None
        self._study = new_study(RandomSampler(seed=0), objectives)
        self._trials: dict[int, int] = {}  # number of a proposal -> number of Optuna's trial
        self._running: set[int] = set()
        self._seen: set[str] = set()
        self._parents: dict[int, list[int]] = {}  # generation -> Optuna's trials

    def propose(self, number: int) -> Proposal | None:
        """A configuration that was not proposed before; None where no other is left (or found).

        Raises:
            ValueError: this number has been proposed.
        """
        if number in self._trials:
            raise ValueError(f"proposal {number} was made before")
        for trial in self._candidates(number):
            values = self._space.suggest(trial)
            if self._grid is None and _text(values) in self._seen:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            self._remember(number, trial.number, values, running=True)
            return Proposal(number, values, dict(trial.params), self._attrs(trial))
        return None

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """The objectives of a running proposal; None where it failed.

        Raises:
            ValueError: it is not running, or its objectives are not finite or not as many as the
                study has.
        """
        if values is None:
            self._study.tell(self._close(number), state=TrialState.FAIL)
            return
        if len(values) != self._objectives or not all(math.isfinite(value) for value in values):
            wanted = f"{self._objectives} finite objectives, or None if it failed"
            raise ValueError(f"proposal {number}: tell {wanted}, not {list(values)}")
        objectives = [float(value) for value in values]
        self._study.tell(self._close(number), objectives, state=TrialState.COMPLETE)

    def prune(self, number: int) -> None:
        """A running proposal was stopped early.

        Raises:
            ValueError: it is not running.
        """
        self._study.tell(self._close(number), state=TrialState.PRUNED)

    def restore(self, proposals: Sequence[PastProposal]) -> None:
        """Rebuild the study; to be called first.

        Raises:
            ValueError: a proposal that does not fit the search space, or that this object made.
        """
        distributions = self._space.distributions
        for past in sorted(proposals, key=lambda past: past.proposal.number):
            made = past.proposal
            if made.number in self._trials:
                raise ValueError(f"proposal {made.number} was made before")
            system = {key: value for key, value in made.attrs.items() if key != _PARENTS}
            unknown = made.latent.keys() - distributions.keys()
            if unknown:
                raise ValueError(f"proposal {made.number}: not in the space: {sorted(unknown)}")
            self._study.add_trial(
                create_trial(
                    state=_STATES[past.state],
                    values=past.objectives,
                    params=dict(made.latent),
                    distributions={name: distributions[name] for name in made.latent},
                    system_attrs=system,
                )
            )
            at = self._study.get_trials(deepcopy=False)[-1].number
            self._remember(made.number, at, made.values, running=past.state == "running")
        for past in proposals:
            if _PARENTS in past.proposal.attrs:
                generation, numbers = past.proposal.attrs[_PARENTS]
                self._parents[generation] = [self._trials[number] for number in numbers]

    def _candidates(self, number: int) -> Iterator[Trial]:
        """Trials to choose from, the sampler's own first, none when the space is exhausted."""
        if self._grid is not None:
            if number < len(self._grid):
                yield self._ask(number, 0, self._grid[number])
            return
        if self._size is not None and len(self._seen) >= self._size:
            return
        # a sampler that is sure of itself repeats itself: then leave it to chance
        for attempt in range(2 * _ATTEMPTS):
            yield self._ask(number, attempt)
        for values in self._space.configurations() or ():
            if _text(values) not in self._seen:
                yield self._ask(number, 2 * _ATTEMPTS, self._space.latent(values))

    def _ask(self, number: int, attempt: int, latent: Latent | None = None) -> Trial:
        seed = seed_of(self._seed, "proposal", number, attempt) % 2**32
        with quiet():
            self._study.sampler = self._fresh(seed, random=attempt >= _ATTEMPTS)
            if latent is not None:
                self._study.enqueue_trial(latent)
            return self._study.ask(self._always)

    def _fresh(self, seed: int, *, random: bool) -> BaseSampler:
        if self._sampler == "tpe" and not random:
            return TPESampler(
                n_startup_trials=_STARTUP,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
            )
        if self._sampler == "nsga2" and not random:
            return _Nsga2(seed, self._parents)
        if self._sampler == "gp" and not random:
            return GPSampler(n_startup_trials=_STARTUP, warn_independent_sampling=False, seed=seed)
        return RandomSampler(seed=seed)

    def _attrs(self, trial: Trial) -> dict[str, Any]:
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        if self._sampler != "nsga2":
            return dict(frozen.system_attrs)
        # this also lets a trial that was left to chance take part in its generation
        sampler = _Nsga2(0, self._parents)
        generation = sampler.get_trial_generation(self._study, frozen)
        attrs = dict(self._study.get_trials(deepcopy=False)[trial.number].system_attrs)
        if generation in self._parents:
            numbers = {at: number for number, at in self._trials.items()}
            attrs[_PARENTS] = [generation, [numbers[at] for at in self._parents[generation]]]
        return attrs

    def _remember(self, number: int, trial: int, values: Values, *, running: bool) -> None:
        self._trials[number] = trial
        self._seen.add(_text(values))
        if running:
            self._running.add(number)

    def _close(self, number: int) -> int:
        if number not in self._running:
            state = "has ended" if number in self._trials else "was never made"
            raise ValueError(f"proposal {number} is not running: it {state}")
        self._running.remove(number)
        return self._trials[number]


class _Nsga2(NSGAIISampler):
    """NSGA-II that is told which parents it chose.

    It chooses the parents of a generation once, from the trials complete at that moment. A rebuilt
    study has more complete trials, so the choice is kept outside of it.
    """

    def __init__(self, seed: int, parents: dict[int, list[int]]) -> None:
        super().__init__(population_size=_POPULATION, seed=seed)
        self._chosen = parents

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The parents of a generation, in the order of their numbers."""
        if generation not in self._chosen:
            best = super().select_parent(study, generation)
            self._chosen[generation] = sorted(trial.number for trial in best)
        chosen = set(self._chosen[generation])
        return [trial for trial in study.get_trials(deepcopy=False) if trial.number in chosen]


def _text(values: Values) -> str:
    return json.dumps(values, sort_keys=True)
