"""Registries: names in a YAML → the callables that build what they name, with their options.

A registry imports its home package on the first look-up. ``bind`` checks the options of a YAML
against a callable's *signature*, or the dataclass that it takes as its ``Section``: there is no
second list of keys. Types are checked by pydantic. Annotations may carry more than a type:

* ``Annotated[T, check]`` – ``check(value)`` returns an error message or ``None`` (files, ranges);
* ``Annotated[str, REGISTRY]`` – a name of that registry; also in a list, tuple or dict;
* ``Annotated[Bound, REGISTRY]`` – ``{"name": …, option: …}``, ready to be built; ``dict`` in place
  of ``Bound`` leaves it as it is;
* ``dict[Literal["train", …], Annotated[…]]`` – a set of these keys and no others;
* ``Annotated[T, Hidden]`` – not an option: the program passes it;
* ``Annotated[Options, Section]`` – receives all options of the section as one dataclass.
"""

import dataclasses
import functools
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from types import SimpleNamespace, UnionType
from typing import Any, NoReturn, TypeVar

import pydantic
from pydantic_core import PydanticCustomError

from minigpt4.errors import ConfigError, Fault, near, nearest, shown

Entry = Callable[..., Any]
_Part = TypeVar("_Part", bound=Entry)
_Int = typing.Annotated[int, pydantic.Field(gt=-(2**63), lt=2**63)]  # torch holds no larger ones


class Hidden:
    """Marks a parameter that the program injects and a YAML cannot set."""


class Section:
    """Marks the parameter that receives the options of a YAML section as one dataclass."""


class UnknownOptionError(AttributeError):
    """Raised when an option is read that is missing or wrong; the error is reported already."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """A registered callable with its checked options, defaults included.

    The options are the dataclass of its ``Section``, else a namespace; reading one that is missing
    or wrong raises :class:`UnknownOptionError`.
    """

    entry: Entry
    options: Any

    def build(self, **injected: Any) -> Any:
        """Call the entry with its options, and with those injected parts that it takes."""
        parameters, (section, _) = inspect.signature(self.entry).parameters, _section(self.entry)
        options = {section: self.options} if section else vars(self.options)
        return self.entry(**options, **{n: part for n, part in injected.items() if n in parameters})


class Registry:
    """Names of one kind of part; importing the package ``home`` registers them.

    ``modules`` gives the module of ``home`` that registers a name, imported when it is asked for.
    """

    def __init__(self, kind: str, home: str, modules: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._home, self._modules = home, modules or {}
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[_Part], _Part]:
        return functools.partial(self._add, name)

    def _add(self, name: str, entry: _Part) -> _Part:
        self._import(name)
        known = self._entries.get(name)
        # The same file imported twice (a plugin run again) is no conflict.
        if known is not None and _origin(known) != _origin(entry):
            raise ConfigError(f"the {self.kind} {name!r} is registered already; choose another")
        self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        importlib.import_module(self._home)
        return sorted({*self._entries, *self._modules})

    def get(self, name: str) -> Entry:
        """Return the callable of a name; ``ConfigError`` with the known ones if it is unknown."""
        if complaint := self.complaint(name):
            raise ConfigError(complaint)
        self._import(name)
        return self._entries[name]

    def _import(self, name: str) -> None:
        if name in self._modules and name not in self._entries:
            importlib.import_module(f"{self._home}.{self._modules[name]}")

    def complaint(self, name: object) -> str | None:
        """Return what is wrong with a name that is not registered."""
        known = self.names()
        if name in known:
            return None
        return f"unknown {self.kind} {shown(name)}; known: {', '.join(known)}"

    def build(self, name: str, options: Mapping[str, Any], /, **injected: Any) -> Any:
        """Call what ``name`` stands for with the YAML's options and those injected parts it takes.

        An unknown name, or options that do not fit the signature, are a ``ConfigError``.
        """
        bound, faults = bind(self.get(name), options, name)
        if faults:
            raise ConfigError("\n".join(f"{fault.key}: {fault.text}" for fault in faults))
        return bound.build(**injected)


def _origin(entry: Entry) -> tuple[str, str]:
    return entry.__module__, entry.__qualname__


def _is_marked(hint: Any, mark: type) -> bool:
    return mark in getattr(hint, "__metadata__", ())


@functools.cache
def _hints(entry: Entry) -> dict[str, Any]:
    function = entry.__init__ if inspect.isclass(entry) else entry
    return typing.get_type_hints(function, include_extras=True)


def _section(entry: Entry) -> tuple[str, Entry]:
    """Return name and dataclass of the parameter marked ``Section``; without, "" and ``entry``."""
    hints = _hints(entry).items()
    marked = ((n, typing.get_args(h)[0]) for n, h in hints if _is_marked(h, Section))
    return next(marked, ("", entry))


def schema(entry: Entry) -> Entry:
    """Return what has the options of ``entry`` as its parameters: a dataclass, or itself."""
    return _section(entry)[1]


def options_of(entry: Entry) -> dict[str, Any]:
    """Return the defaults that a YAML can change."""
    parameters = visible_parameters(entry)[1].items()
    return {name: p.default for name, p in parameters if p.default is not p.empty}


def visible_parameters(entry: Entry) -> tuple[dict[str, Any], dict[str, inspect.Parameter]]:
    """Return the types of a callable's options, and the options: parameters not ``Hidden``."""
    entry = schema(entry)
    hints, parameters = _hints(entry), dict(inspect.signature(entry).parameters)
    for field in dataclasses.fields(entry) if dataclasses.is_dataclass(entry) else ():
        if field.default_factory is not dataclasses.MISSING:
            parameters[field.name] = parameters[field.name].replace(default=field.default_factory())
    visible = {n: p for n, p in parameters.items() if not _is_marked(hints.get(n), Hidden)}
    return hints, visible


