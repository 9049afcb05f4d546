"""The index of messages: every text that the program can say → Markdown.

Found in the sources themselves: each string of two words or more that is no docstring, annotation,
help text, label of a page, or content such as a prompt. What is put in while running is ``…``.
"""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docs.generate.prose import MESSAGES

ROOT = Path(__file__).parents[2]
_SOURCES = ("minigpt4/**/*.py", "dataset/*.py", "train.py", "demo.py")
_SCRIPTS = ("Makefile", "dataset/*.sh")
# Words that are shown, learnt, asked or searched for: no messages.
_FILES_OF_CONTENT = {
    *("answers", "corpus", "phrases", "pretrain_language", "scenes", "sheet"),  # drawn scenes
    "layout",  # labels of the page
}
_NAMES_OF_CONTENT = {"_TRIALS", "_SAMPLES", "_SYSTEM", "SYSTEM", "QUESTION", "REMINDER", "FIX"}
_CALLS_OF_CONTENT = {
    *("compile", "execute", "executemany", "ArgumentParser", "add_argument", "add_argument_group"),
    *("Template", "Button", "Textbox", "Markdown", "HTML", "Image", "strftime", "basicConfig"),
}
_KINDS = {"info": "notice", "warning": "warning", "error": "error", "exception": "error"}
_VARIABLE = re.compile(r"\$\(\w+\)|\$+\(\(.*?\)\)|\$\w+")  # in a Makefile or a shell script
_SQL = re.compile(r"(?:SELECT|INSERT|UPDATE|CREATE|PRAGMA) |\w+ = OFF")


class Message(NamedTuple):
    """A text, what it is, and the file that says it."""

    text: str
    kind: str
    file: str


def messages_page(mends: str) -> str:
    """All of ``docs/messages.md``.

    Args:
        mends: Text of ``docs/troubleshooting.md``; messages that it quotes link to their place.
    """
    places = list(quotes(mends))
    parts: dict[str, dict[str, list[Message]]] = defaultdict(lambda: defaultdict(list))
    for message in all_messages():
        folder = message.file.split("/")[:-1][:2] or ["scripts at the top"]
        parts["/".join(folder)][message.text].append(message)
    lines = [MESSAGES]
    for part in sorted(parts):
        lines.append(f"## {part}\n\n| text | | said by | what to do |\n|---|---|---|---|")
        for text, found in sorted(parts[part].items(), key=lambda item: _sorting(item[0])):
            kind = next((message.kind for message in found if message.kind), "")
            files = sorted({message.file for message in found})
            said_by = ", ".join(f"[{Path(file).name}](../{file})" for file in files)
            fitting = [(len(quote), anchor) for quote, anchor in places if quote in text]
            mend = f"[here](troubleshooting.md#{max(fitting)[1]})" if fitting else ""
            lines.append(f"| {_code(text)} | {kind} | {said_by} | {mend} |")
        lines.append("")
    return "\n".join(lines)


def quotes(page: str) -> Iterator[tuple[str, str]]:
    """The messages that a page quotes, and the anchor of the heading above each.

    They stand between backticks in the first cell of a row.
    """
    above = ""
    for line in page.splitlines():
        if line.startswith("#"):
            above = anchor_of(line.lstrip("#"))
        if line.startswith("| "):
            for quote in re.findall(r"`([^`]+)`", re.split(r"(?<!\\)\|", line)[1]):
                yield quote.replace("\\|", "|"), above


def anchor_of(heading: str) -> str:
    """The anchor that a code-hosting site gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@functools.cache
def all_messages() -> tuple[Message, ...]:
    """What the sources say, in their order, Makefile and shell scripts included."""
    found: list[Message] = []
    for pattern in _SOURCES:
        for file in sorted(ROOT.glob(pattern)):
            if file.stem not in _FILES_OF_CONTENT:
                found += _in_python(file)
    for pattern in _SCRIPTS:
        for file in sorted(ROOT.glob(pattern)):
            said = re.findall(r'echo "(error: )?(.*?)"', file.read_text(encoding="utf-8"))
            name = str(file.relative_to(ROOT))
            found += [_message(_VARIABLE.sub("…", t), e and "error", name) for e, t in said]
    return tuple(message for message in found if _is_prose(message))


def _is_prose(message: Message) -> bool:
    """Whether there are two words, other than file names and keys; one, where it is surely said."""
    words = re.findall(r"(?<!\S)[^\w\s…]*[^\W\d_]{2,}", message.text)
    return len(words) > 1 or bool(message.kind and words and " " in message.text)


def _in_python(file: Path) -> Iterator[Message]:
    finder = _Texts()
    finder.visit(ast.parse(file.read_text(encoding="utf-8")))
    for text, kind in finder.found:
        yield _message(text, kind, str(file.relative_to(ROOT)))


def _message(text: str, kind: str, file: str) -> Message:
    text = re.sub(r"%[-+#0]?[\d.]*[sdgfr]|\{[\d:.]+f?\}", "…", text)
    text = " ".join(text.split()).replace("%%", "%")
    return Message(re.sub("…+", "…", text), kind, file)


class _Texts(ast.NodeVisitor):
    """Collects texts, and in which kind of statement each stands."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self._kind = ""

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # else a docstring
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._within("error", node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in _CALLS_OF_CONTENT:
            return
        if ast.unparse(node.func).startswith("logger."):
            self._within(_KINDS.get(name, ""), node)
        elif name in ("Fault", "BadSample", "RowError"):
            self._within("error", node)
        else:
            self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        """No text: an annotation."""

    def visit_Assign(self, node: ast.Assign) -> None:
        if not {ast.unparse(target) for target in node.targets} & _NAMES_OF_CONTENT:
            self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)

    def visit_Compare(self, node: ast.Compare) -> None:
        """No text: what something is compared with."""

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self._add(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        constants = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
        self._add("".join(map(str, constants)))
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                self.visit(value.value)

    def _add(self, text: str) -> None:
        markup = re.search(r"[{<][{%/]|^<|^###|^\(\) =>|\\[bd]", text)
        if text.count("\n") < 3 and not markup and not _SQL.match(text):
            self.found.append((text, self._kind))

    def _within(self, kind: str, node: ast.AST) -> None:
        before, self._kind = self._kind, kind
        self.generic_visit(node)
        self._kind = before


def _sorting(text: str) -> str:
    """Alphabetical by the first words."""
    return re.sub(r"^\W+", "", text).casefold()


def _code(text: str) -> str:
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
