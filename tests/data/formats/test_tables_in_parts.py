"""Pairs in a folder of Parquet, Arrow or Feather files, and in files chosen by a pattern, are one table."""

import json

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from frevl.data.formats.arrow_rows import pictures_of
from frevl.data.formats.arrow_tables import open_arrow
from frevl.data.pairs import read_pairs
from frevl.errors import PairsError
from frevl.store.reader import Store


def table(first, count, **columns):
    rows = range(first, first + count)
    made = {"image": [f"{row}.jpg" for row in rows], "text": [f"a text {row}" for row in rows], "n": list(rows)}
    return pa.table({**made, **columns})


def written(path, rows):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(rows, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)


@pytest.fixture
def folder(tmp_path):
    """Three files, of which the tenth comes last although its name sorts first, and what tools leave beside them."""
    for number, first, count in ((2, 3, 2), (10, 5, 4), (1, 0, 3)):
        written(tmp_path / "parts" / f"part-{number}.parquet", table(first, count))
    for name in ("_SUCCESS", ".part-1.parquet.crc", "._part-3.parquet", "part-1_stats.json"):
        (tmp_path / "parts" / name).write_text("{}")
    return tmp_path / "parts"


@pytest.mark.parametrize("large", [False, True])
def test_a_folder_is_one_table_in_the_order_of_numbers(folder, monkeypatch, large):
    monkeypatch.setattr("frevl.data.pairs._LARGE_TABLE", 0 if large else 1 << 30)
    pairs = read_pairs(folder)
    assert list(pairs.images) == [f"{row}.jpg" for row in range(9)]
    assert [one["n"] for one in pairs.extras] == list(range(9))
    expected = [("part-1", 1), ("part-1", 2), ("part-1", 3), ("part-2", 1), ("part-2", 2)]
    expected += [("part-10", row) for row in (1, 2, 3, 4)]
    assert list(pairs.places) == [f"{folder}/{name}.parquet:{row}" for name, row in expected]
    assert pairs.source == str(folder)
    some = read_pairs(str(folder / "part-1*.parquet"))
    assert list(some.images) == [f"{row}.jpg" for row in (0, 1, 2, 5, 6, 7, 8)]
    again = read_pairs(folder)  # the cached one, where there is a cache
    assert list(again.places) == list(pairs.places)
    written(folder / "part-2.parquet", table(30, 2))  # a changed file is noticed
    assert list(read_pairs(folder).images)[3:5] == ["30.jpg", "31.jpg"]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_rejects_name_the_file_and_empty_columns_have_any_type(tmp_path, monkeypatch, ending, large):
    monkeypatch.setattr("frevl.data.pairs._LARGE_TABLE", 0 if large else 1 << 30)
    written(tmp_path / "d" / f"0.{ending}", table(0, 2, note=pa.nulls(2)))
    written(tmp_path / "d" / f"1.{ending}", table(2, 3, note=["x", None, "y"], text=["a", "  ", "b"]))
    pairs = read_pairs(tmp_path / "d")
    assert [(one.id, one.reason) for one in pairs.rejected] == [
        (f"{tmp_path}/d/1.{ending}:2", "field 'text': expected text, found only blanks")
    ]
    assert [one["note"] for one in pairs.extras] == [None, None, "x", "y"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train-0-of-1", "test-0-of-1"], r"may be different splits: .* a pattern .* 'P/test-\*-of-\*.parquet'"),
        (["a", "b"], "expected the files of one table, whose names differ only in numbers, found a.parquet, b.parquet"),
        (["train-0-of-3", "train-2-of-3"], "expected all 3 files of the table, .* found 2; number 1 is missing"),
        (["sub/0", "other/0"], r"found only folders of them; give one, such as 'P/other' \(of 2\)"),
        ([], "found 'P', a folder without any; list its images in a file"),
    ],
)
def test_folders_that_are_not_one_table_are_refused(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "P").mkdir()
    for name in files:
        written(tmp_path / "P" / f"{name}.parquet", table(0, 2))
    with pytest.raises(PairsError, match=message):
        read_pairs("P")


