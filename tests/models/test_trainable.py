"""``model.trainable``: what gets gradients, what a checkpoint holds, and how it comes back."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train
from minigpt4.chat import load_chat
from minigpt4.checked import check_sections
from minigpt4.config import load_config
from minigpt4.errors import CheckpointError, ConfigError
from minigpt4.models.lora import merge_lora
from minigpt4.models.minigpt4 import MiniGPT4, parameter_table
from minigpt4.weights.checkpoint import load_trained
from minigpt4.weights.names import trained_part
from tests.helpers.messages import one_line
from tests.helpers.recorded.model import build_model as build_recorded
from tests.helpers.recorded.model import one_case
from tests.helpers.repo import TINY, EntryPoint
from tests.helpers.tiny_models import build_tiny, hide_package
from tests.helpers.training import STAGE1, only_run, stage1_options

LISTS = {
    "llama_proj": {"llama_proj"},
    "q_former": {"q_former", "query_tokens"},
    "llama_proj,q_former,ln_vision": {"llama_proj", "q_former", "query_tokens", "ln_vision"},
    "query_tokens,ln_vision": {"query_tokens", "ln_vision"},
    "llama_proj,lora": {"llama_proj", "lora"},
    "llama_proj,q_former,ln_vision,query_tokens,lora": {
        *("llama_proj", "q_former", "query_tokens", "ln_vision", "lora")
    },
}
Names = dict[str, torch.Tensor]


def build(*options: str, trainable: str = "llama_proj") -> MiniGPT4:
    return build_tiny(f"model.trainable=[{trainable}]", *options)


def loss_of(model: MiniGPT4) -> torch.Tensor:
    image = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    loss: torch.Tensor = model(image, model.stage_rows(["a red ring", "two"]))
    return loss


def trained(model: MiniGPT4) -> Names:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def saved(model: MiniGPT4, path: Path) -> Path:
    """What a run saves of it."""
    torch.save({"model": trained(model), "epoch": 0}, path)
    return path


def moved(model: MiniGPT4) -> MiniGPT4:
    """The model after a step on everything that is trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    model.train()
    for _ in range(2):  # LoRA's first step moves only one of its two matrices
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return model.eval()


