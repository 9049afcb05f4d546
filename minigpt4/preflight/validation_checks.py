"""Validation checks: what is wrong with its settings, told before anything is loaded."""

from collections.abc import Sequence

from minigpt4.datasets.options import FolderStorage, ShardStorage, held_out_fault
from minigpt4.evaluation.validation import FIGURES, SHUFFLED
from minigpt4.preflight.plan import Plan
from minigpt4.registry import Fault, nearest


def validation_faults(plan: Plan) -> list[Fault]:
    """What does not go together in the settings of a validation, and of what is held out."""
    faults, holding = [], []
    for name, entry in plan.datasets.items():
        stored = entry.get("build_info")
        inside = isinstance(stored, ShardStorage | FolderStorage)
        settings = vars(stored) if inside else entry
        held = settings.get("val_storage"), settings.get("val_fraction") or 0.0
        if fault := held_out_fault(*held):
            key = f"datasets.{name}{'.build_info' if inside else ''}"
            faults.append(Fault(f"{key}.val_fraction", fault))
        # What a plug-in's data set holds out is known when it is built.
        if any(held) or "val_fraction" not in settings:
            holding.append(name)
    run = plan.run
    if not run.get("valid_splits"):
        if run.get("eval_every_steps") is not None and "valid_splits" in run:
            text = "decides nothing without run.valid_splits; add run.valid_splits=[val]"
            faults.append(Fault("run.eval_every_steps", text))
        return faults
    if plan.datasets.keys() == plan.config.datasets.keys() and not holding:
        text = "no data set holds anything out; give one val_storage or val_fraction"
        faults.append(Fault("run.valid_splits", text))
    if run.get("shard") == "fsdp":
        text = "a language model shared out by run.shard: fsdp cannot be validated; take one out"
        faults.append(Fault("run.valid_splits", text))
    return faults + _best_faults(plan, holding)


def _best_faults(plan: Plan, holding: Sequence[str]) -> list[Fault]:
    run = plan.run
    if not {"best_metric", "metrics", "valid_captions", "valid_control"} <= run.keys():
        return []
    known = [*FIGURES, *(run["metrics"] if run["valid_captions"] else ())]
    if run["valid_control"]:
        known += [SHUFFLED + name for name in known]
    dataset, _, figure = run["best_metric"].rpartition("/")
    if figure not in known:
        text = f"unknown figure {figure!r}; {nearest(figure, known)}"
        return [Fault("run.best_metric", text)]
    if dataset and dataset not in holding:
        text = f"data set {dataset!r} holds nothing out; {nearest(dataset, holding)}"
        return [Fault("run.best_metric", text)]
    return []
