"""What a worker says of a task that it cannot even begin."""

from pathlib import Path

from robustfront.executors.task import Task
from robustfront.executors.worker import work


def test_a_configuration_that_is_not_valid_fails_its_trial_with_every_problem(
    tmp_path: Path,
) -> None:
    task = Task("train", "a", {"model": {"type": "linear"}, "seed": -1}, str(tmp_path))
    (message,) = work(task, None)
    assert message["end"] == "failed"
    for problem in ("data: is missing", "threat: is missing", "seed: "):
        assert problem in message["reason"]
