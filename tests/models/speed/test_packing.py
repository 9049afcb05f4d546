"""Packing computes no padding, and changes no number."""

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from minigpt4.config import load_config
from minigpt4.errors import ConfigError
from minigpt4.models.language_model import load_language_model
from minigpt4.models.llm_input import Joined, Learnt, Segment, join, pad
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.speed.packing import pack, packed_logits, packing_fault
from minigpt4.registry import RUNNERS, bind
from tests.helpers.gradients import PROMPTS, TEXTS, learn, numbers_kept_by_a_layer
from tests.helpers.messages import one_line
from tests.helpers.recorded.model import build_model, one_case
from tests.helpers.repo import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> MiniGPT4:
    return build_model(one_case(first_release=False))


@pytest.fixture
def image(model: MiniGPT4) -> torch.Tensor:
    size = one_case(first_release=False).facts["dims"]["vit"]["img_size"]
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["stage 1", "stage 2"])
def test_loss_and_gradient_are_those_of_padding(
    model: MiniGPT4, image: torch.Tensor, prompts: list[str] | None
) -> None:
    assert model.choose_packing("auto") is None
    assert model.packed
    padded = learn(model, image, prompts, packed=False)
    packed = learn(model, image, prompts, packed=True)
    assert packed[0] == pytest.approx(padded[0], abs=1e-5)
    assert (packed[1] - padded[1]).abs().max() < 1e-5 * padded[1].abs().max()


def rows_of(model: MiniGPT4, contexts: list[list[Segment]], share_lead: bool = False) -> Joined:
    answers = [Learnt(model.tokenizer.encode(text)) for text in TEXTS[: len(contexts)]]
    rows = [[*context, answer] for context, answer in zip(contexts, answers, strict=True)]
    return join(rows, model.embed_tokens, CPU, share_lead)


@torch.no_grad()
def test_several_images_and_none_stand_in_one_row(model: MiniGPT4) -> None:
    width = model.llama_proj.out_features
    drawn = torch.Generator().manual_seed(2)
    pictures = [torch.randn(4, width, generator=drawn) for _ in range(3)]
    rows = rows_of(
        model,
        [
            [[1, 5, 6], pictures[0], [7], pictures[1], [8, 9]],
            [[1, 4, 4, 4]],
            [[1], pictures[2]],
        ],
    )
    packed, spliced = pack(rows), pad(rows)
    assert packed.embeds.shape[1] == sum(spliced.lengths)
    logits = packed_logits(model.llama_model, packed)
    following = spliced.targets[:, 1:]
    assert torch.equal(packed.targets, following[following >= 0])
    expected = model.logits(spliced)[:, :-1][following >= 0]
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_logits_are_computed_where_something_is_learnt_and_nowhere_else(
    model: MiniGPT4, image: torch.Tensor
) -> None:
    shapes = []
    head = model.llama_model.get_output_embeddings()
    noting = head.register_forward_hook(lambda module, given, out: shapes.append(out.shape[:-1]))
    try:
        model.packed = True
        model(image, model.stage_rows(TEXTS, PROMPTS))
    finally:
        noting.remove()
    targets = int((model.splice_batch(image, model.stage_rows(TEXTS, PROMPTS)).targets >= 0).sum())
    assert [shape.numel() for shape in shapes] == [targets]


PREFIXES = {
    "one token": ([[1], [1], [1]], 1),
    "all of it": ([[1, 5, 6, 7], [1, 5, 6, 7], [1, 5, 6, 7]], 4),
    "some of it": ([[1, 5, 6], [1, 5, 9, 4], [1, 5]], 2),
    "none": ([[1, 5], [2, 5], [1, 5]], 0),
}


@pytest.mark.parametrize(("prefixes", "lead"), PREFIXES.values(), ids=PREFIXES)
def test_what_all_rows_begin_with_is_computed_once_and_changes_nothing(
    model: MiniGPT4, prefixes: list[list[int]], lead: int
) -> None:
    width = model.llama_proj.out_features
    drawn = torch.Generator().manual_seed(4)
    gradients, losses = [], []
    for share_lead in (False, True):
        drawn.manual_seed(4)
        pictures = [torch.randn(4, width, generator=drawn).requires_grad_() for _ in prefixes]
        contexts: list[list[Segment]] = [
            [ids, picture, [8]] for ids, picture in zip(prefixes, pictures, strict=True)
        ]
        rows = rows_of(model, contexts, share_lead)
        assert rows.lead == (lead if share_lead else 0)
        assert len(rows.embeds) == sum(rows.lengths) - (len(prefixes) - 1) * rows.lead
        packed = pack(rows)
        logits = packed_logits(model.llama_model, packed)
        loss = nn.functional.cross_entropy(logits, packed.targets)
        gradients.append(torch.cat(torch.autograd.grad(loss, pictures)))
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert (gradients[1] - gradients[0]).abs().max() < 1e-5 * gradients[0].abs().max()


