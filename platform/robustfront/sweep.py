"""A sweep from outside: start it, go on with it, look at it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from robustfront.attacks import ATTACKS
from robustfront.certifiers import CERTIFIERS, Cascade
from robustfront.config import Final, Job, TrialConfig, as_trained
from robustfront.errors import ConfigError, DataError, is_full, nearest
from robustfront.evaluation.records import Records
from robustfront.executors.choose import Executor, Kind, make_executor
from robustfront.executors.driver import Driver, Failed
from robustfront.executors.live import Display, Shares
from robustfront.executors.remeasure import Remeasurement, with_suite
from robustfront.ledger import Event, Ledger, SweepState, check_database, is_sweep
from robustfront.problems import making_room_for, overlaid
from robustfront.search.cells import worth_measuring
from robustfront.search.members import objectives_of
from robustfront.search.plan import Plan, check, load_plan
from robustfront.threats import Threat
from robustfront.tracking.ablation_view import AblationView, ablation_of
from robustfront.tracking.front import Front
from robustfront.tracking.shipper import Shipper
from robustfront.tracking.tables import front_of, records_table, trials_table
from robustfront.training.checkpoint import check_init
from robustfront.training.trial import export_final
from robustfront.training.trial import import_verdicts as record_verdicts

# What may change when a sweep goes on; anything else would make its trials incomparable.
_RESUMABLE = (
    "search.trials",
    "search.max_concurrent",
    "search.budget.epochs",
    "search.budget.cpu_hours",
    "search.budget.gpu_hours",
    "resources.cpu",
    "resources.gpu",
    "retries",
    "infrastructure_retries",
    "progress_timeout",
)


class Sweep:
    """A sweep on disk, as it was when it was opened.

    Args:
        folder: with its ledger, its job and its trials.
        pending: events that MLflow has not got yet, because it did not answer.
        problems: what went wrong outside of the trials.
    """

    def __init__(
        self, folder: Path, state: SweepState, pending: int = 0, problems: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.name, self.state = folder, folder.name, state
        self.pending, self.problems = pending, problems
        self.job: Job = check(state.job, str(folder / "job.yaml")).job

    @classmethod
    def open(cls, sweep: str | Path) -> Sweep:
        """A sweep by its name under `sweeps/`, or by its folder.

        Raises:
            DataError: there is none.
        """
        folder = find(sweep)
        ledger = Ledger.open(folder)
        state = SweepState.of(ledger.read())
        ledger.close()
        return cls(folder, state)

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial: state, searched parameters, last metrics."""
        return trials_table(self.state)

    @property
    def records(self) -> pd.DataFrame:
        """One row for each finished trial and validation example: label and predictions."""
        tables = []
        for trial in self.state.trials.values():
            if trial.status == "finished":
                records = Records.load(self.folder / "trials" / trial.id / "records.npz")
                tables.append(records_table(records).assign(trial=trial.id))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def front(self, split: str = "val", x: str | None = None, y: str | None = None) -> pd.DataFrame:
        """The trials on the front, by growing x."""
        return self.front_view(split, x, y).members

    def effects(self, split: str | None = None) -> AblationView:
        """What the factors of an ablation do to each error.

        Args:
            split: val or test; None: test where all that it is for is measured.

        Raises:
            ConfigError: the sweep is no ablation, or there is no such split.
        """
        if self.job.ablation is None:
            raise ConfigError(self.name, ["is no ablation: its job compares no factors"])
        if split not in (None, "val", "test"):
            raise ConfigError("split", [f"got {split!r}{nearest(split, ['val', 'test'])}"])
        return ablation_of(self.folder, self.job, self.state, split)

    def front_view(self, split: str = "val", x: str | None = None, y: str | None = None) -> Front:
        """The front with its pictures.

        Raises:
            ConfigError: a split or a metric that does not exist.
        """
        if split not in ("val", "test"):
            raise ConfigError("split", [f"got {split!r}{nearest(split, ['val', 'test'])}"])
        known = sorted({name for t in self.state.trials.values() for name in t.metrics})
        wrong = [name for name in (x, y) if name is not None and name not in known]
        if wrong:
            raise ConfigError("metric", [f"got {name!r}{nearest(name, known)}" for name in wrong])
        return front_of(self.folder, self.job, self.state, split, (x, y))


