"""What `robustfront trial` prints; needs neither Ray nor MLflow nor what reads a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robustfront.config import TrialConfig
from robustfront.training.fit import Metrics


def show_trial(reports: Iterator[tuple[int, Metrics]], config: TrialConfig, folder: Path) -> None:
    """The progress of one trial, then its errors."""
    console = Console(highlight=False, soft_wrap=True)
    metrics: Metrics = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("epochs", total=config.train.epochs)
        for epoch, metrics in reports:
            progress.update(task, completed=epoch)
            errors = ", ".join(f"{name} {metrics[name]:.4f}" for name in config.objectives)
            console.print(f"epoch {epoch}/{config.train.epochs}: {errors}")
    for name, value in metrics.items():
        if "_error" in name and "/" in name:
            console.print(f"{name} {value:.4f}")
    console.print(f"written to {folder}")
