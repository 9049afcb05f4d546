"""The configuration reference: signatures and docstrings of the registries → Markdown.

``minigpt4.registry.bind`` holds a YAML against the same signatures, so there is no second list of
keys that could fall behind.
"""

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any, NamedTuple

from docs.generate.prose import CONFIGURATION, PROCESSORS
from minigpt4.config.layers import REFUSED_ARCHS, RETIRED
from minigpt4.config.reading import parse
from minigpt4.conversation import OWN, SHIPPED, Template
from minigpt4.conversation.options import GenerationOptions
from minigpt4.registry import (
    BUILDERS,
    IMAGE_PROCESSORS,
    LR_SCHEDULES,
    METRICS,
    MODELS,
    RUNNERS,
    TASKS,
    TEXT_PROCESSORS,
    VISION_TOWERS,
    Registry,
    schema,
    visible_parameters,
)

_PLACES = {  # where this page lists the names of a registry
    TASKS.kind: "#tasks",
    METRICS.kind: "#metrics",
    LR_SCHEDULES.kind: "#learning-rate-schedules",
    IMAGE_PROCESSORS.kind: "#processors",
    TEXT_PROCESSORS.kind: "#processors",
    VISION_TOWERS.kind: "#vision-towers",
}


class Key(NamedTuple):
    """A row of a table."""

    name: str
    type: str
    default: str
    meaning: str


def configuration_page() -> str:
    """All of ``docs/configuration.md``."""
    return (
        "\n".join((CONFIGURATION, *_model(), *_towers(), *_datasets(), *_run(), *_chat(), *_rest()))
        + "\n"
    )


def keys_of(entry: Callable[..., Any], prefix: str = "") -> Iterator[Key]:
    """The options of a callable in the order of its signature; those of a set of keys by dots."""
    hints, parameters = visible_parameters(entry)
    meanings = meanings_of(entry)
    for name, parameter in parameters.items():
        hint, default = hints[name], parameter.default
        nested = _set_of_keys(hint)
        meaning = meanings.get(name) or _summary(entry)
        if nested is None:
            yield Key(prefix + name, type_words(hint), _default_words(default), meaning)
            continue
        if hint is not nested:  # it may be something else: a name, a list of texts
            yield Key(prefix + name, type_words(hint), _default_words(default), meaning)
        yield from keys_of(nested, f"{prefix}{name}.")


def meanings_of(entry: Callable[..., Any]) -> dict[str, str]:
    """What the Google docstrings of a callable, and of what it inherits, say of each option."""
    options = schema(entry)
    found: list[tuple[str, str]] = []
    for part in options.__mro__ if isinstance(options, type) else (options,):
        text = inspect.cleandoc(part.__doc__ or "")
        section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        listed = section[1] if section else ""
        found += re.findall(r"^    (\w+): (.*(?:\n      +.*)*)", listed, re.MULTILINE)
    return {name: _markdown(meaning) for name, meaning in found}


def type_words(hint: Any) -> str:
    """A type as a user of YAML reads it, with the range that its check tells."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *extras = typing.get_args(hint)
        ranges = [words for words in map(_range, extras) if words] if inner in (int, float) else []
        for extra in extras:
            if isinstance(extra, Registry):
                return f"[{extra.kind}]({_PLACES[extra.kind]})"
        return " ".join([type_words(inner), *(f"({words})" for words in ranges)])
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_words(argument) for argument in arguments)
    if typing.get_origin(hint) in (list, tuple):
        others = [argument for argument in arguments[1:] if argument is not Ellipsis]
        count = f"{len(arguments)} × " if others else ""
        return f"list of {count}{type_words(arguments[0])}"
    if typing.get_origin(hint) is dict and typing.get_origin(arguments[1]) is typing.Annotated:
        return f"for each of {type_words(arguments[0])}: {type_words(arguments[1])}"
    if typing.get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "set of keys"
    return "null" if hint is type(None) else str(hint.__name__)


def _range(check: Any) -> str:
    """What a check of numbers wants, in the words of its own complaint about -1."""
    complaint = check(-1) if callable(check) and not isinstance(check, Registry) else None
    found = re.fullmatch(r"-1 must (?:be |lie )?(.*)", complaint or "")
    return found[1].replace("not be", "not") if found else ""


def _set_of_keys(hint: Any) -> type | None:
    """The dataclass that a type is, perhaps beside others; a template has a section of its own."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    found = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
    return found[0] if found and isinstance(found[0], type) and found[0] is not Template else None


def _default_words(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "needed"
    return f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    """A value on one line, as one writes it into a YAML."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _summary(entry: Callable[..., Any]) -> str:
    return _markdown(inspect.cleandoc(entry.__doc__ or "").split("\n\n")[0])


def _markdown(text: str) -> str:
    """A docstring's words on one line."""
    text = re.sub(r":(?:class|func):`([^`]*)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`")


def _table(keys: Iterator[Key] | list[Key]) -> str:
    cells = [[f"`{k.name}`", k.type, k.default, k.meaning] for k in keys]
    rows = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells)
    return "\n".join(
        ["| key | type | default | meaning |", "|---|---|---|---|", *(f"| {row} |" for row in rows)]
    )


