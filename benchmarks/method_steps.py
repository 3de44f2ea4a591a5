"""What a training step of each method costs, beside a step of standard training of its model.

    uv run python benchmarks/method_steps.py

Every method but COAP (which bounds each unit by a backward pass: for small networks) with its
defaults and the full radius on the same model and batch, one CPU thread, in turn with steps of
standard training, whose step counts as 3 `forward_equivalents`; `measured` is 3 times
the median ratio of the times. Writes method_steps.json and method_steps.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe

from robustfront.config import TrialConfig
from robustfront.methods import METHODS, StepContext
from robustfront.randomness import Rng
from robustfront.training.determinism import reset_process

MIX = {"linf": 0.4, "l2": 0.3, "l1": 0.3}
SEVERAL = ("avg_at", "max_at", "msd", "e_at", "ramp")


def config_of(method: str, model: str) -> TrialConfig:
    mix = {"mix": MIX} if method in SEVERAL else {}
    noise = {"sigma": 0.25} if METHODS.classes[method].draws_noise else {}
    return TrialConfig.model_validate(
        {
            "data": {"type": "mnist"},
            "model": {"type": model},
            "threat": [
                {"norm": "linf", "eps": "1/10"},
                {"norm": "l2", "eps": 1},
                {"norm": "l1", "eps": 5},
            ],
            "train_threat": {"norm": "linf", "eps": "1/10", **mix},
            "method": {"type": method},
            "smoothing": noise,
            "train": {"optimizer": {"type": "sgd", "lr": 0.01}},
        }
    )


def model_of(config: TrialConfig) -> torch.nn.Module:
    """The method's own: OAT's has layers that see a weight."""
    torch.manual_seed(0)
    model = config.build_model((1, 28, 28), 10, (0.13,), (0.31,))
    return model.to(memory_format=torch.channels_last)


def stepper(
    config: TrialConfig, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]
) -> Callable[[], float]:
    """A function that makes one step and tells the seconds."""
    optimizer = config.train.optimizer.build(model)
    threat = config.train_threat
    balls = threat.balls(784, 1.0, config.method.required_norms)
    memory = config.method.memory()
    epoch = config.update.epoch(model, config.train.optimizer.build)
    take = epoch.__enter__()
    steps = iter(range(10**9))

    def step() -> float:
        rng = Rng((0, next(steps)), block=len(batch[0]))
        drawn = threat.draw(len(batch[0]), 784, 1.0, rng.child("mix"))
        ctx = StepContext(drawn, rng, 0.0, balls, threat.shares(), memory)
        model.train()
        started = time.perf_counter()
        take(model, optimizer, config.method, batch, ctx)
        return time.perf_counter() - started

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="small_cnn")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=sorted({*METHODS.classes} - {"coap"}))
    args = parser.parse_args()
    reset_process(threads=1, seed=0)
    torch.manual_seed(0)
    batch = torch.rand(args.batch, 1, 28, 28), torch.randint(10, (args.batch,))
    rows = []
    for method in args.methods:
        config = config_of(method, args.model)
        step = stepper(config, model_of(config), batch)
        standard = stepper(config_of("standard", args.model), model_of(config), batch)
        ratios = []
        for number in range(args.steps + 2):
            # Several steps of standard training: they are short, and the clock is not exact.
            before = [standard() for _ in range(4)]
            taken = step()
            after = [standard() for _ in range(4)]
            if number >= 2:
                ratios.append(3 * taken / statistics.median(before + after))
        counted, measured = config.step_equivalents(), statistics.median(ratios)
        row = {
            "method": method,
            "forward_equivalents": counted,
            "measured": round(measured, 1),
            "measured / counted": round(measured / counted, 3),
        }
        rows.append(row)
        print(row, flush=True)
    write(args, rows)


def write(args: argparse.Namespace, rows: list[dict]) -> None:
    """JSON, and a table to read."""
    machine = {**describe(), "threads": 1, "model": args.model, "batch": args.batch}
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    head = list(rows[0])
    table = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    table += [f"| {' | '.join(str(row[key]) for key in head)} |" for row in rows]
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    out.with_suffix(".md").write_text(
        "\n".join([f"# {(__doc__ or '').splitlines()[0]}", "", about, "", *table, ""])
    )


if __name__ == "__main__":
    main()
