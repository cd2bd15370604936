"""Captions next to the images of a folder, as img2dataset writes them, and folders that are classes."""

import json
import os

import pytest

from frevl.errors import UsageError
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.store.sharding.merging import merge

NO_CAPTIONS = "No image has a caption or a label next to it, so the name of its folder is its class: "


@pytest.fixture
def folder(tmp_path, draw):
    """As img2dataset writes it with ``output_format="files"``, and some names that only resemble each other."""
    root = tmp_path / "images"
    for shard in ("00000", "00001"):
        draw(root / shard, [int(shard) * 10 + 1, int(shard) * 10 + 2])
    draw(root, [5])
    for id_, text in (("00000/1.txt", "one\n"), ("00000/2.txt", " two "), ("00001/11.txt", "one")):
        (root / id_).write_text(text)
    (root / "00000/1.json").write_text(json.dumps({"caption": "another", "width": 24, "exif": None}))
    (root / "00000/1-2.txt").write_text("of no image")
    (root / "00000_stats.json").write_text("{}")
    (root / "00001/12.ocr.txt").write_text("no caption")
    (root / "README.md").write_text("about")
    return root


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_images_with_captions_become_pairs(tmp_path, folder):
    report = extract(tmp_path / "s", images=folder, encoder="toy", write_pairs=tmp_path / "p.jsonl")
    assert lines_of(tmp_path / "p.jsonl") == [
        {"image": "00000/1.png", "text": "one", "width": 24},
        {"image": "00000/2.png", "text": "two"},
        {"image": "00001/11.png", "text": "one"},
    ]
    store = Store.open(tmp_path / "s")
    assert sorted(store.texts) == ["one", "two"]
    assert (report.images, report.texts) == (5, 2)
    assert {reject.id for reject in report.rejects} == {"README.md", "00001/12.ocr.txt"}
    assert f"Wrote 3 pairs to {tmp_path / 'p.jsonl'}. Images without a caption: 2." in report.sentence()


def test_an_earlier_extraction_without_captions_leaves_nothing_behind(tmp_path, folder):
    (folder / "00000/2.txt").write_bytes(b"\xff\xfe\xfa")
    extract(tmp_path / "s", images=folder, encoder="toy")
    report = extract(tmp_path / "s", images=folder, encoder="toy", write_pairs=tmp_path / "p.jsonl")
    store = Store.open(tmp_path / "s")
    assert {(reject.kind, reject.id) for reject in store.rejects()} == {
        ("pair", "00000/2.txt"), ("image", "README.md"), ("image", "00001/12.ocr.txt")
    }  # fmt: skip
    assert [line["image"] for line in lines_of(tmp_path / "p.jsonl")] == ["00000/1.png", "00001/11.png"]
    assert (report.images, report.images_kept) == (0, 5)
    (folder / "00000/2.txt").write_text("two")
    extract(tmp_path / "s", images=folder, encoder="toy", write_pairs=tmp_path / "p.jsonl")
    assert {reject.kind for reject in Store.open(tmp_path / "s").rejects()} == {"image"}
    assert len(lines_of(tmp_path / "p.jsonl")) == 3


def test_what_is_no_image_or_left_out_has_no_pair(tmp_path, folder):
    (folder / "00000/2.png").write_bytes(b"no picture")
    (folder / "00001/12.cls").write_text("7")
    os.mkfifo(folder / "00001/11.json")
    (folder / "5.txt").write_text("x" * (5 << 20))
    report = extract(
        tmp_path / "s", images=folder, encoder="toy", include=["*.png"], exclude=["00000/1.*"],
        write_pairs=tmp_path / "p.jsonl",
    )  # fmt: skip
    assert lines_of(tmp_path / "p.jsonl") == [
        {"image": "00001/11.png", "text": "one"}, {"image": "00001/12.png", "target": "7"}
    ]  # fmt: skip
    reasons = {reject.id: reject.reason for reject in report.rejects if reject.kind == "pair"}
    assert reasons == {
        "5.txt": "expected at most 4,194,304 bytes, found 5,242,880",
        "00001/11.json": "it is not a regular file but a pipe, a device or the like",
    }


def test_folders_are_classes_if_no_image_has_a_caption(tmp_path, draw):
    for name in ("cat", "dog", "wild/cat"):
        draw(tmp_path / "images" / name, [len(name), len(name) + 20])
    report = extract(tmp_path / "s", images=tmp_path / "images", encoder="toy", write_pairs=tmp_path / "p.jsonl")
    assert [(line["image"].rpartition("/")[0], line["target"]) for line in lines_of(tmp_path / "p.jsonl")] == [
        ("cat", "cat"), ("cat", "cat"), ("dog", "dog"), ("dog", "dog"), ("wild/cat", "cat"), ("wild/cat", "cat")
    ]  # fmt: skip
    assert NO_CAPTIONS + "2 classes, such as 'cat', 'dog'." in report.sentence()
    draw(tmp_path / "images", [99])
    report = extract(tmp_path / "s", images=tmp_path / "images", encoder="toy", write_pairs=tmp_path / "p.jsonl")
    assert lines_of(tmp_path / "p.jsonl") == []
    assert f"No pairs in {tmp_path / 'p.jsonl'}: no image has a caption" in report.sentence()


@pytest.mark.slow
@pytest.mark.parametrize("captions", [True, False])
def test_shards_write_the_same_pairs(tmp_path, folder, captions):
    if not captions:
        for file in folder.rglob("*"):
            if file.suffix in (".txt", ".json") or file.name == "5.png":
                file.unlink()
    given = {"images": folder, "encoder": "toy"}
    extract(tmp_path / "whole", **given, write_pairs=tmp_path / "whole.jsonl")
    lines = []
    for number in (1, 2, 3):
        out = tmp_path / f"{number}.jsonl"
        extract(tmp_path / str(number), **given, shard=f"{number}/3", write_pairs=out)
        lines += lines_of(out)
    merge([tmp_path / str(number) for number in (1, 2, 3)], into=tmp_path / "merged")
    assert sorted(lines, key=str) == sorted(lines_of(tmp_path / "whole.jsonl"), key=str)
    assert len(lines) == (3 if captions else 4)
    whole, merged = Store.open(tmp_path / "whole"), Store.open(tmp_path / "merged")
    assert (sorted(merged.texts), sorted(merged.image_ids)) == (sorted(whole.texts), sorted(whole.image_ids))
    assert set(merged.rejects()) == set(whole.rejects())


def test_captions_of_several_lines_are_counted(tmp_path, folder):
    (folder / "00000/2.txt").write_text("first\r\nsecond\n")
    report = extract(tmp_path / "s", images=folder, encoder="toy", write_pairs=tmp_path / "p.jsonl")
    assert lines_of(tmp_path / "p.jsonl")[1]["text"] == "first\r\nsecond"
    assert "Captions of several lines, each of which is one text: 1; where every line is" in report.sentence()


def test_without_images_there_is_nothing_to_write(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"image": "a.png", "text": "a"}\n')
    with pytest.raises(UsageError, match="--write-pairs writes the captions next to images; give a folder or tars"):
        extract(tmp_path / "s", pairs=tmp_path / "p.jsonl", encoder="toy", write_pairs=tmp_path / "q.jsonl")
