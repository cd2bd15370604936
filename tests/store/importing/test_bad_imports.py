"""What an import refuses: one sentence for each bad input."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_folders import clip_retrieval, unit
from frevl.errors import InputError
from frevl.store.importing.vectors import import_embeddings

BAD = {
    "no ids": (["v.npy", "--of", "images"], 2, "an array contains no ids; give a list of them in the same order with "
        "--ids FILE"),
    "no of": (["v.npy", "--ids", "two.txt"], 2, "specify what the vectors represent with --of images or --of texts"),
    "wrong of": (["v.npy", "--of", "videos", "--ids", "two.txt"], 2, "must be 'images' or 'texts', found 'videos'"),
    "numbers": (
        ["v.npy", "--of", "images", "--ids", "two.txt"],
        1,
        "two.txt: expected one id for each of the 3 vectors of v.npy, found 2 ids",
    ),
    "nothing there": (["none"], 1, "none: no such file of vectors or ids"),
    "missing": (["none.npy", "--of", "images", "--ids", "two.txt"], 1, "none.npy: no such file of vectors or ids"),
    "kind": (["v.txt", "--of", "images", "--ids", "two.txt"], 1, "v.txt: expected vectors in a .npy, .npz"),
    "shape": (["flat.npy", "--of", "images", "--ids", "two.txt"], 1, "found shape (3,) of float64"),
    "pickle": (["pickle.npy", "--of", "images", "--ids", "two.txt"], 1, "pickle.npy: the file cannot be read"),
    "integers": (
        ["int.npy", "--of", "images", "--ids", "two.txt"],
        1,
        "found shape (2, 2) of int64; if these are embeddings, save them as floats, with numpy: "
        "values.astype('float32')",
    ),
    "lists of integers": (
        ["int.parquet", "--of", "images"],
        1,
        "found id, v; 'v' holds whole numbers: if these are embeddings, save them as floats",
    ),
    "cut": (["cut.npy", "--of", "images", "--ids", "two.txt"], 1, "needs 120 bytes, found 112; the file is truncated"),
    "no array": (["two.npz", "--of", "images", "--ids", "two.txt"], 2, "name one of its arrays with --array: a, b"),
    "wrong array": (
        ["two.npz", "--of", "images", "--ids", "two.txt", "--array", "c"],
        2,
        "there is no array 'c'. Valid: 'a', 'b'.",
    ),
    "no vectors": (["t.parquet", "--of", "images"], 1, "expected a column with one list of floats per row, found"),
    "id column": (
        ["u.parquet", "--of", "images", "--id-column", "nam"],
        2,
        "there is no column 'nam'. Did you mean 'name'?",
    ),
    "unknown id": (["u.parquet", "--of", "images"], 2, "name the column to use with --id-column; there are: name"),
    "folder": (["empty", "--of", "images"], 1, "expected a clip-retrieval folder with 'img_emb' or 'text_emb' in it"),
    "no metadata": (["bare"], 1, "expected its ids in bare/metadata/metadata_0.parquet, found none"),
    "ids of a table": (["u.parquet", "--of", "images", "--ids", "two.txt"], 2, "a table contains its own ids"),
    "no encoder": (["v.npy", "--of", "images", "--ids", "two.txt", "--encoder", " "], 2, "needs a name"),
    "dtype": (["v.npy", "--of", "images", "--ids", "two.txt", "--dtype", "int8"], 2, "'float16' or 'float32'"),
    "no folder": (["u.parquet", "--of", "images", "--images", "none", "--id-column", "name"], 1, "expected a folder"),
    "float id": (
        ["v.npy", "--of", "images", "--ids", "float.json"],
        1,
        "float.json, id 2: expected text or a whole number, found 1.0",
    ),
    "true as id": (["v.npy", "--of", "images", "--ids", "true.json"], 1, "true.json, id 3: expected text or a whole"),
    "line of ids": (
        ["v.npy", "--of", "images", "--ids", "cut.jsonl"],
        1,
        "cut.jsonl:3: expected JSON, found malformed JSON at column 7",
    ),
    "mixed column": (["v.npy", "--of", "images", "--ids", "mixed.json"], 1, "the values of 'm' are of different kinds"),
    "all bad": (["nan.parquet", "--of", "images"], 1, "nan.parquet: expected vectors, found none"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(tmp_path, monkeypatch, frevl, case):
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", unit(3))
    np.save("flat.npy", np.ones(3))
    np.save("int.npy", np.ones((2, 2), np.int64))
    pq.write_table(pa.table({"id": ["a"], "v": [[1, 2]]}), "int.parquet")
    np.save("pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez("two.npz", a=unit(2), b=unit(2))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "v.npy").read_bytes()[:-8])
    (tmp_path / "v.txt").write_text("1 2 3")
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "float.json").write_text('["a", 1.0, 3]')
    (tmp_path / "true.json").write_text('["a", 2, true]')
    (tmp_path / "cut.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n{"id":\n')
    (tmp_path / "mixed.json").write_text('[{"id": "a", "m": "1"}, {"id": "b", "m": 2}, {"id": "c"}]')
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare/img_emb").mkdir(parents=True)
    np.save("bare/img_emb/img_emb_0.npy", unit(3))
    pq.write_table(pa.table({"id": ["a"], "n": [1]}), "t.parquet")
    pq.write_table(pa.table({"name": ["a"], "v": [[1.0, 2.0]]}), "u.parquet")
    pq.write_table(pa.table({"id": ["a"], "v": pa.array([None], pa.list_(pa.float32()))}), "nan.parquet")
    arguments, code, words = BAD[case]
    encoder = [] if "--encoder" in arguments else ["--encoder", "e"]
    said = frevl("import", *arguments, *encoder, "--store", "s", "--quiet")
    assert said.code == code, said
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_parts_of_different_widths_leave_nothing_behind(tmp_path):
    clip_retrieval(tmp_path / "clip", sizes=(3, 2))
    np.save(tmp_path / "clip/img_emb/img_emb_1.npy", unit(2, dim=7))
    with pytest.raises(
        InputError,
        match=r"img_emb_1.npy: expected vectors of 5 numbers as in .*img_emb_0.npy, found 7; .* Nothing was imported",
    ):
        import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="clip")
    assert not (tmp_path / "store").exists()
    # A part without rows has no width.
    clip_retrieval(tmp_path / "more", sizes=(3, 0))
    np.save(tmp_path / "more/img_emb/img_emb_1.npy", np.zeros((0, 7)))
    assert import_embeddings(tmp_path / "more", store=tmp_path / "store", encoder="clip").images == 3


def test_what_was_imported_before_a_damaged_part_is_said_and_kept(tmp_path):
    clip_retrieval(tmp_path / "clip", sizes=(3, 2), texts=False)
    described = tmp_path / "clip/metadata/metadata_1.parquet"
    whole = described.read_bytes()
    damaged = bytearray(whole)
    damaged[4:60] = b"\xff" * 56  # the data; the footer, which is read before anything is written, stays sound
    described.write_bytes(damaged)
    with pytest.raises(InputError, match=r"metadata_1.parquet: .*\. The 3 images and 0 texts imported before "):
        import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="clip")
    described.write_bytes(whole)
    again = import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="clip")
    assert (again.images, again.images_kept) == (2, 3)
