"""A worker that makes no progress ends, and says where it was."""

import subprocess
import sys
from pathlib import Path

from robustfront.executors.task import Task
from robustfront.executors.watchdog import silence

STUCK = """
import sys
import time

from robustfront.executors.task import Task
from robustfront.executors.watchdog import watched


def messages():
    yield {"epoch": 1, "metrics": {}}
    hang()


def hang():
    time.sleep(120)


for message in watched(messages(), Task("train", "t", {}, sys.argv[1]), float(sys.argv[2])):
    print(message["epoch"], flush=True)
"""


def test_a_hung_trial_ends_its_process_and_leaves_its_story(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", STUCK, str(tmp_path), "1.5"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stdout.split() == ["1"]
    story = tmp_path / "silence-0.txt"
    assert "in hang" in story.read_text()
    told = silence(Task("train", "t", {}, str(tmp_path)))
    assert str(story) in told and "no progress" in told