def disturb_lora(model: MiniGPT4) -> None:
    """New LoRA is zero."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.02)


@pytest.mark.parametrize("trainable", LISTS)
def test_exactly_what_is_named_gets_gradients(trainable: str, projection: Path) -> None:
    model = build(f"model.ckpt={projection}", trainable=trainable).train()
    loss_of(model).backward()
    for name, parameter in model.named_parameters():
        wanted = trained_part(name) in LISTS[trainable]
        assert parameter.requires_grad == wanted, name
        assert (parameter.grad is not None) == wanted, name
        if parameter.grad is not None:
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            # LoRA's second matrix is zero at first, so its first one has no gradient yet.
            assert parameter.grad.any() or ".lora_A." in name, name
    assert set(LISTS[trainable]) == {str(trained_part(name)) for name in trained(model)}


@pytest.mark.parametrize("trainable", LISTS)
def test_a_checkpoint_brings_back_what_was_trained(
    trainable: str, projection: Path, tmp_path: Path
) -> None:
    start = build(f"model.ckpt={projection}", trainable=trainable)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    model = moved(start)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {str(trained_part(name)) for name in changed} == LISTS[trainable]
    checkpoint = saved(model, tmp_path / "checkpoint_0.pth")
    files = [projection, checkpoint]
    if "llama_proj" in LISTS[trainable]:
        files = [checkpoint]
    names = ",".join(map(str, files))
    again = build(f"model.ckpt=[{names}]", trainable=trainable)
    assert torch.equal(loss_of(again), loss_of(model))
    load_trained(again, torch.load(checkpoint, weights_only=True), "exact")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_gradient_of_every_part_is_that_of_finite_differences(precision: str) -> None:
    everything = "llama_proj,q_former,ln_vision,lora"
    options = [f"model.precision={precision}", "model.lora.dropout=0.0"]
    model = build(*options, trainable=everything)
    torch.manual_seed(0)
    disturb_lora(model)
    loss_of(model).backward()
    if precision == "bf16":  # too coarse for differences: every part is reached, in fp32
        assert all(
            p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad
        )
        return
    for part in ("llama_proj", "q_former", "query_tokens", "ln_vision", "lora"):
        own = [p for n, p in model.named_parameters() if trained_part(n) == part]
        gradients = [p.grad for p in own if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        step, losses = 1e-2 / max(norm, 1.0), []
        for sign in (1, -2):
            with torch.no_grad():
                for parameter, gradient in zip(own, gradients, strict=True):
                    parameter.add_(sign * step * gradient / norm)
                losses.append(loss_of(model).item())
        with torch.no_grad():
            for parameter, gradient in zip(own, gradients, strict=True):
                parameter.add_(step * gradient / norm)
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(norm, rel=2e-2), part


def test_frozen_parts_stay_in_eval_mode_and_lora_drops_out_in_training_only() -> None:
    model = build(trainable="llama_proj,q_former,lora").train()
    training = {name for name, module in model.named_modules() if module.training and name}
    assert training
    assert all(".lora_dropout" in name for name in training)
    disturb_lora(model)
    with torch.no_grad():
        assert loss_of(model) != loss_of(model)
        model.eval()
        assert loss_of(model) == loss_of(model)
    assert not any(module.training for module in model.modules())


def test_new_lora_changes_no_answer() -> None:
    with torch.no_grad():
        plain, added = build(), build(trainable="llama_proj,lora")
        load_trained(added, {"model": trained(plain)}, "plain", partial=True)
        assert torch.equal(loss_of(plain), loss_of(added))


def test_lora_is_in_fp32_beside_half_precision() -> None:
    model = build("model.precision=bf16", trainable="llama_proj,lora")
    dtypes = {trained_part(n): p.dtype for n, p in model.named_parameters()}
    assert dtypes["lora"] == torch.float32
    assert model.llama_model.lm_head.weight.dtype == torch.bfloat16


def test_the_options_of_lora() -> None:
    options = ["model.lora.r=2", "model.lora.target_modules=[k_proj,down_proj]"]
    names = trained(build(*options, trainable="lora,llama_proj"))
    lora = {name: value for name, value in names.items() if ".lora_" in name}
    assert {name.split(".")[5] for name in lora} == {"k_proj", "down_proj"}
    assert {value.shape[0 if ".lora_A." in name else 1] for name, value in lora.items()} == {2}


def test_the_table_at_start_up_has_a_row_for_each_trained_part() -> None:
    model = build(trainable="llama_proj,q_former,lora")
    rows = parameter_table(model).splitlines()
    states = {row.split()[0]: row.split()[1] for row in rows[:-1]}
    parts = dict.fromkeys(("visual_encoder", "ln_vision", "llama_model"), "frozen")
    trained_parts = ("q_former", "query_tokens", "lora", "llama_proj")
    assert states == parts | dict.fromkeys(trained_parts, "trained")
    count = sum(value.numel() for value in trained(model).values())
    assert f"{count:,} parameters are trained" in rows[-1]


# Files of one list in a model of another


def test_a_training_of_more_starts_from_a_projection_alone(
    projection: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="minigpt4"):
        model = build(f"model.ckpt={projection}", trainable="llama_proj,q_former,lora")
    (line,) = [r.getMessage() for r in caplog.records if "holds no" in r.getMessage()]
    assert f"{projection}: holds no q_former, lora" in line
    expected = torch.load(projection, weights_only=True)["model"]["llama_proj.weight"]
    assert torch.equal(model.llama_proj.weight, expected)
    plain = build()
    assert plain.query_tokens is not None
    assert model.query_tokens is not None
    assert torch.equal(model.query_tokens, plain.query_tokens)
    checkpoint = torch.load(projection, weights_only=True)
    with one_line(CheckpointError, "resumed.pth", "lacks llama_model.model.layers.0"):
        load_trained(model, checkpoint, "resumed.pth")


@pytest.mark.parametrize(
    ("trainable", "advice"),
    [
        ("llama_proj,q_former", "set model.trainable to [llama_proj, q_former]"),
        ("llama_proj,ln_vision,lora", "set model.trainable to [llama_proj, ln_vision, lora]"),
        ("llama_proj,query_tokens", "set model.trainable to [llama_proj, query_tokens]"),
    ],
)
def test_a_chat_must_name_what_its_checkpoint_holds(
    trainable: str, advice: str, tmp_path: Path
) -> None:
    checkpoint = saved(build(trainable=trainable), tmp_path / "more.pth")
    with one_line(CheckpointError, checkpoint, advice):
        load_chat(TINY, [f"model.ckpt={checkpoint}"], device="cpu")
    options = [f"model.ckpt={checkpoint}", f"model.trainable=[{trainable}]"]
    assert load_chat(TINY, options, device="cpu").ask("Hello", max_new_tokens=3) is not None


def test_one_part_without_the_projection_takes_two_files(tmp_path: Path, projection: Path) -> None:
    model = moved(build(f"model.ckpt={projection}", trainable="lora"))
    checkpoint = saved(model, tmp_path / "lora.pth")
    both = f"model.ckpt=[{projection},{checkpoint}]"
    assert torch.equal(loss_of(build(both, trainable="lora")), loss_of(model))
    save_file(trained(model), tmp_path / "lora.safetensors")
    both = f"model.ckpt=[{projection},{tmp_path}/lora.safetensors]"
    assert torch.equal(loss_of(build(both, trainable="lora")), loss_of(model))
    mention = f"model.ckpt: [projection.pth, {checkpoint}]"
    with one_line(CheckpointError, "lacks llama_proj.bias", mention):
        build(f"model.ckpt={checkpoint}", trainable="lora,llama_proj")
    with one_line(ConfigError, "llama_proj is left out, and model.ckpt names none"):
        build(trainable="lora")


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("model.lora.r=4", "model.lora.r must be what it was trained with"),
        ("model.lora.target_modules=[q_proj]", "model.lora.target_modules must be those"),
        ("model.lora.target_modules=[q_proj,v_proj,k_proj]", "model.lora.target_modules must be"),
    ],
)
def test_a_lora_of_other_options_is_refused(option: str, advice: str, tmp_path: Path) -> None:
    checkpoint = saved(build(trainable="llama_proj,lora"), tmp_path / "lora.pth")
    with one_line(CheckpointError, checkpoint, advice):
        build(option, f"model.ckpt={checkpoint}", trainable="llama_proj,lora")


def test_a_q_former_that_the_original_trained_is_taken() -> None:
    """Under the original's names, which its ``freeze_qformer: False`` saves."""
    case = one_case(q_former=True)
    names = ("Qformer.bert.", "query_tokens", "llama_proj.")
    weights = {n: case.weights[n].clone() for n in case.weights if n.startswith(names)}
    model = build_recorded(case)
    width = model.llama_proj.in_features
    everything = MiniGPT4(
        model, model.llama_model, model.tokenizer, width, trainable=("llama_proj", "q_former")
    )
    expected = trained(everything)
    with torch.no_grad():
        for parameter in everything.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    load_trained(everything, {"model": weights}, "original.pth")
    for name, value in trained(everything).items():
        if not name.startswith("llama_proj."):
            assert torch.equal(value, expected[name]), name


