"""The store: what is written is read, what is missing is named, and the documentation is right."""

import json
import re
from pathlib import Path

import lance
import numpy as np
import pytest

from frevl.errors import StoreError, UsageError
from frevl.store import reader
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.store.upkeep.verification import describe
from frevl.store.writer import StoreWriter
from handmade import item, made_of, pooled, ragged, tower

DOCUMENT = Path(__file__).parents[2] / "docs" / "store.md"


def test_three_vectors_come_back_as_float32_in_the_order_asked(tmp_path):
    store = made_of(
        tmp_path / "s",
        [tower()],
        {
            "a": {"eye": pooled([1, 0, 0])},
            "b": {"eye": pooled([0, 0.6, 0.8])},
            "c/ü.jpg": {"eye": pooled([0.1, 0, -1])},
        },
    )
    assert store.image_ids == ["a", "b", "c/ü.jpg"]
    found = store.read_images(["c/ü.jpg", "a", "c/ü.jpg"])
    assert found.dtype == np.float32
    # 0.1 in float16 is 0.0999755859375.
    assert found.tolist() == [[0.0999755859375, 0, -1], [1, 0, 0], [0.0999755859375, 0, -1]]
    assert store.read_images(["b"]).tolist() == [[0, 0.60009765625, 0.7998046875]]
    assert store.read_images([]).shape == (0, 3)
    values, mask = store.read_images(["b", "a"], tokens=True)
    assert values.shape == (2, 1, 3)
    assert mask.tolist() == [[True], [True]]
    assert store.texts == []


def test_float32_is_exact(tmp_path):
    exact = np.float32(1 / 3)
    store = made_of(tmp_path / "s", [tower(dtype="float32")], {"a": {"eye": pooled([exact, 0, 1])}})
    assert store.read_images(["a"])[0, 0] == exact


def test_towers_are_concatenated_and_can_be_chosen(tmp_path):
    towers = [tower(), tower("far", dim=2, encoders=("two",)), tower("shared", dim=1, encoders=("one", "two"))]
    row = {"eye": pooled([1, 2, 3]), "far": pooled([4, 5]), "shared": pooled([6])}
    store = made_of(tmp_path / "s", towers, {"a": row})
    assert store.encoders == ["one", "two"]
    assert store.read_images(["a"]).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert store.read_images(["a"], encoders=["two"]).tolist() == [[4, 5, 6]]
    assert store.read_images(["a"], encoders=["two", "one"]).tolist() == [[1, 2, 3, 4, 5, 6]]
    with pytest.raises(UsageError, match="has no embeddings by the encoder 'tow'. Did you mean 'two'"):
        store.read_images(["a"], encoders=["tow"])


def test_tokens_keep_their_number_and_are_pooled_to_unit_length(tmp_path):
    words = tower("words", modality="text", dim=2, tokens="words")
    rows = {"one": {"words": ragged([3, 0], dim=2)}, "two words": {"words": ragged([[2, 0], [0, 2]], dim=2)}}
    store = made_of(tmp_path / "s", [words], rows, "text")
    values, mask = store.read_texts(["one", "two words"], tokens=True)
    assert values.tolist() == [[[3, 0], [0, 0]], [[2, 0], [0, 2]]]
    assert mask.tolist() == [[True, False], [True, True]]
    half = np.float32(np.sqrt(0.5))
    np.testing.assert_allclose(store.read_texts(["two words", "one"]), [[half, half], [1, 0]], rtol=1e-6)


def test_each_tower_of_a_token_store_has_unit_length(tmp_path, draw):
    images = draw(tmp_path / "images", range(5))
    extract(tmp_path / "s", images=images, encoder=["toy", "toy2"], tokens="4x4", dtype="float32")
    store = Store.open(tmp_path / "s")
    values, mask = store.read_images(store.image_ids, tokens=True)
    assert values.shape == (5, 16, 96)
    assert mask.all()
    found = store.read_images(store.image_ids)
    for part in (slice(0, 64), slice(64, 96)):
        mean = values[:, :, part].astype(np.float64).mean(axis=1)
        lengths = np.linalg.norm(mean, axis=1, keepdims=True)
        assert not np.allclose(lengths, 1, atol=1e-4)  # overlapping cells: the plain mean is only close
        np.testing.assert_allclose(found[:, part], mean / lengths, atol=1e-6)


