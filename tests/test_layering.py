"""Imports go downward only and never in a circle; the trunk and the tools stand alone."""

import ast
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import finished
from tests.helpers.repo import ROOT

PACKAGE = ROOT / "minigpt4"
TRUNK = {
    "errors",
    "files",
    "row_files",
    "registry",
    "config",
    "weights",
    "conversation",
    "processors",
    "datasets",
    "models",
    "tasks",
    "runners",
    "checked",
    "assembly",
}
NOT_FOR_THE_TRUNK = {"metrics", "evaluation", "preflight", "apps", "tools", "cli"}
FLOORS = [
    {"errors"},
    {"registry", "files", "row_files"},
    {"config", "configs", "weights", "metrics"},
    {"processors", "datasets", "models"},
    {"conversation"},
    {"tasks"},
    {"runners"},
    {"checked"},
    {"assembly"},
    {"chat"},
    {"evaluation"},
    {"preflight"},
    {"apps"},
    {"tools"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {part: number for number, parts in enumerate(FLOORS) for part in parts}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))
MODULES = {module_name(file) for file in (*FILES, *TEST_FILES)}


def imports_of(file: Path) -> set[str]:
    """Modules of the package and of the tests that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            base = node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names} & MODULES
            if base not in {module_name(file), "minigpt4"}:
                found.add(base)
    return {name for name in found if name.startswith(("minigpt4.", "tests."))}


def part_of(module: str, level: int = 1) -> str:
    return [*module.split("."), "", ""][level]


TRUNK_FILES = [file for file in FILES if part_of(module_name(file)) in TRUNK]


def test_every_file_stands_on_a_floor():
    for file in FILES:
        part = part_of(module_name(file))
        assert part == "" or part in FLOOR_OF, f"{file} stands on no floor"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_downward_only(file: Path):
    part = part_of(module_name(file))
    for imported in imports_of(file):
        other = part_of(imported)
        if other == part or "" in (other, part):  # the public API names all parts
            continue
        assert FLOOR_OF[other] < FLOOR_OF[part], f"{part} must not import {other}"


@pytest.mark.parametrize("file", TRUNK_FILES, ids=module_name)
def test_trunk_does_not_import_optional_parts(file: Path):
    assert {name for name in imports_of(file) if part_of(name) in NOT_FOR_THE_TRUNK} == set()


@pytest.mark.parametrize("file", sorted((PACKAGE / "tools").rglob("*.py")), ids=module_name)
def test_tools_do_not_import_each_other(file: Path):
    own = part_of(module_name(file), 2)
    tools = {part_of(name, 2) for name in imports_of(file) if part_of(name) == "tools"}
    assert tools <= {own}


@pytest.mark.parametrize("file", TEST_FILES, ids=module_name)
def test_tests_do_not_import_test_modules(file: Path):
    names = {name.rpartition(".")[2] for name in imports_of(file) if name.startswith("tests.")}
    assert {n for n in names if n.startswith("test_") or n in {"conftest", "parity"}} == set()


def test_there_is_no_circle():
    graph = {module_name(file): imports_of(file) for file in FILES}
    # A package's own __init__ naming its files is how a registry's home is imported.
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for imported in graph.get(module, set()):
            visit(imported, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_config_imports_no_torch():
    code = "import sys, minigpt4.config; sys.exit('torch' in sys.modules)"
    assert finished([sys.executable, "-c", code]).returncode == 0


def test_demo_loads_nothing_at_import():
    code = "import sys, demo; sys.exit(bool({'torch', 'gradio'} & set(sys.modules)))"
    assert finished([sys.executable, "-c", code]).returncode == 0
