"""Export the whole model for Hugging Face transformers, or bring a projection back from there."""

import argparse
import dataclasses
import logging
from pathlib import Path

from minigpt4.config import Config, load_config
from minigpt4.errors import ConfigError, MiniGPT4Error

_WHOLE = {"quantize": "none", "low_resource": False}

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``export``."""
    parser.add_argument(
        "--to",
        nargs=2,
        required=True,
        metavar=("FORMAT", "PATH"),
        help="hf DIR: a folder for transformers, from --cfg-path; "
        "minigpt4 FILE.pth: a projection for model.ckpt, from --from",
    )
    parser.add_argument("--cfg-path", help="YAML of a chat, e.g. eval_configs/…")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of the YAML"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="folder that export --to hf wrote"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write what ``--to`` names; what is there already is not overwritten."""
    form, path = arguments.to
    if form == "hf":
        if not arguments.cfg_path or arguments.source:
            raise ConfigError("--to hf DIR: give --cfg-path, and no --from")
        _export(load_config(arguments.cfg_path, arguments.options), Path(path))
    elif form == "minigpt4":
        if not arguments.source or arguments.cfg_path:
            raise ConfigError("--to minigpt4 FILE.pth: give --from DIR, and no --cfg-path")
        _bring_back(arguments.source, Path(path))
    else:
        raise ConfigError(f"--to {form}: unknown format; known: hf DIR, minigpt4 FILE.pth")


def _export(config: Config, folder: Path) -> None:
    import torch

    from minigpt4.chat import build_chat
    from minigpt4.checked import check_sections
    from minigpt4.tools.export.hugging_face import save_hugging_face

    # The folder holds whole weights, which transformers may quantise again.
    whole = dataclasses.replace(config, model=config.model | _WHOLE)
    checked = check_sections(whole, "chat")
    tokenizer_file = _check_exportable(config, folder)
    save_hugging_face(build_chat(checked, torch.device("cpu")), tokenizer_file, folder)
    logger.info("%s: load it with transformers.Blip2ForConditionalGeneration", folder)


def _check_exportable(config: Config, folder: Path) -> Path:
    """The language model's ``tokenizer.model``; what cannot be exported is told before loading."""
    options = config.model_options()
    if not options.get("has_qformer", True):
        raise ConfigError(
            f"{config.path}: model.has_qformer: the variant without Q-Former cannot be exported: "
            "transformers' BLIP-2 always has one"
        )
    tokenizer_file = Path(options["llama_model"]) / "tokenizer.model"
    if not tokenizer_file.is_file():
        raise ConfigError(
            f"{config.path}: model.llama_model: {tokenizer_file.parent} holds no tokenizer.model; "
            "only LLaMA and its kin can be exported"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MiniGPT4Error(f"--to hf {folder}: exists already; nothing in it is overwritten")
    return tokenizer_file


def _bring_back(folder: Path, file: Path) -> None:
    if file.suffix != ".pth":
        raise ConfigError(
            f"--to minigpt4 {file}: must end in .pth; convert makes safetensors of it"
        )
    if file.exists():
        raise MiniGPT4Error(f"--to minigpt4 {file}: exists already; nothing is overwritten")
    from minigpt4.tools.export.hugging_face import load_projection
    from minigpt4.weights.checkpoint import save_atomically

    save_atomically({"model": load_projection(folder)}, file)
    logger.info("%s: the projection of %s, for model.ckpt; nothing else is taken", file, folder)
