"""Small drawn images with known truth, used to probe embeddings.

Every image is determined by seed, skill and number. Shapes are drawn without anti-aliasing, never touch the border,
and touch each other only if the skill requires it, so the truth can be read from the pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["COLOURS", "SHAPES", "SIDE", "SKILLS", "WORDS", "Probe", "Skill", "draw_probe"]

SIDE = 224  # pixels

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (40, 60, 220),
    "yellow": (245, 210, 30),
    "orange": (245, 130, 20),
    "purple": (130, 40, 160),
    "brown": (120, 75, 35),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
WORDS = ("bad", "bag", "ban", "bat", "can", "cap", "car", "cat", "had", "hat")  # two words may differ in one letter

Place = tuple[float, float, float]  # x and y of the centre, and the radius that bounds the shape


@dataclass(frozen=True)
class Skill:
    """One property that an embedding may capture.

    Attributes:
        question: The text of every pair of this skill.
        answers: All answers, equally frequent, so that chance is ``1 / len(answers)``.
        semantic: Whether it concerns a property of one object, as encoder pretraining does; otherwise it is
            fine-grained: number, place, size, contact, letters.
        draw: ``(image, answer, random)`` draws one image with this answer.
    """

    question: str
    answers: tuple[str, ...]
    semantic: bool
    draw: Callable[[Image.Image, str, random.Random], None]

    @property
    def chance(self) -> float:
        """Return the accuracy of guessing."""
        return 1 / len(self.answers)


@dataclass(frozen=True)
class Probe:
    """An image, the question about it, and the only right answer."""

    picture: Image.Image
    question: str
    answer: str


def draw_probe(skill: str, number: int, *, seed: int = 0) -> Probe:
    """Draw one image.

    Args:
        skill: A key of `SKILLS`.
        number: Number from 0; answers take turns, so any consecutive range is balanced.
        seed: Random seed.

    Returns:
        A ``224 x 224`` RGB image with question and answer.
    """
    asked = SKILLS[skill]
    chance = random.Random(f"{seed}/{skill}/{number}")  # noqa: S311 - reproducible, not secret
    answer = asked.answers[number % len(asked.answers)]
    grey = chance.randint(215, 255)
    picture = Image.new("RGB", (SIDE, SIDE), tuple(grey - chance.randint(0, 15) for _ in range(3)))
    asked.draw(picture, answer, chance)
    return Probe(picture, asked.question, answer)


# ---- one function a skill


def _draw_colour(picture: Image.Image, answer: str, chance: random.Random) -> None:
    _draw_shape(picture, chance.choice(SHAPES), _places(chance, [chance.uniform(20, 50)])[0], answer)


def _draw_shape_skill(picture: Image.Image, answer: str, chance: random.Random) -> None:
    _draw_shape(picture, answer, _places(chance, [chance.uniform(20, 50)])[0], chance.choice(list(COLOURS)))


def _draw_count(picture: Image.Image, answer: str, chance: random.Random) -> None:
    shape, colour = chance.choice(SHAPES), chance.choice(list(COLOURS))
    for place in _places(chance, [chance.uniform(9, 20) for _ in range(int(answer))]):
        _draw_shape(picture, shape, place, colour)


def _draw_position(picture: Image.Image, answer: str, chance: random.Random) -> None:
    """Draw two shapes centred anywhere, so that the place of one alone reveals little."""
    apart, aside = chance.uniform(50, 90), chance.uniform(-15, 15)
    dx, dy = {"left": (-apart, aside), "right": (apart, aside), "above": (aside, -apart), "below": (aside, apart)}[
        answer
    ]
    radii = chance.uniform(14, 22), chance.uniform(14, 22)
    margin_x, margin_y = abs(dx) / 2 + 24, abs(dy) / 2 + 24
    x, y = chance.uniform(margin_x, SIDE - margin_x), chance.uniform(margin_y, SIDE - margin_y)
    _draw_shape(picture, "circle", (x + dx / 2, y + dy / 2, radii[0]), "red")
    _draw_shape(picture, "square", (x - dx / 2, y - dy / 2, radii[1]), "blue")


def _draw_size(picture: Image.Image, answer: str, chance: random.Random) -> None:
    """Draw shapes of which the largest has at least 1.4 times the radius of the others."""
    largest = chance.uniform(26, 42)
    colours = ["red", "green", "blue"]
    radii = [largest if colour == answer else largest / chance.uniform(1.4, 2.2) for colour in colours]
    shape = chance.choice(SHAPES)
    for colour, place in zip(colours, _places(chance, radii), strict=True):
        _draw_shape(picture, shape, place, colour)


def _draw_overlap(picture: Image.Image, answer: str, chance: random.Random) -> None:
    """Draw two discs of different colours, close together even if they do not overlap."""
    a, b = chance.uniform(20, 34), chance.uniform(20, 34)
    apart = a + b - chance.uniform(0.15, 0.5) * min(a, b) if answer == "yes" else a + b + chance.uniform(4, 12)
    angle = chance.uniform(0, 2 * math.pi)
    dx, dy = apart * math.cos(angle) / 2, apart * math.sin(angle) / 2
    margin_x, margin_y = abs(dx) + max(a, b) + 3, abs(dy) + max(a, b) + 3
    x, y = chance.uniform(margin_x, SIDE - margin_x), chance.uniform(margin_y, SIDE - margin_y)
    first, second = chance.sample(list(COLOURS), 2)
    _draw_shape(picture, "circle", (x + dx, y + dy, a), first)
    _draw_shape(picture, "circle", (x - dx, y - dy, b), second)


def _draw_reading(picture: Image.Image, answer: str, chance: random.Random) -> None:
    font = ImageFont.load_default(chance.randint(30, 60))  # the font that comes with Pillow
    left, top, right, bottom = font.getbbox(answer)
    x = chance.uniform(4, SIDE - (right - left) - 4) - left
    y = chance.uniform(4, SIDE - (bottom - top) - 4) - top
    ImageDraw.Draw(picture).text((int(x), int(y)), answer, fill=COLOURS["black"], font=font)


def _draw_same(picture: Image.Image, answer: str, chance: random.Random) -> None:
    """Draw two shapes with independent colours and sizes, so that only shape counts."""
    first = chance.choice(SHAPES)
    second = first if answer == "yes" else chance.choice([shape for shape in SHAPES if shape != first])
    for shape, place in zip((first, second), _places(chance, [chance.uniform(22, 40) for _ in "ab"]), strict=True):
        _draw_shape(picture, shape, place, chance.choice(list(COLOURS)))


SKILLS: dict[str, Skill] = {
    "colour": Skill("what colour is the shape?", tuple(COLOURS), semantic=True, draw=_draw_colour),
    "shape": Skill("what shape is it?", SHAPES, semantic=True, draw=_draw_shape_skill),
    "count": Skill("how many shapes are there?", tuple("012345678"), semantic=False, draw=_draw_count),
    "position": Skill(
        "where is the red circle, seen from the blue square?",
        ("left", "right", "above", "below"),
        semantic=False,
        draw=_draw_position,
    ),
    "size": Skill("which colour has the largest shape?", ("red", "green", "blue"), semantic=False, draw=_draw_size),
    "overlap": Skill("do the two circles overlap?", ("yes", "no"), semantic=False, draw=_draw_overlap),
    "reading": Skill("what does the word say?", WORDS, semantic=False, draw=_draw_reading),
    "same": Skill("do both have the same shape?", ("yes", "no"), semantic=False, draw=_draw_same),
}
"""Every skill by name."""


# ---- places and shapes


def _places(chance: random.Random, radii: list[float]) -> list[Place]:
    """Draw places inside the image at least 5 pixels apart, starting over if the last ones do not fit."""
    while True:
        found: list[Place] = []
        for radius in sorted(radii, reverse=True):
            for _ in range(50):
                x, y = chance.uniform(radius + 3, SIDE - radius - 3), chance.uniform(radius + 3, SIDE - radius - 3)
                if all(math.hypot(x - u, y - v) > radius + r + 5 for u, v, r in found):
                    found.append((x, y, radius))
                    break
        if len(found) == len(radii):
            order = sorted(range(len(radii)), key=lambda i: -radii[i])
            return [found[order.index(i)] for i in range(len(radii))]


def _draw_shape(picture: Image.Image, shape: str, place: Place, colour: str) -> None:
    """Draw one shape within a circle of its radius."""
    x, y, r = place
    pen, fill = ImageDraw.Draw(picture), COLOURS[colour]
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=max(3, round(0.3 * r)))
    elif shape == "cross":
        arm, half = 0.28 * r, 0.92 * r
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=fill)
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=fill)
    else:
        corners = {"square": (4, 1.0, math.pi / 4), "triangle": (3, 1.0, math.pi / 2), "star": (10, 0.45, math.pi / 2)}
        count, inner, turn = corners[shape]
        pen.polygon(
            [
                (
                    x + (r if i % 2 == 0 else inner * r) * math.cos(turn + 2 * math.pi * i / count),
                    y - (r if i % 2 == 0 else inner * r) * math.sin(turn + 2 * math.pi * i / count),
                )
                for i in range(count)
            ],
            fill=fill,
        )
