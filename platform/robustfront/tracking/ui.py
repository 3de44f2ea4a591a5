"""The MLflow UI on the store beside the sweeps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from robustfront.errors import ConfigError, DataError


def serve(sweeps: Path, port: int | None) -> int:
    """Run MLflow's server on the loopback interface until it is interrupted.

    Returns:
        Its exit status.

    Raises:
        DataError: there is no store yet.
        ConfigError: the port is taken, or is none.
    """
    store = sweeps.absolute() / "mlflow.db"
    if not store.is_file():
        raise DataError(f"{store}: no MLflow store yet; `robustfront run JOB.yaml` makes one")
    port = _free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{store}"]
    command += ["--default-artifact-root", (sweeps.absolute() / "mlartifacts").as_uri()]
    print(f"http://127.0.0.1:{port}/#/experiments/{_experiment(store)}   (Ctrl-C ends it)")
    # Without its job runner MLflow needs two processes instead of ten.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


def _free_port(port: int | None) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port or 0))
        except (OSError, OverflowError) as error:
            raise ConfigError("--port", [f"got {port}, it cannot be used ({error})"]) from None
        return int(probe.getsockname()[1])


def _experiment(store: Path) -> str:
    """The experiment with the newest run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = client.search_runs(experiments, order_by=["start_time DESC"], max_results=1)
    return str(newest[0].info.experiment_id) if newest else "0"
