"""Reading: a user's YAML or ``--options`` → plain values, whatever they contain."""

import copy
import os
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minigpt4.errors import ConfigError, Fault, one_line

MAX_DEPTH = 20  # levels; a config has six
MAX_NODES = 200_000  # a list of all LAION shards has 10,489
# What a user's text can raise: PyYAML's errors, and Python's for a value that is not what its tag
# says (!!int x, !!timestamp x), a number of 5,000 digits, hundreds of brackets.
UNREADABLE = (
    yaml.YAMLError,
    OmegaConfBaseException,
    ValueError,
    LookupError,
    AttributeError,
    RecursionError,
)
_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "merge", "timestamp", "binary")


def read_yaml(path: Path) -> dict[Any, Any]:
    """Return the sections of a YAML, ``${…}`` unresolved; ``ConfigError`` if it is unreadable."""
    if not os.path.isfile(path):  # unlike Path, takes a name that no file can have
        hint = "--cfg-path takes a YAML, e.g. from train_configs/"
        raise ConfigError(f"{path}: no such file; {hint}")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (*UNREADABLE, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {one_line(error)}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: must hold sections such as model:, datasets: and run:")
    return content


def read_option(option: str) -> dict[Any, Any]:
    """Return ``a.b=c`` as nested sections, ``c`` read as YAML; ``ConfigError`` in other forms."""
    key, equals, text = option.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise ConfigError(f"--options {option}: must look like section.key=value")
    try:
        value: Any = parse(text)
    except UNREADABLE as error:
        raise ConfigError(f"--options {option}: {one_line(error)}") from error
    for part in reversed(parts):
        value = {part: value}
    return value


def parse(text: str) -> Any:
    """Return the value of a YAML text; duplicate keys are refused, ``1e-4`` is a number."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return None
    _measure(node, 0, {})
    if isinstance(node, yaml.MappingNode):
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    # OmegaConf reads only sets of keys from a text, but any value from an option.
    found = OmegaConf.from_dotlist([f"value={text}"])
    return OmegaConf.to_container(found, resolve=False)["value"]  # type: ignore[index, call-overload]


def _measure(node: yaml.Node, depth: int, sizes: dict[int, int | None]) -> int:
    """Count a node's values, those of an anchor each time it is named."""
    known = sizes.get(id(node), 0)
    if depth > MAX_DEPTH or known is None or node.tag.rpartition(":")[2] not in _TAGS:
        raise yaml.YAMLError(_refusal(node, depth, known))
    if not known:
        sizes[id(node)] = None  # until it is counted: it may hold itself
        known = 1 + sum(_measure(part, depth + 1, sizes) for part in _parts(node))
        sizes[id(node)] = known
    if known > MAX_NODES:
        raise yaml.YAMLError(f"more than {MAX_NODES:,} values")
    return known


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refusal(node: yaml.Node, depth: int, known: int | None) -> str:
    if depth > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    return "an anchor that holds itself" if known is None else f"a config knows no {node.tag}"


def resolve(content: dict[Any, Any], faults: list[Fault]) -> dict[Any, Any]:
    """Return the values with every ``${…}`` resolved; None, and an error, where it cannot be."""
    if _is_plain(content):
        return copy.deepcopy(content)
    return _Resolving(faults).plain(OmegaConf.create(content), "", 0)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether a value holds no ``${…}`` and no ``???``."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return depth <= MAX_DEPTH and all(_is_plain(part, depth + 1) for part in parts)
    return not isinstance(value, str) or ("${" not in value and value != "???")


class _Resolving:
    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        self.nodes = 0

    def plain(self, node: Any, where: str, depth: int) -> Any:
        self.nodes += 1
        if not isinstance(node, DictConfig | ListConfig):
            return node
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            self.faults.append(Fault(where, "refers to itself, or is nested too deep"))
            return None
        keys: list[Any] = list(range(len(node)) if isinstance(node, ListConfig) else node.keys())
        items = {}
        for key in keys:
            place = f"{where}.{key}" if where else str(key)
            try:
                value = node[key]
            except (OmegaConfBaseException, RecursionError) as error:
                # A ${…} that leads nowhere or in a circle, a ??? that is not filled in.
                self.faults.append(Fault(place, one_line(error).partition(" full_key:")[0]))
                value = None
            items[key] = self.plain(value, place, depth + 1)
        return list(items.values()) if isinstance(node, ListConfig) else items
