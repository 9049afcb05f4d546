"""Pretrain the tiny visual encoder and Q-Former on scenes; they never meet the tiny LLM.

The encoder learns what lies on each patch and where the patch is. The Q-Former learns to caption
scenes through a throw-away projection into a throw-away language model with words of its own.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Blip2QFormerModel, LlamaConfig, LlamaForCausalLM

from assets.tiny.making.pretraining import autocast, optimise, rng_of
from minigpt4.models.towers import QFormerSize, build_q_former
from minigpt4.models.vision_towers.eva import VisualEncoderSize, build_visual_encoder
from minigpt4.processors import PIXEL_MEAN, PIXEL_STD
from minigpt4.tools.tiny_world.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    PAIR_LAYOUTS,
    PLACES,
    SHAPES,
    SIZES,
    TRIPLE_LAYOUTS,
    Scene,
    Thing,
    draw_scene,
    sample_centres,
    sample_pair,
    sample_scene,
)

VISUAL_SIZE = VisualEncoderSize(embed_dim=128, depth=5, num_heads=4, mlp_ratio=4.0)
Q_FORMER_SIZE = QFormerSize(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
    cross_attention_frequency=1,
)
NUM_QUERIES = 16
_GRID = IMAGE_SIZE // VISUAL_SIZE.patch_size
_COLOR_NAMES, _SIZE_NAMES, _GROUNDS = list(COLORS), list(SIZES), list(BACKGROUNDS)
_LEVELS = 7  # coordinates are told to the throw-away captioner on a 7 x 7 grid
# The throw-away captioner's own words; nothing of the tiny LLM's text.
_WORDS = ["begin", "end", *_GROUNDS, *PLACES, *PAIR_LAYOUTS, *TRIPLE_LAYOUTS]
_WORDS += [*_SIZE_NAMES, *_COLOR_NAMES, *SHAPES]
_WORDS += [f"{axis}{level}" for axis in "xy" for level in range(_LEVELS)]
_WORD_ID = {word: index for index, word in enumerate(_WORDS)}


def sample_mosaic(rng: random.Random) -> Scene:
    """Sample a dense scene: up to nine things on a 3 x 3 grid."""
    things = []
    for place in PLACES:
        if rng.random() < 0.75:
            ((x, y),) = sample_centres(place, rng)
            color, shape = sample_pair(rng)
            size = rng.choice(tuple(SIZES))
            things.append(Thing(color, shape, size, x, y, rng.uniform(-0.16, 0.16)))
    return Scene(tuple(things), "mosaic", rng.choice(tuple(BACKGROUNDS)), rng.randrange(2**31))


def scenes_to_pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Drawn and normalised scenes ``[B, 3, 112, 112]``."""
    pixels = torch.from_numpy(np.stack([np.asarray(draw_scene(scene)) for scene in scenes]))
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def _patch_labels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Shape, colour and size index of the thing on each patch ``[B, patches, 3]``; -1 = none."""
    centres = (np.arange(_GRID) + 0.5) * VISUAL_SIZE.patch_size
    grid_y, grid_x = (axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij"))
    labels = np.full((len(scenes), _GRID * _GRID, 3), -1, dtype=np.int64)
    for row, scene in zip(labels, scenes, strict=True):
        for thing in scene.things:
            near = np.hypot(grid_x - thing.x, grid_y - thing.y) <= SIZES[thing.size] + 2
            row[near] = (
                SHAPES.index(thing.shape),
                _COLOR_NAMES.index(thing.color),
                _SIZE_NAMES.index(thing.size),
            )
    return torch.from_numpy(labels)


def pretrain_visual_encoder(
    folder: Path, steps: int, seed: int, save_every: int = 200, batch_size: int = 64
) -> tuple[nn.Module, float]:
    """A trained encoder and its gate: share of thing patches whose shape is read right.

    Args:
        folder: Where the training keeps its progress.
        steps: Of ``batch_size`` pictures.
        seed: Of init and pictures.
        save_every: Steps between two saves.
        batch_size: Pictures in a step.
    """
    torch.manual_seed(seed)
    name = "visual encoder"
    encoder = build_visual_encoder(IMAGE_SIZE, VISUAL_SIZE)
    width = VISUAL_SIZE.embed_dim
    norm = nn.LayerNorm(width)
    patch_head = nn.Linear(width, len(SHAPES) + 1 + len(COLORS) + len(SIZES) + 2)
    image_head = nn.Linear(width, len(BACKGROUNDS))
    parts = (len(SHAPES) + 1, len(COLORS), len(SIZES), 2)
    steps_of_grid = torch.linspace(-1, 1, _GRID)
    coordinates = torch.cartesian_prod(steps_of_grid, steps_of_grid)

    def predict(scenes: Sequence[Scene]) -> tuple[torch.Tensor, ...]:
        with autocast():
            features = norm(encoder.forward_features(scenes_to_pixels(scenes)))
            shape, color, size, place = patch_head(features[:, 1:]).float().split(parts, dim=-1)
            return shape, color, size, place, image_head(features[:, 0]).float()

    def loss_of(step: int) -> torch.Tensor:
        rng = rng_of(seed, name, step)
        scenes = [
            sample_mosaic(rng) if rng.random() < 0.75 else sample_scene(rng)
            for _ in range(batch_size)
        ]
        shape, color, size, place, ground = predict(scenes)
        labels = _patch_labels(scenes)
        shape_label = labels[..., 0].masked_fill(labels[..., 0] < 0, len(SHAPES))
        ground_label = torch.tensor([_GROUNDS.index(scene.background) for scene in scenes])
        return (
            functional.cross_entropy(shape.flatten(0, 1), shape_label.flatten())
            + functional.cross_entropy(
                color.flatten(0, 1), labels[..., 1].flatten(), ignore_index=-1
            )
            + functional.cross_entropy(
                size.flatten(0, 1), labels[..., 2].flatten(), ignore_index=-1
            )
            + functional.mse_loss(place, coordinates.expand_as(place))
            + 0.3 * functional.cross_entropy(ground, ground_label)
        )

    modules = nn.ModuleList([encoder, norm, patch_head, image_head])
    blocks = encoder.get_submodule("blocks")
    progress = folder / "visual_encoder.progress"
    optimise(name, modules, blocks, steps, loss_of, progress, save_every)
    encoder.eval()
    with torch.no_grad():
        rng = rng_of(seed, "gate", 0)
        scenes = [sample_scene(rng) for _ in range(300)]
        shape, *_ = predict(scenes)
        label = _patch_labels(scenes)[..., 0]
        on_thing = label >= 0
        accuracy = (shape.argmax(-1)[on_thing] == label[on_thing]).float().mean().item()
    return encoder, accuracy


def _level(position: float) -> int:
    return min(_LEVELS - 1, int(position / IMAGE_SIZE * _LEVELS))


def _facts(scene: Scene) -> list[int]:
    """The scene in the throw-away captioner's words."""
    words = ["begin", scene.background, scene.layout]
    for thing in scene.things:
        words += [thing.size, thing.color, thing.shape]
        words += [f"x{_level(thing.x)}", f"y{_level(thing.y)}"]
    return [_WORD_ID[word] for word in [*words, "end"]]