def test_towers_whose_tokens_do_not_fit_are_not_mixed(tmp_path):
    towers = [tower("a", dim=2, tokens="x"), tower("b", dim=2, tokens="y")]
    # The same longest item in both, but of another item: widths of the arrays agree and masks do not.
    rows = {
        "i": {"a": ragged([[1, 1], [2, 2]], dim=2), "b": ragged([3, 3], dim=2)},
        "j": {"a": ragged([1, 1], dim=2), "b": ragged([[1, 1], [2, 2]], dim=2)},
    }
    store = made_of(tmp_path / "s", towers, rows)
    with pytest.raises(StoreError, match="different numbers of tokens .*choose one encoder with --encoder"):
        store.read_images(["i", "j"])


@pytest.mark.parametrize("collide", [False, True])
def test_copies_are_told_by_their_content_and_never_by_a_hash_alone(tmp_path, monkeypatch, collide):
    contents = {"c": "1", "a": "2", "b": "1", "d": "3", "e": "2", "f": "1"}
    with StoreWriter(tmp_path / "s") as writer:
        writer.register([tower()])
        items = [item(id_, content) for id_, content in contents.items()]
        writer.append("image", items, {"eye": pooled(*[[1, 0, 0]] * len(items))})
    if collide:
        monkeypatch.setattr(reader, "id_hashes", lambda ids: np.zeros(len(ids), np.uint64))
    assert Store.open(tmp_path / "s").copies("image") == {"c": "c", "b": "c", "f": "c", "a": "a", "e": "a"}
    assert Store.open(tmp_path / "s").copies("text") == {}


@pytest.mark.parametrize("tokens", ["pooled", "words"])
def test_random_reads_equal_a_slow_twin(tmp_path, monkeypatch, tokens):
    monkeypatch.setattr("frevl.store.reader._ROWS_AT_ONCE", {True: 41, False: 43})
    monkeypatch.setattr("frevl.store.reader._NUMBERS_AT_ONCE", 1)
    rng = np.random.default_rng(5)
    most = 2 if tokens == "pooled" else 6
    written = {
        f"id{number}": rng.standard_normal((rng.integers(1, most), 5)).astype(np.float16) for number in range(313)
    }
    with StoreWriter(tmp_path / "s") as writer:
        writer.register([tower("t", dim=5, tokens=tokens)])
        ids = list(written)
        for start in range(0, 313, 97):
            part = ids[start : start + 97]
            writer.append("image", [item(id_) for id_ in part], {"t": ragged(*(written[id_] for id_ in part), dim=5)})
    store = Store.open(tmp_path / "s")
    for count in (1, 2, 150, 400):
        asked = [f"id{number}" for number in rng.integers(0, 313, count)]
        values, mask = store.read_images(asked, tokens=True)
        for row, id_ in enumerate(asked):
            np.testing.assert_array_equal(values[row][mask[row]], written[id_].astype(np.float32))
            assert not values[row][~mask[row]].any()


def test_what_is_missing_is_named(tmp_path):
    store = made_of(tmp_path / "s", [tower(), tower("far", encoders=("two",))], {"a": {"eye": pooled([1, 0, 0])}})
    with pytest.raises(StoreError) as raised:
        store.read_images(["a", "x", "y"])
    assert str(raised.value) == (
        f"{tmp_path / 's'}: 2 of 3 image ids are not in the store (the first is 'x'); add them with: "
        f"frevl extract --images DIR --store {tmp_path / 's'}"
    )
    with pytest.raises(StoreError, match="1 of 1 images have no embedding by the tower 'far'; .*--encoder two"):
        store.read_images(["a"])
    assert store.read_images(["a"], encoders=["one"]).tolist() == [[1, 0, 0]]
    with pytest.raises(StoreError, match="the store has no text embeddings; run frevl extract first"):
        store.read_texts(["a dog"])


