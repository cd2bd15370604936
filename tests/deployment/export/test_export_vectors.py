"""Vectors for vector databases: those of a search, without removed items, with metadata; all or nothing."""

import json
import resource
import shutil
import signal

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frevl.deployment.export.vectors import export_vectors
from frevl.errors import InputError
from frevl.runs.scorer import Scorer
from frevl.runs.search.vectors import Shortlist
from frevl.store.extraction.extract import extract
from frevl.store.importing.vectors import import_embeddings
from frevl.store.upkeep.removal import remove
from frevl.training.training import train


@pytest.fixture(scope="module")
def dual(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dual") / "run"
    train(made.store.path, made.captions_file, run=folder, task="matching", model="dual", options={"epochs": 1})
    return folder


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made.store.path, tmp_path / "store", ignore=shutil.ignore_patterns("vectors"))
    return tmp_path / "store"


def table(path):
    return pq.read_table(path) if path.suffix == ".parquet" else lance.dataset(str(path)).to_table()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["db/images.lance", "images.parquet"])
def test_every_living_item_with_the_vector_that_it_is_found_by(store, dual, tmp_path, frevl, monkeypatch, name):
    monkeypatch.setattr("frevl.deployment.export.vectors._ROWS_AT_ONCE", 50)
    monkeypatch.setattr("frevl.deployment.export.vectors._ROW_GROUP", 60)
    Shortlist(Scorer.open(dual, store=store), "image")
    remove(store, ids=["3.png"])
    out = tmp_path / name
    said = frevl("export", "--store", store, "--run", dual, "--vectors", out, "--json", tmp_path / "r.json")
    assert said.code == 0, said.err
    written = table(out)
    scorer = Scorer.open(dual, store=store)
    assert sorted(written["id"].to_pylist()) == sorted(scorer.store.ids("image"))
    assert "3.png" not in written["id"].to_pylist()
    assert written.schema.field("vector").type == pa.list_(pa.float16(), 512)
    vectors = np.stack(written["vector"].to_pylist()).astype(np.float32)
    np.testing.assert_allclose(vectors, scorer.image_vectors(written["id"].to_pylist()), atol=1e-3)
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["rows"], record["width"], record["columns"]) == (119, 512, ["id", "vector"])
    assert f"Wrote 119 vectors (images, 512 numbers each) to {out} (id, vector)." in said.out
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []
    texts = export_vectors(dual, tmp_path / "texts.parquet", store=store, find="texts")
    assert texts.rows == len(scorer.store.ids("text"))


def test_metadata_goes_along(tmp_path):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((20, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {"name": [f"{n}.png" for n in range(20)], "e": vectors.tolist(), "wide": list(range(20))}
    pq.write_table(pa.table({**columns, "vector": [f"v{n}" for n in range(20)]}), tmp_path / "images.parquet")
    pq.write_table(
        pa.table({"name": [f"text {n}" for n in range(20)], "e": vectors.tolist()}), tmp_path / "texts.parquet"
    )
    for of in ("images", "texts"):
        import_embeddings(
            tmp_path / f"{of}.parquet", store=tmp_path / "s", encoder="e", of=of, id_column="name", vector_column="e",
            common_space=True,
        )  # fmt: skip
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"image": f"{n}.png", "text": f"text {n}"}) + "\n" for n in range(20)))
    run = train(tmp_path / "s", pairs, run=tmp_path / "run", task="matching", model="cosine")
    done = export_vectors(run.path, tmp_path / "out.parquet", store=tmp_path / "s")
    assert sorted(done.columns) == ["id", "vector", "vector_", "wide"]
    for row in table(done.path).to_pylist():
        assert (f"{row['wide']}.png", f"v{row['wide']}") == (row["id"], row["vector_"])
        np.testing.assert_allclose(np.array(row["vector"], np.float32), vectors[row["wide"]], atol=1e-3)


@pytest.mark.slow
def test_what_cannot_be_written_is_a_sentence(store, dual, made, tmp_path, frevl):
    export_vectors(dual, tmp_path / "there.lance", store=store)
    linear = tmp_path / "linear"
    train(store, made.train_file, run=linear, task="classification", model="majority")
    extract(tmp_path / "texts", pairs=[made.captions_file], encoder=["toy"])
    for arguments, words in (
        (["--run", dual, "--store", store, "--vectors", "x.csv"], "expected a name ending in .lance or .parquet"),
        (["--run", dual, "--vectors", "x.parquet"], "add --store STORE"),
        (["--run", dual, "--store", store, "--vectors", "x.parquet", "--for", "sounds"], "'images' or 'texts', found"),
        (["--run", dual, "--store", store, "--vectors", "x.parquet", "--int8"], "leave out --onnx, --int8"),
        (["--run", dual, "--for", "texts"], "--for requires --vectors"),
        (["--run", dual, "--store", store, "--vectors", tmp_path / "there.lance"], "already exists"),
        (["--run", linear, "--store", store, "--vectors", "x.parquet"], "a search needs a matching run"),
        (["--run", dual, "--store", tmp_path / "texts", "--vectors", "x.parquet"], "found no images with embeddings"),
    ):
        said = frevl("export", *arguments)
        assert (said.code, words in said.err) == (2, True), said.err


@pytest.mark.parametrize("name", ["out.lance", "out.parquet"])
def test_a_full_disk_leaves_nothing(store, dual, tmp_path, name):
    Shortlist(Scorer.open(dual, store=store), "image")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match=f"{name}: the vectors cannot be written .*; free some disk space"):
            export_vectors(dual, tmp_path / "o" / name, store=store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert list((tmp_path / "o").iterdir()) == []
