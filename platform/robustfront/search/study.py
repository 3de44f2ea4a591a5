"""Optuna studies in memory: quiet, minimising, rebuilt rather than stored."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna without messages of progress and without warnings of experimental features."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def new_study(sampler: BaseSampler, objectives: int) -> optuna.Study:
    """An empty study that minimises so many objectives."""
    with quiet():
        return optuna.create_study(sampler=sampler, directions=["minimize"] * objectives)
