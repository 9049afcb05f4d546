"""The page's Python runs as it stands, but for the projection and where it writes."""

import re
from pathlib import Path

from PIL import Image

from tests.helpers.repo import ROOT

PAGE = ROOT / "docs" / "looks.md"


def test_the_pages_python_runs(projection: Path, tmp_path: Path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    file = tmp_path / "token_3.png"
    for given, instead in (
        ('load_chat("eval_configs/tiny_eval.yaml")', "load_chat(*chat_of_the_test)"),
        ('"token_3.png"', repr(str(file))),
    ):
        assert given in code
        code = code.replace(given, instead)
    options = [f"model.ckpt={projection}", "chat.max_new_tokens=8"]
    exec(code, {"chat_of_the_test": ("eval_configs/tiny_eval.yaml", options)})
    with Image.open(file) as picture:
        assert picture.size == (448, 448)