def run(
    job: str | Path,
    set: Mapping[str, Any] | None = None,  # the command line's word
    executor: Kind = "ray",
    address: str | None = None,
) -> Sweep:
    """Run a job file to its end.

    Args:
        set: values that replace those of the file, by dotted keys.
        executor: `ray`, or `inline` for one trial after the other in this process.
        address: of a Ray cluster; None starts a private one on this machine.

    Raises:
        ConfigError: the job, its search space or its resources are wrong, or its name is taken.
        DataError: the data cannot be read.
    """
    plan = load_plan(Path(job), set)
    folder = folder_of(plan.job)
    if os.path.exists(folder):  # False too for what can be no path
        hint = (
            f"`robustfront resume {_shown(folder)}` goes on with it, `--set name=...` starts anew"
        )
        raise ConfigError(str(job), [f"name: the sweep {folder} exists; {hint}"])
    warm = warm_start(plan)
    check_database(plan.job.ledger.url)
    Shipper.warm_up()
    hands = make_executor(executor, plan.job, folder, address)
    try:
        _create(folder, plan, executor, warm)
        with _only_driver(folder):
            return _drive(folder, plan, hands, "resume")
    finally:
        hands.close()


def resume(
    sweep: str | Path,
    failed: Failed = "resume",
    set: Mapping[str, Any] | None = None,  # the command line's word
    executor: Kind | None = None,
    address: str | None = None,
) -> Sweep:
    """Go on with a sweep where it stopped; `set={"search.trials": 48}` extends it.

    Args:
        failed: what to do with failed trials: go on from their last epoch, begin again, or skip.
        executor: None takes the one the sweep was started with.

    Raises:
        ConfigError: a setting that cannot change within a sweep, or a sweep that is running.
        DataError: no such sweep, or data that cannot be read.
    """
    folder = find(sweep)
    with _only_driver(folder), closing(Ledger.open(folder)) as ledger:
        state = SweepState.of(ledger.read())
        plan = _extended(state, set or {}, folder)
        Shipper.warm_up()
        hands = make_executor(executor or state.executor, plan.job, folder, address)
        try:
            if plan.settings != state.job:
                body = {"job": plan.settings}
                ledger.append([Event("extended", step=state.extensions, body=body)])
            return _drive(folder, plan, hands, failed)
        finally:
            hands.close()


def remeasure(
    sweep: str | Path,
    trial: str | None = None,
    suite: str | None = None,
    executor: Kind | None = None,
    address: str | None = None,
) -> tuple[Sweep, str, list[str]]:
    """Measure the members of a sweep's front, or one trial, on the test split once more.

    Args:
        trial: the id of a finished trial, or how it begins.
        suite: the name of an attack, with its defaults; None: the job's `evaluate.final`.
        executor: None takes the one the sweep was started with.

    Returns:
        The sweep afterwards, the name of the attack, and the ids of the trials.

    Raises:
        ConfigError: no such suite or trial, a suite that does not fit, or a sweep that is running.
        DataError: no such sweep, or data that cannot be read.
    """

    def settings(job: Job) -> tuple[Final, str]:
        final = _final(job, suite)
        return final, final.attack.name

    return _again(sweep, "measure", trial, settings, executor, address)


def certify(
    sweep: str | Path,
    trial: str | None = None,
    certifier: str | None = None,
    executor: Kind | None = None,
    address: str | None = None,
) -> tuple[Sweep, str, list[str]]:
    """Certify the members of a sweep's front, or one trial, on the test split.

    Args:
        trial: the id of a finished trial, or how it begins.
        certifier: its name, with its defaults; None: the job's, or else `cascade`.
        executor: None takes the one the sweep was started with.

    Returns:
        The sweep afterwards, the name of the certifier, and the ids of the trials.

    Raises:
        ConfigError: no such certifier or trial, one that does not fit, or a sweep that is running.
        DataError: no such sweep, or data that cannot be read.
    """

    def settings(job: Job) -> tuple[Final, str]:
        final = _with_certifier(job, certifier)
        shown = final.certify or job.evaluate.certify
        assert shown is not None
        return final, as_trained(shown, job.smoothing).name

    return _again(sweep, "certify", trial, settings, executor, address)


