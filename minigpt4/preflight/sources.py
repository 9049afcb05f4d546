"""Sources: the merged config as text, with the origin of each value."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from minigpt4.config.layers import Config, builder_of
from minigpt4.registry import (
    BUILDERS,
    IMAGE_PROCESSORS,
    MODELS,
    RUNNERS,
    TEXT_PROCESSORS,
    Registry,
    options_of,
)

Key = tuple[Any, ...]
_DEFAULT = "default"


def describe(config: Config, chat: Mapping[str, Any]) -> str:
    """Return the config as YAML, defaults included (``chat``: those of its section).

    A comment after each value says which layer set it.
    """
    whole = _with_defaults(config, chat)
    return "\n".join(_lines(whole, (), config)) + "\n"


def source_of(config: Config, key: Key) -> str:
    """Return the layer of a value: a preset, the YAML, ``--options``, or the default."""
    for layer in reversed(config.layers):
        place: Any = layer.content
        for part in key:
            if not isinstance(place, Mapping):  # a ${…} of several keys
                return layer.name
            if part not in place:
                break
            place = place[part]
        else:
            return layer.name
    return _processor_source(config, key)


def _processor_source(config: Config, key: Key) -> str:
    """Return the layer whose ``processors:`` section set an option of a processor."""
    if len(key) == 5 and key[2] in ("vis_processor", "text_processor"):
        _, dataset, kind, split, option = key
        name = config.datasets[dataset][kind][split].get("name")
        for layer in reversed(config.layers):
            options = (layer.content.get("processors") or {}).get(name)
            if isinstance(options, Mapping) and option in options:
                return f"{layer.name}, processors.{name}"
    return _DEFAULT


def _with_defaults(config: Config, chat: Mapping[str, Any]) -> dict[str, Any]:
    model = _under(config.model, _defaults(MODELS, config.arch))
    runner = config.run.get("runner", "runner_base")
    datasets = {}
    for name, entry in config.datasets.items():
        entry = _under(entry, _defaults(BUILDERS, builder_of(name, entry)))
        for kind, registry in (
            ("vis_processor", IMAGE_PROCESSORS),
            ("text_processor", TEXT_PROCESSORS),
        ):
            specs = entry.get(kind)
            if isinstance(specs, dict):
                entry[kind] = {
                    split: _under(spec, _defaults(registry, spec.get("name")))
                    if isinstance(spec, dict)
                    else spec
                    for split, spec in specs.items()
                }
        datasets[name] = entry
    sections = {"model": model, "datasets": datasets}
    sections["run"] = _under(config.run, _defaults(RUNNERS, runner))
    return sections | {"chat": _under(config.chat, chat)}


def _defaults(registry: Registry, name: Any) -> dict[str, Any]:
    """Return the defaults of a registered name; nothing for an unknown one."""
    return options_of(registry.get(name)) if name in registry.names() else {}


def _under(options: Mapping[Any, Any], defaults: Mapping[str, Any]) -> dict[Any, Any]:
    """Return options with the defaults underneath, those of nested dataclasses too."""
    joined = dict(options)
    for key, value in defaults.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
            if isinstance(joined.get(key), dict):
                joined[key] = {**value, **joined[key]}
        joined.setdefault(key, value)
    return joined


def _lines(value: Mapping[Any, Any], key: Key, config: Config) -> Iterator[str]:
    for name, item in value.items():
        start = "  " * len(key) + _flow(name) + ":"
        if isinstance(item, dict) and item:
            yield start
            yield from _lines(item, (*key, name), config)
        else:
            yield f"{start} {_flow(item)}  # {source_of(config, (*key, name))}"


def _flow(value: Any) -> str:
    """Return a value on one line, as YAML reads it back."""
    plain = list(value) if isinstance(value, tuple) else value
    options: dict[str, Any] = {"default_flow_style": True, "width": float("inf")}
    text = yaml.safe_dump(plain, **options).removesuffix("\n").removesuffix("\n...")
    # A line break in a text becomes \n between double quotes.
    return text if "\n" not in text else yaml.safe_dump(plain, default_style='"', **options).strip()
