"""Lessons: what a made statement means, what is drawn, and what is written."""

import json
import random
import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from PIL import Image

from frevl.errors import InputError, UsageError
from research.synthetic.__main__ import main
from research.synthetic.scenes import Shape, draw, draw_block_towers, scattered
from research.synthetic.statements import about_scattered, about_towers
from research.synthetic.writing import make_lessons

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7} | {str(n): n for n in range(8)}


def block(colour, floor):
    return Shape("square", colour, 40, 80 - 21 * floor, 20)


BLUE_ON_BLACK = (block("black", 0), block("blue", 1))
YELLOW = (block("yellow", 0),)


def test_a_shape_knows_the_sides_that_it_touches():
    assert Shape("circle", "blue", 1, 80, 20).touched == {"left", "bottom"}
    assert Shape("circle", "blue", 1, 80, 20).in_corner
    assert Shape("circle", "blue", 69, 50, 30).touched == {"right"}
    assert not Shape("circle", "blue", 69, 50, 30).in_corner
    assert Shape("circle", "blue", 2, 2, 10).touched == set()


def test_a_scene_is_drawn_where_its_shapes_stand():
    picture = draw((BLUE_ON_BLACK, YELLOW, (Shape("triangle", "black", 10, 20, 30),)))
    assert picture.size == (400, 100)
    assert picture.getpixel((50, 90)) == (0, 0, 0)
    assert picture.getpixel((50, 69)) == (0, 153, 255)
    assert picture.getpixel((50, 79)) == (211, 211, 211)  # the pixel between two blocks
    assert picture.getpixel((125, 50)) == (128, 128, 128)
    assert picture.getpixel((200, 90)) == (255, 255, 0)
    assert picture.getpixel((325, 48)) == (0, 0, 0)
    assert picture.getpixel((311, 22)) == (211, 211, 211)  # next to the tip of the triangle


def test_made_scenes_are_possible():
    chance = random.Random(0)
    for _ in range(50):
        for panel in scattered(chance):
            assert 1 <= len(panel) <= 8
            assert [s.y for s in panel] == sorted((s.y for s in panel), reverse=True)
            for s in panel:
                assert min(s.x, s.y) >= 1
                assert max(s.x, s.y) + s.size <= 100
            for i, s in enumerate(panel):
                for o in panel[:i]:
                    assert s.x + s.size <= o.x or o.x + o.size <= s.x or s.y + s.size <= o.y or o.y + o.size <= s.y
        assert all(1 <= len(panel) <= 4 and panel[0].y == 80 for panel in draw_block_towers(chance))


def meaning(text, scene):
    """What some sentences mean, read from their words alone; None for all others."""
    text = text.lower()
    shapes = [s for panel in scene for s in panel]
    if m := re.fullmatch(r"there (?:is|are) exactly (\w+) (black|blue|yellow) (square|triangle|circle)s?", text):
        return sum(s.colour == m[2] and s.form == m[3] for s in shapes) == NUMBERS[m[1]]
    if m := re.fullmatch(r"there (?:is|are) more than (\w+) (square|triangle|circle)s?", text):
        return sum(s.form == m[2] for s in shapes) > NUMBERS[m[1]]
    if m := re.fullmatch(r"there is a (black|blue|yellow) (?:item|object|shape) not touching the (?:edge|wall)", text):
        return any(s.colour == m[1] and min(s.x, s.y) > 1 and max(s.x, s.y) + s.size < 99 for s in shapes)
    if m := re.fullmatch(r"there is a \w+ (?:with|that has) a (\w+) (?:block|item) (?:over|on) a (\w+) \w+", text):
        return any(a.colour == m[2] and b.colour == m[1] for p in scene for a, b in pairwise(p))
    if m := re.fullmatch(r"there is a \w+ (?:with|that has) a (\w+) (?:block|item) (?:below|under) a (\w+) \w+", text):
        return any(a.colour == m[1] and b.colour == m[2] for p in scene for a, b in pairwise(p))
    if m := re.fullmatch(r"there are exactly (?:two|2) towers with a (\w+) block at the (top|base)", text):
        return sum(p[-1 if m[2] == "top" else 0].colour == m[1] for p in scene) == 2
    if m := re.fullmatch(r"there is no \w+ with only (black|blue|yellow) (?:items|objects|shapes|blocks)", text):
        return all({s.colour for s in p} != {m[1]} for p in scene)
    if re.fullmatch(r"there is a \w+ with items of the same color", text):
        return any(len({s.colour for s in p}) == 1 for p in scene)
    return None


@pytest.mark.parametrize(
    ("tell", "make", "least"), [(about_towers, draw_block_towers, 60), (about_scattered, scattered, 40)]
)
def test_statements_mean_what_their_words_say(tell, make, least):
    chance = random.Random(1)
    scenes = [make(chance) for _ in range(23)]
    read = 0
    for _ in range(5000):
        statement = tell(chance)
        for scene in scenes:
            expected = meaning(statement.text, scene)
            if expected is None:
                break
            assert statement.holds(scene) == expected, (statement.text, scene)
        else:
            read += 1
    assert read >= least


def test_lessons_are_half_true_whatever_is_said(tmp_path):
    made = make_lessons(tmp_path / "a", pictures=101, statements=41, seed=3)
    rows = [json.loads(line) for line in made.pairs_file.read_text().splitlines()]
    assert made.pairs == len(rows)
    assert made.statements == 41
    by_text = defaultdict(Counter)
    for row in rows:
        by_text[row["text"]][row["target"]] += 1
    assert all(count["true"] == count["false"] >= 4 for count in by_text.values())
    assert len(list((tmp_path / "a" / "pictures").iterdir())) == made.pictures == 101
    assert Counter(name.name.split("-")[0] for name in (tmp_path / "a" / "pictures").iterdir()) == {
        "tower": 51,
        "scatter": 50,
    }
    with Image.open(tmp_path / "a" / rows[0]["image"]) as picture:
        assert picture.size == (400, 100)


def test_the_same_seed_gives_the_same_lessons_and_another_does_not(tmp_path):
    files = [
        make_lessons(tmp_path / name, pictures=100, statements=8, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = (made.pairs_file.read_text() for made in files)
    assert first == again != other
    picture = "pictures/scatter-7.png"
    first, again, other = ((tmp_path / name / picture).read_bytes() for name in "abc")
    assert first == again != other


def test_wrong_numbers_and_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="Lessons need at least 100 pictures, but 99 were asked for"):
        make_lessons(tmp_path, pictures=99)
    with pytest.raises(UsageError, match="at least 2 statements, but 1 "):
        make_lessons(tmp_path, statements=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the pictures cannot be written"):
        make_lessons(tmp_path / "file", pictures=100, statements=2)


def test_the_command_writes_what_extract_reads(tmp_path, monkeypatch, capsys):
    arguments = ["--out", str(tmp_path / "l"), "--pictures", "100", "--statements", "6"]
    monkeypatch.setattr("sys.argv", ["research.synthetic", *arguments])
    main()
    written = len((tmp_path / "l" / "lessons.jsonl").read_text().splitlines())
    assert f"Wrote {written:,} pairs of 6 statements and 100 pictures" in capsys.readouterr().out
