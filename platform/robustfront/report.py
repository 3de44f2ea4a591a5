"""What the commands print."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from os.path import isdir  # False too for what can be no path
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustfront.config import Job
from robustfront.errors import ConfigError, is_full
from robustfront.estimate import Estimate
from robustfront.evaluation.intervals import clopper_pearson
from robustfront.executors.live import summary
from robustfront.files import write_bytes
from robustfront.ledger import STATUSES
from robustfront.search.effects import Effects
from robustfront.search.plan import Plan
from robustfront.sweep import Sweep
from robustfront.tracking.ablation_view import AblationView
from robustfront.tracking.front import Front, is_error
from robustfront.tracking.shipper import local_store, store_uri

_COLUMNS = 4  # errors side by side, for a terminal of 80 columns


def show_front(front: Front) -> None:
    """The members of a front as tables that fit a terminal: their errors, their settings."""
    console = Console(highlight=False)
    if front.members.empty:
        console.print(f"{front.name}: no finished trial with {front.x} and {front.y} yet")
        return
    names = [str(name) for name in front.members.columns]
    tested = [n for n in names if n.startswith("test/") and is_error(n)]
    tested = [name for name in tested if not name.endswith(("_low", "_high"))]
    title = f"{front.name}: {front.subtitle}; errors in % with 95 % intervals over examples"
    errors: list[str | Table] = [title, _errors(front, [front.x, front.y])]
    others = [name for name in tested if name not in (front.x, front.y)]
    for first in range(0, len(others), _COLUMNS):
        title = "\nThe same trials on the test split:" if first == 0 else ""
        errors += [title, _errors(front, others[first : first + _COLUMNS])]
    settings = Table(box=None)
    settings.add_column("trial", no_wrap=True)
    for head in ("on the front", "passes, time", "configuration"):
        settings.add_column(head)
    for _, row in front.members.iterrows():
        chance = _chance(row.get("pareto_probability"))
        parameters = Text(_parameters(row, front.parameters))
        settings.add_row(str(row["trial"]), chance, _cost(row), parameters)
    console.print(*errors, "", settings, sep="\n")
    console.print(
        f"\n{len(front.members)} of {front.count('finished')} finished trials are on the front, "
        f"hypervolume {front.hypervolume:.4f}; {100 * front.diverged_share:.0f} % diverged."
    )
    if not front.audits.empty:
        console.print("\nWhat the method's theory says, validation split:", _audits(front))
    for _, row in front.members[front.members["suspect"].eq(True)].iterrows():
        console.print(f"{row['trial']} is suspect: {row['reason']}", style="yellow", markup=False)
    for problem in front.problems:
        console.print(f"{problem}; no probability for it", style="red", markup=False)


def _audits(front: Front) -> Table:
    """One row a finished trial: its settings, and what its method's audit measured."""
    table = Table(box=None)
    shown = front.audits.drop(columns=["number", "seed"])
    for name in shown.columns:
        table.add_column(str(name).rpartition(".")[2].replace("_", " "), no_wrap=True)
    for row in shown.itertuples(index=False):
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    return table


def _errors(front: Front, columns: list[str]) -> Table:
    """Some errors of the members; a column each, headed by the parts of its name."""
    table = Table(box=None)
    table.add_column("trial", no_wrap=True)
    for column in columns:
        table.add_column("\n".join(column.split("/")).replace("_", " "), justify="right")
    for _, row in front.members.iterrows():
        table.add_row(str(row["trial"]), *(_error(row, column) for column in columns))
    return table


def show_effects(view: AblationView) -> None:
    """What the factors of an ablation do to each error: gaps, effects, importance."""
    console = Console(highlight=False)
    console.print(f"{view.name}: {view.subtitle}", markup=False)
    for note in view.notes:
        console.print(note, style="yellow", markup=False)
    for error, effects in view.effects.items():
        title = f"\n{error.replace('_', ' ')}: mean {100 * effects.means.mean():.1f} %"
        console.print(title, style="bold")
        console.print(_gaps(effects), "", _effects(effects), "", _importance(effects), sep="\n")
    if view.effects:
        console.print(
            "\nPoints of error (in %) with 95 % intervals; * has p below 0.05 among all of its "
            "table."
        )


