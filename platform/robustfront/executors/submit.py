"""Sweeps as jobs of a Ray cluster, through its dashboard."""

from __future__ import annotations

import json
import os
import platform
import shlex
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from robustfront.errors import ConfigError, RobustfrontError
from robustfront.search.plan import Plan

_ENVIRONMENT = "ROBUSTFRONT_SUBMITTER"  # tells a job which versions it was submitted with
_PAUSE = 1.0  # seconds between looks at a job that is followed
_PATIENCE = 60.0  # seconds that a head may take to start


def submit(plan: Plan, folder: Path, address: str, resume: bool) -> str:
    """Start a sweep, or go on with it, as a job of a cluster; the job's id.

    Args:
        folder: of the sweep, the same on every machine of the cluster.
        address: of the cluster's dashboard, `http://HEAD:8265`.

    Raises:
        ConfigError: no cluster answers there.
        RobustfrontError: it does not take the job.
    """
    client = _client(address)
    command = ["robustfront", *(["resume", str(folder)] if resume else ["run", "job.yaml"])]
    with tempfile.TemporaryDirectory() as upload:
        settings = {**plan.settings, "storage": str(folder)}
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        (Path(upload) / "job.yaml").write_text(text)
        environment = {_ENVIRONMENT: json.dumps(_versions()), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        request = {
            "entrypoint": shlex.join(command),
            "runtime_env": {"working_dir": upload, "env_vars": environment},
            "metadata": {"sweep": plan.job.name},
        }
        return _submitted(client, request)


def _submitted(client: Any, request: dict[str, Any]) -> str:
    """A head that has just started may need some seconds until it takes jobs."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return str(client.submit_job(**request))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise RobustfrontError(f"the cluster did not take the job: {error}") from None
            time.sleep(_PAUSE)


def follow(address: str, job: str) -> Iterator[str]:
    """What a job prints, piece by piece, until it ends; the last piece tells how if it failed.

    Raises:
        ConfigError: no cluster answers there.
    """
    client = _client(address)
    told = 0
    while True:
        ended = client.get_job_status(job).is_terminal()
        text = client.get_job_logs(job)
        yield text[told:]
        told = len(text)
        if ended:
            return
        time.sleep(_PAUSE)


def succeeded(address: str, job: str) -> bool:
    """Whether a job has ended well."""
    return str(_client(address).get_job_status(job)) == "SUCCEEDED"


def check_submitter() -> None:
    """In a submitted job: whether the cluster runs what the submitter has.

    Raises:
        ConfigError: with every version that differs.
    """
    theirs = json.loads(os.environ.get(_ENVIRONMENT, "{}"))
    ours = _versions()
    problems = [
        f"{name}: submitted with {version}, the cluster has {ours[name]}"
        for name, version in theirs.items()
        if ours.get(name) != version
    ]
    if problems:
        raise ConfigError("versions", problems)


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: metadata.version(name) for name in ("ray", "robustfront")}}


def _client(address: str) -> Any:
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        problem = f"got {address!r}, no Ray dashboard answers there ({error})"
        raise ConfigError("--address", [problem]) from None
