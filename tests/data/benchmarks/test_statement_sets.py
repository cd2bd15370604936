"""Readers of entailment and reasoning sets, on small files in the official formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import images, put, simple

from frevl.data.benchmarks.load import load_benchmark
from frevl.errors import InputError

# ----------------------------------------------------------------------------------- entailment


def test_snli_ve(tmp_path: Path) -> None:
    lines = [
        {
            "Flickr30K_ID": "11",
            "sentence1": "x",
            "sentence2": "A dog.",
            "gold_label": "neutral",
            "pairID": "11.jpg#0r1n",
        },
        {"Flikr30kID": "22.jpg", "sentence2": "A cat.", "gold_label": "-", "pairID": "22.jpg#0r1e"},
        {"Flickr30kID": "22.jpg", "sentence2": "A cat.", "gold_label": "entailment", "pairID": "22.jpg#0r1e"},
    ]
    put(tmp_path, "snli_ve_dev.jsonl", lines)
    images(tmp_path, "flickr30k-images/11.jpg", "flickr30k-images/22.jpg")
    found = load_benchmark("snli-ve", tmp_path, "val")
    assert simple(found) == [
        ("flickr30k-images/11.jpg", "A dog.", "neutral"),
        ("flickr30k-images/22.jpg", "A cat.", "entailment"),
    ]
    assert found.rows[0]["pair_id"] == "11.jpg#0r1n"
    without = load_benchmark("snli-ve", tmp_path, "dev", find_images=False)
    assert [row["image"] for row in without.rows] == ["11.jpg", "22.jpg"]
    assert found.left_out == [("22.jpg#0r1e", "people did not agree on a label")]
    put(tmp_path, "snli_ve_dev.jsonl", [{**lines[0], "gold_label": "maybe"}])
    with pytest.raises(InputError, match=r"snli_ve_dev.jsonl:1: expected one of the labels entailment, .*'maybe'"):
        load_benchmark("snli-ve", tmp_path, "dev")


def test_e_snli_ve(tmp_path: Path) -> None:
    put(
        tmp_path,
        "esnlive_dev.csv",
        ",pairID,Flickr30kID,hypothesis,gold_label,explanation\n"
        '0,11.jpg#0r1c,11.jpg,"A dog, running",contradiction,"Dogs, they ""run"""\n',
    )
    images(tmp_path, "11.jpg")
    found = load_benchmark("e-snli-ve", tmp_path, "dev")
    assert simple(found) == [("11.jpg", "A dog, running", "contradiction")]
    assert found.rows[0]["explanation"] == 'Dogs, they "run"'
    put(tmp_path, "esnlive_dev.csv", "pairID,image\n1,2\n")
    with pytest.raises(
        InputError, match=r"line 1: expected the columns pairID, Flickr30kID, .* found \['pairID', 'image'\]"
    ):
        load_benchmark("e-snli-ve", tmp_path, "dev")
    put(tmp_path, "esnlive_dev.csv", 'pairID,Flickr30kID,hypothesis,gold_label\n1,11.jpg,"A dog')
    with pytest.raises(InputError, match="line 2: malformed CSV"):
        load_benchmark("e-snli-ve", tmp_path, "dev")
    put(tmp_path, "esnlive_dev.csv", "pairID,Flickr30kID,hypothesis,gold_label\n1,11.jpg,A dog\n")
    with pytest.raises(InputError, match=r"esnlive_dev\.csv:2: expected 4 columns, found 3"):
        load_benchmark("e-snli-ve", tmp_path, "dev")


def test_plain_entailment(tmp_path: Path) -> None:
    put(tmp_path, "dev.jsonl", [{"image": "11.jpg", "hypothesis": "A dog.", "label": "neutral"}])
    images(tmp_path, "images/11.jpg")
    assert simple(load_benchmark("snli-ve", tmp_path, "dev")) == [("images/11.jpg", "A dog.", "neutral")]


# ------------------------------------------------------------------------------------ reasoning


def thing(kind: str, size: int, color: str, x: int) -> dict[str, Any]:
    return {"type": kind, "size": size, "color": color, "x_loc": x, "y_loc": 80}


