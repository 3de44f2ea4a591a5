"""Trials one after the other in this process."""

from __future__ import annotations

import torch

from robustfront.config import Job
from robustfront.data import RawData
from robustfront.errors import ConfigError
from robustfront.executors.driver import Driver
from robustfront.executors.task import Task
from robustfront.executors.worker import crash_reason, work


class InlineExecutor:
    """Runs trials in this process; with the same seed the same results as on Ray.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """

    concurrency = 1

    def __init__(self, job: Job, raw: RawData) -> None:
        if job.resources.gpu and not torch.cuda.is_available():
            raise ConfigError("resources.gpu", [f"got {job.resources.gpu:g}, no GPU is here"])
        self._retries = job.retries
        self._raw = raw

    def run(self, driver: Driver) -> None:
        """Work until the driver has nothing more."""
        while isinstance(task := driver.next(), Task):
            self._do(driver, task)

    def close(self) -> None:
        """Nothing to give back."""

    def _do(self, driver: Driver, task: Task) -> None:
        for _ in range(self._retries + 1):
            driver.started(task)
            if self._attempt(driver, task):
                return
        driver.crashed(task, crash_reason(task))

    def _attempt(self, driver: Driver, task: Task) -> bool:
        """Whether the task has come to an end; False if it crashed."""
        messages = work(task, self._raw)
        while True:
            try:
                message = next(messages)
            except Exception:  # whatever a trial raises concerns this trial only
                return False
            if not driver.heard(task, message):
                return True
