"""What all readers of published sets share: messages, notes, where images lie, and the pairs file that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import images, karpathy_image, put, simple

from frevl.data.benchmarks.load import BENCHMARKS, load_benchmark, write_rows
from frevl.data.pairs import read_pairs
from frevl.errors import InputError, PairsError, UsageError

# ------------------------------------------------------------------------------------ bad input


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no benchmark 'flickr8'\. Did you mean 'flickr8k'"):
        load_benchmark("flickr8", tmp_path)
    with pytest.raises(UsageError, match=r"'gqa' has no split 'testdevs'\. Did you mean 'testdev'"):
        load_benchmark("gqa", tmp_path, "testdevs")


def test_missing_folder_and_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_benchmark("gqa", tmp_path / "nowhere", "val")
    for name, source in BENCHMARKS.items():
        split = next(iter(source.splits))
        with pytest.raises(InputError) as raised:
            load_benchmark(name, tmp_path, split)
        assert f"'{name}' needs " in str(raised.value)
        assert source.where in str(raised.value)
        assert "{" not in str(raised.value)


def test_no_image_at_all_is_an_error_unless_nobody_looks(tmp_path: Path) -> None:
    put(tmp_path, "dataset_flickr8k.json", {"images": [karpathy_image("test", "1.jpg", "A dog .")]})
    with pytest.raises(
        InputError, match=r"none of the 1 image\(s\) of 'flickr8k' is below .* for example '1.jpg'; get"
    ):
        load_benchmark("flickr8k", tmp_path, "test")
    found = load_benchmark("flickr8k", tmp_path, "test", find_images=False)
    assert simple(found) == [("1.jpg", "A dog .", None)]


def test_count_is_a_note_or_on_wish_an_error(tmp_path: Path) -> None:
    put(tmp_path, "dataset_flickr8k.json", {"images": [karpathy_image("test", "1.jpg", "A dog .")]})
    images(tmp_path, "1.jpg")
    expected = "dataset_flickr8k.json: the official 'flickr8k' has 5,000 rows in 'test', found 1."
    assert load_benchmark("flickr8k", tmp_path, "test").notes == (expected,)
    with pytest.raises(InputError, match=r"has 5,000 rows in 'test', found 1\. Fetch the files again from"):
        load_benchmark("flickr8k", tmp_path, "test", check=True)


def test_a_full_set_has_no_notes(tmp_path: Path) -> None:
    lines = [{"id": n, "image_0": "a", "image_1": "b", "caption_0": "x", "caption_1": "y"} for n in range(400)]
    put(tmp_path, "examples.jsonl", lines)
    images(tmp_path, "a.png", "b.png")
    assert load_benchmark("winoground", tmp_path, "test", check=True).notes == ()


def test_truncated_files_name_the_place(tmp_path: Path) -> None:
    whole = json.dumps({"images": [karpathy_image("test", "1.jpg", "A dog .")]}, indent=1)
    put(tmp_path, "dataset_flickr8k.json", whole[:-20])
    with pytest.raises(InputError, match=r"dataset_flickr8k.json, line \d+, column \d+: the JSON breaks off"):
        load_benchmark("flickr8k", tmp_path, "test")
    put(tmp_path, "snli_ve_dev.jsonl", '{"Flickr30K_ID": "1", "sentence2": "A", "gold_label": "neutral"}\n{"Flickr30')
    with pytest.raises(PairsError, match=r"snli_ve_dev.jsonl:2: expected one JSON object, found '\{\"Flickr30'"):
        load_benchmark("snli-ve", tmp_path, "dev")
    put(tmp_path, "snli_ve_dev.jsonl", "[1]\n")
    with pytest.raises(PairsError, match=r"snli_ve_dev.jsonl:1: expected one JSON object, found list"):
        load_benchmark("snli-ve", tmp_path, "dev")
    (tmp_path / "snli_ve_dev.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        load_benchmark("snli-ve", tmp_path, "dev")


def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path: Path) -> None:
    put(tmp_path, "dataset_flickr8k.json", "\ufeff" + json.dumps({"images": [karpathy_image("test", "1.jpg", "A")]}))
    put(tmp_path, "snli_ve_dev.jsonl", '\ufeff{"Flickr30K_ID": "1", "sentence2": "A", "gold_label": "neutral"}')
    put(tmp_path, "esnlive_dev.csv", "\ufeffpairID,Flickr30kID,hypothesis,gold_label\n1,1.jpg,A,neutral\n")
    images(tmp_path, "1.jpg")
    for name, split in (("flickr8k", "test"), ("snli-ve", "dev"), ("e-snli-ve", "dev")):
        assert [row["text"] for row in load_benchmark(name, tmp_path, split).rows] == ["A"]


def test_other_versions_name_the_key_that_is_not_there(tmp_path: Path) -> None:
    put(tmp_path, "dataset_flickr8k.json", {"annotations": [], "info": 1})
    with pytest.raises(
        InputError, match="expected the key 'images', found 'annotations', 'info'; is this another version"
    ):
        load_benchmark("flickr8k", tmp_path, "test")
    put(tmp_path, "dataset_flickr8k.json", {"images": {"a": 1}})
    with pytest.raises(InputError, match="expected 'images' to be list, found dict"):
        load_benchmark("flickr8k", tmp_path, "test")
    put(tmp_path, "dataset_flickr8k.json", {"images": [{"split": "test", "file_name": "x"}]})
    with pytest.raises(InputError, match=r"images\[0\]: expected the key 'filename', found 'split', 'file_name'"):
        load_benchmark("flickr8k", tmp_path, "test")
    put(tmp_path, "dataset_flickr8k.json", {"images": [karpathy_image("train", "1.jpg", "A dog .")]})
    with pytest.raises(InputError, match="the split 'test' has no rows"):
        load_benchmark("flickr8k", tmp_path, "test")


# ------------------------------------------------------------------------------ images and files


def test_images_are_found_wherever_they_lie(tmp_path: Path) -> None:
    names = ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    put(tmp_path, "dataset_flickr8k.json", {"images": [karpathy_image("test", name, "A dog .") for name in names]})
    images(tmp_path, "a/b/1.jpg", "z/1.jpg", "2.png", "c/3.PNG", "c/3.jpg", ".hidden/4.jpg")
    outside = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    images(outside, "5.jpg")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    found = load_benchmark("flickr8k", tmp_path, "test")
    assert [row["image"] for row in found.rows] == ["z/1.jpg", "2.png", "c/3.jpg", "linked/5.jpg"]
    assert found.left_out == [("4.jpg", "the image is missing")]


def test_of_two_images_with_one_name_the_official_path_wins(tmp_path: Path) -> None:
    put(tmp_path, "dataset_coco.json", {"images": [karpathy_image("val", "7.jpg", "A dog.", folder="val2014")]})
    images(tmp_path, "7.jpg", "rival2014/7.jpg", "coco/images/val2014/7.jpg")
    assert simple(load_benchmark("coco", tmp_path, "val"))[0][0] == "coco/images/val2014/7.jpg"


def test_rows_become_a_pairs_file_all_or_nothing(tmp_path: Path) -> None:
    rows = [
        {"image": "ä.jpg", "text": "Ein Hund 犬", "target": {"a": 0.3}, "question_id": 3},
        {"image": "b.jpg", "text": "x", "target": ["a", "b"]},
        {"image": "b.jpg", "text": "y"},
    ]
    path = tmp_path / "out.jsonl"
    write_rows(rows, path)
    assert "犬" in path.read_text(encoding="utf-8")
    pairs = read_pairs(path)
    assert [pairs.row(i) for i in range(3)] == rows

    def broken() -> Any:
        yield rows[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"out.jsonl: the pairs cannot be written \(No space left on device\)"):
        write_rows(broken(), path)
    assert len(read_pairs(path)) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(InputError, match="cannot be written"):
        write_rows(rows, tmp_path / "nowhere" / "out.jsonl")
