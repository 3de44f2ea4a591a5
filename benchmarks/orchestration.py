"""What orchestration costs: the wall time of a sweep beside the times of its trials.

    uv run python benchmarks/orchestration.py

Runs a sweep of one-core trials of at least 20 s each, two at a time on Ray. Ideal is the sum of
the trials' own times (training and evaluation, measured inside them) over two; the wall time is
from the first trial's first step to the last one's end, from the ledger. Start-up of Ray and the
workers' imports lie before it. Writes orchestration.json and orchestration.md.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import yaml
from machine import describe

import robustfront as rf
from robustfront.ledger import Ledger

JOB = {
    "name": "orchestration",
    "data": {"type": "digits", "val_size": 400},
    "model": {"type": "mlp"},
    "threat": {"norm": "linf", "eps": "1/10"},
    "method": {"type": "trades"},
    "train": {"epochs": 100, "batch_size": 64, "optimizer": {"type": "sgd", "lr": 0.05}},
    "search_space": {"method.beta": {"log_uniform": [0.5, 12]}},
    "search": {"sampler": "random", "trials": 8, "max_concurrent": 2},
    "evaluate": {"final": {"type": "pgd", "steps": 1, "examples": 1}},
}


def own_and_wall(folder: Path) -> tuple[list[float], float]:
    ledger = Ledger.open(folder)
    events = ledger.read()
    ledger.close()
    own: dict[str, float] = {}
    first = float("inf")
    for event in events:
        if event.kind == "reported":
            metrics = event.body["metrics"]
            seconds = metrics["train_seconds"] + metrics["evaluate_seconds"]
            own[event.trial] = own.get(event.trial, 0.0) + seconds
            first = min(first, event.time - seconds)
    last = max(event.time for event in events if event.kind == "finished")
    return list(own.values()), last - first


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=JOB["train"]["epochs"])
    arguments = parser.parse_args()
    here = Path(__file__).parent.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        Path("job.yaml").write_text(yaml.safe_dump(JOB))
        sweep = rf.run("job.yaml", set={"train.epochs": arguments.epochs})
        own, wall = own_and_wall(sweep.folder)
        os.chdir(here)
    ideal = sum(own) / 2
    result = {
        "what": "wall time of a sweep over the sum of its trials' own times / 2",
        "trials": len(own),
        "shortest_trial_seconds": min(own),
        "longest_trial_seconds": max(own),
        "ideal_seconds": ideal,
        "wall_seconds": wall,
        "ratio": wall / ideal,
        "machine": describe(),
    }
    (here / "orchestration.json").write_text(json.dumps(result, indent=1) + "\n")
    (here / "orchestration.md").write_text(
        "# What orchestration costs\n\n"
        f"{len(own)} one-core trials of {min(own):.0f} to {max(own):.0f} s, two at a time.\n\n"
        "| | seconds |\n|---|---|\n"
        f"| sum of the trials' own times / 2 | {ideal:.1f} |\n"
        f"| wall time, first step to last end | {wall:.1f} |\n"
        f"| **ratio** | **{wall / ideal:.3f}** |\n\n"
        f"Machine: {result['machine']}\n"
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
