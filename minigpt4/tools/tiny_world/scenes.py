"""Scenes of one to three coloured shapes: sampled, drawn, and described as plain facts.

First stop of the tiny world: everything else (captions, questions, tower pretraining, data sets on
disk) starts from a :class:`Scene`.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

IMAGE_SIZE = 112

COLORS = {
    "red": (214, 40, 40),
    "orange": (247, 132, 20),
    "yellow": (246, 214, 50),
    "green": (46, 150, 62),
    "cyan": (50, 205, 215),
    "blue": (40, 74, 216),
    "purple": (126, 48, 170),
    "pink": (247, 132, 190),
}
SHAPES = ("circle", "ring", "square", "diamond", "triangle", "star", "cross", "heart")
SIZES = {"small": 10.0, "large": 16.0}  # radius in pixels
BACKGROUNDS = {"light": 228, "grey": 150, "dark": 42}  # grey level
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
PAIR_LAYOUTS = ("beside", "above")  # left to right; top to bottom
TRIPLE_LAYOUTS = ("row", "column")

# Colour-shape pairs that stage 1 and stage 2 never see (the towers do): they test composition.
WITHHELD_PAIRS = frozenset(
    (color, SHAPES[(3 * index + 1) % len(SHAPES)]) for index, color in enumerate(COLORS)
)

_THIRDS = (20.0, 56.0, 92.0)
_HALVES = (32.0, 80.0)


@dataclass(frozen=True)
class Thing:
    """One object: what it is and where its centre lies (pixels)."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    angle: float  # radians

    @property
    def pair(self) -> tuple[str, str]:
        return (self.color, self.shape)


@dataclass(frozen=True)
class Scene:
    """One to three things on a plain background; things are listed left to right, top to bottom.

    ``layout`` is a place of :data:`PLACES` for one thing, else ``beside``, ``above``, ``row`` or
    ``column``; mosaics (tower pretraining only) have layout ``mosaic``.
    """

    things: tuple[Thing, ...]
    layout: str
    background: str
    noise_seed: int

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset(thing.pair for thing in self.things)


def _random_pair(rng: random.Random, withheld: bool | None) -> tuple[str, str]:
    """A colour-shape pair: any (None), never a withheld one (False), only withheld ones (True)."""
    if withheld:
        return rng.choice(sorted(WITHHELD_PAIRS))
    while True:
        pair = (rng.choice(tuple(COLORS)), rng.choice(SHAPES))
        if withheld is None or pair not in WITHHELD_PAIRS:
            return pair


def _positions(layout: str, rng: random.Random) -> list[tuple[float, float]]:
    """Centres (x, y) for a layout, with jitter that leaves the layout readable."""

    def jitter(width: float) -> float:
        return rng.uniform(-width, width)

    if layout in PLACES:
        row, column = divmod(PLACES.index(layout), 3)
        return [(_THIRDS[column] + jitter(3), _THIRDS[row] + jitter(3))]
    along = _HALVES if layout in PAIR_LAYOUTS else _THIRDS
    across = 56.0 + jitter(14)
    centres = [(a + jitter(2), across + jitter(3)) for a in along]
    return centres if layout in ("beside", "row") else [(y, x) for x, y in centres]


def sample_scene(
    rng: random.Random, count: int | None = None, pairs: str = "any", layout: str | None = None
) -> Scene:
    """A random scene.

    Args:
        rng: Source of all randomness but the pixel noise.
        count: Number of things, 1 to 3; drawn evenly when left out.
        pairs: ``any``, ``seen`` (no withheld pair) or ``withheld`` (at least one withheld pair).
        layout: A layout that fits ``count``; drawn when left out.
    """
    count = count or rng.randint(1, 3)
    layouts = (PLACES, PAIR_LAYOUTS, TRIPLE_LAYOUTS)[count - 1]
    layout = layout or rng.choice(layouts)
    special = rng.randrange(count) if pairs == "withheld" else None
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        withheld = None if pairs == "any" else len(chosen) == special
        pair = _random_pair(rng, withheld)
        if pair not in chosen:
            chosen.append(pair)
    things = tuple(
        Thing(color, shape, rng.choice(tuple(SIZES)), x, y, rng.uniform(-0.16, 0.16))
        for (color, shape), (x, y) in zip(chosen, _positions(layout, rng), strict=True)
    )
    return Scene(things, layout, rng.choice(tuple(BACKGROUNDS)), rng.randrange(2**31))


