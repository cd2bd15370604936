"""Changes in a folder: files moved, copied, deleted, or changed unnoticed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from frevl.encoders.toy import ToyImageTower
from frevl.errors import Reject, UsageError
from frevl.store.commits.table_writer import TableWriter
from frevl.store.extraction.extract import extract
from frevl.store.extraction.items import StoredItems
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify
from frevl.store.writer import Item, StoreWriter


@pytest.fixture
def images(tmp_path, draw):
    return draw(tmp_path / "images", range(8))


@pytest.fixture
def store(tmp_path, images):
    extract(tmp_path / "s", images=images, encoder=["toy"])
    return tmp_path / "s"


@pytest.fixture
def embedded(monkeypatch):
    """How many images the image towers are given, the canaries left out."""
    counted = []
    original = ToyImageTower.embed

    def embed(self, prepared):
        counted.append(len(prepared))
        return original(self, prepared)

    monkeypatch.setattr(ToyImageTower, "embed", embed)
    return lambda: sum(counted[1:])


def vectors(path, encoders=("toy",)):
    store = Store.open(path)
    ids = store.image_ids
    return dict(zip(ids, map(tuple, store.read_images(ids, encoders=list(encoders)).tolist()), strict=True))


def test_what_moved_is_not_embedded_again(images, store, embedded):
    before = vectors(store)
    (images / "deep" / "er").mkdir(parents=True)
    (images / "3.png").rename(images / "deep" / "er" / "3.png")
    (images / "5.png").rename(images / "a name ünd 😀.png")
    report = extract(store, images=images, encoder=["toy"])
    assert (report.images, report.images_moved, report.images_kept, report.images_gone) == (0, 2, 6, 0)
    assert embedded() == 0
    expected = {**before, "deep/er/3.png": before["3.png"], "a name ünd 😀.png": before["5.png"]}
    del expected["3.png"], expected["5.png"]
    assert vectors(store) == expected
    assert verify(store, images=images) == []
    assert "Moved: 2 images; copies of others: 0 images. Their embeddings were taken over." in report.sentence()
    assert extract(store, images=images, encoder=["toy"]).images_kept == 8


@pytest.mark.parametrize("clock", [1, 4_000_000_000])
def test_a_change_is_seen_whatever_the_clock_of_who_made_it(images, store, clock):
    before = vectors(store)
    (images / "3.png").write_bytes((images / "4.png").read_bytes())
    os.utime(images / "3.png", (clock, clock))
    assert extract(store, images=images, encoder=["toy"]).images_copied == 1
    assert vectors(store) == {**before, "3.png": before["4.png"]}


def test_a_cycle_of_renames(images, store, embedded):
    before = vectors(store)
    for number in range(8):
        (images / f"{number}.png").rename(images / f"{number}.old")
    for number in range(8):
        (images / f"{number}.old").rename(images / f"{(number + 3) % 8}.png")
    for number in range(8):  # a copy keeps times, and all these images may have one size
        os.utime(images / f"{number}.png", ns=(number * 10**9, number * 10**9))
    report = extract(store, images=images, encoder=["toy"], commit_rows=3)
    assert embedded() == report.images == 0
    assert report.images_copied == 8
    assert vectors(store) == {f"{(number + 3) % 8}.png": before[f"{number}.png"] for number in range(8)}
    assert verify(store, images=images) == []


def test_a_copy_takes_the_embedding_over_and_the_original_stays(images, store, embedded):
    before = vectors(store)
    shutil.copy(images / "1.png", images / "copy.png")
    (images / "2.png").rename(images / "moved.png")
    shutil.copy(images / "moved.png", images / "moved too.png")
    report = extract(store, images=images, encoder=["toy"], commit_rows=1)
    assert (report.images, report.images_moved, report.images_copied) == (0, 1, 2)
    assert embedded() == 0
    after = vectors(store)
    assert after["copy.png"] == after["1.png"] == before["1.png"]
    assert after["moved.png"] == after["moved too.png"] == before["2.png"]
    assert "2.png" not in after
    assert verify(store, images=images) == []


def test_what_moved_keeps_other_encoders_and_gets_new_ones(images, store, embedded):
    first = vectors(store)
    (images / "3.png").rename(images / "three.png")
    report = extract(store, images=images, encoder=["toy2"])
    assert (report.images, report.images_moved) == (8, 1)
    assert embedded() == 8  # by the new encoder alone
    both = vectors(store, ("toy", "toy2"))
    assert both["three.png"][: len(first["3.png"])] == first["3.png"]
    assert verify(store, images=images) == []


def test_tokens_move_too(tmp_path, images, embedded):
    store = tmp_path / "tokens"
    extract(store, images=images, encoder=["toy"], tokens="2x2")
    before = Store.open(store).read_images(["4.png"], tokens=True)
    (images / "4.png").rename(images / "four.png")
    assert extract(store, images=images, encoder=["toy"], tokens="2x2").images_moved == 1
    after = Store.open(store).read_images(["four.png"], tokens=True)
    assert np.array_equal(before[0], after[0])
    assert verify(store) == []


def test_metadata_goes_with_what_moved_and_stays_with_what_was_replaced(tmp_path, images, draw):
    path = tmp_path / "s"
    import hashlib

    def described(name):
        content = (images / name).read_bytes()
        status = (images / name).stat()
        return Item(name, hashlib.sha256(content).hexdigest()[:32], len(content), status.st_mtime_ns)

    extract(path, images=images, encoder=["toy"])
    with StoreWriter(path) as writer:
        writer.describe("image", [pa.field("by", pa.string())])
        for name in ("1.png", "2.png"):
            writer.fill("image", [described(name)], {}, metadata={"by": pa.array([f"maker of {name}"])})
    (images / "1.png").rename(images / "one.png")
    shutil.copyfile(images / "3.png", images / "2.png")
    report = extract(path, images=images, encoder=["toy"])
    assert (report.images_moved, report.images_copied) == (1, 1)
    said = Store.open(path).read_metadata("image", ["one.png", "2.png", "3.png"])
    assert [one["by"] for one in said] == ["maker of 1.png", "maker of 2.png", None]
    assert verify(path) == []


def test_what_is_gone_is_counted_and_stays_until_it_is_pruned(images, store, monkeypatch):
    named, every = [], StoredItems.ids
    monkeypatch.setattr(StoredItems, "ids", lambda self, rows: named.append(len(rows)) or every(self, rows))
    (images / "0.png").unlink()
    (images / "7.png").unlink()
    report = extract(store, images=images, encoder=["toy"])
    assert (report.images_gone, report.images_pruned, len(vectors(store))) == (2, 0, 8)
    assert f"2 images in the store have no file in {images} (the first is '0.png'); searches still find them." in (
        report.sentence()
    )
    assert named == [1]  # only the first is named: it may be every image of a large store
    report = extract(store, images=images, encoder=["toy"], prune=True)
    assert (report.images_gone, report.images_pruned) == (2, 2)
    assert f"Removed 2 images without a file in {images} (the first is '0.png')." in report.sentence()
    assert sorted(vectors(store)) == [f"{number}.png" for number in range(1, 7)]
    assert verify(store, images=images) == []
    assert extract(store, images=images, encoder=["toy"], prune=True).notes == []


def test_many_images_are_pruned_some_at_a_time(images, store, monkeypatch):
    monkeypatch.setattr("frevl.store.pictures.extract_images._REMOVED_AT_ONCE", 2)
    joined, delete = [], TableWriter.delete
    monkeypatch.setattr(
        TableWriter, "delete", lambda self, name, ids: joined.append(len(ids)) or delete(self, name, ids)
    )
    for number in range(5):
        (images / f"{number}.png").unlink()
    report = extract(store, images=images, encoder=["toy"], prune=True)
    assert joined == [2, 2, 1]
    assert "Removed 5 images without a file" in report.sentence()
    assert sorted(vectors(store)) == ["5.png", "6.png", "7.png"]


def test_rejects_of_files_that_are_gone_are_pruned(images, store):
    (images / "broken.png").write_bytes(b"x")
    extract(store, images=images, encoder=["toy"])
    with StoreWriter(store) as writer:
        writer.reject([Reject("image", "elsewhere/b.png", "broken")])
    (images / "broken.png").unlink()
    extract(store, images=images, encoder=["toy"], prune=True)
    assert Store.open(store).rejects() == []


@pytest.mark.slow
def test_what_cannot_be_looked_at_is_not_gone(images, tmp_path):
    (images / "deep").mkdir()
    (images / "1.png").rename(images / "deep" / "1.png")
    store = tmp_path / "s"
    extract(store, images=images, encoder=["toy"])
    (images / "deep").chmod(0)
    as_anybody = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "frevl", *sys.argv[1:]])
"""
    arguments = ["extract", "--images", images, "--store", store, "--encoder", "toy", "--prune", "--quiet"]
    done = subprocess.run([sys.executable, "-c", as_anybody, *map(str, arguments)], capture_output=True, text=True)
    (images / "deep").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "deep: the folder cannot be read (Permission denied)" in done.stdout
    assert len(vectors(store)) == 8


