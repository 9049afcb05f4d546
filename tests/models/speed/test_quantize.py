"""``model.quantize``: smaller weights, a right gradient through them, and clear refusals."""

import importlib.util
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.chat import load_chat
from minigpt4.checked import check_sections
from minigpt4.config import load_config
from minigpt4.errors import ConfigError
from minigpt4.models.minigpt4 import MiniGPT4, parameter_table
from minigpt4.models.speed.quantization import choose_quantization, quantized_layers
from minigpt4.registry import MODELS
from tests.helpers.messages import one_line
from tests.helpers.repo import TINY
from tests.helpers.tiny_models import build_tiny, hide_package

KINDS = ["int8", "nf4"]
CPU = torch.device("cpu")
WIDTH, BLOCKS = 128, 3
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install -e '.[quantize]'",
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of three blocks, whose widths NF4 can have on a CPU too."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    shutil.copytree("assets/tiny/llama", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=640,
        hidden_size=WIDTH,
        intermediate_size=192,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def both(llama: Path, kind: str) -> tuple[MiniGPT4, MiniGPT4]:
    """Full precision, and quantised."""
    folder = f"model.llama_model={llama}"
    return build_tiny(folder), build_tiny(folder, f"model.quantize={kind}")


def loss_of(model: MiniGPT4, tokens: torch.Tensor) -> torch.Tensor:
    """Loss of the language model alone, from the embeddings ``[1, n, H]`` that it reads."""
    logits = model.llama_model(inputs_embeds=tokens, use_cache=False).logits[0].float()
    return functional.cross_entropy(logits, torch.arange(len(logits)))


def bytes_of_layers(model: MiniGPT4) -> int:
    layers = model.llama_model.get_decoder().layers.parameters()
    return sum(p.numel() * p.element_size() for p in layers)


