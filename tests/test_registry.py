import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from minigpt4.config.checks import NotNegative, Positive, PositiveFloat
from minigpt4.config.plugins import import_plugins
from minigpt4.errors import ConfigError, Fault, near, nearest
from minigpt4.registry import (
    BUILDERS,
    IMAGE_PROCESSORS,
    LR_SCHEDULES,
    METRICS,
    MODELS,
    RUNNERS,
    TASKS,
    TEXT_PROCESSORS,
    Hidden,
    Registry,
    bind,
)
from tests.helpers.messages import one_line, several_lines

HOME = "minigpt4.errors"  # any module that can be imported
SHAPES = Registry("shape", home=HOME)


@SHAPES.register("circle")
def build_circle(radius: Positive = 1, label: str = "") -> dict[str, Any]:
    """A small entry to bind options to."""
    return {"radius": radius, "label": label}


@dataclass(frozen=True)
class Size:
    width: Positive
    height: int = 2


def entry(
    injected: Annotated[object, Hidden],
    number: int,
    share: float = 0.5,
    flag: bool = False,
    words: tuple[str, str] = ("a", "b"),
    size: Size | None = None,
    kind: Literal["big", "small"] = "big",
    shape: Annotated[str, SHAPES] = "circle",
    shapes: dict[str, Annotated[dict[str, Any], SHAPES]] | None = None,
    names: tuple[Annotated[str, SHAPES], ...] = (),
    sides: list[Positive] | None = None,
    steps: NotNegative | None = None,
    norm: PositiveFloat | None = None,
    storage: str | list[str] = "",
    trim: str | Size = "none",
) -> dict[str, Any]:
    return {**locals()}


def faults_of(options: Mapping[str, Any], dry: bool = True) -> list[Fault]:
    return bind(entry, {"number": 1, **options}, "part", dry)[1]


# Names


@pytest.mark.parametrize(
    ("registry", "known"),
    [
        (BUILDERS, {"laion", "cc_sbu", "cc_sbu_align"}),
        (MODELS, {"minigpt4", "mini_gpt4"}),
        (IMAGE_PROCESSORS, {"blip2_image_train", "blip2_image_eval"}),
        (TEXT_PROCESSORS, {"blip_caption"}),
        (LR_SCHEDULES, {"linear_warmup_cosine_lr", "linear_warmup_step_lr"}),
        (RUNNERS, {"runner_base"}),
        (TASKS, {"image_text_pretrain"}),
        (METRICS, {"exact_match"}),
    ],
    ids=lambda value: value.kind if isinstance(value, Registry) else "",
)
def test_registries_know_the_originals_names(registry: Registry, known: set[str]) -> None:
    assert known <= set(registry.names())
    assert registry.names() == sorted(registry.names())
    for name in known:
        assert callable(registry.get(name))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with one_line(ConfigError, "unknown data set 'coco'", "cc_sbu, cc_sbu_align, laion"):
        BUILDERS.get("coco")
    with one_line(ConfigError, "unknown shape 'square'; known: circle"):
        SHAPES.build("square", {})


def test_a_registry_imports_its_home_on_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home_of_tests.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("thing", home="home_of_tests")
    assert "home_of_tests" not in sys.modules
    assert registry.names() == []
    assert "home_of_tests" in sys.modules


def test_a_name_taken_by_something_else_is_refused() -> None:
    registry = Registry("thing", home=HOME)
    registry.register("x")(build_circle)
    registry.register("x")(build_circle)
    with one_line(ConfigError, "thing 'x'", "registered already"):
        registry.register("x")(entry)
    assert registry.get("x") is build_circle


# Options against a signature


def test_options_reach_the_callable_with_what_is_injected() -> None:
    registry = Registry("thing", home=HOME)
    registry.register("x")(entry)
    built = registry.build("x", {"number": 3, "size": {"width": 4}}, injected="here")
    assert built["number"] == 3
    assert built["injected"] == "here"
    assert built["size"] == Size(4, 2)
    assert built["share"] == 0.5


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"share": 1}, 1.0),
        ({"words": ["x", "y"]}, ("x", "y")),
        ({"size": None}, None),
        ({"steps": None}, None),
        ({"steps": 3}, 3),
        ({"kind": "small"}, "small"),
        ({"names": ["circle", "circle"]}, ("circle", "circle")),
        ({"names": []}, ()),
        ({"sides": [1, 2]}, [1, 2]),
        ({"storage": ["a", "b"]}, ["a", "b"]),
        ({"storage": "a"}, "a"),
        ({"number": -7}, -7),
    ],
)
def test_values_that_fit(options: dict[str, Any], value: object) -> None:
    bound, faults = bind(entry, {"number": 1, **options}, "part", dry=True)
    assert faults == []
    (key,) = options
    assert getattr(bound.options, key) == value


