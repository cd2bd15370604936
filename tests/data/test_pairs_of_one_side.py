"""Pairs files without any text, or without any image."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frevl.data.pairs import pair_list, read_pairs, split_by_image
from frevl.errors import PairsError

IMAGES = [{"image": f"{n}.png", "target": "ab"[n % 2], "shop": n} for n in range(4)]


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def reasons(pairs):
    return [reject.reason for reject in pairs.rejected]


def test_images_alone(tmp_path):
    pairs = read_pairs(lines(tmp_path / "p.jsonl", IMAGES))
    assert pairs.sides == ("image",)
    assert pairs.images == pairs.units == pairs.clusters == ["0.png", "1.png", "2.png", "3.png"]
    assert pairs.texts == [""] * 4
    assert [pairs.row(i) for i in range(4)] == IMAGES
    assert pairs.select([2]).sides == ("image",)
    assert pairs.notes == (
        "No pair has a text: only images are used, and whatever needs a text is skipped. If another "
        "key has it ('shop'), name it with --columns text=NAME.",
    )


def test_texts_alone(tmp_path):
    pairs = read_pairs(lines(tmp_path / "p.jsonl", [{"text": "a b"}, {"text": "c", "image": None}]))
    assert pairs.sides == ("text",)
    assert pairs.texts == pairs.units == pairs.clusters == ["a b", "c"]
    assert pairs.row(1) == {"text": "c"}
    assert pairs.notes == ("No pair has an image: only texts are used, and whatever needs an image is skipped.",)


def test_both_sides_have_no_note_and_only_takes_one_away(tmp_path):
    pairs = read_pairs(lines(tmp_path / "p.jsonl", [{"image": "a", "text": "b"}]))
    assert (pairs.sides, pairs.units, pairs.notes) == (("image", "text"), ["a"], ())
    assert pairs.only(("text",)).sides == ("text",)
    assert pairs.only(("image", "text")) == pairs


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"image": "a", "text": "b", "target": "x"}, {"image": "c", "target": "y"}, {"image": "d", "target": "y"}],
            ":2, field 'text': expected a text as in {file}:1, found nothing; a file must have a text in every "
            "pair or in none (then only images are classified). Complete these pairs, or move them to a separate "
            "file",
        ),
        (
            [{"image": "a", "target": "x"}, {"image": "c", "target": "y"}, {"image": "d", "text": "e", "target": "y"}],
            ":1, field 'text': expected a text as in {file}:3, found nothing; a file must have",
        ),
        (
            [{"image": "a", "text": "b"}, {"text": "c", "target": "y"}],
            ":2, field 'image': expected an image as in {file}:1, found nothing; a file must have an image in "
            "every pair or in none (then only texts are classified)",
        ),
        ([{"image": "a", "target": "x"}, {"text": "c", "target": "y"}], ":2, field 'image': expected an image as in"),
    ],
)
def test_a_file_that_mixes_both_names_the_first_line(tmp_path, rows, message):
    file = lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(PairsError) as caught:
        read_pairs(file)
    assert str(caught.value).startswith(str(file) + message.format(file=file))


def test_captions_without_text_among_others_are_left_out_as_ever(tmp_path):
    pairs = read_pairs(lines(tmp_path / "p.jsonl", [{"image": "c"}, {"image": "a", "text": "b"}, {"text": "d"}, {}]))
    assert pairs.sides == ("image", "text")
    assert reasons(pairs) == [
        "field 'text': expected a string, found nothing",
        "field 'image': expected a string, found nothing",
        "field 'image': expected a string, found nothing",
    ]
    assert [reject.id[-2:] for reject in pairs.rejected] == [":1", ":3", ":4"]


def test_tables_with_a_target_need_one_side_only(tmp_path):
    (tmp_path / "p.csv").write_text("image,target\na.png,x\nb.png,y\n")
    pq.write_table(pa.table({"text": ["a", "b"], "target": [1, 2]}), tmp_path / "p.parquet")
    frame = pd.DataFrame({"filepath": ["a.png", "b.png"], "label": ["x", "y"]})
    assert read_pairs(tmp_path / "p.csv").sides == ("image",)
    assert read_pairs(tmp_path / "p.parquet").sides == ("text",)
    assert read_pairs(frame, columns={"target": "label"}).targets == ["x", "y"]
    assert read_pairs({"image": ["a", "b"], "target": ["x", "y"]}).sides == ("image",)
    (tmp_path / "ids.csv").write_text("image\na.png\n")
    assert read_pairs(tmp_path / "ids.csv").images == ["a.png"]


def test_without_a_target_a_table_may_have_its_text_under_another_name(tmp_path):
    (tmp_path / "p.csv").write_text("image,words\na.png,x\n")
    with pytest.raises(PairsError, match=r"expected the columns 'image' and 'text'.*--columns text=NAME"):
        read_pairs(tmp_path / "p.csv")


def test_items_of_one_side_are_pairs():
    assert pair_list(["a.png", "b.png"], ("image",)) == [("a.png", ""), ("b.png", "")]
    assert pair_list(["a b", "c"], ("text",)) == [("", "a b"), ("", "c")]
    assert pair_list(["a.png", "b"]) == [("a.png", "b")]
    assert pair_list([{"image": "a.png"}]) == [("a.png", "")]


def test_texts_alone_are_split_by_text():
    pairs = read_pairs([{"text": text, "target": "x"} for text in ("a", "b", "a", "c")])
    kept, held = split_by_image(pairs, 0.34)
    assert not set(kept.texts) & set(held.texts)
    with pytest.raises(PairsError, match="expected at least two different texts to set some aside"):
        split_by_image(pairs.select([0, 2]), 0.5)


def test_images_alone_in_a_list_are_looked_at_like_any_other():
    assert pair_list(["a.png", "b.png"], ("image",)) == [("a.png", ""), ("b.png", "")]
    for wrong, message in ((["a.png", " "], "only blanks"), (["a.png", "\ud800"], "surrogate")):
        with pytest.raises(PairsError, match=message):
            pair_list(wrong, ("image",))


def test_a_table_without_a_line_of_names_and_a_folder_are_told_what_to_do(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("red/0.png,red\nred/1.JPG,red\n")
    with pytest.raises(PairsError, match="; or, if the first line is an item, add one with the names of the columns"):
        read_pairs(table)
    table.write_text("picture,label\nred/0.png,red\n")
    with pytest.raises(PairsError) as caught:
        read_pairs(table)
    assert "first line is an item" not in str(caught.value)
    (tmp_path / "dogs").mkdir()
    with pytest.raises(PairsError, match="found 'dogs', a folder without any; list its images in a file"):
        read_pairs(tmp_path / "dogs")