def test_a_store_stays_at_its_version_until_something_is_missing(tmp_path):
    store = made_of(tmp_path / "s", [tower()], {"a": {"eye": pooled([1, 0, 0])}})
    assert store.image_ids == ["a"]
    with StoreWriter(tmp_path / "s") as writer:
        writer.register([tower()])
        writer.replace("image", [item("a", "new")], {"eye": pooled([0, 0, 1])})
        writer.append("image", [item("b")], {"eye": pooled([0, 1, 0])})
    assert store.image_ids == ["a"]
    assert store.read_images(["a"]).tolist() == [[1, 0, 0]]
    assert store.read_images(["b"]).tolist() == [[0, 1, 0]]
    assert store.read_images(["a"]).tolist() == [[0, 0, 1]]


def test_content_hashes_of_what_is_there(tmp_path):
    store = made_of(tmp_path / "s", [tower()], {id_: {"eye": pooled([1, 0, 0])} for id_ in ("c", "a", "b")})
    assert store.content_hashes(["a", "x", "c", "a"]) == {"a": item("a").content_hash, "c": item("c").content_hash}
    assert store.content_hashes(["x"]) == {}


@pytest.mark.parametrize(
    ("make", "found"),
    [(str, "no such folder"), (Path.mkdir, "none in that folder"), (Path.touch, "a file")],
)
def test_what_is_no_store_is_not_opened(tmp_path, make, found):
    make(tmp_path / "s")
    with pytest.raises(
        StoreError, match=rf"s: expected a store \(a folder with 'towers.lance'\), found {found}; make one"
    ):
        Store.open(tmp_path / "s")


def test_description(made_twice):
    description = describe(made_twice.store)
    assert description["images"] == 40
    assert description["rejects"] == {}
    assert description["rejected"] == []
    assert {tower["name"]: tower["lacking"] for tower in description["towers"]} == {
        "toy-image": 0,
        "toy-text": 0,
        "toy2-image": 0,
    }
    assert description["bytes"] > 10_000
    json.dumps(description)


@pytest.mark.parametrize("world", ["made_twice", "made_tokens"])
def test_the_reader_in_the_document_reads_the_same(world, request):
    store = request.getfixturevalue(world).store
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 13  # ten lines, the blank one after the imports, and the name of the store
    names = {}
    exec(code.replace('"STORE"', repr(str(store.path)), 1), names)  # noqa: S102
    np.testing.assert_allclose(names["vectors"], store.read_images(names["ids"]), atol=1e-6, rtol=0)
    assert sorted(names["ids"]) == sorted(store.image_ids)


def test_the_document_names_every_column(made_twice):
    text = DOCUMENT.read_text(encoding="utf-8")
    for table in ("images", "texts", "towers"):
        schema = lance.dataset(str(made_twice.store.path / f"{table}.lance")).schema
        for name in set(schema.names) - set(made_twice.store.towers):
            assert f"| `{name}` |" in text, (table, name)
    for field in made_twice.store.towers["toy-image"].identity:
        assert f"`{field}`" in text, field


@pytest.mark.slow
@pytest.mark.parametrize("address", ["hf://datasets/a/b", "file:///srv/s", "http://me:secret@x/y"])
def test_a_store_elsewhere_is_refused_and_makes_no_folder(tmp_path, monkeypatch, frevl, draw, address):
    monkeypatch.chdir(tmp_path)
    images = draw(tmp_path / "images", range(2))
    said = frevl("extract", "--images", images, "--encoder", "toy", "--store", address, "--quiet")
    assert said.code == 2
    assert "expected a local folder or an address s3://, gs:// or az://" in said.err
    assert "secret" not in said.err
    for command in ("info", "verify", "repair", "compact"):
        assert frevl("store", command, address).code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
