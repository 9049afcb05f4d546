"""The estimate of memory compared with recorded sizes and with figures that people reported."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from minigpt4.checked import Purpose, bind_sections
from minigpt4.config import load_config
from minigpt4.models import Precision
from minigpt4.models.build import build_towers, choose_dtype
from minigpt4.models.language_model import empty_language_model
from minigpt4.models.options import TowerOptions
from minigpt4.preflight import machine
from minigpt4.preflight.draft import META, Draft, MetaModel
from minigpt4.preflight.machine import (
    GIB,
    chat_need,
    estimate,
    memory_line,
    memory_table,
    memory_warning,
    part_bytes,
    too_small,
    trained_numbers,
    training_need,
)
from tests.helpers.llama_folders import write_config
from tests.helpers.recorded import GOLDEN

STAGE1 = (66, 33)  # tokens of the longest sample, and those with a target
STAGE2 = (220, 161)
SIZES = {  # width, feed-forward, layers and heads
    "7B": (4096, 11008, 32, 32),
    "13B": (5120, 13824, 40, 40),
}
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")


def write_vicuna(folder: Path, size: str, **more: object) -> Path:
    folder.mkdir()
    write_config(folder, rows=32001, **dict(zip(KEYS, SIZES[size], strict=True)), **more)
    return folder


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], object]:
    folder = tmp_path_factory.mktemp("llama")
    folders = {size: write_vicuna(folder / size, size) for size in SIZES}
    return {
        (size, precision): empty_language_model(str(place), choose_dtype(precision, META))
        for size, place in folders.items()
        for precision in PRECISIONS
    }


@pytest.fixture(scope="module")
def models(language_models: dict[tuple[str, str], PreTrainedModel]) -> dict[str, MetaModel]:
    """Vicuna with the full-size towers, in half precision and in fp32, and without a Q-Former."""
    with META:
        half = build_towers(TowerOptions(), META, torch.bfloat16)
        fp32 = build_towers(TowerOptions(), META, torch.float32)
        without = build_towers(TowerOptions(has_qformer=False), META, torch.bfloat16)
    return {
        "7B": MetaModel(half, language_models["7B", "bf16"], 768),
        "13B": MetaModel(half, language_models["13B", "bf16"], 768),
        "7B fp32": MetaModel(fp32, language_models["7B", "fp32"], 768),
        "7B without Q-Former": MetaModel(without, language_models["7B", "bf16"], 4 * 1408),
    }


def draft_of(
    folder: Path | str, purpose: Purpose = "training", device: str = "cpu", *options: str
) -> Draft:
    given = [f"model.llama_model={folder}", "model.ckpt=", *options]
    config = load_config("train_configs/minigpt4_stage1_pretrain.yaml", given)
    return Draft(bind_sections(config, purpose)[0], device)


def recorded(manifest: str) -> dict[str, int]:
    """How many numbers each recorded weight has."""
    facts = json.loads((GOLDEN / "manifests" / f"{manifest}.json").read_text())
    entries = facts.get("state_dict", facts.get("used"))
    return {name: torch.Size(entry["shape"]).numel() for name, entry in entries.items()}


def test_parameters_are_counted_exactly(models: dict[str, MetaModel]) -> None:
    eva = sum(recorded("eva_vit_g_expected").values())
    blip2 = recorded("blip2_flant5xxl_qformer_expected")
    blip2.pop("Qformer.bert.embeddings.position_ids")
    ln_vision = sum(count for name, count in blip2.items() if name.startswith("ln_vision."))
    sizes = part_bytes(models["7B fp32"])
    assert sizes["visual encoder"] == 4 * (eva + ln_vision)
    assert sizes["Q-Former"] == 4 * (sum(blip2.values()) - ln_vision)
    assert sizes["language model"] == 4 * 6_738_423_808
    assert eva == 985_894_528
    whole = json.loads((GOLDEN / "manifests" / "main_minigpt4_vicuna7b_v0.json").read_text())
    assert sum(sizes.values()) == 4 * whole["n_params"]


def test_trained_parameters_are_counted_exactly(models: dict[str, MetaModel]) -> None:
    def trained(name: str, *trainable: str) -> dict[str, int]:
        return trained_numbers(models[name], trainable or ("llama_proj",))

    assert trained("7B") == {"projection": 3_149_824}
    assert trained("13B") == {"projection": 3_937_280}
    assert trained("7B without Q-Former") == {"projection": 23_072_768}
    towers = trained("7B", "q_former", "ln_vision")
    assert towers == {
        "Q-Former": part_bytes(models["7B"])["Q-Former"] // 4,
        "visual encoder": 2 * 1408,
    }


def test_known_sizes_of_weights(models: dict[str, MetaModel]) -> None:
    assert part_bytes(models["7B"])["language model"] == pytest.approx(13.5e9, rel=0.01)
    assert part_bytes(models["13B"])["language model"] == pytest.approx(26.0e9, rel=0.01)
    assert part_bytes(models["7B"])["visual encoder"] == pytest.approx(2.0e9, rel=0.03)
    int8 = part_bytes(models["7B"], "int8")["language model"]
    assert int8 == pytest.approx(7e9, rel=0.02)
    assert part_bytes(models["7B"], "nf4")["language model"] < 0.65 * int8
    assert "Q-Former" not in part_bytes(models["7B without Q-Former"])


def test_reported_figures_of_trainings(models: dict[str, MetaModel]) -> None:
    stage1 = training_need(models["7B"], *STAGE1)
    assert stage1.total(16) == pytest.approx(22.2e9, rel=0.1)
    # The original's own figure; its attention keeps the weights too, which ours does not.
    stage2 = training_need(models["7B"], *STAGE2)
    assert stage2.total(12) == pytest.approx(36e9, rel=0.25)
    assert stage2.total(12) < 36e9
    # 158 counts the mean sample, the estimate the longest.
    assert 100 < training_need(models["13B"], *STAGE1).largest_batch(80 * GIB) < 158


def test_reported_figures_of_chats(models: dict[str, MetaModel]) -> None:
    int8 = chat_need(models["7B"], 2000, quantize="int8")
    assert int8.total(1) == pytest.approx(11.5e9, rel=0.1)
    assert 16e9 < chat_need(models["7B"], 2000).total(1) < 20e9


def test_the_largest_batch_fits_and_one_more_does_not(models: dict[str, MetaModel]) -> None:
    need = training_need(models["7B"], *STAGE1)
    largest = need.largest_batch(24 * GIB)
    assert need.total(largest) <= 24 * GIB < need.total(largest + 1)
    assert need.largest_batch(GIB) == 0


def test_a_gpu_that_is_too_small_is_told_with_the_batch_that_fits(
    models: dict[str, MetaModel],
) -> None:
    need = training_need(models["7B"], *STAGE1)
    assert too_small(need, 4, 24 * GIB) is None
    text = too_small(need, 64, 24 * GIB)
    assert text is not None
    assert "of GPU memory, this GPU has" in text
    assert f"{need.largest_batch(24 * GIB)} should fit" in text
    assert "not one sample fits" in (too_small(need, 1, 8 * GIB) or "")


def test_the_table_names_every_part(models: dict[str, MetaModel]) -> None:
    need = training_need(models["7B"], *STAGE1)
    table = memory_table(need, 16)
    assert table.startswith("GPU memory of one process")
    assert all(part in table for part in need.parts)
    assert "13.5 GB" in table
    assert "activations of 66 tokens, × 16" in table
    assert "in 80 GiB" in table


def test_every_trained_part_has_a_row_of_its_own(models: dict[str, MetaModel]) -> None:
    need = training_need(models["7B"], *STAGE1, trainable=("llama_proj", "q_former"))
    assert {"projection + AdamW", "Q-Former's AdamW"} <= need.parts.keys()
    assert need.parts["Q-Former's AdamW"] == 3 * need.parts["Q-Former"]


# The main memory, where there is no GPU


def test_a_cpu_needs_main_memory_in_its_own_precision(tmp_path: Path) -> None:
    folder = write_vicuna(tmp_path / "llama", "7B")
    found = estimate(draft_of(folder))
    assert found is not None
    table = memory_table(*found)
    assert table.startswith("Main memory of one process")
    assert "CUDA" not in table
    assert "GiB" not in table
    assert found[0].parts["language model"] == 4 * 6_738_423_808
    for option in ("run.precision=bf16", "model.precision=bf16"):
        half = estimate(draft_of(folder, "training", "cpu", option))
        assert half is not None
        assert half[0].parts["language model"] == 2 * 6_738_423_808
        assert 2 * half[0].per_sample == pytest.approx(found[0].per_sample, rel=0.1)
    on_gpu = estimate(draft_of(folder, "training", "cuda"))
    assert on_gpu is not None
    assert on_gpu[0].parts["language model"] == 2 * 6_738_423_808
    chat = estimate(draft_of(folder, "chat"))
    assert chat is not None
    assert memory_line(*chat).startswith("main memory needed, estimated: 3")


def test_a_machine_with_too_little_main_memory_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_vicuna(tmp_path / "llama", "7B")
    draft = draft_of(folder, "training", "cpu", "run.batch_size_train=2")
    monkeypatch.setattr(machine, "total_memory", lambda _: 64 * GIB)
    assert memory_warning(draft) is None
    monkeypatch.setattr(machine, "total_memory", lambda _: 16 * GIB)
    text = memory_warning(draft) or ""
    assert text.startswith("a batch of 2 needs about 32.")
    assert "of main memory, this machine has 17.2 GB; not one sample fits" in text
    assert "\n" not in text
    monkeypatch.setenv("RANK", "1")
    assert memory_warning(draft) is None


def test_the_main_memory_of_this_machine_is_known() -> None:
    assert machine.total_memory("cpu") > GIB
    assert machine.total_memory("mps") == 0


# Language models


@pytest.mark.parametrize(
    "settings",
    [
        *["{}", "[]", "nothing", '{"vocab_size": -1}', '{"hidden_size": "wide"}', "[" * 9000, "\0"],
        '{"model_type": "llama", "num_hidden_layers": 1000000000}',
        '{"model_type": "llama", "hidden_size": 1000000000000000000000000000000}',
        '{"model_type": "llama", "num_attention_heads": 0}',
    ],
)
def test_a_language_model_of_unknown_dimensions_has_no_estimate(
    tmp_path: Path, settings: str
) -> None:
    (tmp_path / "config.json").write_text(settings)
    assert estimate(draft_of(tmp_path)) is None
    assert estimate(draft_of(tmp_path / "none")) is None
    assert estimate(draft_of("a-hub/id")) is None


def test_grouped_keys_and_tied_embeddings_are_counted(tmp_path: Path) -> None:
    tied = write_vicuna(tmp_path / "tied", "7B", num_key_value_heads=8, tie_word_embeddings=True)
    whole = write_vicuna(tmp_path / "whole", "7B")
    needs = [estimate(draft_of(folder, "chat")) for folder in (tied, whole)]
    grouped, plain = (found[0] for found in needs if found)
    assert 4 * grouped.per_sample == plain.per_sample == 2000 * 32 * 2 * 4096 * 4
    saved = 32001 * 4096 + 32 * 2 * 4096 * (4096 - 1024)
    assert plain.parts["language model"] - grouped.parts["language model"] == 4 * saved


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100},
        {"model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 100},
        {"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "head_dim": 32},
        {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 100},
    ],
    ids=lambda settings: str(settings["model_type"]),
)
def test_every_family_of_language_models_is_estimated(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    draft = draft_of(tmp_path)
    model, found = draft.meta_model, estimate(draft)
    assert found is not None
    numbers = sum(parameter.numel() for parameter in model.llama_model.parameters())
    assert found[0].parts["language model"] == 4 * numbers
    assert found[0].per_sample > 0


def test_lora_is_counted_in_full_precision(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = write_vicuna(tmp_path / "llama", "7B")
    found = estimate(draft_of(folder, "training", "cuda", "model.trainable=[llama_proj,lora]"))
    assert found is not None
    lora = 32 * 2 * 2 * 8 * 4096
    assert found[0].parts["language model"] == 2 * 6_738_423_808 + 4 * lora
    assert found[0].parts["language model's AdamW"] == 12 * lora
