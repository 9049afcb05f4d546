"""Registries: names in a YAML → the callables that build what they name.

A registry knows its home package and imports it on the first look-up, so nothing is imported for
its side effect elsewhere. ``bind`` holds the options of a YAML against a callable's *signature*:
there is no second list of keys. Annotations may carry more than a type:

* ``Annotated[T, check]`` – ``check(value)`` returns a complaint or ``None`` (files, ranges);
* ``Annotated[str, REGISTRY]`` – the value must be a name of that registry; also in a list, a tuple
  of any length, and the values of a dict;
* ``Annotated[dict, REGISTRY]`` – ``{"name": …, option: …}``, the options fitting that callable;
* ``Hidden`` – not an option: the program passes it.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import json
import sys
import typing
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import pydantic

from minigpt4.errors import ConfigError, one_line

_Entry = TypeVar("_Entry", bound=Callable[..., Any])


class Hidden:
    """Marks a parameter that the program injects and a YAML cannot set."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing wrong with a config: the dotted key and what is the matter with it."""

    key: str
    text: str


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


class Registry:
    """Names of one kind of part; ``home`` is the package whose import registers them."""

    def __init__(self, kind: str, home: str) -> None:
        self.kind = kind
        self._home = home
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[_Entry], _Entry]:
        def add(entry: _Entry) -> _Entry:
            known = self._entries.get(name)
            # The same file imported twice (a plugin run again) is no conflict.
            if known is not None and _origin(known) != _origin(entry):
                raise ConfigError(f"the {self.kind} {name!r} is registered already; choose another")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        importlib.import_module(self._home)
        return sorted(self._entries)

    def get(self, name: str) -> Callable[..., Any]:
        """The callable of a name.

        Raises:
            ConfigError: for an unknown name; the message lists the known ones.
        """
        known = self.names()
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}; known: {', '.join(known)}")
        return self._entries[name]

    def build(self, name: str, options: Mapping[str, Any], /, **injected: Any) -> Any:
        """Call what ``name`` stands for with the YAML's options and the injected parts.

        Raises:
            ConfigError: for an unknown name, or options that do not fit the signature.
        """
        entry = self.get(name)
        bound, faults = bind(entry, options, name)
        if faults:
            raise ConfigError("\n".join(f"{fault.key}: {fault.text}" for fault in faults))
        for part in injected:
            if part not in inspect.signature(entry).parameters:
                raise ConfigError(f"the {self.kind} {name!r} must take a parameter {part!r}")
        return entry(**bound, **injected)


def _origin(entry: Callable[..., Any]) -> tuple[str, str]:
    return entry.__module__, entry.__qualname__


def defaults(entry: Callable[..., Any]) -> dict[str, Any]:
    """What a callable's parameters are when nobody says otherwise."""
    parameters = inspect.signature(entry).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def bind(
    entry: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    dry: bool = False,
    partial: bool = False,
) -> tuple[dict[str, Any], list[Fault]]:
    """Options as keyword arguments of ``entry``, and every fault found on the way.

    Args:
        entry: A function or class with a fully typed signature.
        options: What the YAML says.
        where: Dotted key of the options, for messages.
        dry: Also run the ``check`` functions of ``Annotated`` parameters (they look at the disk).
        partial: A missing option is no fault.
    """
    hints = typing.get_type_hints(
        entry.__init__ if inspect.isclass(entry) else entry, include_extras=True
    )
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(entry).parameters.items()
        if Hidden not in getattr(hints.get(name), "__metadata__", ())
    }
    bound: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in options.items():
        if name not in parameters:
            faults.append(Fault(f"{where}.{name}", f"unknown key; {nearest(name, parameters)}"))
            continue
        if name not in hints:
            faults.append(
                Fault(f"{where}.{name}", f"has no type in the signature of {entry.__name__}")
            )
            continue
        bound[name], found = _fit(value, hints[name], f"{where}.{name}", dry)
        faults += found
    for name, parameter in parameters.items():
        needed = parameter.default is inspect.Parameter.empty and not partial
        if needed and name not in options:
            faults.append(Fault(f"{where}.{name}", "missing; it has no default"))
    return bound, faults


