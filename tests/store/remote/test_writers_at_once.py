"""Two writers of a store in an object store change the same rows: step by step, with a folder as the bucket."""

from functools import partial

import lance
import numpy as np
import pyarrow as pa
import pytest

from frevl.encoders.interface import Embeddings
from frevl.errors import Reject
from frevl.store import writer as writer_module
from frevl.store.commits.soundness import checksums_of
from frevl.store.importing.identity import declared_towers
from frevl.store.reader import Store
from frevl.store.remote import shared_rows, shared_tables
from frevl.store.remote.shared_tables import SharedTables
from frevl.store.sharding.merging import combined
from frevl.store.upkeep.verification import verify
from frevl.store.writer import Item, StoreWriter, TakeOver


class Folder:
    """What `Objects` is for a bucket."""

    def __init__(self, path):
        self.path = path

    def names(self):
        return []

    def read(self, name):
        return (self.path / name).read_bytes()

    def write(self, name, content):
        (self.path / name).parent.mkdir(exist_ok=True)
        (self.path / name).write_bytes(content)


def towers(encoder):
    made = declared_towers(encoder, {"image": 8}, revision="r", preprocessing="p", common_space=False, dtype="float16")
    return list(made.values())


def item(name, digit):
    return Item(name, digit * 32, 5, 1)


def vector(value, encoder="one"):
    """One embedding, all of whose numbers are the value."""
    return {f"{encoder}-image": Embeddings(np.full((1, 1, 8), value, np.float16), np.ones((1, 1), bool))}


@pytest.fixture
def new(tmp_path, monkeypatch):
    """The folder of a store that is not there yet."""
    monkeypatch.setattr(shared_tables, "Objects", Folder)
    monkeypatch.setattr(shared_tables, "storage_options", dict)
    monkeypatch.setattr(shared_rows, "storage_options", dict)
    monkeypatch.setattr(writer_module, "TableWriter", SharedTables)
    monkeypatch.setattr(writer_module, "make_store_folder", lambda _: None)
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.fixture
def two(new):
    """Two writers of a store with the images a, b and c, and the folder of it."""
    path = new
    with StoreWriter(path) as first:
        first.register([*towers("one"), *towers("two")])
        for name, digit in (("a", "1"), ("b", "2"), ("c", "3")):
            first.append("image", [item(name, digit)], vector(int(digit)))
        first.reject([Reject("image", "r", "first")])
    with StoreWriter(path) as slow, StoreWriter(path) as fast:
        yield slow, fast, path


def between(monkeypatch, slow, meddle):
    """Let the other writer change something right before the slow one writes for the first time."""
    left = [meddle]
    existing = SharedTables._existing

    def opened(self, name):
        found = existing(self, name)
        if self is slow._tables and left and name != "towers":
            left.pop()()
        return found

    monkeypatch.setattr(SharedTables, "_existing", opened)
    return left


def values(path, encoder="one"):
    rows = lance.dataset(str(path / "images.lance")).to_table(columns=["id", f"{encoder}-image"]).to_pylist()
    return {row["id"]: row[f"{encoder}-image"] and row[f"{encoder}-image"][0] for row in rows}


