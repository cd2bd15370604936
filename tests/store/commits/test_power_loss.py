"""Power failure: what was reported as done is on disk, and what was being written is rolled back."""

import json
import shutil

import pytest

from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify
from power import Disk, PowerFailure

IMAGES = 11


@pytest.fixture
def files(tmp_path, draw):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"image": f"{n}.png", "text": f"words of {n}"}) + "\n" for n in range(9)))
    return draw(tmp_path / "images", range(IMAGES)), pairs


def embed(store, files, **options):
    return extract(store, images=files[0], pairs=[files[1]], commit_rows=4, **options)


def content(path):
    store = Store.open(path)
    return {
        (modality, tower.name, id_): store.read(modality, [id_], [tower])[0].tobytes()
        for modality in ("image", "text")
        for tower in store.select_towers(modality)
        for row, id_ in enumerate(store.ids(modality))
        if store.states(modality)[f"has:{tower.name}"][row]
    }


@pytest.mark.slow
@pytest.mark.parametrize("names_survive", [False, True])
def test_what_was_said_to_be_done_is_on_the_disk(tmp_path, files, monkeypatch, names_survive):
    world = tmp_path / "world"
    world.mkdir()
    disk = Disk(monkeypatch)
    for encoder in ("toy", "toy2"):
        embed(world / "store", files, encoder=[encoder])
        left = tmp_path / f"left-{encoder}"
        disk.left_of(world, left, names_survive=names_survive)
        assert verify(left / "store") == []
        assert content(left / "store") == content(world / "store")
    assert len(content(left / "store")) == 2 * IMAGES + 9
    disk.close()


@pytest.mark.slow
@pytest.mark.parametrize("names_survive", [False, True])
def test_power_that_fails_at_any_flush_costs_what_was_in_flight(tmp_path, files, monkeypatch, names_survive):
    finished = tmp_path / "finished"
    embed(finished, files, encoder=["toy"])
    before = content(finished)
    shutil.copytree(finished, tmp_path / "counted")
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        embed(tmp_path / "counted", files, encoder=["toy2"])
        disk.close()
    reference = content(tmp_path / "counted")
    went_on = 0
    for fails_at in range(1, disk.flushes + 1, 4):
        world, left = tmp_path / f"world-{fails_at}", tmp_path / f"left-{fails_at}"
        world.mkdir()
        with monkeypatch.context() as patch:
            disk = Disk(patch, fails_at + 1_000_000)
            embed(world / "store", files, encoder=["toy"])
            disk._fails_at = disk.flushes + fails_at
            with pytest.raises(PowerFailure):
                embed(world / "store", files, encoder=["toy2"])
            disk.left_of(world, left, names_survive=names_survive)
            disk.close()
        # A reader sees the last commit that was written down, without waiting for a writer to tidy up.
        now = content(left / "store")
        assert before.items() <= now.items() <= reference.items()
        assert all("lack an embedding" in problem for problem in verify(left / "store"))
        went_on += len(now) > len(before)
        embed(left / "store", files, encoder=["toy2"])
        assert content(left / "store") == reference
        assert verify(left / "store") == []
    assert went_on >= 3


@pytest.mark.slow
def test_a_store_that_never_had_a_commit_begins_again(tmp_path, files, monkeypatch):
    world = tmp_path / "world"
    world.mkdir()
    for fails_at in (1, 3, 5, 8, 12):
        with monkeypatch.context() as patch:
            disk = Disk(patch, fails_at)
            with pytest.raises(PowerFailure):
                embed(world / f"store-{fails_at}", files)
            disk.left_of(world, tmp_path / f"left-{fails_at}", names_survive=True)
            disk.close()
        store = tmp_path / f"left-{fails_at}" / f"store-{fails_at}"
        embed(store, files)
        assert verify(store) == []
        assert len(content(store)) == IMAGES + 9