def _groups(registry: Registry) -> dict[Callable[..., Any], list[str]]:
    """What the program itself registers, with the names of each; plug-ins have their own pages."""
    found: dict[Callable[..., Any], list[str]] = {}
    for name in registry.names():
        entry = registry.get(name)
        if entry.__module__.startswith("minigpt4.") and ".cli." not in entry.__module__:
            found.setdefault(entry, []).append(name)
    return found


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _parts(registry: Registry, level: str) -> Iterator[str]:
    """A heading, a sentence and a table for each part of a registry."""
    for entry, names in _groups(registry).items():
        yield f"\n{level} {_names(names)}\n\n{_summary(entry)}\n"
        chosen_by = "type" if registry is BUILDERS else "name"
        chooses = Key(chosen_by, _names(names), "needed", f"Chooses this {registry.kind}.")
        if registry is BUILDERS:
            chooses = chooses._replace(default="its own name")
        yield _table([chooses, *keys_of(entry)])


def _model() -> Iterator[str]:
    for entry, names in _groups(MODELS).items():
        yield "\n## model\n"
        yield _table(
            [
                Key("arch", _names(names), "needed", "Which model. " + _refused()),
                Key("model_type", "str", "needed", "Which [preset](#presets) lies underneath."),
                *keys_of(entry),
            ]
        )


def _towers() -> Iterator[str]:
    yield "\n## Vision towers\n"
    yield "Named by `model.vision_tower`; without it EVA is built from `model`'s own keys."
    yield from _parts(VISION_TOWERS, "###")


def _refused() -> str:
    return "; ".join(f"`{arch}` is refused: {why}" for arch, why in REFUSED_ARCHS.items()) + "."


def _datasets() -> Iterator[str]:
    yield "\n## datasets\n"
    yield (
        "Each key names a data set. What kind it is says its `type`, without one its name. Each "
        "step draws one data set by `sample_ratio`.\n\n"
        "```yaml\ndatasets:\n  my_pairs:            # any name\n    type: pairs\n"
        '    storage: "rows.jsonl"\n```'
    )
    yield from _parts(BUILDERS, "###")
    yield f"\n## processors\n\n{PROCESSORS}\n### Image processors"
    yield from _parts(IMAGE_PROCESSORS, "####")
    yield "\n### Text processors"
    yield from _parts(TEXT_PROCESSORS, "####")


def _run() -> Iterator[str]:
    for entry, names in _groups(RUNNERS).items():
        yield "\n## run\n"
        runner = Key("runner", _names(names), f"`{names[0]}`", "Who trains.")
        yield _table([runner, *keys_of(entry)])
    yield "\n### Learning-rate schedules\n"
    yield "Named by `run.lr_sched`; their options are those of `run`.\n"
    yield from _list(LR_SCHEDULES)
    yield "\n### Tasks\n"
    yield "Named by `run.task`.\n"
    yield from _list(TASKS)
    yield "\n### Metrics\n"
    yield "Named by `run.metrics`; each gives one number for a sample, and the mean is told.\n"
    yield from _list(METRICS)


def _list(registry: Registry) -> Iterator[str]:
    yield "| name | |\n|---|---|"
    for entry, names in _groups(registry).items():
        yield f"| {_names(names)} | {_summary(entry)} |".replace("\n", " ")


def _chat() -> Iterator[str]:
    yield "\n## chat\n"
    yield _table(keys_of(GenerationOptions))
    yield "\n### chat.template\n"
    yield (
        f"A name ({_names(sorted(SHIPPED))}), `{OWN}` for the chat template that lies in the "
        "language model's folder, or these keys "
        "([an example](extending.md#with-a-template-that-is-written-out)):\n"
    )
    yield _table(keys_of(Template))


def _rest() -> Iterator[str]:
    yield "\n## Presets\n"
    yield "What a preset sets lies under your YAML. `arch` and `model_type` choose one:\n"
    yield from _presets("models", sorted(_groups(MODELS).popitem()[1], key=len, reverse=True))
    yield "\nA data set's `type` (or name) brings one where there is one:\n"
    yield from _presets("datasets", [])
    yield "\n## Retired keys\n"
    yield (
        "Keys of the original that decide nothing any more. They are taken out with a line that "
        "says so; `freeze_…` is a fault unless it says `True` (`freeze_qformer: False` adds "
        "`q_former` to `model.trainable`).\n"
    )
    yield "| key | what decides now |\n|---|---|"
    yield from (f"| `{key}` | {reason} |" for key, reason in RETIRED.items())


def _presets(folder: str, archs: list[str]) -> Iterator[str]:
    yield "| " + ("`arch`, `model_type`" if archs else "`type`") + " | sets |\n|---|---|"
    files = (resources.files("minigpt4.configs") / folder).iterdir()
    for file in sorted(files, key=lambda file: file.name):
        if not file.name.endswith(".yaml"):
            continue
        name = file.name.removesuffix(".yaml")
        arch = next((arch for arch in archs if name.startswith(f"{arch}_")), None)
        title = f"`{arch}`, `{name.removeprefix(f'{arch}_')}`" if arch else f"`{name}`"
        values = flattened(parse(file.read_text(encoding="utf-8")))
        yield f"| {title} | " + ", ".join(f"`{k}: {_yaml(v)}`" for k, v in values.items()) + " |"


def flattened(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys by dots."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
