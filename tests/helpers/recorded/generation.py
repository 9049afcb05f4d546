"""Recorded conversations and batches of a model case: contexts, ids, scores and texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import StoppingCriteria

from minigpt4.chat.generation import cut_at, generate_ids
from minigpt4.conversation import TEMPLATES, Conversation, Message, Template
from minigpt4.conversation.options import GenerationOptions
from minigpt4.models.llm_input import splice
from minigpt4.models.minigpt4 import MiniGPT4
from tests.helpers.recorded.comparison import LOGITS_ATOL, Comparison, compare, equal
from tests.helpers.recorded.model import Case

_MAX_LENGTH = 2000  # of a context and its answer, where a run does not say otherwise
_STOP_TEXT = "###"


class StopAt(StoppingCriteria):
    """The original's rule, a whole batch at a time: v1 looks at the first beam, main at all."""

    def __init__(self, stops: Sequence[list[int]], first_only: bool, rows: int, eos_id: int):
        self._stops = stops
        self._watched = 1 if first_only else rows
        self._eos_id = eos_id

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        # Today's beam search also shows candidates that have just ended; the original's did not.
        rows = [row for row in input_ids.tolist() if row[-1] != self._eos_id][: self._watched]
        done = any(rows and all(r[-len(stop) :] == stop for r in rows) for stop in self._stops)
        return torch.full((len(input_ids),), done)


@dataclass(frozen=True)
class Generator:
    """Runs our generator as a recorded run was run."""

    model: MiniGPT4
    case: Case

    def options(self, arguments: dict[str, Any]) -> GenerationOptions:
        names = ("num_beams", "max_new_tokens", "min_length")
        return GenerationOptions(
            do_sample=False,
            repetition_penalty=float(arguments.get("repetition_penalty", 1.0)),
            length_penalty=float(arguments.get("length_penalty", 1.0)),
            **{name: arguments[name] for name in names if name in arguments},
        )

    @torch.no_grad()
    def run(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        options: GenerationOptions,
        stops: Sequence[list[int]] = (),
        **more: Any,
    ) -> Any:
        eos_id = self.model.tokenizer.eos_id
        rows = options.num_beams * len(embeds)
        stop = StopAt(stops, self.case.first_release, rows, eos_id)
        return generate_ids(self.model, embeds, mask, options, [stop], **more)

    def text(self, ids: Sequence[int]) -> str:
        """The answer as the original cut it; its first release kept special tokens."""
        text = self.model.tokenizer.decode(ids, skip_special=not self.case.first_release)
        return cut_at(text, _STOP_TEXT).split("Assistant:")[-1].strip()

    @torch.no_grad()
    def score(self, embeds: torch.Tensor, ids: list[int], options: GenerationOptions) -> float:
        """What the original's beam search gave these ids: bos counts in the length, eos does not.

        Args:
            embeds: The context ``[1, S, D]``.
            ids: The answer, without the bos that it starts with.
            options: With the penalties.
        """
        bos, eos = self.model.tokenizer.bos_id, self.model.tokenizer.eos_id
        words = self.model.embed_tokens(torch.tensor(ids))[None]
        logits = self.model.llama_model(inputs_embeds=torch.cat([embeds, words], 1)).logits[0]
        total = 0.0
        for index, token in enumerate(ids):
            scores = logits[embeds.shape[1] - 1 + index].log_softmax(-1)
            score = scores[token].item()
            if token in (bos, *ids[:index]):
                penalty = options.repetition_penalty
                score = score * penalty if score < 0 else score / penalty
            total += score
        length = 1 + len(ids) - (ids[-1:] == [eos])
        return float(total / length**options.length_penalty)


def compare_generation(model: MiniGPT4, case: Case) -> list[Comparison]:
    """Every recorded run, the scores of the run without stops, and the batches."""
    facts, generator = case.facts["generation"], Generator(model, case)
    image = model.encode_img(case.tensors["image"][:2]).detach()
    results = [_compare_stop_ids(generator, facts["hash_ids"])]
    for name, run in facts["runs"].items():
        start = f"generation {name}"
        results += [_compare_prompts(start, run), _compare_answers(start, run)]
        for number, turn in enumerate(run["turns"], start=1):
            results += _compare_turn(f"{start}, turn {number}", generator, run, turn, image[0])
    results += list(_compare_scores(generator, image[0]))
    for name, batch in (facts.get("batch_generate") or {}).items():
        results += list(_compare_batch(name, generator, batch, image))
    return results