def pretrain_q_former(
    folder: Path,
    encoder: nn.Module,
    steps: int,
    seed: int,
    save_every: int = 200,
    batch_size: int = 64,
) -> tuple[nn.LayerNorm, nn.Parameter, Blip2QFormerModel, float]:
    """``ln_vision``, queries, Q-Former; the gate: a linear probe for the layout.

    ``encoder`` is the frozen tower before it; the others as in :func:`pretrain_visual_encoder`.
    """
    torch.manual_seed(seed)
    name = "q-former"
    width = Q_FORMER_SIZE.hidden_size
    ln_vision = nn.LayerNorm(VISUAL_SIZE.embed_dim)
    query_tokens = nn.Parameter(torch.randn(1, NUM_QUERIES, width) * 0.02)
    q_former = build_q_former(VISUAL_SIZE.embed_dim, Q_FORMER_SIZE).eval()  # eval: no dropout
    captioner = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(_WORDS),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    to_captioner = nn.Linear(width, 128)

    def features_of(scenes: Sequence[Scene]) -> torch.Tensor:
        with autocast():
            with torch.no_grad():
                patches = encoder.forward_features(scenes_to_pixels(scenes))  # type: ignore[operator]
            queries = query_tokens.expand(len(scenes), -1, -1)
            return q_former(
                query_embeds=queries, encoder_hidden_states=ln_vision(patches)
            ).last_hidden_state

    def loss_of(step: int) -> torch.Tensor:
        rng = rng_of(seed, name, step)
        scenes = [sample_scene(rng) for _ in range(batch_size)]
        facts = [torch.tensor(_facts(scene)) for scene in scenes]
        ids = nn.utils.rnn.pad_sequence(facts, batch_first=True, padding_value=-100)
        with autocast():
            soft = to_captioner(features_of(scenes))
            text = captioner.get_input_embeddings()(ids.clamp(min=0))
            logits = captioner(inputs_embeds=torch.cat([soft, text], 1), use_cache=False).logits
        return functional.cross_entropy(
            logits[:, NUM_QUERIES:-1].flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=-100
        )

    modules = nn.ModuleList([ln_vision, q_former, captioner, to_captioner])
    modules.register_parameter("query_tokens", query_tokens)
    hidden = nn.ModuleList([q_former.encoder, captioner.model.layers])
    optimise(name, modules, hidden, steps, loss_of, folder / "q_former.progress", save_every)
    return ln_vision, query_tokens, q_former, _probe_layout(features_of, rng_of(seed, "gate", 0))


