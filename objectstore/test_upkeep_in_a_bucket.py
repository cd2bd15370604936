"""Merging into a store in a bucket, and compacting it: alongside other writers, and over faults."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import lance
import pytest
from test_stores_in_a_bucket import content, data, draw, run, store  # noqa: F401 - fixtures

import frevl
from conftest import new_bucket
from frevl.errors import StoreError, UsageError
from frevl.store.reader import Store
from frevl.store.remote.copying import copy_store
from frevl.store.sharding.merging import merge
from frevl.store.upkeep.removal import compact, remove
from frevl.store.upkeep.verification import verify


@pytest.fixture
def parts(tmp_path, data):  # noqa: F811
    """Three parts, and what one process makes of the same."""
    frevl.extract(tmp_path / "whole", **data)
    made = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for number, part in enumerate(made, 1):
        frevl.extract(part, **data, shard=f"{number}/3")
    return made


def test_parts_are_merged_into_a_bucket(parts, bucket, tmp_path, data):  # noqa: F811
    there = f"{bucket}/deep/store"
    assert run("store", "merge", *parts, "--into", there, "--quiet").returncode == 0
    assert content(Store.open(there).path) == content(tmp_path / "whole")
    again = merge(parts[::-1], into=there)
    assert (again.images, again.texts, again.images_kept, again.texts_kept) == (0, 0, 40, 7)
    draw(data["images"], [50])
    (data["images"] / "3.png").write_bytes((data["images"] / "4.png").read_bytes())
    (data["images"] / "broken.png").unlink()
    encoder = ["toy", "toy2"]
    for number, part in enumerate(parts, 1):
        frevl.extract(part, **{**data, "encoder": encoder}, shard=f"{number}/3", prune=True)
    frevl.extract(tmp_path / "whole", **{**data, "encoder": encoder}, prune=True)
    more = merge(parts, into=there)
    assert (more.images, more.replaced, more.filled) == (1, 1, 39)
    remove(there, ids=["broken.png"])
    assert {name: rows for name, rows in content(Store.open(there).path).items() if name != "rejects"} == {
        name: rows for name, rows in content(tmp_path / "whole").items() if name != "rejects"
    }
    assert verify(there) == []
    copy_store(parts[0], f"{bucket}/part")
    with pytest.raises(UsageError, match="a separate store, found a part"):
        merge(parts, into=f"{bucket}/part")


def test_two_merges_and_an_extraction_at_once_lose_and_double_nothing(parts, bucket, tmp_path, data):  # noqa: F811
    there = f"{bucket}/store"
    command = [sys.executable, "-W", "ignore", "-m", "frevl"]
    copies = [shutil.copytree(part, f"{part}-copy") for part in parts]  # of a part there is one merge at a time
    merging, again = ([*command, "store", "merge", *map(str, of), "--into", there] for of in (parts, copies))
    images = ["--images", str(data["images"]), "--encoder", "toy2", "--commit-rows", "9", "--quiet"]
    commands = [merging, again, [*command, "extract", *images, "--store", there]]
    running = [subprocess.Popen(one, stderr=subprocess.PIPE, text=True) for one in commands]
    said = [one.communicate(timeout=150)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0, 0], said
    frevl.extract(tmp_path / "whole", images=data["images"], encoder="toy2")
    found, expected = content(Store.open(there).path), content(tmp_path / "whole")
    for rows in (*found.values(), *expected.values()):  # who came first at a row is chance
        for row in rows:
            row.get("filled", []).sort(key=str)
            row.get("encoders", []).sort()
    assert {name: sorted(map(_ordered, rows)) for name, rows in found.items()} == {
        name: sorted(map(_ordered, rows)) for name, rows in expected.items()
    }
    assert verify(there) == []


def _ordered(row):
    return repr(sorted(row.items()))


def test_a_merge_that_was_killed_goes_on(parts, bucket, tmp_path):
    there = f"{bucket}/store"
    doomed = """
import os, signal, sys
from frevl.store.remote.shared_tables import SharedTables
from frevl.store.sharding import merging
from frevl.cli.main import main
left, original = int(sys.argv.pop(1)), SharedTables._committed
merging._COMMIT_ROWS = 9
def committed(self, name):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, name)
SharedTables._committed = committed
main()
"""
    arguments = ["store", "merge", *map(str, parts), "--into", there]
    for left in (2, 3):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", doomed, str(left), *arguments], check=False)
        assert done.returncode == -signal.SIGKILL
    report = merge(parts, into=there)
    assert report.images_kept > 0
    assert content(Store.open(there).path) == content(tmp_path / "whole")


def until_it_comes_through(change):
    """Make a change until it succeeds; every failure is a sentence."""
    for _ in range(30):
        try:
            return change()
        except StoreError:
            continue
    raise AssertionError("it never came through")


@pytest.mark.parametrize("faults", [(7, 0), (0, 9)])
def test_merge_and_compaction_over_a_server_that_is_busy_or_cuts(parts, flaky, monkeypatch, tmp_path, faults):
    there = f"{new_bucket(flaky(*faults), monkeypatch, tmp_path)}/store"
    until_it_comes_through(lambda: merge(parts, into=there))
    until_it_comes_through(lambda: remove(there, ids=["3.png", "5.png"]))
    until_it_comes_through(lambda: compact(there))
    remove(tmp_path / "whole", ids=["3.png", "5.png"])
    found = until_it_comes_through(lambda: content(Store.open(there).path))
    assert found == content(tmp_path / "whole")


def test_a_compaction_frees_rows_and_takes_nothing_from_readers_and_writers(bucket, tmp_path, data):  # noqa: F811
    there = f"{bucket}/store"
    frevl.extract(there, **data, commit_rows=3)
    reader = Store.open(there)
    before = reader.read_images(reader.image_ids)
    remove(there, ids=[f"{k}.png" for k in range(0, 40, 2)])
    frevl.extract(there, images=draw(tmp_path / "more", range(60, 80)), encoder="toy2", commit_rows=5)
    expected = content(Store.open(there).path)
    draw(tmp_path / "more", range(80, 90))
    with ThreadPoolExecutor(3) as threads:
        writing = threads.submit(
            frevl.extract, there, images=tmp_path / "more", encoder="toy2", commit_rows=2, progress=False
        )
        reports = list(threads.map(compact, [there, there]))
        assert writing.result().images == 10
    assert all("Versions of the last day are kept" in report.sentence() for report in reports)
    said = run("store", "compact", there)
    assert (said.returncode, "Traceback" in said.stderr) == (0, False)
    found = content(Store.open(there).path)
    assert {row["id"] for row in found["images"]} - {row["id"] for row in expected["images"]} == {
        f"{k}.png" for k in range(80, 90)
    }
    assert [row for row in found["images"] if row["id"] in {one["id"] for one in expected["images"]}] == expected[
        "images"
    ]
    assert [problem for problem in verify(there) if "lack an embedding" not in problem] == []
    assert (reader.read_images(reader.image_ids) == before).all()
    options = {"aws_endpoint": os.environ["AWS_ENDPOINT_URL"], "allow_http": "true"}
    table = lance.dataset(f"{there}/images.lance", storage_options=options)
    assert len(table.get_fragments()) == 1
    assert table.get_fragments()[0].deletion_file() is None
