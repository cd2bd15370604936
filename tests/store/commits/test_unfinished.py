"""A store that was filled halfway says so, until the same call has finished."""

import json

import numpy as np
import pytest

from clip_folders import unit
from frevl.errors import FrevlError
from frevl.store.commits.unfinished import Work, call_of, unfinished_work
from frevl.store.extraction.extract import extract
from frevl.store.importing import vectors
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.store.sharding.merging import merge
from frevl.store.upkeep.repair import repair
from frevl.store.writer import StoreWriter


@pytest.fixture
def stopped(monkeypatch):
    """Stop the process, as Ctrl-C does, before an item is written for the n-th time."""

    def stop(call):
        calls, written = [], StoreWriter._rows

        def rows(self, modality, items, *others, **options):
            calls.append(items)
            if len(calls) == call:
                raise KeyboardInterrupt
            return written(self, modality, items, *others, **options)

        monkeypatch.setattr(StoreWriter, "_rows", rows)

    yield stop
    monkeypatch.undo()


def array(path, count, seed=0):
    np.save(path, unit(count, seed=seed) if seed else unit(count))
    path.with_suffix(".txt").write_text("\n".join(f"{path.stem}{row}.png" for row in range(count)))
    return {"source": path, "ids": path.with_suffix(".txt"), "of": "images", "encoder": "e"}


def test_an_import_that_was_stopped_is_named_until_it_is_complete(tmp_path, monkeypatch, stopped, frevl):
    monkeypatch.setattr(vectors, "_COMMIT_BYTES", 20)
    given, other = array(tmp_path / "a.npy", 5), array(tmp_path / "b.npy", 2)
    stopped(3)
    with pytest.raises(KeyboardInterrupt):
        import_embeddings(**given, store=tmp_path / "s")
    monkeypatch.undo()
    (said,) = unfinished_work(tmp_path / "s")
    assert said.startswith(f"'frevl import {tmp_path / 'a.npy'} --encoder e --of images', begun 20")
    assert said.endswith(f"frevl store repair {tmp_path / 's'} accepts the store as it is.")
    import_embeddings(**other, store=tmp_path / "s")  # another call does not make it whole
    assert unfinished_work(tmp_path / "s") == [said]
    info = frevl("store", "info", tmp_path / "s", "--json", tmp_path / "info.json")
    assert info.out.splitlines()[0] == said
    assert json.loads((tmp_path / "info.json").read_text())["unfinished"] == [said]
    monkeypatch.chdir(tmp_path)
    import_embeddings(**{**given, "source": "a.npy"}, store="s")  # the same file by another name
    assert unfinished_work(tmp_path / "s") == []
    assert len(Store.open(tmp_path / "s").image_ids) == 7
    assert list((tmp_path / "s/commits/unfinished").iterdir()) == []


def test_a_call_that_wrote_nothing_leaves_no_mark(tmp_path):
    given, other = array(tmp_path / "a.npy", 3), array(tmp_path / "b.npy", 3, seed=1)
    import_embeddings(**given, store=tmp_path / "s")
    with pytest.raises(FrevlError):
        import_embeddings(**{**other, "revision": "another"}, store=tmp_path / "s")
    assert unfinished_work(tmp_path / "s") == []


def test_repair_accepts_the_store_as_it_is(tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(vectors, "_COMMIT_BYTES", 20)
    stopped(2)
    with pytest.raises(KeyboardInterrupt):
        import_embeddings(**array(tmp_path / "a.npy", 3), store=tmp_path / "s")
    monkeypatch.undo()
    assert len(unfinished_work(tmp_path / "s")) == 1
    repair(tmp_path / "s")
    assert unfinished_work(tmp_path / "s") == []
    assert len(Store.open(tmp_path / "s").image_ids) == 2


def test_extraction_and_merge_say_so_too(tmp_path, monkeypatch, stopped, draw):
    images = draw(tmp_path / "images", range(6))
    parts = [tmp_path / f"part{number}" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        extract(part, images=images, encoder="toy", shard=f"{number}/2")
        assert unfinished_work(part) == []
    stopped(2)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "s", images=images, encoder=["toy"], commit_rows=2)
    monkeypatch.undo()
    (said,) = unfinished_work(tmp_path / "s")
    assert said.startswith(f"'frevl extract {images} --encoder toy', begun 20")
    extract(tmp_path / "s", images=images, encoder="toy")
    assert unfinished_work(tmp_path / "s") == []

    monkeypatch.setattr("frevl.store.sharding.merging._rows_a_commit", lambda *_: 2)
    stopped(3)
    with pytest.raises(KeyboardInterrupt):
        merge(parts, into=tmp_path / "m")
    monkeypatch.undo()
    (said,) = unfinished_work(tmp_path / "m")
    assert said.startswith(f"'frevl store merge {parts[0]} {parts[1]}', begun 20")
    merge(parts, into=tmp_path / "m")
    assert unfinished_work(tmp_path / "m") == []
    assert Store.open(tmp_path / "m").fingerprint == Store.open(tmp_path / "s").fingerprint


def test_calls_that_add_other_items_are_other_calls(tmp_path, draw, monkeypatch):
    folder = draw(tmp_path / "images", range(1))
    monkeypatch.chdir(tmp_path)
    assert call_of("frevl extract", ["images", "pairs in memory", "s3://b/x"], {"encoder": ["a", "b"], "of": None}) == (
        f"frevl extract {folder} pairs in memory s3://b/x --encoder a --encoder b"
    )
    seen = []
    monkeypatch.setattr(
        "frevl.store.extraction.extract.call_of", lambda *given: seen.append(call_of(*given)) or seen[-1]
    )
    for options in ({}, {"include": ["0*"]}, {"exclude": ["1*"]}, {"tokens": "7x7"}):
        extract(tmp_path / f"s{len(seen)}", images=folder, encoder="toy", **options)
    common = f"frevl extract {folder} --encoder toy"
    assert seen == [common, f"{common} --include 0*", f"{common} --exclude 1*", f"{common} --tokens 7x7"]


def test_long_calls_are_shortened_and_damaged_records_are_ignored(tmp_path):
    (tmp_path / "s").mkdir()
    Work(tmp_path / "s", "x" * 500).begin()
    (tmp_path / "s/commits/unfinished/damaged.json").write_text("{")
    (said,) = unfinished_work(tmp_path / "s")
    assert said.startswith(f"'{'x' * 200} ...', begun 20")
