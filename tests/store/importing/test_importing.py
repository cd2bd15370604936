"""Existing embeddings in all layouts: what is stored, what is refused, and that the store works like any other."""

import json
import signal
import subprocess
import sys

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from clip_folders import DIM, clip_retrieval, unit
from frevl.errors import InputError
from frevl.store.importing.layouts import open_parts
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify


def test_a_clip_retrieval_folder(tmp_path, frevl):
    images, captions = clip_retrieval(tmp_path / "clip")
    said = frevl("import", tmp_path / "clip", "--store", tmp_path / "store", "--encoder", "ViT-B-32", "--revision",
                 "laion2b", "--common-space", "--json", tmp_path / "out.json", "--quiet")  # fmt: skip
    assert said.code == 0, said.err
    assert "Imported 5 images and 5 texts" in said.out
    assert "All vectors had unit length." in said.out
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["images"], record["texts"], record["scaled"], record["rejects"]) == (5, 5, 0, [])

    store = Store.open(tmp_path / "store")
    assert store.encoders == ["ViT-B-32"]
    assert verify(tmp_path / "store") == []
    ids = [f"/data/pictures/dir/{i}.jpg" for i in range(5)]
    assert sorted(store.image_ids) == ids
    # Bit for bit what stood in the files: nothing is scaled that has unit length already.
    assert np.array_equal(store.read_images(ids), images.astype(np.float16).astype(np.float32))
    assert np.array_equal(store.read_texts(["caption 4"]), captions[4:].astype(np.float16).astype(np.float32))
    identity = store.towers["ViT-B-32-image"].identity
    assert identity["revision"] == "laion2b"
    assert identity["common_space"] == store.towers["ViT-B-32-text"].identity["common_space"]
    assert store.metadata("image") == {"caption": pa.string(), "width": pa.int64(), "exif_make": pa.string()}
    assert sorted(store.matching("image", "width > 642 AND exif_make IS NULL")) == ids[3:]


def test_again_is_nothing_to_do_and_parts_may_be_added(tmp_path):
    clip_retrieval(tmp_path / "clip")
    first = import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="clip")
    again = import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="clip")
    assert (first.images, first.images_kept, first.texts) == (5, 0, 5)
    assert (again.images, again.images_kept, again.texts_kept, again.rejects) == (0, 5, 5, [])
    clip_retrieval(tmp_path / "more", sizes=(3, 2, 2))
    more = import_embeddings(tmp_path / "more", store=tmp_path / "store", encoder="clip")
    assert (more.images, more.images_kept) == (2, 5)


DOOMED = """
import os, signal, sys
import frevl.store.importing.vectors, frevl.store.writer
from frevl.cli.main import main

frevl.store.importing.vectors._COMMIT_BYTES = 20
original, calls = frevl.store.commits.table_writer.append_rows, []
def third(path, name, rows):
    calls.append(name)
    if calls.count("images") == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    original(path, name, rows)
frevl.store.commits.table_writer.append_rows = third
main()
"""


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on(tmp_path, frevl):
    images, _ = clip_retrieval(tmp_path / "clip")
    np.save(tmp_path / "clip/img_emb/img_emb_0.npy", np.array([images[0], [np.nan] * DIM, images[2]], np.float32))
    arguments = ["import", tmp_path / "clip", "--store", tmp_path / "s", "--encoder", "e", "--quiet"]
    killed = subprocess.run([sys.executable, "-c", DOOMED, *map(str, arguments)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(Store.open(tmp_path / "s").image_ids) == 2
    assert frevl("store", "info", tmp_path / "s").out.startswith(
        f"'frevl import {tmp_path / 'clip'} --encoder e', begun 20"
    )
    said = frevl(*arguments)
    assert frevl("store", "info", tmp_path / "s").out.startswith(f"{tmp_path / 's'}: 4 images")
    assert "Imported 2 images and 5 texts" in said.out
    assert "2 images and 0 texts were already in the store" in said.out
    store = Store.open(tmp_path / "s")
    assert sorted(store.image_ids) == [f"/data/pictures/dir/{i}.jpg" for i in (0, 2, 3, 4)]
    assert [reject.reason.rpartition(": ")[2] for reject in store.rejects()] == ["its vector is not finite"]
    assert verify(tmp_path / "s") == []


def test_memory_is_bounded_by_blocks(tmp_path):
    np.save(tmp_path / "v.npy", unit(997))
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(997))))
    (part,) = open_parts(
        tmp_path / "v.npy", of="text", ids=tmp_path / "ids.txt", id_column=None, vector_column=None, array=None
    )
    blocks = list(part.blocks(100))
    assert [len(block.vectors) for block in blocks] == [100] * 9 + [97]
    assert blocks[9].first == 900
    assert blocks[9].columns["id"].to_pylist()[0] == "900"
    assert np.array_equal(blocks[9].vectors, unit(997)[900:])
    assert isinstance(blocks[0].vectors.base, np.memmap)