def _is_unknown(*_: object) -> NoReturn:
    raise UnknownOptionError


class _Options(SimpleNamespace):
    """Options of an entry without a ``Section``."""

    __getattr__ = _is_unknown


UNKNOWN = Bound(_is_unknown, _Options())


def bind(
    entry: Entry, options: Mapping[str, Any], where: str, dry: bool = False, partial: bool = False
) -> tuple[Bound, list[Fault]]:
    """Return a typed entry with the options of a YAML as values of its types, and every error.

    ``dry`` also runs the checks of ``Annotated`` parameters, which look at the disk; with
    ``partial`` a missing option is no error. ``where`` is the dotted key of the options.
    """
    hints, parameters = visible_parameters(entry)
    prefix = f"{where}." if where else ""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in options.items():
        key = f"{prefix}{name}"
        if name not in parameters:
            faults.append(Fault(key, f"unknown key; {nearest(name, parameters)}"))
        else:
            fitted, found = _fit(value, hints[name], key, dry)
            faults += found
            values |= {} if found else {name: fitted}
    for name, parameter in parameters.items():
        default = parameter.default
        if name in options:
            continue
        if default is not parameter.empty:
            # Names of parts in a default are looked up like those of a YAML.
            named = isinstance(default, Mapping)
            values[name] = _fit(default, hints[name], name, False)[0] if named else default
        elif not partial:
            faults.append(Fault(f"{prefix}{name}", "missing; it has no default"))
    base: Any = schema(entry) if dataclasses.is_dataclass(schema(entry)) else _Options
    if missing := parameters.keys() - values.keys():
        base = type(base.__name__, (base,), dict.fromkeys(missing, property(_is_unknown)))
    made = base.__new__(base)
    vars(made).update(values)
    return Bound(entry, made), faults


def _fit(value: Any, hint: Any, where: str, dry: bool) -> tuple[Any, list[Fault]]:
    """Return ``value`` as ``hint`` wants it, and the errors.

    Pydantic checks strictly, in its JSON mode: a list fits a tuple, an int fits a float.
    """
    if isinstance(value, bool) and {"on", "off"} <= {*typing.get_args(hint)}:
        value = "on" if value else "off"  # YAML takes these words for true and false
    try:
        return _adapter(hint).validate_json(json.dumps(value), context=dry), []
    except pydantic.ValidationError as error:
        return value, _faults(error, value, where)
    except (TypeError, ValueError):
        return value, [Fault(where, f"{shown(value)} is not a plain value")]


@functools.cache
def _adapter(hint: Any) -> pydantic.TypeAdapter[Any]:
    config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(_with_checks(hint), config=config)


