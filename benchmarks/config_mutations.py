"""Mutations of a YAML: typing mistakes, wrong types, nulls, lists, depth, numbers, odd texts."""

import copy
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A damaged YAML; ``mistyped`` is the key that the check must name."""

    kind: str
    text: str
    options: tuple[str, ...] = ()
    mistyped: str = ""


# Mutations: each takes the YAML's content and gives a case.


def keys_of(content: Any, above: Key = ()) -> Iterator[Key]:
    """The way to every key of nested sections."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield (*above, name)
            yield from keys_of(value, (*above, name))


def place_of(content: Any, key: Key) -> Any:
    for part in key[:-1]:
        content = content[part]
    return content


def mistype(name: str, rng: random.Random, known: set[str]) -> str:
    """A typing mistake that makes no other known word."""
    at = rng.randrange(len(name))
    slips = [
        name[:at] + name[at + 1 :],  # a letter left out
        name[:at] + name[at] + name[at:],  # doubled
        name[: at + 1] + rng.choice("aeiknrst_") + name[at + 1 :],
        name[:at] + rng.choice("abcxyz") + name[at + 1 :],
        name[:at] + name[at : at + 2][::-1] + name[at + 2 :],  # two in each other's place
        name.upper(),
        name.capitalize(),
        name.replace("_", "-"),
        name.replace("_", ""),
        name + "s",
        " " + name,
        name + "é",
    ]
    rng.shuffle(slips)
    return next(slip for slip in slips if slip and slip not in known)


def _is_free_name(content: dict[str, Any], key: Key) -> bool:
    """Whether a key may be any word: a data set that says by its type what it is."""
    return key[:1] == ("datasets",) and len(key) == 2 and "type" in _get(content, key)


def damaged_key(content: dict[str, Any], rng: random.Random) -> Case:
    keys = [key for key in keys_of(content) if not _is_free_name(content, key)]
    known = {str(part) for key in keys for part in key} | _OTHER_WORDS
    key = rng.choice(keys)
    wrong = mistype(key[-1], rng, known)
    place = place_of(content, key)
    renamed = {(wrong if name == key[-1] else name): value for name, value in place.items()}
    place.clear()
    place.update(renamed)
    return Case("mistyped key", dump(content), mistyped=".".join((*key[:-1], wrong)))


def damaged_option(content: dict[str, Any], rng: random.Random) -> Case:
    keys = [key for key in keys_of(content) if len(key) > 1]
    known = {str(part) for key in keys for part in key} | _OTHER_WORDS
    key = rng.choice(keys)
    wrong = ".".join((*key[:-1], mistype(key[-1], rng, known).replace("=", "")))
    value = yaml.safe_dump(rng.choice(VALUES[:12]), default_flow_style=True).split("\n")[0]
    return Case("mistyped option", dump(content), (f"{wrong}={value}",), mistyped=wrong)


def damaged_value(
    kind: str, values: Sequence[Any]
) -> Callable[[dict[str, Any], random.Random], Case]:
    def damage(content: dict[str, Any], rng: random.Random) -> Case:
        key = rng.choice([key for key in keys_of(content) if key[0] != "plugins"])
        place_of(content, key)[key[-1]] = copy.deepcopy(rng.choice(values))
        return Case(kind, dump(content))

    return damage


def odd_options(content: dict[str, Any], rng: random.Random) -> Case:
    key = ".".join(map(str, rng.choice(list(keys_of(content)))))
    # argparse takes what starts with dashes for a flag of its own, and says so.
    return Case("odd option", dump(content), (rng.choice(OPTIONS).replace("KEY", key),))


def odd_keys(content: dict[str, Any], rng: random.Random) -> Case:
    key = rng.choice([key for key in keys_of(content) if isinstance(_get(content, key), dict)])
    _get(content, key)[rng.choice(NAMES)] = rng.choice([1, None, {}, []])
    return Case("odd key", dump(content))


def odd_text(content: dict[str, Any], rng: random.Random) -> Case:
    """The text itself: a line or some letters lost, doubled, moved, or YAML of the rarer kind."""
    lines = dump(content).splitlines()
    at = rng.randrange(len(lines))
    choice = rng.randrange(8)
    if choice == 0:
        del lines[at]
    elif choice == 1:
        lines.insert(at, lines[at])  # a duplicate key, mostly
    elif choice == 2:
        lines[at] = " " * rng.randrange(1, 9) + lines[at]
    elif choice == 3:
        lines[at] = lines[at].strip()
    elif choice == 4:
        lines = lines[:at]
    elif choice == 5:
        lines.insert(rng.randrange(len(lines)), rng.choice(LINES))
    elif choice == 6:
        letters = list(lines[at])
        for _ in range(3):
            letters.insert(rng.randrange(len(letters) + 1), rng.choice("{}[]:#&*!|>'\"%@`,?-\t\\$"))
        lines[at] = "".join(letters)
    else:
        rng.shuffle(lines)
    return Case("odd text", "\n".join(lines) + "\n")


