"""Components (configuration that acts) and the registries that find them by the name in `type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Component(BaseModel):
    """A frozen piece of configuration; its fields are its hyperparameters.

    A nested component may be given in part: what is left out comes from the default of its field,
    so `method: {type: trades, inner: {steps: 5}}` keeps the other settings of TRADES' own attack.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete_from_defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        completed = dict(raw)
        for name, field in cls.model_fields.items():
            given, default = completed.get(name), field.default
            if not (isinstance(given, Mapping) and isinstance(default, Component)):
                continue
            kind = getattr(default, "type", None)
            if kind is None or given.get("type", kind) == kind:
                named = {} if kind is None else {"type": kind}
                completed[name] = {**default.model_dump(exclude_unset=True), **named, **given}
        return completed


C = TypeVar("C", bound=Component)


class Registry(Generic[C]):
    """The components of one kind, each registered once by its file, found by `type`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.classes: dict[str, type[C]] = {}

    def register(self, cls: type[C]) -> type[C]:
        """Class decorator: add a component under the default of its field `type`."""
        name = cls.model_fields["type"].default
        assert name not in self.classes, f"two {self.kind}s are named {name!r}"
        self.classes[name] = cls
        return cls

    def field(self) -> Any:
        """The annotation of a configuration field that takes any registered component."""
        classes = tuple(self.classes.values())
        if len(classes) == 1:
            return classes[0]
        return Annotated[Union[classes], Field(discriminator="type")]  # noqa: UP007 - dynamic
