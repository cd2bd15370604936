"""Rows of a large table are replaced without reading all ids, with the same result as with them."""

import numpy as np
import pyarrow as pa
import pytest

import frevl
from frevl.errors import StoreError
from frevl.store.commits import table_writer
from frevl.store.ids.places import Places
from frevl.store.importing import vectors
from frevl.store.importing.vectors import import_embeddings
from frevl.store.lance_tables import ALL_TABLES, Snapshot
from frevl.store.reader import Store
from frevl.store.upkeep.removal import remove
from frevl.store.upkeep.verification import verify

ROWS = 60


def content(store):
    at = Snapshot(store, ALL_TABLES)
    return {name: sorted((row for b in at.scan(name) for row in b.to_pylist()), key=repr) for name in ALL_TABLES}


def made(folder):
    """Texts in several parts, some of them removed, and two of three vectors of another encoder."""
    folder.mkdir()
    for start in range(0, ROWS, 12):
        pairs = [{"image": "x", "text": f"text {n}"} for n in range(start, start + 12)]
        frevl.extract(folder / "store", pairs=pairs, encoder="toy")
    remove(folder / "store", ids=["text 5", "text 25", "text 59"], of="texts")
    left = [f"text {n}" for n in range(ROWS) if n not in (5, 25, 59)]
    some = [*(one for number, one in enumerate(left) if number % 3), "new 1", "new 2"]
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((len(some), 7)).astype(np.float32))
    (folder / "ids.txt").write_text("\n".join(some))
    return folder / "store", left


def fill(store, folder):
    """Fill two further encoders, seven rows a commit."""
    for name in ("mine", "yours"):
        import_embeddings(folder / "vectors.npy", store=store, encoder=name, of="texts", ids=folder / "ids.txt")


@pytest.fixture(autouse=True)
def small_commits(monkeypatch):
    monkeypatch.setattr(vectors, "_COMMIT_BYTES", 7 * 7 * 2)


@pytest.mark.slow
@pytest.mark.parametrize("small_fragments", [64, 3])
def test_a_further_encoder_is_what_it_is_with_a_look_at_all_ids(tmp_path, monkeypatch, small_fragments):
    monkeypatch.setattr(table_writer, "_SMALL_FRAGMENTS", small_fragments)  # 3: parts are merged while they are filled
    stores = {}
    for way, large in (("all", 10**9), ("places", 0)):
        monkeypatch.setattr(table_writer, "_LARGE", large)
        store, left = made(tmp_path / way)
        fill(store, tmp_path / way)
        stores[way] = store
    assert content(stores["places"]) == content(stores["all"])
    assert all("lack an embedding" in problem for problem in verify(stores["places"]))
    assert sorted(Store.open(stores["places"]).texts) == sorted([*left, "new 1", "new 2"])


@pytest.mark.slow
def test_no_commit_reads_all_ids(tmp_path, monkeypatch):
    store, _ = made(tmp_path / "one")
    monkeypatch.setattr(table_writer, "_LARGE", 0)
    called = []
    original = table_writer.exchange_rows
    monkeypatch.setattr(table_writer, "exchange_rows", lambda *a: called.append(original(*a)) or called[-1])
    fill(store, tmp_path / "one")
    assert len(called) >= 10
    assert None not in called


def test_what_was_changed_moved_or_is_unknown_is_looked_for_among_all(tmp_path):
    store, left = made(tmp_path / "one")
    places = Places(store, "texts")
    ids = pa.array(left[3:6])
    rows = places.find(ids)
    assert places.take(rows)["id"].to_pylist() == left[3:6]
    assert places.find(pa.array([left[0], "none"])) is None
    assert places.find(pa.array([left[0], left[0]])) is None
    assert places.find(pa.array([], pa.string())) is None
    places.mark(pa.array([left[4], "none"]))
    assert places.find(ids) is None
    assert places.find(pa.array(left[5:9])) is not None


@pytest.mark.slow
def test_a_process_that_dies_between_two_files_loses_its_batch_alone(tmp_path, monkeypatch):
    store, _ = made(tmp_path / "one")
    before = content(store)["texts"]
    monkeypatch.setattr(table_writer, "_LARGE", 0)

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("lance.LanceDataset.commit", full)
    with pytest.raises(StoreError, match="No space left on device"):
        fill(store, tmp_path / "one")
    monkeypatch.undo()
    after = content(store)["texts"]
    assert [row["id"] for row in after] == [row["id"] for row in before]
    assert [row["filled"] for row in after] == [row["filled"] for row in before]
    fill(store, tmp_path / "one")
    assert all("lack an embedding" in problem for problem in verify(store))
