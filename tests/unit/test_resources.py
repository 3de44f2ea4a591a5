"""How many trials run at once."""

import pytest

from robustfront.config import Job
from robustfront.executors.choose import concurrency, cores

BASE = {
    "name": "tiny",
    "data": {"type": "digits"},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
}


def at_once(cpus: float, gpus: float, most: int | str = "auto", **resources: float) -> int:
    job = Job.model_validate({**BASE, "resources": resources, "search": {"max_concurrent": most}})
    return concurrency(job, {"CPU": cpus, "GPU": gpus})


@pytest.mark.parametrize(("cpu", "expected"), [(1, 8), (2, 4), (3, 2), (8, 1), (9, 0)])
def test_trials_share_the_cores(cpu: int, expected: int) -> None:
    assert at_once(8, 0, cpu=cpu) == expected


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [(1, 2), (0.9, 2), (0.5, 4), (0.4, 4), (0.3, 6), (0.25, 8), (0.2, 10), (0.1, 20), (0.05, 40)],
)
def test_trials_share_a_gpu_but_never_span_two(gpu: float, expected: int) -> None:
    assert at_once(64, 2, gpu=gpu) == expected


def test_the_scarcer_resource_and_the_job_s_own_limit_hold() -> None:
    assert at_once(3, 2, gpu=0.5) == 3
    assert at_once(64, 2, gpu=0.5, most=3) == 3
    assert at_once(2, 0, most=5) == 2
    assert at_once(64, 0, gpu=0.5) == 0


def test_cores_are_counted_where_the_system_knows_no_affinity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert cores() == 6
