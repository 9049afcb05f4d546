"""The towers of the embedded default, pretrained in two processes; resumable."""

import argparse
import json
import logging
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from minigpt4.errors import MiniGPT4Error

# What a tower must reach; the other gates are reported only.
BARS = {
    "visual encoder: shape of a patch": 0.97,
    "q-former: layout probe": 0.95,
    "llama, plain notes: all": 0.93,
    "llama, soft notes: all": 0.93,
}
_LOG = "towers.log"

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this program."""
    parser.add_argument("--output", type=Path, default=Path("output/tiny_towers"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--visual-encoder-steps", type=int, default=2400)
    parser.add_argument("--q-former-steps", type=int, default=2400)
    parser.add_argument("--llama-steps", type=int, default=4000)
    parser.add_argument("--save-every", type=int, default=200, help="steps between two saves")


def run(arguments: argparse.Namespace) -> None:
    """Eyes and language model side by side, one core each; then ``gates.json``.

    Run again with the same arguments it goes on where it was stopped, and ends with the same files.
    """
    output: Path = arguments.output
    _claim(output, {name: value for name, value in vars(arguments).items() if name != "output"})
    _log_to(output)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        vision = pool.submit(make_vision, arguments)
        language = pool.submit(make_language, arguments)
        gates = {**vision.result(), **language.result()}
    (output / "gates.json").write_text(json.dumps(gates, indent=2) + "\n")
    missed = [name for name, bar in BARS.items() if gates[name] < bar]
    for name, value in gates.items():
        bar = f"bar {BARS[name]:.2f}" if name in BARS else ""
        logger.info("gate %-36s %.4f %s%s", name, value, bar, " MISSED" if name in missed else "")
    if missed:
        raise MiniGPT4Error(f"{output}: gates missed: {', '.join(missed)}; give them more steps")
    logger.info("towers are in %s; copy them to assets/tiny to use them", output)


def _claim(output: Path, settings: dict[str, int]) -> None:
    """The folder is this run's: new, or begun with the same settings."""
    stamp = output / "made_with.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        begun = json.loads(stamp.read_text()) if stamp.is_file() else settings
        stamp.write_text(json.dumps(begun))
    except (OSError, ValueError) as error:
        raise MiniGPT4Error(f"--output {output}: cannot be used ({error})") from error
    if begun != settings:
        raise MiniGPT4Error(
            f"--output {output}: was begun with other settings ({begun}); "
            "give the same, or another folder"
        )


def _log_to(output: Path) -> None:
    """The root logger also writes to the folder's log."""
    file = logging.FileHandler(output / _LOG)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(file)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on writing beside the next run's."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker(output: Path) -> None:
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _log_to(output)
    torch.set_num_threads(1)


def make_vision(arguments: argparse.Namespace) -> dict[str, float]:
    """Write ``eva_vit.pth`` and ``q_former.pth``; their gates."""
    output, seed, save_every = arguments.output, arguments.seed, arguments.save_every
    _start_worker(output)
    from assets.tiny.making.pretrain_vision import (
        pretrain_q_former,
        pretrain_visual_encoder,
        save_vision,
    )

    encoder, accuracy = pretrain_visual_encoder(
        output, arguments.visual_encoder_steps, seed, save_every
    )
    ln_vision, query_tokens, q_former, probe = pretrain_q_former(
        output, encoder, arguments.q_former_steps, seed, save_every
    )
    save_vision(output, encoder, ln_vision, query_tokens, q_former)
    return {"visual encoder: shape of a patch": accuracy, "q-former: layout probe": probe}


def make_language(arguments: argparse.Namespace) -> dict[str, float]:
    """Write the ``llama`` folder; its text-only ceilings."""
    _start_worker(arguments.output)
    from assets.tiny.making.pretrain_language import pretrain_llama, train_tokenizer

    folder = arguments.output / "llama"
    tokenizer = train_tokenizer(folder, arguments.seed)
    llama, ceilings = pretrain_llama(
        arguments.output, tokenizer, arguments.llama_steps, arguments.seed, arguments.save_every
    )
    llama.half().save_pretrained(folder)
    return {f"llama, {kind}": value for kind, value in ceilings.items()}
