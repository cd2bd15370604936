"""Stores in a bucket of a real S3 server on this machine: copied there, read there, and never half."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import lance
import numpy as np
import pytest
from PIL import Image

import frevl
from conftest import new_bucket
from frevl.errors import StoreError
from frevl.store.labels.labels_file import LabelsFile
from frevl.store.lance_tables import ALL_TABLES, Snapshot
from frevl.store.reader import Store
from frevl.store.remote.copying import copy_store
from frevl.store.remote.objects import Objects
from frevl.store.sharding.merging import merge
from frevl.store.upkeep.removal import compact
from frevl.store.upkeep.repair import repair
from frevl.store.upkeep.verification import describe, verify


def draw(folder, numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (7, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def content(store):
    at = Snapshot(store, ALL_TABLES)
    return {name: sorted((row for b in at.scan(name) for row in b.to_pylist()), key=repr) for name in ALL_TABLES}


@pytest.fixture
def data(tmp_path):
    rows = [{"image": f"{k}.png", "text": f"words of {k % 7}", "target": "ab"[k % 2]} for k in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = draw(tmp_path / "images", range(40))
    (images / "broken.png").write_bytes(b"no picture")
    return {"images": images, "pairs": tmp_path / "pairs.jsonl", "encoder": "toy"}


@pytest.fixture
def store(tmp_path, data):
    frevl.extract(tmp_path / "store", **data)
    return tmp_path / "store"


def run(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "frevl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_copy_is_the_store(store, bucket, tmp_path):
    there = f"{bucket}/deep/store"
    report = copy_store(store, there)
    assert (report.images, report.texts, report.files_kept) == (40, 7, 0)
    remote, local = Store.open(there), Store.open(store)
    assert content(remote.path) == content(store)
    assert remote.fingerprint == local.fingerprint
    assert remote.image_ids == local.image_ids
    assert (remote.read_images(local.image_ids[::-3]) == local.read_images(local.image_ids[::-3])).all()
    assert verify(there) == []
    here, said = describe(local), describe(remote)
    assert said.pop("path") == there
    assert said.pop("bytes") > 0
    assert said == {key: value for key, value in here.items() if key not in ("path", "bytes")}
    again = copy_store(store, there)
    assert (again.files_kept, again.images) == (report.files - 4, 40)  # the records are written again
    back = copy_store(there, tmp_path / "back")
    assert back.images == 40
    assert content(tmp_path / "back") == content(store)
    assert verify(tmp_path / "back") == []
    assert not any("s3" in path.name for path in tmp_path.iterdir())


def test_every_command_that_reads_gives_what_it_gives_here(store, bucket, tmp_path, data):
    there = f"{bucket}/store"
    assert run("store", "copy", store, there, "--quiet").returncode == 0
    outputs = {}
    for name, place in (("here", store), ("there", there)):
        folder = tmp_path / name
        train = ["train", "--pairs", data["pairs"], "--task", "classification", "--model", "linear", "--seed", "3"]
        matching = ["train", "--pairs", tmp_path / "captions.jsonl", "--task", "matching", "--model", "dual"]
        (tmp_path / "captions.jsonl").write_text(
            "".join(json.dumps({"image": f"{k}.png", "text": f"words of {k % 7}"}) + "\n" for k in range(40))
        )
        examples = [json.dumps({"image": f"{k}.png", "target": "ab"[k % 2]}) + "\n" for k in range(30)]
        (tmp_path / "e.jsonl").write_text("".join(examples))
        steps = [
            ["store", "info", place],
            ["store", "verify", place],
            [*train, "--store", place, "--run", folder / "linear", "--quiet"],
            ["evaluate", "--store", place, "--run", folder / "linear", "--pairs", data["pairs"]],
            [
                "score",
                "--store",
                place,
                "--run",
                folder / "linear",
                "--pairs",
                data["pairs"],
                "--out",
                folder / "s.jsonl",
            ],
            [
                "classify",
                "--store",
                place,
                "--examples",
                tmp_path / "e.jsonl",
                "--run",
                folder / "c",
                "--out",
                folder / "l.jsonl",
            ],
            [*matching, "--set", "epochs=2", "--store", place, "--run", folder / "dual", "--quiet"],
            [
                "search",
                "--store",
                place,
                "--run",
                folder / "dual",
                "words of 3",
                "-k",
                "3",
                "--json",
                folder / "f.json",
            ],
        ]
        for step in steps:
            done = run(*step)
            assert done.returncode == 0, (step, done.stderr)
        hits = json.loads((folder / "f.json").read_text())
        outputs[name] = [
            (folder / "s.jsonl").read_text(),
            (folder / "l.jsonl").read_text(),
            (folder / "linear" / "weights.safetensors").read_bytes(),
            [[hit["id"] for hit in query["hits"]] for query in hits.get("queries", [hits])],
        ]
    assert outputs["here"] == outputs["there"]
    assert (tmp_path / "cache" / "stores").is_dir()  # the vectors of the first stage are kept there
    assert sorted(path.name for path in store.iterdir() if path.name == "vectors") == ["vectors"]


def test_what_is_new_is_copied_and_nothing_else(store, bucket, data):
    there = f"{bucket}/store"
    copy_store(store, there)
    reader = Store.open(there)
    draw(data["images"], [77])
    frevl.extract(store, **data)
    report = copy_store(store, there)
    assert report.files_kept >= 3
    assert "77.png" in Store.open(there).image_ids
    assert "77.png" not in reader.image_ids
    assert reader.read_images(["0.png"]).shape[0] == 1  # who reads continues


def test_another_store_a_newer_one_and_other_files_are_not_overwritten(store, bucket, tmp_path, data):
    there = f"{bucket}/store"
    shutil.copytree(store, tmp_path / "older")
    draw(data["images"], [77])
    frevl.extract(store, **data)
    copy_store(store, there)
    with pytest.raises(StoreError, match="found a newer one"):
        copy_store(tmp_path / "older", there)
    frevl.extract(tmp_path / "other", images=data["images"], encoder="toy")
    with pytest.raises(StoreError, match="found another store"):
        copy_store(tmp_path / "other", there)
    (tmp_path / "note").write_text("mine")
    Objects(Store.open(there).path.parent / "mine").put(tmp_path / "note", "thesis.txt")
    with pytest.raises(StoreError, match=r"found 'thesis\.txt'"):
        copy_store(store, f"{bucket}/mine")
    assert "77.png" in Store.open(there).image_ids
    frevl.extract(tmp_path / "older", images=data["images"], encoder="toy2")  # the same version by another way
    with pytest.raises(StoreError, match="a state of this one that was not copied"):
        copy_store(tmp_path / "older", there)


def test_labels_that_the_source_lacks_are_not_overwritten(store, bucket, tmp_path):
    there, back = f"{bucket}/store", tmp_path / "back"
    LabelsFile(store).label("ann", [("0.png", "cat")])
    copy_store(store, there)
    copy_store(there, back)
    LabelsFile(back).label("bob", [("1.png", "dog")])
    labels = (back / "labels" / "labels.jsonl").read_bytes()
    with pytest.raises(StoreError, match=r"back: labels/labels\.jsonl holds labels that the source lacks"):
        copy_store(there, back)
    assert (back / "labels" / "labels.jsonl").read_bytes() == labels
    copy_store(back, there)  # they go on from what is there
    with pytest.raises(StoreError, match=r"s3://.*holds labels that the source lacks"):
        copy_store(store, there)
    assert Objects(Store.open(there).path).read("labels/labels.jsonl") == labels
    (store / "labels" / "labels.jsonl").unlink()
    with pytest.raises(StoreError, match="holds labels that the source lacks"):
        copy_store(store, there)
    (store / "labels" / "labels.jsonl").write_bytes(labels + b'{"torn')
    copy_store(store, there)
    (store / "labels" / "labels.jsonl").write_bytes(labels)
    copy_store(store, there)  # a torn line that was copied does not count
    assert Objects(Store.open(there).path).read("labels/labels.jsonl") == labels


def test_labels_that_are_made_during_a_copy_are_not_overwritten(store, bucket, tmp_path, monkeypatch):
    there, back = f"{bucket}/store", tmp_path / "back"
    LabelsFile(store).label("ann", [("0.png", "cat")])
    copy_store(store, there)
    copy_store(there, back)
    original = Objects.fetch

    def fetch(self, name, target):
        if name.startswith("commits/"):
            LabelsFile(back).label("bob", [("1.png", "dog")])
        original(self, name, target)

    monkeypatch.setattr(Objects, "fetch", fetch)
    with pytest.raises(StoreError, match="labels that the source lacks"):
        copy_store(there, back)
    assert b"bob" in (back / "labels" / "labels.jsonl").read_bytes()


@pytest.mark.parametrize("method", ["count_rows", "to_batches", "get_fragments"])
def test_a_failure_while_a_table_is_read_is_one_sentence_without_keys(store, bucket, monkeypatch, tmp_path, method):
    there = f"{bucket}/store"
    copy_store(store, there)
    original = getattr(lance.LanceDataset, method)

    def fail(self, *arguments, **named):
        if self.uri.startswith("s3://"):
            raise OSError("403 Forbidden: <AWSAccessKeyId>AKIAVISIBLE</AWSAccessKeyId>")
        return original(self, *arguments, **named)

    monkeypatch.setattr(lance.LanceDataset, method, fail)
    ends = (there, tmp_path / "back") if method == "get_fragments" else (store, there)
    with pytest.raises(StoreError, match=r"reading the table '\w+' failed: access was denied") as raised:
        copy_store(*ends)
    assert "AKIAVISIBLE" not in str(raised.value)


def test_nothing_there_and_no_bucket_are_sentences(bucket):
    with pytest.raises(StoreError, match="expected a store there, found none"):
        Store.open(f"{bucket}/nothing")
    with pytest.raises(StoreError, match="there is no such bucket"):
        Store.open("s3://no-such-bucket/store")
    said = run("store", "info", "s3://no-such-bucket/store")
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    with pytest.raises(StoreError, match="expected a store there, found none"):
        compact(f"{bucket}/s")
    with pytest.raises(StoreError, match="expected a store there, found none"):
        repair(f"{bucket}/s")


def test_lost_commits_are_noticed(store, bucket):
    import lance.file

    there = f"{bucket}/store"
    copy_store(store, there)
    session = lance.file.LanceFileSession(
        there, storage_options={"aws_endpoint": os.environ["AWS_ENDPOINT_URL"], "allow_http": "true"}
    )
    for name in session.list():
        if name.startswith("images.lance/_versions"):
            session.delete_file(name)
    with pytest.raises(StoreError, match="the table 'images' has lost its last commits"):
        Store.open(there)


def test_a_server_that_is_busy_is_asked_again(store, flaky, monkeypatch, tmp_path):
    busy = new_bucket(flaky(7, 0), monkeypatch, tmp_path)
    copy_store(store, f"{busy}/store")
    assert content(Store.open(f"{busy}/store").path) == content(store)


def test_answers_that_are_cut_are_never_taken_for_the_store(store, flaky, monkeypatch, tmp_path):
    cut = new_bucket(flaky(0, 9), monkeypatch, tmp_path)
    copied = failed = 0
    for _ in range(4):
        try:
            copy_store(store, f"{cut}/store")
            copied += content(Store.open(f"{cut}/store").path) == content(store)
        except StoreError:
            failed += 1
    assert copied + failed == 4
    assert copied
    fetched = 0
    for number in range(4):
        try:
            copy_store(f"{cut}/store", tmp_path / f"back{number}")
        except StoreError:
            continue
        assert content(tmp_path / f"back{number}") == content(store)
        assert verify(tmp_path / f"back{number}") == []
        fetched += 1
    assert fetched


def test_a_server_that_only_fails_is_one_sentence(store, flaky, monkeypatch, tmp_path):
    address = flaky(0, 0)
    bucket = new_bucket(address, monkeypatch, tmp_path)
    copy_store(store, f"{bucket}/store")
    dead = flaky(1, 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", dead)
    before = time.monotonic()
    with pytest.raises(StoreError, match=r"s3://.*it answers with failures, even after retries"):
        Store.open(f"{bucket}/store")
    assert time.monotonic() > before


def test_credentials_are_nowhere(store, bucket, tmp_path, data):
    there = f"{bucket}/store"
    assert run("store", "copy", store, there).returncode == 0
    run_ = tmp_path / "run"
    what = ["--task", "classification", "--model", "linear"]
    said = run("train", "--store", there, "--pairs", data["pairs"], *what, "--run", run_)
    assert said.returncode == 0, said.stderr
    text = said.stdout + said.stderr
    for command in (["store", "info", "s3://AKIAVISIBLE:VERYSECRET@bucket/x"], ["store", "info", f"{bucket}/none"]):
        failed = run(*command)
        assert failed.returncode in (1, 2)
        text += failed.stdout + failed.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    for secret in ("AKIAVISIBLE", "VERYSECRET"):
        assert secret not in text
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_parts_are_merged_from_a_bucket(bucket, tmp_path, data):
    frevl.extract(tmp_path / "whole", **data)
    for number in (1, 2):
        frevl.extract(tmp_path / str(number), **data, shard=f"{number}/2")
        copy_store(tmp_path / str(number), f"{bucket}/parts/{number}")
    merge([f"{bucket}/parts/2", f"{bucket}/parts/1"], into=tmp_path / "merged")
    assert content(tmp_path / "merged") == content(tmp_path / "whole")
    with pytest.raises(StoreError, match="1 of 2 shards are missing: 1"):
        merge([f"{bucket}/parts/2"], into=tmp_path / "never")


def test_a_copy_that_was_killed_goes_on(store, bucket, tmp_path):
    there = f"{bucket}/store"
    doomed = """
import os, signal, sys
from frevl.store.remote.objects import Objects
from frevl.cli.main import main
left, method = int(sys.argv.pop(1)), sys.argv.pop(1)
original = getattr(Objects, method)
def call(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(Objects, method, call)
main()
"""
    back = tmp_path / "back"
    for method, ends in (("put", (store, there)), ("fetch", (there, back))):
        for left in (2, 5, 7):
            done = subprocess.run([sys.executable, "-c", doomed, str(left), method, "store", "copy", *map(str, ends)])
            assert done.returncode in (0, -signal.SIGKILL)
        assert run("store", "copy", *ends).returncode == 0
    assert content(Store.open(there).path) == content(store) == content(back)
    assert verify(back) == []
