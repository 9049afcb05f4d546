"""Presets: what ``minigpt4/configs`` and a ``processors:`` section put under a user's YAML."""

import dataclasses
from collections.abc import Mapping
from importlib import resources
from typing import Any

from minigpt4.config.reading import parse
from minigpt4.errors import shown
from minigpt4.registry import (
    BUILDERS,
    IMAGE_PROCESSORS,
    MODELS,
    TEXT_PROCESSORS,
    Fault,
    bind,
    nearest,
)

REFUSED_ARCHS = {"minigpt_v2": "MiniGPT-v2 is not supported; use arch minigpt4 or mini_gpt4"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One origin of values: a preset, the YAML, or the options together."""

    name: str
    content: dict[Any, Any]


def model_preset(model: Mapping[str, Any], faults: list[Fault]) -> list[Layer]:
    """``configs/models/<arch>_<model_type>.yaml``; an arch without presets needs none."""
    arch, model_type = model.get("arch"), model.get("model_type")
    if not isinstance(arch, str) or arch in REFUSED_ARCHS or arch not in MODELS.names():
        faults.append(Fault("model.arch", _arch_complaint(arch)))
        return []
    folder = resources.files("minigpt4.configs") / "models"
    names = [file.name for file in folder.iterdir() if file.name.startswith(f"{arch}_")]
    name = f"{arch}_{model_type}"
    if isinstance(model_type, str) and f"{name}.yaml" in names:
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        return [Layer(f"preset {name}", parse(text))]
    if names or model_type is not None:
        types = sorted(name.removeprefix(f"{arch}_").removesuffix(".yaml") for name in names)
        text = f"unknown model type {shown(model_type)}" if model_type else "missing"
        faults.append(Fault("model.model_type", f"{text}; known: {', '.join(types)}"))
    return []


def _arch_complaint(arch: Any) -> str:
    if isinstance(arch, str) and arch in REFUSED_ARCHS:
        return REFUSED_ARCHS[arch]
    text = f"unknown model {shown(arch)}" if arch else "missing"
    return f"{text}; known: {', '.join(MODELS.names())}"


def builder_of(name: Any, entry: Any) -> Any:
    """The builder of an entry of ``datasets``: its ``type``; without one it is the entry's name."""
    return entry.get("type", name) if isinstance(entry, Mapping) else name


def unknown_data_set(name: Any) -> str:
    """What is the matter with an entry that names no builder."""
    return (
        f"unknown data set; {nearest(name, BUILDERS.names())}; one of your own says what it is by "
        "type: pairs"
    )


def data_presets(entries: Mapping[Any, Any]) -> list[Layer]:
    """``configs/datasets/<builder>.yaml`` of each data set whose builder has one."""
    folder = resources.files("minigpt4.configs") / "datasets"
    known = {file.name.removesuffix(".yaml"): file for file in folder.iterdir()}
    builders = {name: str(builder_of(name, entry)) for name, entry in entries.items()}
    return [
        Layer(f"preset {builder}", {"datasets": {name: parse(known[builder].read_text("utf-8"))}})
        for name, builder in builders.items()
        if builder in known
    ]


def put_processor_defaults(
    datasets: dict[str, dict[str, Any]], defaults: Mapping[Any, Any]
) -> list[Fault]:
    """Put the ``processors:`` section under the data sets' processors, where it has no faults."""
    faults = processor_faults(defaults)
    for name, entry in datasets.items():
        if not faults:
            datasets[name] = with_processor_defaults(entry, defaults)
    return faults


def processor_faults(defaults: Mapping[Any, Any]) -> list[Fault]:
    """Faults of the ``processors:`` section, which sets options for every use of a processor."""
    faults = []
    known = [*IMAGE_PROCESSORS.names(), *TEXT_PROCESSORS.names()]
    for name, options in defaults.items():
        where = f"processors.{name}"
        if name not in known:
            faults.append(Fault(where, f"unknown processor; {nearest(name, known)}"))
        elif not isinstance(options, dict):
            faults.append(Fault(where, f"must be a set of keys, not {shown(options)}"))
        else:
            registry = IMAGE_PROCESSORS if name in IMAGE_PROCESSORS.names() else TEXT_PROCESSORS
            faults += bind(registry.get(name), options, where)[1]
    return faults


def with_processor_defaults(
    entry: Mapping[str, Any], defaults: Mapping[Any, Any]
) -> dict[str, Any]:
    """Put the ``processors:`` section's options under each processor of that name."""
    entry = dict(entry)
    for kind in ("vis_processor", "text_processor"):
        specs = entry.get(kind)
        if isinstance(specs, dict):
            entry[kind] = {
                split: {**(defaults.get(str(spec.get("name"))) or {}), **spec}
                if isinstance(spec, dict)
                else spec
                for split, spec in specs.items()
            }
    return entry
