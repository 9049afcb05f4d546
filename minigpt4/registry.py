"""Registries: names in a YAML → the callables that build what they name.

A registry knows its home package and imports it on the first look-up, so nothing is imported for
its side effect elsewhere. ``bind`` holds the options of a YAML against a callable's *signature*:
there is no second list of keys. Annotations may carry more than a type:

* ``Annotated[T, check]`` – ``check(value)`` returns a complaint or ``None`` (files, ranges);
* ``Annotated[str, REGISTRY]`` – the value must be a name of that registry; also in a list, a tuple
  of any length, and the values of a dict;
* ``Annotated[dict, REGISTRY]`` – ``{"name": …, option: …}``, the options fitting that callable;
* ``dict[Literal["train", …], Annotated[…]]`` – a set of these keys and no others;
* ``Hidden`` – not an option: the program passes it.
"""

import dataclasses
import difflib
import importlib
import inspect
import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, TypeVar

import pydantic

from minigpt4.errors import ConfigError, shown

_Entry = TypeVar("_Entry", bound=Callable[..., Any])


class Hidden:
    """Marks a parameter that the program injects and a YAML cannot set."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing wrong with a config: the dotted key and what is the matter with it."""

    key: str
    text: str


def near(word: object, known: Iterable[str]) -> str | None:
    """The known word that was most likely meant, upper and lower case being the same."""
    folded = {name.casefold(): name for name in sorted(known)}
    close = difflib.get_close_matches(str(word)[:100].casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def nearest(word: object, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, else all of them."""
    names = sorted(known)
    close = near(word, names)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(names) or 'none'}"


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
        """Call what ``name`` stands for with the YAML's options and those injected parts it takes.

        Raises:
            ConfigError: for an unknown name, or options that do not fit the signature.
        """
        entry = self.get(name)
        bound, faults = bind(entry, options, name)
        if faults:
            raise ConfigError("\n".join(f"{fault.key}: {fault.text}" for fault in faults))
        taken = inspect.signature(entry).parameters
        return entry(**bound, **{part: injected[part] for part in injected if part in taken})


def _origin(entry: Callable[..., Any]) -> tuple[str, str]:
    return entry.__module__, entry.__qualname__


def defaults(entry: Callable[..., Any]) -> dict[str, Any]:
    """What a callable's parameters are when nobody says otherwise."""
    parameters = inspect.signature(entry).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def options_of(entry: Callable[..., Any]) -> dict[str, Any]:
    """The defaults that a YAML can change."""
    visible = visible_parameters(entry)[1]
    return {name: value for name, value in defaults(entry).items() if name in visible}


def visible_parameters(
    entry: Callable[..., Any],
) -> tuple[dict[str, Any], dict[str, inspect.Parameter]]:
    """Types of a callable's parameters, and those parameters that are not ``Hidden``."""
    hints = typing.get_type_hints(
        entry.__init__ if inspect.isclass(entry) else entry, include_extras=True
    )
    return hints, {
        name: parameter
        for name, parameter in inspect.signature(entry).parameters.items()
        if Hidden not in getattr(hints.get(name), "__metadata__", ())
    }


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
    hints, parameters = visible_parameters(entry)
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
            return value, [Fault(where, f"{shown(value)} is not a set of keys")]
        bound, faults = bind(hint, value, where, dry)
        return (value if faults else hint(**bound)), faults
    if typing.get_origin(hint) in (typing.Union, UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is not None and len(options) == 1:
            return _fit(value, options[0], where, dry)
        sets = [option for option in options if dataclasses.is_dataclass(option)]
        if isinstance(value, Mapping) and len(sets) == 1:
            return _fit(value, sets[0], where, dry)
    if typing.get_origin(hint) in (list, tuple) and isinstance(value, list):
        inner, *others = typing.get_args(hint)
        if typing.get_origin(inner) is typing.Annotated and others in ([], [Ellipsis]):
            items = [_fit(item, inner, where, dry) for item in value]
            made = typing.get_origin(hint)(item for item, _ in items)
            return made, [fault for _, found in items for fault in found]
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        outer, inner = typing.get_args(hint)
        if typing.get_origin(inner) is typing.Annotated:
            names = typing.get_args(outer) if typing.get_origin(outer) is typing.Literal else value
            fitted = {
                key: _fit(item, inner, f"{where}.{key}", dry)
                if key in names
                else (item, [Fault(f"{where}.{key}", f"unknown key; {nearest(key, names)}")])
                for key, item in value.items()
            }
            return {key: item for key, (item, _) in fitted.items()}, [
                fault for _, found in fitted.values() for fault in found
            ]
    return _fit_plain(value, hint, where)


def _fit_plain(value: Any, hint: Any, where: str) -> tuple[Any, list[Fault]]:
    """Strict types by pydantic, in its JSON mode: a list fits a tuple, an int fits a float."""
    if isinstance(value, bool) and {"on", "off"} <= {*typing.get_args(hint)}:
        value = "on" if value else "off"  # YAML takes these words for true and false
    try:
        fitted = pydantic.TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        texts = dict.fromkeys(detail["msg"] for detail in error.errors())
        wanted = "; or ".join(text[0].lower() + text[1:] for text in texts)
        return value, [Fault(where, f"{shown(value)}: {wanted}")]
    except (TypeError, ValueError):
        return value, [Fault(where, f"{shown(value)} is not a plain value")]
    if _is_out_of_bounds(fitted):
        return value, [Fault(where, f"{shown(value)}: no such number can be used here")]
    return fitted, []


def _is_out_of_bounds(value: object) -> bool:
    """Whether a number is infinite, none at all, or none that 64 bits hold."""
    if isinstance(value, list | tuple):
        return any(_is_out_of_bounds(item) for item in value)
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, int) and abs(value) >= 2**63


def _fit_name(name: str | None, registry: Registry, where: str) -> list[Fault]:
    if name is None or name in registry.names():
        return []
    text = f"unknown {registry.kind} {shown(name)}; known: {', '.join(registry.names())}"
    return [Fault(where, text)]


def _fit_named(value: Any, registry: Registry, where: str, dry: bool) -> list[Fault]:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        meant = [key for key in value if near(key, ("name",))] if isinstance(value, Mapping) else []
        if meant and "name" not in value:
            return [Fault(f"{where}.{meant[0]}", "unknown key; did you mean 'name'?")]
        return [Fault(where, "must be a set of keys with a 'name'")]
    faults = _fit_name(value["name"], registry, f"{where}.name")
    if faults:
        return faults
    options = {key: item for key, item in value.items() if key != "name"}
    return bind(registry.get(value["name"]), options, where, dry)[1]


def build_named(registry: Registry, spec: Mapping[str, Any]) -> Any:
    """Build ``{"name": …, option: …}``."""
    return registry.build(spec["name"], {k: v for k, v in spec.items() if k != "name"})


BUILDERS = Registry("data set", home="minigpt4.datasets")
MODELS = Registry("model", home="minigpt4.models")
IMAGE_PROCESSORS = Registry("image processor", home="minigpt4.processors")
TEXT_PROCESSORS = Registry("text processor", home="minigpt4.processors")
LR_SCHEDULES = Registry("lr schedule", home="minigpt4.runners")
RUNNERS = Registry("runner", home="minigpt4.runners")
TASKS = Registry("task", home="minigpt4.tasks")
METRICS = Registry("metric", home="minigpt4.metrics")
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