@pytest.mark.parametrize(
    ("options", "key", "text"),
    [
        ({"number": "many"}, "part.number", "'many': input should be a valid integer"),
        ({"number": True}, "part.number", "True: input should be a valid integer"),
        ({"number": 1.5}, "part.number", "1.5: input should be a valid integer"),
        ({"number": None}, "part.number", "None: input should be a valid integer"),
        ({"number": [1]}, "part.number", "[1]: input should be a valid integer"),
        ({"share": "0.5"}, "part.share", "'0.5': input should be a valid number"),
        ({"flag": 1}, "part.flag", "1: input should be a valid boolean"),
        ({"flag": "yes"}, "part.flag", "'yes': input should be a valid boolean"),
        ({"words": ["x"]}, "part.words", "['x']"),
        ({"kind": "huge"}, "part.kind", "'huge': input should be 'big' or 'small'"),
        ({"size": 3}, "part.size", "3 is not a set of keys"),
        ({"size": {}}, "part.size.width", "missing"),
        ({"size": {"width": 0}}, "part.size.width", "0 must be greater than 0"),
        ({"size": {"width": 1, "heigth": 2}}, "part.size.heigth", "did you mean 'height'?"),
        ({"shape": "cirlce"}, "part.shape", "unknown shape 'cirlce'; known: circle"),
        ({"names": ["circle", "cirlce"]}, "part.names", "unknown shape 'cirlce'; known: circle"),
        ({"names": [3]}, "part.names", "3: input should be a valid string"),
        ({"names": "circle"}, "part.names", "'circle': input should be a valid"),
        ({"sides": [1, 0]}, "part.sides", "0 must be greater than 0"),
        ({"shapes": {"a": 5}}, "part.shapes.a", "must be a set of keys with a 'name'"),
        ({"shapes": {"a": {}}}, "part.shapes.a", "must be a set of keys with a 'name'"),
        ({"shapes": {"a": {"name": "dot"}}}, "part.shapes.a.name", "known: circle"),
        (
            {"shapes": {"a": {"name": "circle", "raduis": 2}}},
            "part.shapes.a.raduis",
            "did you mean 'radius'?",
        ),
        (
            {"shapes": {"a": {"name": "circle", "radius": 0}}},
            "part.shapes.a.radius",
            "0 must be greater than 0",
        ),
        ({"steps": -1}, "part.steps", "-1 must not be negative"),
        ({"norm": 0.0}, "part.norm", "0.0 must be greater than 0"),
        ({"storage": 5}, "part.storage", "5: "),
        ({"nubmer": 3}, "part.nubmer", "unknown key; did you mean 'number'?"),
        ({"zzzzzz": 3}, "part.zzzzzz", "unknown key; known: flag, kind, "),
        ({"injected": 3}, "part.injected", "unknown key"),
        ({"storage": {1, 2}}, "part.storage", "is not a plain value"),
    ],
)
def test_a_value_that_does_not_fit_is_named(options: dict[str, Any], key: str, text: str) -> None:
    (fault,) = faults_of(options)
    assert fault.key == key
    assert text in fault.text
    assert "\n" not in fault.text


def test_a_missing_option_is_named_unless_the_section_is_partial() -> None:
    (fault,) = bind(entry, {}, "part")[1]
    assert fault == Fault("part.number", "missing; it has no default")
    assert bind(entry, {}, "part", partial=True)[1] == []


def test_checks_run_only_when_asked() -> None:
    assert faults_of({"steps": -1}, dry=False) == []


def test_all_faults_come_at_once() -> None:
    registry = Registry("thing", home=HOME)
    registry.register("x")(entry)
    with several_lines(ConfigError, "x.share: ", "x.flagg: ", "x.size.width: ", "x.number: "):
        registry.build("x", {"share": "a", "flagg": True, "size": {}}, injected=None)


@pytest.mark.parametrize("key", [1, True])
def test_a_key_that_is_no_word_is_a_fault(key: Any) -> None:
    (fault,) = faults_of({key: 2})
    assert fault.key == f"part.{key}"
    assert "unknown key" in fault.text


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("batch_size_trian", ["batch_size_train", "seed"], "did you mean 'batch_size_train'?"),
        ("xyz", ["batch_size_train", "seed"], "known: batch_size_train, seed"),
        ("xyz", [], "known: none"),
    ],
)
def test_hint_for_an_unknown_word(word: str, known: list[str], hint: str) -> None:
    assert nearest(word, known) == hint


# Plugins


@pytest.fixture
def own_builders(own_registrations: None) -> Registry:
    """The data-set registry; what a test registers is forgotten afterwards."""
    return BUILDERS


