"""Damage: every damaged file is named, every changed number is found, nothing else can happen."""

import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from frevl.errors import StoreError
from frevl.store.commits.failures import reading, writing
from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory, made_twice):
    """A copy of a store, with few files."""
    path = tmp_path_factory.mktemp("sound") / "store"
    shutil.copytree(made_twice.store.path, path)
    return path


def data_file(path, name):
    table = lance.dataset(str(path / f"{name}.lance"))
    return path / f"{name}.lance" / "data" / table.get_fragments()[0].data_files()[0].path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "texts", "towers"])
@pytest.mark.parametrize("how", ["deleted", "cut", "empty", "no footer"])
def test_a_damaged_file_is_named(sound, tmp_path, name, how):
    path = Path(shutil.copytree(sound, tmp_path / "s"))
    file = data_file(path, name)
    whole = file.read_bytes()
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes({"cut": whole[:-100], "empty": b"", "no footer": whole[:-100] + bytes(100)}[how])
    problems = verify(path)
    assert len(problems) == 1
    assert str(file) in problems[0]
    if how == "cut":
        assert f"expected {len(whole):,} bytes, found {len(whole) - 100:,}" in problems[0]
    assert "\n" not in problems[0]

    def read():
        store = Store.open(path)
        return store.read_images(store.image_ids), store.read_texts(store.texts)

    with pytest.raises(StoreError, match=f"the table '{name}' cannot be read .*run frevl store verify"):
        read()


def test_silent_damage_is_found_by_the_checksums(sound, tmp_path):
    path = Path(shutil.copytree(sound, tmp_path / "s"))
    table = lance.dataset(str(path / "images.lance")).to_table(columns=["id", "toy2-image"]).to_pylist()
    victim = table[17]
    stored = np.array(victim["toy2-image"], np.float16).tobytes()
    file = data_file(path, "images")
    content = file.read_bytes()
    assert content.count(stored) == 1
    place = content.index(stored) + 20
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])  # the last bit of one number
    assert verify(path) == [
        f"Tower 'toy2-image': 1 embedding differs from its checksum, the first is of '{victim['id']}'."
    ]


@pytest.mark.slow
def test_any_damage_to_a_data_file_is_found_or_harmless(sound, tmp_path):
    """Flip bits anywhere: reading gives a StoreError or an answer, never another exception or a crash."""
    rng = np.random.default_rng(11)
    path = Path(shutil.copytree(sound, tmp_path / "s"))
    before = Store.open(path)
    right = before.read_images(before.image_ids)
    file = data_file(path, "images")
    whole = file.read_bytes()
    found = 0
    for _ in range(25):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(damaged))
        problems = verify(path)
        found += bool(problems)
        try:
            now = Store.open(path)
            same = now.image_ids == before.image_ids and np.array_equal(now.read_images(now.image_ids), right)
        except StoreError:
            same = False
        if not same:
            assert problems
    assert found >= 10


def test_a_damaged_manifest_is_one_sentence(sound, tmp_path):
    path = Path(shutil.copytree(sound, tmp_path / "s"))
    newest = min((path / "texts.lance" / "_versions").glob("*.manifest"))
    newest.write_bytes(newest.read_bytes()[:50])
    with pytest.raises(StoreError, match="the table 'texts' cannot be read"):
        Store.open(path)
    assert len(verify(path)) == 1


class PanicException(BaseException):
    """A stand-in: damaged files can bring about the real one, but not the same ones in every version."""


@pytest.mark.parametrize("error", [PanicException("index"), pa.ArrowInvalid("bad"), RuntimeError("Task was aborted")])
def test_whatever_lance_raises_is_a_known_failure(tmp_path, error):
    with pytest.raises(StoreError, match="the table 'images' cannot be read"), reading(tmp_path, "images"):
        raise error
    with pytest.raises(StoreError, match="writing the table 'images' failed"), writing(tmp_path, "images"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, KeyError])
def test_nothing_else_is_taken_for_a_failure_of_lance(tmp_path, error):
    for context in (reading, writing):
        with pytest.raises(error), context(tmp_path, "images"):
            raise error
