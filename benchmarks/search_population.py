"""Whether a search that hands on weights finds a better front: multi-objective population-based
training beside random search and the default search, at equal epochs, all trained for real.

    uv run python benchmarks/search_population.py            # half an hour on two cores
    uv run python benchmarks/search_population.py --searches population   # the others as they were

The job is that of the recorded curves (search_curves.yaml). Source of the population's rules:
Dushatskiy, Chebykin, Alderliesten & Bosman 2023 (arXiv:2306.01436): after every EVERY epochs the
worst quarter by non-dominated sorting takes over weights and optimiser state of members of the best
quarter and perturbs their values. Here the spread within a front is kept by the epsilon-net of our
MO-ASHA. Hypervolume is that of the population (of the finished trials) in the end, against the
worst errors (1, 1). Writes search_population.json and search_population.md.
"""

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe

import robustfront as rf
from robustfront.config import TrialConfig
from robustfront.data import DataSet, split_data
from robustfront.errors import Diverged
from robustfront.randomness import seed_of
from robustfront.search.mo_asha import best
from robustfront.search.pareto import Points, hypervolume
from robustfront.search.plan import Plan, load_plan
from robustfront.search.space import Values
from robustfront.training.checkpoint import read_tensors, write_tensors
from robustfront.training.fit import fit

HERE = Path(__file__).parent.absolute()
JOB = HERE / "search_curves.yaml"
MEMBERS, EVERY, SEEDS = 16, 3, 5
EXCHANGED = MEMBERS // 4
SEARCHES = ("random", "default", "population")

_DATA: dict[str, DataSet] = {}  # of a worker process


@dataclass
class Member:
    """A model of the population: its values now, its weights, what it has reached; nothing where it
    has diverged."""

    values: Values
    state: Path
    epoch: int = 0
    errors: list[float] | None = field(default_factory=list)


@dataclass(frozen=True)
class Perturbed:
    """Answers a search space: near what a member had, anything where it had nothing.

    A number moves by a tenth of its range (on the scale of the range) up or down, a choice is made
    anew one time in ten.
    """

    old: dict[str, Any]
    rng: np.random.Generator

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Near the old one."""
        scale, back = (np.log, np.exp) if log else (float, float)
        width = scale(high) - scale(low)
        if name in self.old:
            at = scale(self.old[name]) + self.rng.choice([-0.1, 0.1]) * width
        else:
            at = scale(low) + self.rng.uniform() * width
        return float(np.clip(back(at), low, high))

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        """Mostly the old one."""
        if name in self.old and self.rng.uniform() < 0.9:
            return self.old[name]
        return choices[self.rng.integers(len(choices))]


def train(config: TrialConfig, state: Path, start: int, until: int) -> list[float] | None:
    """Some epochs more, in a worker process; the objectives after them, None if it diverges."""
    key = config.data.model_dump_json()
    if key not in _DATA:
        _DATA[key] = split_data(config.data, config.data.load(), torch.device("cpu"))
    reports = fit(config, state if start else None, _DATA[key])
    try:
        report = list(islice(reports, until - start))[-1]
    except Diverged:
        return None
    report.save(state)
    return [report.metrics[name] for name in config.objectives]


def take_over(loser: Member, winner: Member, plan: Plan, rng: np.random.Generator) -> None:
    """Weights of the winner, and values near its values."""
    old = plan.space.latent(winner.values)
    loser.values = plan.space.suggest(Perturbed(old, rng))  # type: ignore[arg-type]
    loser.errors = winner.errors
    groups, meta = read_tensors(winner.state)
    trial = plan.job.trial(loser.values, plan.job.seed).id
    write_tensors(loser.state, groups, {**meta, "trial": trial})


def points_of(members: list[Member]) -> Points:
    return np.array([[1.0, 1.0] if m.errors is None else m.errors for m in members])


def exchange(members: list[Member], plan: Plan, rng: np.random.Generator) -> None:
    points = points_of(members)
    winners = best(points, EXCHANGED)
    losers = sorted(set(range(len(members))) - set(best(points, len(members) - EXCHANGED)))
    for loser in losers:
        take_over(members[loser], members[int(rng.choice(winners))], plan, rng)


def live(plan: Plan, seed: int, folder: Path, exchanged: bool) -> Points:
    """Objectives of a population that was trained to its end, with or without exchange."""
    rng = np.random.default_rng(seed_of("population", seed))
    values = [plan.space.sample(seed_of(seed, number)) for number in range(MEMBERS)]
    members = [Member(some, folder / f"{at}.safetensors") for at, some in enumerate(values)]
    epochs = plan.job.train.epochs
    # forked, they would inherit locks that threads of PyTorch hold
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for until in range(EVERY, epochs + 1, EVERY):
            running = {
                at: pool.submit(
                    train, plan.job.trial(m.values, plan.job.seed), m.state, m.epoch, until
                )
                for at, m in enumerate(members)
                if m.errors is not None
            }
            for at, member in enumerate(members):
                member.epoch = until
                if at in running:
                    member.errors = running[at].result()
            if exchanged and until < epochs:
                exchange(members, plan, rng)
    return points_of(members)


def sweep(plan: Plan, seed: int, folder: Path) -> float:
    """Hypervolume that the default search reaches with the epochs of a population."""
    os.chdir(folder)
    search = {"trials": 1000, "sampler_seed": seed}
    search |= {"budget": {"epochs": MEMBERS * plan.job.train.epochs}}
    final = {"type": "pgd", "steps": 1, "examples": 1}
    evaluate = {**plan.settings["evaluate"], "final": final}
    job = {**plan.settings, "name": "default", "search": search, "evaluate": evaluate}
    (folder / "job.yaml").write_text(json.dumps(job))
    done = rf.run("job.yaml")
    os.chdir(HERE)  # the folder is about to go
    assert done.state.cost.epochs >= search["budget"]["epochs"]
    return done.front_view().hypervolume


def measured(name: str, plan: Plan, seed: int) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        if name == "default":
            return sweep(plan, seed, Path(scratch))
        points = live(plan, seed, Path(scratch), exchanged=name == "population")
        return hypervolume(points, [1.0] * len(plan.job.objectives))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    arguments = parser.parse_args()
    plan = load_plan(JOB)
    file = HERE / "search_population.json"
    result = json.loads(file.read_text()) if file.exists() else {"searches": {}}
    for name in arguments.searches:
        result["searches"][name] = [round(measured(name, plan, s), 5) for s in range(SEEDS)]
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(name, result["searches"][name])
    result |= {"epochs": MEMBERS * plan.job.train.epochs, "machine": describe()}
    file.write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "search_population.md").write_text(table(result))


def table(result: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {' | '.join(f'{volume:.4f}' for volume in volumes)} "
        f"| {np.median(volumes):.4f} |"
        for name, volumes in result["searches"].items()
    ]
    seeds = " | ".join(f"seed {seed}" for seed in range(SEEDS))
    return "\n".join(
        [
            "# Searches that hand on weights, beside those that do not",
            "",
            f"Hypervolume after {result['epochs']} epochs trained for real, of the job in "
            f"search_curves.yaml. `random`: {MEMBERS} configurations, trained to their end. "
            f"`population`: the same ones at first; after every {EVERY} epochs the worst quarter "
            "goes on from weights of the best quarter, with perturbed values (MO-PBT). `default`: "
            "what a job file gets that names neither sampler nor scheduler.",
            "",
            f"| search | {seeds} | median |",
            f"|---|{'---|' * (SEEDS + 1)}",
            *rows,
            "",
            f"Machine: {result['machine']}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
