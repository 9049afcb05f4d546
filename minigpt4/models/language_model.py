"""Language model: any causal LM of transformers that takes ``inputs_embeds``, frozen."""

import logging
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from minigpt4.errors import CheckpointError, one_line
from minigpt4.models.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def load_language_model(folder: str, dtype: torch.dtype, int8: bool = False) -> PreTrainedModel:
    """The language model of a folder or hub id.

    Args:
        folder: As saved by transformers (``config.json`` and weights).
        dtype: Of the weights in memory.
        int8: Load the weights in 8 bits, where bitsandbytes and a GPU are there (the original's
            ``low_resource``); elsewhere full precision, and one line says so.

    Raises:
        CheckpointError: when transformers cannot load it, or weights are missing.
    """
    options: dict[str, object] = {"dtype": dtype}
    if int8:
        if torch.cuda.is_available() and _has_bitsandbytes():
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        else:
            logger.warning("low_resource: int8 needs a GPU and bitsandbytes; using %s", dtype)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = one_line(error)
        raise CheckpointError(f"model.llama_model: {folder} cannot be loaded: {reason}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"model.llama_model: {folder} lacks {len(missing)} weights (first: {missing[0]}); "
            "an unmerged delta, or a broken download"
        )
    return model


def empty_language_model(folder: str, dtype: torch.dtype, int8: bool = False) -> PreTrainedModel:
    """The language model of a folder's ``config.json`` on the meta device, without its weights.

    Arguments and errors as in :func:`load_language_model`.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise CheckpointError(f"model.llama_model: {folder} cannot be loaded: {reason}") from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _has_bitsandbytes() -> bool:
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def check_vocabulary(model: PreTrainedModel, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Refuse a tokenizer that is not this model's.

    Raises:
        CheckpointError: when the tokenizer knows ids that the model has no embedding for.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"model.llama_model: {folder}: the tokenizer has {tokenizer.vocab_size} words, the "
            f"model {rows} embeddings; take both from the same release"
        )
