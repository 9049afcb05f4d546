"""What is normal: reference curves beside a run's own, and sentences that the figures decide."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minigpt4.tools.report.charts import Chart, Line
from minigpt4.tools.report.curves import Points, first_and_last, median, running_means, window_mean
from minigpt4.tools.report.reading import Notes, part, read_object
from minigpt4.tools.report.runs import Run, Series

_CURVES = Path(__file__).parent / "tiny_curves.json"  # by benchmarks/reference_curves.py
_WIDER = 1.5  # by this factor the band reaches beyond the seeds' own readings
_AT_LEAST = 0.02  # a loss that rises by less says nothing
_TINY_DATA = {1: {"laion", "cc_sbu"}, 2: {"cc_sbu_align"}}
# A user's complete log: 7B stage 2 on one A800, batch 12, mean loss of each epoch of 200 steps.
_STAGE2_7B = [1.212, 0.979, 0.927, 0.905, 0.891]
# Another user's report of 13B stage 2.
_STAGE2_13B_START, _STAGE2_13B_BEST = 3.8, 1.9
_LLAMA_WORDS = 32_000
_SIZES = {4096: "7b", 5120: "13b"}  # by the LLM's width
_NEAR = 0.15  # of a reported figure


@dataclass(frozen=True)
class Verdict:
    """A sentence on a run, and how it is to be taken."""

    level: Literal["good", "note", "bad"]
    text: str


def judge(run: Run) -> list[Verdict]:
    """What a run's figures say, the gravest first."""
    loss = run.curves.get("loss", Series())
    found = [
        *_judge_lost(loss),
        *_judge_course(run, loss.finite),
        *_judge_reference(run, loss.finite),
        *_judge_reported(run, loss.finite),
        *_judge_validation(run),
        *_judge_waiting(run),
    ]
    order = {"bad": 0, "note": 1, "good": 2}
    return sorted(found, key=lambda verdict: order[verdict.level])


def reference_charts(run: Run, colour: int, stem: str) -> list[Chart]:
    """The run's loss over the references that fit it; empty where none does."""
    charts = []
    points = run.curves.get("loss", Series()).finite
    band = list(_against_seeds(run, points))
    if band:
        steps = [float(step) for step, *_ in band]
        lows, highs = [low for *_, low, _ in band], [high for *_, high in band]
        note = (
            "Grey: where three seeds of the shipped YAML went, from the lowest of them to the "
            f"highest and by a factor of {_WIDER} more on either side. Line: {run.name}."
        )
        title = f"Loss of {run.name} and of the embedded default"
        line = Line(run.name, list(points), colour)
        charts.append(Chart(stem, title, [line], note, (steps, lows, highs)))
    if _fits(run, "7b") and run.epoch_losses:
        own = [(e + 1.0, x) for e, x in sorted(run.epoch_losses.items()) if math.isfinite(x)]
        told: Points = [(float(n), value) for n, value in enumerate(_STAGE2_7B, start=1)]
        lines = [Line(run.name, own, colour), Line("as reported", told, colour + 1, dashed=True)]
        note = (
            "Mean loss of each epoch; dashed: a published log of 7B stage 2 (one A800, batch 12)."
        )
        title = f"Loss of {run.name} by epoch, and as reported"
        charts.append(Chart(stem, title, lines, note, x_title="epoch"))
    return charts


def _judge_lost(loss: Series) -> Iterator[Verdict]:
    pairs = zip(loss.steps, loss.values, strict=True)
    lost = [step for step, value in pairs if math.isnan(value)]
    if lost:
        lines = "1 line has" if len(lost) == 1 else f"{len(lost):,} lines have"
        yield Verdict(
            "bad",
            f"{lines} no finite loss, the first at step {lost[0]:,}. In fp16 this is a known "
            "trouble (COCO among others): run.precision: bf16 or a lower run.init_lr; "
            "nonfinite.jsonl names the samples.",
        )


