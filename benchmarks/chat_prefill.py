"""What keeping keys and values saves: the time to a later answer's first word.

    python benchmarks/chat_prefill.py --json output/chat_prefill.json

The same question is asked after histories of several lengths, once with what earlier turns left
behind and once reading everything anew, in turn; ratios are of medians. A complete answer is read
again as the next prompt will have it, while its user reads it too: that time is no part of a first
word's. On a CPU, CPU time on one thread. Every word must be the same both ways.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.chat import Chat, ChatSession, Part, load_chat
from minigpt4.errors import ConfigError, run_guarded

YAML = "eval_configs/tiny_eval.yaml"
PICTURE = Path("assets/examples/1.png")
HISTORIES = (70, 300, 1000)  # tokens
BAR = {300: 5.0}
_LAST_ANSWER = 24  # tokens
# Width, layers, inner width of random LLaMAs; their vocabulary is the embedded default's.
SIZES = {"small": (512, 8, 1376), "7b": (4096, 32, 11008)}


def with_random_llama(chat: Chat, size: str, device: torch.device) -> Chat:
    """The chat over a language model of another size, with random weights made on the device."""
    width, layers, inner = SIZES[size]
    config = LlamaConfig(
        vocab_size=chat.model.tokenizer.vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=width // 128,
        max_position_embeddings=4096,
    )
    model = chat.model
    with torch.device(device):
        language_model = LlamaForCausalLM(config).to(model.llama_model.dtype)
        model.llama_proj = torch.nn.Linear(model.llama_proj.in_features, width)
    model.llama_model = language_model.requires_grad_(False)
    return Chat(model, chat.image_processor, chat.options)


def history(chat: Chat, tokens: int) -> ChatSession:
    """A session of about so many tokens, whose last answer the model gave; what it read is kept."""
    turns: list[tuple[Sequence[Part], str]] = [([PICTURE, "What is this?"], "A red circle.")]
    more: tuple[Sequence[Part], str] = (
        ["How many objects are there, and where are they?"],
        "There are two, at the top.",
    )

    def length() -> int:
        session = chat.start(turns)
        prompt = session.conversation.transcript()
        return sum(map(len, chat.model.prompt_segments(prompt, session.images)))

    while length() + 2 * _LAST_ANSWER < tokens:
        turns.append(more)
    session = chat.start(turns)
    exact = {"max_new_tokens": _LAST_ANSWER, "min_length": _LAST_ANSWER}
    chat.ask("Describe this image in detail.", (), session, **exact)
    return session


def measure(chat: Chat, tokens: int, repeats: int) -> dict[str, float]:
    """Seconds to the first word after a history, kept and anew, with the tokens read each way."""
    anew = Chat(chat.model, chat.image_processor, replace(chat.options, kept_tokens=0))
    chat.kept.clear()
    session = history(chat, tokens)
    clock = time.process_time if chat.model.device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"kept": [], "anew": []}
    read, words = {}, set()
    for repeat in range(repeats + 1):  # the first warms up
        for name, asked in (("kept", chat), ("anew", anew)):
            copy = session.copy()
            stream = asked.stream("What color is it?", (), copy, max_new_tokens=1)
            start = clock()
            word = next(stream, "")
            if repeat:
                seconds[name].append(clock() - start)
            words.add((word, *stream))
            assert copy.usage is not None
            read[name] = copy.usage.prompt - copy.usage.kept
            if name == "kept":  # what this question left behind must not help the next
                chat.kept.clear()
                history(chat, tokens)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "history": tokens,
        "read_anew": read["anew"],
        "read_kept": read["kept"],
        "seconds_anew": medians["anew"],
        "seconds_kept": medians["kept"],
        "ratio": medians["anew"] / medians["kept"],
        "equal": float(len(words) == 1 and same_answers(chat, anew, session)),
    }


def same_answers(first: Chat, second: Chat, session: ChatSession) -> bool:
    """Whether three more answers of 24 tokens are the same word for word."""
    answers = []
    for chat in (first, second):
        copy = session.copy()
        questions = ("What color is it?", "Are you sure?", "Where is it?")
        answers.append([chat.ask(q, (), copy, max_new_tokens=24) for q in questions])
    return answers[0] == answers[1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", *SIZES), default="small")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--histories", type=int, nargs="+", default=HISTORIES, metavar="TOKENS")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1 or min(arguments.histories) < 1:
        raise ConfigError("--repeats and --histories must be at least 1")
    torch.manual_seed(arguments.seed)
    options = ["model.ckpt=", "chat.max_length=4000", "chat.do_sample=False"]
    chat = load_chat(YAML, options, device=arguments.device)
    if arguments.size != "tiny":
        chat = with_random_llama(chat, arguments.size, chat.model.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [measure(chat, tokens, arguments.repeats) for tokens in arguments.histories]
    finally:
        torch.set_num_threads(threads)
    print(f"{arguments.size} on {chat.model.device}, medians of {arguments.repeats}")
    for row in rows:
        print(
            f"{row['history']:>5} tokens of history: {1000 * row['seconds_anew']:7.1f} ms anew "
            f"({row['read_anew']} tokens), {1000 * row['seconds_kept']:6.1f} ms kept "
            f"({row['read_kept']} tokens), ratio {row['ratio']:.1f}, "
            f"answers {'equal' if row['equal'] else 'DIFFER'}"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    missed = [row for row in rows if row["ratio"] < BAR.get(int(row["history"]), 0)]
    differing = [row for row in rows if not row["equal"]]
    if not any(tokens in BAR for tokens in arguments.histories):
        print("no history with a bar was measured")
        return 1
    for row in missed:
        bar = BAR[int(row["history"])]
        print(f"ratio {row['ratio']:.2f} at {row['history']} tokens is below {bar}")
    return 1 if missed or differing else 0


if __name__ == "__main__":
    run_guarded(main)
