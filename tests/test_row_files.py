"""Row files: every form that users' lists come in, every way in which they are broken."""

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from minigpt4 import row_files
from minigpt4.errors import DataError
from minigpt4.row_files import Row, RowFile

BOM = b"\xef\xbb\xbf"
ROWS = [
    {"id": "1", "text": "plain"},
    {"id": "2", "text": 'quotes "here", commas, – ünïcode, 漢字, 🐈'},
    {"id": "3", "text": "two\nlines"},
    {"id": "4", "text": ""},
]


def as_jsonl(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def as_json(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    text = json.dumps(rows, ensure_ascii=False, indent=2)
    return text.replace("\n", end).encode()


def as_table(rows: list[dict[str, Any]], separator: str = ",", end: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter=separator, lineterminator=end)
    table.writerow(rows[0])
    table.writerows(row.values() for row in rows)
    return text.getvalue().encode()


def write(folder: Path, name: str, content: bytes) -> RowFile:
    (folder / name).write_bytes(content)
    return RowFile(folder / name)


def fault_of(folder: Path, name: str, content: bytes) -> str:
    """What is told of a file that is wrong as a whole, behind its path."""
    with pytest.raises(DataError) as raised:
        list(write(folder, name, content))
    told = str(raised.value)
    assert "\n" not in told
    assert told.startswith(f"{folder / name}:"), told
    return told.removeprefix(f"{folder / name}:")


def assert_reads_again(file: RowFile, rows: list[Row]) -> None:
    for row in rows:
        again = file.read(row.offset)
        assert (again.fields, again.fault, again.line) == (row.fields, row.fault, 0)


FORMS: dict[str, bytes] = {
    "list.jsonl": as_jsonl(ROWS),
    "list.json": as_json(ROWS),
    "list.csv": as_table(ROWS),
    "list.tsv": as_table(ROWS, "\t"),
    "crlf.jsonl": as_jsonl(ROWS, "\r\n"),
    "crlf.json": as_json(ROWS, "\r\n"),
    "crlf.csv": as_table(ROWS, end="\r\n"),
    "crlf.tsv": as_table(ROWS, "\t", end="\r\n"),
    "UPPER.JSONL": as_jsonl(ROWS),
    "no_end.jsonl": as_jsonl(ROWS).rstrip(b"\n"),
    "no_end.csv": as_table(ROWS)[:-1],
    "no_end.tsv": as_table(ROWS, "\t", end="\r\n")[:-2],
    "blank_lines.jsonl": b"\n \n" + as_jsonl(ROWS).replace(b"\n", b"\n\n \r\n"),
    "one_line.json": json.dumps(ROWS).encode(),
    "white.json": b" \r\n\t" + json.dumps(ROWS, indent="\t").encode() + b" \n ",
}


@pytest.mark.parametrize("bom", [b"", BOM], ids=["", "bom"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str, bom: bytes) -> None:
    file = write(tmp_path, name, bom + FORMS[name])
    rows = list(file)
    assert [row.fields for row in rows] == ROWS
    assert not any(row.fault for row in rows)
    assert_reads_again(file, rows)
    assert list(file) == rows, "as often as one likes"


@pytest.mark.parametrize(
    ("name", "lines"),
    [("list.jsonl", [1, 2, 3, 4]), ("list.json", [2, 6, 10, 14]), ("list.csv", [2, 3, 4, 6])],
)
def test_lines_are_those_of_an_editor(tmp_path: Path, name: str, lines: list[int]) -> None:
    assert [row.line for row in write(tmp_path, name, FORMS[name])] == lines


def test_columns_are_named_by_the_first_line(tmp_path: Path) -> None:
    assert write(tmp_path, "a.csv", b'" id ",text\n1,2\n').columns == ["id", "text"]
    assert write(tmp_path, "a.jsonl", b"{}\n").columns == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "utf-16", "1: is UTF-16; save it as UTF-8"),
        ("a.json", "utf-16", "1: is UTF-16; save it as UTF-8"),
        ("a.csv", "utf-16", "1: is UTF-16; save it as UTF-8"),
        ("a.jsonl", b'\n[{"a": 1},\n', "2: a json list, .* name the file .json"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "1: must be a json list of rows .* .jsonl"),
        ("a.json", b"", "1: is empty"),
        ("a.json", b" \n\n", "3: is empty"),
        ("a.json", b'[{"a": 1},\n{"a": 2}', "2: breaks off: its list is not closed"),
        ("a.json", b'[{"a": 1},\n{"a": 2},\n', "3: breaks off in row"),
        ("a.json", b'[{"a": 1},\n{"a": "tw', "2: breaks off in row"),
        ("a.json", b'[{"a": 1},\n{"a":', "2: breaks off in row"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', "2: a comma is missing"),
        ("a.json", b'[{"a": 1},\n{"a": two},{"b": 3}]' + b" " * 40, "2: is not json"),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]', "2: more follows behind the end of the list"),
        ("a.json", b'[{"a": 1},\n{"a": "\xff"}]', "2: is not UTF-8"),
        ("a.csv", b"", "1: is empty; the first line names the columns"),
        ("a.csv", b"\n \n", "1: is empty"),
        ("a.csv", b"a;b\n1;2\n", "1: .* semicolons, not commas"),
        ("a.csv", b"a\tb\n1\t2\n", "1: .* tabs, not commas"),
        ("a.csv", b"a|b\n1|2\n", "1: .* vertical bars, not commas"),
        ("a.tsv", b"a,b\n1,2\n", "1: .* commas, not tabs"),
        ("a.csv", b"a,b,a\n1,2,3\n", "1: two columns are called 'a'"),
        ("a.csv", b'"a,b\n1,2\n', "1: .*stray quote"),
    ],
)
def test_what_is_wrong_as_a_whole_is_one_line(
    tmp_path: Path, name: str, content: bytes | str, said: str
) -> None:
    raw = as_table(ROWS).decode().encode("utf-16") if isinstance(content, str) else content
    told = fault_of(tmp_path, name, raw)
    assert re.match(said, told), told


