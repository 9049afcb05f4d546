"""Configs beside each other: the dotted keys that differ."""

import json
from collections.abc import Sequence
from typing import Any

_ABSENT = "–"


def differing_keys(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Each dotted key that is not the same in all, with its value in each; sorted by key."""
    flat = [flatten(config) for config in configs]
    keys = sorted({key for one in flat for key in one})
    table = [(key, [one.get(key, _ABSENT) for one in flat]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def flatten(content: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys with their values as texts; a list is one value."""
    if not isinstance(content, dict) or (not content and prefix):
        return {prefix: _shown(content)}
    flat: dict[str, str] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, ensure_ascii=False, default=str)
