"""The sweep's transactional record: events in, state out.

What is not in the ledger has not happened. The search, MLflow and the live table learn of an event
only after it is committed, and each can be rebuilt from the events.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import isfile  # False too for what can be no path
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from robustfront.cost import Cost
from robustfront.errors import ConfigError, DataError, StorageError

Kind = Literal[
    "created",  # the sweep; body: job, uid, version, executor, warm
    "extended",  # the sweep; step: how many times before; body: job
    "proposed",  # body: number, seed, values, latent, attrs, config
    "started",  # step: how many times before
    "reported",  # step: epochs done; body: metrics
    "crashed",  # step: starts so far; body: reason; the trial is tried again
    "paused",  # step: epochs done; waits for the search to want more of it
    "finished",
    "pruned",  # body: reason; the search wants no more of it
    "diverged",  # body: reason
    "failed",  # step: starts so far; body: reason
    "restarted",  # a new attempt from scratch; reports of the old one no longer count
    "measured",  # step: how many times before; body: metrics on the test split, suspect
]
Status = Literal["waiting", "running", "paused", "finished", "pruned", "failed", "diverged"]
STATUSES: tuple[Status, ...] = get_args(Status)
ENDS = ("finished", "pruned", "diverged", "failed")

FILE = "ledger.db"
ELSEWHERE = "ledger.json"  # in its place: the database that keeps the ledger

_METADATA = sa.MetaData()
_EVENTS = sa.Table(
    "events",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("trial", sa.String(64), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.UniqueConstraint("kind", "trial", "attempt", "step"),
    sqlite_autoincrement=True,
)
_OFFSETS = sa.Table(
    "offsets",
    _METADATA,
    sa.Column("consumer", sa.String(64), primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
)


@dataclass(frozen=True)
class Event:
    """One thing that happened; the same (kind, trial, attempt, step) happens once.

    Args:
        trial: its id; empty for events of the sweep itself.
        attempt: how many times the trial was restarted from scratch before.
        step: what counts within the kind, see `Kind`.
        seq: its place in the ledger, once committed.
        time: seconds since 1970, when it was committed.
    """

    kind: Kind
    trial: str = ""
    attempt: int = 0
    step: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    seq: int = 0
    time: float = 0.0


class Ledger:
    """Events in a transactional store: SQLite with full synchronisation, or PostgreSQL.

    A method raises StorageError where the disk is full or the database does not answer.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._insert: Any = postgresql.insert
        if engine.dialect.name == "sqlite":
            self._insert = sqlite.insert
            sa.event.listen(engine, "connect", _durable)

    @classmethod
    def create(cls, folder: Path, url: str | None = None, schema: str = "robustfront") -> Ledger:
        """A new ledger in a sweep's folder.

        Args:
            url: of a PostgreSQL database that keeps it; the folder then says where it is.
            schema: of that database, which is made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if url is None:
            ledger = cls(_sqlite(folder / FILE))
        else:
            ledger = cls(_postgresql(url, schema))
            (folder / ELSEWHERE).write_text(json.dumps({"url": url, "schema": schema}))
            with _storage(), ledger.engine.begin() as connection:
                connection.execute(sa.schema.CreateSchema(schema))
        with _storage():
            _METADATA.create_all(ledger.engine)
        return ledger

    @classmethod
    def in_memory(cls) -> Ledger:
        """A new ledger that ends with its process."""
        ledger = cls(sa.create_engine("sqlite://"))
        _METADATA.create_all(ledger.engine)
        return ledger

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of an existing sweep.

        Raises:
            DataError: there is none, or it is not readable.
            StorageError: its database does not answer.
        """
        if not is_sweep(folder):
            raise DataError(f"{folder}: no sweep here ({FILE} is missing)")
        path = folder / FILE
        if not path.is_file():
            path = folder / ELSEWHERE
        ledger = cls(_sqlite(path) if path.name == FILE else _elsewhere(path))
        try:
            if problem := ledger._problem():
                raise DataError(f"{path}: {problem}")
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _problem(self) -> str:
        """Why this is no ledger; empty if it is one."""
        try:
            with self.engine.connect() as connection:
                if self.engine.dialect.name == "sqlite":
                    found = connection.execute(sa.text("PRAGMA quick_check")).scalar()
                    if found != "ok":
                        return f"damaged: {found}"
                tables = sa.inspect(connection).get_table_names()
        except sa.exc.DatabaseError as error:
            if self.engine.dialect.name != "sqlite":
                raise _no_answer(error) from None
            return f"not a ledger ({error.orig})"
        return "" if "events" in tables else "not a ledger (it has no events)"

    def drop(self) -> None:
        """Take back what `create` made in a database; a file goes with its folder."""
        if self.engine.dialect.name == "postgresql":
            with _storage(), self.engine.begin() as connection:
                schema = connection.execute(sa.text("SELECT current_schema()")).scalar_one()
                connection.execute(sa.schema.DropSchema(schema, cascade=True))

    def append(self, events: Iterable[Event]) -> list[Event]:
        """Commit events in one transaction; those that happened already are left out.

        Returns:
            The new ones, with their places and times.
        """
        committed = []
        with _storage(), self.engine.begin() as connection:
            for event in events:
                row = {
                    "time": time.time(),
                    "kind": event.kind,
                    "trial": event.trial,
                    "attempt": event.attempt,
                    "step": event.step,
                    "body": json.dumps(event.body),
                }
                statement = self._insert(_EVENTS).values(row).on_conflict_do_nothing()
                seq = connection.execute(statement.returning(_EVENTS.c.seq)).scalar()
                if seq is not None:
                    committed.append(_event({**row, "seq": seq}))
        return committed

    def read(self, after: int = 0, at_most: int | None = None) -> list[Event]:
        """Events after a place, in order: all, or the first of them."""
        query = sa.select(_EVENTS).where(_EVENTS.c.seq > after).order_by(_EVENTS.c.seq)
        query = query.limit(at_most)
        with _storage(), self.engine.connect() as connection:
            return [_event(dict(row)) for row in connection.execute(query).mappings()]

    def acknowledged(self, consumer: str) -> int:
        """The place up to which a consumer has dealt with the events."""
        query = sa.select(_OFFSETS.c.seq).where(_OFFSETS.c.consumer == consumer)
        with _storage(), self.engine.connect() as connection:
            return int(connection.execute(query).scalar() or 0)

    def acknowledge(self, consumer: str, seq: int) -> None:
        """Remember that a consumer has dealt with all events up to `seq`."""
        mine = _OFFSETS.c.consumer == consumer
        with _storage(), self.engine.begin() as connection:
            if not connection.execute(_OFFSETS.update().where(mine).values(seq=seq)).rowcount:
                connection.execute(_OFFSETS.insert().values(consumer=consumer, seq=seq))

    def close(self) -> None:
        """Give back the connections."""
        self.engine.dispose()


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a ledger, or says where it is."""
    return any(isfile(folder / name) for name in (FILE, ELSEWHERE))


def check_database(url: str | None) -> None:
    """Whether a ledger can be made there.

    Raises:
        ConfigError: the database does not answer.
    """
    if url is None:
        return
    engine = _postgresql(url, "public")
    try:
        engine.connect().close()
    except sa.exc.DatabaseError as error:
        raise ConfigError("ledger.url", [f"got {url!r}: {_no_answer(error)}"]) from None
    finally:
        engine.dispose()


def _sqlite(path: Path) -> sa.Engine:
    # As an object: in a text, `?` and `%` in a folder's name would be read as syntax.
    return sa.create_engine(sa.URL.create("sqlite", database=str(path)))


def _postgresql(url: str, schema: str) -> sa.Engine:
    options = {
        "options": f"-csearch_path={schema}",
        "connect_timeout": 10,
        # A folder from elsewhere must not lead PGPASSWORD to a server that asks for it in clear.
        "require_auth": "!password,!md5",
    }
    where = sa.make_url(url).set(drivername="postgresql+psycopg")
    return sa.create_engine(where, connect_args=options, pool_pre_ping=True)


def _elsewhere(path: Path) -> sa.Engine:
    try:
        where = json.loads(path.read_text())
        return _postgresql(where["url"], where["schema"])
    except (ValueError, KeyError, TypeError, sa.exc.ArgumentError) as error:
        raise DataError(f"{path}: does not say where the ledger is ({error!r})") from None


@contextmanager
def _storage() -> Iterator[None]:
    """What the database cannot do as one kind of error."""
    try:
        yield
    except sa.exc.OperationalError as error:
        raise _no_answer(error) from None


def _no_answer(error: sa.exc.DatabaseError) -> StorageError:
    return StorageError(f"the ledger cannot be used: {' '.join(str(error.orig).split())}")


def _event(row: dict[str, Any]) -> Event:
    try:
        return Event(**{**row, "body": json.loads(row["body"])})
    except ValueError as error:
        raise DataError(f"the ledger is damaged: event {row['seq']} ({error})") from None


def _durable(connection: Any, _: Any) -> None:
    # Write-ahead log: readers never block the driver. FULL: a commit survives a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


@dataclass
class Trial:
    """What the ledger says of one trial."""

    id: str
    number: int
    seed: int
    values: dict[str, Any]
    latent: dict[str, Any]
    attrs: dict[str, Any]
    config: dict[str, Any]
    status: Status = "waiting"
    attempt: int = 0
    starts: int = 0
    reason: str = ""
    reports: dict[int, dict[str, float]] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    measured: int = 0  # how many times, on the test split
    suspect: list[str] = field(default_factory=list)  # why its robust error may not be believed
    cost: Cost = Cost()  # of all attempts

    @property
    def epoch(self) -> int:
        """Epochs reported."""
        return max(self.reports, default=0)

    @property
    def metrics(self) -> dict[str, float]:
        """The last report, and what was measured on the test split."""
        return {**self.reports.get(self.epoch, {}), **self.test}

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come unless somebody asks for it."""
        return self.status in ENDS