def _judge_course(run: Run, points: Sequence[tuple[int, float]]) -> Iterator[Verdict]:
    if len(points) < 4:
        return
    tenth = max(1, len(points) // 10)
    values = [value for _, value in points]
    first, last = first_and_last(points)
    words = vocabulary_size(run.config)
    chance = math.log(words) if words else math.nan
    if abs(median(values[len(values) // 2 :]) - chance) < 0.01 * chance:
        yield Verdict(
            "bad",
            f"The loss stays at {last:.3f}, which is ln {words:,} = {chance:.3f}: that of a model "
            "that knows nothing. Known causes: language model weights that are all zero, half "
            "downloaded or a delta not yet applied (model.llama_model), or dead inputs.",
        )
        return
    means = running_means(points, tenth)[tenth - 1 :]
    lowest = min(means)
    at = points[means.index(lowest) + tenth - 1][0]
    if last > 0.97 * first:
        yield Verdict(
            "bad",
            f"The loss does not fall: {first:.3g} at the start, {last:.3g} at the end. Normal is a "
            "clear fall within the first hundred steps; look at run.init_lr, the data and whether "
            "llama_proj is listed as trained.",
        )
    elif last > 1.25 * lowest and last - lowest > _AT_LEAST:
        yield Verdict(
            "note",
            f"The loss rises again: {lowest:.3g} about step {at:,}, {last:.3g} at the end. A lower "
            "run.init_lr or an earlier checkpoint may be better.",
        )
    else:
        yield Verdict("good", f"The loss falls from {first:.3g} to {last:.3g}.")


def _judge_reference(run: Run, points: Sequence[tuple[int, float]]) -> Iterator[Verdict]:
    """Against the embedded default's own curves."""
    states = [
        (step, "below" if own < low else "above" if own > high else "inside")
        for step, own, low, high in _against_seeds(run, points)
    ]
    if not states:
        return
    final = states[-1][1]
    since = 0
    for number, (_, state) in enumerate(states):
        if state != final:
            since = number + 1
    where = "throughout" if since == 0 else f"from step {states[since][0]:,} on"
    other = _other_settings(run)
    behind = f" It ran with {other}." if other else ""
    if final == "inside":
        text = f"Inside the band of the embedded default's three seeds {where}."
        yield Verdict("good", text + behind)
    elif final == "below":
        text = f"Below the band of the embedded default's three seeds {where}: better than they."
        yield Verdict("good", text + behind)
    else:
        text = f"Above the band of the embedded default's three seeds {where}: it learns less."
        yield Verdict("note", text + behind)


def _judge_reported(run: Run, points: Sequence[tuple[int, float]]) -> Iterator[Verdict]:
    """Against figures that people reported of the full size."""
    if _fits(run, "7b"):
        ended = [epoch for epoch in run.epoch_losses if epoch < len(_STAGE2_7B)]
        if not ended or math.isnan(run.epoch_losses[max(ended)]):
            return
        epoch = max(ended)
        own, told = run.epoch_losses[epoch], _STAGE2_7B[epoch]
        near = abs(own - told) <= _NEAR * told
        word = "near" if near else "above" if own > told else "below"
        text = (
            f"Mean loss of epoch {epoch + 1} is {own:.3f}, {word} the {told} that a published log "
            f"of 7B stage 2 has (epochs: {', '.join(map(str, _STAGE2_7B))})."
        )
        yield Verdict("note" if word == "above" else "good", text)
    if _fits(run, "13b") and points:
        first, best = points[0][1], min(value for _, value in points)
        level: Literal["good", "note"] = (
            "good" if best <= (1 + _NEAR) * _STAGE2_13B_BEST else "note"
        )
        text = (
            f"Loss {first:.2f} at first and {best:.2f} at best; people reported "
            f"{_STAGE2_13B_START} and {_STAGE2_13B_BEST} for 13B stage 2."
        )
        yield Verdict(level, text)


def _judge_validation(run: Run) -> Iterator[Verdict]:
    for data_set, figures in run.valid.items():
        own = figures.get("loss", Series()).finite
        control = dict(figures.get("shuffled_loss", Series()).finite)
        if own and own[-1][0] in control:
            (step, loss), other = own[-1], control[own[-1][0]]
            told = (
                f"{data_set}, step {step:,}: loss {loss:.3g}, with exchanged pictures {other:.3g}"
            )
            if other - loss < 0.02 * max(loss, _AT_LEAST):
                yield Verdict("bad", f"{told}. The model does not look at the pictures.")
            else:
                yield Verdict("good", f"{told}: what it says comes from the picture.")
        if len(own) >= 3:
            at, lowest = min(own, key=lambda pair: pair[1])
            if own[-1][1] > 1.05 * lowest and own[-1][1] - lowest > _AT_LEAST / 2:
                text = (
                    f"{data_set}: the validation loss was lowest ({lowest:.3g}) at step {at:,} and "
                    f"is {own[-1][1]:.3g} at the end; from there on samples are learnt by heart."
                )
                yield Verdict("note", text)


def _judge_waiting(run: Run) -> Iterator[Verdict]:
    waits = [value for _, value in run.curves.get("data_wait", Series()).finite]
    if waits and median(waits) > 0.2:
        text = (
            f"{median(waits):.0%} of the time went into waiting for data: more run.num_workers, "
            "or cached features (python -m minigpt4 cache-features)."
        )
        yield Verdict("note", text)


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """Words of a run's language model; None where neither its folder nor its family tells."""
    words = part(_llama_config(config), "vocab_size")
    if isinstance(words, int) and words > 1:
        return words
    kind = str(part(config, "model", "model_type"))
    return _LLAMA_WORDS if "vicuna" in kind or "llama" in kind else None


def _llama_config(config: dict[str, Any]) -> dict[str, Any]:
    folder = part(config, "model", "llama_model")
    if not isinstance(folder, str) or "\0" in folder:
        return {}
    return read_object(Path(folder) / "config.json", Notes())


def _fits(run: Run, size: str) -> bool:
    """Whether a run is stage 2 of the full size on the paper's data, of an LLM of this size."""
    named = re.findall(
        r"(?<!\d)\d+b(?![a-z])", str(part(run.config, "model", "llama_model")).lower()
    )
    known = _SIZES.get(part(_llama_config(run.config), "hidden_size"), named[-1] if named else "")
    kind = str(part(run.config, "model", "model_type"))
    data = part(run.config, "datasets")
    paper = isinstance(data, dict) and set(data) == {"cc_sbu_align"}
    return run.stage == 2 and paper and "vicuna" in kind and known == size


def _is_tiny(run: Run) -> bool:
    data = part(run.config, "datasets")
    tiny = part(run.config, "model", "model_type") == "tiny"
    return tiny and isinstance(data, dict) and set(data) == _TINY_DATA[run.stage]


def _tiny_curves(run: Run) -> list[Points]:
    """The curve of each seed; empty for a run of another kind."""
    if not _is_tiny(run):
        return []
    stages = json.loads(_CURVES.read_text())["stages"]
    return [[(step, loss) for step, loss in curve] for curve in stages[f"stage{run.stage}"]]


def _against_seeds(
    run: Run, points: Sequence[tuple[int, float]]
) -> Iterator[tuple[int, float, float, float]]:
    """Step, the run's loss, lower and upper edge of the band; all over the same steps.

    A reading by itself jumps; each is taken together with the tenth of the run before it.
    """
    curves = _tiny_curves(run)
    known = max((step for curve in curves for step, _ in curve), default=0)
    points = [(step, loss) for step, loss in points if step <= known]
    tenth = max(1, len(points) // 10)
    for number, own in enumerate(running_means(points, tenth)):
        begin = points[number - tenth][0] if number >= tenth else 0
        end = points[number][0]
        seeds = [window_mean(curve, begin, end) for curve in curves]
        if not any(map(math.isnan, seeds)):
            yield end, own, min(seeds) / _WIDER, max(seeds) * _WIDER


def _other_settings(run: Run) -> str:
    """Settings of the run that are not those of the recorded curves, in words."""
    recorded = json.loads(_CURVES.read_text())["settings"][f"stage{run.stage}"]
    own = part(run.config, "run")
    other = [
        f"run.{key} {part(own, key)!r} instead of {value!r}"
        for key, value in recorded.items()
        if part(own, key) not in (None, value)
    ]
    return ", ".join(other)
