"""Made statements about made scenes: counts, colours, forms, places, order, and how many panels are such. Ours.

A statement is a sentence with its meaning, so that its truth for any scene is known. Panels are called boxes, towers
are boxes with one stack of blocks. Wording varies as that of people does; meanings are literal: "two" means exactly
two, "a" means at least one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from research.synthetic.scenes import COLOURS, SHAPES, Panel, Scene, Shape

__all__ = ["Statement", "about_scattered", "about_towers"]

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven")
_SIZES = {"small": 10, "medium": 20, "big": 30}
_PLACES: tuple[tuple[str, Callable[[Shape], bool]], ...] = (
    ("the edge", lambda s: bool(s.touched)),
    ("the wall", lambda s: bool(s.touched)),
    ("an edge of a box", lambda s: bool(s.touched)),
    ("the corner", lambda s: s.in_corner),
    ("a corner of a box", lambda s: s.in_corner),
    ("the base", lambda s: "bottom" in s.touched),
    ("the bottom of a box", lambda s: "bottom" in s.touched),
    ("the top", lambda s: "top" in s.touched),
    ("the top of a box", lambda s: "top" in s.touched),
    ("the left side", lambda s: "left" in s.touched),
    ("the right side", lambda s: "right" in s.touched),
)
_ENDS = (
    ("at the top", -1),
    ("on top", -1),
    ("as the top", -1),
    ("at the base", 0),
    ("at the bottom", 0),
    ("as the base", 0),
)


@dataclass(frozen=True)
class Statement:
    """A sentence and what it means.

    Attributes:
        text: The sentence.
        holds: Whether it is true of a scene.
    """

    text: str
    holds: Callable[[Scene], bool]


@dataclass(frozen=True)
class _Number:
    """Words for a number, the test, and whether the noun is singular."""

    words: str
    fits: Callable[[int], bool]
    single: bool


@dataclass(frozen=True)
class _Condition:
    """What a panel holds: words after "a box", and the test."""

    words: str
    fits: Callable[[Panel], bool]


def about_towers(chance: random.Random) -> Statement:
    """Make a statement about a scene of towers."""
    kind = chance.random()
    if kind < 0.3:
        number, colour = _number(chance, most=5), chance.choice(list(COLOURS))
        block = f"{number.words} {colour} {_noun('block', number.single)}"
        end, place = chance.choice((("", None), *((f" {words}", place) for words, place in _ENDS)))
        return Statement(
            f"{_there(chance, number.single)} {block}{end}",
            lambda scene: number.fits(
                sum(s.colour == colour for panel in scene for s in (panel if place is None else (panel[place],)))
            ),
        )
    if kind < 0.36:
        (end, place), colour = chance.choice((("base", 0), ("top", -1))), chance.choice(list(COLOURS))
        height = chance.randint(1, 4)
        blocks = f"{_digits(chance, height)} {_noun('block', height == 1)}"
        text = chance.choice(
            (
                f"The {end} of the tower with {blocks} is {colour}",
                f"the tower with {blocks} has a {colour} block at the {end}",
            )
        )
        return Statement(text, lambda scene: any(len(p) == height and p[place].colour == colour for p in scene))
    return _how_many_panels(chance, chance.choice(("tower", "tower", "tower", "box")), _tower_condition)


def about_scattered(chance: random.Random) -> Statement:
    """Make a statement about a scene of scattered shapes."""
    kind = chance.random()
    if kind < 0.3:
        number = _number(chance, most=7)
        words, is_such = _described(chance, number.single)
        where, is_there = _place(chance, 0.5)
        return Statement(
            f"{_there(chance, number.single)} {number.words} {words}{where}",
            lambda scene: number.fits(sum(is_such(s) and is_there(s) for panel in scene for s in panel)),
        )
    box = chance.choice(("box", "box", "box", "grey box", "grey square"))
    if kind < 0.38:
        number = _number(chance, most=3)
        words, is_such = _described(chance, number.single)
        every = chance.choice((f"Each {box} contains", f"each {box} has", f"All {_plural(box)} contain"))
        return Statement(
            f"{every} {number.words} {words}",
            lambda scene: all(number.fits(sum(map(is_such, panel))) for panel in scene),
        )
    return _how_many_panels(chance, box, _scattered_condition)


def _how_many_panels(
    chance: random.Random, box: str, condition: Callable[[random.Random, bool], _Condition]
) -> Statement:
    """A box that ..., exactly two boxes that ..., no box that ..."""
    kind = chance.random()
    if kind < 0.55:
        one = condition(chance, True)
        words = chance.choice(("a", "a", "a", "at least one"))
        return Statement(f"{_there(chance, True)} {words} {box} {one.words}", lambda scene: any(map(one.fits, scene)))
    if kind < 0.7:
        one = condition(chance, True)
        words = chance.choice(("exactly one", "only one", "1", "one"))
        return Statement(
            f"{_there(chance, True)} {words} {box} {one.words}", lambda scene: sum(map(one.fits, scene)) == 1
        )
    if kind < 0.78:
        one = condition(chance, True)
        return Statement(f"{_there(chance, True)} no {box} {one.words}", lambda scene: not any(map(one.fits, scene)))
    several = condition(chance, False)
    if chance.random() < 0.2:
        return Statement(
            f"{_there(chance, False)} at least two {_plural(box)} {several.words}",
            lambda scene: sum(map(several.fits, scene)) >= 2,
        )
    count = chance.choice((2, 2, 2, 3))
    words = chance.choice(("", "exactly ")) + _digits(chance, count)
    return Statement(
        f"{_there(chance, False)} {words} {_plural(box)} {several.words}",
        lambda scene: sum(map(several.fits, scene)) == count,
    )


def _tower_condition(chance: random.Random, single: bool) -> _Condition:
    has, block = _has(chance, single), chance.choice(("block", "block", "block", "item"))
    first, second = chance.choice(list(COLOURS)), chance.choice(list(COLOURS))
    kind = chance.random()
    if kind < 0.35:
        end, place = chance.choice(_ENDS)
        return _Condition(f"{has} a {first} {block} {end}", lambda panel: panel[place].colour == first)
    if kind < 0.5:
        number = _number(chance, most=4)
        return _Condition(f"{has} {number.words} {_noun(block, number.single)}", lambda panel: number.fits(len(panel)))
    if kind < 0.62:
        number = _number(chance, most=3)
        return _Condition(
            f"{has} {number.words} {first} {_noun(block, number.single)}",
            lambda panel: number.fits(sum(s.colour == first for s in panel)),
        )
    if kind < 0.76:
        word, upwards = chance.choice(
            (("over", 1), ("above", 1), ("on", 1), ("on top of", 1), ("below", 0), ("under", 0))
        )
        upper, lower = (first, second) if upwards else (second, first)
        return _Condition(
            f"{has} a {first} {block} {word} a {second} {block}",
            lambda panel: any(low.colour == lower and up.colour == upper for low, up in pairwise(panel)),
        )
    if kind < 0.84:
        height, (end, place) = chance.randint(2, 4), chance.choice(_ENDS)
        return _Condition(
            f"{has} {_digits(chance, height)} {_plural(block)} and a {first} {block} {end}",
            lambda panel: len(panel) == height and panel[place].colour == first,
        )
    if kind < 0.95:
        return _colours_condition(chance, has, block)
    floor, word = chance.choice(((1, "second"), (2, "third")))
    return _Condition(
        f"{has} the {word} {block} from the base {first}",
        lambda panel: len(panel) > floor and panel[floor].colour == first,
    )


def _scattered_condition(chance: random.Random, single: bool) -> _Condition:
    has, item = _has(chance, single), chance.choice(("item", "item", "object", "shape"))
    kind = chance.random()
    if kind < 0.15:
        number = _number(chance, most=7)
        return _Condition(f"{has} {number.words} {_noun(item, number.single)}", lambda panel: number.fits(len(panel)))
    if kind < 0.5:
        number = _number(chance, most=4)
        words, is_such = _described(chance, number.single)
        where, is_there = _place(chance, 0.2)
        return _Condition(
            f"{has} {number.words} {words}{where}",
            lambda panel: number.fits(sum(is_such(s) and is_there(s) for s in panel)),
        )
    if kind < 0.7:
        one, two = _number(chance, most=3), _number(chance, most=3)
        words, is_such = _described(chance, one.single)
        others, is_other = _described(chance, two.single)
        return _Condition(
            f"{has} {one.words} {words} and {two.words} {others}",
            lambda panel: one.fits(sum(map(is_such, panel))) and two.fits(sum(map(is_other, panel))),
        )
    if kind < 0.92:
        return _colours_condition(chance, has, item)
    if kind < 0.96:
        form = chance.choice(SHAPES)
        return _Condition(f"{has} only {_plural(form)}", lambda panel: all(s.form == form for s in panel))
    words, is_such = _described(chance, True)
    others, is_other = _described(chance, True)
    return _Condition(
        f"{has} a {words} above a {others}",
        lambda panel: any(is_such(s) and is_other(o) and s.y < o.y for s in panel for o in panel),
    )


def _colours_condition(chance: random.Random, has: str, item: str) -> _Condition:
    """Which colours a panel has, or how many."""
    kind, items = chance.random(), _plural(item)
    if kind < 0.5:
        wanted = set(chance.sample(list(COLOURS), chance.choice((1, 2))))
        words = " and ".join(sorted(wanted))
        text = chance.choice((f"only {words} {items}", f"{items} of only {words} color" + "s" * (len(wanted) > 1)))
        return _Condition(f"{has} {text}", lambda panel: {s.colour for s in panel} == wanted)
    if kind < 0.75:
        text = chance.choice((f"{items} of the same color", f"all {items} of same color", f"{items} of only one color"))
        return _Condition(f"{has} {text}", lambda panel: len({s.colour for s in panel}) == 1)
    count = chance.choice((2, 3))
    text = chance.choice((f"{items} of {_digits(chance, count)} different colors", f"{items} of all {count} colors"))
    return _Condition(f"{has} {text}", lambda panel: len({s.colour for s in panel}) == count)


def _number(chance: random.Random, *, most: int) -> _Number:
    count = chance.choice([n for n in (1, 1, 1, 2, 2, 3, 4, 5, 6, 7) if n <= most])
    words = _digits(chance, count)
    if count == 1:
        return chance.choice(
            (
                _Number("a", lambda found: found >= 1, True),
                _Number("a", lambda found: found >= 1, True),
                _Number(f"exactly {words}", lambda found: found == 1, True),
                _Number(chance.choice(("at least a", f"at least {words}")), lambda found: found >= 1, True),
                _Number(f"only {words}", lambda found: found == 1, True),
                _Number("no", lambda found: found == 0, True),
            )
        )
    return chance.choice(
        (
            _Number(f"exactly {words}", lambda found: found == count, False),
            _Number(f"exactly {words}", lambda found: found == count, False),
            _Number(f"at least {words}", lambda found: found >= count, False),
            _Number(words, lambda found: found == count, False),
            _Number(f"only {words}", lambda found: found == count, False),
            _Number(f"at most {words}", lambda found: found <= count, False),
            _Number(f"more than {_digits(chance, count - 1)}", lambda found: found >= count, count == 2),
        )
    )


def _described(chance: random.Random, single: bool) -> tuple[str, Callable[[Shape], bool]]:
    """Words for shapes of some colour, form or size, and the test."""
    colours = set(chance.sample(list(COLOURS), chance.choice((1,) * 12 + (2,)))) if chance.random() < 0.75 else set()
    form = chance.choice(SHAPES) if not colours or chance.random() < 0.55 else None
    size = chance.choice(list(_SIZES)) if chance.random() < 0.05 else None
    noun = form or chance.choice(("item", "object", "shape"))
    words = " ".join(filter(None, (size, " or ".join(sorted(colours)), noun if single else _plural(noun))))
    return (
        words,
        lambda s: (
            (not colours or s.colour in colours)
            and (form is None or s.form == form)
            and (size is None or s.size == _SIZES[size])
        ),
    )


def _place(chance: random.Random, share: float) -> tuple[str, Callable[[Shape], bool]]:
    """Words such as "touching the edge" and the test, in a share of the statements; else nothing."""
    if chance.random() > share:
        return "", lambda _: True
    words, is_there = chance.choice(_PLACES)
    if chance.random() < 0.25:
        return f" not touching {words}", lambda s: not is_there(s)
    return f" {chance.choice(('', '', 'closely '))}touching {words}", is_there


def _has(chance: random.Random, single: bool) -> str:
    return chance.choice(
        ("with", "with", "with", "which has", "that has", "having")
        if single
        else ("with", "which have", "that contain", "having")
    )


def _there(chance: random.Random, single: bool) -> str:
    return chance.choice(("There is", "there is") if single else ("There are", "there are"))


def _digits(chance: random.Random, count: int) -> str:
    return chance.choice((_WORDS[count], _WORDS[count], str(count)))


def _noun(word: str, single: bool) -> str:
    return word if single else _plural(word)


def _plural(word: str) -> str:
    return word + ("es" if word.endswith("x") else "s")
