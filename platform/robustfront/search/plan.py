"""A job file as a checked plan: the job, its search space, and what it will cost."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustfront.ablation import Ablation
from robustfront.config import Job, TrialConfig, default_scheduler, read_settings
from robustfront.errors import ConfigError, nearest
from robustfront.problems import overlaid, read_mapping, validated
from robustfront.search.space import Space

# The rest is fixed for a whole job: changing it would make the points of a front incomparable.
SEARCHABLE = ("model", "method", "update", "smoothing", "train", "train_threat")
SEARCHABLE_DATA = ("data.augment", "data.train_size")
# Cells of a design are compared by what they measure, not put on one front.
_FACTORS = (*SEARCHABLE, "data", "threat", "evaluate.certify")


@dataclass(frozen=True)
class Plan:
    """A job that can be run.

    Args:
        settings: what the file and the command line said, paths absolute, the space inline.
    """

    job: Job
    space: Space
    settings: dict[str, Any]


def load_plan(path: Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Read and check a job file and its search space.

    Raises:
        ConfigError: with every problem of both files.
    """
    return new_plan(read_settings(path, overrides or {}), str(path))


def new_plan(settings: dict[str, Any], where: str) -> Plan:
    """Check the settings of a sweep that is to begin.

    A scheduler they leave out is written into them: a sweep keeps to it when it is resumed, also by
    a version with another default.

    Raises:
        ConfigError: with every problem.
    """
    plan = check(settings, where)
    if "scheduler" in plan.job.search.model_fields_set:
        return plan
    scheduler = default_scheduler(plan.job)
    chosen = None if scheduler is None else scheduler.model_dump(mode="json")
    search = {**plan.settings.get("search", {}), "scheduler": chosen}
    return check({**plan.settings, "search": search}, where)


def check(settings: dict[str, Any], where: str) -> Plan:
    """Check settings that say everything, such as those of a sweep that has begun.

    Raises:
        ConfigError: with every problem.
    """
    space, problems = _space(settings)
    raw = {key: value for key, value in settings.items() if key != "search_space"}
    job, found = validated(Job, raw)
    problems = found + problems
    if job is not None and space is not None and job.ablation is None:
        problems += _grid_problems(job, space)
    if settings.get("ablation") and settings.get("search_space"):
        problems.append("search_space: an ablation has its `nuisance` in place of it")
    if job is not None and job.ablation is not None:
        problems += _cell_problems(settings, job, job.ablation)
    if problems or job is None or space is None:
        raise ConfigError(where, problems)
    if job.ablation is None:
        settings = {**settings, "search_space": _raw_space(settings)}
    return Plan(Job.model_validate(settings), space, settings)


def _raw_space(settings: Mapping[str, Any]) -> dict[str, Any]:
    given = settings.get("search_space") or {}
    return read_mapping(Path(given)) if isinstance(given, str) else given


def _space(settings: Mapping[str, Any]) -> tuple[Space | None, list[str]]:
    """The search space, None if it cannot be read, and every problem of its entries."""
    given, where = settings.get("search_space"), "search_space"
    file = f"{given}: " if isinstance(given, str) else ""
    raw, space, problems = None, None, []
    try:
        raw = _raw_space(settings)
        space = Space.parse(raw, where)
    except ConfigError as error:
        problems = [f"{where}: {file}{line}" for line in error.problems]
    for part in _readable(raw) if space is None else [space]:
        problems += _unsearchable(part, where) + _probe(settings, part, where)
    return space, list(dict.fromkeys(problems))


def _readable(raw: object) -> list[Space]:
    """Each entry that can be read, with those that its condition names."""
    entries: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    found = []
    for key, entry in entries.items():
        when = entry.get("when") if isinstance(entry, Mapping) else None
        others = when if isinstance(when, Mapping) else {}
        needed = {other: entries[other] for other in others if other in entries}
        with suppress(ConfigError):
            found.append(Space.parse({**needed, key: entry}, "search_space"))
    return found


def _unsearchable(space: Space, where: str) -> list[str]:
    wrong = [key for key in space.keys if not _searchable(key)]
    allowed = [*SEARCHABLE, *SEARCHABLE_DATA]
    return [
        f"{where}: {key}: cannot be searched, it is fixed for the whole job{nearest(key, allowed)}"
        for key in wrong
    ]


def _searchable(key: str) -> bool:
    return key.split(".")[0] in SEARCHABLE or key.startswith(SEARCHABLE_DATA)


def _cell_problems(settings: Mapping[str, Any], job: Job, ablation: Ablation) -> list[str]:
    """Problems of the cells of a design, and of what is tuned in them."""
    used: set[str] = set()
    fields = {key: settings[key] for key in TrialConfig.model_fields if key in settings}
    problems: dict[str, None] = {}
    for cell in ablation.cells():
        entries = ablation.nuisance_in(cell)
        used |= {*entries}
        wrong = [key for key in cell.settings if not _may_be_a_factor(key)]
        found = [f"{key}: cannot be a factor{nearest(key, _FACTORS)}" for key in wrong]
        found += validated(TrialConfig, overlaid(fields, cell.settings))[1]
        try:
            space = Space.parse(entries, "ablation.nuisance")
        except ConfigError as error:
            found += [f"nuisance: {line}" for line in error.problems]
        else:
            found += _unsearchable(space, "nuisance")
            found += _probe(overlaid(fields, cell.settings), space, "nuisance")
            found += _grid_problems(job, space)
        # The same problem in many cells is told once.
        for line in found:
            if not any(told.endswith(line) for told in problems):
                problems[f"ablation: {cell.name}: {line}"] = None
    never = [key for key in ablation.nuisance if key not in used]
    problems |= {f"ablation.nuisance: {key}.when: holds in no cell": None for key in never}
    return list(problems)


def _may_be_a_factor(key: str) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in _FACTORS)


def _probe(settings: Mapping[str, Any], space: Space, where: str) -> list[str]:
    """Problems of the trials at the ends of each entry's range."""
    fields = {key: settings[key] for key in TrialConfig.model_fields if key in settings}
    already = set(validated(TrialConfig, fields)[1])
    problems: dict[str, None] = {}
    for key, values in space.probes():
        _, found = validated(TrialConfig, overlaid(fields, values))
        new = [line for line in found if line not in already]
        problems |= {f"{where}: {key} = {values.get(key)!r}: {line}": None for line in new}
    return list(problems)


def _grid_problems(job: Job, space: Space) -> list[str]:
    if job.search.sampler != "grid":
        return []
    try:
        space.grid()
    except ConfigError as error:
        return [f"search_space: {line}" for line in error.problems]
    return []
