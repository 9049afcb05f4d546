"""Scenes of one to three coloured shapes, sampled and drawn; the start of the tiny world."""

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
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
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
    """One object, with its centre in pixels."""

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
    """One to three things on a plain background, from left to right or from top to bottom.

    ``layout`` is a place of :data:`PLACES` for one thing, else ``beside``, ``above``, ``row`` or
    ``column``.
    """

    things: tuple[Thing, ...]
    layout: str
    background: str
    noise_seed: int

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset(thing.pair for thing in self.things)


def sample_pair(rng: random.Random, withheld: bool | None = None) -> tuple[str, str]:
    """Sample a colour-shape pair: any (None), never a withheld one (False), or only those."""
    if withheld:
        return rng.choice(sorted(WITHHELD_PAIRS))
    while True:
        pair = (rng.choice(tuple(COLORS)), rng.choice(SHAPES))
        if withheld is None or pair not in WITHHELD_PAIRS:
            return pair


def sample_centres(layout: str, rng: random.Random) -> list[tuple[float, float]]:
    """Sample the centres (x, y) of a layout's things."""

    def jitter(width: float) -> float:
        return rng.uniform(-width, width)

    if layout in PLACES:
        row, column = divmod(PLACES.index(layout), 3)
        return [(_THIRDS[column] + jitter(3), _THIRDS[row] + jitter(3))]
    along = _HALVES if layout in PAIR_LAYOUTS else _THIRDS
    across = 56.0 + jitter(14)
    centres = [(a + jitter(2), across + jitter(3)) for a in along]
    return centres if layout in ("beside", "row") else [(y, x) for x, y in centres]


def sample_scene(rng: random.Random, count: int | None = None, pairs: str = "any") -> Scene:
    """Sample a scene of ``count`` things; ``pairs`` are any, seen (no withheld one) or withheld."""
    count = count or rng.randint(1, 3)
    layout = rng.choice((PLACES, PAIR_LAYOUTS, TRIPLE_LAYOUTS)[count - 1])
    special = rng.randrange(count) if pairs == "withheld" else None
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        withheld = None if pairs == "any" else len(chosen) == special
        pair = sample_pair(rng, withheld)
        if pair not in chosen:
            chosen.append(pair)
    things = tuple(
        Thing(color, shape, rng.choice(tuple(SIZES)), x, y, rng.uniform(-0.16, 0.16))
        for (color, shape), (x, y) in zip(chosen, sample_centres(layout, rng), strict=True)
    )
    return Scene(things, layout, rng.choice(tuple(BACKGROUNDS)), rng.randrange(2**31))


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
            polar = []
            for t in (2 * math.pi * k / 24 for k in range(24)):
                c1, c2, c3, c4 = (math.cos(k * t) for k in (1, 2, 3, 4))
                px, py = 16 * math.sin(t) ** 3 / 16, -(13 * c1 - 5 * c2 - 2 * c3 - c4) / 16
                polar.append((math.hypot(px, py), math.atan2(py, px)))
    return [
        (
            (thing.x + radius * r * math.cos(phi + thing.angle)) * scale,
            (thing.y + radius * r * math.sin(phi + thing.angle)) * scale,
        )
        for r, phi in polar
    ]


def draw_scene(scene: Scene) -> Image.Image:
    """Draw an RGB picture of 112 x 112 pixels; equal scenes give equal pixels."""
    rng = random.Random(scene.noise_seed)
    scale = 2.0  # drawn at twice the size, then halved: smooth edges
    size = (2 * IMAGE_SIZE, 2 * IMAGE_SIZE)

    def tint(rgb: tuple[int, int, int], width: int) -> tuple[int, ...]:
        return tuple(min(255, max(0, value + rng.randint(-width, width))) for value in rgb)

    grey = BACKGROUNDS[scene.background] + rng.randint(-10, 10)
    picture = Image.new("RGB", size, tint((grey, grey, grey), 4))  # type: ignore[arg-type]
    canvas = ImageDraw.Draw(picture)
    for thing in scene.things:
        fill = tint(COLORS[thing.color], 12)
        radius, x, y = SIZES[thing.size] * scale, thing.x * scale, thing.y * scale
        box = [x - radius, y - radius, x + radius, y + radius]
        if thing.shape == "circle":
            canvas.ellipse(box, fill=fill)
        elif thing.shape == "ring":
            canvas.ellipse(box, outline=fill, width=round(radius * 0.42))
        else:
            canvas.polygon(_outline(thing, scale), fill=fill)
    return picture.reduce(2)
