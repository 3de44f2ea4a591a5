"""The ledger: commits, what they survive, and the state that events add up to."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from robustfront.errors import DataError
from robustfront.ledger import Event, Ledger, SweepState

CREATED = Event(
    "created", body={"job": {"name": "a"}, "uid": "u", "version": "1", "executor": "inline"}
)


@pytest.fixture
def ledger(tmp_path: Path):
    made = Ledger.create(tmp_path / "sweep")
    yield made
    made.close()


def proposed(trial: str, number: int = 0, seed: int = 0) -> Event:
    body: dict[str, Any] = {"number": number, "seed": seed, "values": {"method.beta": 2.0}}
    return Event(
        "proposed",
        trial,
        body={**body, "latent": {}, "attrs": {}, "config": {"resources": {"cpu": 1}}},
    )


def reported(trial: str, epoch: int, error: float = 0.5, attempt: int = 0) -> Event:
    return Event("reported", trial, attempt, epoch, {"metrics": {"robust_error": error}})


def keys(events: list[Event]) -> list[tuple[str, str, int, int]]:
    return [(e.kind, e.trial, e.attempt, e.step) for e in events]


# -- committing


def test_events_come_back_in_order_with_growing_places_and_times(ledger: Ledger) -> None:
    before = time.time()
    committed = ledger.append([CREATED, proposed("a"), reported("a", 1), reported("a", 2)])
    assert ledger.read() == committed
    assert [event.seq for event in committed] == [1, 2, 3, 4]
    assert all(before <= event.time <= time.time() for event in committed)
    assert committed[1].body == proposed("a").body
    assert ledger.read(after=2) == committed[2:]
    assert ledger.read(after=4) == []


@pytest.mark.parametrize(
    "other",
    [
        Event("started", "a", 1, 2),
        reported("b", 2, attempt=1),
        reported("a", 2, attempt=0),
        reported("a", 3, attempt=1),
    ],
)
def test_an_event_is_known_by_kind_trial_attempt_and_step(ledger: Ledger, other: Event) -> None:
    first = ledger.append([reported("a", 2, 0.25, attempt=1)])
    assert ledger.append([reported("a", 2, 0.75, attempt=1)]) == []
    assert ledger.read() == first
    assert len(ledger.append([other])) == 1


def test_what_happened_already_is_left_out_of_a_batch_and_the_rest_committed(
    ledger: Ledger,
) -> None:
    ledger.append([reported("a", 1)])
    new = ledger.append([reported("a", 1), reported("a", 2), reported("a", 2)])
    assert keys(new) == [("reported", "a", 0, 2)]
    assert keys(ledger.read()) == [("reported", "a", 0, 1), ("reported", "a", 0, 2)]


def test_an_exception_inside_a_batch_leaves_nothing_of_it(ledger: Ledger) -> None:
    def breaking():
        yield reported("a", 1)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        ledger.append(breaking())
    with pytest.raises(TypeError):
        ledger.append([reported("a", 2), Event("finished", "a", body={"no": {1}})])
    assert ledger.read() == []
    assert ledger.append([reported("a", 1)])[0].seq >= 1


def test_places_are_never_given_twice_even_after_a_rollback(ledger: Ledger) -> None:
    first = ledger.append([reported("a", 1)])[0].seq
    with pytest.raises(TypeError):
        ledger.append([reported("a", 2), Event("finished", "a", body={"no": {1}})])
    assert ledger.append([reported("a", 3)])[0].seq > first


def test_write_ahead_log_and_full_synchronisation_are_in_force(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        pragmas = {
            name: connection.execute(sa.text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30000}


def test_another_thread_reads_whole_transactions_while_they_are_written(
    ledger: Ledger, tmp_path: Path
) -> None:
    reader = Ledger.open(tmp_path / "sweep")
    written = threading.Event()
    sizes: list[int] = []

    def follow() -> None:
        while not written.is_set():
            sizes.append(len(reader.read()))
        sizes.append(len(reader.read()))

    thread = threading.Thread(target=follow)
    thread.start()
    for epoch in range(40):
        ledger.append([reported(name, epoch) for name in "abc"])
    written.set()
    thread.join()
    reader.close()
    assert sizes[-1] == 120
    assert sizes == sorted(sizes)
    assert all(size % 3 == 0 for size in sizes), "a part of a transaction was seen"
    assert len(set(sizes)) > 2, "nothing was read while it was written"


def test_two_writers_wait_for_each_other(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger.open(tmp_path / "sweep")

    def acknowledge() -> None:
        for seq in range(1, 41):
            other.acknowledge("mlflow", seq)

    thread = threading.Thread(target=acknowledge)
    thread.start()
    for epoch in range(40):
        ledger.append([reported("a", epoch)])
    thread.join()
    assert len(ledger.read()) == 40
    assert ledger.acknowledged("mlflow") == 40
    other.close()


def test_each_consumer_has_its_own_offset_that_lasts(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.acknowledged("mlflow") == 0
    ledger.acknowledge("mlflow", 3)
    ledger.acknowledge("other", 1)
    ledger.acknowledge("mlflow", 7)
    again = Ledger.open(tmp_path / "sweep")
    assert (again.acknowledged("mlflow"), again.acknowledged("other")) == (7, 1)
    again.close()


# -- opening


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no sweep here"),
        (b"", "not a ledger"),
        (b"this is a text file, and a rather long one\n" * 100, "not a ledger"),
        (b"SQLite format 3\x00" + b"\x00" * 500, "not a ledger"),
    ],
    ids=["missing", "empty", "text", "header only"],
)
def test_what_is_no_ledger_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "ledger.db").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Ledger.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_another_program_s_database_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "ledger.db")
    database.execute("CREATE TABLE runs (id INTEGER)")
    database.commit()
    database.close()
    with pytest.raises(DataError, match="no events"):
        Ledger.open(tmp_path)


def filled(folder: Path) -> bytes:
    """The bytes of a ledger of many pages."""
    ledger = Ledger.create(folder)
    ledger.append([CREATED, *(reported("a", epoch) for epoch in range(2000))])
    ledger.close()
    return (folder / "ledger.db").read_bytes()


def damaged(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[: len(content) // 2]
    middle = len(content) // 2
    return content[:4096] + b"\xff" * (middle - 4096) + content[middle:]


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_damaged_ledger_is_reported_not_read_in_part(tmp_path: Path, how: str) -> None:
    (tmp_path / "ledger.db").write_bytes(damaged(filled(tmp_path), how))
    with pytest.raises(DataError, match="ledger.db"):
        opened = Ledger.open(tmp_path)
        try:
            opened.read()
        finally:
            opened.close()


@pytest.mark.parametrize("name", ["with space", "a?b=c", "100%41", "ü#1", "a;b"])
def test_a_folder_s_name_is_never_read_as_part_of_a_url(tmp_path: Path, name: str) -> None:
    ledger = Ledger.create(tmp_path / name)
    ledger.append([CREATED])
    ledger.close()
    assert (tmp_path / name / "ledger.db").is_file()
    again = Ledger.open(tmp_path / name)
    assert keys(again.read()) == keys([CREATED])
    again.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]


# -- the state


def state_of(*events: Event) -> SweepState:
    return SweepState.of([Event(**{**vars(e), "seq": at}) for at, e in enumerate(events, 1)])


def test_created_and_extended_set_the_job_and_keep_the_rest() -> None:
    state = state_of(CREATED)
    assert (state.job, state.uid, state.executor) == ({"name": "a"}, "u", "inline")
    assert (state.extensions, state.seq, state.trials) == (0, 1, {})
    state = state_of(CREATED, Event("extended", step=0, body={"job": {"name": "a", "more": 1}}))
    assert (state.job, state.uid, state.executor) == ({"name": "a", "more": 1}, "u", "inline")
    assert (state.extensions, state.seq) == (1, 2)


def test_a_proposed_trial_waits_a_started_one_runs() -> None:
    state = state_of(CREATED, proposed("a", 3, 7))
    trial = state.trials["a"]
    assert (trial.number, trial.seed, trial.values) == (3, 7, {"method.beta": 2.0})
    assert (trial.status, trial.starts, trial.epoch, trial.metrics) == ("waiting", 0, 0, {})
    assert not trial.ended
    trial = state_of(CREATED, proposed("a"), Event("started", "a")).trials["a"]
    assert (trial.status, trial.starts, trial.ended) == ("running", 1, False)


@pytest.mark.parametrize("kind", ["finished", "diverged", "failed"])
def test_the_ends_of_a_trial(kind: Any) -> None:
    end = Event(kind, "a", step=1, body={} if kind == "finished" else {"reason": "why"})
    state = state_of(CREATED, proposed("a"), Event("started", "a"), reported("a", 1, 0.3), end)
    trial = state.trials["a"]
    assert trial.status == kind
    assert trial.ended
    assert trial.reason == ("" if kind == "finished" else "why")
    assert trial.metrics == {"robust_error": 0.3}
    assert state.count(kind) == 1
    assert state.count("running") == 0


def test_the_last_report_counts_and_the_final_suite_stands_beside_it() -> None:
    events = [CREATED, proposed("a"), Event("started", "a"), reported("a", 2, 0.2)]
    trial = state_of(*events, reported("a", 1, 0.9)).trials["a"]
    assert (trial.epoch, trial.metrics) == (2, {"robust_error": 0.2})
    measured = Event("measured", "a", body={"metrics": {"test/robust_error": 0.4}})
    trial = state_of(*events, Event("finished", "a"), measured).trials["a"]
    assert trial.metrics == {"robust_error": 0.2, "test/robust_error": 0.4}
    assert trial.status == "finished"


def test_a_failed_trial_that_goes_on_keeps_its_reports_and_loses_its_reason() -> None:
    events = [CREATED, proposed("a"), Event("started", "a"), reported("a", 1)]
    events += [Event("failed", "a", step=1, body={"reason": "memory"}), Event("started", "a", 0, 1)]
    trial = state_of(*events).trials["a"]
    assert (trial.status, trial.starts, trial.attempt) == ("running", 2, 0)
    assert (trial.reason, trial.epoch) == ("", 1)


def test_a_restarted_trial_begins_again_from_nothing() -> None:
    events = [CREATED, proposed("a"), Event("started", "a"), reported("a", 1, 0.9)]
    events += [Event("failed", "a", step=1, body={"reason": "memory"}), Event("restarted", "a", 1)]
    trial = state_of(*events).trials["a"]
    assert (trial.status, trial.attempt, trial.starts, trial.epoch) == ("waiting", 1, 0, 0)
    assert trial.metrics == {}
    assert trial.reason == "", "a trial that waits has not failed"
    again = [Event("started", "a", 1), reported("a", 1, 0.1, attempt=1), Event("finished", "a", 1)]
    trial = state_of(*events, *again).trials["a"]
    assert (trial.status, trial.metrics) == ("finished", {"robust_error": 0.1})


# -- a writer that is killed

CHILD = """
import sys
from pathlib import Path
from robustfront.ledger import Event, Ledger
ledger = Ledger.open(Path(sys.argv[1]))
for step in range(10**6):
    run = f"{sys.argv[2]}-{step}"
    pair = [Event("reported", run, 0, part, {"metrics": {"error": 0.5}}) for part in (1, 2)]
    seqs = [event.seq for event in ledger.append(pair)]
    print(run, *seqs, flush=True)
"""


def test_what_a_killed_writer_saw_committed_is_there_and_whole(tmp_path: Path) -> None:
    Ledger.create(tmp_path).close()
    moments = random.Random(20)
    acknowledged: dict[str, list[int]] = {}
    for attempt in range(4):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline()]  # the first append: imports are over
            killer = threading.Timer(
                moments.uniform(0.02, 0.3), os.kill, (child.pid, signal.SIGKILL)
            )
            killer.start()
            lines += child.stdout.readlines()
            killer.join()
        assert child.returncode == -signal.SIGKILL
        whole = [line.split() for line in lines if line.endswith("\n")]
        acknowledged |= {run: [int(seq) for seq in seqs] for run, *seqs in whole}
    assert len(acknowledged) > 10
    ledger = Ledger.open(tmp_path)
    found: dict[str, list[int]] = {}
    for event in ledger.read():
        found.setdefault(event.trial, []).append(event.seq)
    with ledger.engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
    ledger.close()
    assert acknowledged.items() <= found.items()
    assert all(len(seqs) == 2 for seqs in found.values()), "half a transaction"
    assert len(found) - len(acknowledged) <= 4, "at most the last one of each writer was not told"