CHANGES = {
    "replace, replace": (
        lambda slow: slow.replace("image", [item("b", "8")], vector(8)),
        lambda fast: fast.replace("image", [item("b", "7")], vector(7)),
        {"a": 1, "b": 8, "c": 3},
    ),
    "fill, replace": (
        lambda slow: slow.fill("image", [item("b", "2")], vector(9, "two")),
        lambda fast: fast.replace("image", [item("b", "7")], vector(7)),
        {"a": 1, "b": 7, "c": 3},
    ),
    "replace, remove": (
        lambda slow: slow.replace("image", [item("b", "8")], vector(8)),
        lambda fast: fast.remove("image", ["b"]),
        {"a": 1, "c": 3},
    ),
    "remove, replace": (
        lambda slow: slow.remove("image", ["b"]),
        lambda fast: fast.replace("image", [item("b", "7")], vector(7)),
        {"a": 1, "c": 3},
    ),
    "take over, replace": (
        lambda slow: slow.take_over("image", [TakeOver("a", item("b", "1"), False)]),
        lambda fast: fast.replace("image", [item("b", "7")], vector(7)),
        {"a": 1, "b": 1, "c": 3},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_who_is_slower_at_the_same_row_tries_again(two, monkeypatch, change):
    slow, fast, path = two
    own, other, expected = CHANGES[change]
    left = between(monkeypatch, slow, lambda: other(fast))
    own(slow)
    assert not left
    assert values(path) == expected


def rows_of(names, value):
    """Rows of a part: the images with the content that the store knows, or another one, embedded by 'two'."""
    entries = {"a": "1", "b": "2", "c": "3", "d": "4", "B": "9"}
    fields = [pa.array([name.lower() for name in names]), pa.array([entries[name] * 32 for name in names])]
    fields += [pa.array([5] * len(names)), pa.array([1] * len(names))]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.full(8 * len(names), value, np.float16)), 8)
    rows = pa.table([*fields, vectors], ["id", "content_hash", "bytes", "modified_ns", "two-image"])
    sums = [one for batch in rows.to_batches() for one in checksums_of(batch, towers("two"))]
    return rows.append_column("filled", pa.array([[{"tower": "two-image", "crc32": s["two-image"]}] for s in sums]))


MEANWHILE = {
    "nothing": (lambda _: None, [2, 9], [2, 9]),
    "removed": (lambda fast: fast.remove("image", ["b"]), [None, 9], [None, 9]),
    "filled": (lambda fast: fast.fill("image", [item("b", "2")], vector(5, "two")), [2, 5], [None, 9]),
    "replaced": (lambda fast: fast.replace("image", [item("b", "9")], vector(7)), [None, 9], [7, 9]),
}


@pytest.mark.slow
@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("content", ["b", "B"])
def test_a_merge_combines_with_what_is_there_by_then(two, monkeypatch, meanwhile, content):
    slow, fast, path = two
    change, *expected = MEANWHILE[meanwhile]
    left = between(monkeypatch, slow, lambda: change(fast))
    own = [tower for tower in slow.store.towers.values() if tower.modality == "image"]
    slow.renew("image", rows_of([content, "c", "d"], 9), partial(combined, own))
    assert not left
    found = [values(path, name) for name in ("one", "two")]
    if meanwhile == "nothing" and content == "B":
        expected[1] = [None, 9]
    assert [one["b"] for one in found] == expected[content == "B"]
    assert [[one[name] for one in found] for name in "acd"] == [[1, None], [3, 9], [None, 9]]
    assert not [problem for problem in verify(path) if "lack an embedding" not in problem]


def test_two_fills_of_the_same_row_keep_both_embeddings(two, monkeypatch):
    slow, fast, path = two
    with StoreWriter(path) as third:
        third.register(towers("three"))
    fast.register(towers("three"))
    left = between(monkeypatch, slow, lambda: fast.fill("image", [item("b", "2")], vector(5, "three")))
    slow.fill("image", [item("b", "2")], vector(9, "two"))
    assert not left
    assert [values(path, name)["b"] for name in ("one", "two", "three")] == [2, 9, 5]


def test_an_item_takes_over_embeddings_after_another_writer_has_added_an_encoder(two):
    slow, fast, path = two
    fast.register(towers("three"))
    fast.fill("image", [item("c", "3")], vector(6, "three"))
    slow.take_over("image", [TakeOver("a", item("b", "1"), False)])
    assert values(path) == {"a": 1, "b": 1, "c": 3}
    assert values(path, "three") == {"a": None, "b": None, "c": 6}


def test_the_slower_of_two_rejects_stays(two, monkeypatch):
    slow, fast, path = two
    left = between(monkeypatch, slow, lambda: fast.reject([Reject("image", "r", "of the fast one")]))
    slow.reject([Reject("image", "r", "of the slow one")])
    assert not left
    assert [(one.id, one.reason) for one in Store(path).rejects()] == [("r", "of the slow one")]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_encoders_that_two_writers_register_in_the_same_moment_are_all_kept(new, monkeypatch, begun, when):
    if begun:
        with StoreWriter(new) as first:
            first.register(towers("zero"))
    with StoreWriter(new) as fast, StoreWriter(new) as slow:
        left = [lambda: fast.register(towers("one"))]
        commit, create = lance.LanceDataset.commit, SharedTables._create

        def meddled(change):
            def changed(*arguments, **options):
                meddle = left.pop() if left else lambda: None
                if when == "before":
                    meddle()
                done = change(*arguments, **options)
                if when == "after":
                    meddle()
                return done

            return changed

        monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(meddled(commit)))
        monkeypatch.setattr(SharedTables, "_create", meddled(create))
        slow.register(towers("two"))
        slow.register(towers("three"))
        assert not left
    names = ["one", "two", "three", *(["zero"] if begun else [])]
    assert sorted(Store(new).towers) == sorted(f"{name}-image" for name in names)


