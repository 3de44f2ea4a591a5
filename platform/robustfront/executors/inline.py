"""Trials one after the other in this process."""

from __future__ import annotations

import torch

from robustfront.config import Job
from robustfront.data import RawData
from robustfront.errors import ConfigError
from robustfront.executors.choose import cores
from robustfront.executors.task import Task, Work
from robustfront.executors.worker import work


class InlineExecutor:
    """Runs trials in this process; with the same seed the same results as on Ray.

    Raises:
        ConfigError: a GPU is asked for, and there is none; or more cores than there are; or
            several workers.
    """

    concurrency = 1

    def __init__(self, job: Job, raw: RawData) -> None:
        if job.resources.gpu and not torch.cuda.is_available():
            raise ConfigError("resources.gpu", [f"got {job.resources.gpus:g}, no GPU is here"])
        if job.resources.cpu > cores():
            problem = f"got {job.resources.cpu}, this machine has {cores()}"
            raise ConfigError("resources.cpu", [problem])
        if job.resources.workers > 1:
            problem = f"got {job.resources.workers}, the inline executor has one process"
            raise ConfigError("resources.workers", [problem])
        self._raw = raw

    def run(self, driver: Work) -> None:
        """Work until the driver has nothing more."""
        while isinstance(task := driver.next(), Task):
            self._do(driver, task)

    def close(self) -> None:
        """Nothing to give back."""

    def _do(self, driver: Work, task: Task) -> None:
        driver.started(task)
        for message in work(task, self._raw):
            if not driver.heard(task, message):
                return