def test_without_an_image_behind_it_no_prefix_is_shared(model: MiniGPT4) -> None:
    # The first token of the answer would have one position for all rows to be predicted at.
    picture = torch.zeros(4, model.llama_proj.out_features)
    assert rows_of(model, [[[1, 5], picture], [[1, 5]]], share_lead=True).lead == 0
    assert rows_of(model, [[[1, 5]], [[1, 5]]], share_lead=True).lead == 0
    assert rows_of(model, [[picture, [1]], [picture, [1]]], share_lead=True).lead == 0


def test_the_kernels_for_gpus_are_told_where_samples_and_their_keys_lie(model: MiniGPT4) -> None:
    picture = torch.zeros(4, model.llama_proj.out_features)
    rows: list[list[Segment]] = [
        [[1, 5], picture, Learnt([7, 8])],
        [[1, 5, 6], picture, Learnt([9])],
    ]
    shared = pack(join(rows, model.embed_tokens, CPU, share_lead=True)).samples
    assert shared.starts.tolist() == [0, 2, 8, 14]
    assert shared.key_starts.tolist() == [0, 2, 10, 18]
    assert shared.keys is not None
    lead = [0, 1]
    assert shared.keys.tolist() == [*lead, *lead, *range(2, 8), *lead, *range(8, 14)]
    alone = pack(join(rows, model.embed_tokens, CPU)).samples
    assert alone.starts.tolist() == [0, 8, 16]
    assert alone.key_starts is alone.starts
    assert alone.keys is None


TINY_SIZE = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48}
TINY_SIZE |= {"num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = TINY_SIZE | {"num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("language_model", "expected"),
    [
        (LlamaForCausalLM(LlamaConfig(**TINY_SIZE)), None),
        (LlamaForCausalLM(LlamaConfig(**GROUPED)), None),
        (MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=4)), "its outputs change"),
        (GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)), None),
    ],
    ids=["llama", "grouped heads", "a window", "gpt2"],
)
def test_where_packing_would_change_numbers_is_found_out(
    language_model: PreTrainedModel, expected: str | None
) -> None:
    language_model.eval()
    for lead in (0, 2):
        fault = packing_fault(language_model, CPU, lead)
        assert (expected in (fault or "")) if expected else fault is None, fault


def test_attention_is_the_models_own_again_afterwards(model: MiniGPT4) -> None:
    before = model.llama_model.config._attn_implementation
    model.choose_packing("on")
    assert model.llama_model.config._attn_implementation == before


def test_a_frozen_llama_keeps_few_bytes_for_the_backward() -> None:
    """At most 33 times the width for each token and layer, in bf16."""
    assert numbers_kept_by_a_layer(lambda llama: None) <= 33


@pytest.mark.parametrize("word", ["on", "off", "auto", "'off'", "True"])
def test_the_words_for_packing_are_those_of_a_yaml(word: str) -> None:
    config = load_config(
        ROOT / "train_configs" / "tiny_stage1_pretrain.yaml", [f"run.packing={word}"]
    )
    bound, faults = bind(RUNNERS.get("runner_base"), config.run_options(), "run")
    assert not faults
    assert bound.options.packing == {"True": "on"}.get(word, word.strip("'"))


def test_the_embedded_default_packs() -> None:
    tiny = load_language_model(str(ROOT / "assets" / "tiny" / "llama"), torch.float32)
    assert packing_fault(tiny, CPU) is None


def test_packing_asked_for_where_it_changes_numbers_is_one_line(
    model: MiniGPT4, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.llama_model, "is_backend_compatible", lambda: False)
    with one_line(ConfigError, "run.packing: on", "its attention is one of its own", "set auto"):
        model.choose_packing("on")
    assert model.choose_packing("auto") == "its attention is one of its own"
    assert not model.packed
    assert model.choose_packing("off") is None
    assert not model.packed