def _gaps(effects: Effects) -> Table:
    first = effects.names[effects.compared][0]
    table = Table(box=None)
    for head in (f"{effects.compared}, against {first}", "where"):
        table.add_column(head)
    table.add_column("gap", justify="right")
    for row in effects.gaps.to_dict("records"):
        where = f"{row['factor']} {row['at']}" if row["factor"] else "everywhere"
        table.add_row(Text(row["level"]), Text(where), _points(row))
    return table


def _effects(effects: Effects) -> Table:
    table = Table(box=None)
    for head in ("term", "levels"):
        table.add_column(head)
    table.add_column("effect", justify="right")
    for row in effects.effects.to_dict("records"):
        table.add_row(Text(row["term"]), Text(row["levels"]), _points(row))
    return table


def _importance(effects: Effects) -> Table:
    table = Table(box=None)
    table.add_column("term")
    table.add_column("share of the variance between cells", justify="right")
    for row in effects.importance.to_dict("records"):
        low, high = _percent(row["low"]), _percent(row["high"])
        table.add_row(Text(row["term"]), f"{100 * row['share']:.1f} % [{low}, {high}]")
    return table


def _points(row: Mapping[Hashable, Any]) -> str:
    """An effect in points of error."""
    effect, low, high = (100 * row[name] for name in ("effect", "low", "high"))
    star = "*" if row["p_family"] < 0.05 else " "
    return f"{effect:+.1f} [{low:+.1f}, {high:+.1f}]{star}"


def require_no_axes(x: str | None, y: str | None, html: Path | None) -> None:
    """An ablation has tables and a picture.

    Raises:
        ConfigError: axes or a page are asked for.
    """
    asked = {"--x": x, "--y": y, "--html": html}
    wrong = [name for name, value in asked.items() if value is not None]
    if wrong:
        problem = "is for fronts; an ablation has --split, --csv and --png"
        raise ConfigError("front", [f"{name}: {problem}" for name in wrong])


def save_effects(view: AblationView, csv: Path | None, png: Path | None) -> None:
    """The effects as table and picture.

    Raises:
        ConfigError: a folder that does not exist, or what cannot be a file in it.
    """
    _require_files(csv, png)
    if csv is not None:
        _save(csv, view.to_csv().encode())
    if png is not None:
        from robustfront.tracking import ablation_png

        _save(png, ablation_png.gaps(view))


def _require_files(*paths: Path | None) -> None:
    asked = [path for path in paths if path is not None]
    wrong = [f"{path}: its folder does not exist" for path in asked if not isdir(path.parent)]
    wrong += [f"{path}: is a folder" for path in asked if isdir(path)]
    if wrong:
        raise ConfigError("front", wrong)


