"""Imports into a store that holds embeddings: other encoders, more items, metadata, vectors like our own."""

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_folders import DIM, unit
from frevl.encoders.registry import load_encoder
from frevl.errors import FingerprintError, InputError, StoreError, UsageError
from frevl.store.importing.identity import verified_towers
from frevl.store.importing.layouts import open_parts
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify
from frevl.store.writer import StoreWriter


def test_a_store_refuses_vectors_of_another_declaration_or_width(tmp_path):
    (tmp_path / "ids.txt").write_text("a\nb\n")
    for dim in (5, 7):
        np.save(tmp_path / f"{dim}.npy", unit(2, dim))
    options = {"store": tmp_path / "s", "encoder": "e", "of": "images", "ids": tmp_path / "ids.txt"}
    import_embeddings(tmp_path / "5.npy", **options, revision="1")
    with pytest.raises(FingerprintError, match="'revision' is '1' there and '2' here"):
        import_embeddings(tmp_path / "5.npy", **options, revision="2")
    with pytest.raises(FingerprintError, match="'width' is '5' there and '7' here"):
        import_embeddings(tmp_path / "7.npy", **options, revision="1")


def test_a_second_encoder_fills_the_same_rows(tmp_path):
    (tmp_path / "ids.txt").write_text("a\nb\n")
    pq.write_table(pa.table({"id": ["b", "a"], "v": unit(2, 3).tolist(), "n": [20, 10]}), tmp_path / "t.parquet")
    np.save(tmp_path / "v.npy", unit(2))
    import_embeddings(tmp_path / "v.npy", store=tmp_path / "s", encoder="e", of="images", ids=tmp_path / "ids.txt")
    second = import_embeddings(tmp_path / "t.parquet", store=tmp_path / "s", encoder="f", of="images")
    assert second.images == 2
    store = Store.open(tmp_path / "s")
    assert store.read_images(["a", "b"]).shape == (2, 5 + 3)
    assert np.allclose(store.read_images(["b"], encoders=["f"]), unit(2, 3)[:1], atol=1e-3)
    assert store.matching("image", "n = 10") == ["a"]
    assert verify(tmp_path / "s") == []


def test_extraction_adds_to_imported_images_and_keeps_their_vectors(tmp_path, draw):
    from frevl.store.extraction.extract import extract

    draw(tmp_path / "images", range(3))
    pq.write_table(pa.table({"id": ["0.png", "1.png"], "v": unit(2).tolist(), "n": [5, 6]}), tmp_path / "t.parquet")
    import_embeddings(tmp_path / "t.parquet", store=tmp_path / "s", encoder="e", of="images")
    for _ in range(2):  # the second has nothing to do
        report = extract(tmp_path / "s", images=tmp_path / "images", encoder=["toy"])
    assert (report.images, report.images_kept) == (0, 3)
    store = Store.open(tmp_path / "s")
    assert store.read_images(["1.png", "0.png"]).shape == (2, 5 + 64)
    assert np.allclose(store.read_images(["1.png"], encoders=["e"]), unit(2)[1:], atol=1e-3)
    assert store.matching("image", "n = 6") == ["1.png"]
    assert store.matching("image", "n IS NULL") == ["2.png"]
    assert verify(tmp_path / "s") == [
        "Tower 'e-image': 1 of 3 images lack an embedding; import them with frevl import --encoder e."
    ]