def _compare_stop_ids(generator: Generator, ids: dict[str, int]) -> Comparison:
    """The ids that stand for ``###``: at the start of a text, and inside one."""
    pieces = [generator.model.tokenizer.piece(ids[k]) for k in ("start_of_text", "inside_text")]
    return equal("ids of the stop text", pieces, [f"▁{_STOP_TEXT}", _STOP_TEXT])


def _compare_prompts(what: str, run: dict[str, Any]) -> Comparison:
    """One of our templates, with the recording's system text, writes every prompt of the run."""
    recorded = [turn["prompt"] for turn in run["turns"]]
    written = [list(_prompts(template, run)) for template in _templates(recorded[0])]
    best = next((prompts for prompts in written if prompts == recorded), written[0])
    return equal(f"{what}: prompts", best, recorded)


def _compare_answers(what: str, run: dict[str, Any]) -> Comparison:
    """The answers that the recorded conversation ends with are those of its turns."""
    answers = [text for _, text in run["final_messages"][1::2]]
    return equal(f"{what}: answers", [turn["output_text"] for turn in run["turns"]], answers)


def _templates(prompt: str) -> Iterator[Template]:
    for template in TEMPLATES.values():
        system = prompt.split(template.separator + template.user)[0]
        yield replace(template, system=system)


def _prompts(template: Template, run: dict[str, Any]) -> Iterator[str]:
    """The prompt of each turn: after the messages before it, ready for the answer."""
    messages = run["final_messages"]
    for number in range(1, 2 * len(run["turns"]), 2):
        speakers = ("user", "assistant")
        said = [
            Message(speakers[i % 2], text)  # type: ignore[arg-type]
            for i, (_, text) in enumerate(messages[:number])
        ]
        yield Conversation(template, said).prompt()


def _compare_turn(
    what: str, generator: Generator, run: dict[str, Any], turn: dict[str, Any], image: torch.Tensor
) -> list[Comparison]:
    model, arguments = generator.model, run["args"]
    images = [image] * (len(turn["segment_token_ids"]) - 1)
    segments = model.prompt_segments(turn["prompt"], images)
    ids = [part for part in segments if isinstance(part, list)]
    spliced = splice([segments], model.embed_tokens, model.device)
    room = arguments.get("max_length", _MAX_LENGTH) - arguments["max_new_tokens"]
    embeds, mask = spliced.embeds[:, -room:], spliced.attention_mask[:, -room:]
    options = generator.options(arguments)
    recorded = _without_bos(turn["output_ids"], generator)
    (row,) = generator.run(embeds, mask, options, run["stop_ids"]).tolist()
    ours = _without_bos(row, generator)
    return [
        equal(f"{what}: token ids of the prompt", ids, turn["segment_token_ids"]),
        equal(f"{what}: length of the context", spliced.lengths, [turn["context_len"]]),
        _same_answer(f"{what}: ids", generator, embeds, options, ours, recorded),
        equal(f"{what}: text", generator.text(recorded), turn["output_text"]),
    ]


def _without_bos(ids: list[int], generator: Generator) -> list[int]:
    """v1's recordings have lost the leading bos."""
    return ids[1:] if ids[:1] == [generator.model.tokenizer.bos_id] else ids


def _same_answer(
    what: str,
    generator: Generator,
    embeds: torch.Tensor,
    options: GenerationOptions,
    ours: list[int],
    recorded: list[int],
) -> Comparison:
    """The same ids.

    Beams may differ by a trailing eos, or where the recorded ids win under the original's rule,
    which counts bos in the length of a hypothesis.
    """
    result = equal(what, ours, recorded)
    if result.holds or options.num_beams == 1:
        return result
    eos = [generator.model.tokenizer.eos_id]
    if ours == recorded + eos or recorded == ours + eos:
        return Comparison(what, 0.0, 0.0, note="but for a trailing eos")
    scores = [generator.score(embeds, ids, options) for ids in (recorded, ours)]
    if scores[0] > scores[1]:
        note = f"recorded ids win by the original's rule ({scores[0]:.4f} > {scores[1]:.4f})"
        return Comparison(what, 0.0, 0.0, note=note)
    return result


