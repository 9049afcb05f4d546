"""Plugins: a user's own files and modules, whose import registers what they add."""

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minigpt4.errors import ConfigError, one_line, shown
from minigpt4.registry import ALL_REGISTRIES, BUILDERS, METRICS, TASKS, Registry, visible_parameters

# What the program passes, and what it asks for.
_PASSED = {
    BUILDERS.kind: ("name",),
    TASKS.kind: ("prompts", "seed", "rank", "template", "question"),
}
_TASK_METHODS = ("rows", "train_step", "evaluation_step")


def import_plugins(plugins: Iterable[str], base: Path) -> None:
    """Import what a YAML lists under ``plugins``: files (``./mine.py``) or modules (``pkg.mod``).

    Relative files are looked up in ``base``, the YAML's folder, then in the current folder.

    Raises:
        ConfigError: for a file or module that cannot be imported.
    """
    plugins = list(plugins)
    for registry in ALL_REGISTRIES if plugins else ():
        registry.names()  # registers ours first, so that a plug-in cannot take their names
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(plugin, base)
            else:
                importlib.import_module(plugin)
            _check_entries()
        except Exception as error:  # the user's code may raise anything
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


def _check_entries() -> None:
    """Raise a ``ConfigError`` for an entry of a user that its first use would fail on."""
    for registry in ALL_REGISTRIES:
        for name in registry.names():
            entry = registry.get(name)
            own = getattr(entry, "__module__", "").startswith("minigpt4.")
            fault = None if own else _fault(entry, registry)
            if fault:
                raise ConfigError(f"the {registry.kind} {name!r}{fault}")


def _fault(entry: Any, registry: Registry) -> str | None:
    """Return what is wrong with an entry, to follow its name."""
    if not callable(entry):
        return f": {shown(entry)} is neither a function nor a class"
    if registry is METRICS:
        return None  # no option of a YAML is bound to it
    try:
        hints, visible = visible_parameters(entry)
    except (NameError, AttributeError, TypeError, ValueError) as error:
        return f": its types are not to be found ({one_line(error)})"
    for parameter in visible:
        if parameter not in hints:
            return f": its parameter {parameter!r} has no type; every parameter needs one"
        if parameter in _PASSED.get(registry.kind, ()):
            return f": its parameter {parameter!r} is the program's: Annotated[…, Hidden]"
    methods = _TASK_METHODS if registry is TASKS and inspect.isclass(entry) else ()
    missing = [method for method in methods if not callable(getattr(entry, method, None))]
    return f" lacks {' and '.join(missing)}" if missing else None
