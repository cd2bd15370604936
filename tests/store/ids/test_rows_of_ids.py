"""From ids to rows without a dictionary: the same answers for any ids, and cached files that cannot mislead."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

import frevl
from frevl.deployment.service.explorer.rows import Rows
from frevl.errors import StoreError
from frevl.store.extraction.items import StoredItems
from frevl.store.ids import cache, rows_of_ids
from frevl.store.ids.hashing import as_arrow, id_hash, id_hashes
from frevl.store.ids.rows_of_ids import KnownIds, RowsOfIds, find_rows
from frevl.store.reader import Store
from frevl.store.upkeep.removal import compact, remove

STRANGE = [
    "a",
    "",
    " ",
    "é",
    "e\u0301",
    "日本/é.png",
    "x" * 7,
    "x" * 8,
    "x" * 9,
    "x" * 100,
    "a\0",
    "<b>",
    "' OR 1=1",
    "0",
]


def test_one_hash_is_that_of_the_column():
    for kind in (pa.string(), pa.large_string()):
        column = pa.array(["left out", *STRANGE, "left out"], kind)[1:-1]
        assert id_hashes(column).tolist() == [id_hash(one) for one in STRANGE]
    assert len(set(id_hashes(pa.array([f"{n:09}.png" for n in range(100_000)])).tolist())) == 100_000
    assert id_hashes(pa.array([], pa.string())).tolist() == []
    assert as_arrow(["a", "\udcff", 7, None]).to_pylist() == ["a", None, None, None]


def test_a_hash_is_the_same_for_ever():
    """Else the files that are kept would find nothing."""
    known = {"a": "ace94dd294170bfb", "12345678": "9dec5a1d97652a49", "123456789": "af63287ebc305e09"}
    assert {text: f"{id_hash(text):016x}" for text in known} == known


def over(ids, monkeypatch, at_a_time=3):
    column = pa.array(ids, pa.string())

    def segments():
        found = []
        for start in range(0, len(ids), at_a_time):
            hashes = id_hashes(column[start : start + at_a_time])
            order = np.argsort(hashes)
            found.append(rows_of_ids.Segment(hashes[order], order.astype(np.uint32), start))
        return found

    return RowsOfIds(len(ids), segments, lambda rows: column.take(pa.array(rows)), lambda: iter([column]))


@pytest.mark.parametrize("same_hash", [False, True])
def test_it_answers_as_a_dictionary_does(monkeypatch, same_hash):
    if same_hash:  # the ids decide, not their hashes
        monkeypatch.setattr(f"{__name__}.id_hashes", lambda ids: np.full(len(ids), 5, np.uint64))
        monkeypatch.setattr(rows_of_ids, "id_hashes", lambda ids: np.full(len(ids), 5, np.uint64))
        monkeypatch.setattr(rows_of_ids, "id_hash", lambda _: 5)
    known = {id_: row for row, id_ in enumerate(STRANGE)}
    rows = over(STRANGE, monkeypatch)
    asked = [*STRANGE[::-1], "none", "A", "a", "\udcff", "a"]
    assert find_rows(rows, asked).tolist() == find_rows(known, asked).tolist()
    assert find_rows(rows, []).tolist() == []
    assert (list(rows), len(rows)) == (list(known), len(known))
    assert [rows.get(one) for one in asked] == [known.get(one) for one in asked]
    assert [one in rows for one in (*asked, 7, None)] == [one in known for one in (*asked, 7, None)]
    with pytest.raises(KeyError):
        rows["none"]
    held, ids = rows.in_memory()
    assert ids.to_pylist() == STRANGE
    assert [held.get(one) for one in asked] == [known.get(one) for one in asked]
    both = KnownIds(rows, ["broken", "a"])
    assert both.find(["a", "broken", "none", ""]).tolist() == [0, len(STRANGE), -1, 1]
    assert (list(both), len(both)) == ([*STRANGE, "broken"], len(STRANGE) + 1)
    twice = over(["a", "b", "a", "a"], monkeypatch)
    assert (twice["a"], find_rows(twice, ["a"]).tolist()) == (3, [3])  # the last, as in a dictionary


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store that counts as large, in segments of four rows."""
    monkeypatch.setattr("frevl.store.lance_tables._MOST_IN_MEMORY", 0)
    monkeypatch.setattr(cache, "_ROWS", 4)
    monkeypatch.setattr(cache, "_LEAST_KEPT", 1)
    pairs = [{"image": f"{n}.png", "text": f"text {n}"} for n in range(11)]
    frevl.extract(tmp_path / "store", pairs=pairs, encoder="toy")
    frevl.extract(tmp_path / "store", pairs=[{"image": "x", "text": f"more {n}"} for n in range(5)], encoder="toy")
    return tmp_path / "store"


