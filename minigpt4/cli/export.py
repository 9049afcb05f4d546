"""Export the whole model for Hugging Face transformers, or bring a projection back from there."""

import argparse
from pathlib import Path

from minigpt4.apps.arguments import add_config_arguments
from minigpt4.config import load_config
from minigpt4.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--to",
        nargs=2,
        required=True,
        metavar=("FORMAT", "PATH"),
        help="hf DIR: a folder for transformers, from --cfg-path; "
        "minigpt4 FILE.pth: a projection for model.ckpt, from --from",
    )
    add_config_arguments(parser, "YAML of a chat, e.g. eval_configs/…", required=False)
    add("--from", dest="source", type=Path, metavar="DIR", help="folder that export --to hf wrote")


def run(arguments: argparse.Namespace) -> None:
    from minigpt4.tools.export.hugging_face import export_chat, export_projection

    form, path = arguments.to
    if form == "hf":
        if not arguments.cfg_path or arguments.source:
            raise ConfigError("--to hf DIR: give --cfg-path, and no --from")
        export_chat(load_config(arguments.cfg_path, arguments.options), Path(path))
    elif form == "minigpt4":
        if not arguments.source or arguments.cfg_path:
            raise ConfigError("--to minigpt4 FILE.pth: give --from DIR, and no --cfg-path")
        export_projection(arguments.source, Path(path))
    else:
        raise ConfigError(f"--to {form}: unknown format; known: hf DIR, minigpt4 FILE.pth")
