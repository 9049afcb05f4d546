"""Validation batches: one batch of held-out samples, seen once and asked about in several ways."""

import io

import torch
from PIL import Image

from minigpt4.datasets.samples import Batch
from minigpt4.models.minigpt4 import MiniGPT4


@torch.no_grad()
def encoded(model: MiniGPT4, batch: Batch) -> Batch:
    """The batch with what the frozen towers make of its pictures, which is needed several times."""
    if not len(batch["image"]):
        return batch
    with model.autocast(model.device):
        features = model.encode_frozen(batch["image"])
    return Batch(**{**batch, "image": features})  # type: ignore[typeddict-item]


def with_other_pictures(batch: Batch) -> Batch | None:
    """Every image of a batch exchanged for the next one; None where there is no other."""
    if len(batch["image"]) < 2:
        return None
    return Batch(**{**batch, "image": batch["image"].roll(-1, 0)})  # type: ignore[typeddict-item]


def first_of(batch: Batch, count: int) -> Batch:
    """The first samples of a batch."""
    counts = batch["image_counts"][:count]
    return Batch(
        keys=batch["keys"][:count],
        image=batch["image"][: sum(counts)],
        image_counts=counts,
        text=batch["text"][:count],
        facts=batch["facts"][:count],
        normalise=batch["normalise"],
    )


def as_png(pixels: torch.Tensor) -> bytes:
    """A picture as the model is shown it: bytes, or normalised numbers, ``[3, s, s]``."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(file, "PNG")
    return file.getvalue()
