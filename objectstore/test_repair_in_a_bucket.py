"""Repairing a store in a bucket: what is lost is named, the rest stays, and a network that fails takes nothing."""

import numpy as np
import pyarrow as pa
import pytest
from test_stores_in_a_bucket import content, data, draw, run, store  # noqa: F401 - fixtures
from test_upkeep_in_a_bucket import until_it_comes_through

import frevl
from conftest import new_bucket
from frevl.errors import StoreError
from frevl.store.commits.unfinished import UNFINISHED, Work, unfinished_work
from frevl.store.reader import Store
from frevl.store.remote.address import place_of
from frevl.store.remote.copying import copy_store
from frevl.store.remote.objects import Objects
from frevl.store.remote.shared_tables import SharedTables
from frevl.store.upkeep.removal import remove
from frevl.store.upkeep.repair import repair
from frevl.store.upkeep.verification import verify


@pytest.fixture
def there(bucket, data):  # noqa: F811
    """A store whose images lie in five data files."""
    frevl.extract(f"{bucket}/store", **data, commit_rows=9)
    return place_of(f"{bucket}/store")


def delete(objects, *names):
    for name in names:
        objects._session.delete_file(name)


def files(objects, table, folder="data"):
    return sorted(name for name in objects.names() if name.startswith(f"{table}.lance/{folder}/"))


def test_a_sound_store_stays_as_it_is(there):
    before = Objects(there).names()
    assert repair(there).sentence().endswith("nothing needed recovering.")
    assert Objects(there).names() == before


def test_manifests_and_towers_come_back_from_their_records(there):
    objects, before = Objects(there), content(there)
    delete(objects, *files(objects, "images", "_versions"), *files(objects, "towers"))
    with pytest.raises(StoreError, match=r"has lost its last commits .* or run frevl store repair"):
        Store.open(there)
    report = repair(there)
    assert sorted(report.versions) == ["images", "towers"]
    assert report.missing == {}
    assert content(there) == before
    assert verify(there) == []


@pytest.mark.parametrize("how", ["gone", "cut", "garbled"])
def test_a_lost_file_costs_its_rows_and_an_extraction_makes_them_again(there, data, how):  # noqa: F811
    objects, before = Objects(there), content(there)
    name = files(objects, "images")[2]
    whole = objects.read(name)
    delete(objects, name)
    if how != "gone":
        objects.write(name, whole[: len(whole) // 2] if how == "cut" else bytes(len(whole)))
    said = run("store", "repair", there)
    assert (said.returncode, said.stderr) == (0, ""), said.stderr
    lost = 40 - len(Store.open(there).image_ids)
    assert 0 < lost <= 9
    assert f"'images' is missing {lost} rows of its last commit" in said.stdout
    assert said.stdout.endswith("sound.\n")
    report = frevl.extract(there, **data)
    assert (report.images, report.images_kept) == (lost, 40 - lost)
    assert content(there) == before


@pytest.mark.parametrize("how", ["gone", "cut", "garbled"])
def test_a_lost_list_of_deleted_rows_costs_its_part_and_brings_no_row_back(there, data, how):  # noqa: F811
    objects = Objects(there)
    remove(there, ids=["1.png"])
    [name] = files(objects, "images", "_deletions")
    whole, left = objects.read(name), content(there)
    delete(objects, name)
    if how != "gone":
        objects.write(name, whole[: len(whole) // 2] if how == "cut" else bytes(len(whole)))
    repair(there)
    ids = set(Store.open(there).image_ids)
    assert "1.png" not in ids
    assert 39 - 9 <= len(ids) < 39
    assert verify(there) == []
    frevl.extract(there, **data, exclude=["1.png"])
    assert content(there)["images"] == left["images"]


def test_damaged_numbers_leave_the_table(there, data):  # noqa: F811
    before = content(there)
    with SharedTables(there, ["images"]) as tables:
        rows = tables.newest("images").to_table()
        at = rows.schema.get_field_index("toy-image")
        values = np.stack(rows["toy-image"].to_pylist())
        values[7] *= 2
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float16).ravel()), values.shape[1])
        tables.find("images", rows["id"])
        tables.merge("images", rows.set_column(at, rows.schema.field(at), vectors))
    assert any("from their checksums" in problem or "from its checksum" in problem for problem in verify(there))
    assert repair(there).removed == {"images": 1}
    assert frevl.extract(there, **data).images == 1
    assert content(there) == before


def test_without_towers_and_their_record_nothing_is_guessed(there):
    objects = Objects(there)
    delete(objects, *files(objects, "towers"), "commits/towers.json")
    before = objects.names()
    with pytest.raises(StoreError, match=r"is lost, and so is its record .* restore towers\.lance"):
        repair(there)
    assert objects.names() == before


def test_a_server_that_cuts_its_answers_takes_nothing(store, flaky, monkeypatch, tmp_path):  # noqa: F811
    cut = f"{new_bucket(flaky(0, 5), monkeypatch, tmp_path)}/store"
    until_it_comes_through(lambda: copy_store(store, cut))
    report = until_it_comes_through(lambda: repair(cut))
    assert report.sentence().endswith("nothing needed recovering.")
    assert until_it_comes_through(lambda: content(place_of(cut))) == content(store)


def test_work_that_has_not_finished_is_named_until_it_has_or_the_store_is_accepted(there, tmp_path):
    assert unfinished_work(there) == []
    Work(there, "frevl import a.npy").begin()
    (said,) = unfinished_work(there)
    assert said.startswith("'frevl import a.npy', begun 20")
    assert copy_store(there, tmp_path / "copy").sentence().endswith(said)
    assert [one.split(" so ")[0] for one in unfinished_work(tmp_path / "copy")] == [said.split(" so ")[0]]
    Work(there, "frevl import a.npy").end()
    assert unfinished_work(there) == []
    copy_store(there, tmp_path / "copy")
    assert unfinished_work(tmp_path / "copy") == []
    Work(there, "frevl import b.npy").begin()
    repair(there)
    assert Objects(there).names(UNFINISHED) == set()
