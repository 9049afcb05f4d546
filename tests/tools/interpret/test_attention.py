"""Attention to the image: true weights at true places, and a model that is left as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedConfig, RwkvConfig

from minigpt4.chat import Chat
from minigpt4.errors import ConfigError, DataError
from minigpt4.models.llm_input import Segment, splice
from minigpt4.tools.interpret import attention_to_image, pixels_seen
from minigpt4.tools.interpret.attention import answer_attention, image_positions, patch_shares
from minigpt4.tools.tiny_world.scenes import Scene, Thing, draw_scene
from tests.helpers.other_llms import save_gpt_neox, save_model, save_tokenizer
from tests.helpers.repo import ROOT
from tests.helpers.tiny_models import load_tiny_chat as load

QUESTION, ANSWER = "Describe this image in detail.", "There is a large red circle at the top."


def prompt_of(chat: Chat, image: Path) -> list[Segment]:
    tokens = chat.encode_images([image])[0]
    return chat.model.prompt_segments(
        f"{chat.template.system}###Human: <Img><ImageHere></Img> {QUESTION}###Assistant: ", [tokens]
    )


@pytest.mark.parametrize("layer", [None, 2])
def test_weights_are_those_of_a_model_that_was_loaded_eager(
    chat: Chat, pictures: list[Path], layer: int | None
):
    prompt, ids = prompt_of(chat, pictures[0]), chat.model.tokenizer.encode(ANSWER)
    eager = AutoModelForCausalLM.from_pretrained(
        ROOT / "assets" / "tiny" / "llama", attn_implementation="eager", dtype=torch.float32
    )
    row = splice([[*prompt, ids]], chat.model.embed_tokens, chat.model.device)
    with torch.no_grad():
        layers = eager(inputs_embeds=row.embeds, output_attentions=True).attentions
    before = sum(map(len, prompt))
    expected = torch.stack([w[0].mean(0) for w in layers])[:, before - 1 : -1]
    expected = expected.mean(0) if layer is None else expected[layer]

    rows = answer_attention(chat.model, prompt, ids, layer)
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(rows.sum(-1), torch.ones(len(ids)))
    look = attention_to_image(chat, pictures[:1], QUESTION, ANSWER, layer)
    (place,) = image_positions(prompt)
    torch.testing.assert_close(look.to_tokens, expected[:, None, place.start : place.stop])
    assert "".join(look.tokens) == " " + ANSWER
    assert look.answer == ANSWER


def test_the_models_own_answer_is_the_chats(chat: Chat, pictures: list[Path]):
    look = attention_to_image(chat, pictures[:1], QUESTION)
    assert look.answer == chat.ask(QUESTION, pictures[:1]) != ""
    assert look.to_tokens.shape == (len(look.tokens), 1, 16)
    assert look.maps.shape == (len(look.tokens), 1, 8, 8)
    assert ((look.image_share > 0) & (look.image_share < 1)).all()


def test_the_model_is_left_as_it_was(chat: Chat, pictures: list[Path]):
    def logits() -> torch.Tensor:
        row = splice([prompt_of(chat, pictures[0])], chat.model.embed_tokens, chat.model.device)
        with torch.no_grad():
            return chat.model.logits(row)

    def state() -> list[object]:
        assert chat.model.q_former is not None
        parts = (chat.model.llama_model, chat.model.q_former)
        hooks = [m._forward_pre_hooks for m in chat.model.modules() if m._forward_pre_hooks]
        return [*(part.config._attn_implementation for part in parts), hooks]

    known, before, answer = state(), logits(), chat.ask(QUESTION, pictures[:1])
    tokens = chat.encode_images(pictures)
    assert known[0] != "eager"
    attention_to_image(chat, pictures[:1], QUESTION)
    with pytest.raises(ConfigError, match="no layer 9"):
        answer_attention(chat.model, prompt_of(chat, pictures[0]), [5], layer=9)
    assert state() == known
    assert torch.equal(logits(), before)
    assert torch.equal(chat.encode_images(pictures), tokens)
    assert chat.ask(QUESTION, pictures[:1]) == answer


@pytest.mark.parametrize(("x", "y"), [(92, 20), (20, 92), (92, 92)])
def test_an_object_lights_up_where_it_is(chat: Chat, x: int, y: int):
    star = Thing("yellow", "star", "large", x, y, 0.0)
    picture, empty = (draw_scene(Scene(t, "top", "dark", 3)) for t in ((star,), ()))
    shares, bare = patch_shares(chat.model, pixels_seen(chat, [picture, empty]))
    assert shares.shape == (16, 64)
    assert (shares.sum(-1) < 1).all()  # the class token's share is left out
    row, column = divmod(int((shares - bare).sum(0).argmax()), 8)
    # The centre of that patch lies on the star.
    assert abs(14 * row + 7 - y) < 16
    assert abs(14 * column + 7 - x) < 16
    look = attention_to_image(chat, [picture], QUESTION, ANSWER)
    torch.testing.assert_close(look.maps.flatten(1), look.to_tokens[:, 0] @ shares)


def test_without_a_q_former_a_token_is_four_patches_side_by_side(pictures: list[Path]):
    chat = load("model.has_qformer=False")
    look = attention_to_image(chat, pictures[:1], QUESTION, ANSWER)
    assert look.to_tokens.shape[1:] == (1, 16)
    for token in range(16):
        row, half = divmod(token, 2)
        four = look.maps[:, 0, row, 4 * half : 4 * half + 4]
        torch.testing.assert_close(four, look.to_tokens[:, 0, token, None].expand(-1, 4) / 4)
    torch.testing.assert_close(look.maps.sum((1, 2, 3)), look.image_share)
    # The encoder's own order of patches is the grid's.
    pixels = pixels_seen(chat, pictures[:1])
    changed = pixels.clone()
    changed[0, :, 14:28, 84:98] += 1  # row 1, column 6
    assert chat.model.visual_encoder is not None
    embed = chat.model.visual_encoder.get_submodule("patch_embed")
    (differs,) = (embed(changed) - embed(pixels)).abs().sum(-1).flatten().nonzero()[:, 0].tolist()
    assert divmod(differs, 8) == (1, 6)


def test_several_images_are_kept_apart(chat: Chat, pictures: list[Path]):
    look = attention_to_image(chat, pictures[:2], QUESTION, ANSWER)
    assert look.to_tokens.shape[1:] == (2, 16)
    assert look.maps.shape[1:] == (2, 8, 8)
    shares = patch_shares(chat.model, pixels_seen(chat, pictures[:2]))
    torch.testing.assert_close(look.maps[:, 1].flatten(1), look.to_tokens[:, 1] @ shares[1])


def test_another_family_of_language_models(tmp_path: Path, pictures: list[Path]):
    folder = save_gpt_neox(tmp_path / "neox")
    chat = load(f"model.llama_model={folder}", "chat.max_length=400")
    look = attention_to_image(chat, pictures[:1], "What is this?", "a red circle", layer=1)
    assert "".join(look.tokens) == "a red circle"
    assert ((look.image_share > 0) & (look.image_share < 1)).all()


@pytest.mark.parametrize(("config", "name"), [(MambaConfig, "Mamba"), (RwkvConfig, "Rwkv")])
def test_a_model_without_attention_is_told(
    tmp_path: Path, pictures: list[Path], config: type[PreTrainedConfig], name: str
):
    words = save_tokenizer(tmp_path / "own", ("<|endoftext|>",), "<|endoftext|>")
    settings = config(vocab_size=words, hidden_size=32, num_hidden_layers=2)
    folder = save_model(tmp_path / "own", settings)
    chat = load(f"model.llama_model={folder}", "chat.max_length=400")
    with pytest.raises(ConfigError, match=f"a {name}ForCausalLM gives no attention weights"):
        attention_to_image(chat, pictures[:1], "What is this?", "a red circle")


@pytest.mark.parametrize(
    ("given", "error", "expected"),
    [
        ({"layer": 4}, ConfigError, "no layer 4: .* 0 to 3"),
        ({"layer": -1}, ConfigError, "no layer -1"),
        ({"answer": " "}, DataError, "the answer is empty"),
        ({"images": []}, DataError, "no image"),
        ({"images": ["none.png"]}, DataError, "none.png: no such file"),
        ({"question": ""}, DataError, "the question is empty"),
        ({"question": "red " * 600}, DataError, "but only 500 fit"),
        ({"answer": "red " * 600}, DataError, "but only 500 fit"),
    ],
)
def test_a_mistake_is_told(
    chat: Chat, pictures: list[Path], given: dict[str, Any], error: type[Exception], expected: str
):
    with pytest.raises(error, match=expected):
        attention_to_image(chat, **{"images": pictures[:1], "question": QUESTION} | given)


def test_a_processor_that_crops_at_random_is_refused(pictures: list[Path]):
    name = "datasets.cc_sbu_align.vis_processor.train"
    chat = load(f"{name}.name=blip2_image_train", f"{name}.random_crop=True")
    with pytest.raises(ConfigError, match="crops at random"):
        attention_to_image(chat, pictures[:1], QUESTION, ANSWER)


@pytest.mark.slow
def test_quantised_models_are_looked_at_too(pictures: list[Path]):
    pytest.importorskip("bitsandbytes", reason="pip install -e '.[quantize]'")
    whole, short = (
        attention_to_image(load(f"model.quantize={kind}"), pictures[:1], QUESTION, ANSWER)
        for kind in ("none", "int8")
    )
    torch.testing.assert_close(short.to_tokens, whole.to_tokens, atol=0.02, rtol=0.1)
