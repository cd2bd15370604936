"""Removing items and freeing their space; a kill at any moment leaves all or nothing."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from frevl.errors import InputError, StoreError, UsageError
from frevl.store.commits import table_writer
from frevl.store.reader import Store
from frevl.store.upkeep.removal import compact, remove
from frevl.store.upkeep.verification import bytes_on_disk, verify
from frevl.store.writer import StoreWriter
from handmade import item, pooled, tower

TEXTS = ["it's", 'a "b" \\ c', "x' OR '1'='1", "null\0byte", "line\nbreak", "ü😀", "%_"]


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "s"
    rng = np.random.default_rng(5)
    with StoreWriter(path) as writer:
        writer.register([tower(dim=512), tower("ear", modality="text")])
        writer.describe("image", [pa.field("width", pa.int64())])
        for part in range(5):
            ids = [f"kitchen/{part}-{n}.png" for n in range(40)]
            widths = pa.array([100 * part + n for n in range(40)])
            writer.append(
                "image", [item(id_) for id_ in ids], {"eye": pooled(*rng.normal(size=(40, 512)))},
                metadata={"width": widths},
            )  # fmt: skip
        writer.append("text", [item(text) for text in TEXTS], {"ear": pooled(*([n, 1, 0] for n in range(7)))})
    return path


def vectors(path, ids=None):
    opened = Store.open(path)
    ids = opened.image_ids if ids is None else ids
    return dict(zip(ids, map(tuple, opened.read_images(ids).tolist()), strict=True))


@pytest.mark.slow
def test_by_ids(store):
    before = vectors(store)
    report = remove(store, ids=["kitchen/0-3.png", "kitchen/4-39.png", "kitchen/0-3.png", "nowhere.png"])
    assert (report.removed, report.left, report.unknown) == (2, 198, ["nowhere.png"])
    after = vectors(store)
    assert before.keys() - after.keys() == {"kitchen/0-3.png", "kitchen/4-39.png"}
    assert after.items() < before.items()
    assert verify(store) == []
    with pytest.raises(StoreError, match=r"1 of 1 image ids are not in the store \(the first is 'kitchen/0-3.png'\)"):
        Store.open(store).read_images(["kitchen/0-3.png"])
    assert remove(store, ids=["kitchen/0-3.png"]).removed == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "csv.parquet"])
def test_by_a_file_of_ids(store, tmp_path, kind):
    ids = [f"kitchen/1-{n}.png" for n in range(40)]
    file = tmp_path / f"ids.{kind}"
    if kind == "csv.parquet":
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"image": ids, "other": list(range(40))}), file)
    else:
        file.write_text(
            {
                "txt": "\n".join(ids) + "\n\n",
                "json": json.dumps(ids),
                "jsonl": "\n".join(json.dumps({"id": id_}) for id_ in ids),
            }[kind]
        )
    assert remove(store, ids=file).removed == 40
    assert not any(id_.startswith("kitchen/1-") for id_ in Store.open(store).image_ids)


def test_by_a_condition(store):
    assert remove(store, where="width >= 400 AND id LIKE '%-3_.png'").removed == 10
    assert remove(store, where="id = 'nothing'").removed == 0
    with pytest.raises(UsageError, match="there is no column 'height'"):
        remove(store, where="height > 3")
    assert len(Store.open(store).image_ids) == 190


@pytest.mark.slow
def test_any_text_can_be_removed_and_no_other(store):
    for n, text in enumerate(TEXTS):
        report = remove(store, ids=[text], of="texts")
        assert (report.removed, report.left) == (1, len(TEXTS) - n - 1)
        assert Store.open(store).texts == TEXTS[n + 1 :]
    assert len(Store.open(store).image_ids) == 200
    assert verify(store) == []


def test_what_cannot_be_meant(store, tmp_path):
    for options in ({}, {"ids": ["a"], "where": "id = 'a'"}):
        with pytest.raises(UsageError, match="Specify what to remove: either a file with --ids, or a condition"):
            remove(store, **options)
    with pytest.raises(UsageError, match="must be 'images' or 'texts', found 'image'"):
        remove(store, ids=["a"], of="image")
    with pytest.raises(InputError, match="none.txt"):
        remove(store, ids=tmp_path / "none.txt")
    for command in (lambda path: remove(path, ids=["a"]), compact):
        with pytest.raises(StoreError, match="expected a store"):
            command(tmp_path / "no store")
    assert not (tmp_path / "no store").exists()


@pytest.mark.slow
def test_compaction_frees_the_room_and_open_readers_go_on(store):
    reader = Store.open(store)
    kept = [id_ for id_ in reader.image_ids if not id_.startswith("kitchen/2")]
    before = vectors(store, kept)
    remove(store, where="id LIKE 'kitchen/2%'")
    size = bytes_on_disk(store)
    report = compact(store)
    assert report.bytes_before == size
    assert report.bytes_after == bytes_on_disk(store)
    rows = 160 * 512 * 2
    assert rows < report.bytes_after < rows * 1.35 < size
    assert vectors(store) == before
    assert verify(store) == []
    # A reader of before continues with the newest version where its own is no longer on disk.
    assert reader.read_images(kept[:3]).tolist() == [list(before[id_]) for id_ in kept[:3]]
    again = compact(store)
    assert again.bytes_after <= report.bytes_after


@pytest.mark.slow
def test_a_store_without_anything_left_works(store):
    remove(store, where="id LIKE '%'")
    compact(store)
    opened = Store.open(store)
    assert opened.image_ids == []
    assert opened.read_images([]).shape == (0, 512)
    assert verify(store) == []
    with StoreWriter(store) as writer:
        writer.append("image", [item("again")], {"eye": pooled(np.ones(512))})
    assert Store.open(store).image_ids == ["again"]


@pytest.mark.slow
def test_the_commands(store, frevl, tmp_path):
    said = frevl("store", "remove", store, "--where", "width < 100", "--json", tmp_path / "r.json")
    assert said.code == 0
    assert said.out.startswith(
        "Removed 40 images; 160 remain. An extraction will embed them again unless their files are"
    )
    assert json.loads((tmp_path / "r.json").read_text())["removed"] == 40
    said = frevl("store", "compact", store, "--json", tmp_path / "c.json")
    assert said.code == 0
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["bytes_after"] < record["bytes_before"]
    assert frevl("store", "remove", store).code == 2
    (tmp_path / "ids.txt").write_text("it's\nnot there\n")
    said = frevl("store", "remove", store, "--ids", tmp_path / "ids.txt", "--of", "texts")
    assert "Removed 1 text; 6 remain. 1 id is not in the store (the first is 'not there')." in said.out


DOOMED = """
import os, signal, sys, threading, time
import lance
from frevl.cli.main import main

