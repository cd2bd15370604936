"""Repair: whatever a damaged store still holds is restored, number for number."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pytest

from frevl.errors import Reject, StoreError
from frevl.store.extraction.extract import extract
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.store.upkeep.repair import repair
from frevl.store.upkeep.verification import verify
from frevl.store.writer import StoreWriter
from handmade import item, made_of, pooled, tower


@pytest.fixture
def imported(tmp_path):
    """Vectors that nobody can compute again, in several commits."""
    rng = np.random.default_rng(3)
    for part in range(4):
        np.save(tmp_path / "v.npy", rng.normal(size=(5, 6)).astype(np.float32))
        (tmp_path / "ids.txt").write_text("".join(f"{part}-{n}.jpg\n" for n in range(5)))
        import_embeddings(
            tmp_path / "v.npy", store=tmp_path / "s", encoder="mine", of="images", ids=tmp_path / "ids.txt"
        )
    return tmp_path / "s"


def vectors(path):
    store = Store.open(path)
    return dict(zip(store.image_ids, store.read_images(store.image_ids).tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("folders", ["_versions", "_*"])
def test_a_table_without_manifests_comes_back_whole(imported, record, folders):
    whole = vectors(imported)
    assert len(whole) == 20
    if not record:
        shutil.rmtree(imported / "commits")
    for folder in list((imported / "images.lance").glob(folders)):
        shutil.rmtree(folder)
    report = repair(imported)
    assert vectors(imported) == whole
    assert verify(imported) == []
    assert (report.versions, report.rows) == (({"images": 4}, {}) if record else ({}, {"images": 20}))
    assert report.missing == {}
    assert not (imported / "unclaimed").exists()
    assert repair(imported).sentence() == f"{imported}: nothing needed recovering."
    with StoreWriter(imported) as writer:
        assert writer.notes == []


@pytest.mark.slow
def test_only_the_newest_manifest_was_lost(imported):
    whole = vectors(imported)
    shutil.rmtree(imported / "commits")
    min((imported / "images.lance" / "_versions").glob("*.manifest")).unlink()
    assert len(vectors(imported)) == 15
    assert len(verify(imported)) == 1
    assert repair(imported).rows == {"images": 5}
    assert vectors(imported) == whole
    assert verify(imported) == []


def test_towers_come_back_from_their_record(imported):
    whole, before = vectors(imported), Store.open(imported)
    shutil.rmtree(imported / "towers.lance")
    with pytest.raises(StoreError, match="the table 'towers' has lost its last commits"):
        Store.open(imported)
    assert repair(imported).versions == {"towers": 1}
    assert vectors(imported) == whole
    assert Store.open(imported).fingerprint == before.fingerprint
    assert verify(imported) == []


def test_without_towers_and_their_record_nothing_is_guessed(imported):
    shutil.rmtree(imported / "towers.lance")
    shutil.rmtree(imported / "commits")
    (imported / "towers.lance").mkdir()
    with pytest.raises(StoreError, match="'towers', which states what made the embeddings, is lost"):
        repair(imported)
    assert len(list((imported / "images.lance" / "data").iterdir())) == 4


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_a_lost_file_costs_its_rows_and_comes_back_with_it(imported, tmp_path, how):
    whole = vectors(imported)
    part = lance.dataset(str(imported / "images.lance")).get_fragments()[1]
    file = imported / "images.lance" / "data" / part.data_files()[0].path
    content = file.read_bytes()
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes(content[:-30])
    report = repair(imported)
    assert report.missing == {"images": 5}
    assert "'images' is missing 5 rows of its last commit: extract or import them again." in report.sentence()
    assert len(report.unread) == (how == "cut")
    left = vectors(imported)
    assert left == {id_: vector for id_, vector in whole.items() if not id_.startswith("1-")}
    assert verify(imported) == []
    # The copy that had it all along turns up.
    file.write_bytes(content)
    assert len(verify(imported)) == 1
    assert repair(imported).rows == {"images": 5}
    assert vectors(imported) == whole


def test_damaged_numbers_leave_the_table_so_that_an_extraction_makes_them_again(tmp_path, draw):
    images = draw(tmp_path / "images", range(6))
    path = tmp_path / "s"
    extract(path, images=images, encoder=["toy"])
    whole = vectors(path)
    stored = np.array(lance.dataset(str(path / "images.lance")).to_table()["toy-image"][2].as_py(), np.float16)
    (file,) = (path / "images.lance" / "data").iterdir()
    content = file.read_bytes()
    place = content.index(stored.tobytes())
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    report = repair(path)
    assert report.removed == {"images": 1}
    assert len(vectors(path)) == 5
    assert extract(path, images=images, encoder=["toy"]).images == 1
    assert vectors(path) == whole
    assert verify(path) == []


def test_the_newest_of_several_rows_of_one_id_comes_back(tmp_path):
    path = tmp_path / "s"
    made_of(path, [tower()], {id_: {"eye": pooled([n, 1, 0])} for n, id_ in enumerate("abc")})
    with StoreWriter(path) as writer:
        writer.register([tower("far", dim=2, encoders=("two",))])
        writer.fill("image", [item("a")], {"far": pooled([3, 4])})
        writer.replace("image", [item("b", "new content")], {"eye": pooled([7, 7, 7])})
        writer.reject([Reject("image", "z.png", "broken"), Reject("pair", "p:3", "no text")])
        writer.reject([Reject("image", "z.png", "still broken")])
    # An older file of the old content that is written again by a copy must not win by its time alone.
    shutil.rmtree(path / "commits")
    for name in ("images", "rejects"):
        shutil.rmtree(path / f"{name}.lance" / "_versions")
    report = repair(path)
    store = Store.open(path)
    assert sorted(store.image_ids) == list("abc")
    assert store.read_images(list("abc"), encoders=["one"]).tolist() == [[0, 1, 0], [7, 7, 7], [2, 1, 0]]
    assert store.read_images(["a"], encoders=["two"]).tolist() == [[3, 4]]
    assert {(reject.kind, reject.id) for reject in store.rejects()} == {("image", "z.png"), ("pair", "p:3")}
    assert report.rows["images"] == 3
    assert [problem for problem in verify(path) if "lack an embedding" not in problem] == []


def test_metadata_comes_back(tmp_path):
    import pyarrow as pa

    path = tmp_path / "s"
    with StoreWriter(path) as writer:
        writer.register([tower()])
        writer.describe("image", [pa.field("width", pa.int64())])
        columns = {"width": pa.array([640, 480])}
        writer.append("image", [item("a"), item("b")], {"eye": pooled([1, 0, 0], [0, 1, 0])}, metadata=columns)
    shutil.rmtree(path / "commits")
    shutil.rmtree(path / "images.lance" / "_versions")
    repair(path)
    assert Store.open(path).read_metadata("image", ["b", "a"]) == [{"width": 480}, {"width": 640}]


def test_a_file_of_nothing_is_put_aside(tmp_path):
    path = tmp_path / "s"
    made_of(path, [tower()], {"a": {"eye": pooled([1, 0, 0])}})
    for name, content in {"empty": b"", "junk": bytes(range(256)) * 9}.items():
        (path / "images.lance" / "data" / f"{name}.lance").write_bytes(content)
    report = repair(path)
    assert sorted(Path(file).name for file in report.unread) == ["empty.lance", "junk.lance"]
    assert (path / "unclaimed" / "images" / "junk.lance").read_bytes() == bytes(range(256)) * 9
    assert verify(path) == []


def test_a_store_is_repaired_by_one_process_and_not_beside_a_writer(imported, tmp_path):
    with StoreWriter(imported), pytest.raises(StoreError, match="another process is writing to this store"):
        repair(imported)
    with pytest.raises(StoreError, match="expected a store"):
        repair(tmp_path / "nothing")


@pytest.mark.slow
def test_the_command(imported, frevl, tmp_path):
    shutil.rmtree(imported / "images.lance" / "_versions")
    said = frevl("store", "verify", imported)
    assert said.code == 1
    assert "has lost its last commits (expected version 4 with 20 rows, found no manifest)" in said.err
    said = frevl("store", "repair", imported, "--json", tmp_path / "r.json")
    assert said.code == 0
    assert said.out.splitlines() == [f"{imported}: Restored version 4 of 'images'.", f"{imported}: sound."]
    assert json.loads((tmp_path / "r.json").read_text())["versions"] == {"images": 4}
    assert frevl("store", "verify", imported).out == f"{imported}: sound.\n"


@pytest.mark.slow
def test_a_copied_store_stays_sound_when_it_is_written_to(imported, tmp_path, monkeypatch):
    """Lance keeps files that are newer than a version, as all files of a copy are; they would belong to no version."""
    from frevl.store.commits import table_writer

    np.save(tmp_path / "t.npy", np.eye(6, dtype=np.float32))
    (tmp_path / "texts.txt").write_text("".join(f"text {n}\n" for n in range(6)))
    texts = {"encoder": "mine", "of": "texts", "ids": tmp_path / "texts.txt"}
    import_embeddings(tmp_path / "t.npy", store=imported, **texts)  # a second version of the towers
    copy = tmp_path / "copy"
    shutil.copytree(imported, copy, copy_function=shutil.copy)
    assert len(list((copy / "towers.lance" / "data").iterdir())) == 2
    monkeypatch.setattr(table_writer, "_KEEP_VERSIONS", timedelta(0))
    import_embeddings(tmp_path / "t.npy", store=copy, **texts)
    assert verify(copy) == []
    assert len(list((copy / "towers.lance" / "data").iterdir())) == 1
    assert repair(copy).sentence() == f"{copy}: nothing needed recovering."
    assert verify(copy) == []
    assert vectors(copy) == vectors(imported)


def test_a_store_that_cannot_be_written_is_not_repaired(imported, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(StoreError, match=r"a repair writes, and the store cannot be written \(Read-only file system\)"):
        repair(imported)
