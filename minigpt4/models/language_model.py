"""Language model: any causal LM of transformers that takes ``inputs_embeds``, frozen."""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from minigpt4.config.checks import check_layers
from minigpt4.errors import CheckpointError, one_line
from minigpt4.models import DeviceMap, Quantize
from minigpt4.models.tokenizer import SentencePieceTokenizer, Tokenizer, sentencepiece_file

# Words of the published LLaMA tokenizer, its bos and eos; Vicuna v0 has one row more, for [PAD].
LLAMA_WORDS, LLAMA_BOS_EOS = 32000, (1, 2)


def load_language_model(
    folder: str,
    dtype: torch.dtype,
    quantize: Quantize = "none",
    device: torch.device | None = None,
    device_map: DeviceMap = "none",
) -> PreTrainedModel:
    """Return the language model of a folder or hub id, on the CPU.

    Quantised weights are put on ``device``, and compute in ``dtype``; the device map ``auto``
    spreads the layers over all GPUs and main memory, ``device`` first. A model that transformers
    cannot load or quantise here is a ``MiniGPT4Error``.
    """
    device, options = device or torch.device("cpu"), dict[str, object]()
    if quantize != "none" or device_map != "none":
        options = _placement(dtype, quantize, device, device_map)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, dtype=dtype, trust_remote_code=False, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise _unusable(folder, f"cannot be loaded: {one_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise _unusable(folder, f"is a {type(model).__name__}, which takes no inputs_embeds")
    if quantize != "none":
        from minigpt4.models.speed.quantization import check_quantized

        check_quantized(model, quantize, device)
    if missing := sorted(report["missing_keys"]):
        first = f"lacks {len(missing)} weights (first: {missing[0]}); "
        raise _unusable(folder, f"{first}an unmerged delta, or a broken download")
    return model


def _unusable(folder: str, text: str) -> CheckpointError:
    return CheckpointError(f"model.llama_model: {folder} {text}")


def _placement(
    dtype: torch.dtype, quantize: Quantize, device: torch.device, device_map: DeviceMap
) -> dict[str, object]:
    """Return what transformers needs to quantise or spread the weights."""
    options: dict[str, object] = {}
    if quantize != "none":
        from minigpt4.models.speed.quantization import quantization_config

        options["quantization_config"] = quantization_config(quantize, dtype)
        options["device_map"] = {"": device}
    if device_map == "auto":
        from minigpt4.models.speed.device_map import memory_for_layers

        options["device_map"] = "auto"
        options["max_memory"] = memory_for_layers(device)
    return options


def most_positions(config: PretrainedConfig) -> int | None:
    """Return the length of the longest row that can be read; None where the settings name none."""
    most = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    return most if isinstance(most, int) else None


def decoder_layers(language_model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers, the kinds that transformers does not split; empty where it names none."""
    kinds = set(language_model._no_split_modules or ())
    decoder = language_model.get_decoder()
    return [module for module in decoder.modules() if type(module).__name__ in kinds]


def learned_positions(language_model: PreTrainedModel) -> int | None:
    """Return the longest row where positions are rows of a table; None where they are computed.

    Computed positions have no hard limit: longer rows are read, only worse.
    """
    config, words = language_model.config, language_model.get_input_embeddings()
    if (slopes := getattr(config, "max_seq_len", None)) is not None:
        return int(slopes)  # the size of MPT's biases
    most = getattr(config, "max_position_embeddings", None)
    tables = (m for m in language_model.modules() if isinstance(m, nn.Embedding) and m is not words)
    # OPT's table has two rows more.
    if isinstance(most, int) and any(most <= t.num_embeddings <= most + 8 for t in tables):
        return most
    return None


def empty_language_model(folder: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return it on the meta device, by ``config.json``; see :func:`load_language_model`."""
    try:
        # Code that lies with a model is not run here, nor asked about.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unusable(folder, f"cannot be loaded: {one_line(error)}") from error
    if fault := check_layers(config.get_text_config().num_hidden_layers):
        raise _unusable(folder, f"num_hidden_layers: {fault}")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def vocabulary_fault(folder: str | Path, separator: str | None) -> str | None:
    """Return why a folder's language model does not fit its tokenizer or this separator.

    Only Vicuna v0, with 32001 rows, was trained on ``###``, but not those with 32000.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows, is_llama = settings.get("vocab_size"), settings.get("model_type") == "llama"
    except (OSError, ValueError, AttributeError, RecursionError):
        return f"{folder / 'config.json'} is not readable as settings; fetch it again"
    is_llama = is_llama and rows in (LLAMA_WORDS, LLAMA_WORDS + 1)
    if is_llama and separator is not None and ("###" in separator) != (rows == LLAMA_WORDS + 1):
        return _separator_fault(folder, rows, separator)
    try:
        model_file = sentencepiece_file(folder)
        tokenizer = SentencePieceTokenizer(model_file) if model_file else None
    except CheckpointError as error:
        return str(error)
    if tokenizer and is_llama and (tokenizer.bos_id, tokenizer.eos_id) != LLAMA_BOS_EOS:
        text = f"tokenizer.model has bos {tokenizer.bos_id} and eos {tokenizer.eos_id}"
        return f"{folder}: {text}, LLaMA's are 1 and 2; copy it from the same release"
    return words_fault(tokenizer, rows, folder) if tokenizer and isinstance(rows, int) else None


def _separator_fault(folder: Path, rows: Any, separator: str) -> str:
    if rows == LLAMA_WORDS:
        return (
            f"{folder} has {rows} rows: it is Vicuna v1.1 or later, LLaMA or Llama-2, and none of "
            "them knows the separator ###; that is Vicuna v0's, which has 32001 rows and is made "
            "with apply-delta (dataset/PrepareVicuna.md)"
        )
    return (
        f"{folder} has {rows} rows: it is Vicuna v0, whose separator is ###, not "
        f"{separator!r}; choose chat.template vicuna_v0, or another language model"
    )


def words_fault(tokenizer: Tokenizer, rows: int, folder: str | Path) -> str | None:
    """Return what is wrong with a tokenizer that has more words than the model embeddings."""
    if tokenizer.vocab_size <= rows:
        return None
    text = f"the tokenizer has {tokenizer.vocab_size} words, the model {rows} embeddings"
    return f"{folder}: {text}; take both from the same release"