def _probe_layout(
    features_of: Callable[[Sequence[Scene]], torch.Tensor], rng: random.Random
) -> float:
    """Accuracy of a ridge regression from the flattened Q-Former output to the layout."""
    layouts = [*PLACES, *PAIR_LAYOUTS, *TRIPLE_LAYOUTS]
    scenes = [sample_scene(rng) for _ in range(6000)]
    with torch.no_grad():
        chunks = [features_of(scenes[i : i + 200]).flatten(1).float() for i in range(0, 6000, 200)]
    features = torch.cat(chunks)
    features = torch.cat([features, torch.ones(len(scenes), 1)], 1)
    labels = torch.tensor([layouts.index(scene.layout) for scene in scenes])
    train, test = features[:5000], features[5000:]
    target = functional.one_hot(labels[:5000], len(layouts)).float()
    gram = train.T @ train + 10.0 * torch.eye(train.shape[1])
    weights = torch.linalg.solve(gram, train.T @ target)
    return ((test @ weights).argmax(1) == labels[5000:]).float().mean().item()


def save_vision(
    folder: Path,
    encoder: nn.Module,
    ln_vision: nn.LayerNorm,
    query_tokens: nn.Parameter,
    q_former: nn.Module,
) -> None:
    """Write both towers in fp16 under the names of the files that full-size users download."""
    names = (
        ("layernorm.", "embeddings.LayerNorm."),
        (".attention.attention.", ".attention.self."),
        (".crossattention.attention.", ".crossattention.self."),
    )
    blip2 = {"query_tokens": query_tokens.detach().half()}
    blip2 |= {f"ln_vision.{name}": value.half() for name, value in ln_vision.state_dict().items()}
    for name, value in q_former.state_dict().items():
        for ours, theirs in names:
            name = (
                theirs + name[len(ours) :] if name.startswith(ours) else name.replace(ours, theirs)
            )
        blip2[f"Qformer.bert.{name}"] = value.half()
    torch.save({"model": blip2}, folder / "q_former.pth")
    torch.save(
        {name: value.half() for name, value in encoder.state_dict().items()}, folder / "eva_vit.pth"
    )
