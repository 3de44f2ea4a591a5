"""An MLflow server that dies, and what a sweep must have told it in the end."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient

from robustfront.ledger import SweepState
from tiny_job import environment, free_port


class Tracking:
    """An MLflow server of its own that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Until it answers."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        """It will answer after a while."""
        arguments = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = f"sqlite:///{self.folder / 'server.db'}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments, "--backend-store-uri", store]
            + ["--artifacts-destination", str(self.folder / "served")],
            env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.5)
        raise AssertionError("the tracking server does not start")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def check_told_once(uri: str, state: SweepState) -> None:
    """Every trial is one run, with every epoch of it once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("robustfront")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "robustfront.trial" in run.data.tags]
    assert sorted(run.data.tags["robustfront.trial"] for run in children) == sorted(state.trials)
    for run in children:
        trial = state.trials[run.data.tags["robustfront.trial"]]
        history = client.get_metric_history(run.info.run_id, "robust_error")
        told = [(point.step, point.value) for point in history]
        assert sorted(told) == [(e, r["robust_error"]) for e, r in sorted(trial.reports.items())]
