"""Extraction on a cluster: the same store as one process makes, to the last bit, whatever dies on the way."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import frevl
from frevl.errors import FrevlError, UsageError
from frevl.store.extraction.items import CommitBuffer
from frevl.store.lance_tables import ALL_TABLES, Snapshot
from frevl.store.many_nodes.connection import connected
from frevl.store.many_nodes.workers import Workers
from frevl.store.upkeep.verification import verify

NAMES = [f"{number}.png" for number in range(700)]


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def content(store):
    at = Snapshot(store, ALL_TABLES)
    return {name: sorted((row for b in at.scan(name) for row in b.to_pylist()), key=repr) for name in ALL_TABLES}


def told(report):
    """Return what a report says, without its time and what it says of workers."""
    record = {key: value for key, value in report.record().items() if key not in ("store", "seconds")}
    return {**record, "notes": [note for note in record["notes"] if "Lost workers" not in note]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of images, with some that are none, and pairs."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "images" / "deep").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        (folder / "images" / name).write_bytes(picture(seed))
    for name in ("0-broken.png", "deep/broken.png", "zzz.txt"):
        (folder / "images" / name).write_bytes(b"no picture")
    rows = [{"image": NAMES[k % 700], "text": f"words of {k} " + "and " * (k % 50), "target": "x"} for k in range(1500)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory):
    """What one process makes of it."""
    store = tmp_path_factory.mktemp("plain") / "store"
    report = frevl.extract(store, images=source / "images", pairs=source / "pairs.jsonl", encoder="toy")
    assert (report.images, report.texts, len(report.rejects)) == (700, 1500, 3)
    return store, report


@pytest.fixture
def cluster(nodes):
    """The nodes, with a connection that several extractions share."""
    with connected(nodes.address):
        yield nodes


def extract(store, source, nodes, **options):
    return frevl.extract(
        store, images=source / "images", pairs=source / "pairs.jsonl", encoder="toy", ray=nodes.address, **options
    )


def test_any_number_of_workers_makes_the_store_of_one_process(cluster, source, plain, tmp_path, monkeypatch):
    store, report = plain
    monkeypatch.chdir(source)  # the nodes are elsewhere
    for workers in (1, 4):
        here = Path(os.path.relpath(tmp_path / f"{workers}"))
        found = frevl.extract(
            here, images="images", pairs="pairs.jsonl", encoder="toy", ray=cluster.address, workers=workers
        )
        assert content(tmp_path / f"{workers}") == content(store)
        assert told(found)["rejects"] == told(report)["rejects"]
        assert found.notes == report.notes


def test_what_changed_between_two_runs(cluster, source, plain, tmp_path):
    after = {}
    for road in ("here", "nodes"):
        shutil.copytree(plain[0], tmp_path / road)
        images = tmp_path / f"{road}-images" / "images"
        shutil.copytree(source / "images", images)
        shutil.copy(source / "pairs.jsonl", images.parent)
        (images / "3.png").unlink()
        (images / "4.png").rename(images / "moved.png")
        shutil.copy(images / "5.png", images / "copy.png")
        (images / "6.png").write_bytes(picture(1006))
        (images / "new.png").write_bytes(picture(1007))
        (images / "0-broken.png").write_bytes(picture(1008))
        options = {"images": images, "pairs": images.parent / "pairs.jsonl", "encoder": ("toy", "toy2")}
        report = frevl.extract(tmp_path / road, **options, ray=cluster.address if road == "nodes" else None)
        rows = content(tmp_path / road)
        for row in rows["images"]:  # the two folders were written at different times
            row.pop("modified_ns")
        rows["rejects"] = [{**row, "id": row["id"].replace(road, "")} for row in rows["rejects"]]
        numbers = {key: value for key, value in told(report).items() if isinstance(value, int)}
        after[road] = rows, numbers
    assert after["nodes"] == after["here"]
    assert after["here"][1]["images_moved"] == after["here"][1]["images_copied"] == 1


def test_tars_and_tables(cluster, tmp_path):
    (tmp_path / "tars").mkdir()
    for number in range(3):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
            for key in range(40):
                for ending, body in ((".png", picture(100 * number + key)), (".txt", f"words {key % 7}".encode())):
                    member = tarfile.TarInfo(f"{key}{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
    cut = tmp_path / "tars" / "2.tar"
    cut.write_bytes(cut.read_bytes()[:30_000])
    ids = [f"t{key}" for key in range(90)]
    cells = [{"bytes": b"none" if key == 7 else picture(key), "path": None} for key in range(90)]
    pq.write_table(pa.table({"image": cells, "image_id": ids, "text": ids}), tmp_path / "table.parquet")
    for name, options in {
        "tars": {"images": tmp_path / "tars"},
        "table": {"pairs": tmp_path / "table.parquet", "columns": {"image": "image_id"}},
    }.items():
        reports = []
        for road, address in (("here", None), ("nodes", cluster.address), ("nodes", cluster.address)):
            out = {"write_pairs": tmp_path / f"{name}-{road}.jsonl"} if name == "tars" else {}
            out |= {"encoder": "toy", "workers": 2, "ray": address}
            reports.append(frevl.extract(tmp_path / f"{name}-{road}", **options, **out))
        assert content(tmp_path / f"{name}-nodes") == content(tmp_path / f"{name}-here")
        first, second, again = reports
        assert second.images == first.images > 0
        assert (again.images, again.images_kept, again.texts) == (0, first.images, 0)
        assert told(second)["rejects"] == told(first)["rejects"] != []
    assert (tmp_path / "tars-nodes.jsonl").read_bytes() == (tmp_path / "tars-here.jsonl").read_bytes()


def test_a_process_that_is_killed_goes_on_where_it_was(nodes, source, plain, tmp_path):
    command = [sys.executable, "-m", "frevl", "extract", "--encoder", "toy", "--ray", nodes.address, "--quiet"]
    command += ["--images", str(source / "images"), "--pairs", str(source / "pairs.jsonl"), "--commit-rows", "256"]
    process = subprocess.Popen([*command, "--store", str(tmp_path / "store")])
    until = time.monotonic() + 60
    while not any((tmp_path / "store" / "commits").glob("images*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with connected(nodes.address):
        report = extract(tmp_path / "store", source, nodes)
    assert report.images_kept > 0
    assert report.images_kept + report.images == 700
    assert content(tmp_path / "store") == content(plain[0])


def test_a_node_that_runs_another_frevl_is_named(nodes, source, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import frevl.version\nfrevl.version.__version__ = '9.9'\n")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    other = nodes.add(PYTHONPATH=path)
    try:
        with (
            connected(nodes.address),
            pytest.raises(FrevlError, match=r"--ray: the node \S+ runs frevl 9\.9 \(\w+\), this process runs "),
        ):
            extract(tmp_path / "store", source, nodes)
    finally:
        nodes.kill(other)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_node_that_dies_in_the_middle_loses_nothing(nodes, source, plain, tmp_path, monkeypatch):
    keep, kept = CommitBuffer.keep, 0
    hand, killed = Workers._hand, []

    def keep_and_count(self, *arguments):
        nonlocal kept
        kept += 1
        keep(self, *arguments)

    def kill_and_hand(self, block, worker, flying):
        if kept and not killed:
            nodes.kill(nodes.of(worker.actor))  # the next block goes to a worker that is dead for certain
            killed.append(worker)
        hand(self, block, worker, flying)

    monkeypatch.setattr(CommitBuffer, "keep", keep_and_count)
    monkeypatch.setattr(Workers, "_hand", kill_and_hand)
    monkeypatch.setattr("frevl.store.many_nodes.workers._SLOW", 1e9)  # else all may be done before it is noticed
    try:
        with connected(nodes.address):
            report = extract(tmp_path / "store", source, nodes)
    finally:
        nodes.add()  # the tests that follow count four
    assert len(killed) == 1
    assert content(tmp_path / "store") == content(plain[0])
    assert verify(tmp_path / "store") == []
    assert "Lost workers: 1 on " in " ".join(report.notes)


def test_a_shard_and_no_cluster(source, tmp_path):
    with pytest.raises(UsageError, match="with --ray leave it out"):
        frevl.extract(tmp_path / "s", images=source / "images", encoder="toy", shard="1/2", ray="local")
    with pytest.raises(FrevlError, match=r"no cluster answers at '127\.0\.0\.1:1'"):
        frevl.extract(tmp_path / "s", images=source / "images", encoder="toy", ray="127.0.0.1:1")
    assert not (tmp_path / "s").exists()
