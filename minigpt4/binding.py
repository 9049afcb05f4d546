"""Binding: options of a YAML → typed arguments of what they configure.

``bind`` checks the options of a YAML against a callable's *signature*,
or against the dataclass that the callable takes as its ``Section``: there is no second list of
keys. Types are checked by pydantic. Annotations may carry more than a type:

* ``Annotated[T, check]`` – ``check(value)`` returns an error message or ``None`` (files, ranges);
* ``Annotated[str, REGISTRY]`` – the value must be a name of that registry; also in a list, a tuple
  of any length, and the values of a dict;
* ``Annotated[Bound, REGISTRY]`` – ``{"name": …, option: …}``, ready to be built; with ``dict`` in
  place of ``Bound`` it stays as it is;
* ``dict[Literal["train", …], Annotated[…]]`` – a set of these keys and no others;
* ``Annotated[T, Hidden]`` – not an option: the program passes it;
* ``Annotated[Options, Section]`` – receives all options of the section as one dataclass.
"""

import copy
import dataclasses
import difflib
import functools
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace, UnionType
from typing import Any, NoReturn, Protocol, runtime_checkable

import pydantic
from pydantic_core import PydanticCustomError

from minigpt4.errors import shown

# Numbers that torch and json can hold.
_PLAIN: dict[type, Any] = {
    int: typing.Annotated[int, pydantic.Field(gt=-(2**63), lt=2**63)],
    float: typing.Annotated[float, pydantic.Field(allow_inf_nan=False)],
}


class Hidden:
    """Marks a parameter that the program injects and a YAML cannot set."""


class Section:
    """Marks the parameter that receives the options of a YAML section as one dataclass."""


@runtime_checkable
class Names(Protocol):
    """The registered names of one kind of part; see :class:`minigpt4.registry.Registry`."""

    kind: str

    def names(self) -> list[str]: ...

    def get(self, name: str) -> Callable[..., Any]: ...

    def complaint(self, name: object) -> str | None: ...


class UnknownOptionError(AttributeError):
    """Raised when an option is read that is missing or wrong; the error is reported already."""


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


@dataclasses.dataclass(frozen=True)
class Bound:
    """A registered callable with its checked options.

    Attributes:
        entry: The callable.
        options: Its options with defaults: the dataclass of its ``Section``, else a namespace.
            Reading one that is missing or wrong raises :class:`UnknownOptionError`.
    """

    entry: Callable[..., Any]
    options: Any

    def build(self, **injected: Any) -> Any:
        """Call the entry with its options, and with those injected parts that it takes."""
        parameters = inspect.signature(self.entry).parameters
        section = _section(self.entry)
        options = {section[0]: self.options} if section else vars(self.options)
        return self.entry(**options, **{n: part for n, part in injected.items() if n in parameters})

    def with_defaults(self, *names: str) -> "Bound":
        """Return the same with some options, those that there are, at their defaults."""
        options, defaults = copy.copy(self.options), options_of(self.entry)
        vars(options).update({name: defaults[name] for name in names if name in defaults})
        return dataclasses.replace(self, options=options)


def _section(entry: Callable[..., Any]) -> tuple[str, type] | None:
    """Name and dataclass of the parameter that receives a section's options."""
    for name, hint in _hints(entry).items():
        if Section in getattr(hint, "__metadata__", ()):
            return name, typing.get_args(hint)[0]
    return None


@functools.cache
def _hints(entry: Callable[..., Any]) -> dict[str, Any]:
    function = entry.__init__ if inspect.isclass(entry) else entry
    return typing.get_type_hints(function, include_extras=True)


def schema(entry: Callable[..., Any]) -> Callable[..., Any]:
    """Return what has the options of ``entry`` as its parameters: a dataclass, or itself."""
    section = _section(entry)
    return section[1] if section else entry


