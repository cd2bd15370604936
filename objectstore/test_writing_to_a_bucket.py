"""Writing to a store in a bucket of a real S3 server: as in a folder, alongside other writers, and over faults."""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_stores_in_a_bucket import content, data, draw, run, store  # noqa: F401 - fixtures

import frevl
from conftest import new_bucket
from frevl.errors import StoreError
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.store.remote.copying import copy_store
from frevl.store.upkeep.removal import remove
from frevl.store.upkeep.verification import verify
from frevl.store.writer import StoreWriter


def vectors(folder, names, seed=0):
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).standard_normal((len(names), 7)).astype(np.float32)
    np.save(folder / "v.npy", values)
    (folder / "ids.txt").write_text("\n".join(names))
    return {"source": folder / "v.npy", "ids": folder / "ids.txt", "of": "images"}


def test_a_store_that_is_written_there_is_the_one_that_is_written_here(bucket, tmp_path, data):  # noqa: F811
    there, here = f"{bucket}/deep/store", tmp_path / "here"
    for place in (there, here):
        report = frevl.extract(place, **data, commit_rows=9)
        assert (report.images, report.texts, len(report.rejects)) == (40, 7, 1)
        again = frevl.extract(place, **data)
        assert (again.images, again.images_kept) == (0, 40)
        frevl.extract(place, images=data["images"], encoder="toy2", commit_rows=9)
        import_embeddings(store=place, encoder="mine", **vectors(tmp_path / "v", ["0.png", "7.png", "new"]))
        assert remove(place, ids=["3.png", "none"]).removed == 1
    assert content(Store.open(there).path) == content(Store.open(here).path)
    assert all("lack an embedding" in problem for problem in verify(there))
    (data["images"] / "5.png").rename(data["images"] / "moved.png")
    (data["images"] / "6.png").unlink()
    (data["images"] / "broken.png").unlink()
    draw(data["images"], [41])
    for place in (there, here):
        report = frevl.extract(place, images=data["images"], encoder=["toy", "toy2"], prune=True)
        assert (report.images_moved, report.images_pruned, report.rejects) == (1, 1, [])
    assert content(Store.open(there).path) == content(Store.open(here).path)
    copy_store(there, tmp_path / "back")
    assert content(tmp_path / "back") == content(here)
    frevl.extract(tmp_path / "back", images=data["images"], encoder="toy")
    assert "there is no" not in str(verify(tmp_path / "back"))


def test_a_store_that_was_copied_there_is_added_to(store, bucket, data):  # noqa: F811
    there = f"{bucket}/store"
    copy_store(store, there)
    draw(data["images"], range(50, 55))
    assert frevl.extract(there, **data).images == 5
    assert frevl.extract(store, **data).images == 5
    assert content(Store.open(there).path) == content(store)


def test_other_files_are_not_written_among(bucket, data):  # noqa: F811
    from frevl.store.remote.address import place_of
    from frevl.store.remote.objects import Objects

    Objects(place_of(f"{bucket}/mine")).write("thesis.txt", b"mine")
    with pytest.raises(StoreError, match=r"expected a store, or nothing, found 'thesis\.txt'"):
        frevl.extract(f"{bucket}/mine", **data)


WRITER = """
import json, sys
import frevl
pairs = [{"image": "x", "text": text} for text in json.loads(sys.argv[2])]
frevl.extract(sys.argv[1], pairs=pairs, encoder=sys.argv[3], commit_rows=int(sys.argv[4]))
"""


