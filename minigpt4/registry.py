"""Registries: names in a YAML → the callables that build what they name.

A registry knows its home package and imports it on the first look-up, so nothing is imported for
its side effect elsewhere.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from minigpt4.binding import (
    UNKNOWN,
    Bound,
    Fault,
    Hidden,
    Section,
    UnknownOptionError,
    bind,
    bind_entry,
    near,
    nearest,
    options_of,
    schema,
    visible_parameters,
)
from minigpt4.errors import ConfigError, shown

__all__ = [
    "ALL_REGISTRIES",
    "BUILDERS",
    "IMAGE_PROCESSORS",
    "LR_SCHEDULES",
    "METRICS",
    "MODELS",
    "RUNNERS",
    "TASKS",
    "TEXT_PROCESSORS",
    "UNKNOWN",
    "VISION_TOWERS",
    "Bound",
    "Fault",
    "Hidden",
    "Registry",
    "Section",
    "UnknownOptionError",
    "bind",
    "bind_entry",
    "build_named",
    "near",
    "nearest",
    "options_of",
    "schema",
    "visible_parameters",
]

_Entry = TypeVar("_Entry", bound=Callable[..., Any])


class Registry:
    """Names of one kind of part.

    Args:
        kind: What messages call it.
        home: Package whose import registers its parts.
        modules: Or the module of ``home`` that registers each name, imported when it is asked for.
    """

    def __init__(self, kind: str, home: str, modules: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._home, self._modules = home, modules or {}
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[_Entry], _Entry]:
        def add(entry: _Entry) -> _Entry:
            if name in self._modules and name not in self._entries:
                importlib.import_module(f"{self._home}.{self._modules[name]}")
            known = self._entries.get(name)
            # The same file imported twice (a plugin run again) is no conflict.
            if known is not None and _origin(known) != _origin(entry):
                raise ConfigError(f"the {self.kind} {name!r} is registered already; choose another")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        importlib.import_module(self._home)
        return sorted({*self._entries, *self._modules})

    def get(self, name: str) -> Callable[..., Any]:
        """The callable of a name.

        Raises:
            ConfigError: for an unknown name; the message lists the known ones.
        """
        if complaint := self.complaint(name):
            raise ConfigError(complaint)
        if name not in self._entries:
            importlib.import_module(f"{self._home}.{self._modules[name]}")
        return self._entries[name]

    def complaint(self, name: object) -> str | None:
        """Return what is wrong with a name that is not registered."""
        known = self.names()
        if name in known:
            return None
        return f"unknown {self.kind} {shown(name)}; known: {', '.join(known)}"

    def build(self, name: str, options: Mapping[str, Any], /, **injected: Any) -> Any:
        """Call what ``name`` stands for with the YAML's options and those injected parts it takes.

        Raises:
            ConfigError: for an unknown name, or options that do not fit the signature.
        """
        bound, faults = bind_entry(self.get(name), options, name)
        if faults:
            raise ConfigError("\n".join(f"{fault.key}: {fault.text}" for fault in faults))
        return bound.build(**injected)


def _origin(entry: Callable[..., Any]) -> tuple[str, str]:
    return entry.__module__, entry.__qualname__


def build_named(registry: Registry, spec: Mapping[str, Any]) -> Any:
    """Build ``{"name": …, option: …}``."""
    return registry.build(spec["name"], {k: v for k, v in spec.items() if k != "name"})


BUILDERS = Registry(
    "data set",
    home="minigpt4.datasets",
    modules={
        "cc_sbu": "caption_shards",
        "cc_sbu_align": "cc_sbu_align",
        "laion": "caption_shards",
        "pairs": "own_rows.pairs",
    },
)
MODELS = Registry("model", home="minigpt4.models")
VISION_TOWERS = Registry("vision tower", home="minigpt4.models.vision_towers")
IMAGE_PROCESSORS = Registry("image processor", home="minigpt4.processors")
TEXT_PROCESSORS = Registry("text processor", home="minigpt4.processors")
LR_SCHEDULES = Registry("lr schedule", home="minigpt4.runners")
RUNNERS = Registry("runner", home="minigpt4.runners")
TASKS = Registry("task", home="minigpt4.tasks")
METRICS = Registry("metric", home="minigpt4.metrics")
ALL_REGISTRIES = (
    BUILDERS,
    MODELS,
    VISION_TOWERS,
    IMAGE_PROCESSORS,
    TEXT_PROCESSORS,
    LR_SCHEDULES,
    RUNNERS,
    TASKS,
    METRICS,
)