def test_metadata_that_does_not_go_together(tmp_path):
    def parquet(name, **columns):
        pq.write_table(pa.table({"id": [name], "v": unit(1).tolist(), **columns}), tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    options = {"store": tmp_path / "s", "encoder": "e", "of": "images"}
    import_embeddings(parquet("a", year=[1999], bytes=[7]), **options)
    import_embeddings(parquet("b", year=["2001"]), **options)  # fits
    store = Store.open(tmp_path / "s")
    assert store.metadata("image") == {"year": pa.int64(), "metadata_bytes": pa.int64()}
    assert store.read_metadata("image", ["b", "a"]) == [
        {"year": 2001, "metadata_bytes": None},
        {"year": 1999, "metadata_bytes": 7},
    ]
    with pytest.raises(
        InputError, match="The metadata column 'year' has the type int64 in the store and does not match it"
    ):
        import_embeddings(parquet("c", year=["last"]), **options)
    with StoreWriter(tmp_path / "s") as writer:
        with pytest.raises(StoreError, match="'e-image' is the name of a tower; rename this metadata column"):
            writer.describe("image", [pa.field("e-image", pa.int64())])
        with pytest.raises(StoreError, match="'year' is the name of a metadata column, not of a tower"):
            writer.register([replace(store.towers["e-image"], name="year")])
    with pytest.raises(StoreError, match="there is no image 'c' in the store"):
        store.read_metadata("image", ["c"])


# ---- an encoder that frevl has


def toy_vectors(world, folder):
    """Write the toy encoder's own vectors as somebody else would; returns the flags of the two imports."""
    encoder = load_encoder("toy")
    names = sorted(path.name for path in world.images.iterdir())[:40]
    texts = sorted(set(world.captions.texts))
    np.save(folder / "images.npy", 3 * encoder.embed_images([world.images / name for name in names]))
    np.save(folder / "texts.npy", encoder.embed_texts(texts))
    (folder / "images.txt").write_text("\n".join(names))
    (folder / "texts.txt").write_text("\n".join(texts))
    return [
        (folder / "images.npy", {"of": "images", "ids": folder / "images.txt", "images": world.images}),
        (folder / "texts.npy", {"of": "texts", "ids": folder / "texts.txt"}),
    ]


def test_vectors_of_an_encoder_that_we_have_are_checked_and_then_like_our_own(made, tmp_path):
    for path, flags in toy_vectors(made, tmp_path):
        report = import_embeddings(path, store=tmp_path / "s", encoder="toy", **flags)
        assert "gives the same vectors" in report.sentence()
    store = Store.open(tmp_path / "s")
    assert store.towers["toy-image"].identity == made.store.towers["toy-image"].identity
    assert store.fingerprint == made.store.fingerprint
    assert np.allclose(store.read_images(["10.png"]), made.store.read_images(["10.png"]), atol=1e-3)


def test_vectors_that_another_encoder_made_are_not_taken_for_ours(made, tmp_path):
    (images, flags), _ = toy_vectors(made, tmp_path)
    vectors = np.load(images)
    vectors[[3, 4]] = vectors[[4, 3]]
    np.save(images, vectors)
    with pytest.raises(FingerprintError, match="the encoder 'toy' gives another vector for '.*png' .cosine 0"):
        import_embeddings(images, store=tmp_path / "s", encoder="toy", **flags)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UsageError, match="give the folder of the images with --images"):
        import_embeddings(images, store=tmp_path / "s", encoder="toy", **{**flags, "images": None})
    with pytest.raises(FingerprintError, match="the encoder 'toy2' gives 32 numbers, found 64"):
        import_embeddings(images, store=tmp_path / "s", encoder="toy2", **flags)


def test_other_names_are_not_checked(tmp_path):
    np.save(tmp_path / "v.npy", unit(2))
    (tmp_path / "ids.txt").write_text("a\nb\n")
    parts = open_parts(
        tmp_path / "v.npy", of="text", ids=tmp_path / "ids.txt", id_column=None, vector_column=None, array=None
    )
    assert verified_towers("toy3", parts, None, dtype="float16") is None


def test_another_vector_for_an_item_of_the_store_is_counted_and_the_stores_own_stays(tmp_path, frevl):
    first = unit(7, seed=1)
    (tmp_path / "ids.txt").write_text("".join(f"{i}.jpg\n" for i in range(7)))
    again = first.copy()
    again[2:5] = unit(3, seed=9)
    again[6] += 1e-4  # less than rounding tells apart
    for name, vectors in (("first", first), ("again", again)):
        np.save(tmp_path / f"{name}.npy", vectors)
        said = frevl("import", tmp_path / f"{name}.npy", "--ids", tmp_path / "ids.txt", "--of", "images", "--store",
                     tmp_path / "store", "--encoder", "mine", "--json", tmp_path / "out.json", "--quiet")  # fmt: skip
        assert said.code == 0, said.err
    assert (
        "7 images and 0 texts were already in the store. 3 of these have a different vector in the import" in said.out
    )
    assert json.loads((tmp_path / "out.json").read_text())["differing"] == 3
    store = Store.open(tmp_path / "store")
    np.testing.assert_allclose(store.read_images(["3.jpg"])[0], first[3], atol=1e-3)


def test_a_long_import_into_a_large_store_keeps_the_version_in_which_it_looks_ids_up(tmp_path, monkeypatch):
    """Else that version would be deleted once the small files are merged, and the store would seem damaged."""
    monkeypatch.setattr("frevl.store.lance_tables._MOST_IN_MEMORY", 0)
    monkeypatch.setattr("frevl.store.importing.vectors._COMMIT_BYTES", 10 * 2 * DIM)
    monkeypatch.setattr("frevl.store.commits.table_writer._KEEP_VERSIONS", timedelta(0))
    monkeypatch.setattr("frevl.store.commits.table_writer._SMALL_FRAGMENTS", 4)
    old, new = [f"old{i}" for i in range(50)], [f"new{i}" for i in range(50)]
    for name, ids in (("first", old), ("again", [*new, *old])):
        np.save(tmp_path / f"{name}.npy", unit(len(ids)))
        (tmp_path / f"{name}.txt").write_text("\n".join(ids))
        report = import_embeddings(
            tmp_path / f"{name}.npy", ids=tmp_path / f"{name}.txt", of="texts", store=tmp_path / "s", encoder="mine"
        )
    assert (report.texts, report.texts_kept) == (50, 50)
    assert sorted(Store.open(tmp_path / "s").texts) == sorted([*new, *old])