def test_ids_become_paths_below_the_folder_of_the_images(tmp_path):
    (tmp_path / "pictures/dir").mkdir(parents=True)
    np.save(tmp_path / "v.npy", unit(2))
    (tmp_path / "ids.txt").write_text(f"{tmp_path}/pictures/dir/a.jpg\nelsewhere/b.jpg\n")
    import_embeddings(
        tmp_path / "v.npy", store=tmp_path / "s", encoder="e", of="images", ids=tmp_path / "ids.txt",
        images=tmp_path / "pictures",
    )  # fmt: skip
    assert sorted(Store.open(tmp_path / "s").image_ids) == ["dir/a.jpg", "elsewhere/b.jpg"]


def write_vectors(path, vectors, ids):
    """Write vectors in the format that the ending names; returns the flags that go with it."""
    vectors = vectors.astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
    table = pa.table({"id": ids, "vector": lists if path.suffix != ".parquet" else lists.cast(pa.list_(pa.float32()))})
    beside = path.parent / "ids.json"
    beside.write_text(json.dumps(ids))
    if path.suffix == ".npy":
        np.save(path, vectors)
    elif path.suffix == ".npz":
        np.savez_compressed(path, other=np.zeros(3), vectors=vectors)
        return {"ids": beside, "array": "vectors"}
    elif path.suffix == ".safetensors":
        save_file({"vectors": vectors}, path)
    else:
        if path.suffix == ".parquet":
            pq.write_table(table, path, row_group_size=2)
        elif path.suffix == ".lance":
            lance.write_dataset(table, path)
        else:
            options = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
            with pa.OSFile(str(path), "wb") as sink, options(sink, table.schema) as writer:
                writer.write_table(table)
        return {}
    return {"ids": beside}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "parquet", "feather", "arrow", "lance"])
def test_every_format_gives_the_same_store(tmp_path, ending):
    vectors, ids = unit(7, seed=3), [f"{i}.png" for i in range(7)]
    flags = write_vectors(tmp_path / f"v.{ending}", vectors, ids)
    report = import_embeddings(
        tmp_path / f"v.{ending}", store=tmp_path / "s", encoder="e", of="images", dtype="float32", **flags
    )
    assert report.images == 7
    store = Store.open(tmp_path / "s")
    assert np.array_equal(store.read_images(ids), vectors.astype(np.float32))
    assert store.towers["e-image"].identity["dtype"] == "float32"


