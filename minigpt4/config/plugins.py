"""Plugins: a user's own files and modules, whose import registers what they add."""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

from minigpt4.errors import ConfigError, one_line
from minigpt4.registry import ALL_REGISTRIES


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