# What cannot be trained


@pytest.mark.parametrize(
    ("option", "mention"),
    [
        ("model.trainable=[]", "model.trainable: names nothing to train"),
        ("model.trainable=[visual_encoder]", "model.trainable"),
        ("model.trainable=llama_proj", "model.trainable"),
        ("model.lora.r=0", "model.lora.r: 0 must be greater than 0"),
        ("model.lora.dropout=1.5", "model.lora.dropout: 1.5 must be at least 0 and less than 1"),
        ("model.lora.rank=8", "model.lora.rank: unknown key"),
    ],
)
def test_what_cannot_be_trained_is_found_by_the_check(option: str, mention: str) -> None:
    with one_line(ConfigError, TINY, mention):
        check_sections(load_config(TINY, ["model.ckpt=", option]), "chat")


def test_parts_that_a_model_lacks_are_refused() -> None:
    for part in ("q_former", "query_tokens"):
        with one_line(ConfigError, "model.trainable", "has_qformer is False"):
            build("model.has_qformer=False", trainable=f"llama_proj,{part}")
    with one_line(ConfigError, "model.lora", "nothing_proj"):
        build("model.lora.target_modules=[nothing_proj]", trainable="llama_proj,lora")


def test_without_peft_lora_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package(monkeypatch, "peft")
    config = load_config(TINY, ["model.ckpt=", "model.trainable=[llama_proj,lora]"])
    with one_line(ConfigError, "model.trainable: lora needs peft", "pip install -e '.[lora]'"):
        check_sections(config, "chat")
    with one_line(ConfigError, "model.trainable: lora needs peft", "pip install -e '.[lora]'"):
        build(trainable="llama_proj,lora")


def test_merged_lora_computes_the_same_under_the_plain_names(projection: Path) -> None:
    plain = build()
    model = moved(build(f"model.ckpt={projection}", trainable="llama_proj,lora"))
    with torch.no_grad():
        before = loss_of(model)
        merge_lora(model.llama_model)
        torch.testing.assert_close(loss_of(model), before, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()


# Runs


def test_a_run_saves_what_is_trained_resumes_and_is_chatted_with(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path
) -> None:
    def run(output: Path, **options: object) -> Path:
        short = {"iters_per_epoch": 2, "batch_size_train": 2, "warmup_steps": 0} | options
        given = ["model.trainable=[llama_proj,q_former,lora]"]
        given += stage1_options(scenes, output, **short)
        run_entry.ok(train.main, "--cfg-path", STAGE1, "--options", *given)
        return only_run(output)

    first = run(tmp_path / "one", max_epoch=1) / "checkpoint_0.pth"
    weights = torch.load(first, weights_only=True)["model"]
    assert weights.keys() == trained(build(trainable="llama_proj,q_former,lora")).keys()
    assert any(value.any() for name, value in weights.items() if ".lora_B." in name)

    second = run(tmp_path / "two", max_epoch=2, resume_ckpt_path=first) / "checkpoint_1.pth"
    saved = torch.load(second, weights_only=True)
    assert saved["optimizer"]["state"][0]["step"] == 4, "the optimizer went on from step 2"
    further = saved["model"]
    assert further.keys() == weights.keys()
    assert not any(torch.equal(further[name], weights[name]) for name in further)

    options = [f"model.ckpt={second}", "model.trainable=[llama_proj,q_former,lora]"]
    chat = load_chat(TINY, options, device="cpu")
    own = dict(chat.model.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in further.items())
    assert chat.ask("Hello", max_new_tokens=3) is not None