@dataclass
class SweepState:
    """The state of a sweep: a fold over its events."""

    job: dict[str, Any] = field(default_factory=dict)
    uid: str = ""
    executor: Literal["ray", "inline"] = "ray"
    trials: dict[str, Trial] = field(default_factory=dict)
    warm: list[dict[str, Any]] = field(default_factory=list)  # values and objectives from before
    extensions: int = 0
    cost: Cost = Cost()
    seq: int = 0

    @classmethod
    def of(cls, events: Sequence[Event]) -> SweepState:
        """The state after these events."""
        state = cls()
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Take one more event into account.

        Raises:
            DataError: no sweep writes such an event.
        """
        try:
            self._apply(event)
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"event {event.seq} ({event.kind} {event.trial}) is none of a sweep's"
            raise DataError(f"the ledger is damaged: {problem} ({error!r})") from None

    def _apply(self, event: Event) -> None:
        if event.kind not in get_args(Kind):
            raise KeyError(event.kind)
        self.seq = event.seq
        if event.kind in ("created", "extended"):
            self.job = event.body["job"]
            self.uid = event.body.get("uid", self.uid)
            self.executor = event.body.get("executor", self.executor)
            self.warm = event.body.get("warm", self.warm)
            self.extensions += event.kind == "extended"
        elif event.kind == "proposed":
            self.trials[event.trial] = Trial(id=event.trial, **event.body)
        else:
            trial = self.trials[event.trial]
            _apply_to_trial(trial, event)
            if event.kind == "reported":
                self.cost += Cost.of(event.body["metrics"], trial.config["resources"])

    def count(self, status: Status) -> int:
        """How many trials are in a state."""
        return sum(trial.status == status for trial in self.trials.values())


def _apply_to_trial(trial: Trial, event: Event) -> None:
    if event.kind == "started":
        trial.status, trial.starts, trial.reason = "running", event.step + 1, ""
    elif event.kind == "reported":
        trial.reports[event.step] = event.body["metrics"]
        trial.cost += Cost.of(event.body["metrics"], trial.config["resources"])
    elif event.kind in ("paused", "finished"):
        trial.status = event.kind
    elif event.kind == "crashed":
        trial.status, trial.reason = "waiting", event.body["reason"]
    elif event.kind in ("pruned", "diverged", "failed"):
        trial.status = event.kind
        trial.reason = event.body["reason"]
    elif event.kind == "restarted":
        trial.status, trial.attempt, trial.starts = "waiting", event.attempt, 0
        trial.reason = ""
        trial.reports.clear()
        trial.test.clear()
        trial.measured = 0
        trial.suspect = []
    elif event.kind == "measured":
        trial.test |= event.body["metrics"]
        trial.measured = event.step + 1
        trial.suspect = event.body.get("suspect", [])