def test_imported_vectors_are_never_gone(tmp_path, draw):
    np.save(tmp_path / "v.npy", np.eye(3, 5, dtype=np.float32))
    (tmp_path / "ids.txt").write_text("x.png\ny.png\nz.png\n")
    import_embeddings(tmp_path / "v.npy", store=tmp_path / "s", encoder="e", of="images", ids=tmp_path / "ids.txt")
    images = draw(tmp_path / "images", range(2))
    report = extract(tmp_path / "s", images=images, encoder=["toy"], prune=True)
    assert (report.images, report.images_gone) == (2, 0)
    assert len(Store.open(tmp_path / "s").image_ids) == 5


def test_another_folder_is_not_taken_for_one_that_lost_all(store, tmp_path, draw):
    other = draw(tmp_path / "other", range(3), seed=4)
    for number in range(3):
        (other / f"{number}.png").rename(other / f"other {number}.png")
    with pytest.raises(UsageError, match="--prune would remove all 8 images that the store had before"):
        extract(store, images=other, encoder=["toy"], prune=True)
    assert len(vectors(store)) == 11


def test_pruning_needs_a_folder(store, tmp_path):
    for options in ({"prune": True}, {"check_content": True}):
        with pytest.raises(UsageError, match="--prune and --check-content compare the store with a folder of images"):
            extract(store, pairs=[tmp_path / "p.jsonl"], encoder=["toy"], **options)


