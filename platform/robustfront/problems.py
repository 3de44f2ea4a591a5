"""Reading YAML and checking it: every problem of a file as one line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError, create_model

from robustfront.errors import ConfigError, is_full, nearest
from robustfront.registry import Component

C = TypeVar("C", bound=Component)


_MERGE = "tag:yaml.org,2002:merge"  # `<<: *other`, other's keys where there are none of its own


class _Loader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, of which YAML would keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The keys as they are written, before others are merged with them."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            merge = key_node.tag == _MERGE
            key = key_node.value if merge else self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a plain word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return node


def _json(text: str) -> Any:
    """JSON that refuses a key given twice, of which Python would keep the last."""

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} is given twice")
        return found

    return json.loads(text, object_pairs_hook=mapping)


def _parse(text: str, read: Callable[[str], Any]) -> Any:
    """What `read` finds in a text, if JSON can say it too.

    Raises:
        ValueError: in one line, why there is nothing.
    """
    try:
        found = read(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    try:
        json.dumps(found, default=str)
    except (ValueError, RecursionError):
        raise ValueError("a mapping in it holds itself") from None
    return found


def _yaml(text: str) -> Any:
    """The one YAML document in a text; safe loading only."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        ConfigError: no such file, not readable, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path(".")
        names = sorted(p.name for p in folder.iterdir() if p.suffix in {".yaml", ".yml", ".json"})
        raise ConfigError(str(path), [f"no such file{nearest(path.name, names)}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    try:
        raw = _parse(text, _json if path.suffix == ".json" else _yaml)
    except ValueError as error:
        raise ConfigError(str(path), [str(error)]) from None
    if not isinstance(raw, dict):
        raise ConfigError(str(path), [f"a mapping of keys is expected, got {type(raw).__name__}"])
    return {str(key): value for key, value in raw.items()}


@contextmanager
def making_room_for(folder: Path) -> Iterator[None]:
    """While a sweep's folder is prepared.

    Raises:
        ConfigError: the system says that it cannot be; a full disk is told as it is.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise
        problem = f"{folder} cannot be made a folder: {error.strerror or error}"
        raise ConfigError("storage", [problem]) from None


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """`key=value` texts of the command line; values are read as YAML.

    Raises:
        ConfigError: a text without `=`, or a value that is not YAML.
    """
    overrides, problems = {}, []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            problems.append(f"write key=value, got {setting!r}")
            continue
        try:
            overrides[key.strip()] = _parse(value, _yaml)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError("--set", problems)
    return overrides


def overlaid(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested settings with dotted keys set.

    A `type` that changes takes the settings of the old type away with it.
    """
    result = json.loads(json.dumps(raw, default=str))
    for key in sorted(overrides, key=lambda key: (not key.endswith(".type"), key.count("."))):
        *parents, leaf = key.split(".")
        section = result
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        if leaf == "type" and section.get("type", overrides[key]) != overrides[key]:
            section.clear()
        section[leaf] = overrides[key]
    return result  # type: ignore[no-any-return]


def validated(cls: type[C], raw: Any) -> tuple[C | None, list[str]]:
    """The checked object, or None and all of its problems."""
    try:
        return cls.model_validate(raw), []
    except ValidationError as error:
        return None, [_line(cls, problem) for problem in error.errors(include_url=False)]


def configured(field: Any, given: object, where: str) -> Any:
    """A component from its name, or from its settings as in a job file.

    Args:
        field: the annotation of a configuration field that takes it.
        given: `pgd`, or `{"type": "pgd", "steps": 40}`.
        where: how a user calls it.

    Raises:
        ConfigError: with all problems.
    """
    fields: dict[str, Any] = {where: (field, ...)}
    one = create_model("one", __base__=Component, **fields)
    named = {"type": given} if isinstance(given, str) else given
    checked, problems = validated(one, {where: named})
    if checked is None:
        raise ConfigError(where, problems)
    return getattr(checked, where)


def _line(root: type[Component], problem: Any) -> str:
    key, owners = _locate(root, problem["loc"])
    found, kind, context = problem["input"], problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        fields = [name for owner in owners for name in owner.model_fields]
        return f"{key}: unknown key{nearest(key.split('.')[-1], fields)}"
    if kind == "union_tag_invalid":
        allowed = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"{key}.type: got {context['tag']!r}{nearest(context['tag'], allowed)}"
    if kind == "union_tag_not_found":
        return f"{key}: `type` is missing (allowed: {', '.join(_tags(root, problem['loc']))})"
    if kind == "missing":
        return f"{key}: is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "literal_error" and isinstance(found, str):
        allowed = [tag.strip(" '") for tag in context["expected"].replace(" or ", ", ").split(",")]
        return f"{key}: got {found!r}{nearest(found, allowed)}"
    shown = repr(found)
    if not key:
        return message  # it names its keys itself
    return f"{key}: {message}" + (f" (got {shown})" if len(shown) < 80 else "")


def _tags(root: type[Component], loc: tuple[int | str, ...]) -> list[str]:
    owners = [root]
    for item in loc:
        owners = _descend(owners, item)
    return [owner.model_fields["type"].default for owner in owners]


def _locate(root: type[Component], loc: tuple[int | str, ...]) -> tuple[str, list[type[Component]]]:
    """The dotted key of an error without pydantic's union tags, and the class that owns it."""
    key: list[str] = []
    owners, candidates = [root], [root]
    for item in loc:
        tagged = [c for c in candidates if len(candidates) > 1 and _tag(c) == item]
        if tagged:
            candidates = tagged
            continue
        key.append(str(item))
        owners, candidates = candidates, _descend(candidates, item)
    return ".".join(key), owners


def _tag(cls: type[Component]) -> object:
    field = cls.model_fields.get("type")
    return field.default if field else None


def _descend(classes: list[type[Component]], item: int | str) -> list[type[Component]]:
    if isinstance(item, int):
        return classes
    fields = [c.model_fields[item] for c in classes if item in c.model_fields]
    return [cls for field in fields for cls in _components(field.annotation)]


def _components(annotation: Any) -> list[type[Component]]:
    if isinstance(annotation, type) and issubclass(annotation, Component):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in _components(part)]