def _compare_scores(generator: Generator, image: torch.Tensor) -> Iterator[Comparison]:
    """The first turn of the runs without stops, for which scores are recorded too."""
    model, runs = generator.model, generator.case.facts["generation"]["runs"]
    expected = generator.case.tensors.part("gen.")
    for run in (run for run in runs.values() if not run["stop_ids"]):
        options = generator.options(run["args"])
        prompt = run["turns"][0]["prompt"]
        plain = options.repetition_penalty == options.length_penalty == 1.0
        beams = options.num_beams
        name = "greedy_scores" if beams == 1 else f"beam{beams}_sequences"
        if not plain or name not in expected or "max_length" in run["args"]:
            continue
        segments = model.prompt_segments(prompt, [image])
        spliced = splice([segments], model.embed_tokens, model.device)
        embeds, mask = spliced.embeds, spliced.attention_mask
        yield compare("generation: context", embeds, expected["turn1_context_embeds"])
        if beams == 1:
            output = generator.run(
                embeds, mask, options, return_dict_in_generate=True, output_scores=True
            )
            scores = torch.cat(output.scores)
            yield compare("generation: greedy scores", scores, expected[name], LOGITS_ATOL)
            ids = expected["greedy_sequence"].tolist()
            yield equal("generation: greedy ids", output.sequences.tolist(), ids)
            continue
        bos = [model.tokenizer.bos_id] * len(expected[name])
        yield equal("generation: beams start with bos", bos, expected[name][:, 0].tolist())
        recorded = [_unpadded(row[1:], generator) for row in expected[name].tolist()]
        rescored = torch.tensor([generator.score(embeds, ids, options) for ids in recorded])
        yield compare("generation: beam scores", rescored, expected[f"{name}_scores"], LOGITS_ATOL)
        rows = generator.run(embeds, mask, options, num_return_sequences=len(recorded)).tolist()
        for number, (row, ids) in enumerate(zip(rows, recorded, strict=True), start=1):
            ours, what = _unpadded(row[1:], generator), f"generation: ids of beam {number}"
            yield _same_answer(what, generator, embeds, options, ours, ids)


def _compare_batch(
    name: str, generator: Generator, batch: dict[str, Any], images: torch.Tensor
) -> Iterator[Comparison]:
    """Prompts of unequal length, padded on the left with zeros; each row equals itself alone."""
    model, texts = generator.model, batch["texts"]
    beams = int(name.removeprefix("beams"))
    arguments = {"num_beams": beams, "max_new_tokens": batch["max_new_tokens"]}
    options = generator.options(arguments)
    contexts = [
        model.prompt_segments(text, [image]) for text, image in zip(texts, images, strict=True)
    ]
    spliced = splice(contexts, model.embed_tokens, model.device, pad_side="left")
    start, expected = f"batch {name}", generator.case.tensors.part(f"gen.batch{beams}.")
    yield compare(f"{start}: inputs_embeds", spliced.embeds, expected["inputs_embeds"])
    mask = spliced.attention_mask
    yield equal(f"{start}: mask", mask.tolist(), expected["attention_mask"].tolist())
    rows = generator.run(spliced.embeds, mask, options).tolist()
    for number, ids in enumerate(batch["output_ids"]):
        length = spliced.lengths[number]
        alone = spliced.embeds[number : number + 1, -length:]
        recorded, ours = _unpadded(ids[1:], generator), _unpadded(rows[number][1:], generator)
        what = f"{start}, row {number + 1}"
        yield _same_answer(f"{what}: ids", generator, alone, options, ours, recorded)
        single = generator.run(alone, torch.ones(1, length, dtype=torch.long), options)[0].tolist()
        yield equal(f"{what}: alone", _unpadded(single[1:], generator), ours)
        yield equal(f"{what}: text", generator.text(recorded), batch["answers"][number])


def _unpadded(ids: list[int], generator: Generator) -> list[int]:
    """Up to the first eos: what follows in a finished row is padding."""
    eos = generator.model.tokenizer.eos_id
    return ids[: ids.index(eos) + 1] if eos in ids else ids