def export(
    sweep: str | Path, trial: str | None, out: Path, timeout: float = 100.0
) -> tuple[int, list[str]]:
    """Write what other verifiers need to decide what nothing here has decided of a trial.

    Args:
        trial: the id of a finished trial, or how it begins; None: the only member of the front.
        out: a folder that does not exist yet.
        timeout: seconds for each example.

    Returns:
        How many examples that are, for all threats that are boxes, and the names of the others.

    Raises:
        ConfigError: no such trial, no threat that is a box, or a folder that exists or cannot be
            made.
        DataError: no such sweep, or data that cannot be read.
    """
    opened = Sweep.open(sweep)
    chosen = _only(opened.job, opened.state, trial)
    config = TrialConfig.model_validate(opened.state.trials[chosen].config)
    try:
        return export_final(config, opened.folder / "trials" / chosen, out, timeout)
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError("--out", [f"{out} cannot be written: {error.strerror}"]) from None


def import_verdicts(
    sweep: str | Path, trial: str | None, verdicts: Path, verifier: str, threat: str | None = None
) -> tuple[Sweep, str, dict[str, float]]:
    """Add what another verifier has decided of a trial's test examples, in ledger and MLflow.

    Args:
        trial: as in `export`.
        verdicts: its results, see `robustfront.evaluation.vnnlib.read_verdicts`.
        verifier: what metrics call it.
        threat: the name of the threat, where the job has several.

    Returns:
        The sweep afterwards, the trial's id, and what is new.

    Raises:
        ConfigError: no such trial or threat, or a sweep that is running.
        DataError: verdicts that cannot be read, or that contradict what is known.
    """
    folder = find(sweep)
    if not re.fullmatch(r"[A-Za-z0-9_.]+", verifier):
        raise ConfigError("--verifier", [f"letters, digits, _ and . make a name, got {verifier!r}"])
    with _only_driver(folder), closing(Ledger.open(folder)) as ledger:
        state = SweepState.of(ledger.read())
        job = check(state.job, str(folder / "job.yaml")).job
        chosen = _only(job, state, trial)
        known = state.trials[chosen]
        config = TrialConfig.model_validate(known.config)
        ball = _threat_of(config, threat)
        metrics = record_verdicts(config, folder / "trials" / chosen, ball, verdicts, verifier)
        body = {"metrics": metrics, "suspect": known.suspect}
        event = Event("measured", chosen, known.attempt, known.measured, body)
        for committed in ledger.append([event]):
            state.apply(committed)
        shipper = Shipper(folder, job)
        shipper.start()
        pending = shipper.close(90.0)
    return Sweep(folder, state, pending), chosen, metrics


def _threat_of(config: TrialConfig, name: str | None) -> Threat:
    """A threat of a trial by its name; the only one without."""
    named = {threat.name: threat for threat in config.threat}
    if name is None and len(named) == 1:
        return config.threat[0]
    if name not in named:
        found = f"got {name!r}" if name else "is missing"
        raise ConfigError("--threat", [f"{found}{nearest(name, [*named])}"])
    return named[name]


def _only(job: Job, state: SweepState, trial: str | None) -> str:
    """One finished trial."""
    chosen = _chosen(job, state, trial)
    if len(chosen) != 1:
        found = f"{len(chosen)} trials are members of the front: say which one"
        raise ConfigError("--trial", [f"{found} ({', '.join(chosen)})"])
    return chosen[0]


