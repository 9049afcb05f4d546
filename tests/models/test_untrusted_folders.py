"""Folders of language models from strangers: their code is never run, nor asked about."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.repo import ROOT, TINY

CODE = """
from pathlib import Path
Path(__file__).with_name("it_ran").touch()
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizerFast
class C(LlamaConfig): model_type = "stranger"
class M(LlamaForCausalLM): config_class = C
class T(LlamaTokenizerFast): pass
"""
OF_CONFIG = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"auto_map": OF_CONFIG, "model_type": "stranger"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.T", "code.T"]}}),
    ],
)
def test_code_of_a_folder_is_not_run_even_if_a_question_says_y(
    tmp_path: Path, file: str, change: dict[str, object]
):
    folder = tmp_path / "llama"
    shutil.copytree(ROOT / "assets/tiny/llama", folder)
    (folder / "code.py").write_text(CODE)
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | change | {"tokenizer_class": "T"}))
    options = [f"model.llama_model={folder}", "model.ckpt=", "chat.template=own"]
    command = [sys.executable, "-m", "minigpt4", "chat", "--cfg-path", TINY, "--device", "cpu"]
    done = subprocess.run(
        [*command, "--options", *options],
        input="y\nWhat is this?\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin:/bin"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("it_ran"))
