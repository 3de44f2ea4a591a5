"""What runs where a trial runs."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from robustfront.config import TrialConfig
from robustfront.data import RawData
from robustfront.errors import ConfigError, DataError, Diverged, SoundnessError, is_full
from robustfront.evaluation.metrics import TRANSFER
from robustfront.evaluation.records import Records
from robustfront.executors.task import Message, Task
from robustfront.problems import validated
from robustfront.training.determinism import reset_process
from robustfront.training.trial import (
    certified_errors,
    certify_final,
    certify_unseen,
    corruption_errors,
    measure_final,
    measure_unseen,
    records_of_test,
    run_trial,
    stronger_siblings,
    suspicions,
    transferred,
    unseen_errors,
)


def work(task: Task, raw: RawData | None) -> Iterator[Message]:
    """Do a task; whatever goes wrong is a message, the last one.

    `failed` is an error that a retry would only repeat, `crashed` one that it may mend, `full` a
    disk with no room, `unsound` a proof that an attack contradicts: nobody should go on.
    """
    folder = Path(task.folder)
    config, problems = validated(TrialConfig, task.config)
    if config is None:
        yield {"end": "failed", "reason": "; ".join(problems)}
        return
    raw = None if task.own_data else raw
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        if task.kind == "train":
            for epoch, metrics in run_trial(config, folder, raw):
                yield {"epoch": epoch, "metrics": metrics}
        else:
            reset_process(config.resources.cpu, config.seed)
            yield from (_measured if task.kind == "measure" else _certified)(task, config, raw)
    except Diverged as error:
        yield {"end": "diverged", "reason": str(error)}
    except SoundnessError as error:
        yield {"end": "unsound", "reason": f"{task.trial}: {error}"}
    except (ConfigError, DataError) as error:
        yield {"end": "failed", "reason": str(error)}
    except Exception as error:
        if is_full(error):
            yield {"end": "full", "reason": f"{folder}: the disk is full"}
            return
        story = traceback.format_exc()
        _try_to_write(folder / "error.txt", story)
        yield {"end": "crashed", "reason": f"{story.strip().splitlines()[-1]} (see {folder})"}
    else:
        yield {"end": "finished", "reason": ""}


def _measured(task: Task, config: TrialConfig, raw: RawData | None) -> Iterator[Message]:
    """Everything that is known of members of the front only."""
    folder = Path(task.folder)
    for share in measure_final(config, folder, raw):
        yield {"share": share}
    records = Records.load(records_of_test(folder, config.evaluate.final.attack))
    errors = records.errors("test")
    measured = {name: error for name, error in errors.items() if "/" in name}
    for share in certify_final(config, folder, raw):
        yield {"share": share}
    for share in measure_unseen(config, folder, raw):
        yield {"share": share}
    for share in certify_unseen(config, folder, raw):
        yield {"share": share}
    measured |= certified_errors(config, folder)
    measured |= unseen_errors(config, folder) | corruption_errors(config, folder)
    reasons = list(suspicions(config, folder, raw))
    for threat, by_source in transferred(config, folder, task.siblings, raw).items():
        measured |= {f"{TRANSFER}{threat}/{name}": e for name, e in by_source.items()}
        reasons += stronger_siblings(threat, by_source, folder.name)
    yield {"measured": measured, "suspect": reasons}


def _certified(task: Task, config: TrialConfig, raw: RawData | None) -> Iterator[Message]:
    """What is proved of a member of the front."""
    folder = Path(task.folder)
    for share in certify_final(config, folder, raw):
        yield {"share": share}
    for share in certify_unseen(config, folder, raw):
        yield {"share": share}
    yield {"measured": certified_errors(config, folder), "suspect": None}


def _try_to_write(path: Path, text: str) -> None:
    """The whole story of a crash, if there is room: a full disk may be what it tells of."""
    with suppress(OSError):
        path.write_text(text)
