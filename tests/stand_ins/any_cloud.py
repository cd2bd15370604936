"""What a store in any object store must do, besides what the tests with S3 look at more closely."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import frevl
from frevl.errors import StoreError
from frevl.store.labels.shared_labels import labels_of
from frevl.store.lance_tables import ALL_TABLES, Snapshot
from frevl.store.reader import Store
from frevl.store.remote.address import place_of
from frevl.store.remote.copying import copy_store
from frevl.store.remote.objects import Objects
from frevl.store.sharding.merging import merge
from frevl.store.upkeep.removal import compact, remove
from frevl.store.upkeep.repair import repair
from frevl.store.upkeep.verification import verify


def content(store):
    at = Snapshot(store, ALL_TABLES)
    return {name: sorted((row for b in at.scan(name) for row in b.to_pylist()), key=repr) for name in ALL_TABLES}


def made(tmp_path):
    """Twenty pictures and their texts, as arguments of `frevl.extract`."""
    (tmp_path / "images").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (7, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    rows = [{"image": f"{k}.png", "text": f"words of {k % 7}"} for k in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"images": tmp_path / "images", "pairs": tmp_path / "pairs.jsonl", "encoder": "toy"}


def check_a_store_there_is_the_one_here(there, tmp_path):
    data, there = made(tmp_path), place_of(there)
    with pytest.raises(StoreError, match="expected a store there, found none"):
        Store.open(there)
    frevl.extract(there, **data, commit_rows=9)
    frevl.extract(tmp_path / "here", **data)
    parts = [tmp_path / "1", tmp_path / "2"]
    for number, part in enumerate(parts, 1):
        frevl.extract(part, **{**data, "encoder": ["toy", "toy2"]}, shard=f"{number}/2")
    for place in (there, tmp_path / "here"):
        merge(parts, into=place)
        assert remove(place, ids=["3.png", "none"]).removed == 1
        compact(place)
    assert content(there) == content(tmp_path / "here")
    assert verify(there) == []
    labels_of(there).label("ann", [("0.png", "cat")])
    copy_store(there, tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "here")
    assert labels_of(tmp_path / "back").book().agreed() == {"0.png": "cat"}
    objects = Objects(there)
    for name in objects.names():
        if name.startswith("images.lance/data/"):
            objects._session.delete_file(name)
    assert repair(there).missing == {"images": 19}
    frevl.extract(there, **{**data, "encoder": ["toy", "toy2"]})
    assert len(Store.open(there).image_ids) == 20
    assert verify(there) == []


def check_two_encoders_that_begin_a_store_lose_nothing_and_tell_no_key(there, tmp_path, key):
    data = made(tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "frevl", "extract", "--images", data["images"], "--store", there]
    running = [
        subprocess.Popen([*command, "--commit-rows", "7", "--encoder", name], stderr=subprocess.PIPE, text=True)
        for name in ("toy", "toy2")
    ]
    said = [one.communicate(timeout=150)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    assert not any(key in one for one in said)
    assert len(Store.open(there).image_ids) == 20
    assert verify(there) == []
