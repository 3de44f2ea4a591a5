"""AutoAttack beside torchattacks': do the same examples fall, and how long does each take?

    uv run python benchmarks/autoattack.py --model mlp --examples 1000
    uv run python benchmarks/autoattack.py --model small_cnn --examples 200

Three models are trained on MNIST: standard, TRADES in linf, E-AT in linf and l1. Both sides attack
the same test images within linf and l2, on the same number of threads, one after the other; seconds
are of CPU time (in older rows of wall time). Rows that are not measured anew stay in the file.
torchattacks is run as it comes, with 10 steps of its gradient attacks, and at AutoAttack's 100.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib import metadata
from pathlib import Path

import torch
import torchattacks
from machine import describe

import robustfront as rf
from robustfront.config import load_trial
from robustfront.threats import Threat
from robustfront.training.determinism import reset_process
from robustfront.training.trial import run_trial

MODELS = {
    "mlp": {"model": {"type": "mlp", "hidden": [256, 128]}, "epochs": 8, "train_size": 10000},
    "small_cnn": {"model": {"type": "small_cnn"}, "epochs": 3, "train_size": 5000},
}
METHODS = {
    "standard": {"method": {"type": "standard"}},
    "trades": {
        "method": {"type": "trades", "beta": 3.0, "inner": {"steps": 7}},
        "train_threat": {"norm": "linf", "eps": "1/10"},
    },
    "e_at": {
        "method": {"type": "e_at"},
        "train_threat": {
            "norm": "linf",
            "eps": "1/10",
            "radii": {"linf": "1/10", "l1": 5},
            "mix": {"linf": 0.5, "l1": 0.5},
        },
    },
}
THREATS = {"linf": "1/10", "l2": "1"}


def train(name: str, method: str, root: str) -> torch.nn.Module:
    """A model trained on MNIST."""
    size = MODELS[name]
    job = {
        "name": f"{name}-{method}",
        "data": {
            "type": "mnist",
            "root": str(Path(root).absolute()),
            "train_size": size["train_size"],
            "val_size": 200,
        },
        "model": size["model"],
        "threat": {"norm": "linf", "eps": "1/10"},
        "train": {
            "epochs": size["epochs"],
            "batch_size": 64,
            "optimizer": {"type": "adam", "lr": 0.002},
            "schedule": {"type": "one_cycle"},
        },
        **METHODS[method],
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "job.yaml"
        path.write_text(json.dumps(job))
        for _ in run_trial(load_trial(path), Path(scratch) / "trial"):
            pass
        return rf.load_model(Path(scratch) / "trial")


def theirs(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str, steps: int | None):
    """Which examples are wrong under torchattacks' AutoAttack."""
    eps = float(Threat(norm=norm, eps=THREATS[norm]).eps)
    attack = torchattacks.AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0
    )
    for part in attack._autoattack.attacks[:3]:
        part.steps = steps or part.steps
    found = attack(x, y)
    # What leaves the ball does not count.
    delta = (found - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    with torch.no_grad():
        return ((model(found).argmax(1) != y) & (size <= eps * (1 + 1e-4))).numpy()


def ours(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str):
    """Which examples are wrong under ours."""
    records = rf.evaluate(model, x, y, [f"{norm}:{THREATS[norm]}"], "autoattack")
    (attacked,) = records.attacked.values()
    return attacked != records.label


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=[*MODELS], default="mlp")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--norms", nargs="+", choices=[*THREATS], default=[*THREATS])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--root", default="../shared/data")
    args = parser.parse_args()
    reset_process(args.threads, seed=0)
    x, y = rf.load_data({"type": "mnist", "root": args.root}, split="test")
    x, y = x[: args.examples], y[: args.examples]
    rows = []
    for method in args.methods:
        model = train(args.model, method, args.root)
        for norm in args.norms:
            start = time.process_time()
            mine = ours(model, x, y, norm)
            seconds = time.process_time() - start
            for steps in args.steps:
                start = time.process_time()
                other = theirs(model, x, y, norm, steps)
                row = {
                    "method": method,
                    "norm": norm,
                    "their_steps": steps,
                    "ours_error": float(mine.mean()),
                    "theirs_error": float(other.mean()),
                    "only_ours": int((mine & ~other).sum()),
                    "only_theirs": int((other & ~mine).sum()),
                    "clock": "CPU",
                    "ours_seconds": round(seconds, 2),
                    "theirs_seconds": round(time.process_time() - start, 2),
                }
                row["ratio"] = round(seconds / row["theirs_seconds"], 3)
                rows.append(row)
                print(row, flush=True)
                write(args, rows)


def name_of(row: dict) -> tuple:
    """What a row is about."""
    return [*METHODS].index(row["method"]), [*THREATS].index(row["norm"]), row["their_steps"]


def write(args: argparse.Namespace, rows: list[dict]) -> None:
    """JSON, and a table to read."""
    machine = {
        **describe(),
        "threads": args.threads,
        "torchattacks": metadata.version("torchattacks"),
        "model": args.model,
        "examples": args.examples,
    }
    out = Path(__file__).with_name(f"autoattack_{args.model}.json")
    if out.exists():
        new = [name_of(row) for row in rows]
        known = json.loads(out.read_text())["rows"]
        rows = sorted([row for row in known if name_of(row) not in new] + rows, key=name_of)
    out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    head = list(rows[0])
    table = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    table += [f"| {' | '.join(str(row[key]) for key in head)} |" for row in rows]
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [__doc__.splitlines()[0], "", about, "", *table, ""]
    out.with_suffix(".md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