def test_parts_without_vectors_are_said_and_get_no_pairs(tmp_path):
    clip_retrieval(tmp_path / "clip", sizes=(3, 2, 4))
    (tmp_path / "clip/img_emb/img_emb_1.npy").unlink()
    (tmp_path / "clip/text_emb/text_emb_2.npy").unlink()
    report = import_embeddings(
        tmp_path / "clip", store=tmp_path / "s", encoder="e", write_pairs=tmp_path / "pairs.jsonl"
    )
    assert (report.images, report.texts) == (7, 5)
    parts = f"{tmp_path}/clip/"
    assert report.notes == [
        f"{parts}img_emb is missing 1 of 3 parts (1): 2 images of the metadata were not imported.",
        f"{parts}text_emb is missing 1 of 3 parts (2): 4 texts of the metadata were not imported.",
        kept_out := "Not kept, being neither numbers, text, booleans nor times: boxes.",
        f"Wrote 3 pairs to {tmp_path}/pairs.jsonl.",
    ]
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [pair["text"] for pair in pairs] == ["caption 0", "caption 1", "caption 2"]
    only = import_embeddings(tmp_path / "clip", store=tmp_path / "t", encoder="e", of="texts")
    missing = f"{parts}text_emb is missing 1 of 3 parts (2): 4 texts of the metadata were not imported."
    assert only.notes == [missing, kept_out]


def test_a_mark_at_the_beginning_is_no_part_of_the_first_id(tmp_path):
    np.save(tmp_path / "v.npy", unit(2))
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbfa.png\r\nb.png\r\n")
    import_embeddings(tmp_path / "v.npy", store=tmp_path / "s", encoder="e", of="images", ids=tmp_path / "ids.txt")
    assert sorted(Store.open(tmp_path / "s").image_ids) == ["a.png", "b.png"]


def test_bfloat16_and_float64(tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch

    (tmp_path / "ids.txt").write_text("a\nb\n")
    vectors = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    save_torch({"v": vectors.bfloat16()}, tmp_path / "v.safetensors")
    np.save(tmp_path / "w.npy", vectors.double().numpy())
    for number, name in enumerate(("v.safetensors", "w.npy")):
        store = tmp_path / f"s{number}"
        import_embeddings(tmp_path / name, store=store, encoder="e", of="texts", ids=tmp_path / "ids.txt")
        assert Store.open(store).read_texts(["b", "a"]).tolist() == [[0, -1], [1, 0]]


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_vectors_of_a_machine_of_another_byte_order(tmp_path, ending):
    vectors = unit(3).astype(np.float32)
    (tmp_path / "ids.txt").write_text("a\nb\nc\n")
    if ending == "npy":
        np.save(tmp_path / "v.npy", vectors.astype(">f4"))
    else:
        np.savez(tmp_path / "v.npz", vectors.astype(">f4"))
    import_embeddings(
        tmp_path / f"v.{ending}", store=tmp_path / "s", encoder="e", of="images", ids=tmp_path / "ids.txt",
        dtype="float32",
    )  # fmt: skip
    assert np.array_equal(Store.open(tmp_path / "s").read_images(["a", "b", "c"]), vectors)


def test_ids_come_in_many_forms(tmp_path):
    np.save(tmp_path / "v.npy", unit(2))
    (tmp_path / "lines.txt").write_text("a dog\r\na\u2028cat\n", newline="")
    (tmp_path / "list.json").write_text(json.dumps(["a dog", "a\u2028cat"]))
    (tmp_path / "rows.jsonl").write_text('{"caption": "a dog"}\n{"caption": "a\u2028cat"}\n')
    pq.write_table(pa.table({"caption": ["a dog", "a\u2028cat"], "id": [5, 6]}), tmp_path / "t.parquet")
    for number, name in enumerate(("lines.txt", "list.json", "rows.jsonl")):
        import_embeddings(
            tmp_path / "v.npy", store=tmp_path / str(number), encoder="e", of="texts", ids=tmp_path / name
        )
        assert sorted(Store.open(tmp_path / str(number)).texts) == ["a dog", "a\u2028cat"]
    import_embeddings(
        tmp_path / "v.npy", store=tmp_path / "t", encoder="e", of="texts", ids=tmp_path / "t.parquet",
        id_column="caption",
    )  # fmt: skip
    store = Store.open(tmp_path / "t")
    assert store.matching("text", "metadata_id = 6") == ["a\u2028cat"]


def test_ids_of_windows_and_of_columns_with_gaps(tmp_path):
    np.save(tmp_path / "v.npy", unit(3))
    (tmp_path / "ids.txt").write_text("é 1\r\n2\r\n3\r\n", encoding="utf-16", newline="")
    import_embeddings(tmp_path / "v.npy", store=tmp_path / "a", encoder="e", of="texts", ids=tmp_path / "ids.txt")
    assert sorted(Store.open(tmp_path / "a").texts) == ["2", "3", "é 1"]
    # pandas makes floats of whole numbers where one is missing.
    pq.write_table(pa.table({"id": [1.0, np.nan, 3.0], "v": unit(3).tolist()}), tmp_path / "t.parquet")
    report = import_embeddings(tmp_path / "t.parquet", store=tmp_path / "b", encoder="e", of="images")
    assert sorted(Store.open(tmp_path / "b").image_ids) == ["1", "3"]
    assert [reject.reason for reject in report.rejects] == ["it has no id"]
    pq.write_table(pa.table({"id": [1e15, np.nan, 2.0**53 - 1], "v": unit(3).tolist()}), tmp_path / "t.parquet")
    import_embeddings(tmp_path / "t.parquet", store=tmp_path / "c", encoder="e", of="images")
    assert sorted(Store.open(tmp_path / "c").image_ids) == ["1000000000000000", "9007199254740991"]
    for wrong in (0.5, 2.0**53):
        pq.write_table(pa.table({"id": [1.0, wrong, 3.0], "v": unit(3).tolist()}), tmp_path / "t.parquet")
        with pytest.raises(InputError, match=rf"'id' are floats, and {wrong!r} is no exact whole number"):
            import_embeddings(tmp_path / "t.parquet", store=tmp_path / "d", encoder="e", of="images")


def test_numbers_that_only_float64_holds_keep_their_direction(tmp_path):
    np.save(tmp_path / "v.npy", np.array([[3e200, 4e200], [3e-200, -4e-200], [0.6, 0.8], [0.0, np.inf]]))
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    report = import_embeddings(
        tmp_path / "v.npy", store=tmp_path / "s", encoder="e", of="images", ids=tmp_path / "ids.txt", dtype="float32"
    )
    assert (report.images, report.scaled, len(report.rejects)) == (3, 2, 1)
    vectors = Store.open(tmp_path / "s").read_images(["a", "b", "c"])
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0.6, -0.8], [0.6, 0.8]], rtol=1e-6)


