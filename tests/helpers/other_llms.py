"""Small random language models of other families, each with a tokenizer of its own kind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from tests.helpers.llama_folders import GOLDEN_TOKENIZER

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4}
_TEXTS = [
    "a red circle above a small blue square; what is this? describe the image in detail",
    "the image shows a large green triangle and a ring, on the left of a yellow star.",
]


def save_model(folder: Path, config: PreTrainedConfig, seed: int = 0) -> Path:
    """A model with random weights, ready to be loaded."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def save_tokenizer(
    folder: Path,
    special: tuple[str, ...],
    eos: str,
    bos: str | None = None,
    chat_template: str | None = None,
) -> int:
    """A byte-level tokenizer as GPT-2's, GPT-NeoX's and Qwen's are; the number of its words.

    Args:
        folder: To write it into.
        special: Words that are never split; their ids begin at 0.
        eos: One of them.
        bos: One of them; it is put in front of texts unless it is eos, too.
        chat_template: In Jinja.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet
    )
    core.train_from_iterator(_TEXTS, trainer)
    # GPT-NeoX keeps runs of spaces as words of their own.
    core.add_tokens([AddedToken("  ", normalized=True)])
    if bos not in (None, eos):
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos)
    fast.chat_template = chat_template
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return len(fast)


def save_qwen2(folder: Path, chat_template: str | None = CHATML) -> Path:
    """Qwen2: no bos, turns of ChatML, an answer ends at either of two tokens."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    words = save_tokenizer(folder, special, "<|im_end|>", None, chat_template)
    config = Qwen2Config(
        vocab_size=words + 8,  # rows that no word stands for
        **_SIZE,
        **_HEADS,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        max_position_embeddings=512,
    )
    save_model(folder, config)
    (folder / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": [2, 0]}')
    return folder


def save_gpt_neox(folder: Path) -> Path:
    """GPT-NeoX: one token for bos and eos, that no row begins with; no chat template."""
    words = save_tokenizer(
        folder, ("<|endoftext|>", "<|padding|>"), "<|endoftext|>", "<|endoftext|>"
    )
    config = GPTNeoXConfig(
        vocab_size=words,
        **_SIZE,
        **_HEADS,
        bos_token_id=0,
        eos_token_id=0,
        max_position_embeddings=512,
    )
    return save_model(folder, config)


def save_llama_2(folder: Path) -> Path:
    """Llama-2: sentencepiece, and a chat template beside it."""
    config = LlamaConfig(
        vocab_size=512,
        **_SIZE,
        **_HEADS,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=512,
    )
    save_model(folder, config)
    shutil.copy(GOLDEN_TOKENIZER, folder / "tokenizer.model")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": LLAMA_2}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@dataclass(frozen=True)
class Family:
    """A language model, its turns and how stage 2 writes them."""

    save: Callable[[Path], Path]
    prompt: str
    end_sym: str
    template: str


FAMILIES = {
    "llama_2": Family(save_llama_2, "<s>[INST] {} [/INST] ", "</s>", "own"),
    "qwen2": Family(
        save_qwen2, "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "own"
    ),
    "gpt_neox": Family(
        save_gpt_neox,
        "### Instruction:\n{}\n\n### Response:\n",
        "<|endoftext|>",
        '{system: "", user: "### Instruction:\\n", assistant: "### Response:\\n",'
        ' opening: "### Response:\\n", separator: "\\n\\n", stop: "### Instruction:"}',
    ),
}


def chat_options(family: Family, folder: Path, *more: str) -> list[str]:
    return [
        "model.ckpt=",
        f"model.llama_model={folder}",
        f"chat.template={family.template}",
        "chat.max_new_tokens=8",
        *more,
    ]


def _size(**more: Any) -> dict[str, Any]:
    known = {"bos_token_id": 0, "eos_token_id": 2, "vocab_size": 400}
    return {**known, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32} | more


KINDS: dict[str, PreTrainedConfig] = {
    "learned positions": GPT2Config(
        vocab_size=400,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=2,
    ),
    "narrower embeddings": OPTConfig(
        **_size(ffn_dim=64, word_embed_proj_dim=16, max_position_embeddings=128, pad_token_id=1)
    ),
    "a window": MistralConfig(
        **_size(intermediate_size=64, num_key_value_heads=2, sliding_window=16)
    ),
    "no attention": MambaConfig(
        hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=400, bos_token_id=0
    ),
}


def save_kind(folder: Path, kind: str) -> Path:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    save_tokenizer(folder, special, "<|im_end|>", None, CHATML)
    return save_model(folder, KINDS[kind])