def _fit(value: Any, hint: Any, where: str, dry: bool) -> tuple[Any, list[Fault]]:
    """``value`` as ``hint`` wants it, and the faults."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *extras = typing.get_args(hint)
        registry = next((extra for extra in extras if isinstance(extra, Registry)), None)
        if registry is not None and typing.get_origin(inner) is dict:
            return value, _fit_named(value, registry, where, dry)
        value, faults = _fit(value, inner, where, dry)
        if faults:
            return value, faults
        if registry is not None:
            return value, _fit_name(value, registry, where)
        for check in extras:
            complaint = check(value) if dry and callable(check) and value is not None else None
            if complaint:
                faults.append(Fault(where, complaint))
        return value, faults
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            return value, [Fault(where, f"{value!r} is not a set of keys")]
        bound, faults = bind(hint, value, where, dry)
        return (value if faults else hint(**bound)), faults
    if typing.get_origin(hint) in (typing.Union, UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is not None and len(options) == 1:
            return _fit(value, options[0], where, dry)
    if typing.get_origin(hint) in (list, tuple) and isinstance(value, list):
        inner, *others = typing.get_args(hint)
        if typing.get_origin(inner) is typing.Annotated and others in ([], [Ellipsis]):
            items = [_fit(item, inner, where, dry) for item in value]
            made = typing.get_origin(hint)(item for item, _ in items)
            return made, [fault for _, found in items for fault in found]
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        _, inner = typing.get_args(hint)
        if typing.get_origin(inner) is typing.Annotated:
            fitted = {key: _fit(item, inner, f"{where}.{key}", dry) for key, item in value.items()}
            return {key: item for key, (item, _) in fitted.items()}, [
                fault for _, found in fitted.values() for fault in found
            ]
    return _fit_plain(value, hint, where)


def _fit_plain(value: Any, hint: Any, where: str) -> tuple[Any, list[Fault]]:
    """Strict types by pydantic, in its JSON mode: a list fits a tuple, an int fits a float."""
    try:
        return pydantic.TypeAdapter(hint).validate_json(json.dumps(value), strict=True), []
    except pydantic.ValidationError as error:
        texts = dict.fromkeys(detail["msg"] for detail in error.errors())
        wanted = "; or ".join(text[0].lower() + text[1:] for text in texts)
        return value, [Fault(where, f"{value!r}: {wanted}")]
    except (TypeError, ValueError):
        return value, [Fault(where, f"{value!r} is not a plain value")]


def _fit_name(name: str | None, registry: Registry, where: str) -> list[Fault]:
    if name is None or name in registry.names():
        return []
    text = f"unknown {registry.kind} {name!r}; known: {', '.join(registry.names())}"
    return [Fault(where, text)]


def _fit_named(value: Any, registry: Registry, where: str, dry: bool) -> list[Fault]:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return [Fault(where, "must be a set of keys with a 'name'")]
    faults = _fit_name(value["name"], registry, f"{where}.name")
    if faults:
        return faults
    options = {key: item for key, item in value.items() if key != "name"}
    return bind(registry.get(value["name"]), options, where, dry)[1]


def build_named(registry: Registry, spec: Mapping[str, Any]) -> Any:
    """Build ``{"name": …, option: …}``."""
    return registry.build(spec["name"], {k: v for k, v in spec.items() if k != "name"})


def import_plugins(plugins: Iterable[str], base: Path) -> None:
    """Import what a YAML lists under ``plugins``: files (``./mine.py``) or modules (``pkg.mod``).

    Args:
        plugins: Names as written in the YAML.
        base: Folder of the YAML; relative files are looked up there, then in the current folder.

    Raises:
        ConfigError: for a file or module that cannot be imported.
    """
    plugins = list(plugins)
    for registry in ALL_REGISTRIES if plugins else ():
        registry.names()  # ours are there first: a plugin cannot take their names unseen
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(plugin, base)
            else:
                importlib.import_module(plugin)
        except Exception as error:  # whatever the user's own code does at import
            reason = one_line(error)
            if not isinstance(error, ConfigError | ImportError):
                reason = f"{type(error).__name__}: {reason}"
            raise ConfigError(f"plugins: {plugin}: cannot be imported ({reason})") from error


def _import_file(plugin: str, base: Path) -> None:
    file = next((f for f in (base / plugin, Path(plugin)) if f.is_file()), None)
    if file is None:
        raise ConfigError(f"no such file in {base} or the current folder")
    file = file.resolve()
    name = f"minigpt4_plugin_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


BUILDERS = Registry("data set", home="minigpt4.datasets")
MODELS = Registry("model", home="minigpt4.models")
IMAGE_PROCESSORS = Registry("image processor", home="minigpt4.processors")
TEXT_PROCESSORS = Registry("text processor", home="minigpt4.processors")
LR_SCHEDULES = Registry("lr schedule", home="minigpt4.runners")
RUNNERS = Registry("runner", home="minigpt4.runners")
TASKS = Registry("task", home="minigpt4.tasks")
METRICS = Registry("metric", home="minigpt4.tasks")
ALL_REGISTRIES = (
    BUILDERS,
    MODELS,
    IMAGE_PROCESSORS,
    TEXT_PROCESSORS,
    LR_SCHEDULES,
    RUNNERS,
    TASKS,
    METRICS,
)