def test_a_large_store_reads_what_a_small_one_does(store, monkeypatch):
    large = Store.open(store)
    assert isinstance(large.positions("text"), RowsOfIds)
    texts = [*large.texts[::-1], "text 3", "text 3"]
    found = large.read_texts(texts)
    files = sorted(path.name for path in (store / "rows").iterdir())
    assert len(files) >= 2
    monkeypatch.setattr("frevl.store.lance_tables._MOST_IN_MEMORY", 10**9)
    small = Store.open(store)
    assert isinstance(small.positions("text"), dict)
    assert (small.read_texts(texts) == found).all()
    assert small.rows("text", texts).equals(large.rows("text", texts))
    assert large.count("text") == small.count("text") == 16
    with pytest.raises(StoreError, match=r"1 of 2 text ids are not in the store \(the first is 'none'\)"):
        large.read_texts(["text 1", "none"])
    known = StoredItems(large, "text", ["toy-text"])
    assert known.get("text 1") == StoredItems(small, "text", ["toy-text"]).get("text 1")
    assert known.get("none") is None


def test_files_of_rows_are_of_one_state_and_damage_is_noticed(store):
    assert Store.open(store).read_texts(["text 7"]).shape[0] == 1
    before = {path.name: path.read_bytes() for path in (store / "rows").iterdir()}
    assert remove(store, ids=["text 2"], of="texts").removed == 1
    after = Store.open(store)
    assert find_rows(after.positions("text"), ["text 2", "more 4"]).tolist() == [-1, 14]
    assert after.read_texts(["more 4", "text 10"]).shape[0] == 2
    files = {path.name: path.read_bytes() for path in (store / "rows").iterdir()}
    assert set(files) != set(before)
    assert set(files) & set(before)  # what nothing was deleted of is kept as it is
    for name, content in files.items():
        for damaged in (content[:-1], content[:30] + b"\xff" * 4 + content[34:], b"", b"something else"):
            (store / "rows" / name).write_bytes(damaged)
            assert find_rows(Store.open(store).positions("text"), after.texts).tolist() == list(range(15))
            assert (store / "rows" / name).read_bytes() == content


def test_what_cannot_be_kept_is_made_again(store):
    shutil.rmtree(store / "rows")
    (store / "rows").write_text("a file in the way")
    assert find_rows(Store.open(store).positions("text"), ["text 1", "no"]).tolist() == [1, -1]


def test_positions_are_those_of_the_newest_version_once_theirs_is_deleted(store):
    opened = Store.open(store)
    old = opened.positions("text")
    assert "text 7" in old
    remove(store, ids=["text 2"], of="texts")
    compact(store)
    with pytest.raises(StoreError):  # never rows of another version than those it gave before
        find_rows(old, ["text 7"])
    new = opened.positions("text")
    assert find_rows(new, ["text 2", "text 7"])[0] == -1
    assert opened.ids("text")[new["text 7"]] == "text 7"


def test_the_first_file_of_rows_makes_its_folders(tmp_path):
    file = tmp_path / "cache" / "of a remote store" / "rows" / "images.key.rows"
    assert cache._written(file, np.arange(3, dtype=np.uint64), np.arange(3, dtype=np.uint32))
    assert cache._opened(file, 3, 0).rows.tolist() == [0, 1, 2]


def test_the_rows_of_the_explorer_are_looked_up_after_a_compaction(tmp_path, draw, monkeypatch):
    monkeypatch.setattr("frevl.store.lance_tables._MOST_IN_MEMORY", 0)
    frevl.extract(tmp_path / "store", images=draw(tmp_path / "images", range(4)), encoder="toy")
    opened = Store.open(tmp_path / "store")
    rows = Rows(opened, opened.select_towers("image")[0], keep=False)
    remove(tmp_path / "store", ids=["0.png"])
    compact(tmp_path / "store")
    assert find_rows(rows.positions, [*rows.ids, "none"]).tolist() == [0, 1, 2, 3, -1]
