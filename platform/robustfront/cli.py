"""The command line: each command parses, calls one function of the library, and prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from robustfront.errors import ConfigError, DataError, RobustfrontError, is_full

if TYPE_CHECKING:
    from robustfront.sweep import Sweep

app = typer.Typer(
    help="What robustness costs in accuracy, and which training method buys it cheapest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="A job file.")]
Name = Annotated[str, typer.Argument(metavar="SWEEP", help="A name under sweeps/, or a path.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file; repeatable."),
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster; else Ray starts here."),
]
One = Annotated[str | None, typer.Option(metavar="ID", help="One finished trial, not the front.")]
SameExecutor = Annotated[
    Literal["ray", "inline"] | None, typer.Option(help="By default the one the sweep began with.")
]
Where = Annotated[
    Path | None,
    typer.Option(help="Write it to this file."),
]


@app.command()
def run(
    job: JobFile,
    settings: Settings = None,
    address: Address = None,
    executor: Annotated[
        Literal["ray", "inline"], typer.Option(help="Ray, or one by one in this process.")
    ] = "ray",
) -> None:
    """Run a sweep; print its front and where to look."""
    from robustfront import sweep
    from robustfront.problems import parse_overrides

    overrides = parse_overrides(settings or [])
    _conclude(sweep.run(job, overrides, executor, address))


@app.command()
def resume(
    name: Name,
    failed: Annotated[
        Literal["resume", "restart", "skip"],
        typer.Option(help="Failed trials: from their last epoch, from scratch, or not at all."),
    ] = "resume",
    settings: Settings = None,
    address: Address = None,
    executor: SameExecutor = None,
) -> None:
    """Go on with a sweep where it stopped, or extend it (--set search.trials=48)."""
    from robustfront import sweep
    from robustfront.problems import parse_overrides

    overrides = parse_overrides(settings or [])
    _conclude(sweep.resume(name, failed, overrides, executor, address))


@app.command()
def submit(
    job: JobFile,
    address: Annotated[
        str, typer.Option(metavar="http://HEAD:8265", help="The cluster's dashboard.")
    ],
    settings: Settings = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show what it prints.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep of this job.")
    ] = False,
) -> None:
    """Run a sweep as a job of a Ray cluster; print the job's id."""
    from robustfront.executors import submit as jobs
    from robustfront.problems import parse_overrides
    from robustfront.search.plan import load_plan
    from robustfront.sweep import folder_of

    plan = load_plan(job, parse_overrides(settings or []))
    submitted = jobs.submit(plan, folder_of(plan.job), address, resume)
    print(submitted)
    if follow:
        for text in jobs.follow(address, submitted):
            print(text, end="", flush=True)
        if not jobs.succeeded(address, submitted):
            raise typer.Exit(1)


@app.command()
def status(name: Annotated[str | None, typer.Argument(metavar="[SWEEP]")] = None) -> None:
    """Trials by state, progress and cost so far; all sweeps without a name."""
    from robustfront import report, sweep

    folders = [sweep.find(name)] if name else sweep.sweep_folders()
    sweeps = [sweep.Sweep.open(folder) for folder in folders]
    report.show_status(sweeps, detailed=name is not None)


@app.command()
def front(
    name: Name,
    split: Annotated[
        str | None, typer.Option(help="val, or test; an ablation: test once it is measured.")
    ] = None,
    x: Annotated[str | None, typer.Option(metavar="METRIC")] = None,
    y: Annotated[str | None, typer.Option(metavar="METRIC")] = None,
    csv: Where = None,
    png: Where = None,
    html: Where = None,
) -> None:
    """The front of a sweep, or the effects of an ablation, as table, picture or file."""
    from robustfront import report
    from robustfront.sweep import Sweep

    sweep = Sweep.open(name)
    if sweep.job.ablation is not None:
        report.require_no_axes(x, y, html)
        effects = sweep.effects(split)
        report.save_effects(effects, csv, png)
        report.show_effects(effects)
        return
    view = sweep.front_view(split or "val", x, y)
    report.save_front(view, csv, png, html)
    report.show_front(view)


