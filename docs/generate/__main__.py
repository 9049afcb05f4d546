"""``python -m docs.generate``: write the page that is made from the code."""

from pathlib import Path

from docs.generate.configuration import configuration_page

DOCS = Path(__file__).parent.parent


def main() -> None:
    """Write ``docs/configuration.md`` from the code."""
    (DOCS / "configuration.md").write_text(configuration_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