def _get(content: Any, key: Key) -> Any:
    for part in key:
        content = content[part]
    return content


def _nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"deeper": value}
    return value


VALUES: list[Any] = [
    "fast", "", 0, -1, 1.5, True, "None", "é\U0001f600\u202e", " ", "a\nb", ".", "../..",
    "nan", "1e400", [], {}, [[]], [None], {"name": 3}, {"a": {"b": 1}}, "/", "/etc/passwd",
    "x" * 9000, "http://", "http://[", "https://example.invalid/", "a/b", "\x7f", "{0..3",
    "{0..99999999999}.tar", "{a,b}{a,b}", "*", "~", "/dev/null", "/proc/self", b"bytes", "###",
    "{} {}", "-1", "2026-11-21",
]  # fmt: skip
OPTIONS = [
    "KEY", "KEY=", "=KEY", "KEY.=1", ".KEY=1", "KEY..a=1", "KEY=[", "KEY={", "KEY=${KEY}",
    "KEY=!!int x", "KEY=" + "[" * 2000, "KEY[0]=1", "KEY=*a", "KEY=&a [*a]", "KEY=\t", "=", "",
    "KEY=" + "9" * 5000, "KEY=0x" + "f" * 6000, "KEY.x.y.z=1", "KEY=a: b: c", "--KEY=1",
    "KEY=\ud800", "KEY=\x00", "KEY=\U0001f600", "KEY=???", "KEY=@", "." * 50 + "=1",
    "a." * 99 + "b=1",
]  # fmt: skip
NAMES: list[Any] = [
    None, True, 3, 1.5, "", " ", "é", "\U0001f600", "a\nb", "a.b", "a" * 3000, "${run.seed}",
]  # fmt: skip
NUMBERS = [10**9, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**18), 1e308, -1e308, 1e-308]
NUMBERS += [float("inf"), float("-inf"), float("nan")]
LISTS: list[Any] = [[1], ["a", "b"], [None], [[[]]], [{"a": 1}], list(range(500))]
DEEP = [_nested(depth, kind) for depth in (5, 15, 30, 120) for kind in (list, dict)]
REFERENCES = ["${nowhere}", "${run.seed}", "${model}", "${", "${a", "${oc.env:NOPE}", "${.}", "???"]
REFERENCES += ["${oc.decode:'[['}", "x${run.task}y", "${run}", "${datasets.laion}", "${x:1}", "$x"]
LINES = [
    "a: &a [*a]", "b: &b {c: *b}", "<<: *none", "<<: 3", "? [1, 2]\n: 3", "%YAML 9.9", "---", "...",
    "d: !!python/object:os.system {}", "e: !!set {x, y}", "f: !!bool x", "g: !!timestamp x",
    "\tx: 1", "h: !!binary ===", "run: {}", "model: null", "datasets: []", "chat: 5",
    "plugins: mine.py", "plugins: [./nowhere.py, 3, nowhere.module]", "i: 2026-13-45",
    "j: 0x" + "f" * 5000, "k: 08", "l: " + "[" * 3000, "m: " + "{a: " * 300, "processors: 3",
    "preprocess: 1", "- a", "\x00", "\ufeff", "=: 3", ": 3",
    "n: &x 1\no: &y [*x,*x,*x,*x,*x]\np: &z [*y,*y,*y,*y,*y]\nq: [*z,*z,*z,*z,*z]",
]  # fmt: skip
# Words that are known where no shipped YAML has them: a typing mistake must make none of these.
_OTHER_WORDS = {"eval", "val", "test", "preprocess", "prompt", "name"}
MUTATIONS: list[tuple[int, Callable[[dict[str, Any], random.Random], Case]]] = [
    (6, damaged_key),
    (2, damaged_option),
    (3, damaged_value("wrong type", VALUES)),
    (1, damaged_value("null", [None])),
    (1, damaged_value("list for a scalar", LISTS)),
    (2, damaged_value("huge number", NUMBERS)),
    (1, damaged_value("deep nesting", DEEP)),
    (1, damaged_value("reference", REFERENCES)),
    (1, odd_keys),
    (2, odd_options),
    (3, odd_text),
]


class _Dumper(yaml.SafeDumper):
    """Without anchors for equal values; PyYAML's own would write ``&id001``."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(content: Any) -> str:
    """YAML of anything that the mutations made."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    finally:
        sys.set_int_max_str_digits(limit)