def test_columns_that_cannot_be_kept_are_named(tmp_path):
    pq.write_table(
        pa.table(
            {"id": ["a"], "v": unit(1).tolist(), "year": [1999], "boxes": [[1, 2]], "raw": [b"x"], "none": pa.nulls(1)}
        ),
        tmp_path / "t.parquet",
    )
    report = import_embeddings(tmp_path / "t.parquet", store=tmp_path / "s", encoder="e", of="images")
    assert report.notes == ["Not kept, being neither numbers, text, booleans nor times: boxes, raw."]
    assert Store.open(tmp_path / "s").metadata("image") == {"year": pa.int64()}


def test_lengths_are_detected_said_and_fixed(tmp_path):
    vectors = np.array([[3.0, 4.0], [0.6, 0.8], [3e30, 4e30], [6e-39, 8e-39]], np.float32)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    report = import_embeddings(
        tmp_path / "v.npy", store=tmp_path / "s", encoder="e", of="images", ids=tmp_path / "ids.txt"
    )
    assert report.scaled == 3
    assert "3 of 4 vectors did not have unit length and were normalised." in report.sentence()
    found = Store.open(tmp_path / "s").read_images(["a", "b", "c", "d"])
    assert np.allclose(found, [[0.6, 0.8]] * 4, atol=3e-4)


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path):
    nan, inf = [np.nan, 0.0], [0.0, np.inf]
    rows = [[1.0, 0.0], nan, inf, [0.0, 0.0], [0.0, 1.0], [1.0, 0.0], None, [1.0, 2.0, 3.0], [1.0, 0.0], [1.0, None]]
    ids = ["a.png", "nan.png", "inf.png", "zero.png", "a.png", None, "null.png", "wide.png", " ", "hole.png"]
    pq.write_table(pa.table({"id": ids, "v": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "t.parquet")
    report = import_embeddings(tmp_path / "t.parquet", store=tmp_path / "s", encoder="e", of="images")
    assert (report.images, len(report.rejects)) == (1, 9)
    reasons = {reject.id: reject.reason for reject in report.rejects}
    place = f"{tmp_path}/t.parquet, row "
    assert reasons == {
        "nan.png": place + "2: its vector is not finite",
        "inf.png": place + "3: its vector is not finite",
        "zero.png": place + "4: its vector is zero",
        "a.png": place + "5: the id appears twice with different vectors; the first one is kept",
        place + "6": "it has no id",
        "null.png": place + "7: it has no vector",
        "wide.png": place + "8: expected 2 numbers, found 3",
        place + "9": "its id is empty",
        "hole.png": place + "10: its vector is not finite",
    }
    assert {reject.id for reject in Store.open(tmp_path / "s").rejects()} == set(reasons)
    assert Store.open(tmp_path / "s").read_images(["a.png"]).tolist() == [[1, 0]]


def test_an_image_that_stands_beside_each_of_its_captions_is_no_reject(tmp_path):
    clip_retrieval(tmp_path / "clip", sizes=(4,))
    vectors = np.load(tmp_path / "clip/img_emb/img_emb_0.npy")
    vectors[2] = vectors[1]
    np.save(tmp_path / "clip/img_emb/img_emb_0.npy", vectors)
    metadata = pq.read_table(tmp_path / "clip/metadata/metadata_0.parquet").drop_columns(["image_path"])
    twice = metadata.append_column("image_path", [["a.jpg", "b.jpg", "b.jpg", "a.jpg"]])
    pq.write_table(twice, tmp_path / "clip/metadata/metadata_0.parquet")
    pairs = tmp_path / "pairs.jsonl"
    report = import_embeddings(tmp_path / "clip", store=tmp_path / "s", encoder="e", write_pairs=pairs)
    assert (report.images, report.texts, report.repeats) == (2, 4, 1)
    assert "Rows that repeat an item with the same vector: 1." in report.sentence()
    assert [(reject.id, reject.reason.rpartition(", ")[2]) for reject in report.rejects] == [
        ("a.jpg", "row 4: the id appears twice with different vectors; the first one is kept")
    ]
    written = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert [(row["image"], row["text"]) for row in written] == [
        ("a.jpg", "caption 0"),
        ("b.jpg", "caption 1"),
        ("b.jpg", "caption 2"),
        ("a.jpg", "caption 3"),
    ]


def test_an_import_of_which_nothing_can_be_used_has_failed(tmp_path, monkeypatch, frevl):
    monkeypatch.chdir(tmp_path)
    clip_retrieval(tmp_path / "clip", sizes=(3,))
    np.save("clip/img_emb/img_emb_0.npy", np.array([[np.nan] * 5, [0.0] * 5, [np.inf] * 5]))
    said = frevl("import", "clip", "--store", "s", "--encoder", "e", "--quiet")
    assert said.code == 1
    assert said.err.startswith(
        "frevl: clip: expected image vectors, found no usable ones. Left out: 3 images (/data/pictures/dir/"
        "0.jpg: clip/img_emb/img_emb_0.npy, row 1: its vector is not finite; "
    )
    assert len(said.err.strip().splitlines()) == 1
    assert (Store.open("s").image_ids, len(Store.open("s").texts), len(Store.open("s").rejects())) == ([], 3, 3)


def test_the_same_picture_under_two_names_is_still_found(tmp_path):
    np.save(tmp_path / "v.npy", np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    (tmp_path / "ids.txt").write_text("a\nb\nc\n")
    import_embeddings(tmp_path / "v.npy", store=tmp_path / "s", encoder="e", of="images", ids=tmp_path / "ids.txt")
    hashes = Store.open(tmp_path / "s").content_hashes(["a", "b", "c"])
    assert hashes["a"] == hashes["c"] != hashes["b"]