@pytest.mark.parametrize(
    ("name", "complaint"),
    [(name, r"must be one of \.jsonl, \.json, \.csv, \.tsv") for name in ("a.txt", "a", "a.csv.gz")]
    + [("a.csv", "no such file"), ("b.csv", "is a folder")],
)
def test_what_is_no_file_of_rows_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(DataError, match=complaint):
        RowFile(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "line", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n{"a": 3}\n', 2, "is not json"),
        ("a.jsonl", b'{"a": 1}\n[1]\n{"a": 3}\n', 2, r"\[1\] is not an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n{"a": 3}\n', 2, "is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n' + b"[" * 100_000 + b'\n{"a": 3}\n', 2, "is not json"),
        ("a.json", b'[{"a": 1},\n"text",\n{"a": 3}]', 2, "'text' is not an object"),
        ("a.json", b'[{"a": 1},\nnull,\n{"a": 3}]', 2, "None is not an object"),
        ("a.csv", b"a\n1\n2,2\n3\n", 3, "has 2 columns, the header 1"),
        ("a.csv", b"a,b\n1,1\n2\n3,3\n", 3, "has 1 columns, the header 2"),
        ("a.csv", b"a\n1\n\xe9\n3\n", 3, "is not UTF-8"),
        ("a.csv", b'a\n1\n"2"x\n3\n', 3, "is no row of a csv"),
        ("a.csv", b'a\n1\n"never closed\n3\n', 3, "is no row of a csv"),
    ],
)
def test_a_bad_row_is_told_and_the_others_are_read(
    tmp_path: Path, name: str, content: bytes, line: int, said: str
) -> None:
    file = write(tmp_path, name, content)
    first, bad, last = list(file)
    assert [str(row.fields["a"]) for row in (first, last)] == ["1", "3"]
    assert (bad.line, bad.fields) == (line, {})
    assert re.search(said, bad.fault), bad.fault
    assert_reads_again(file, [first, bad, last])


