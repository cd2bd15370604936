"""Made scenes: a row of grey panels with coloured shapes, scattered or stacked into towers. Deterministic; ours."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

__all__ = ["COLOURS", "SHAPES", "SIDE", "Panel", "Scene", "Shape", "draw", "draw_block_towers", "scattered"]

SIDE = 100  # pixels of a panel
PANELS = 3
_GAP = 50  # pixels between panels
_BLOCK = 20  # side of a block of a tower
_PANEL, _BETWEEN = (211, 211, 211), (128, 128, 128)
_FINER = 4  # drawn so many times larger and averaged: smooth edges
_TRIES = 200  # places tried in a panel before it stays with fewer shapes
COLOURS = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}
SHAPES = ("square", "triangle", "circle")


@dataclass(frozen=True)
class Shape:
    """One shape in its panel.

    Attributes:
        form: ``square``, ``triangle`` or ``circle``.
        colour: A key of ``COLOURS``.
        x: Left edge in pixels, 0 to ``SIDE``.
        y: Upper edge in pixels, counted downwards.
        size: Width and height in pixels.
    """

    form: str
    colour: str
    x: int
    y: int
    size: int

    @property
    def touched(self) -> frozenset[str]:
        """Sides of the panel that it touches, a pixel allowed: ``left``, ``right``, ``top``, ``bottom``."""
        reached = {
            "left": self.x <= 1,
            "right": self.x + self.size >= SIDE - 1,
            "top": self.y <= 1,
            "bottom": self.y + self.size >= SIDE - 1,
        }
        return frozenset(side for side, is_so in reached.items() if is_so)

    @property
    def in_corner(self) -> bool:
        """Whether it touches two sides that meet."""
        return bool(self.touched & {"left", "right"}) and bool(self.touched & {"top", "bottom"})


Panel = tuple[Shape, ...]
"""Shapes from the lowest to the highest; the first block of a tower is its base."""

Scene = tuple[Panel, ...]


def draw_block_towers(chance: random.Random) -> Scene:
    """Draw a scene of panels with one tower of one to four blocks each."""
    return tuple(
        tuple(
            Shape("square", chance.choice(list(COLOURS)), 40, SIDE - _BLOCK - (_BLOCK + 1) * floor, _BLOCK)
            for floor in range(chance.choice((1, 2, 2, 3, 3, 4)))
        )
        for _ in range(PANELS)
    )


def scattered(chance: random.Random) -> Scene:
    """Draw a scene of panels with one to eight shapes that do not overlap, of one to three colours and forms."""
    return tuple(_scattered_panel(chance) for _ in range(PANELS))


def draw(scene: Scene) -> Image.Image:
    """Draw a scene: panels of ``SIDE`` pixels side by side, grey between them."""
    picture = Image.new("RGB", (len(scene) * (SIDE + _GAP) - _GAP, SIDE), _BETWEEN)
    for number, panel in enumerate(scene):
        picture.paste(_draw_panel(panel), (number * (SIDE + _GAP), 0))
    return picture


def _scattered_panel(chance: random.Random) -> Panel:
    colours = chance.sample(list(COLOURS), chance.choice((3, 3, 3, 2, 1)))
    forms = chance.sample(SHAPES, chance.choice((3, 3, 3, 2, 1)))
    wanted = chance.choice((1, 2, 3, 4, 4, 5, 5, 6, 7, 8))
    found: list[Shape] = []
    for _ in range(_TRIES):
        if len(found) == wanted:
            break
        size = chance.choice((10, 20, 20, 30))
        # A quarter stands at a side, so that touching is no rare thing.
        x, y = (
            chance.choice((1, SIDE - size)) if chance.random() < 0.25 else chance.randint(1, SIDE - 1 - size)
            for _ in "xy"
        )
        shape = Shape(chance.choice(forms), chance.choice(colours), x, y, size)
        if all(_apart(shape, other) for other in found):
            found.append(shape)
    return tuple(sorted(found, key=lambda shape: -shape.y))


def _apart(one: Shape, other: Shape) -> bool:
    reach = (one.size + other.size) / 2
    across = abs(one.x + one.size / 2 - other.x - other.size / 2)
    down = abs(one.y + one.size / 2 - other.y - other.size / 2)
    return max(across, down) > reach


def _draw_panel(panel: Panel) -> Image.Image:
    picture = Image.new("RGB", (SIDE * _FINER, SIDE * _FINER), _PANEL)
    pen = ImageDraw.Draw(picture)
    for shape in panel:
        left, top, size = shape.x * _FINER, shape.y * _FINER, shape.size * _FINER
        right, bottom, fill = left + size - 1, top + size - 1, COLOURS[shape.colour]
        if shape.form == "square":
            pen.rectangle((left, top, right, bottom), fill=fill)
        elif shape.form == "circle":
            pen.ellipse((left, top, right, bottom), fill=fill)
        else:
            pen.polygon(((left, bottom), ((left + right) / 2, top), (right, bottom)), fill=fill)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)
