"""Pretrain the towers of the embedded default (assets/tiny); about 40 minutes on 2 cores."""

import argparse
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from minigpt4.errors import MiniGPT4Error

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``make-tiny-towers``."""
    parser.add_argument("--output", type=Path, default=Path("output/tiny_towers"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--visual-encoder-steps", type=int, default=3300)
    parser.add_argument("--q-former-steps", type=int, default=3000)
    parser.add_argument("--llama-steps", type=int, default=3500)


def run(arguments: argparse.Namespace) -> None:
    """Eyes and language model side by side, one core each; then ``gates.json``."""
    output, seed = arguments.output, arguments.seed
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniGPT4Error(f"--output {output}: cannot be made ({error})") from error
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        vision = pool.submit(
            make_vision, output, seed, arguments.visual_encoder_steps, arguments.q_former_steps
        )
        language = pool.submit(make_language, output / "llama", seed, arguments.llama_steps)
        gates = {**vision.result(), **language.result()}
    (output / "gates.json").write_text(json.dumps(gates, indent=2) + "\n")
    for name, value in gates.items():
        logger.info("gate %-36s %.4f", name, value)
    logger.info("towers are in %s; copy them to assets/tiny to use them", output)


def _start_worker() -> None:
    import torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)


def make_vision(
    output: Path, seed: int, encoder_steps: int, q_former_steps: int
) -> dict[str, float]:
    """Write ``eva_vit.pth`` and ``q_former.pth``; their gates."""
    _start_worker()
    from minigpt4.cli.tiny_world.pretrain_vision import (
        pretrain_q_former,
        pretrain_visual_encoder,
        save_vision,
    )

    encoder, accuracy = pretrain_visual_encoder(encoder_steps, seed)
    ln_vision, query_tokens, q_former, probe = pretrain_q_former(encoder, q_former_steps, seed + 1)
    save_vision(output, encoder, ln_vision, query_tokens, q_former)
    return {"visual encoder: shape of a patch": accuracy, "q-former: layout probe": probe}


def make_language(output: Path, seed: int, steps: int) -> dict[str, float]:
    """Write the ``llama`` folder; its text-only ceilings."""
    _start_worker()
    from minigpt4.cli.tiny_world.pretrain_language import pretrain_llama, train_tokenizer

    tokenizer = train_tokenizer(output, seed)
    llama, ceilings = pretrain_llama(tokenizer, steps, seed + 5)
    llama.half().save_pretrained(output)
    return {f"llama, text only: {kind}": value for kind, value in ceilings.items()}
