"""``python -m docs.generate``: write the pages that are made from the code."""

from pathlib import Path

from docs.generate.configuration import configuration_page
from docs.generate.messages import messages_page

DOCS = Path(__file__).parent.parent


def main() -> None:
    """Write ``docs/configuration.md`` and ``docs/messages.md`` anew."""
    mends = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    (DOCS / "messages.md").write_text(messages_page(mends), encoding="utf-8")
    (DOCS / "configuration.md").write_text(configuration_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
