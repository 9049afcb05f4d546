"""The estimate of GPU memory against sizes that are known and figures that people reported."""

import json
from pathlib import Path

import pytest

from minigpt4.models.towers import QFormerSize
from minigpt4.models.vision_towers.eva import VisualEncoderSize
from minigpt4.preflight.machine import too_small
from minigpt4.preflight.memory import (
    GIB,
    LanguageModelSize,
    ModelSize,
    chat_need,
    memory_table,
    read_language_model_size,
    training_need,
    weights_need,
)

VICUNA_7B = LanguageModelSize(32001, 4096, 11008, 32, 8192)
VICUNA_13B = LanguageModelSize(32001, 5120, 13824, 40, 10240)
STAGE1 = (66, 33)  # tokens of the longest sample, and those learnt
STAGE2 = (220, 161)


def model(language_model: LanguageModelSize, q_former: bool = True) -> ModelSize:
    former = QFormerSize() if q_former else None
    return ModelSize(224, 32, VisualEncoderSize(), former, language_model)


def test_parameters_are_counted_exactly() -> None:
    size = model(VICUNA_7B)
    assert size.language_model.inner + size.language_model.embeddings == 6_738_423_808
    assert size.projection == 3_149_824
    assert model(VICUNA_13B).projection == 3_937_280
    assert model(VICUNA_7B, q_former=False).projection == 23_072_768
    assert size.seeing == pytest.approx(985_951_744, rel=0.005)  # as eva_vit_g.pth without a block
    assert size.asking == pytest.approx(105_137_664, rel=0.005)  # BLIP-2's, without its text branch


def test_known_sizes_of_weights() -> None:
    assert weights_need(model(VICUNA_7B))["language model"] == pytest.approx(13.5e9, rel=0.01)
    assert weights_need(model(VICUNA_13B))["language model"] == pytest.approx(26.0e9, rel=0.01)
    assert weights_need(model(VICUNA_7B))["visual encoder"] == pytest.approx(2.0e9, rel=0.03)
    shortened = weights_need(model(VICUNA_7B), quantize="int8")["language model"]
    assert shortened == pytest.approx(7e9, rel=0.02)
    assert "Q-Former" not in weights_need(model(VICUNA_7B, q_former=False))


def test_reported_figures_of_trainings() -> None:
    stage1 = training_need(model(VICUNA_7B), *STAGE1)
    assert stage1.total(16) == pytest.approx(22.2e9, rel=0.1)
    # The original's own figure; its attention keeps the weights too, which ours does not.
    stage2 = training_need(model(VICUNA_7B), *STAGE2)
    assert stage2.total(12) == pytest.approx(36e9, rel=0.25)
    assert stage2.total(12) < 36e9
    # 158 counts the mean sample, the estimate the longest.
    assert 100 < training_need(model(VICUNA_13B), *STAGE1).largest_batch(80 * GIB) < 158


def test_reported_figures_of_chats() -> None:
    assert chat_need(model(VICUNA_7B), 2000, quantize="int8").total(1) == pytest.approx(
        11.5e9, rel=0.1
    )
    assert 16e9 < chat_need(model(VICUNA_7B), 2000).total(1) < 20e9


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    need = training_need(model(VICUNA_7B), *STAGE1)
    largest = need.largest_batch(24 * GIB)
    assert need.total(largest) <= 24 * GIB < need.total(largest + 1)
    assert need.largest_batch(GIB) == 0


def test_a_gpu_that_is_too_small_is_told_with_the_batch_that_fits() -> None:
    need = training_need(model(VICUNA_7B), *STAGE1)
    assert too_small(need, 4, 24 * GIB) is None
    text = too_small(need, 64, 24 * GIB)
    assert text is not None
    assert f"{need.largest_batch(24 * GIB)} should fit" in text
    assert "not one sample fits" in (too_small(need, 1, 8 * GIB) or "")


def test_the_table_names_every_part() -> None:
    need = training_need(model(VICUNA_7B), *STAGE1)
    table = memory_table(need, 16)
    assert all(part in table for part in need.parts)
    assert "13.5 GB" in table
    assert "activations of 66 tokens, × 16" in table
    assert "in 80 GiB" in table


@pytest.mark.parametrize(
    "settings",
    ["{}", "[]", "nothing", '{"vocab_size": -1}', '{"hidden_size": "wide"}', "[" * 9000, "\0"],
)
def test_a_language_model_of_unknown_dimensions_has_no_estimate(
    tmp_path: Path, settings: str
) -> None:
    (tmp_path / "config.json").write_text(settings)
    assert read_language_model_size(tmp_path) is None
    assert read_language_model_size(tmp_path / "none") is None


def test_grouped_keys_and_tied_embeddings_are_read(tmp_path: Path) -> None:
    settings = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 4}
    settings |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    size = read_language_model_size(tmp_path)
    assert size == LanguageModelSize(10, 8, 4, 3, key_value=8, tied=True)
    assert size.embeddings == 80