PLUGIN = """
from typing import Annotated
from minigpt4.registry import BUILDERS, Hidden

@BUILDERS.register("mine")
def build_mine(name: Annotated[str, Hidden], size: int = 1) -> str:
    return f"{name} of {size}"
"""


@pytest.mark.parametrize(
    ("plugins", "folder"),
    [
        (["./my_pairs.py"], "."),
        (["./my_pairs.py", "./my_pairs.py"], "."),  # imported twice
        (["my_pairs.py"], "configs"),  # looked up in the current folder, too
        (["my_pairs"], "."),  # a module
    ],
)
def test_a_plugin_registers_a_data_set(
    tmp_path: Path,
    own_builders: Registry,
    monkeypatch: pytest.MonkeyPatch,
    plugins: list[str],
    folder: str,
) -> None:
    (tmp_path / "my_pairs.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        import_plugins(plugins, tmp_path / folder)
    assert own_builders.build("mine", {"size": 3}, name="mine") == "mine of 3"


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        ("def (", "invalid syntax"),
        ("import no_such_thing", "no_such_thing"),
        ("undefined_name", "undefined_name"),
        ("1 / 0", "division by zero"),
        ("raise ValueError('two\\nlines')", "two lines"),
        ("raise KeyError('lost')", "lost"),
    ],
)
def test_an_error_in_a_plugin_is_one_line_that_names_it(
    tmp_path: Path, content: str, mention: str
) -> None:
    (tmp_path / "broken.py").write_text(content)
    with one_line(ConfigError, "plugins: ./broken.py", mention):
        import_plugins(["./broken.py"], tmp_path)


@pytest.mark.parametrize("plugin", ["./none.py", "no_such_module", "no.such.module", ".here", ""])
def test_a_plugin_that_is_not_there_is_one_line(tmp_path: Path, plugin: str) -> None:
    with one_line(ConfigError, f"plugins: {plugin}"):
        import_plugins([plugin], tmp_path)


def test_two_plugins_with_one_name_do_not_replace_each_other_in_silence(
    tmp_path: Path, own_builders: Registry
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(PLUGIN)
    with one_line(ConfigError, "two.py", "'mine' is registered already"):
        import_plugins(["./one.py", "./two.py"], tmp_path)


def test_a_plugins_parameter_without_a_type_is_one_line(
    tmp_path: Path, own_builders: Registry
) -> None:
    (tmp_path / "untyped.py").write_text(PLUGIN.replace("size: int = 1", "size=1"))
    with one_line(ConfigError, "plugins: ./untyped.py", "'mine'", "'size' has no type"):
        import_plugins(["./untyped.py"], tmp_path)


def test_a_plugin_cannot_take_a_name_of_ours_before_ours_is_there(tmp_path: Path) -> None:
    """In a fresh process, where no home package is imported yet."""
    (tmp_path / "clash.py").write_text(PLUGIN.replace('"mine"', '"laion"'))
    code = (
        "import sys; from pathlib import Path\n"
        "from minigpt4.errors import ConfigError\n"
        "from minigpt4.config.plugins import import_plugins\n"
        "try:\n    import_plugins(['./clash.py'], Path(sys.argv[1]))\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "plugins: ./clash.py" in result.stdout
    assert "'laion' is registered already" in result.stdout


def test_a_set_with_a_fixed_list_of_keys_takes_no_others() -> None:
    def build(specs: dict[Literal["train", "eval"], Annotated[dict[str, Any], SHAPES]]) -> None:
        raise AssertionError

    _, (fault,) = bind(build, {"specs": {"Train": {"name": "circle"}}}, "part")
    assert fault == Fault("part.specs.Train", "unknown key; did you mean 'train'?")


@pytest.mark.parametrize(
    ("word", "meant"), [("SEED", "seed"), ("sede", "seed"), ("Max-Epoch", "max_epoch"), ("x", None)]
)
def test_the_nearest_name_is_found_in_any_case(word: str, meant: str | None) -> None:
    assert near(word, ("seed", "max_epoch")) == meant


def test_a_name_or_a_set_of_keys() -> None:
    bound, faults = bind(entry, {"number": 1, "trim": {"width": 3}}, "part")
    assert (bound.options.trim, faults) == (Size(3), [])
    assert bind(entry, {"number": 1, "trim": "some"}, "part")[0].options.trim == "some"
    (fault,) = faults_of({"trim": {"width": 3, "heigth": 1}})
    assert fault == Fault("part.trim.heigth", "unknown key; did you mean 'height'?")
    (fault,) = faults_of({"trim": {"width": 0}})
    assert fault.key == "part.trim.width"
    (fault,) = faults_of({"trim": 3})
    assert fault.key == "part.trim"
