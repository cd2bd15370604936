"""Readers of untrusted files, on randomly broken files: a result or one message, never a traceback.

Two minutes of the same examples in every run. `scripts/fuzz` runs them longer, with others every time.
"""

import json
import os
import resource

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import broken, broken_json
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from frevl import Fusion, Scorer
from frevl.data.pairs import read_pairs
from frevl.errors import FrevlError
from frevl.runs.sharing.onnx_backend import ExportedNetwork, metadata_of
from frevl.store.importing.formats import read_ids
from frevl.store.importing.layouts import open_parts
from frevl.store.importing.metadata import metadata_fields, named_metadata
from frevl.training.training import train

LONG = int(os.environ.get("FREVL_FUZZ_EXAMPLES", "0"))
MOST_MEMORY = 1 << 20  # KiB an example


def fuzzed(examples):
    """So many examples in CI, which are the same in every run, and as many as wished by hand."""
    return settings(
        max_examples=LONG or examples,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def most_memory():
    """Most memory that this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read(path, content, reader):
    """Read a file; what is raised must be a sentence that names it, and little memory is taken."""
    path.write_bytes(content)
    before = most_memory()
    try:
        reader(path)
    except FrevlError as error:
        sentence = str(error)
        assert path.name in sentence or path.parent.name in sentence
        assert "\n" not in sentence
        assert len(sentence) < 2000
    assert most_memory() - before < MOST_MEMORY


# ---- runs


@pytest.fixture(scope="module")
def run_files(made, folder):
    """The files of three kinds of runs, by name of the run and of the file."""
    files = {}
    for name, model, task, pairs in (
        ("linear", "linear", "classification", made.train_file),
        ("tiny", "tiny", "classification", made.train_file),
        ("kernel", "kernel", "classification", made.train_file),
        ("dual", "dual", "matching", made.captions_file),
    ):
        options = {"tiny": {"epochs": 1, "layers": 1}, "dual": {"epochs": 1}}.get(name, {})
        train(made.store, pairs, run=folder / name, task=task, model=model, options=options)
        for file in ("run.json", "weights.safetensors", "seen.safetensors"):
            files[name, file] = (folder / name / file).read_bytes()
    posterior = folder / "linear" / "posterior.safetensors"
    files["linear", posterior.name] = posterior.read_bytes()
    return files


RUNS = ("tiny", "kernel", "dual")


def score(made, path):
    scorer = Scorer.open(path.parent, store=made.store)
    scorer.score([(made.store.image_ids[0], made.store.texts[0])])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_run_json(made, run_files, folder, name):
    record = json.loads(run_files[name, "run.json"])

    @fuzzed(100)
    @given(st.one_of(broken_json(record), broken(run_files[name, "run.json"])))
    def check(content):
        read(folder / name / "run.json", content, lambda path: score(made, path))

    try:
        check()
    finally:
        (folder / name / "run.json").write_bytes(run_files[name, "run.json"])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("file", ["weights.safetensors", "seen.safetensors"])
def test_weights_of_a_run(made, run_files, folder, name, file):
    whole = run_files[name, file]
    header = int.from_bytes(whole[:8], "little") + 8

    @fuzzed(25)
    @given(st.one_of(broken(whole), broken(whole[:header]).map(lambda begin: begin + whole[header:])))
    def check(content):
        read(folder / name / file, content, lambda path: score(made, path))

    try:
        check()
    finally:
        (folder / name / file).write_bytes(whole)


@pytest.mark.slow
def test_posterior_of_a_run(made, run_files, folder):
    whole = run_files["linear", "posterior.safetensors"]
    header = int.from_bytes(whole[:8], "little") + 8

    def doubt(path):
        scorer = Scorer.open(path.parent, store=made.store)
        scorer.doubt([(made.store.image_ids[0], made.store.texts[0])])

    @fuzzed(60)
    @given(st.one_of(broken(whole), broken(whole[:header]).map(lambda begin: begin + whole[header:])))
    def check(content):
        read(folder / "linear" / "posterior.safetensors", content, doubt)

    check()


def test_published_networks(folder):
    network = Fusion(image_dim=5, text_dim=4, outputs=3, width=8, heads=2, layers=1)
    place = folder / "network"
    network.save_pretrained(str(place))
    record = json.loads((place / "config.json").read_text())

    @fuzzed(60)
    @given(st.one_of(broken_json(record), broken((place / "config.json").read_bytes())))
    def check(content):
        read(place / "config.json", content, lambda path: Fusion.from_pretrained(str(path.parent)))

    check()


# ---- exported networks


def exported():
    """A network as `frevl export` would write it, small."""
    image, text = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("image", "text"))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [6, 2], np.arange(12, dtype=np.float32))
    nodes = [
        helper.make_node("Concat", ["image", "text"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "frevl", [image, text], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    metadata = {"format": "1", "weights": "0" * 64, "labels": '["a", "b"]', "calibration": '{"scale": 1.0}'}
    helper.set_model_props(model, {f"frevl.{name}": value for name, value in metadata.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def run_exported(path):
    ExportedNetwork(path)(torch.ones(2, 3), torch.ones(2, 3))
    metadata_of(path)


@pytest.mark.slow
@fuzzed(250)
@given(broken(exported()))
def test_exported_networks(folder, content):
    read(folder / "model.onnx", content, run_exported)


# ---- vectors


def vectors(rows=7, dim=5):
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)


def table(kind=None):
    """Ids, vectors and metadata of many kinds."""
    rows = vectors()
    kind = kind or pa.list_(pa.float32())
    return pa.table(
        {
            "id": [f"{number}.png" for number in range(7)],
            "vector": pa.array(rows.tolist(), kind),
            "caption": ["a dog", None, "é", "", "a dog", "x" * 99, "cat"],
            "size": pa.array([1, 2, None, 4, 5, 6, 7], pa.int64()),
            "when": pa.array([0, 1, 2, 3, 4, 5, None], pa.timestamp("us")),
            "tags": pa.array([["a"], [], None, ["b", "c"], ["a"], ["a"], ["a"]], pa.list_(pa.string())),
            "place": pa.array([{"x": 1.5, "y": None}] * 7, pa.struct({"x": pa.float64(), "y": pa.string()})),
            "kind": pa.array(["dog", "cat", "dog", "cat", "dog", "cat", "dog"]).dictionary_encode(),
        }
    )


def arrays(folder):
    """The bytes of sound files of vectors, by ending."""
    files = {}
    np.save(folder / "v.npy", vectors())
    np.savez(folder / "v.npz", a=vectors())
    np.savez_compressed(folder / "w.npz", a=vectors(), b=np.arange(3))
    save_file({"a": vectors()}, folder / "v.safetensors")
    for name in ("v.npy", "v.npz", "w.npz", "v.safetensors"):
        files[name] = (folder / name).read_bytes()
    return files


def tables(folder):
    for name, options in (("v.parquet", {}), ("w.parquet", {"compression": "zstd", "use_dictionary": False})):
        pq.write_table(table(), folder / name, row_group_size=4, **options)
    feather.write_feather(table(pa.list_(pa.float32(), 5)), folder / "v.feather", compression="uncompressed")
    feather.write_feather(table(), folder / "w.feather", compression="zstd")
    with pa.OSFile(str(folder / "v.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table().schema) as stream:
        stream.write_table(table(), max_chunksize=3)
    names = ("v.parquet", "w.parquet", "v.feather", "w.feather", "v.arrow")
    return {name: (folder / name).read_bytes() for name in names}


def import_all(path, ids=None, array=None):
    """Read as `frevl import` does, up to what it hands to the store."""
    options = {"id_column": None if ids else "id", "vector_column": None if ids else "vector", "array": array}
    parts = open_parts(path, of="image", ids=ids, **options)
    fields = metadata_fields([part.metadata for part in parts])
    for part in parts:
        for block in part.blocks(4):
            assert block.vectors.ndim == 2
            ids_of_block = block.columns["id"].to_pylist()
            assert len(ids_of_block) == len(block.vectors)
            np.isfinite(block.vectors.astype(np.float32)).all(axis=1)
            named_metadata(block.columns.drop_columns(["id"]), fields)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v.npy", "v.npz", "w.npz", "v.safetensors"])
def test_arrays(folder, name):
    content = arrays(folder)[name]
    ids = folder / "ids.txt"
    ids.write_text("".join(f"{number}.png\n" for number in range(7)))

    @fuzzed(250)
    @given(broken(content))
    def check(changed):
        read(folder / f"case-{name}", changed, lambda path: import_all(path, ids, "a" if name == "w.npz" else None))

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v.parquet", "w.parquet", "v.feather", "w.feather", "v.arrow"])
def test_tables(folder, name):
    content = tables(folder)[name]

    @fuzzed(200)
    @given(broken(content))
    def check(changed):
        read(folder / f"case-{name}", changed, import_all)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt"])
def test_ids(folder, suffix):
    rows = [{"id": "a.png", "n": 1}, {"id": "b.png", "n": 2.5, "deep": {"a": [1, None]}}, {"id": "c"}]
    content = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))

    @fuzzed(150)
    @given(st.one_of(broken(content.encode()), broken_json(rows)))
    def check(changed):
        read(folder / f"ids{suffix}", changed, lambda path: read_ids(path, id_column=None, usual=("id",)))

    check()


# ---- pairs


ROWS = [
    {"image": "a.png", "text": "a dog", "target": "yes", "kind": "x", "n": 1},
    {"image": "b.png", "text": "é ☃", "target": ["yes", "no"], "kind": None, "n": 2.5},
    {"image": "c.png", "text": "a cat", "target": {"yes": 0.5, "no": 0.25}, "deep": {"a": [1, {"b": None}]}},
]


def pairs_tables(folder):
    flat = [{"image": row["image"], "text": row["text"], "target": "yes", "n": 1.5} for row in ROWS] * 20
    pictures = [{**row, "image": {"bytes": b"\x89PNG" + bytes(20), "path": row["image"]}} for row in flat]
    for name, rows in (("flat", flat), ("pictures", pictures)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=16)
        feather.write_feather(pa.Table.from_pylist(rows), folder / f"{name}.feather", compression="uncompressed")
    names = [f"{name}{suffix}" for name in ("flat", "pictures") for suffix in (".parquet", ".feather")]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_pairs_in_json(folder, suffix):
    content = json.dumps(ROWS, indent=1) if suffix == ".json" else "\n".join(map(json.dumps, ROWS))

    @fuzzed(200)
    @given(st.one_of(broken(content.encode()), broken_json(ROWS), broken_json(ROWS[0])))
    def check(changed):
        read(folder / f"pairs{suffix}", changed, read_pairs)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_pairs_in_text(folder, suffix):
    separator = "\t" if suffix == ".tsv" else ","
    lines = [("image", "text", "target"), *((row["image"], f'"{row["text"]}, ""x"""', "yes") for row in ROWS)]
    content = "\n".join(separator.join(line) for line in lines)

    @fuzzed(200)
    @given(broken(content.encode()))
    def check(changed):
        read(folder / f"pairs{suffix}", changed, read_pairs)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat.parquet", "flat.feather", "pictures.parquet", "pictures.feather"])
def test_pairs_in_tables(folder, name):
    content = pairs_tables(folder)[name]

    @fuzzed(120)
    @given(broken(content))
    def check(changed):
        read(folder / f"case-{name}", changed, read_pairs)

    check()
