"""Small scenes: one to three coloured shapes, each in a quadrant of its own; what they say and how they look.

A scene's *set* is what matters about it: the (colour, kind, place) of its shapes, without jitter and size.
`is_held_out` parts all sets into training and test by a hash, so whoever draws only from one side of it
(corpus, vision tower, language model) has never met the other.
"""

import hashlib
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

PIXELS = 64
COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 180, 60),
    "blue": (55, 90, 235),
    "yellow": (235, 215, 50),
    "purple": (160, 60, 200),
    "white": (240, 240, 240),
}
KINDS = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")  # the order in which captions name shapes
RADII = (8, 11)  # pixels, from the centre to the edge
TINT = 15  # how far a channel may stray from its colour
BACKGROUND = 60  # the lightest a background may be
SHAPES_IN_A_SCENE = (1, 2, 2, 3, 3)  # drawn from with equal chances
ONE_IN_HELD_OUT = 8  # this share of all sets is kept for the test


@dataclass(frozen=True)
class Shape:
    """One shape. `place` indexes PLACES; `x` and `y` are its centre and `radius` its reach, in pixels."""

    colour: str
    kind: str
    place: int
    x: int
    y: int
    radius: int
    fill: tuple[int, int, int]

    @property
    def column(self) -> int:
        return self.place % 2

    @property
    def row(self) -> int:
        return self.place // 2

    def phrase(self) -> str:
        return f"a {self.colour} {self.kind} at the {PLACES[self.place]}"


@dataclass(frozen=True)
class Scene:
    """The shapes in reading order, and the grey they stand on."""

    shapes: tuple[Shape, ...]
    background: int

    def key(self) -> str:
        """The scene's set: equal for two scenes that differ in jitter, size and tint only."""
        return "|".join(f"{shape.colour} {shape.kind} {shape.place}" for shape in self.shapes)

    def caption(self) -> str:
        phrases = [shape.phrase() for shape in self.shapes]
        return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]])) + "."


def is_held_out(scene: Scene, seed: int) -> bool:
    """Whether the scene's set belongs to the test: a fixed hash, the same for every part of the demo."""
    digest = hashlib.sha256(f"{seed}|{scene.key()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % ONE_IN_HELD_OUT == 0


def imagine(rng: random.Random, seed: int, held_out: bool = False) -> Scene:
    """Draw a scene from the training side of the sets, or from the held-out side."""
    while True:
        places = sorted(rng.sample(range(len(PLACES)), rng.choice(SHAPES_IN_A_SCENE)))
        scene = Scene(tuple(_shape(rng, place) for place in places), rng.randrange(BACKGROUND))
        if is_held_out(scene, seed) == held_out:
            return scene


def _shape(rng: random.Random, place: int) -> Shape:
    colour, kind, radius = rng.choice(tuple(COLOURS)), rng.choice(KINDS), rng.randint(*RADII)
    cell = PIXELS // 2
    free = cell // 2 - radius - 1
    x = cell * (place % 2) + cell // 2 + rng.randint(-free, free)
    y = cell * (place // 2) + cell // 2 + rng.randint(-free, free)
    red, green, blue = (min(255, max(0, channel + rng.randint(-TINT, TINT))) for channel in COLOURS[colour])
    return Shape(colour, kind, place, x, y, radius, (red, green, blue))


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of PIXELS × PIXELS."""
    picture = Image.new("RGB", (PIXELS, PIXELS), (scene.background,) * 3)
    pen = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        _draw_shape(pen, shape)
    return picture


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape) -> None:
    x, y, r = shape.x, shape.y, shape.radius
    if shape.kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shape.fill)
    elif shape.kind == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=shape.fill)
    elif shape.kind == "triangle":
        pen.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=shape.fill)
    else:
        arm = r // 3
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=shape.fill)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=shape.fill)
