"""Plan: what a config says where it is sound, for the checks that look at several keys at once."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from minigpt4.chat import GenerationOptions
from minigpt4.config import Config
from minigpt4.models.q_former import QFormerSize
from minigpt4.models.visual_encoder import VisualEncoderSize
from minigpt4.registry import BUILDERS, MODELS, RUNNERS, Fault, bind, defaults

Purpose = Literal["training", "evaluation", "chat", "caching"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config without its faulty keys: what is there fits the signatures' types and checks.

    So each check asks for what it needs, and leaves out what is missing: the fault is told already.
    Defaults are in it.
    """

    config: Config
    purpose: Purpose
    model: dict[str, Any]
    run: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    chat: dict[str, Any]
    device: str | None  # "cuda", "cpu" or "mps"; None where that is unknown

    @property
    def encoder(self) -> VisualEncoderSize | None:
        size = self.model.get("visual_encoder")
        return size if isinstance(size, VisualEncoderSize) else None

    @property
    def q_former(self) -> QFormerSize | None:
        """Also None for a model without one; ask ``has_qformer`` first."""
        size = self.model.get("q_former")
        return size if isinstance(size, QFormerSize) and self.model.get("has_qformer") else None

    @property
    def from_features(self) -> bool:
        """Whether no picture is read, so that no tower is loaded."""
        cached = [entry.get("features") is not None for entry in self.datasets.values()]
        trains = self.purpose == "training" and not self.run.get("valid_splits")
        return trains and bool(cached) and all(cached)

    @property
    def projection_input(self) -> int | None:
        """Width of what the projection reads."""
        if self.model.get("has_qformer") is not False:
            return self.q_former.hidden_size if self.q_former else None
        return 4 * self.encoder.embed_dim if self.encoder else None


def make_plan(
    config: Config, purpose: Purpose, faults: Sequence[Fault], device: str | None = None
) -> Plan:
    """What is sound of a config.

    Args:
        config: As loaded.
        purpose: A chat uses the model alone; its data sets are held by their names.
        faults: What is known to be wrong.
        device: Of a chat, which the command line names; else the run's.
    """
    model, run, datasets = {}, {}, {}
    if config.arch in MODELS.names():
        model = _sound(MODELS.get(config.arch), config.model_options(), "model", faults)
    runner = config.run.get("runner", "runner_base")
    if runner in RUNNERS.names():
        run = _sound(RUNNERS.get(runner), config.run_options(), "run", faults)
    for name in config.datasets:
        builder = config.builder_of(name)
        if builder in BUILDERS.names():
            options = config.dataset_options(name)
            datasets[name] = _sound(BUILDERS.get(builder), options, f"datasets.{name}", faults)
    chat = _sound(GenerationOptions, config.chat, "chat", faults)
    if device is None:
        device = "auto" if purpose == "chat" else run.get("device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Plan(config, purpose, model, run, datasets, chat, device)


def _sound(
    entry: Callable[..., Any], options: dict[str, Any], where: str, faults: Sequence[Fault]
) -> dict[str, Any]:
    values = defaults(entry) | bind(entry, options, where, partial=True)[0]
    start = f"{where}."
    within = [f.key.removeprefix(start) for f in faults if f.key.startswith(start)]
    faulty = {key.partition(".")[0] for key in within}
    return {name: value for name, value in values.items() if name not in faulty}
