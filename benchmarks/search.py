"""Which search finds a good front with the fewest epochs: samplers and schedulers on evidence.

    uv run python benchmarks/search.py                                   # about 10 min on two cores
    uv run python benchmarks/search.py --record sweeps/search_curves     # new curves

Every search gets the same epochs, four trials at once, on the same recorded learning curves (a
proposal gets the curve of the nearest recorded configuration). Hypervolume is that of the fully
trained trials, against the worst errors (1, 1). Writes search.json, search.md and search.png.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from machine import describe

from robustfront.executors.simulated import simulate
from robustfront.ledger import Ledger, SweepState
from robustfront.search.curves import Curves

HERE = Path(__file__).parent
CURVES = HERE / "search_curves.json"
TRIALS = 64  # of random search at full budget
REFERENCE = "random"
STOP = {"type": "mo_asha"}
PROMOTE = {"type": "mo_asha", "mode": "promote"}
SEARCHES: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random", "scheduler": None},
    "tpe": {"sampler": "tpe", "scheduler": None},
    "nsga2": {"sampler": "nsga2", "scheduler": None},
    "gp": {"sampler": "gp", "scheduler": None},
    "random, mo_asha stop": {"sampler": "random", "scheduler": STOP},
    "random, mo_asha promote": {"sampler": "random", "scheduler": PROMOTE},
    "tpe, mo_asha stop": {"sampler": "tpe", "scheduler": STOP},
    "tpe, mo_asha promote": {"sampler": "tpe", "scheduler": PROMOTE},
    "nsga2, mo_asha stop": {"sampler": "nsga2", "scheduler": STOP},
}
SLOW = {"gp": 4}  # seconds a proposal: fewer seeds


@cache
def curves() -> Curves:
    return Curves.load(CURVES)


def epochs_of_a_trial() -> int:
    return int(curves().settings["train"]["epochs"])


def volumes(name: str, budget: int, seed: int) -> list[float]:
    """Hypervolume after 0, 1, ... `budget` epochs."""
    search = {**SEARCHES[name], "sampler_seed": seed, "trials": 10 * TRIALS}
    trace = simulate(curves(), {**search, "budget": {"epochs": budget}}, concurrency=4).trace
    found = np.zeros(budget + 1)
    for epochs, _, volume in trace:
        found[epochs:] = volume
    return found.tolist()


def record(sweep: Path) -> None:
    ledger = Ledger.open(sweep)
    recorded = Curves.of(SweepState.of(ledger.read()))
    ledger.close()
    settings = {key: value for key, value in recorded.settings.items() if key != "storage"}
    settings["data"] = {key: value for key, value in settings["data"].items() if key != "root"}
    Curves(settings, recorded.trials).save(CURVES)


def picture(traces: dict[str, np.ndarray], goal: float) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for at, (name, runs) in enumerate(traces.items()):
        low, middle, high = np.quantile(runs, [0.25, 0.5, 0.75], axis=0)
        style = "-" if "asha" in name else "--"
        (line,) = axes.plot(middle, style, label=name, color=f"C{at}", linewidth=1.4)
        axes.fill_between(np.arange(len(low)), low, high, color=line.get_color(), alpha=0.12)
    axes.axhline(goal, color="0.4", linewidth=0.8)
    axes.set(xlabel="epochs spent", ylabel="hypervolume (median, quartiles)")
    axes.set_ylim(np.quantile(np.concatenate([r.ravel() for r in traces.values()]), 0.15), None)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    figure.savefig(HERE / "search.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, metavar="SWEEP")
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
        return
    budget = TRIALS * epochs_of_a_trial()
    traces = {}
    with ProcessPoolExecutor() as pool:
        for name in SEARCHES:
            seeds = range(min(arguments.seeds, SLOW.get(name, arguments.seeds)))
            traces[name] = np.array(list(pool.map(partial(volumes, name, budget), seeds)))
            print(name, np.median(traces[name][:, -1]))
    goal = float(np.median(traces[REFERENCE][:, -1]))
    rows = {name: summary(runs, goal) for name, runs in traces.items()}
    result = {
        "what": "hypervolume by epochs spent on recorded MNIST curves, and epochs until the median "
        f"hypervolume of {REFERENCE} search at full budget",
        "curves": len(curves().trials),
        "budget_epochs": budget,
        "goal": goal,
        "searches": rows,
        "machine": describe(),
    }
    (HERE / "search.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "search.md").write_text(table(result))
    picture(traces, goal)


def summary(runs: np.ndarray, goal: float) -> dict[str, Any]:
    """Quartiles over seeds; a run that never reaches the goal counts as infinite."""
    budget = runs.shape[1] - 1
    reached = [int(np.argmax(run >= goal)) if run[-1] >= goal else np.inf for run in runs]
    quarters = {
        f"at_{share}_of_budget": np.quantile(runs[:, budget // share], [0.25, 0.5, 0.75])
        .round(5)
        .tolist()
        for share in (4, 3, 2, 1)
    }
    median = float(np.median(reached))
    share = median / budget if np.isfinite(median) else None
    return {"seeds": len(runs), **quarters, "share_of_budget_to_goal": share}


def table(result: dict[str, Any]) -> str:
    lines = [
        "# Which search finds a good front with the fewest epochs",
        "",
        f"{result['curves']} recorded MNIST learning curves, {result['budget_epochs']} epochs for "
        "each search, four trials at once. Medians over seeds (quartiles in search.json). Last "
        f"column: share of the budget until the hypervolume that {REFERENCE} search has at its end "
        f"({result['goal']:.4f}).",
        "",
        "| search | seeds | a quarter | a third | half | all | to the goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["searches"].items():
        cells = [f"{row[f'at_{share}_of_budget'][1]:.4f}" for share in (4, 3, 2, 1)]
        share = row["share_of_budget_to_goal"]
        goal = "never" if share is None else f"{share:.2f}"
        lines.append(f"| {name} | {row['seeds']} | {' | '.join(cells)} | {goal} |")
    return "\n".join([*lines, "", f"Machine: {result['machine']}", ""])


if __name__ == "__main__":
    main()
