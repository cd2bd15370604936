"""Write synthetic images and true and false statements about them, as a folder of images and a pairs file. Ours.

A few hundred sentences are too few to learn what "exactly two" or "on top of" mean (research/experiments/log.md: taught
with 988 statements, even exact descriptions of the scenes stay at chance). Made ones cost nothing and their truth is
known; a network that has read them can be asked about real ones at once, or go on learning from those.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frevl.data.benchmarks.load import write_rows
from frevl.errors import InputError, UsageError
from research.synthetic.scenes import Scene, draw, draw_block_towers, scattered
from research.synthetic.statements import Statement, about_scattered, about_towers

__all__ = ["Lessons", "make_lessons"]

PAIRS_FILE = "lessons.jsonl"
_LOOKED_AT = 300  # scenes a statement
_MOST, _FEWEST = 16, 4  # pairs a statement, of each truth; what is nearly always true or false is left out
_KINDS: tuple[tuple[str, Callable[[random.Random], Scene], Callable[[random.Random], Statement]], ...] = (
    ("tower", draw_block_towers, about_towers),
    ("scatter", scattered, about_scattered),
)


@dataclass(frozen=True)
class Lessons:
    """What was written.

    Attributes:
        pairs_file: One JSON object a line: ``image``, ``text`` and ``target`` (``true`` or ``false``), half of
            each for every statement.
        pairs: Their number.
        statements: Number of different statements.
        images: Number of images.
    """

    pairs_file: Path
    pairs: int
    statements: int
    pictures: int


def make_lessons(folder: str | Path, *, pictures: int = 3000, statements: int = 20_000, seed: int = 0) -> Lessons:
    """Draw images below ``folder/pictures`` and write ``folder/lessons.jsonl``; the same seed gives the same files.

    Args:
        folder: Is made if it does not exist; files of the same names are replaced.
        images: How many, at least 100; half of them towers, half scattered shapes.
        statements: How many different ones, at least 2; half of each kind.
        seed: Of all random choices.

    Raises:
        UsageError: A number is too small.
        InputError: The folder cannot be written.
    """
    for name, value, least in (("pictures", pictures, 100), ("statements", statements, 2)):
        if value < least:
            raise UsageError(f"Lessons need at least {least} {name}, but {value} were asked for.")
    folder, rows, told = Path(folder), [], 0
    for number, (kind, make, tell) in enumerate(_KINDS):
        # A generator a kind and purpose: more statements do not change the images.
        chance = random.Random(f"{seed} {kind} scenes")
        scenes = [make(chance) for _ in range((pictures + 1 - number) // 2)]
        names = [f"pictures/{kind}-{place}.png" for place in range(len(scenes))]
        _draw_all(folder, names, scenes)
        chance = random.Random(f"{seed} {kind} statements")
        found = _tell(chance, tell, scenes, (statements + 1 - number) // 2)
        told += len(found)
        for text, chosen in found.items():
            rows += [{"image": names[place], "text": text, "target": target, "scene": kind} for place, target in chosen]
    write_rows(rows, folder / PAIRS_FILE)
    return Lessons(folder / PAIRS_FILE, len(rows), told, pictures)


def _tell(
    chance: random.Random, tell: Callable[[random.Random], Statement], scenes: list[Scene], wanted: int
) -> dict[str, list[tuple[int, str]]]:
    """Make statements, each with scenes of which it is true and as many of which it is false."""
    found: dict[str, list[tuple[int, str]]] = {}
    for _ in range(50 * wanted):
        if len(found) == wanted:
            break
        statement = tell(chance)
        if statement.text in found:
            continue
        places: dict[bool, list[int]] = {True: [], False: []}
        for place in chance.sample(range(len(scenes)), min(_LOOKED_AT, len(scenes))):
            truth = statement.holds(scenes[place])
            if len(places[truth]) < _MOST:
                places[truth].append(place)
            elif len(places[not truth]) == _MOST:
                break
        count = min(map(len, places.values()))
        if count >= _FEWEST:
            found[statement.text] = [
                (place, "true" if truth else "false") for truth in (True, False) for place in places[truth][:count]
            ]
    return found


def _draw_all(folder: Path, names: list[str], scenes: list[Scene]) -> None:
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        for name, scene in zip(names, scenes, strict=True):
            draw(scene).save(folder / name)
    except OSError as error:
        raise InputError(f"{folder}: the pictures cannot be written ({error.strerror or error}).") from error