@app.command()
def evaluate(
    name: Name,
    trial: One = None,
    suite: Annotated[
        str | None, typer.Option(metavar="NAME", help="An attack; else the job's evaluate.final.")
    ] = None,
    address: Address = None,
    executor: SameExecutor = None,
) -> None:
    """Measure the front on the test split once more, with a stronger suite."""
    from robustfront import report, sweep

    done, attack, trials = sweep.remeasure(name, trial, suite, executor, address)
    report.show_measured(done, attack, trials)
    if done.problems:
        raise typer.Exit(1)


@app.command()
def certify(
    name: Name,
    trial: One = None,
    certifier: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="ibp, crown, ...; else the job's, or the cascade."),
    ] = None,
    address: Address = None,
    executor: SameExecutor = None,
) -> None:
    """Prove robustness of the front's members on the test split, example by example."""
    from robustfront import report, sweep

    done, verifier, trials = sweep.certify(name, trial, certifier, executor, address)
    report.show_certified(done, verifier, trials)
    if done.problems:
        raise typer.Exit(1)


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.")],
    trial: One = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for each example.")] = 100.0,
) -> None:
    """Write ONNX and VNN-LIB files, for complete verifiers to decide what is undecided."""
    from robustfront import sweep

    count, others = sweep.export(name, trial, out, timeout)
    print(f"{out}: model.onnx and {count} undecided examples in instances.csv")
    if others:
        print(f"left out: {', '.join(others)}, which VNN-LIB cannot say (it has boxes only)")


@app.command()
def verdicts(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="RESULTS.csv", help="What a verifier found.")],
    verifier: Annotated[str, typer.Option(help="Its name in metrics.")],
    trial: One = None,
    threat: Annotated[
        str | None, typer.Option(help="linf_0.1, ...: where the job has several.")
    ] = None,
) -> None:
    """Add what a complete verifier has decided of exported examples."""
    from robustfront import report, sweep

    done, chosen, found = sweep.import_verdicts(name, trial, file, verifier, threat)
    report.show_verdicts(done, chosen, found)


@app.command()
def validate(job: JobFile, settings: Settings = None) -> None:
    """Every problem of a job file; if there is none, the plan and what it will cost."""
    from robustfront import report
    from robustfront.estimate import estimate
    from robustfront.problems import parse_overrides
    from robustfront.search.plan import load_plan
    from robustfront.sweep import warm_start

    plan = load_plan(job, parse_overrides(settings or []))
    warm_start(plan)
    report.show_plan(plan, estimate(plan))


@app.command()
def trial(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="A job file, or a trial's config.json.")
    ],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="By default sweeps/trial-ID.")] = None,
) -> None:
    """Train one configuration, without Ray and without MLflow; go on if it was interrupted."""
    from robustfront.config import load_trial
    from robustfront.problems import parse_overrides
    from robustfront.training.trial import run_trial
    from robustfront.trial_report import show_trial

    resolved = load_trial(config, parse_overrides(settings or []))
    folder = out or Path("sweeps") / f"trial-{resolved.id}"
    show_trial(run_trial(resolved, folder), resolved, folder)


@app.command()
def ui(
    port: Annotated[int | None, typer.Option(help="By default a free one.")] = None,
) -> None:
    """The MLflow UI on the sweeps' store, on this machine only."""
    from robustfront.tracking.ui import serve

    sys.exit(serve(Path("sweeps"), port))


def _conclude(done: Sweep) -> None:
    from robustfront import report

    if done.job.ablation is None:
        report.show_front(done.front_view())
    else:
        report.show_effects(done.effects())
    report.show_end(done)
    if done.problems or done.state.count("failed"):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: the user's mistakes end with a message and exit code 2, not with a traceback."""
    try:
        app()
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except RobustfrontError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if not is_full(error):
            raise
        print(f"{error.filename or 'a file'}: the disk is full", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; `robustfront resume SWEEP` goes on", file=sys.stderr)
        sys.exit(130)