def test_endless_lines_fill_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "LARGEST_ROW", 1000)
    long = "x" * 5000
    file = write(tmp_path, "a.jsonl", as_jsonl([{"a": 1}, {"a": long}, {"a": 3}]))
    first, bad, last = list(file)
    assert (first.fields, last.fields) == ({"a": 1}, {"a": 3})
    assert bad.line == 2
    assert "longer than 1,000 bytes" in bad.fault
    assert_reads_again(file, [first, last])
    told = fault_of(tmp_path, "a.json", b'[{"a": 1},\n["' + long.encode())
    assert told.startswith("2: a row longer")
    told = fault_of(tmp_path, "a.csv", f"a\n1\n{long}\n".encode())
    assert told.startswith("3: a line longer")


def test_a_file_that_shrank_is_told(tmp_path: Path) -> None:
    for name in ("list.csv", "list.json", "list.jsonl"):
        file = write(tmp_path, name, FORMS[name])
        last = list(file)[-1]
        file.path.write_bytes(FORMS[name][: last.offset])
        with pytest.raises(DataError, match=r"breaks off|has changed meanwhile"):
            file.read(last.offset)


def drawn_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [drawn_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {drawn_text(rng): drawn_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    plain = (drawn_text(rng), rng.randrange(-(10**9), 10**9), rng.random() * 1e9, True, None, -0.5)
    return plain[kind]


def drawn_text(rng: random.Random) -> str:
    return "".join(rng.choice('ab, ]}[{":\\\n\t\u00e9漢🐈\u2028') for _ in range(rng.randrange(12)))


@pytest.mark.parametrize("length", range(4080, 4100))
def test_elements_may_end_where_a_read_ends(tmp_path: Path, length: int) -> None:
    """A list is read in stretches of 4,096 bytes and more."""
    rng = random.Random(length)
    values = [{"a": drawn_text(rng), "b": "x" * (length * n)} for n in (0, 1, 1, 2, 0)]
    values += [{drawn_text(rng): drawn_value(rng) for _ in range(5)} for _ in range(5)]
    indent, end = rng.choice([None, 0, 2]), rng.choice(["\n", "\r\n"])
    text = json.dumps(values, ensure_ascii=bool(length % 2), indent=indent).replace("\n", end)
    file = write(tmp_path, "list.json", rng.choice([b"", BOM]) + text.encode())
    rows = list(file)
    assert [row.fields for row in rows] == values
    for row in rows:
        assert row.line == 1 + file.path.read_bytes()[: row.offset].count(b"\n")
    assert_reads_again(file, rows)


def test_a_list_that_is_cut_anywhere_is_told(tmp_path: Path) -> None:
    """Never is a part of it taken for the whole."""
    content = json.dumps([{"a": "é\\ \n", "b": [1.5, None]}, {"c": -12}], ensure_ascii=False)
    raw = content.encode()
    for length in range(len(raw)):
        fault_of(tmp_path, "cut.json", raw[:length])


@pytest.mark.parametrize("separator", [",", "\t"])
def test_drawn_tables_are_read_as_they_were_written(tmp_path: Path, separator: str) -> None:
    rng = random.Random(0)
    for number in range(30):
        columns = [f"c{n}" for n in range(rng.randrange(2, 5))]
        rows = [{c: drawn_text(rng) + "." for c in columns} for _ in range(rng.randrange(1, 8))]
        content = as_table(rows, separator, rng.choice(["\n", "\r\n"]))
        name = f"{number}.{'csv' if separator == ',' else 'tsv'}"
        file = write(tmp_path, name, rng.choice([b"", BOM]) + content)
        found = list(file)
        assert [row.fields for row in found] == rows
        assert_reads_again(file, found)
