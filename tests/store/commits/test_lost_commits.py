"""Tables that lost their manifests: never called sound, read as empty, or overwritten."""

import os
import shutil
import time
from pathlib import Path

import pytest

from frevl.errors import StoreError
from frevl.store.reader import Store
from frevl.store.upkeep.repair import repair
from frevl.store.upkeep.verification import verify
from frevl.store.writer import StoreWriter
from handmade import item, killed, made_of, pooled, tower

ROWS = {id_: {"eye": pooled([n, 1, 0])} for n, id_ in enumerate("abc")}


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "s"
    made_of(path, [tower()], ROWS)
    return path


def files_of(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refused(path, expected):
    """Reading, writing and verifying all say it, and nothing is touched."""
    before = files_of(path)
    for attempt in (lambda: Store.open(path), lambda: StoreWriter(path).__enter__()):
        with pytest.raises(StoreError) as raised:
            attempt()
        assert expected in str(raised.value)
        assert f"run frevl store repair {path}" in str(raised.value)
    assert sum(expected in problem for problem in verify(path)) == 1
    assert files_of(path) == before


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["_versions", "_*", "whole"])
@pytest.mark.parametrize("name", ["images", "towers"])
def test_a_copy_that_left_out_a_tables_manifests_is_refused(store, name, folders):
    for folder in [store / f"{name}.lance"] if folders == "whole" else (store / f"{name}.lance").glob(folders):
        shutil.rmtree(folder)
    versions = {"images": "version 3 with 3 rows", "towers": "version 1 with 1 row"}
    refused(store, f"the table '{name}' has lost its last commits (expected {versions[name]}, found no manifest)")


def test_a_copy_without_the_newest_manifest_is_refused(store):
    newest = min((store / "images.lance" / "_versions").glob("*.manifest"))
    newest.unlink()
    refused(store, "the table 'images' has lost its last commits (expected version 3 with 3 rows, found version 2)")


def test_an_older_store_has_no_record_and_gets_one(store):
    shutil.rmtree(store / "commits")
    assert verify(store) == []
    assert Store.open(store).image_ids == list("abc")
    with StoreWriter(store):
        pass
    shutil.rmtree(store / "images.lance" / "_versions")
    refused(store, "expected version 3 with 3 rows, found no manifest")


def test_an_older_store_that_lost_its_manifests_is_refused_too(store):
    shutil.rmtree(store / "commits")
    shutil.rmtree(store / "images.lance" / "_versions")
    refused(store, "(expected a manifest next to them, found data files without a manifest)")


def test_a_frevl_that_keeps_no_record_may_write_in_between(store):
    records = store / "commits"
    kept = {file: file.read_bytes() for file in records.iterdir()}
    with StoreWriter(store) as writer:
        writer.append("image", [item("d")], {"eye": pooled([9, 1, 0])})
    for file, content in kept.items():
        file.write_bytes(content)
    assert Store.open(store).image_ids == list("abcd")
    assert verify(store) == []


def test_a_first_commit_that_was_killed_is_a_table_that_was_never_committed(tmp_path):
    path = tmp_path / "s"
    half = path / "images.lance" / "data" / "half.lance"
    with killed(path) as writer:
        writer.register([tower()])
        half.parent.mkdir(parents=True)
        half.write_bytes(b"x")
    assert Store.open(path).image_ids == []
    assert verify(path) == []
    made = made_of(path, [tower()], ROWS)
    assert made.read_images(["a"]).tolist() == [[0, 1, 0]]
    assert not half.exists()


def test_data_that_no_version_names_is_told_and_kept_for_ever(store, monkeypatch):
    orphan = store / "images.lance" / "data" / "stray.lance"
    orphan.write_bytes(b"rows of somebody")
    long_ago = time.time() - 30 * 86_400  # Lance deletes such files after a week
    os.utime(orphan, (long_ago, long_ago))
    for _ in range(2):
        (problem,) = verify(store)
        assert problem.startswith(
            "The table 'images' has 1 data file that belongs to none of its versions, the first is "
        )
        assert str(orphan) in problem
        with StoreWriter(store) as writer:
            writer.append("image", [item(f"new {time.time_ns()}")], {"eye": pooled([1, 1, 1])})
        assert "1 data file of none of its versions, left alone" in writer.notes[0]
        assert orphan.read_bytes() == b"rows of somebody"
    # A writer that is killed now must not make them look as if they were its own.
    with killed(store):
        pass
    assert len(verify(store)) == 1
    with StoreWriter(store):
        pass
    assert orphan.exists()


def test_a_manifest_that_differs_from_its_copy_is_told(store):
    versions = sorted((store / "images.lance" / "_versions").glob("*.manifest"))  # the newest first
    versions[0].write_bytes(versions[1].read_bytes())
    assert verify(store)[0].startswith(
        f"The table 'images' has a manifest, {versions[0]}, that differs from its copy in "
    )
    repair(store)
    assert verify(store) == []
    assert Store.open(store).image_ids == list("abc")


def test_a_copy_made_while_somebody_wrote_is_told(store, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(store, copied, ignore=lambda folder, _: ["commits"] if Path(folder) == store else [])
    with StoreWriter(store) as writer:
        writer.append("image", [item("d")], {"eye": pooled([9, 1, 0])})
        shutil.copytree(store / "commits", copied / "commits")
    with pytest.raises(StoreError, match="expected version 4 with 4 rows, found version 3"):
        Store.open(copied)
