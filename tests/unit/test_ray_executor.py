"""What Tune makes of the ways in which a worker can end, and what is asked of several nodes."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from robustfront.errors import ConfigError
from robustfront.executors.choose import _prepare_ray
from robustfront.executors.ray import _check_storage, _low_on_memory_is_lost


class Manager(RayActorManager):
    """Without a Ray."""

    def __init__(self) -> None:
        self._failed_actor_ids = set()

    def _cleanup_actor(self, tracked_actor: Any) -> None:
        """Nothing to do."""


def test_a_worker_that_ray_ends_for_want_of_memory_is_lost_like_any_other() -> None:
    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=7, _on_error=lambda _, error: told.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager, error = Manager(), OutOfMemoryError("the node is low on memory")
    with _low_on_memory_is_lost():
        manager._actor_task_failed(tracked_actor_task=task, exception=error)  # as Tune calls it
    assert isinstance(told[0], RayActorError) and "low on memory" in str(told[0])
    assert manager._failed_actor_ids == {7}
    with pytest.raises(RuntimeError, match="unexpected"):
        manager._actor_task_failed(task, error)  # what Tune does by itself


def test_storage_that_cannot_be_is_told_of_on_several_nodes_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = [{"Alive": True, "NodeID": str(number)} for number in range(2)]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made a folder: "):
        _check_storage(tmp_path / "file" / "sweep")


@pytest.mark.parametrize("imported", [True, False])
def test_only_a_process_that_has_no_ray_yet_gets_a_token_for_its_own(
    monkeypatch: pytest.MonkeyPatch, imported: bool
) -> None:
    monkeypatch.setattr("os.environ", {})
    if not imported:
        monkeypatch.delitem(sys.modules, "ray")
    _prepare_ray(private=True)
    assert ("RAY_AUTH_TOKEN" in os.environ) is not imported
