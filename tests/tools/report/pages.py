"""A report's page as a test reads it."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Texts by section, tags, and addresses that a browser would follow.

    Attributes:
        tags: Names of all elements.
        links: Values of src and href.
        texts: By the id of the section that they stand in, "" outside.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.texts: dict[str, str] = {}
        self._section = ""
        self._hidden = False
        self.content = path.read_text(encoding="utf-8")
        self.feed(self.content)

    @property
    def text(self) -> str:
        return "\n".join(self.texts.values())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [
            str(values[name]) for name in ("src", "href", "xlink:href") if name in values
        ]
        self.handlers += [name for name in values if name.startswith("on")]
        if tag == "section":
            self._section = str(values["id"])
        elif tag == "aside":
            self._section = "notes"
        self._hidden = tag in ("style", "title")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("section", "aside"):
            self._section = ""
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden and data.strip():
            self.texts[self._section] = f"{self.texts.get(self._section, '')} {data}"