fatal, delay = int(sys.argv[1]), float(sys.argv[2])
del sys.argv[1:3]
calls = 0

def kill_soon():
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)

def fatal_call(owner, name):
    original = getattr(owner, name)
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == fatal:
            threading.Thread(target=kill_soon).start()
            if not delay:
                time.sleep(9)
        return original(*arguments, **options)
    setattr(owner, name, call)

fatal_call(lance.LanceDataset, "cleanup_old_versions")
fatal_call(sys.modules["lance.dataset"].MergeInsertBuilder, "execute")
fatal_call(sys.modules["lance.dataset"].DatasetOptimizer, "compact_files")
fatal_call(os, "fsync")
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["remove", "compact"])
def test_killed_inside(store, tmp_path, command):
    before = vectors(store)
    after = {id_: vector for id_, vector in before.items() if not id_.startswith("kitchen/3")}
    arguments = ["--where", "id LIKE 'kitchen/3%'"] if command == "remove" else []
    if command == "compact":
        remove(store, where="id LIKE 'kitchen/3%'")
        before = after
    kills = ended = 0
    for fatal in range(1, 60, 4):
        for delay in (0, 0.003):
            copied = tmp_path / f"s{fatal}-{delay}"
            shutil.copytree(store, copied)
            doomed = [sys.executable, "-c", DOOMED, str(fatal), str(delay), "store", command, str(copied), *arguments]
            done = subprocess.run(doomed, capture_output=True, text=True)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            kills += done.returncode != 0
            ended += done.returncode == 0
            assert vectors(copied) in (before, after)
            assert verify(copied) == []
            remove(copied, where="id LIKE 'kitchen/3%'")
            compact(copied)
            assert vectors(copied) == after
            assert verify(copied) == []
            left = {file.name for file in (copied / "images.lance" / "data").iterdir()}
            assert len(left) == 1  # nothing of what was killed takes room
            shutil.rmtree(copied)
        if ended:
            break
    assert kills >= 6


def test_compaction_leaves_data_alone_that_it_cannot_explain(store):
    stray = store / "images.lance" / "data" / "stray.lance"
    stray.write_bytes(b"rows of somebody")
    compact(store)
    assert stray.exists()


@pytest.mark.slow
def test_a_version_that_is_kept_outlives_compaction_and_tidying(store, monkeypatch):
    from datetime import timedelta

    monkeypatch.setattr(table_writer, "_KEEP_VERSIONS", timedelta())
    monkeypatch.setattr(table_writer, "_SMALL_FRAGMENTS", 2)
    with StoreWriter(store) as writer, writer.keep_version("image"):
        old = writer.store
        rows = old.rows("image", ["kitchen/0-0.png"])
        for n in range(9):
            writer.replace("image", [item("kitchen/0-0.png", str(n))], {"eye": pooled(np.full(512, n + 1.0))})
        assert old.rows("image", ["kitchen/0-0.png"])["content_hash"] == rows["content_hash"]
