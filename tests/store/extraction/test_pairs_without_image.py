"""Pairs without an image are rejected without a set of all ids and without an object per pair."""

import json

import pytest
from PIL import Image

from frevl.data.packed.columns import Coded
from frevl.store import lance_tables
from frevl.store.extraction.extract import extract
from frevl.store.ids.rows_of_ids import RowsOfIds
from frevl.store.pictures import seen_images
from frevl.store.pictures.seen_images import SeenImages
from frevl.store.reader import Store
from frevl.store.sharding import shares


def draw(folder, names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number, 40, 90)).save(folder / name)


@pytest.fixture
def walks(monkeypatch):
    """A store counts as one of many rows; returns how often all of its ids were walked through."""
    walked = []
    every = RowsOfIds.__iter__
    monkeypatch.setattr(lance_tables, "_MOST_IN_MEMORY", 0)
    monkeypatch.setattr(RowsOfIds, "__iter__", lambda self: walked.append(len(self)) or every(self))
    return walked


def test_a_second_extraction_walks_through_no_ids(tmp_path, walks):
    draw(tmp_path / "images", ["a.png", "b.png", "c.png"])
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png", "text": "one"}\n')
    given = {"images": tmp_path / "images", "pairs": tmp_path / "pairs.jsonl", "store": tmp_path / "store"}
    extract(**given, encoder="toy")
    (tmp_path / "images/c.png").unlink()
    report = extract(**given, encoder="toy", prune=True)
    assert (report.images_kept, report.images_pruned) == (2, 1)
    assert walks == []


def test_what_is_nowhere_is_rejected_with_the_nearest_name(tmp_path, walks):
    draw(tmp_path / "images", ["a.png", "b.png"])
    extract(images=tmp_path / "images", store=tmp_path / "store", encoder="toy")
    draw(tmp_path / "more", ["c.png"])
    lines = [{"image": name, "text": "one"} for name in ("a.png", "A.png", "./b.png", "c.png", "A.png", "no.png")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = extract(images=tmp_path / "more", pairs=tmp_path / "pairs.jsonl", store=tmp_path / "store", encoder="toy")
    said = {one.id.rpartition(":")[2]: one.reason for one in report.rejects}
    missing = "field 'image': there is no image '{}' in the folder or the store"
    assert said == {
        "2": missing.format("A.png") + "; the nearest is 'a.png', which differs in capital letters",
        "5": missing.format("A.png"),
        "6": missing.format("no.png"),
    }
    assert len(Store.open(tmp_path / "store").rejects()) == 3


def test_columns_of_codes_stay_codes(tmp_path, monkeypatch):
    draw(tmp_path / "images", ["a.png", "b.png"])
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png", "text": "one"}\n{"image": "no.png", "text": "two"}\n' * 9)
    monkeypatch.setattr("frevl.data.pairs._LARGE", 0)
    made = []
    every = Coded.__iter__
    monkeypatch.setattr(Coded, "__iter__", lambda self: made.append(len(self)) or every(self))
    report = extract(
        images=tmp_path / "images", pairs=tmp_path / "pairs.jsonl", store=tmp_path / "store", encoder="toy"
    )
    assert len(report.rejects) == 9
    assert all(count <= 2 for count in made)


def test_an_extraction_keeps_no_name_of_what_comes_into_the_store(tmp_path, monkeypatch):
    """Only what it refuses; also that counts as there, for pairs as for a later extraction."""
    draw(tmp_path / "images", [f"{number}.png" for number in range(9)])
    (tmp_path / "images/broken.png").write_bytes(b"no picture")
    (tmp_path / "pairs.jsonl").write_text(
        "".join(f'{{"image": "{name}.png", "text": "one"}}\n' for name in ("1", "broken", "none"))
    )
    given = {"images": tmp_path / "images", "pairs": tmp_path / "pairs.jsonl", "store": tmp_path / "store"}
    kept = []
    rows = SeenImages.rows
    monkeypatch.setattr(SeenImages, "rows", lambda self: kept.append(self) or rows(self))
    monkeypatch.setattr(seen_images, "_AT_ONCE", 4)
    for seen_before in (0, 9):
        report = extract(**given, encoder="toy")
        assert {one.id.rpartition("/")[2] for one in report.rejects} == {"broken.png", "pairs.jsonl:3"}
        assert (kept[-1].outside, kept[-1].rows().sum()) == ({"broken.png"}, seen_before)
    draw(tmp_path / "images", ["broken.png"])
    (tmp_path / "images/7.png").unlink()
    report = extract(**given, encoder="toy", prune=True)
    assert (report.images, report.images_kept, report.images_pruned) == (0, 8, 1)  # the content is that of 0.png
    assert (kept[-1].former, kept[-1].outside) == ({"broken.png"}, set())
    assert [one.kind for one in Store.open(tmp_path / "store").rejects()] == ["pair"]


def test_shards_know_what_is_the_share_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "_NAMES_AT_ONCE", 4)
    draw(tmp_path / "images", [f"{number}.png" for number in range(9)])
    (tmp_path / "pairs.jsonl").write_text(
        "".join(f'{{"image": "{name}.png", "text": "one"}}\n' for name in (*range(9), "none"))
    )
    for shard in ("1/3", "2/3", "3/3"):
        report = extract(
            images=tmp_path / "images", pairs=tmp_path / "pairs.jsonl", store=tmp_path / shard[0], encoder="toy",
            shard=shard,
        )  # fmt: skip
        assert 0 < report.images < 9
        assert [one.id.rpartition(":")[2] for one in report.rejects] == ["10"]


def test_pairs_of_texts_alone_leave_out_nothing_if_the_images_have_a_folder(made, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a red square"}\n{"text": "a blue one"}\n')
    both = extract(tmp_path / "s", images=made.images, pairs=[file], encoder=["toy"])
    assert (both.texts, both.notes) == (2, [])
    alone = extract(tmp_path / "t", pairs=[file], encoder=["toy"])
    assert [note.partition(":")[0] for note in alone.notes] == ["No pair has an image"]