def _with_checks(hint: Any) -> Any:
    """Return a type whose checks, registries and dataclasses are pydantic's validators."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _after(Any, _fit_dataclass, hint)
    if origin is typing.Annotated:
        inner, *extras = arguments
        for extra in extras:
            if isinstance(extra, Registry) and (inner is Bound or typing.get_origin(inner) is dict):
                return _after(Any, _fit_named, extra, inner is Bound)
            inner = _after(_with_checks(inner), _check, extra)
        return inner
    if origin in (list, tuple, dict, typing.Union, UnionType):
        parts = tuple(part if part is Ellipsis else _with_checks(part) for part in arguments)
        return typing.Union[parts] if origin in (typing.Union, UnionType) else origin[parts]  # noqa: UP007
    return _Int if hint is int else hint


def _after(kind: Any, validate: Callable[..., Any], *arguments: Any) -> Any:
    validator = functools.partial(validate, *arguments)
    return typing.Annotated[kind, pydantic.AfterValidator(validator)]


def _faults(error: pydantic.ValidationError, value: Any, where: str) -> list[Fault]:
    """Return the errors that pydantic found; of a set of keys, ours rather than its own."""
    ours: list[Fault] = []
    others: dict[tuple[str, str], dict[str, int]] = {}
    for detail in error.errors(include_url=False):
        first = detail["loc"][0] if detail["loc"] else None
        key = f"{where}.{first}" if isinstance(value, Mapping) and first in value else where
        if detail["type"] == "faults":
            found = detail["ctx"]["faults"]
            ours += [Fault(f"{key}.{f.key}" if f.key else key, f.text) for f in found]
        elif detail["loc"][-1:] == ("[key]",):
            known = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            ours.append(Fault(key, f"unknown key; {nearest(first, known)}"))
        else:
            text = detail["msg"]
            others.setdefault((key, shown(detail["input"])), {})[text[0].lower() + text[1:]] = 0
    if ours and (isinstance(value, Mapping) or not others):
        return ours
    return [Fault(key, f"{given}: {'; or '.join(texts)}") for (key, given), texts in others.items()]


def _refuse(*faults: Fault) -> None:
    if faults:
        raise PydanticCustomError("faults", "{faults}", {"faults": faults})


def _check(check: Any, value: Any, info: pydantic.ValidationInfo) -> Any:
    complaint = None
    if value is not None and isinstance(check, Registry):
        complaint = check.complaint(value)
    elif value is not None and info.context and callable(check):
        complaint = check(value)
    if complaint:
        _refuse(Fault("", complaint))
    return value


def _fit_dataclass(kind: Any, value: Any, info: pydantic.ValidationInfo) -> Any:
    if not isinstance(value, Mapping):
        _refuse(Fault("", f"{shown(value)} is not a set of keys"))
    bound, faults = bind(kind, value, "", bool(info.context))
    _refuse(*faults)
    return kind(**vars(bound.options))


def _fit_named(registry: Registry, bind_it: bool, value: Any, info: pydantic.ValidationInfo) -> Any:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        meant = [key for key in value if near(key, ("name",))] if isinstance(value, Mapping) else []
        if meant and "name" not in value:
            _refuse(Fault(meant[0], "unknown key; did you mean 'name'?"))
        _refuse(Fault("", "must be a set of keys with a 'name'"))
    options = {key: item for key, item in value.items() if key != "name"}
    if complaint := registry.complaint(value["name"]):
        _refuse(Fault("name", complaint))
    bound, faults = bind(registry.get(value["name"]), options, "", bool(info.context))
    _refuse(*faults)
    return bound if bind_it else value


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
MODELS = Registry("model", home="minigpt4.models.build")
VISION_TOWERS = Registry("vision tower", home="minigpt4.models.vision_towers")
IMAGE_PROCESSORS = Registry("image processor", home="minigpt4.processors")
TEXT_PROCESSORS = Registry("text processor", home="minigpt4.processors")
LR_SCHEDULES = Registry("lr schedule", home="minigpt4.runners")
RUNNERS = Registry("runner", home="minigpt4.runners")
TASKS = Registry("task", home="minigpt4.tasks")
METRICS = Registry("metric", home="minigpt4.metrics")
ALL_REGISTRIES = (
    *(BUILDERS, MODELS, VISION_TOWERS, IMAGE_PROCESSORS, TEXT_PROCESSORS),
    *(LR_SCHEDULES, RUNNERS, TASKS, METRICS),
)