def options_of(entry: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults that a YAML can change."""
    parameters = visible_parameters(entry)[1].values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def visible_parameters(
    entry: Callable[..., Any],
) -> tuple[dict[str, Any], dict[str, inspect.Parameter]]:
    """Return the types of a callable's options, and the options: parameters not ``Hidden``."""
    entry = schema(entry)
    hints, parameters = _hints(entry), dict(inspect.signature(entry).parameters)
    for field in dataclasses.fields(entry) if dataclasses.is_dataclass(entry) else ():
        if field.default_factory is not dataclasses.MISSING:
            parameters[field.name] = parameters[field.name].replace(default=field.default_factory())
    return hints, {
        name: parameter
        for name, parameter in parameters.items()
        if Hidden not in getattr(hints.get(name), "__metadata__", ())
    }


def bind_entry(
    entry: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    dry: bool = False,
    partial: bool = False,
) -> tuple[Bound, list[Fault]]:
    """Return the entry with its options, and the errors; arguments are those of :func:`bind`."""
    bound, faults = bind(entry, options, where, dry, partial)
    within = (fault.key.removeprefix(f"{where}.") for fault in faults)
    wrong = {key.partition(".")[0] for key in within}
    hints, parameters = visible_parameters(entry)
    for name, default in options_of(entry).items():
        if name not in bound:  # names of parts in a default are looked up like those of a YAML
            named = isinstance(default, Mapping)
            bound[name] = _fit(default, hints[name], name, False)[0] if named else default
    values = {name: value for name, value in bound.items() if name not in wrong}
    kind = schema(entry)
    base: Any = kind if dataclasses.is_dataclass(kind) else _Options
    missing = parameters.keys() - values.keys()
    if missing:
        base = type(base.__name__, (base,), dict.fromkeys(missing, property(_is_unknown)))
    made = base.__new__(base)
    vars(made).update(values)
    return Bound(entry, made), faults


def _is_unknown(*_: object) -> NoReturn:
    raise UnknownOptionError


class _Options(SimpleNamespace):
    """Options of an entry without a ``Section``."""

    __getattr__ = _is_unknown


UNKNOWN = Bound(_is_unknown, _Options())


def bind(
    entry: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    dry: bool = False,
    partial: bool = False,
) -> tuple[dict[str, Any], list[Fault]]:
    """Return options as values of the types of ``entry``'s parameters, and every error found.

    Args:
        entry: A function or class with a fully typed signature.
        options: What the YAML says.
        where: Dotted key of the options, for messages.
        dry: Also run the ``check`` functions of ``Annotated`` parameters (they look at the disk).
        partial: A missing option is no error.
    """
    hints, parameters = visible_parameters(entry)
    bound: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in options.items():
        key = f"{where}.{name}" if where else str(name)
        if name not in parameters:
            faults.append(Fault(key, f"unknown key; {nearest(name, parameters)}"))
        elif name not in hints:
            faults.append(Fault(key, f"has no type in the signature of {entry.__name__}"))
        else:
            bound[name], found = _fit(value, hints[name], key, dry)
            faults += found
    for name, parameter in parameters.items():
        needed = parameter.default is inspect.Parameter.empty and not partial
        if needed and name not in options:
            key = f"{where}.{name}" if where else name
            faults.append(Fault(key, "missing; it has no default"))
    return bound, faults


def _fit(value: Any, hint: Any, where: str, dry: bool) -> tuple[Any, list[Fault]]:
    """Return ``value`` as ``hint`` wants it, and the errors.

    Pydantic checks strictly, in its JSON mode: a list fits a tuple, an int fits a float.
    """
    if isinstance(value, bool) and {"on", "off"} <= {*typing.get_args(hint)}:
        value = "on" if value else "off"  # YAML takes these words for true and false
    try:
        fitted = _adapter(hint).validate_json(json.dumps(value), strict=True, context=dry)
    except pydantic.ValidationError as error:
        return value, _faults(error, value, where)
    except (TypeError, ValueError):
        return value, [Fault(where, f"{shown(value)} is not a plain value")]
    return fitted, []


@functools.cache
def _adapter(hint: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(_with_checks(hint))


def _with_checks(hint: Any) -> Any:
    """Return a type whose checks, registries and dataclasses are pydantic's validators."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _after(Any, functools.partial(_fit_dataclass, hint))
    if origin is typing.Annotated:
        inner, *extras = arguments
        registries = [extra for extra in extras if isinstance(extra, Names)]
        if registries and (inner is Bound or typing.get_origin(inner) is dict):
            return _after(Any, functools.partial(_fit_named, registries[0], inner is Bound))
        for extra in extras:
            inner = _after(_with_checks(inner), functools.partial(_check, extra))
        return inner
    if origin in (list, tuple, dict, typing.Union, UnionType):
        parts = tuple(part if part is Ellipsis else _with_checks(part) for part in arguments)
        return typing.Union[parts] if origin in (typing.Union, UnionType) else origin[parts]  # noqa: UP007
    return _PLAIN.get(hint, hint) if isinstance(hint, type) else hint


def _after(kind: Any, check: Callable[..., Any]) -> Any:
    def validate(value: Any, info: pydantic.ValidationInfo) -> Any:
        fitted, faults = check(value, bool(info.context))
        if faults:
            raise PydanticCustomError("faults", "{faults}", {"faults": faults})
        return fitted

    return typing.Annotated[kind, pydantic.AfterValidator(validate)]


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


def _check(check: Any, value: Any, dry: bool) -> tuple[Any, list[Fault]]:
    complaint = None
    if value is not None and isinstance(check, Names):
        complaint = check.complaint(value)
    elif value is not None and dry and callable(check):
        complaint = check(value)
    return value, [Fault("", complaint)] if complaint else []


def _fit_dataclass(kind: Any, value: Any, dry: bool) -> tuple[Any, list[Fault]]:
    if not isinstance(value, Mapping):
        return value, [Fault("", f"{shown(value)} is not a set of keys")]
    bound, faults = bind(kind, value, "", dry)
    return (value if faults else kind(**bound)), faults


def _fit_named(registry: Names, as_bound: bool, value: Any, dry: bool) -> tuple[Any, list[Fault]]:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        meant = [key for key in value if near(key, ("name",))] if isinstance(value, Mapping) else []
        if meant and "name" not in value:
            return value, [Fault(meant[0], "unknown key; did you mean 'name'?")]
        return value, [Fault("", "must be a set of keys with a 'name'")]
    options = {key: item for key, item in value.items() if key != "name"}
    if complaint := registry.complaint(value["name"]):
        return value, [Fault("name", complaint)]
    bound, faults = bind_entry(registry.get(value["name"]), options, "", dry)
    return bound if as_bound else value, faults
