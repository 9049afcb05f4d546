"""Validation checks: contradictions among its settings, reported before anything is loaded."""

from collections.abc import Iterator, Sequence

from minigpt4.datasets.options import DataSetOptions, validation_set_fault
from minigpt4.errors import Fault, nearest
from minigpt4.preflight.draft import Draft


def validation_faults(draft: Draft) -> Iterator[Fault]:
    """Yield what does not go together in the settings of a validation and of validation sets."""
    holding = []
    for name, bound in draft.checked.datasets.items():
        options = bound.options
        stored = options.stored if isinstance(options, DataSetOptions) else None
        if stored is not None and (fault := validation_set_fault(stored)):
            inside = "" if stored is options else ".build_info"
            yield Fault(f"datasets.{name}{inside}.val_fraction", fault)
        # What a plug-in's data set holds out is known when it is built.
        if stored is None or stored.val_storage is not None or stored.val_fraction:
            holding.append(name)
    run = draft.run
    if not run.valid_splits:
        if run.eval_every_steps is not None:
            text = "decides nothing without run.valid_splits; add run.valid_splits=[val]"
            yield Fault("run.eval_every_steps", text)
        return
    if not holding:
        text = "no data set holds anything out; give one val_storage or val_fraction"
        yield Fault("run.valid_splits", text)
    if run.shard == "fsdp":
        text = "a language model shared out by run.shard: fsdp cannot be validated; take one out"
        yield Fault("run.valid_splits", text)
    yield from _best_faults(draft, holding)


def _best_faults(draft: Draft, holding: Sequence[str]) -> Iterator[Fault]:
    from minigpt4.evaluation.figures import FIGURES, SHUFFLED

    run = draft.run
    known = [*FIGURES, *(run.metrics if run.valid_captions else ())]
    if run.valid_control:
        known += [SHUFFLED + name for name in known]
    dataset, _, figure = run.best_metric.rpartition("/")
    if figure not in known:
        text = f"unknown figure {figure!r}; {nearest(figure, known)}"
        yield Fault("run.best_metric", text)
    elif dataset and dataset not in holding:
        text = f"data set {dataset!r} holds nothing out; {nearest(dataset, holding)}"
        yield Fault("run.best_metric", text)