def _again(
    sweep: str | Path,
    kind: Literal["measure", "certify"],
    trial: str | None,
    settings: Callable[[Job], tuple[Final, str]],
    executor: Kind | None,
    address: str | None,
) -> tuple[Sweep, str, list[str]]:
    """Do something with members of the front; `settings` says with what, and its name."""
    folder = find(sweep)
    with _only_driver(folder), closing(Ledger.open(folder)) as ledger:
        state = SweepState.of(ledger.read())
        job = check(state.job, str(folder / "job.yaml")).job
        final, name = settings(job)
        trials = _chosen(job, state, trial)
        configs = with_suite(state, job, trials, final)
        hands = make_executor(executor or state.executor, job, folder, address)
        shipper = Shipper(folder, job)
        shipper.start()
        wait = 5.0
        try:
            with Shares(trials, name) as shares:
                work = Remeasurement(folder, ledger, job, configs, kind, shares.tell)
                hands.run(work)
            wait = 90.0
        finally:
            hands.close()
            pending = shipper.close(wait)
    after = Sweep(folder, work.state, pending, tuple(work.problems))
    return after, name, trials


def _with_certifier(job: Job, name: str | None) -> Final:
    """The job's final suite with the certifier of that name."""
    known, final = job.evaluate.final.certify or job.evaluate.certify, job.evaluate.final
    if name is None and known is not None:
        return final  # in an ablation cells may have certifiers of their own
    if name is None:
        return final.model_copy(update={"certify": Cascade()})
    if name not in CERTIFIERS.classes:
        raise ConfigError("--certifier", [f"got {name!r}{nearest(name, [*CERTIFIERS.classes])}"])
    return final.model_copy(update={"certify": CERTIFIERS.classes[name]()})


def _final(job: Job, suite: str | None) -> Final:
    """The suite of that name on as many examples as the job's own."""
    if suite is None:
        return job.evaluate.final
    if suite not in ATTACKS.classes:
        raise ConfigError("--suite", [f"got {suite!r}{nearest(suite, [*ATTACKS.classes])}"])
    return job.evaluate.final.model_copy(update={"attack": ATTACKS.classes[suite]()})


def _chosen(job: Job, state: SweepState, trial: str | None) -> list[str]:
    """The members of the front (of an ablation: the best of each cell), or one trial."""
    if trial is None:
        return [member.id for member in worth_measuring(state.trials.values(), job)]
    finished = [t.id for t in state.trials.values() if t.status == "finished"]
    found = [name for name in finished if name.startswith(trial)]
    if len(found) != 1:
        problem = "more than one finished trial begins" if found else "no finished trial begins"
        raise ConfigError("--trial", [f"got {trial!r}: {problem} so{nearest(trial, finished)}"])
    return found


def warm_start(plan: Plan) -> list[dict[str, Any]]:
    """Values and objectives that earlier sweeps found in a plan's search space.

    Raises:
        ConfigError: no such sweep, or it measured something else, or nothing in this space; no
            weights where `init_from` says, or those of another model.
    """
    check_init(plan.job)
    found, problems = [], []
    for name in plan.job.search.warm_start:
        try:
            known, problem = _fitting(Sweep.open(name), plan), ""
        except DataError as error:
            known, problem = [], str(error)
        except ConfigError as error:
            known, problem = [], "; ".join(error.problems)
        if not known:
            problems.append(f"search.warm_start: {problem or f'{name}: no finished trial fits'}")
        found += known
    if problems:
        raise ConfigError(plan.job.name, problems)
    return found


def _fitting(sweep: Sweep, plan: Plan) -> list[dict[str, Any]]:
    """The finished trials of a sweep that the search space of another one could have proposed."""
    for key in ("objectives", "threat"):
        theirs, ours = getattr(sweep.job, key), getattr(plan.job, key)
        if theirs != ours:
            raise ConfigError(key, [f"{sweep.name}: has other {key}"])
    found = []
    for trial in sweep.state.trials.values():
        if trial.status in ("finished", "diverged") and trial.seed == sweep.job.search.seeds[0]:
            with suppress(ValueError):
                plan.space.latent(trial.values)
                objectives = objectives_of(trial, sweep.job)
                found.append({"values": trial.values, "objectives": objectives})
    return found