def test_other_columns_a_damaged_file_and_lines_are_named(tmp_path):
    written(tmp_path / "d" / "0.parquet", table(0, 2))
    written(tmp_path / "d" / "1.parquet", table(0, 2, label=["x", "y"]))
    with pytest.raises(PairsError, match=r"1.parquet: expected the columns of .*0.parquet, found a difference in 'lab"):
        read_pairs(tmp_path / "d")
    (tmp_path / "d" / "1.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(PairsError, match=r"1.parquet, after row 0: the table cannot be read"):
        read_pairs(tmp_path / "d")
    (tmp_path / "lines").mkdir()
    for number in range(2):
        (tmp_path / "lines" / f"{number}.jsonl").write_text('{"image": "a", "text": "b"}\n')
    for place in (tmp_path / "lines", tmp_path / "lines" / "*.jsonl"):
        with pytest.raises(PairsError, match=r"found 0.jsonl \(of 2\); give one file of pairs"):
            read_pairs(place)
    with pytest.raises(PairsError, match="found no file of such a name; check the path"):
        read_pairs(tmp_path / "none-*.parquet")


def test_images_with_the_same_path_in_two_files_get_ids_of_their_content(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(2):
        content = [{"bytes": b"\xff\xd8\xff" + bytes([number, row]), "path": f"{row}.jpg"} for row in range(2)]
        written(tmp_path / "d" / f"{number}.parquet", pa.table({"image": pa.array(content, kind), "text": ["a", "b"]}))
    pairs, pictures = read_pairs(tmp_path / "d"), dict(pictures_of(open_arrow(tmp_path / "d"), {}))
    assert len(set(pairs.images)) == 4
    assert list(pictures) == pairs.images
    assert all(id_.startswith("sha256-") for id_ in pictures)


@pytest.mark.slow
def test_a_table_in_parts_goes_from_images_to_scores(frevl, made, tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    lines = [json.loads(line) for line in made.train_file.read_text(encoding="utf-8").splitlines()]
    for number in range(3):
        part = lines[number::3]
        images = [{"bytes": (made.images / one["image"]).read_bytes(), "path": one["image"]} for one in part]
        rows = {"image": pa.array(images, kind), "text": [one["text"] for one in part],
                "target": [one["target"] for one in part]}  # fmt: skip
        written(tmp_path / "hub" / f"train-{number:05d}-of-00003.parquet", pa.table(rows))
    store, run, out = tmp_path / "store", tmp_path / "run", tmp_path / "scores.jsonl"
    assert frevl("extract", "--store", store, "--pairs", tmp_path / "hub", "--encoder", "toy").code == 0
    assert set(Store.open(store).image_ids) == {one["image"] for one in lines}
    given = ("--store", store, "--pairs", tmp_path / "hub")
    done = frevl("train", *given, "--task", "classification", "--model", "linear", "--run", run)
    assert done.code == 0, done.err
    pattern = tmp_path / "hub" / "train-00001*.parquet"
    done = frevl("score", "--store", store, "--run", run, "--pairs", pattern, "--out", out)
    assert done.code == 0, done.err
    assert [json.loads(line)["image"] for line in out.read_text().splitlines()] == [one["image"] for one in lines[1::3]]
    for wrong in (tmp_path / "hub" / "train-00001-of-00003.parquet", tmp_path / "hub" / "train-00002-of-00003.parquet"):
        done = frevl("score", "--store", store, "--run", run, "--pairs", tmp_path / "hub", "--out", wrong)
        assert done.code == 2
        assert "would overwrite" in done.err
    done = frevl("score", "--store", store, "--run", run, "--pairs", pattern, "--out",
                 tmp_path / "hub" / "train-00001-of-00003.parquet")  # fmt: skip
    assert done.code == 2
    assert "writing would destroy it" in done.err


def with_features(rows, **features):
    return rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize("large", [False, True])
def test_classes_have_the_names_that_hugging_face_keeps_beside_the_table(tmp_path, monkeypatch, large):
    monkeypatch.setattr("frevl.data.pairs._LARGE_TABLE", 0 if large else 1 << 30)
    names = {"_type": "ClassLabel", "names": ["cat", "dog", "007"]}
    rows = table(0, 5, label=[0, 1, 2, -1, None], n=[1, 0, 1, 0, 7])
    written(tmp_path / "d" / "0.parquet", with_features(rows, label=names, n=names))
    for place in (tmp_path / "d", tmp_path / "d" / "0.parquet"):
        pairs = read_pairs(place, columns="target=label")
        assert list(pairs.targets) == ["cat", "dog", "007", None, None]
        assert [one["n"] for one in pairs.extras] == ["dog", "cat", "dog", "cat", "7"]
    assert list(read_pairs(with_features(rows, label=names), columns="target=label").targets)[:3] == [
        "cat",
        "dog",
        "007",
    ]
    for damaged in (3, {**names, "names": 7}, {"_type": "ClassLabel"}, {**names, "names": ["a", "a"]}):
        written(tmp_path / "d" / "0.parquet", with_features(rows, label=damaged))
        assert list(read_pairs(tmp_path / "d", columns="target=label").targets) == ["0", "1", "2", "-1", None]
    written(tmp_path / "d" / "0.parquet", rows.replace_schema_metadata({"huggingface": "{"}))
    assert list(read_pairs(tmp_path / "d", columns="target=label").targets)[:2] == ["0", "1"]
