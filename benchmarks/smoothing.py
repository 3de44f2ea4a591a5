"""CERTIFY on 200 test images of MNIST: ours, ours with looks, and one image after the other.

    uv run python benchmarks/smoothing.py --data-root ../shared/data

The same model, draws (10,000 each) and alpha; one CPU thread; CPU time. One image after the other
is the usual formulation: batches of 1,000 copies, all draws for every image. With looks at 100 and
1,000 draws an image is left alone once its class and its certificate at the radius asked are
decided; alpha is split between the looks. Writes smoothing.json and smoothing.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from scipy import special, stats
from torch import Tensor, nn

import robustfront as rf
from robustfront.certifiers import Smoothing
from robustfront.certifiers.input_dependent import certified_radius
from robustfront.config import TrialConfig
from robustfront.data import Split
from robustfront.evaluation.certify import certified
from robustfront.evaluation.records import Records
from robustfront.threats import Threat
from robustfront.training.trial import run_trial

SIGMA, N0, N, ALPHA, RADIUS = 0.5, 100, 10000, 0.001, "1/2"
HERE = Path(__file__).parent


def trained(root: str, folder: Path) -> nn.Module:
    """A small network that is trained with the noise."""
    config = TrialConfig.model_validate(
        {
            "data": {"type": "mnist", "root": root, "train_size": 5000, "val_size": 500},
            "model": {"type": "mlp", "hidden": [256, 128]},
            "threat": {"norm": "l2", "eps": RADIUS},
            "smoothing": {"sigma": SIGMA},
            "train": {"epochs": 5, "optimizer": {"type": "adam", "lr": 0.002}, "batch_size": 64},
            "evaluate": {"attack": {"type": "pgd", "steps": 1}},
        }
    )
    for _ in run_trial(config, folder):
        pass
    return rf.load_model(folder)


def one_after_the_other(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """Certified radii where the class is right, as released code computes them."""
    radii = []
    with torch.no_grad():
        for image, label in zip(x, y, strict=True):
            counts = []
            for n in (N0, N):
                seen, left = torch.zeros(10, dtype=torch.int64), n
                while left:
                    batch = image.repeat(min(1000, left), 1, 1, 1)
                    left -= len(batch)
                    noise = torch.randn_like(batch) * SIGMA
                    seen += torch.bincount(model(batch + noise).argmax(1), minlength=10)
                counts.append(seen)
            chosen = int(counts[0].argmax())
            k = int(counts[1][chosen])
            p = stats.beta.ppf(ALPHA, k, N - k + 1) if k else 0.0
            right = chosen == int(label) and p > 0.5
            radii.append(SIGMA * special.ndtri(p) if right else -1.0)
    return np.array(radii)


def ours(model: nn.Module, x: Tensor, y: Tensor, looks: tuple[int, ...]) -> tuple[Any, int]:
    """The same by the certifier, and how many draws it took."""
    certifier = Smoothing(sigma=SIGMA, n0=N0, n=N, alpha=ALPHA, looks=looks)
    records = Records(y.numpy(), y.numpy())
    threat = Threat.model_validate({"norm": "l2", "eps": RADIUS})
    found = certified(model, Split(x, y, 1.0), [threat], certifier, records)
    right = found.smoothed["smoothing"] == found.label
    draws = int(found.draws["smoothing"][:, 1].sum()) + N0 * len(x)
    return np.where(right, found.radii["l2/smoothing"], -1.0), draws


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", default="../shared/data")
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        model = trained(args.data_root, Path(scratch))
    x, y = rf.load_data({"type": "mnist", "root": args.data_root}, split="test")
    x, y = x[: args.images], y[: args.images]
    usual, theirs = timed(lambda: one_after_the_other(model, x, y))
    rows = [row("one after the other", usual, usual, theirs, (N0 + N) * len(x))]
    for name, looks in (("ours", ()), ("ours, looks at 100 and 1,000", (100, 1000))):
        taken, (radii, draws) = timed(lambda looks=looks: ours(model, x, y, looks))
        rows.append(row(name, taken, usual, radii, draws))
    source = np.random.default_rng(0)
    p, sigma = source.uniform(0.5, 0.9999, 10_000), source.uniform(0.1, 0.6, 10_000)
    certified_radius(p[:100], sigma[:100], 0.01, 3072)
    taken, _ = timed(lambda: certified_radius(p, sigma, 0.01, 3072))
    result = {"rows": rows, "input_dependent_radii_per_second": round(10_000 / taken)}
    (HERE / "smoothing.json").write_text(json.dumps({**result, "machine": describe()}, indent=1))
    (HERE / "smoothing.md").write_text(text(result, len(x)))
    print((HERE / "smoothing.md").read_text())


def row(name: str, seconds: float, usual: float, radii: np.ndarray, draws: int) -> dict[str, Any]:
    return {
        "how": name,
        "seconds": round(seconds, 1),
        "share": round(seconds / usual, 3),
        "draws": draws,
        "certified_at_radius": float((radii >= 0.5).mean()),
    }


def text(result: dict[str, Any], images: int) -> str:
    lines = [
        f"# CERTIFY on {images} MNIST images, sigma {SIGMA}, {N} draws, alpha {ALPHA}",
        "",
        "CPU seconds on one thread; `uv run python benchmarks/smoothing.py`.",
        "",
        "| how | seconds | share | draws | certified at radius 0.5 |",
        "|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in result["rows"]]
    speed = result["input_dependent_radii_per_second"]
    lines += ["", f"Input-dependent radii for N = 3072: {speed} a second.", ""]
    lines.append(f"Machine: {describe()}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
