"""The pages of the documentation as tests read them."""

import re

from tests.helpers.repo import ROOT


def commands_of(page: str) -> list[str]:
    """The commands of a page's blocks, each on one line, without what is fed to them."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    text = re.sub(
        r"<<'?(\w+)'?\n.*?\n\1\n", "\n", "\n".join(blocks), flags=re.S
    )  # what is fed to cat
    joined = text.replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]