def changed_in_silence(images, draw, tmp_path):
    """Another image of the same size and time under the name 4.png."""
    status = (images / "4.png").stat()
    for seed in range(1, 60):
        other = draw(tmp_path / "other", [4], seed=seed) / "4.png"
        if other.stat().st_size == status.st_size:
            break
    else:  # PNG ignores what follows its end
        other.write_bytes(other.read_bytes()[: status.st_size].ljust(status.st_size, b"\0"))
    shutil.copyfile(other, images / "4.png")
    os.utime(images / "4.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (images / "4.png").stat().st_size == status.st_size


@pytest.mark.slow
def test_a_change_in_silence_is_found_when_contents_are_compared(images, store, draw, tmp_path, frevl):
    before = vectors(store)
    changed_in_silence(images, draw, tmp_path)
    assert extract(store, images=images, encoder=["toy"]).images_kept == 8
    assert vectors(store) == before
    sentence = (
        f"1 image of {images}: changed since being embedded, although size and modification time are the same "
        "(the first is '4.png'): run frevl extract --check-content."
    )
    assert verify(store) == []
    assert verify(store, images=images) == [sentence]
    said = frevl("store", "verify", store, "--images", images)
    assert (said.code, sentence in said.err) == (1, True)
    report = extract(store, images=images, encoder=["toy"], check_content=True)
    assert (report.images, report.images_kept) == (1, 7)
    assert (
        f"1 image in {images} had changed although size and modification time are the same (the first is '4.png'); "
        "it was embedded" in (report.sentence())
    )
    after = vectors(store)
    assert {id_ for id_ in before if before[id_] != after[id_]} == {"4.png"}
    assert frevl("store", "verify", store, "--images", images).out == f"{store}: sound.\n"


def test_verify_names_files_that_changed_or_are_gone(images, store, draw, tmp_path):
    draw(tmp_path / "other", [2], seed=9)
    shutil.copyfile(tmp_path / "other" / "2.png", images / "2.png")
    (images / "6.png").unlink()
    os.utime(images / "1.png", ns=(1, 1))  # touched, and otherwise the same
    assert verify(store, images=images) == [
        f"1 image of {images}: changed since being embedded (the first is '2.png'): run frevl extract again.",
        f"1 image of {images}: no file there (the first is '6.png'): frevl extract --prune removes them from the "
        "store.",
    ]


DOOMED = """
import os, signal, sys
import frevl.store.commits.table_writer as tables
from frevl.cli.main import main

fatal, before = int(sys.argv[1]), sys.argv[2] == "before"
del sys.argv[1:3]
calls = 0

def fatal_call(name):
    original = getattr(tables.TableWriter, name)
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == fatal and before:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments, **options)
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(tables.TableWriter, name, call)

for name in ("_remember", "_tidy"):
    fatal_call(name)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", ["before", "after"])
def test_killed_while_it_moves_and_prunes(images, store, tmp_path, before):
    whole = vectors(store)
    for number in (0, 1, 2):
        (images / f"{number}.png").rename(images / f"moved {number}.png")
    (images / "7.png").unlink()
    arguments = ["extract", "--images", images, "--encoder", "toy", "--commit-rows", 1, "--prune", "--quiet"]
    expected = {f"moved {n}.png" if n < 3 else f"{n}.png": whole[f"{n}.png"] for n in range(7)}
    kills = 0
    for fatal in range(1, 40):
        copied = tmp_path / f"s{fatal}"
        shutil.copytree(store, copied)
        command = [sys.executable, "-c", DOOMED, str(fatal), before, *map(str, arguments), "--store", str(copied)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        now = vectors(copied)
        # At any moment every image has its own embedding, under its old name or its new one.
        for number in range(7):
            names = {f"{number}.png", f"moved {number}.png"}.intersection(now)
            assert names
            assert all(now[name] == whole[f"{number}.png"] for name in names)
        assert verify(copied) == []
        if done.returncode == 0:
            break
        kills += 1
        done = subprocess.run([sys.executable, "-m", "frevl", *map(str, arguments), "--store", str(copied)], check=True)
        assert vectors(copied) == expected
        shutil.rmtree(copied)
    assert kills >= 5
    assert vectors(copied) == expected


def test_the_record_and_the_flags(images, store, tmp_path, frevl):
    (images / "0.png").unlink()
    (images / "1.png").rename(images / "one.png")
    arguments = ["--images", images, "--store", store, "--encoder", "toy", "--quiet", "--json", tmp_path / "r.json"]
    assert frevl("extract", *arguments, "--prune", "--check-content").code == 0
    record = json.loads((tmp_path / "r.json").read_text())
    names = ("images", "images_kept", "images_moved", "images_copied", "images_gone", "images_pruned")
    assert [record[name] for name in names] == [0, 6, 1, 0, 1, 1]


def test_pictures_that_do_not_say_what_white_is_are_counted(tmp_path, draw):
    images = draw(tmp_path / "images", range(3))
    dark = Image.fromarray(np.linspace(0, 1000, 63).reshape(7, 9).astype(np.uint16))
    dark.save(images / "detector.tif")
    dark.save(images / "declared.tif", tiffinfo={281: 1023})
    report = extract(tmp_path / "s", images=images, encoder=["toy"])
    assert report.notes == [
        "1 grey image uses only some bits without stating which, so the largest value was taken as white; "
        "the first is 'detector.tif'."
    ]
    store = Store.open(tmp_path / "s")
    assert np.array_equal(*store.read_images(["detector.tif", "declared.tif"]))


def test_pruning_a_large_store_in_many_commits_still_finds_the_images_of_pairs(images, tmp_path, draw, monkeypatch):
    """What the store had at first is asked for at the end, when the files of that version have been deleted."""
    monkeypatch.setattr("frevl.store.lance_tables._MOST_IN_MEMORY", 0)
    extract(tmp_path / "s", images=images, encoder=["toy"], commit_rows=2)
    monkeypatch.setattr("frevl.store.commits.table_writer._KEEP_VERSIONS", timedelta(0))
    monkeypatch.setattr("frevl.store.commits.table_writer._SMALL_FRAGMENTS", 1)
    (images / "0.png").unlink()
    draw(images, range(10, 16))
    pairs = [{"image": name, "text": "a square"} for name in ("1.png", "12.png", "none.png")]
    report = extract(tmp_path / "s", images=images, pairs=pairs, encoder=["toy"], commit_rows=2, prune=True)
    assert (report.images, report.images_pruned) == (6, 1)
    assert ["'none.png'" in reject.reason for reject in report.rejects] == [True]
