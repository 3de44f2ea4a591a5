"""Ships the ledger to MLflow, beside the training and never in its way.

A thread follows the ledger, sends each event, and remembers how far it got in the ledger itself.
Whatever is sent twice after a crash counts once: runs are found by their tags, and a metric carries
the time of its event, so that MLflow's store sees the same row again.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from robustfront.config import Job, TrialConfig
from robustfront.errors import StorageError
from robustfront.evaluation.records import Records
from robustfront.ledger import ENDS, STATUSES, Event, Ledger, SweepState, Trial
from robustfront.search.members import members, sweep_hypervolume
from robustfront.tracking import waterfall
from robustfront.tracking.ablation_view import ablation_of
from robustfront.tracking.tables import front_of, records_table

CONSUMER = "mlflow"
_PAUSE = 0.5  # seconds between looks at the ledger
_AT_ONCE = 50  # events between acknowledgements
_PAUSE_AFTER_ERROR = 2.0
_BETWEEN_FRONTS = 20.0  # seconds between uploads of the front's pictures
_RUN_STATUS = {
    "finished": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "diverged": "FAILED",
}


def store_uri(job: Job, folder: Path) -> str:
    """The MLflow store of a job: the one it names, else SQLite beside the sweeps."""
    return job.tracking.uri or local_store(folder.parent)


def local_store(sweeps: Path) -> str:
    """The SQLite store beside the sweeps in a folder."""
    return f"sqlite:///{sweeps.absolute() / 'mlflow.db'}"


class Shipper:
    """A thread that keeps MLflow up to date with one sweep's ledger."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder, self.job, self.name = folder, job, folder.name
        self.uri = store_uri(job, folder)
        self.problem = ""
        self._ledger = Ledger.open(folder)
        self._state = SweepState()
        self._runs: _Runs | None = None
        self._front_sent, self._front_due = 0.0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-shipper", daemon=True)

    @staticmethod
    def warm_up() -> None:
        """Import MLflow (seconds) while something else starts."""
        threading.Thread(target=_client, args=("",), daemon=True).start()

    def start(self) -> None:
        """Begin to ship."""
        self._thread.start()

    def close(self, timeout: float) -> int:
        """Ship what is left, for at most so many seconds.

        Returns:
            How many events wait for the next `resume`.
        """
        self._stop.set()
        self._thread.join(timeout)
        try:
            last = self._ledger.read(self._ledger.acknowledged(CONSUMER))
        except StorageError as error:
            self.problem = str(error)
            last = []
        if not self._thread.is_alive():
            self._ledger.close()
        return len(last)

    def _work(self) -> None:
        last_time = False
        while not last_time:
            last_time = self._stop.is_set()
            try:
                self._follow(last_time)
                self.problem = ""
                self._stop.wait(_PAUSE)
            except Exception as error:  # tracking never stops a sweep
                self.problem = " ".join(str(error).split())[:300]
                self._stop.wait(_PAUSE_AFTER_ERROR)

    def _follow(self, last_time: bool) -> None:
        """Ship all there is."""
        if self._runs is None:
            self._runs = self._connect()
        while events := self._ledger.read(self._state.seq, _AT_ONCE):
            self._ship_all(events)
        if self._front_due and (last_time or time.monotonic() - self._front_sent > _BETWEEN_FRONTS):
            self._send_front()
        if last_time:
            self._runs.close()

    def _connect(self) -> _Runs:
        done = self._ledger.acknowledged(CONSUMER)
        events = self._ledger.read()
        self._state = SweepState.of([event for event in events if event.seq <= done])
        artifacts = self.job.tracking.artifacts
        if artifacts is None and not self.uri.startswith(("http://", "https://")):
            artifacts = (self.folder.absolute().parent / "mlartifacts").as_uri()
        self._front_due = done > 0
        return _Runs(self.uri, self.job.tracking.experiment, artifacts, self.name, events[0])

    def _ship_all(self, events: list[Event]) -> None:
        """Ship some events; one word to the ledger for all, because it waits for the disk."""
        shipped = 0
        try:
            for event in events:
                self._ship(event)
                shipped = event.seq
        finally:
            if shipped:
                self._ledger.acknowledge(CONSUMER, shipped)

    def _ship(self, event: Event) -> None:
        assert self._runs is not None
        self._state.apply(event)
        try:
            if event.trial:
                self._ship_trial(self._runs, event, self._state.trials[event.trial])
            else:
                self._runs.describe_sweep(event, self.job)
        except BaseException:
            # Not shipped: start over from what is acknowledged.
            self._runs = None
            raise

    def _ship_trial(self, runs: _Runs, event: Event, trial: Trial) -> None:
        if event.kind == "restarted":
            runs.discard(trial)
        if event.kind in ("reported", "measured"):
            step = event.step if event.kind == "reported" else trial.epoch
            runs.metrics(trial, event.body["metrics"], event, step)
        if event.kind == "measured":
            runs.test_records(trial, self.folder / "trials" / trial.id)
            runs.suspect(trial)
        if event.kind == "diverged":
            # What the search was told, so that the last value on record is the one that counts.
            runs.metrics(trial, dict.fromkeys(self.job.objectives, 1.0), event, trial.epoch + 1)
        if event.kind == "finished":
            runs.artifacts(trial, self.folder / "trials" / trial.id)
        if event.kind != "measured":
            runs.status(trial, event)
        if event.kind in (*ENDS, "restarted"):
            self._ship_front(runs, event)
        if trial.ended:  # also when it has been measured
            self._front_due = True

    def _ship_front(self, runs: _Runs, event: Event) -> None:
        counts = {f"trials/{status}": float(self._state.count(status)) for status in STATUSES}
        runs.sweep_metrics(counts, event, event.seq)
        if self.job.ablation is not None:
            return  # its cells are on no common front
        front = members(self._state.trials.values(), self.job)
        runs.mark_pareto({trial.id for trial in front}, self._state.trials.values())
        if event.kind == "finished":
            volume = sweep_hypervolume(front, self.job)
            runs.sweep_metrics({"hypervolume": volume}, event, self._state.count("finished"))

    def _send_front(self) -> None:
        assert self._runs is not None
        self._front_sent = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            if self.job.ablation is None:
                front_of(self.folder, self.job, self._state).write(Path(scratch))
                self._runs.client.log_artifacts(self._runs.parent, scratch, "front")
            else:
                ablation_of(self.folder, self.job, self._state).write(Path(scratch))
                self._runs.client.log_artifacts(self._runs.parent, scratch, "ablation")
        self._front_due = False


