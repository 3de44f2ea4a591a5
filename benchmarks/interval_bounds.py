"""Interval bounds for training, ours beside auto_LiRPA's: forward and backward of the loss.

    uv run python benchmarks/interval_bounds.py

The same model (without dropout), batch, radius and loss, in turn, one CPU thread; both make a plain
pass where batch norm needs one. Ours in the trainer's memory layout (channels last), auto_LiRPA in
torch's own, as it comes, and in the trainer's. Times are medians of CPU time.
Writes interval_bounds.json and interval_bounds.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from torch import nn

from robustfront.certifiers.propagation import margins_of, propagate, regions_of
from robustfront.certifiers.relaxation import Relaxation
from robustfront.methods.bounding import has_batch_norm, verified_ce
from robustfront.models import CNN7, COAPSmall, SmallCNN, build_model
from robustfront.threats import Threat
from robustfront.training.determinism import reset_process

MODELS = {"small_cnn": SmallCNN(), "coap_small": COAPSmall(), "cnn7": CNN7(width=16)}
THREAT = Threat(norm="linf", eps="1/10")
Step = Callable[[], float]


def ours(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    """The value of the loss; gradients are in the model's parameters."""

    clean = x if has_batch_norm(model) else None

    def step() -> float:
        model.zero_grad()
        known = propagate(model, regions_of(THREAT, x), clean)
        loss = verified_ce(known.lower(margins_of(y, 10))).mean()
        loss.backward()
        return float(loss)

    return step


def theirs(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    """The same by auto_LiRPA."""
    library = Relaxation(model).library
    layers = [layer for layer in model.body if not isinstance(layer, nn.Dropout)]
    plain = nn.Sequential(model.stem, *layers).train()
    bounded = library.BoundedModule(plain, torch.zeros_like(x[:2]), device="cpu")
    bounded.train()
    needs_pass = has_batch_norm(model)
    eps = float(THREAT.eps)
    ends = {"x_L": (x - eps).clamp(min=0), "x_U": (x + eps).clamp(max=1)}
    ball = library.PerturbationLpNorm(norm=float("inf"), eps=eps, **ends)

    def step() -> float:
        bounded.zero_grad()
        inputs = library.BoundedTensor(x, ball)
        if needs_pass:
            bounded(inputs)
        lower, _ = bounded.compute_bounds(
            x=(inputs,), C=margins_of(y, 10), method="IBP", bound_upper=False
        )
        loss = verified_ce(lower).mean()
        loss.backward()
        return float(loss)

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    reset_process(threads=1, seed=0)
    warnings.simplefilter("ignore")
    rows = []
    for name, config in MODELS.items():
        torch.manual_seed(0)
        model = build_model(config, (1, 28, 28), 10, (0.0,), (1.0,)).eval()
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.05)
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0  # auto_LiRPA's side is without
        x, y = torch.rand(args.batch, 1, 28, 28), torch.randint(10, (args.batch,))
        fast = copy.deepcopy(model).to(memory_format=torch.channels_last)
        sides = {
            "ours": ours(copy.deepcopy(fast).train(), x, y),
            "auto_LiRPA": theirs(model, x, y),
            "auto_LiRPA, channels last": theirs(fast, x, y),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        losses = {}
        for number in range(args.steps + 3):
            for side, step in sides.items():
                started = time.process_time()
                losses[side] = step()
                if number >= 3:
                    times[side].append(time.process_time() - started)
        medians = {side: 1000 * statistics.median(taken) for side, taken in times.items()}
        row = {
            "model": name,
            **{f"{side}, ms": round(taken, 1) for side, taken in medians.items()},
            "ratio": round(medians["ours"] / medians["auto_LiRPA"], 2),
            "ratio, both channels last": round(
                medians["ours"] / medians["auto_LiRPA, channels last"], 2
            ),
            "loss": f"{losses['ours']:.6g}",
            "their loss": f"{losses['auto_LiRPA']:.6g}",
        }
        rows.append(row)
        print(row, flush=True)
    machine = {**describe(), "threads": 1, "batch": args.batch}
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    head = list(rows[0])
    table = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    table += [f"| {' | '.join(str(row[key]) for key in head)} |" for row in rows]
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    title = (__doc__ or "").splitlines()[0]
    out.with_suffix(".md").write_text("\n".join([f"# {title}", "", about, "", *table, ""]))


if __name__ == "__main__":
    main()