@needs_library
@pytest.mark.parametrize(("kind", "factor"), [("int8", 4), ("nf4", 8)])
def test_weights_become_smaller(kind: str, factor: int, llama: Path) -> None:
    plain, small = both(llama, kind)
    assert bytes_of_layers(plain) / bytes_of_layers(small) == pytest.approx(factor, rel=0.05)
    assert len(list(quantized_layers(small.llama_model))) == 7 * BLOCKS
    assert small.llama_model.lm_head.weight.dtype == torch.float32
    count = f"{sum(p.numel() for p in plain.llama_model.parameters()):,}"
    for model in (plain, small):
        assert parameter_table(model).split("llama_model")[1].split()[1] == count


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [True, False])
def test_the_input_gradient_is_that_of_finite_differences(
    kind: str, mode: bool, llama: Path
) -> None:
    """Through three blocks of quantised layers.

    On a CPU the forward multiplies the full-precision input with the dequantised weights, so that
    it is smooth and differences are exact. On a GPU, int8 also rounds its inputs: its forward is a
    staircase there, and its gradient that of the dequantised weights, as here.
    """
    model = both(llama, kind)[1].train(mode)
    assert len(model.llama_model.get_decoder().layers) == BLOCKS
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 12, WIDTH, generator=drawn).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(model, tokens), tokens)
    directions = [torch.randn(tokens.shape, generator=drawn) for _ in range(4)]
    for direction in [gradient, *directions]:
        unit, step = direction / direction.norm(), 1e-2
        with torch.no_grad():
            forth, back = (loss_of(model, tokens + sign * step * unit) for sign in (1, -1))
        slope = ((forth - back) / (2 * step)).item()
        assert slope == pytest.approx((gradient * unit).sum().item(), rel=3e-3, abs=1e-3)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_a_model_with_the_dequantised_weights(
    kind: str, llama: Path
) -> None:
    import bitsandbytes as bnb

    plain, small = both(llama, kind)
    tokens = torch.randn(1, 12, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for name, layer in small.llama_model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            weight = layer.weight.data * layer.weight.SCB[:, None] / 127
        else:
            continue
        full = plain.llama_model.get_submodule(name).weight
        # 9 % is what four bits lose of normally distributed numbers.
        error = ((weight - full).norm() / full.norm()).item()
        assert error == pytest.approx(0.092 if kind == "nf4" else 0.007, rel=0.2)
        full.data.copy_(weight)
    gradients = [torch.autograd.grad(loss_of(m, tokens), tokens)[0] for m in (plain, small)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_projection_is_trained_through_it(kind: str, precision: str, llama: Path) -> None:
    image = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    options = [f"model.quantize={kind}", f"model.precision={precision}"]
    options.append(f"model.llama_model={llama}")
    torch.manual_seed(0)
    model = build_tiny(*options).train()
    model(image, model.stage_rows(["a red ring", "two"])).backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == {"llama_proj.weight", "llama_proj.bias"}
    gradient = model.llama_proj.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_trained_beside_it(kind: str, llama: Path) -> None:
    options = [f"model.quantize={kind}", f"model.llama_model={llama}"]
    model = build_tiny(*options, "model.trainable=[llama_proj,lora]")
    image = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(model(image, model.stage_rows(["a red ring", "two"])))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    moved = [n for n, p in model.named_parameters() if ".lora_B." in n and p.any()]
    assert len(moved) == 2 * BLOCKS


@needs_library
@pytest.mark.parametrize("option", ["quantize=int8", "quantize=nf4", "low_resource=True"])
def test_a_chat_answers(option: str, llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ["model.ckpt=", f"model.llama_model={llama}", f"model.{option}"]
    chat = load_chat(TINY, options, device="cpu")
    assert len(list(quantized_layers(chat.model.llama_model))) == 7 * BLOCKS
    answers = {chat.ask("What is this?", max_new_tokens=5, do_sample=False) for _ in range(2)}
    assert len(answers) == 1
    assert not [r for r in caplog.records if r.name.startswith("bitsandbytes")]


@needs_library
def test_what_was_generated_leaves_the_gradient_as_it_was(llama: Path) -> None:
    """4-bit layers would repack their weights for good, into a form that cannot be trained."""
    model = both(llama, "nf4")[1]
    tokens = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (before,) = torch.autograd.grad(loss_of(model, tokens), tokens)
    model.eval().llama_model.generate(  # type: ignore[operator]
        inputs_embeds=tokens.detach(), max_new_tokens=3, do_sample=False
    )
    (after,) = torch.autograd.grad(loss_of(model.train(), tokens), tokens)
    assert torch.equal(before, after)


# Where it cannot be had


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_library_one_line_names_what_to_install(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_package(monkeypatch, "bitsandbytes")
    config = load_config(TINY, ["model.ckpt=", f"model.quantize={kind}"])
    with one_line(
        ConfigError, "model.quantize: needs bitsandbytes", "pip install -e '.[quantize]'"
    ):
        check_sections(config, "chat")
    with one_line(ConfigError, f"model.quantize: {kind} needs bitsandbytes", "'.[quantize]'"):
        build_tiny(f"model.quantize={kind}")


def test_low_resource_without_the_library_is_full_precision(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_package(monkeypatch, "bitsandbytes")
    model = build_tiny("model.low_resource=True")
    assert not list(quantized_layers(model.llama_model))
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "model.low_resource: int8 needs bitsandbytes" in line
    assert "full precision" in line


def test_a_library_that_does_not_load_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("raise RuntimeError('no\\nkernels')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with one_line(ConfigError, "nf4 needs bitsandbytes, which does not load here (no kernels)"):
        choose_quantization("nf4", False, CPU)


@needs_library
def test_widths_that_would_be_computed_wrongly_are_refused() -> None:
    """bitsandbytes 0.50 gives other numbers for 4-bit blocks that reach over two rows, on a CPU."""
    with one_line(ConfigError, "nf4 on a CPU needs", "multiples of 64", "has 160, 432"):
        build_tiny("model.quantize=nf4")
    assert list(quantized_layers(build_tiny("model.quantize=int8").llama_model))


@needs_library
def test_which_devices_can() -> None:
    with one_line(ConfigError, "model.quantize: nf4 needs a CUDA GPU or a CPU, not mps"):
        choose_quantization("nf4", False, torch.device("mps"))
    assert choose_quantization("none", True, torch.device("mps")) == "none"
    assert choose_quantization("none", True, CPU) == "int8"
    assert choose_quantization("nf4", True, CPU) == "nf4"
    assert choose_quantization("none", False, CPU) == "none"
    assert choose_quantization("int8", False, torch.device("meta")) == "none"


@pytest.mark.gpu
@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_gradient_is_near_the_full_models(kind: str, llama: Path) -> None:
    """int8 rounds its inputs there, so the gradient is held against the CPU's exact one."""
    options = ["model.ckpt=", f"model.llama_model={llama}", "model.precision=fp32"]
    config = load_config(TINY, [*options, f"model.quantize={kind}"])
    devices = (CPU, torch.device("cuda", 0))
    models = [MODELS.build(config.arch, config.model_options(), device=d) for d in devices]
    tokens = torch.randn(1, 12, WIDTH, generator=torch.Generator().manual_seed(0))
    gradients = []
    for model, device in zip(models, devices, strict=True):
        own = tokens.to(device).requires_grad_()
        logits = model.llama_model(inputs_embeds=own, use_cache=False).logits[0].float()
        loss = functional.cross_entropy(logits, torch.arange(12, device=device))
        gradients.append(torch.autograd.grad(loss, own)[0].cpu())
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()
