"""Whether a word looks at its thing: attention and nearest words, before and after training.

    python benchmarks/looks.py --run output/quickstart --json output/looks.json --sheet looks.png

Reads what `make quickstart` left. Held-out scenes of two or three things; every model reads the
same text, the true description, so that the same words are looked at. Of each colour or shape that
is said once: how much of the attention map lies in its thing's box, over the box's share of the
picture (1 is an even share); the same of the scene's other things, whose boxes catch the eye as
well; how often its own box has most, and how often it would by chance. Beside it, how many of a
scene's colours and shapes are among the nearest words of its image tokens, and of another scene's
that this one does not have.

Exit code 1 when the trained model is no better than the untrained one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minigpt4.chat import Chat  # noqa: E402
from minigpt4.errors import ConfigError, DataError, run_guarded  # noqa: E402
from minigpt4.tools.interpret import attention_to_image, nearest_words, overlay, picture_seen  # noqa: E402
from minigpt4.tools.tiny_world.data_sets import read_heldout  # noqa: E402
from minigpt4.tools.tiny_world.phrases import description  # noqa: E402
from minigpt4.tools.tiny_world.scenes import IMAGE_SIZE, SIZES, Scene, Thing  # noqa: E402
from minigpt4.tools.tiny_world.stages import load_stage  # noqa: E402

STAGES, QUESTION = ("before", "stage1", "stage2"), "Describe this image in detail."
SHOWN = 2  # scenes on the sheet
REACH = 1.15  # of the outermost corner, in radii
_SIDE, _GAP, _HEAD, _MARGIN = 128, 8, 34, 132  # pixels of the sheet
Figures = dict[str, float]
Held = tuple[Scene, Path]


def box_cover(thing: Thing, side: int) -> torch.Tensor:
    """``[side, side]``: how much of each patch a thing's box covers."""
    edges = torch.linspace(0, IMAGE_SIZE, side + 1)
    reach = REACH * SIZES[thing.size]

    def along(centre: float) -> torch.Tensor:
        ends, starts = edges[1:].clamp(max=centre + reach), edges[:-1].clamp(min=centre - reach)
        return (ends - starts).clamp(min=0) / (IMAGE_SIZE / side)

    return along(thing.y)[:, None] * along(thing.x)


def words_of(scene: Scene) -> list[tuple[int, str]]:
    """Colours and shapes that the scene's description says once, with their thing's number."""
    said = [(k, word) for k, thing in enumerate(scene.things) for word in thing.pair]
    return [(k, word) for k, word in said if sum(word == other for _, other in said) == 1]


def attention_rows(chat: Chat, held: Held, layer: int | None) -> list[Figures]:
    """A row for each word that is said once."""
    scene, file = held
    look = attention_to_image(chat, [file], QUESTION, description(scene), layer)
    rows = []
    for number, word in words_of(scene):
        (place,) = (i for i, token in enumerate(look.tokens) if token.strip() == word)
        shares = look.maps[place, 0] / look.maps[place, 0].sum()
        boxes = [box_cover(thing, len(shares)) for thing in scene.things]
        heat = [float((shares * box).sum() / box.mean()) for box in boxes]
        others = [value for k, value in enumerate(heat) if k != number]
        rows.append(
            {
                "own_box": heat[number],
                "other_boxes": sum(others) / len(others),
                "own_has_most": float(heat[number] > max(others)),
                "by_chance": 1 / len(heat),
                "image_share": float(look.image_share[place]),
            }
        )
    return rows


def word_rows(chat: Chat, held: Sequence[Held], count: int) -> list[Figures]:
    """A row for each scene: which share of its words, and of the next one's, is among the near."""
    near = nearest_words(chat.model, chat.encode_images([file for _, file in held]), count)
    rows = []
    for (scene, _), (other, _), tokens in zip(held, [*held[1:], held[0]], near, strict=True):
        found = {near_word.word.strip() for words in tokens for near_word in words}
        own = {word for thing in scene.things for word in thing.pair}
        foreign = {word for thing in other.things for word in thing.pair} - own
        if foreign:
            rows.append(
                {
                    "own_words_near": len(own & found) / len(own),
                    "foreign_words_near": len(foreign & found) / len(foreign),
                    "nearest_cosine": sum(words[0].cosine for words in tokens) / len(tokens),
                }
            )
    return rows


