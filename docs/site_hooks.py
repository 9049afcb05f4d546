"""Hooks of the documentation site: add pages that are not in ``docs/``, and adapt their links."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# These pages are next to what they describe in the repository, and keep their path on the site.
OUTSIDE = (
    "dataset/README_1_STAGE.md",
    "dataset/README_2_STAGE.md",
    "dataset/README_OXFORD_HIC.md",
    "dataset/PrepareVicuna.md",
    "benchmarks/RESULTS.md",
    "CONTRIBUTING.md",
    "assets/tiny/README.md",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in ``docs/``."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to places on the site instead of places in the repository."""
    path = page.file.src_uri
    source = path if path in OUTSIDE else f"docs/{path}"

    def adapt(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        file = os.path.normpath(os.path.join(os.path.dirname(source), target))
        on_site = file.removeprefix("docs/")
        if (ROOT / file).exists() and files.get_file_from_path(on_site) is None:
            return text  # a file of the repository that is not a page
        return f"[{text}]({os.path.relpath(on_site, os.path.dirname(path) or '.')}{anchor})"

    return re.sub(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", adapt, markdown)