@pytest.mark.parametrize("name", ["a", "b"])
def test_two_writers_of_different_encoders_begin_a_store_and_both_embeddings_are_kept(new, name):
    """The second one adds another image, or the same."""
    with StoreWriter(new) as fast, StoreWriter(new) as slow:
        fast.register(towers("one"))
        slow.register(towers("two"))
        fast.append("image", [item("a", "1")], vector(1))
        slow.append("image", [item(name, "1")], vector(2, "two"))
    assert values(new)["a"] == 1
    assert values(new, "two")[name] == 2
    assert not [problem for problem in verify(new) if "lack an embedding" not in problem]


def test_a_table_that_another_writer_makes_while_this_one_writes_its_rows_keeps_them(new, monkeypatch):
    with StoreWriter(new) as fast, StoreWriter(new) as slow:
        fast.register(towers("one"))
        slow.register(towers("one"))
        left = [lambda: fast.append("image", [item("a", "1")], vector(1))]

        def slowly(write):
            def written(rows, *arguments, **options):
                def batches():
                    yield from rows.to_batches()
                    if left:
                        left.pop()()

                return write(pa.RecordBatchReader.from_batches(rows.schema, batches()), *arguments, **options)

            return written

        monkeypatch.setattr(lance, "write_dataset", slowly(lance.write_dataset))
        monkeypatch.setattr(lance.fragment, "write_fragments", slowly(lance.fragment.write_fragments))
        slow.append("image", [item("b", "2")], vector(2))
        assert not left
    assert values(new) == {"a": 1, "b": 2}


def test_metadata_stays_where_another_writer_has_made_the_table(new):
    with StoreWriter(new) as fast, StoreWriter(new) as slow:
        fast.register(towers("one"))
        slow.register(towers("one"))
        slow.describe("image", [pa.field("weight", pa.int64())])
        fast.append("image", [item("a", "1")], vector(1))
        slow.append("image", [item("b", "2")], vector(2), metadata={"weight": pa.array([70])})
    assert Store(new).read_metadata("image", ["a", "b"]) == [{"weight": None}, {"weight": 70}]


FILLED = {"a": [1, None, 50], "b": [2, None, 60], "c": [3, None, None]}
WITH_NEW_COLUMN = {
    "replace": (
        lambda slow: slow.replace("image", [item("b", "8")], vector(8)),
        {**FILLED, "b": [8, None, 60]},
    ),
    "fill": (
        lambda slow: slow.fill("image", [item("b", "2")], vector(9, "two")),
        {**FILLED, "b": [2, 9, 60]},
    ),
    "take over": (
        lambda slow: slow.take_over("image", [TakeOver("a", item("b", "1"), False)]),
        {**FILLED, "b": [1, None, 60]},
    ),
    "add": (
        lambda slow: slow.append("image", [item("d", "4")], vector(4)),
        {**FILLED, "d": [4, None, None]},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", WITH_NEW_COLUMN)
def test_metadata_that_another_writer_has_added_meanwhile_stays(two, change):
    slow, fast, path = two
    fast.describe("image", [pa.field("weight", pa.int64())])
    fast.fill("image", [item("a", "1"), item("b", "2")], {}, metadata={"weight": pa.array([50, 60])})
    own, expected = WITH_NEW_COLUMN[change]
    own(slow)
    weights = lance.dataset(str(path / "images.lance")).to_table(columns=["id", "weight"]).to_pylist()
    found = zip(values(path).items(), values(path, "two").values(), weights, strict=True)
    assert {id_: [one, two, row["weight"]] for (id_, one), two, row in found} == expected
