"""A worker of ``test_sharding.py``: two steps with the language model whole, and with it sharded.

torchrun --nproc-per-node 2 -m tests.models.speed.sharded_step FOLDER "a.b=c …" …

For each set of options each process writes what it saw to ``FOLDER/case<n>_rank<m>.json``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from minigpt4.assembly import build_accelerator, build_model
from minigpt4.checked import check_sections
from minigpt4.config import load_config
from minigpt4.models.minigpt4 import MiniGPT4, parameter_table
from minigpt4.models.speed.sharding import shard_language_model
from minigpt4.runners.options import ComputeOptions

TINY = "eval_configs/tiny_eval.yaml"


def main(folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    accelerator = build_accelerator(ComputeOptions(device="cpu"))
    for number, options in enumerate(cases):
        report = {"world_size": accelerator.num_processes, **compare(options.split(), accelerator)}
        file = folder / f"case{number}_rank{accelerator.process_index}.json"
        file.write_text(json.dumps(report))
    accelerator.end_training()


def compare(options: list[str], accelerator: Accelerator) -> dict[str, Any]:
    """Both models' figures: of the whole language model first, then of the sharded one."""
    rank, models = accelerator.process_index, []
    for shard in ("none", "fsdp"):
        torch.manual_seed(0)
        config = load_config(TINY, ["model.ckpt=", f"run.shard={shard}", *options])
        models.append(build_model(check_sections(config, "chat"), accelerator.device).train())
    whole, sharded = models
    shard_language_model(sharded, accelerator.device)  # a second time changes nothing
    first = [gradients(model, rank) for model in models]
    answers = [answer(model, 2 + 3 * rank) for model in models]
    again = gradients(sharded, rank)  # an answer in between leaves training as it was
    return {
        "bytes": [bytes_of_layers(model) for model in models],
        "tables": [parameter_table(model) for model in models],
        "sharded": [n for n, p in sharded.named_parameters() if isinstance(p, DTensor)],
        "frozen in layers": [
            name
            for name, p in whole.named_parameters()
            if name.startswith("llama_model.model.layers.") and not p.requires_grad
        ],
        "answers": answers,
        "losses": [loss for loss, _ in (*first, again)],
        "names": [sorted(found) for _, found in (*first, again)],
        "errors": {
            name: max((value - other[name]).abs().max().item() for other in (first[1][1], again[1]))
            for name, value in first[0][1].items()
        },
        "largest": max(value.abs().max().item() for value in first[0][1].values()),
    }


def bytes_of_layers(model: MiniGPT4) -> int:
    """Of their frozen weights, in this process."""
    frozen = [p for p in model.llama_model.get_decoder().layers.parameters() if not p.requires_grad]
    here = [p.to_local() if isinstance(p, DTensor) else p for p in frozen]
    return sum(p.untyped_storage().nbytes() for p in here)


def gradients(model: MiniGPT4, rank: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a rank's own batch."""
    model.zero_grad()
    drawn = torch.Generator().manual_seed(rank)
    loss = model(
        torch.randn(2, 3, 112, 112, generator=drawn), model.stage_rows(["a red ring", "two"])
    )
    loss.backward()
    named = model.named_parameters()
    return loss.item(), {n: p.grad.clone() for n, p in named if p.grad is not None}


@torch.no_grad()
def answer(model: MiniGPT4, tokens: int) -> list[int]:
    """Of another length in each process."""
    embeds = model.embed_tokens(torch.arange(5))[None]
    ids = model.llama_model.generate(  # type: ignore[operator]
        inputs_embeds=embeds, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )
    found: list[int] = ids[0].tolist()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