class _Runs:
    """The runs of one sweep in an MLflow store: a parent, and one child for each trial."""

    def __init__(
        self, uri: str, experiment: str, artifacts: str | None, name: str, created: Event
    ) -> None:
        self.client = _client(uri)
        self.name, self.uid, self.version = name, created.body["uid"], created.body["version"]
        self.experiment = self._experiment(experiment, artifacts)
        self.children: dict[str, str] = {}
        self._pareto: dict[str, bool] = {}
        self._find()
        self.parent: str = self.children.pop("", "")
        if not self.parent:
            self.parent = self._create(created, name, {})
        self.client.update_run(self.parent, "RUNNING")

    def close(self) -> None:
        """Nothing more is to come for now."""
        self.client.set_terminated(self.parent, "FINISHED")

    def describe_sweep(self, event: Event, job: Job) -> None:
        """The job as it is now, on the parent run."""
        settings = dict(event.body["job"])
        space = settings.get("search_space") or {}
        for name, content in (("job.yaml", settings), ("search_space.yaml", space)):
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            self.client.log_text(self.parent, text, name)
        self.client.set_tag(self.parent, "robustfront.objectives", ",".join(job.objectives))

    def child(self, trial: Trial, event: Event) -> str:
        """The run of a trial, made when it is first needed."""
        if trial.id not in self.children:
            tags = {
                "robustfront.trial": trial.id,
                "mlflow.parentRunId": self.parent,
                "robustfront.attempt": str(trial.attempt),
                "robustfront.pareto": "false",
            }
            method = trial.config["method"]["type"]
            if "cell" in trial.attrs:
                tags["robustfront.cell"] = trial.attrs["cell"]
            title = f"{trial.number:03d}-{method}-{trial.id[:6]}"
            run = self._create(event, title, tags)
            self.children[trial.id] = run
        return self.children[trial.id]

    def status(self, trial: Trial, event: Event) -> None:
        """Parameters when it is proposed, later what has become of it."""
        from mlflow.entities import Param, RunTag

        run = self.child(trial, event)
        tags = [RunTag("robustfront.status", trial.status)]
        if trial.reason or trial.starts > 1:
            tags.append(RunTag("robustfront.reason", trial.reason[:4000]))
        params = []
        if event.kind in ("proposed", "restarted"):
            values = TrialConfig.model_validate(trial.config).parameters()
            params = [Param(key, str(value)) for key, value in values.items()]
        self.client.log_batch(run, params=params, tags=tags)
        if trial.ended:
            self.client.set_terminated(run, _RUN_STATUS[trial.status], _milliseconds(event))
        elif event.kind == "started":
            self.client.update_run(run, "RUNNING")

    def metrics(self, trial: Trial, values: dict[str, float], event: Event, step: int) -> None:
        """One batch of a trial's metrics, all at the time of their event."""
        self._log(self.child(trial, event), values, event, step)

    def sweep_metrics(self, values: dict[str, float], event: Event, step: int) -> None:
        """One batch of the sweep's metrics."""
        self._log(self.parent, values, event, step)

    def artifacts(self, trial: Trial, folder: Path) -> None:
        """Weights and records of a finished trial, as far as they are still there."""
        run = self.children[trial.id]
        for name in ("config.json", "last.safetensors", "best.safetensors"):
            if (folder / "checkpoint" / name).is_file():
                self.client.log_artifact(run, str(folder / "checkpoint" / name), "checkpoint")
        self._records(run, folder / "records.npz")
        self._waterfall(trial, folder / "records.npz", "val")

    def test_records(self, trial: Trial, folder: Path) -> None:
        """Records of all suites on the test split, as far as they are there."""
        for path in sorted(folder.glob("test-*.npz")):
            self._records(self.children[trial.id], path)
        self._waterfall(trial, folder / "test-certified.npz", "test")

    def suspect(self, trial: Trial) -> None:
        """Why the robust error of a trial may not be believed; no tag where nothing speaks so."""
        run, tag = self.children[trial.id], "robustfront.suspect"
        if trial.suspect:
            self.client.set_tag(run, tag, "; ".join(trial.suspect)[:4000])
        elif tag in self.client.get_run(run).data.tags:
            self.client.delete_tag(run, tag)

    def _records(self, run: str, records: Path) -> None:
        if records.is_file():
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"{records.stem}.parquet"
                records_table(Records.load(records)).to_parquet(path)
                self.client.log_artifact(run, str(path))

    def _waterfall(self, trial: Trial, path: Path, split: str) -> None:
        """Certified error by radius, where the records are of a smoothed classifier."""
        if path.is_file() and (records := Records.load(path)).smoothed:
            with tempfile.TemporaryDirectory() as scratch:
                title = f"{self.name}, {trial.id}: smoothed, {split} split"
                waterfall.write(records, Path(scratch), split, title)
                self.client.log_artifacts(self.children[trial.id], scratch, "smoothing")

    def mark_pareto(self, front: set[str], trials: Iterable[Trial]) -> None:
        """Set the tag of each trial whose membership has changed."""
        for trial in trials:
            member = trial.id in front
            run = self.children.get(trial.id)
            if run is not None and self._pareto.get(trial.id) != member:
                self.client.set_tag(run, "robustfront.pareto", str(member).lower())
                self._pareto[trial.id] = member

    def discard(self, trial: Trial) -> None:
        """A restarted trial gets a fresh run; metrics of the old one could not be taken back."""
        run = self.children.get(trial.id)
        tags = self.client.get_run(run).data.tags if run else {}
        if run and tags.get("robustfront.attempt") != str(trial.attempt):
            self.client.delete_run(self.children.pop(trial.id))
            self._pareto.pop(trial.id, None)

    def _log(self, run: str, values: dict[str, float], event: Event, step: int) -> None:
        from mlflow.entities import Metric

        now = _milliseconds(event)
        self.client.log_batch(run, [Metric(key, value, now, step) for key, value in values.items()])

    def _create(self, event: Event, name: str, tags: dict[str, str]) -> str:
        common = {
            "robustfront.sweep": self.name,
            "robustfront.sweep_id": self.uid,
            "robustfront.version": self.version,
        }
        run = self.client.create_run(
            self.experiment, _milliseconds(event), {**common, **tags}, run_name=name
        )
        return str(run.info.run_id)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, artifacts))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find(self) -> None:
        """The runs that are there already, from before a crash or a resume."""
        query = f"tags.`robustfront.sweep_id` = '{self.uid}'"
        token = None
        while True:
            page = self.client.search_runs([self.experiment], query, page_token=token)
            for run in page:
                trial = run.data.tags.get("robustfront.trial", "")
                self.children[trial] = run.info.run_id
                self._pareto[trial] = run.data.tags.get("robustfront.pareto") == "true"
            token = page.token
            if not token:
                return


def _client(uri: str) -> Any:
    # A dead server costs seconds, not the four minutes of the defaults; the shipper tries again.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    from mlflow import MlflowClient

    return MlflowClient(uri, uri) if uri else None


def _milliseconds(event: Event) -> int:
    return int(event.time * 1000)