@pytest.mark.parametrize("kind", ["others", "same"])
def test_two_writers_lose_nothing(bucket, kind):
    """Two processes at once, of different texts or of the same."""
    there = f"{bucket}/store"
    texts = [f"text {number}" for number in range(60)]
    frevl.extract(there, pairs=[{"image": "x", "text": "first"}], encoder="toy")
    lists = {"others": (texts[:30], texts[30:]), "same": (texts, texts[::-1])}[kind]
    names = ("toy", "toy")
    command = [sys.executable, "-W", "ignore", "-c", WRITER, there]
    running = [
        subprocess.Popen([*command, json.dumps(some), name, "7"], stderr=subprocess.PIPE, text=True)
        for some, name in zip(lists, names, strict=True)
    ]
    said = [one.communicate(timeout=120)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    found = Store.open(there)
    assert sorted(found.ids("text")) == sorted(["first", *texts])
    assert verify(there) == []


def test_two_encoders_that_begin_a_store_lose_nothing(bucket, data):  # noqa: F811
    """Two processes at once, of the same images with an encoder each; there is no store yet."""
    there = f"{bucket}/store"
    command = [sys.executable, "-m", "frevl", "extract", "--images", data["images"], "--store", there]
    running = [
        subprocess.Popen([*command, "--commit-rows", "7", "--encoder", name], stderr=subprocess.PIPE, text=True)
        for name in ("toy", "toy2")
    ]
    said = [one.communicate(timeout=120)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    assert len(Store.open(there).image_ids) == 40
    assert verify(there) == []


def test_a_writer_goes_on_from_what_another_has_written_meanwhile(bucket, tmp_path):
    """Step by step: the same row filled by two writers, the same new row, a new encoder, the same reject."""
    from frevl.errors import Reject

    there = f"{bucket}/store"
    names = [f"{number}.png" for number in range(9)]
    import_embeddings(store=there, encoder="one", **vectors(tmp_path / "1", names[:6]))
    with StoreWriter(there) as slow:
        assert "two-image" not in slow.store.towers
        import_embeddings(store=there, encoder="two", **vectors(tmp_path / "2", names, 2))
        with StoreWriter(there) as fast:
            fast.reject([Reject("image", "bad", "of the fast one"), Reject("image", "worse", "too")])
        import_into(slow, names)
        slow.reject([Reject("image", "bad", "of the slow one")])
    found = Store.open(there)
    assert sorted(found.ids("image")) == names
    states = found.states("image")
    assert {name: int(states[f"has:{name}"].sum()) for name in found.towers} == {
        "one-image": 6, "two-image": 9, "three-image": 9,
    }  # fmt: skip
    assert {(one.id, one.reason) for one in found.rejects()} == {("bad", "of the slow one"), ("worse", "too")}
    assert not [problem for problem in verify(there) if "lack" not in problem]


def import_into(writer, names):
    """Write a third tower as an import does that began before the second one was there."""
    from dataclasses import replace

    from frevl.encoders.interface import Embeddings
    from frevl.store.writer import Item

    tower = replace(writer.store.towers["one-image"], name="three-image", encoders=("three",))
    writer.register([tower])
    values = np.eye(9, 7, dtype=np.float16)[:, None] + np.float16(0.5)
    found = Embeddings(values, np.ones((9, 1), bool))
    known = writer.store.positions("image")
    states = writer.store.states("image")
    items = [
        Item(name, states["content_hash"][known[name]].decode() if name in known else "0" * 32, 0) for name in names
    ]
    old, new = slice(0, 6), slice(6, 9)
    for part, write in ((old, writer.fill), (new, writer.append)):
        write("image", items[part], {"three-image": Embeddings(found.values[part], found.mask[part])})


def test_a_server_that_is_busy_is_asked_again(flaky, monkeypatch, tmp_path, data):  # noqa: F811
    busy = new_bucket(flaky(7, 0), monkeypatch, tmp_path)
    frevl.extract(f"{busy}/store", **data, commit_rows=9)
    frevl.extract(tmp_path / "here", **data)
    assert content(Store.open(f"{busy}/store").path) == content(tmp_path / "here")


def test_answers_that_are_cut_lose_and_double_nothing(flaky, monkeypatch, tmp_path, data):  # noqa: F811
    cut = new_bucket(flaky(0, 9), monkeypatch, tmp_path)
    for _ in range(12):
        try:
            frevl.extract(f"{cut}/store", **data, commit_rows=9)
            found = content(Store.open(f"{cut}/store").path)
        except StoreError:
            continue
        frevl.extract(tmp_path / "here", **data)
        assert found == content(tmp_path / "here")
        return
    raise AssertionError("it never came through")


def test_credentials_are_nowhere(bucket, tmp_path, data):  # noqa: F811
    said = run(
        "extract", "--images", data["images"], "--pairs", data["pairs"], "--encoder", "toy", "--store", f"{bucket}/s"
    )
    assert said.returncode == 0, said.stderr
    copy_store(f"{bucket}/s", tmp_path / "back")
    for secret in ("AKIAVISIBLE", "VERYSECRET"):
        assert secret not in said.stdout + said.stderr
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
