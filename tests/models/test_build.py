"""Building from files: what is in memory comes from them, or is a constant of the design."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from minigpt4.errors import CheckpointError, ConfigError
from minigpt4.models.build import choose_dtype
from minigpt4.models.minigpt4 import parameter_table
from tests.helpers.messages import one_line
from tests.helpers.tiny_models import build_tiny


def test_no_buffer_is_left_uninitialised() -> None:
    junk = [torch.full((1 << 16,), float("nan")) for _ in range(64)]
    del junk  # freed memory that an uninitialised buffer would be given
    model = build_tiny()
    buffers = dict(model.named_buffers())
    biases = [value for name, value in buffers.items() if name.endswith("k_bias")]
    assert biases
    assert all(not value.any() for value in biases)
    assert all(value.isfinite().all() for value in buffers.values())
    assert not any(p.is_meta for p in model.parameters())


def test_only_the_projection_is_trained_and_the_rest_stays_in_eval_mode() -> None:
    model = build_tiny().train()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"llama_proj.weight", "llama_proj.bias"}
    frozen = (model.visual_encoder, model.ln_vision, model.q_former, model.llama_model)
    assert not any(part.training for top in frozen if top for part in top.modules())
    model(torch.zeros(1, 3, 112, 112), model.stage_rows(["a red ring"])).backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == trained
    assert "20,640 parameters are trained" in parameter_table(model)


@pytest.mark.parametrize(
    ("option", "mention"),
    [
        ("model.num_query_token=8", "query_tokens is [1, 16, 128], the model wants [1, 8, 128]"),
        ("model.visual_encoder.depth=6", "missing (first: blocks.5."),
        ("model.visual_encoder.embed_dim=64", "the model wants"),
        ("model.q_former.hidden_size=64", "does not fit this model"),
        ("model.vit_model=assets/tiny/q_former.pth", "not a visual encoder"),
        ("model.q_former_model=assets/tiny/eva_vit.pth", "not a BLIP-2 Q-Former"),
        ("model.vit_model=README.md", "README.md"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(option: str, mention: str) -> None:
    with one_line(CheckpointError, mention):
        build_tiny(option)


def test_a_language_model_with_another_ones_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    shutil.copytree("assets/tiny/llama", folder)
    shutil.copy("tests/golden/tokenizer/tokenizer.model", folder)  # 512 words: fewer than rows
    build_tiny(f"model.llama_model={folder}")
    settings = json.loads((folder / "config.json").read_text())
    settings["vocab_size"] = 600
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="llama_model"):
        build_tiny(f"model.llama_model={folder}")


def test_weights_of_another_image_size_are_resized() -> None:
    tokens = build_tiny("model.image_size=140").encode_img(torch.zeros(1, 3, 140, 140))
    assert tokens.shape == (1, 16, 160)


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("bf16", cpu) == torch.bfloat16
    with pytest.raises(ConfigError, match=r"model\.precision: fp16 needs a GPU"):
        choose_dtype("fp16", cpu)
    model = build_tiny("model.precision=bf16")
    assert model.llama_proj.weight.dtype == torch.float32
    assert model.llama_model.get_input_embeddings().weight.dtype == torch.bfloat16
    loss = model(torch.zeros(1, 3, 112, 112), model.stage_rows(["a red ring"]))
    loss.backward()
    assert loss.isfinite()
    assert model.llama_proj.weight.grad is not None
    assert model.llama_proj.weight.grad.dtype == torch.float32


def test_without_q_former_nothing_is_read_from_its_file() -> None:
    """As in the original: four patches make a token, and ``ln_vision`` stays as it is made."""
    model = build_tiny("model.has_qformer=False", "model.q_former_model=README.md")
    assert model.encode_img(torch.zeros(2, 3, 112, 112)).shape == (2, 16, 160)
    assert model.ln_vision is not None
    assert model.ln_vision.weight.eq(1).all()
    assert model.ln_vision.bias.eq(0).all()