def _save(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError("front", [f"{path}: cannot be written: {error.strerror}"]) from None


def save_front(front: Front, csv: Path | None, png: Path | None, html: Path | None) -> None:
    """The front as files.

    Raises:
        ConfigError: a folder that does not exist, or what cannot be a file in it.
    """
    from robustfront.tracking import front_html, front_png

    _require_files(csv, png, html)
    if csv is not None:
        _save(csv, front.to_csv().encode())
    if png is not None:
        _save(png, front_png.render(front))
    if html is not None:
        _save(html, front_html.render(front).encode())


def show_end(sweep: Sweep) -> None:
    """What became of a sweep, and where to look further."""
    console = Console(highlight=False, soft_wrap=True)
    failed = [t for t in sweep.state.trials.values() if t.status in ("failed", "diverged")]
    for trial in failed[:10]:
        console.print(f"{trial.id} {trial.status}: {trial.reason}", style="red", markup=False)
    if sweep.state.count("failed"):
        console.print(f"`robustfront resume {sweep.name}` tries the failed trials again.")
    if sweep.job.search.budget.spent(sweep.state.cost):
        paused = sweep.state.count("paused")
        console.print(
            f"The budget is spent ({paused} trials paused); `robustfront resume {sweep.name} "
            "--set search.budget...` with a larger one goes on.",
            markup=False,
        )
    for problem in sweep.problems:
        console.print(problem, style="red", markup=False)
    console.print(f"Sweep:  {sweep.folder}")
    uri = store_uri(sweep.job, sweep.folder)
    served = uri == local_store(Path("sweeps"))
    console.print(f"MLflow: {uri}" + ("   (robustfront ui)" if served else ""))


def show_measured(sweep: Sweep, attack: str, trials: Sequence[str]) -> None:
    """The errors of some trials on the test split under an attack."""
    columns = {"standard error": "test/standard_error"}
    for name in _perturbation_sets(sweep):
        columns[f"robust error {name.replace('_', ' ')}"] = f"test/robust_error/{name}/{attack}"
    _show_errors(sweep, attack, trials, columns)


def show_certified(sweep: Sweep, verifier: str, trials: Sequence[str]) -> None:
    """The errors of some trials on the test split that a certifier leaves."""
    columns = {
        f"certified error {name.replace('_', ' ')}": f"test/certified_error/{name}/{verifier}"
        for name in _perturbation_sets(sweep)
    }
    _show_errors(sweep, verifier, trials, columns)


def show_verdicts(sweep: Sweep, trial: str, found: Mapping[str, float]) -> None:
    """What another verifier's verdicts leave of a trial."""
    console = Console(highlight=False)
    test = sweep.state.trials[trial].test
    for name, value in found.items():
        shown = _with_interval(value, test) if is_error(name) else f"{value:.0f}"
        console.print(f"{trial}: {name} {shown}", markup=False, soft_wrap=True)


def _perturbation_sets(sweep: Sweep) -> list[str]:
    """Each threat, and their union where there are several."""
    threats = [threat.name for threat in sweep.job.threat]
    return [*threats, "union"] if len(threats) > 1 else threats


def _show_errors(sweep: Sweep, by: str, trials: Sequence[str], columns: Mapping[str, str]) -> None:
    """Test errors of some trials with intervals; columns are metrics by their heads."""
    console = Console(highlight=False)
    title = f"{sweep.name}: {by}, test split; errors in % with 95 % intervals over examples"
    table = Table("trial", *columns, title=title, box=None, title_justify="left")
    for trial in trials:
        test = sweep.state.trials[trial].test
        cells = [_with_interval(test.get(metric), test) for metric in columns.values()]
        table.add_row(trial, *cells)
    console.print(table)
    for problem in sweep.problems:
        console.print(problem, style="red", markup=False, soft_wrap=True)


def _with_interval(error: float | None, test: Mapping[str, float]) -> str:
    if error is None:
        return ""
    n = round(test["test/examples"])
    low, high = clopper_pearson(round(error * n), n)
    return f"{100 * error:.1f} [{_percent(low)}, {_percent(high)}]"


def show_status(sweeps: list[Sweep], detailed: bool) -> None:
    """Trials by state, progress and cost so far."""
    console = Console()
    if not sweeps:
        console.print("no sweeps here; `robustfront run JOB.yaml` starts one")
        return
    heads = ("sweep", "explored", "trials", "epochs", "passes", "CPU h", "GPU h")
    table = Table(*heads, box=None)
    for sweep in sweeps:
        trials = list(sweep.state.trials.values())
        explored = {trial.number for trial in trials}
        cost = sweep.state.cost
        counts = {state: sweep.state.count(state) for state in STATUSES}
        table.add_row(
            sweep.name,
            f"{len(explored)}/{sweep.job.search.trials}",
            ", ".join(f"{count} {state}" for state, count in counts.items() if count),
            str(cost.epochs),
            f"{cost.forward_equivalents:.1e}",
            f"{cost.cpu_seconds / 3600:.2f}",
            f"{cost.gpu_seconds / 3600:.2f}",
        )
    console.print(table)
    if detailed:
        console.print(_trials(sweeps[0]))


def _trials(sweep: Sweep) -> Table:
    table = Table(box=None)
    for name in ("trial", "state", "epoch", *sweep.job.objectives, "configuration"):
        table.add_column(name)
    for trial in sweep.state.trials.values():
        errors = [
            f"{trial.metrics[name]:.4f}" if name in trial.metrics else ""
            for name in sweep.job.objectives
        ]
        table.add_row(
            trial.id,
            trial.status,
            str(trial.epoch),
            *errors,
            Text(trial.reason or summary(trial)),
        )
    return table


def show_plan(plan: Plan, estimate: Estimate) -> None:
    """What a job would do."""
    job = plan.job
    table = Table(box=None, show_header=False)
    threats = ", ".join(threat.name.replace("_", " ") for threat in job.threat)
    cost = (
        "unknown"
        if estimate.forward_equivalents is None
        else (f"{estimate.forward_equivalents:.2e} forward passes")
    )
    if estimate.seconds is not None:
        cost += f", about {estimate.seconds / 60:.1f} min with {estimate.concurrency} at once"
        cost += f", by {estimate.basis}"
    budget = job.search.budget.model_dump()
    limits = {name.replace("_", " "): limit for name, limit in budget.items() if limit is not None}
    rows = {
        "sweep": job.name,
        "trials": f"{estimate.trials} ({job.search.sampler}{_seeds(job)}){_cells(job)}",
        "epochs": f"{job.train.epochs} each{_early(job)}",
        "budget": ", ".join(f"{limit:g} {name}" for name, limit in limits.items()) or "none",
        "objectives": ", ".join(job.objectives),
        "threat": f"{threats}, measured by {job.evaluate.attack.name}",
        "final": f"{job.evaluate.final.attack.name} on the test split, for {_final_for(job)}"
        + _each(estimate),
        "searched": ", ".join(job.ablation.nuisance if job.ablation else plan.space.keys)
        or "nothing",
        "cost": cost + (f" ({estimate.reason})" if estimate.reason else ""),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    for remark in estimate.remarks:
        table.add_row("noise", Text(remark))
    Console(highlight=False).print(table)


def _cells(job: Job) -> str:
    """What a design is made of."""
    if job.ablation is None:
        return ""
    sizes = " x ".join(str(len(levels)) for levels in job.ablation.names.values())
    part = f", {job.ablation.fraction} of" if job.ablation.fraction != 1 else ""
    count = len(job.ablation.cells())
    names = ", ".join(job.ablation.names)
    return f"; {job.ablation.trials_per_cell} in each of {count} cells ({names}:{part} {sizes})"


def _final_for(job: Job) -> str:
    return "the front" if job.ablation is None else "the best of each cell"


def _each(estimate: Estimate) -> str:
    """What the final suite's attacks and draws cost for one model."""
    if estimate.final is None:
        return ""
    cost = f", at most {estimate.final:.2e} forward passes each"
    if estimate.final_seconds is not None:
        cost += f" or {estimate.final_seconds / 60:.1f} min"
    return cost


def _seeds(job: Job) -> str:
    first, *others = job.search.seeds
    best = "may be on the front" if job.ablation is None else "is best in its cell"
    more = f"; {', '.join(map(str, others))} for what {best}" if others else ""
    return f", seed {first}{more}"


def _early(job: Job) -> str:
    scheduler = job.search.scheduler
    if scheduler is None:
        return ""
    share = f"the best 1/{scheduler.reduction_factor}"
    return f" at most ({scheduler.type}: {share} go on after epoch {scheduler.grace_epochs}, ...)"


def _error(row: pd.Series, column: str) -> str:
    value = row[column]
    if pd.isna(value):
        return ""
    if not is_error(column):
        return f"{value:.4g}"
    low, high = row.get(f"{column}_low", np.nan), row.get(f"{column}_high", np.nan)
    interval = "" if pd.isna(low) else f" [{_percent(low)}, {_percent(high)}]"
    return f"{100 * value:.1f}{interval}"


def _chance(share: float | None) -> str:
    return "" if pd.isna(share) else f"{100 * share:.0f} %"


def _cost(row: pd.Series) -> str:
    """Passes of one example through the model, and for how long the scarcer device was held."""
    passes, gpu = row.get("cost_forward_equivalents", 0), row.get("cost_gpu_seconds", 0)
    seconds, device = (gpu, "GPU") if gpu else (row.get("cost_cpu_seconds", 0), "CPU")
    return f"{passes:.1e}, {_duration(seconds)} {device}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"


def _parameters(row: pd.Series, names: tuple[str, ...]) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name in names
        if (value := row.get(name)) is not None and not pd.isna(value)
    )
