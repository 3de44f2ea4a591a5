"""One TRADES step: ours beside the formulation of the official code, in turn, in one process.

    uv run python benchmarks/trades_step.py --data-root ../shared/data

Both sides: small_cnn, MNIST, batch 128, 10 inner steps, eps 0.3, SGD, one CPU thread. The official
formulation runs the clean forward again in every inner step, makes three train-mode passes for the
outer loss, and keeps the default memory format. Writes trades_step.json and trades_step.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from machine import describe
from torch import Tensor, nn
from torch.nn import functional as F

import robustfront as rf
from robustfront.methods import StepContext, Trades
from robustfront.models import SmallCNN, build_model
from robustfront.randomness import Rng
from robustfront.threats import Threat
from robustfront.training.determinism import reset_process
from robustfront.updates import Plain

EPS, STEPS, STEP_SIZE, BETA, BATCH = 0.3, 10, 0.01, 1.0, 128


def official_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    model.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        divergence = F.kl_div(
            F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1), reduction="sum"
        )
        grad = torch.autograd.grad(divergence, [x_adv])[0]
        x_adv = x_adv.detach() + STEP_SIZE * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    model.train()
    optimizer.zero_grad()
    clean = F.cross_entropy(model(x), y)
    divergence = F.kl_div(
        F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1), reduction="sum"
    )
    (clean + BETA * divergence / len(x)).backward()
    optimizer.step()


def fresh(channels_last: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model(SmallCNN(), (1, 28, 28), 10, (0.1307,), (0.3081,))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def measure(batches: list[tuple[Tensor, Tensor]], warm_up: int) -> list[tuple[float, float]]:
    theirs, their_optimizer = fresh(channels_last=False)
    ours, our_optimizer = fresh(channels_last=True)
    inner = {"type": "pgd", "steps": STEPS, "step_size": STEP_SIZE, "start": "gaussian"}
    method = Trades.model_validate({"beta": BETA, "inner": inner})
    pairs = []
    for step, (x, y) in enumerate(batches):
        started = time.perf_counter()
        official_step(theirs, their_optimizer, x, y)
        between = time.perf_counter()
        ours.train()
        ctx = StepContext(Threat(norm="linf", eps=EPS), Rng((0, step), block=len(x)), 0.0)
        Plain().step(ours, our_optimizer, method, (x, y), ctx)
        if step >= warm_up:
            pairs.append((time.perf_counter() - between, between - started))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    reset_process(threads=1, seed=0)
    x, y = rf.load_data({"type": "mnist", "root": arguments.data_root}, split="train")
    warm_up = 5
    batches = [
        (x[i * BATCH : (i + 1) * BATCH], y[i * BATCH : (i + 1) * BATCH])
        for i in range(arguments.steps + warm_up)
    ]
    pairs = measure(batches, warm_up)
    ratios = [ours / theirs for ours, theirs in pairs]
    result = {
        "what": "seconds of one TRADES step, ours and the official formulation, in turn",
        "steps": len(pairs),
        "ours_median_seconds": statistics.median(ours for ours, _ in pairs),
        "official_median_seconds": statistics.median(theirs for _, theirs in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "machine": describe(),
    }
    folder = Path(__file__).parent
    (folder / "trades_step.json").write_text(json.dumps(result, indent=1) + "\n")
    low, high = result["ratio_quartiles"]
    (folder / "trades_step.md").write_text(
        "# One TRADES step\n\n"
        "small_cnn, MNIST, batch 128, 10 inner steps, one CPU thread; both sides in turn in one "
        f"process, {len(pairs)} steps.\n\n"
        "| | median seconds |\n|---|---|\n"
        f"| official formulation | {result['official_median_seconds']:.3f} |\n"
        f"| ours | {result['ours_median_seconds']:.3f} |\n"
        f"| **ratio** (median; quartiles) | **{result['ratio_median']:.2f}** "
        f"({low:.2f} to {high:.2f}) |\n\n"
        f"Machine: {result['machine']}\n"
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