def means(rows: Sequence[Figures]) -> Figures:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def measure(chat: Chat, held: Sequence[Held], layer: int | None, count: int) -> Figures:
    """Means over all words, and over all scenes."""
    rows = [row for one in held for row in attention_rows(chat, one, layer)]
    return {"words": float(len(rows)), **means(rows), **means(word_rows(chat, held, count))}


def draw_sheet(chats: dict[str, Chat], held: Sequence[Held], layer: int | None) -> Image.Image:
    """Overlays of all words that are said once: a block for each scene, a row for each model."""
    names = {"before": "before training", "stage1": "after stage 1", "stage2": "after stage 2"}
    widest = max(len(words_of(scene)) for scene, _ in held)
    block = _HEAD + len(chats) * (_SIDE + _GAP)
    sheet = Image.new("RGB", (_MARGIN + (1 + widest) * (_SIDE + _GAP), block * len(held)), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (scene, file) in enumerate(held):
        top = number * block
        for row, (stage, chat) in enumerate(chats.items()):
            y = top + _HEAD + row * (_SIDE + _GAP)
            canvas.text((_GAP, y + _SIDE // 2 - 8), names[stage], fill="#1c2733", font=font)
            picture = picture_seen(chat, file, _SIDE)
            sheet.paste(picture, (_MARGIN, y))
            look = attention_to_image(chat, [file], QUESTION, description(scene), layer)
            for column, (_, word) in enumerate(words_of(scene), start=1):
                x = _MARGIN + column * (_SIDE + _GAP)
                (place,) = (i for i, token in enumerate(look.tokens) if token.strip() == word)
                sheet.paste(overlay(picture, look.maps[place, 0]), (x, y))
                canvas.text((x, top + _HEAD - 22), word, fill="#1c2733", font=font)
    return sheet


def missed(found: dict[str, Figures]) -> list[str]:
    """Where a trained model is no better than the untrained one."""
    lines = []
    for stage in STAGES[1:]:
        for name, over in (("own_box", "other_boxes"), ("own_words_near", "foreign_words_near")):
            untrained, trained = (found[s][name] - found[s][over] for s in ("before", stage))
            if not trained > max(0.0, untrained):  # NaN is no better, too
                lines.append(
                    f"{stage}: {name} less {over} is {trained:.3f}, untrained {untrained:.3f}"
                )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("output/quickstart"), metavar="DIR")
    parser.add_argument("--scenes", type=int, default=100, help="of two or three things")
    parser.add_argument("--layer", type=int, help="of the language model; the mean without")
    parser.add_argument("--count", type=int, default=3, help="nearest words of each image token")
    parser.add_argument("--seed", type=int, default=0, help="of the untrained projection")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="overlays of a few scenes, .png")
    arguments = parser.parse_args(argv)
    if min(arguments.scenes, arguments.count) < 1:
        raise ConfigError("--scenes and --count must be at least 1")
    split = arguments.run / "scenes" / "heldout_seen"
    if not split.is_dir():
        raise DataError(f"--run {arguments.run}: no scenes/heldout_seen in it; run make quickstart")
    held = [(scene, file) for scene, file in read_heldout(split) if len(scene.things) > 1]
    held = [one for one in held if words_of(one[0])][: arguments.scenes]
    if len(held) < 2:
        raise DataError(f"{split}: fewer than two scenes of several things")
    chats = {stage: load_stage(stage, arguments.run, arguments.seed) for stage in STAGES}
    found = {
        stage: measure(chat, held, arguments.layer, arguments.count)
        for stage, chat in chats.items()
    }
    print(f"{len(held)} scenes, {found['before']['words']:.0f} words of them looked at")
    print(f"{'':<22}" + "".join(f"{stage:>10}" for stage in STAGES))
    for name in list(found["before"])[1:]:
        print(f"{name:<22}" + "".join(f"{found[stage][name]:>10.3f}" for stage in STAGES))
    lines = missed(found)
    print("\n".join(lines) or "trained models look at the right things more than the untrained one")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found | {"missed": lines}, indent=1) + "\n")
    if arguments.sheet:
        most = sorted(held, key=lambda one: -len(words_of(one[0])))[:SHOWN]
        drawn = {stage: chats[stage] for stage in ("before", "stage2")}
        draw_sheet(drawn, most, arguments.layer).save(arguments.sheet)
    return 1 if lines else 0


if __name__ == "__main__":
    run_guarded(main)
