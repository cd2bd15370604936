"""Images inside Parquet, Arrow and Feather files are embedded straight from there."""

import io
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

import frevl.data.formats.arrow_tables
from frevl.data.pairs import read_pairs
from frevl.errors import InputError, PairsError
from frevl.evaluation.evaluation import evaluate
from frevl.runs.score_files import score_file
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from frevl.store.pictures.tables import TablePictures
from frevl.store.reader import Store
from frevl.store.upkeep.image_files import image_problems
from frevl.store.upkeep.verification import verify
from frevl.training.training import train

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(number, size=24):
    stream = io.BytesIO()
    colour = (40 * number % 256, 90 * number % 256, number % 256)
    Image.new("RGB", (size, size), colour).save(stream, "PNG")
    return stream.getvalue()


def table(numbers, path="{}.png", **more):
    rows = [{"bytes": png(n), "path": path and path.format(n)} for n in numbers]
    texts = [f"picture number {n}" for n in numbers]
    return pa.table({"image": pa.array(rows, PICTURE), "caption": texts, **more})


def by_name(store):
    return dict(zip(store.image_ids, store.read_images(store.image_ids), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_pictures_have_the_embeddings_of_their_files(tmp_path, kind):
    file = tmp_path / f"train.{kind}"
    (pq.write_table if kind == "parquet" else pyarrow.feather.write_feather)(table(range(5)), file)
    report = extract(tmp_path / "s", pairs=file, encoder="toy")
    assert (report.images, report.texts, report.rejects) == (5, 5, [])
    (tmp_path / "images").mkdir()
    for n in range(5):
        (tmp_path / "images" / f"{n}.png").write_bytes(png(n))
    extract(tmp_path / "of_files", images=tmp_path / "images", encoder="toy")
    inside, outside = by_name(Store.open(tmp_path / "s")), by_name(Store.open(tmp_path / "of_files"))
    assert list(inside) == [f"{n}.png" for n in range(5)]
    for name, values in inside.items():
        np.testing.assert_array_equal(values, outside[name])
    again = extract(tmp_path / "s", pairs=file, encoder="toy")
    assert (again.images, again.images_kept, again.images_copied) == (0, 5, 0)
    more = extract(tmp_path / "s", pairs=file, encoder=["toy", "toy2"])
    assert (more.images, more.images_kept) == (5, 0)


def test_pictures_without_names_train_and_score(tmp_path):
    targets = ["even" if n % 2 == 0 else "odd" for n in range(24)]
    pq.write_table(table(range(24), path=None, target=targets), tmp_path / "train.parquet")
    extract(tmp_path / "s", pairs=tmp_path / "train.parquet", encoder="toy")
    store = Store.open(tmp_path / "s")
    assert all(name.startswith("sha256-") for name in store.image_ids)
    run = train(store, tmp_path / "train.parquet", run=tmp_path / "r", task="classification", model="linear")
    assert evaluate(Scorer(run, store), tmp_path / "train.parquet").n == 24
    score_file(Scorer(run, store), tmp_path / "train.parquet", tmp_path / "scores.jsonl")
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert len(lines) == 24
    assert set(json.loads(lines[0])) == {"image", "text", "target", "label", "probability", "top"}
    assert max(map(len, lines)) < 400


def test_pictures_of_a_table_in_memory_train_too(tmp_path):
    targets = ["even" if n % 2 == 0 else "odd" for n in range(12)]
    data = table(range(12), answer=targets)
    extract(tmp_path / "s", pairs=data, columns={"target": "answer"}, encoder="toy")
    store = Store.open(tmp_path / "s")
    assert store.image_ids == [f"{n}.png" for n in range(12)]
    run = train(
        store, read_pairs(data, columns={"target": "answer"}), run=tmp_path / "r", task="classification", model="linear"
    )
    assert run.labels == ["even", "odd"]
    again = extract(tmp_path / "s", pairs=[data], encoder="toy")
    assert (again.images, again.images_kept) == (0, 12)


def test_pictures_and_labels_alone_are_embedded(tmp_path):
    labelled = table(range(4), target=["a", "b"] * 2).select(["image", "target"])
    pq.write_table(labelled, tmp_path / "t.parquet")
    report = extract(tmp_path / "s", pairs=tmp_path / "t.parquet", encoder="toy")
    assert (report.images, report.texts) == (4, 0)


def test_only_the_columns_that_are_needed_are_read(tmp_path, monkeypatch):
    pq.write_table(table(range(3), thumbnail=[b"x" * 100] * 3, vector=[[0.5] * 100] * 3), tmp_path / "t.parquet")
    asked = set()
    batches = frevl.data.formats.arrow_tables.parquet_batches

    def noting(path, rows, names=None):
        if rows > 8:  # a look at the first rows decides what a column is
            asked.update(names)
        return batches(path, rows, names)

    monkeypatch.setattr("frevl.data.formats.arrow_tables.parquet_batches", noting)
    extract(tmp_path / "s", pairs=tmp_path / "t.parquet", encoder="toy")
    assert asked == {"image", "image.path", "caption"}


def test_the_columns_can_be_named(tmp_path, frevl):
    named = table(range(3), key=["x", "y", "z"], shown=pa.array([png(9)] * 3)).rename_columns(
        ["image", "caption", "key", "shown"]
    )
    pq.write_table(named, tmp_path / "t.parquet")
    done = frevl(
        "extract", "--pairs", tmp_path / "t.parquet", "--columns", "image=key,text=caption", "--encoder", "toy",
        "--store", tmp_path / "s",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert Store.open(tmp_path / "s").image_ids == ["x", "y", "z"]


def test_a_name_that_stands_for_another_picture_is_refused(tmp_path):
    pq.write_table(table([0, 1]), tmp_path / "train.parquet")
    other = table([7]).set_column(0, "image", pa.array([{"bytes": png(7), "path": "1.png"}], PICTURE))
    pq.write_table(other, tmp_path / "test.parquet")
    with pytest.raises(PairsError, match="test.parquet: the image '1.png' has different content from .* another table"):
        extract(tmp_path / "a", pairs=[tmp_path / "train.parquet", tmp_path / "test.parquet"], encoder="toy")
    extract(tmp_path / "b", pairs=tmp_path / "train.parquet", encoder="toy")
    before = by_name(Store.open(tmp_path / "b"))
    with pytest.raises(
        PairsError, match="'1.png' has different content from the image of this name in the store; give a"
    ):
        extract(tmp_path / "b", pairs=tmp_path / "test.parquet", encoder="toy")
    np.testing.assert_array_equal(by_name(Store.open(tmp_path / "b"))["1.png"], before["1.png"])


def test_a_picture_that_two_tables_have_is_stored_once(tmp_path):
    for name, numbers in (("train", range(4)), ("test", range(2, 6))):
        pq.write_table(table(numbers), tmp_path / f"{name}.parquet")
    report = extract(tmp_path / "s", pairs=[tmp_path / "train.parquet", tmp_path / "test.parquet"], encoder="toy")
    assert report.images == 6
    assert sorted(Store.open(tmp_path / "s").ids("image")) == [f"{n}.png" for n in range(6)]
    assert verify(tmp_path / "s") == []


def test_broken_pictures_are_rejects(tmp_path):
    rows = [{"bytes": b"no picture", "path": "a"}, {"bytes": png(1), "path": "b"}, {"bytes": None, "path": "c"}]
    pq.write_table(pa.table({"image": pa.array(rows, PICTURE), "text": ["x", "y", "z"]}), tmp_path / "t.parquet")
    report = extract(tmp_path / "s", pairs=tmp_path / "t.parquet", encoder="toy")
    assert report.images == 1
    assert [(one.kind, one.id) for one in report.rejects] == [("image", "a"), ("pair", f"{tmp_path}/t.parquet:3")]
    pq.write_table(pa.table({"image": pa.array(rows[:1], PICTURE), "text": ["x"]}), tmp_path / "u.parquet")
    with pytest.raises(InputError, match="u.parquet: expected images, found no image that can be read as one"):
        extract(tmp_path / "t", pairs=tmp_path / "u.parquet", encoder="toy")


def test_a_folder_neither_misses_nor_prunes_them(tmp_path):
    pq.write_table(table([0, 1]), tmp_path / "t.parquet")
    extract(tmp_path / "s", pairs=tmp_path / "t.parquet", encoder="toy")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "copy.png").write_bytes(png(0))
    report = extract(tmp_path / "s", images=tmp_path / "images", encoder="toy", prune=True)
    assert (report.images_copied, report.images_moved, report.images_gone) == (1, 0, 0)
    assert set(Store.open(tmp_path / "s").image_ids) == {"0.png", "1.png", "copy.png"}
    assert image_problems(Store.open(tmp_path / "s"), tmp_path / "images") == []


@pytest.mark.slow
def test_few_pictures_wait_in_memory(tmp_path, monkeypatch):
    pq.write_table(table(range(250)), tmp_path / "t.parquet")
    at_once, waiting, most = [], 0, 0
    batches, read, prepare = (
        frevl.data.formats.arrow_tables.parquet_batches,
        TablePictures.pictures,
        TablePictures.prepare,
    )

    def noting_rows(path, rows, names=None):
        for batch in batches(path, rows, names):
            if names == ["image"]:
                at_once.append(len(batch))
            yield batch

    def noting_read(self, tables, columns):
        nonlocal waiting, most
        for picture in read(self, tables, columns):
            waiting += 1
            most = max(most, waiting)
            yield picture

    def noting_prepared(self, picture):
        nonlocal waiting
        time.sleep(0.001)  # decoding is slower than reading
        waiting -= 1
        return prepare(self, picture)

    monkeypatch.setattr("frevl.data.formats.arrow_tables.parquet_batches", noting_rows)
    monkeypatch.setattr(TablePictures, "pictures", noting_read)
    monkeypatch.setattr(TablePictures, "prepare", noting_prepared)
    assert extract(tmp_path / "s", pairs=tmp_path / "t.parquet", encoder="toy", workers=2).images == 250
    assert most <= 4 * 2 + 2
    assert max(at_once) == 64