def test_nlvr(tmp_path: Path) -> None:
    tower = [[thing("square", 20, "Yellow", 40)], [thing("square", 20, "Black", 40)] * 2, []]
    loose = [
        [thing("circle", 10, "#0099ff", 3)],
        [thing("square", 20, "Black", 40)],
        [thing("square", 20, "Black", 40)],
    ]
    lines = [
        {
            "sentence": "There is a tower with two blocks at the top.",
            "label": "true",
            "identifier": "1572-0",
            "directory": "2",
            "evals": {"r1": "true"},
            "structured_rep": tower,
        },
        {"sentence": "A blue item.", "label": "False", "identifier": "9-3", "directory": "0", "structured_rep": loose},
    ]
    put(tmp_path, "dev/dev.json", "\n".join(json.dumps(line) for line in lines))
    images(tmp_path, *[f"dev/images/2/dev-1572-0-{k}.png" for k in range(6)])
    images(tmp_path, *[f"dev/images/0/dev-9-3-{k}.png" for k in range(5)])
    found = load_benchmark("nlvr", tmp_path, "dev")
    assert found.rows[0] == {
        "image": "dev/images/2/dev-1572-0-0.png",
        "text": "There is a tower with two blocks at the top.",
        "target": "true",
        "identifier": "1572-0",
        "cluster": "1572",
        "asks_count": True,
        "asks_colour": False,
        "asks_position": True,
        "scene": "towers",
        "objects": 3,
        "colours": 2,
    }
    assert [row["image"][-5] for row in found.rows] == list("01234501234")
    last = found.rows[-1]
    assert (last["target"], last["scene"], last["objects"], last["cluster"]) == ("false", "scattered", 3, "9")
    assert (last["asks_count"], last["asks_colour"], last["asks_position"]) == (False, True, False)
    assert found.left_out == [("images/0/dev-9-3-5.png", "the image is missing")]
    assert len(found.notes) == 2
    assert found.notes[1].startswith("1 image(s) missing below")
    assert found.notes[1].endswith("1 row(s) left out: images/0/dev-9-3-5.png.")


def test_nlvr_scene_of_squares_is_scattered_if_they_do_not_stand_in_line(tmp_path: Path) -> None:
    squares = [thing("square", 20, "Black", 40), thing("square", 20, "Black", 41)]
    line = {"sentence": "x", "label": "true", "identifier": "1-0", "structured_rep": [squares, [], []]}
    put(tmp_path, "test.json", json.dumps(line))
    found = load_benchmark("nlvr", tmp_path, "test", find_images=False)
    assert found.rows[5]["image"] == "test-1-0-5.png"
    assert found.rows[0]["scene"] == "scattered"
    assert found.notes == ()


def test_sugarcrepe_keeps_choices_together(tmp_path: Path) -> None:
    example = {"filename": "01.jpg", "caption": "A dog on a mat.", "negative_caption": "A mat on a dog."}
    for part in ("replace_obj", "replace_att", "replace_rel", "swap_att", "add_obj", "add_att"):
        put(tmp_path, f"data/{part}.json", {"0": {**example, "filename": "02.jpg"}})
    put(tmp_path, "data/swap_att.json", {"0": example, "1": {**example, "filename": "03.jpg"}})
    images(tmp_path, "val2017/01.jpg", "val2017/02.jpg")
    found = load_benchmark("sugarcrepe", tmp_path, "test")
    swapped = [row for row in found.rows if row["part"] == "swap_att"]
    assert swapped == [
        {
            "image": "val2017/01.jpg",
            "text": text,
            "target": target,
            "group": "swap_att/0",
            "caption": caption,
            "picture": 0,
            "part": "swap_att",
        }
        for caption, (text, target) in enumerate([("A dog on a mat.", "true"), ("A mat on a dog.", "false")])
    ]
    assert len(found.rows) == 2 * 6
    assert found.left_out == [
        ("swap_obj.json", "this part of SugarCrepe is missing"),
        ("03.jpg", "the image is missing"),
    ]


def test_winoground_leaves_out_whole_groups(tmp_path: Path) -> None:
    def example(number: int) -> dict[str, Any]:
        names = {f"image_{i}": f"ex_{number}_img_{i}" for i in range(2)}
        return {"id": number, **names, "caption_0": "a b", "caption_1": "b a", "collapsed_tag": "Object", "tag": "x"}

    put(tmp_path, "examples.jsonl", [example(0), example(1), example(2)])
    images(tmp_path, *[f"images/ex_{n}_img_{i}.png" for n, i in ((0, 0), (0, 1), (1, 1), (2, 0), (2, 1))])
    found = load_benchmark("winoground", tmp_path, "test")
    assert [
        (r["group"], r["caption"], r["picture"], r["target"], r["image"][-5], r["text"]) for r in found.rows[:4]
    ] == [
        ("0", 0, 0, "true", "0", "a b"),
        ("0", 0, 1, "false", "1", "a b"),
        ("0", 1, 0, "false", "0", "b a"),
        ("0", 1, 1, "true", "1", "b a"),
    ]
    assert [row["group"] for row in found.rows] == ["0"] * 4 + ["2"] * 4
    assert found.rows[0]["tag"] == "Object"
    assert found.left_out == [("ex_1_img_0", "the image is missing")]
    assert "1 image(s) missing" in found.notes[1]
    assert "4 row(s) left out" in found.notes[1]
