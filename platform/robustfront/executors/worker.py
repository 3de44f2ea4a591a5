"""What runs where a trial runs."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

from robustfront.config import TrialConfig
from robustfront.data import RawData
from robustfront.errors import ConfigError, DataError, Diverged
from robustfront.executors.task import Message, Task
from robustfront.training.trial import measure_final, run_trial


def work(task: Task, raw: RawData | None) -> Iterator[Message]:
    """Do a task; an error that a retry would only repeat is a message, others propagate."""
    folder = Path(task.folder)
    config = TrialConfig.model_validate(task.config)
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        if task.kind == "train":
            for epoch, metrics in run_trial(config, folder, raw):
                yield {"epoch": epoch, "metrics": metrics}
        else:
            errors = measure_final(config, folder, raw).errors("test")
            yield {"measured": {name: error for name, error in errors.items() if "/" in name}}
    except Diverged as error:
        yield {"end": "diverged", "reason": str(error)}
    except (ConfigError, DataError) as error:
        yield {"end": "failed", "reason": str(error)}
    except Exception:
        # The driver may be on another machine: the story of a crash stays with its trial.
        (folder / "error.txt").write_text(traceback.format_exc())
        raise
    else:
        yield {"end": "finished", "reason": ""}


def crash_reason(task: Task) -> str:
    """The last line of the story of a crash."""
    story = Path(task.folder) / "error.txt"
    if not story.is_file():
        return "its worker process died"
    return f"{story.read_text().strip().splitlines()[-1]} (see {story})"