def sample_mosaic(rng: random.Random) -> Scene:
    """A dense scene for tower pretraining: up to nine things on a 3 x 3 grid."""
    things = []
    for place in PLACES:
        if rng.random() < 0.75:
            ((x, y),) = _positions(place, rng)
            color, shape = _random_pair(rng, None)
            size = rng.choice(tuple(SIZES))
            things.append(Thing(color, shape, size, x, y, rng.uniform(-0.16, 0.16)))
    return Scene(tuple(things), "mosaic", rng.choice(tuple(BACKGROUNDS)), rng.randrange(2**31))


def _outline(thing: Thing, scale: float) -> list[tuple[float, float]]:
    """Corner points of a polygonal shape in canvas pixels."""
    radius = SIZES[thing.size]
    polar: list[tuple[float, float]]
    match thing.shape:
        case "square":
            polar = [(0.98, math.pi / 4 + k * math.pi / 2) for k in range(4)]
        case "diamond":
            polar = [(1.1 if k % 2 else 0.78, k * math.pi / 2) for k in range(4)]
        case "triangle":
            polar = [(1.12, -math.pi / 2 + k * 2 * math.pi / 3) for k in range(3)]
        case "star":
            polar = [
                (1.15 if k % 2 == 0 else 0.47, -math.pi / 2 + k * math.pi / 5) for k in range(10)
            ]
        case "cross":
            arm = math.atan2(0.3, 1.0)
            polar = []
            for k in range(4):
                turn = k * math.pi / 2
                polar += [(1.05, turn - arm), (1.05, turn + arm), (0.43, turn + math.pi / 4)]
        case _:  # heart: the classic parametric curve, shrunk to unit radius
            points = []
            for k in range(24):
                t = 2 * math.pi * k / 24
                px = 16 * math.sin(t) ** 3
                py = -(
                    13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
                )
                points.append((px / 16, py / 16))
            polar = [(math.hypot(px, py), math.atan2(py, px)) for px, py in points]
    return [
        (
            (thing.x + radius * r * math.cos(phi + thing.angle)) * scale,
            (thing.y + radius * r * math.sin(phi + thing.angle)) * scale,
        )
        for r, phi in polar
    ]


def draw_scene(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """The scene as an RGB picture of ``size`` x ``size`` pixels; equal scenes give equal pixels."""
    rng = random.Random(scene.noise_seed)
    scale = 2 * size / IMAGE_SIZE  # drawn at twice the size, then halved: smooth edges

    def tint(rgb: tuple[int, int, int], width: int) -> tuple[int, ...]:
        return tuple(min(255, max(0, value + rng.randint(-width, width))) for value in rgb)

    grey = BACKGROUNDS[scene.background] + rng.randint(-10, 10)
    picture = Image.new("RGB", (2 * size, 2 * size), tint((grey, grey, grey), 4))  # type: ignore[arg-type]
    canvas = ImageDraw.Draw(picture)
    for thing in scene.things:
        fill = tint(COLORS[thing.color], 12)
        radius, x, y = SIZES[thing.size] * scale, thing.x * scale, thing.y * scale
        if thing.shape == "circle":
            canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
        elif thing.shape == "ring":
            box = [x - radius, y - radius, x + radius, y + radius]
            canvas.ellipse(box, outline=fill, width=round(radius * 0.42))
        else:
            canvas.polygon(_outline(thing, scale), fill=fill)
    return picture.reduce(2)
