"""The command ``export``: a folder for transformers, its projection back, and users' mistakes."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import Blip2ForConditionalGeneration

from minigpt4.__main__ import main
from minigpt4.chat import load_chat
from minigpt4.weights.checkpoint import load_weights
from tests.helpers.pages import commands_of
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT, EntryPoint
from tests.helpers.repo import TINY as YAML

PAGE = "docs/export.md"


# The way back


def test_the_projection_comes_back_bit_by_bit(
    exported: Path, projection: Path, tmp_path: Path, run_entry: EntryPoint
) -> None:
    back = tmp_path / "back.pth"
    run_entry.ok(main, "export", "--from", exported, "--to", "minigpt4", back)
    sent, returned = load_weights(projection)["model"], load_weights(back)["model"]
    assert sent.keys() == returned.keys()
    assert all(torch.equal(sent[name], returned[name]) for name in sent)
    again = load_chat(YAML, [f"model.ckpt={back}"], device="cpu")
    assert torch.equal(again.model.llama_proj.weight, sent["llama_proj.weight"])


def test_a_lora_is_merged_and_nothing_is_quantised(
    projection: Path, tmp_path: Path, run_entry: EntryPoint
) -> None:
    trainable = "model.trainable=[llama_proj,lora]"
    chat = load_chat(YAML, [f"model.ckpt={projection}", trainable], device="cpu")
    with torch.no_grad():
        for name, parameter in chat.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    weights = {n: p.detach() for n, p in chat.model.named_parameters() if p.requires_grad}
    torch.save({"model": weights}, tmp_path / "lora.pth")
    options = [f"model.ckpt={tmp_path}/lora.pth", trainable, "model.low_resource=True"]
    folder = tmp_path / "hf"
    run_entry.ok(main, "export", "--to", "hf", folder, "--cfg-path", YAML, "--options", *options)
    exported = Blip2ForConditionalGeneration.from_pretrained(folder)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        theirs = exported.language_model(input_ids=ids).logits
        ours = chat.model.llama_model(input_ids=ids).logits
        plain = load_chat(YAML, ["model.ckpt="], device="cpu").model.llama_model(input_ids=ids)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (plain.logits - ours).abs().max() > 0.1


def test_the_page_holds_what_it_says(
    projection: Path, tmp_path: Path, run_entry: EntryPoint
) -> None:
    """Its commands in their order, then its program, on the embedded default."""
    for command in commands_of(PAGE):
        command = command.replace("output/", f"{tmp_path}/")
        words = shlex.split(command.replace("eval_configs/minigpt4_eval.yaml", YAML))
        assert words[:3] == ["python", "-m", "minigpt4"]
        chosen = ["--options", f"model.ckpt={projection}"] if "--cfg-path" in words else []
        run_entry.ok(main, *words[3:], *chosen)
    returned = load_weights(tmp_path / "projection.pth")["model"]
    for name, value in load_weights(projection)["model"].items():
        assert torch.equal(returned[name], value)
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / PAGE).read_text(), flags=re.S)
    Image.open("tests/golden/processors/a_landscape_rgb.png").convert("RGB").save(
        tmp_path / "photo.jpg", quality=100
    )
    program = program.replace("output/", "")
    result = finished([sys.executable, "-I", "-c", program], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ours = load_chat(YAML, [f"model.ckpt={projection}"]).ask(
        "What is this?", [tmp_path / "photo.jpg"]
    )
    assert result.stdout.strip() == ours


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["--to", "gguf", "x"], "unknown format; known: hf DIR, minigpt4 FILE.pth"),
        (["--to", "hf", "x"], "give --cfg-path"),
        (["--to", "hf", "x", "--cfg-path", YAML, "--from", "y"], "no --from"),
        (["--to", "minigpt4", "x.pth"], "give --from DIR"),
        (["--to", "minigpt4", "x.pth", "--from", "assets"], "assets"),
        (["--to", "minigpt4", "x.pth", "--from", "assets/tiny/llama"], "no language_projection"),
        (["--to", "minigpt4", "x.safetensors", "--from", "y"], "must end in .pth"),
        (["--to", "minigpt4", "assets/tiny/eva_vit.pth", "--from", "y"], "exists already"),
        (["--to", "hf", "assets", "--cfg-path", YAML], "assets: exists already"),
        (["--to", "hf", "README.md", "--cfg-path", YAML], "README.md: exists already"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], mention: str, run_entry: EntryPoint, projection: Path
) -> None:
    options = ["--options", f"model.ckpt={projection}"] if "--cfg-path" in arguments else []
    assert mention in run_entry.refused(main, "export", *arguments, *options)


@pytest.mark.parametrize(
    ("option", "mention"),
    [
        ("model.has_qformer=False", "without Q-Former cannot be exported"),
        ("model.llama_model=LLAMA", "holds no tokenizer.model"),
    ],
)
def test_models_that_cannot_be_carried_are_refused_before_loading(
    option: str, mention: str, run_entry: EntryPoint, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    arguments = ["--to", "hf", tmp_path / "hf", "--cfg-path", YAML, "--options", "model.ckpt="]
    option = option.replace("LLAMA", str(tmp_path))
    assert mention in run_entry.refused(main, "export", *arguments, option)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_entry: EntryPoint
) -> None:
    def full(self: Blip2ForConditionalGeneration, to: Path) -> None:
        (to / "model-00001-of-00002.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(Blip2ForConditionalGeneration, "save_pretrained", full)
    arguments = ["--to", "hf", tmp_path / "hf", "--cfg-path", YAML, "--options", "model.ckpt="]
    assert "No space left on device" in run_entry.refused(main, "export", *arguments)
    assert not list(tmp_path.iterdir())
