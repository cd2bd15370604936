"""Drawn probes: their truth is read from the pixels by other means."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from frevl.diagnosis.embeddings.probe_pictures import COLOURS, SHAPES, SIDE, SKILLS, WORDS, draw_probe

KINDS = {colour: np.array(rgb) for colour, rgb in COLOURS.items()}


def drawn(skill, number, seed=0):
    """Return the pixels ``(224, 224, 3)``, where there is ink, and the answer."""
    probe = draw_probe(skill, number, seed=seed)
    pixels = np.asarray(probe.picture)
    return pixels, (pixels != pixels[0, 0]).any(axis=2), probe.answer


def pieces(ink):
    """Return a mask for each connected piece of ink, corners touching: a slow flood fill."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(ink), strict=True)}
    found = []
    while left:
        front, piece = [left.pop()], np.zeros_like(ink)
        while front:
            y, x = front.pop()
            piece[y, x] = True
            for spot in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if spot in left:
                    left.remove(spot)
                    front.append(spot)
        found.append(piece)
    return found


def shape_of(piece):
    """Recognise a shape by how it fills its box: star .38, ring .40, triangle .50, cross .52, circle .79, square 1."""
    ys, xs = np.nonzero(piece)
    box = piece[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    height, width = box.shape
    if not box[height // 2, width // 2]:
        return "ring"
    if box.mean() > 0.93:
        return "square"
    if box.mean() > 0.7:
        return "circle"
    if box.mean() < 0.44:
        return "star"
    return "triangle" if (ys.mean() - ys.min()) / height > 0.58 else "cross"


def inked(pixels, colour):
    return (pixels == KINDS[colour]).all(axis=2)


def test_the_same_number_draws_the_same_picture_and_another_seed_another():
    one, again, other = (np.asarray(draw_probe("count", 5, seed=seed).picture) for seed in (0, 0, 1))
    assert one.shape == (SIDE, SIDE, 3)
    assert (one == again).all()
    assert (one != other).any()


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_take_turns(skill):
    answers = [draw_probe(skill, number).answer for number in range(2 * len(SKILLS[skill].answers))]
    assert Counter(answers) == dict.fromkeys(SKILLS[skill].answers, 2)
    assert SKILLS[skill].chance == 1 / len(SKILLS[skill].answers)


@pytest.mark.parametrize("number", range(27))
def test_count_is_the_number_of_pieces(number):
    _, ink, answer = drawn("count", number)
    assert len(pieces(ink)) == int(answer) == number % 9


@pytest.mark.parametrize("number", range(16))
def test_colour_is_that_of_all_ink(number):
    pixels, ink, answer = drawn("colour", number)
    assert ink.sum() > 150
    assert (inked(pixels, answer) == ink).all()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(24))
def test_shape_can_be_recognised(number):
    _, ink, answer = drawn("shape", number)
    (piece,) = pieces(ink)
    assert shape_of(piece) == answer == SHAPES[number % 6]


@pytest.mark.parametrize("number", range(16))
def test_position_is_where_red_lies_from_blue(number):
    pixels, ink, answer = drawn("position", number)
    red, blue = (np.argwhere(inked(pixels, colour)).mean(axis=0) for colour in ("red", "blue"))
    down, right = red - blue
    assert len(pieces(ink)) == 2
    far = {"left": -right, "right": right, "above": -down, "below": down}
    assert max(far, key=far.get) == answer
    assert far[answer] > 45


@pytest.mark.slow
@pytest.mark.parametrize("number", range(15))
def test_size_is_the_colour_with_most_ink(number):
    pixels, ink, answer = drawn("size", number)
    areas = {colour: inked(pixels, colour).sum() for colour in ("red", "green", "blue")}
    assert len(pieces(ink)) == 3
    assert max(areas, key=areas.get) == answer
    assert sorted(areas.values())[1] < 0.65 * areas[answer]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_overlap_is_one_piece_of_two_colours(number):
    pixels, ink, answer = drawn("overlap", number)
    assert len({tuple(colour) for colour in pixels[ink]}) == 2
    assert len(pieces(ink)) == (1 if answer == "yes" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_same_is_two_pieces_of_one_shape(number):
    _, ink, answer = drawn("same", number)
    first, second = pieces(ink)
    assert (shape_of(first) == shape_of(second)) == (answer == "yes")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 7, 13])
def test_reading_can_be_read(number):
    """Of all words in all sizes, the right one is most like the image."""
    pixels, _, answer = drawn("reading", number)
    paper = float(pixels[0, 0, 0])
    seen = cut((paper - pixels[:, :, 0]) / (paper - COLOURS["black"][0]))
    typed = {(word, size): cut(coverage(word, size)) for word in WORDS for size in range(30, 61)}
    likeness = {key: np.abs(seen - one).mean() for key, one in typed.items()}
    best = min(likeness, key=likeness.get)
    assert best[0] == answer
    assert likeness[best] < 0.002 < min(value for (word, _), value in likeness.items() if word != answer)


def coverage(word, size):
    """Return ``(224, 224)`` in [0, 1]: how much of each pixel a word covers."""
    picture = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(picture).text((10, 10), word, fill=255, font=ImageFont.load_default(size))
    return np.asarray(picture) / 255


def cut(covered):
    """Move the ink into the upper left corner of a ``(100, 200)`` image."""
    ys, xs = np.nonzero(covered > 0.3)
    moved = np.zeros((100, 200))
    part = covered[ys.min() : ys.min() + 100, xs.min() : xs.min() + 200]
    moved[: part.shape[0], : part.shape[1]] = part
    return moved


@pytest.mark.slow
def test_nothing_touches_the_border():
    for skill in SKILLS:
        for number in range(20):
            _, ink, _ = drawn(skill, number)
            assert ink[1:-1, 1:-1].sum() == ink.sum(), (skill, number)
