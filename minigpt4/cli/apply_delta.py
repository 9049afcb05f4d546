"""Add the published Vicuna v0 delta to LLaMA: the folder that model.llama_model names."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, required=True, help="LLaMA as a Hugging Face folder")
    parser.add_argument("--delta", type=Path, required=True, help="folder of the Vicuna v0 delta")
    parser.add_argument("--target", type=Path, required=True, help="folder to make")


def run(arguments: argparse.Namespace) -> None:
    from minigpt4.tools.export.deltas import apply_delta

    base, delta, target = arguments.base, arguments.delta, arguments.target
    apply_delta(base.absolute(), delta.absolute(), target.absolute())
