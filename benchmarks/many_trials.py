"""What a sweep of very many trials costs beside their training.

    uv run python benchmarks/many_trials.py

Runs 1,000 trials that do nothing on Ray (ledger, sampler, front and MLflow are real), times
one decision of the scheduler among 1,000 recorded vectors, an update of front and hypervolume at
2,000 trials, and 10,000 trials in the simulator. Writes many_trials.json and many_trials.md.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine import describe

import robustfront as rf
from robustfront.executors import choose
from robustfront.executors.simulated import simulate
from robustfront.ledger import Ledger
from robustfront.search.curves import Curves
from robustfront.search.mo_asha import Halving
from robustfront.search.pareto import hypervolume

HERE = Path(__file__).parent.absolute()
JOB = {
    "name": "many",
    "data": {"type": "digits"},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
    "train": {"epochs": 1},
    "search_space": {"train.optimizer.lr": {"log_uniform": [0.001, 1]}},
    "search": {"sampler": "random", "scheduler": None},
}


def nothing(config: dict[str, Any], raw: Any, timeout: float | None) -> None:
    """A trial with made-up errors."""
    from ray import tune

    values = np.random.default_rng(int(config["task"]["trial"], 16)).random(2)
    metrics = dict(zip(("standard_error", "robust_error"), values.tolist(), strict=True))
    for message in ({"epoch": 1, "metrics": metrics}, {"end": "finished", "reason": ""}):
        tune.report({"message": json.dumps(message)})


def on_a_cluster(trials: int) -> dict[str, float]:
    choose._prepare_ray(private=True)
    from robustfront.executors import ray as on_ray

    on_ray._train = nothing
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        Path("job.yaml").write_text(yaml.safe_dump(JOB))
        sweep = rf.run("job.yaml", set={"search.trials": trials})
        ledger = Ledger.open(sweep.folder)
        ends = [event.time for event in ledger.read() if event.kind == "finished"]
        ledger.close()
        os.chdir(HERE)
    assert len(ends) == trials
    first, last = ends[100] - ends[0], ends[-1] - ends[-101]
    return {
        "trials": trials,
        "milliseconds_per_trial": 1000 * (ends[-1] - ends[0]) / (trials - 1),
        "last_hundred_over_first_hundred": last / first,
        "driver_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "events_mlflow_lacks_at_the_end": sweep.pending,
    }


def decision_milliseconds() -> float:
    """Median of a new trial's report and verdict at a rung that 1,000 trials have reached."""
    rng = np.random.default_rng(0)
    halving = Halving(1, 3)
    taken = []
    for trial in range(1100):
        started = time.perf_counter()
        halving.record(str(trial), 1, rng.random(2).tolist())
        halving.wants(str(trial), 1)
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken[1000:])


def front_milliseconds() -> float:
    points = np.random.default_rng(0).random((2000, 2))
    taken = []
    for _ in range(20):
        started = time.perf_counter()
        hypervolume(points, [1.0, 1.0])
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken)


def simulator_seconds(trials: int) -> float:
    curves = Curves.load(HERE / "search_curves.json")
    search = {"sampler": "random", "trials": trials, "scheduler": {"type": "mo_asha"}}
    started = time.perf_counter()
    simulate(curves, search, concurrency=16)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--simulated", type=int, default=10000)
    arguments = parser.parse_args()
    result = {
        "decision_milliseconds_at_1000": decision_milliseconds(),
        "front_and_hypervolume_milliseconds_at_2000": front_milliseconds(),
        "simulated_trials": arguments.simulated,
        "simulated_seconds": simulator_seconds(arguments.simulated),
        **on_a_cluster(arguments.trials),
        "machine": describe(),
    }
    (HERE / "many_trials.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "many_trials.md").write_text(table(result))
    print(json.dumps(result, indent=1))


def table(result: dict[str, Any]) -> str:
    rows = {
        f"{result['trials']} trials that do nothing, each (ms)": "milliseconds_per_trial",
        "the last hundred over the first": "last_hundred_over_first_hundred",
        "memory of the driver (GiB)": "driver_gib",
        "one decision among 1,000 (ms)": "decision_milliseconds_at_1000",
        "front and hypervolume of 2,000 (ms)": "front_and_hypervolume_milliseconds_at_2000",
        f"{result['simulated_trials']} trials in the simulator (s)": "simulated_seconds",
    }
    lines = [f"| {name} | {result[key]:.3g} |" for name, key in rows.items()]
    head = "# What a sweep of very many trials costs\n\n| | |\n|---|---|\n"
    return head + "\n".join(lines) + f"\n\nMachine: {result['machine']}\n"


if __name__ == "__main__":
    main()
