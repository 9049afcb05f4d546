"""What packing saves: a frozen LLaMA's forward and backward, padded and packed, in turn.

    python benchmarks/packing.py --json output/packing.json

Rows are an image of 32 positions and captions of 6 to 60 tokens. "Waste" is the padded batch's
positions over the real ones, and what packing can gain but for the logits where nothing is learnt,
which it leaves out too. CPU time on one thread, medians; in fp32 loss and input gradient must be
the same to 1e-5.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.errors import ConfigError, run_guarded
from minigpt4.models.llm_input import Joined, Learnt, Segment, join, pad, target_logits, target_loss
from minigpt4.models.speed.packing import pack, packed_logits, packing_fault

IMAGE, VOCABULARY = 32, 1000
LEAST_WASTE, LEAST_SHARE, MOST_DIFFERENCE = 1.35, 0.95, 1e-5


def llama(width: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=int(width * 2.6875),
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def batch(model: LlamaForCausalLM, rows: int, drawn: random.Random) -> tuple[Joined, torch.Tensor]:
    """A padded batch, and the image embeddings in it, which take the gradient."""
    images = torch.randn(rows, IMAGE, model.config.hidden_size) * 0.02
    images.requires_grad_()
    lengths = [drawn.randint(6, 60) for _ in range(rows)]
    lengths[0] = 60
    answers = [[drawn.randrange(VOCABULARY) for _ in range(length)] for length in lengths]
    joined: list[list[Segment]] = [
        [[1], image, Learnt(answer)] for image, answer in zip(images, answers, strict=True)
    ]
    return join(joined, model.get_input_embeddings(), torch.device("cpu")), images


def padded_loss(model: LlamaForCausalLM, joined: Joined) -> torch.Tensor:
    spliced = pad(joined)
    output = model(
        inputs_embeds=spliced.embeds, attention_mask=spliced.attention_mask, use_cache=False
    )
    return target_loss(*target_logits(output.logits, spliced.targets))


def packed_loss(model: LlamaForCausalLM, joined: Joined) -> torch.Tensor:
    packed = pack(joined)
    return target_loss(packed_logits(model, packed), packed.targets)


Loss = Callable[[LlamaForCausalLM, Joined], torch.Tensor]


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(arguments.seed)
    drawn = random.Random(arguments.seed)
    model = llama(arguments.width, arguments.layers)
    if fault := packing_fault(model, torch.device("cpu")):
        raise ConfigError(f"this LLaMA is not packed: {fault}")
    ways: dict[str, Loss] = {"padded": padded_loss, "packed": packed_loss}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    wastes, loss_difference, gradient_difference = [], 0.0, 0.0
    for repeat in range(arguments.repeats + 1):  # the first warms up
        found = {}
        joined, images = batch(model, arguments.batch, drawn)
        wastes.append(max(joined.lengths) * arguments.batch / sum(joined.lengths))
        for way, loss_of in ways.items():
            start = time.process_time()
            loss = loss_of(model, joined)
            (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
            if repeat:
                seconds[way].append(time.process_time() - start)
            found[way] = (loss.item(), gradient)
        (padded, expected), (packed, gradient) = found["padded"], found["packed"]
        loss_difference = max(loss_difference, abs(padded - packed))
        difference = (gradient - expected).abs().max() / expected.abs().max()
        gradient_difference = max(gradient_difference, difference.item())
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    waste = statistics.mean(wastes)
    return {
        "waste": waste,
        "padded_seconds": medians["padded"],
        "packed_seconds": medians["packed"],
        "ratio": medians["padded"] / medians["packed"],
        "of_waste": medians["padded"] / medians["packed"] / waste,
        "loss_difference": loss_difference,
        "gradient_difference": gradient_difference,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if min(arguments.batch, arguments.layers, arguments.repeats) < 1 or arguments.width % 64:
        raise ConfigError("--batch, --layers and --repeats are at least 1, --width 64, 128, …")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = measure(arguments)
    finally:
        torch.set_num_threads(threads)
    print(
        f"waste {figures['waste']:.3f}; padded {figures['padded_seconds']:.3f} s, packed "
        f"{figures['packed_seconds']:.3f} s of CPU time, ratio {figures['ratio']:.3f} = "
        f"{figures['of_waste']:.2f} of the waste; loss {figures['loss_difference']:.1e}, gradient "
        f"{figures['gradient_difference']:.1e} apart"
    )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    missed = [
        f"waste below {LEAST_WASTE}: nothing to save" if figures["waste"] < LEAST_WASTE else "",
        f"ratio below {LEAST_SHARE} of the waste" if figures["of_waste"] < LEAST_SHARE else "",
        f"loss differs by {MOST_DIFFERENCE} or more"
        if figures["loss_difference"] >= MOST_DIFFERENCE
        else "",
        f"gradient differs by {MOST_DIFFERENCE} or more"
        if figures["gradient_difference"] >= MOST_DIFFERENCE
        else "",
    ]
    print("\n".join(filter(None, missed)), end="\n" if any(missed) else "")
    return 1 if any(missed) else 0


if __name__ == "__main__":
    run_guarded(main)