def folder_of(job: Job) -> Path:
    """Where a job's sweep lives."""
    return Path(job.storage) if job.storage else Path("sweeps").absolute() / job.name


def find(sweep: str | Path) -> Path:
    """The folder of a sweep, from its name under `sweeps/` or its path.

    Raises:
        DataError: there is none.
    """
    candidates = [Path(sweep).absolute(), Path("sweeps").absolute() / sweep]
    for folder in candidates:
        if is_sweep(folder):
            return folder
    known = [folder.name for folder in sweep_folders()]
    raise DataError(f"no sweep {str(sweep)!r} here{nearest(sweep, known) if known else ''}")


def sweep_folders() -> list[Path]:
    """All sweeps under `sweeps/`; hidden folders are drafts that a crash has left."""
    return sorted(folder for folder in Path("sweeps").absolute().glob("[!.]*") if is_sweep(folder))


def _shown(folder: Path) -> str:
    return folder.name if folder.parent == Path("sweeps").absolute() else str(folder)


def _extended(state: SweepState, changes: Mapping[str, Any], folder: Path) -> Plan:
    wrong = [key for key in changes if key not in _RESUMABLE]
    if wrong:
        problems = [f"{key}: cannot change in a sweep{nearest(key, _RESUMABLE)}" for key in wrong]
        raise ConfigError("--set", problems)
    plan = check(overlaid(state.job, changes), "--set")
    fewer = plan.job.search.trials < 1 + max((t.number for t in state.trials.values()), default=-1)
    if fewer:
        raise ConfigError("--set", [f"search.trials: {folder.name} has more trials already"])
    return plan


def _create(folder: Path, plan: Plan, executor: Kind, warm: list[dict[str, Any]]) -> None:
    """The sweep's folder with its first event: all of it, or nothing."""
    with ExitStack() as undo:
        draft = _draft(folder)
        undo.callback(shutil.rmtree, draft, ignore_errors=True)
        draft.chmod(0o755)
        uid = uuid.uuid4().hex
        ledger = undo.enter_context(
            closing(Ledger.create(draft, plan.job.ledger.url, f"robustfront_{uid}"))
        )
        undo.callback(ledger.drop)
        body = {
            "job": plan.settings,
            "uid": uid,
            "version": _version(),
            "executor": executor,
            "warm": warm,
        }
        ledger.append([Event("created", body=body)])
        ledger.close()
        text = yaml.safe_dump(plan.settings, sort_keys=False, allow_unicode=True)
        (draft / "job.yaml").write_text(text)
        try:
            os.rename(draft, folder)
        except OSError:
            raise ConfigError("name", [f"{folder} was made by somebody else just now"]) from None
        undo.pop_all()


def _draft(folder: Path) -> Path:
    """A hidden folder beside the one that is to be."""
    with making_room_for(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))


def _version() -> str:
    """The package's version, and the commit if it runs from a checkout."""
    version = metadata.version("robustfront")
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return version
    return f"{version}+{done.stdout.strip()}" if done.returncode == 0 else version


def _drive(folder: Path, plan: Plan, hands: Executor, failed: Failed) -> Sweep:
    ledger = Ledger.open(folder)
    shipper = Shipper(folder, plan.job)
    shipper.start()
    wait = 5.0
    try:
        driver = Driver(folder, ledger, plan, failed)
        with Display(driver, hands.concurrency, lambda: shipper.problem):
            hands.run(driver)
        wait = 90.0
    finally:
        pending = shipper.close(wait)
        ledger.close()
    problems = list(driver.problems)
    if not driver.complete:
        problems.append(f"stopped before its end; `robustfront resume {_shown(folder)}` goes on")
    if pending:
        problems.append(
            f"MLflow at {shipper.uri} has not got {pending} events ({shipper.problem}); "
            f"`robustfront resume {_shown(folder)}` sends them"
        )
    return Sweep(folder, driver.state, pending, tuple(problems))


@contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    """Two drivers would hand out the same trials; the lock ends with its process."""
    with (folder / "driver.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(str(folder), ["this sweep is running in another process"]) from None
        yield
