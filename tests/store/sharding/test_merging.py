"""Shards: several processes make what one would have made, and nothing incomplete is merged."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frevl.encoders.toy import ToyImageTower
from frevl.errors import FingerprintError, StoreError, UsageError
from frevl.store import lance_tables
from frevl.store.extraction.extract import extract
from frevl.store.ids import rows_of_ids
from frevl.store.importing.vectors import import_embeddings
from frevl.store.lance_tables import ALL_TABLES, Snapshot, append_rows
from frevl.store.reader import Store
from frevl.store.sharding.merging import merge
from frevl.store.sharding.shares import Shard
from frevl.store.upkeep.removal import remove
from frevl.store.upkeep.verification import verify


def content(store):
    """Everything in a store but the order of its rows."""
    at = Snapshot(store, ALL_TABLES)
    return {name: sorted((row for b in at.scan(name) for row in b.to_pylist()), key=repr) for name in ALL_TABLES}


@pytest.fixture
def data(tmp_path, draw):
    """Images (one broken, one with a name of its own kind), and pairs (one malformed, one of no image)."""
    images = draw(tmp_path / "images", range(11))
    shutil.copy(draw(tmp_path / "other", [40]) / "40.png", images / "Bär & <b>'1'.png")
    (images / "broken.jpg").write_bytes(b"no picture")
    rows = [{"image": f"{k}.png", "text": f"words of {k}"} for k in range(11)] + [{"image": "77.png", "text": "lost"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return {"images": images, "pairs": tmp_path / "pairs.jsonl", "encoder": ["toy"]}


@pytest.fixture
def parts(tmp_path, data):
    def make(of, **changed):
        made = []
        for number in range(1, of + 1):
            made.append(tmp_path / f"parts{of}" / str(number))
            extract(made[-1], shard=f"{number}/{of}", **{**data, **changed})
        return made

    return make


@pytest.mark.slow
@pytest.mark.parametrize("of", [1, 3, 40])
def test_the_merged_parts_are_what_one_process_makes(tmp_path, data, parts, of):
    whole = extract(tmp_path / "whole", **data)

    made = parts(of)
    report = merge(reversed(made), into=tmp_path / "merged")

    assert content(tmp_path / "merged") == content(tmp_path / "whole")
    assert (report.images, report.texts, report.parts) == (whole.images, whole.texts, of)
    assert sorted(report.rejects, key=str) == sorted(whole.rejects, key=str)
    assert len(report.rejects) == 3
    merged = Store.open(tmp_path / "merged")
    assert merged.image_ids == sorted(merged.image_ids, key=str.encode)
    assert merged.texts == sorted(merged.texts, key=str.encode)
    assert verify(tmp_path / "merged") == []


@pytest.mark.slow
def test_an_item_belongs_to_the_shard_that_its_hash_names(parts, data):
    import hashlib

    for number, part in enumerate(parts(3), start=1):
        ids = [f"{k}.png" for k in range(11)] + ["Bär & <b>'1'.png"]
        number_of = {id_: int(hashlib.sha256(id_.encode()).hexdigest()[:32], 16) % 3 + 1 for id_ in ids}
        assert set(Store.open(part).image_ids) == {id_ for id_ in ids if number_of[id_] == number}


@pytest.mark.slow
def test_pictures_inside_a_table_are_shared_out(tmp_path, draw):
    folder = draw(tmp_path / "images", range(7))
    rows = [{"image": {"bytes": p.read_bytes(), "path": p.name}, "text": f"a {p.stem}"} for p in folder.iterdir()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    extract(tmp_path / "whole", pairs=tmp_path / "x.parquet", encoder="toy")
    made = [tmp_path / "1", tmp_path / "2"]
    for number, part in enumerate(made, start=1):
        extract(part, pairs=tmp_path / "x.parquet", encoder="toy", shard=f"{number}/2")

    merge(made, into=tmp_path / "merged")

    assert content(tmp_path / "merged") == content(tmp_path / "whole")


@pytest.fixture(params=[10**9, 0], ids=["small", "large"])
def size(request, monkeypatch):
    """Whether stores count as large: ids are then looked up on the disk, and no table of all is made."""
    monkeypatch.setattr(lance_tables, "_MOST_IN_MEMORY", request.param)
    monkeypatch.setattr(rows_of_ids, "_AT_ONCE", 5)


@pytest.mark.slow
@pytest.mark.usefixtures("size")
def test_a_merge_again_changes_nothing(tmp_path, parts):
    made = parts(2)
    merge(made, into=tmp_path / "merged")
    before, versions = content(tmp_path / "merged"), Snapshot(tmp_path / "merged", ALL_TABLES).versions

    report = merge(made, into=tmp_path / "merged")

    assert (report.images, report.texts, report.images_kept, report.texts_kept) == (0, 0, 12, 12)
    assert content(tmp_path / "merged") == before
    assert Snapshot(tmp_path / "merged", ALL_TABLES).versions == versions


@pytest.mark.slow
@pytest.mark.usefixtures("size")
def test_new_images_further_encoders_and_changed_content_come_with_the_next_merge(tmp_path, data, parts, draw):
    merge(parts(2), into=tmp_path / "merged")
    draw(data["images"], [50])
    shutil.copy(draw(tmp_path / "other", [60]) / "60.png", data["images"] / "3.png")
    (data["images"] / "broken.jpg").write_bytes((data["images"] / "4.png").read_bytes())
    extract(tmp_path / "whole", **{**data, "encoder": ["toy", "toy2"]})

    report = merge(parts(2, encoder=["toy", "toy2"]), into=tmp_path / "merged")

    assert (report.images, report.replaced, report.filled) == (2, 1, 11)  # the encoders share one text tower
    merged, whole = content(tmp_path / "merged"), content(tmp_path / "whole")
    assert merged == whole
    assert verify(tmp_path / "merged") == []


@pytest.mark.slow
def test_what_the_store_has_beside_the_parts_stays(tmp_path, data, parts, draw):
    extract(tmp_path / "merged", images=draw(tmp_path / "more", [90, 91]), encoder=["toy2"])
    merge(parts(2), into=tmp_path / "merged")
    assert {"90.png", "91.png", "0.png"} <= set(Store.open(tmp_path / "merged").image_ids)
    assert Store.open(tmp_path / "merged").read_images(["90.png"], encoders=["toy2"]).shape[0] == 1


@pytest.mark.slow
def test_embeddings_that_are_added_to_an_imported_image_agree_with_their_checksums(tmp_path, parts):
    np.save(tmp_path / "v.npy", np.eye(3, 7, dtype=np.float32))
    (tmp_path / "ids.txt").write_text("0.png\n1.png\n2.png")
    import_embeddings(
        store=tmp_path / "merged", encoder="mine", source=tmp_path / "v.npy", ids=tmp_path / "ids.txt", of="images"
    )
    assert merge(parts(2), into=tmp_path / "merged").filled == 3
    assert [problem for problem in verify(tmp_path / "merged") if "lack an embedding" not in problem] == []


def refused(error, match, made, into):
    with pytest.raises(error, match=match) as raised:
        merge(made, into=into)
    assert "\n" not in str(raised.value)
    assert not into.exists()


@pytest.mark.slow
def test_parts_that_are_not_all_and_whole_are_refused(tmp_path, data, parts, draw):
    made, into = parts(3), tmp_path / "merged"
    refused(StoreError, r"1 of 3 shards are missing: 2;", [made[0], made[2]], into)
    refused(UsageError, "given twice", [*made, made[1].parent / "." / "2"], into)
    shutil.copytree(made[0], tmp_path / "copy")
    refused(StoreError, "the shard 1/3 is given twice", [*made, tmp_path / "copy"], into)
    refused(UsageError, "Nothing to merge", [], into)
    nowhere = "nowhere: expected a part (a folder written by frevl extract --shard i/n), found no such folder; check "
    refused(StoreError, re.escape(nowhere), [*made[:2], tmp_path / "nowhere"], into)
    (tmp_path / "file").touch()
    refused(StoreError, "file: expected a part .*, found a file; ", [*made[:2], tmp_path / "file"], into)
    whole = tmp_path / "whole"
    extract(whole, **data)
    refused(StoreError, "expected a part, .* found a complete store", [*made[:2], whole], into)
    with pytest.raises(UsageError, match="into itself"):
        merge(made, into=made[0])
    refused(StoreError, "this is a shard of 2, .* is one of 3", [*made, parts(2)[0]], into)
    with pytest.raises(UsageError, match="found a part"):
        merge(made, into=parts(2)[0])


@pytest.mark.slow
def test_a_part_whose_extraction_did_not_end_is_refused_until_it_ran_again(tmp_path, data, parts, monkeypatch):
    made = parts(2)
    with monkeypatch.context() as patch:
        patch.setattr(ToyImageTower, "embed", lambda *_: (_ for _ in ()).throw(StoreError("the power failed")))
        with pytest.raises(StoreError, match="power"):
            extract(made[1], **data, shard="2/2")
    refused(StoreError, "the shard 2/2 is incomplete", made, tmp_path / "merged")
    extract(made[1], **data, shard="2/2")
    assert merge(made, into=tmp_path / "merged").images == 12


@pytest.mark.slow
def test_parts_that_changed_or_are_damaged_are_refused(tmp_path, parts):
    made = parts(2)
    shutil.copytree(made[0], tmp_path / "kept")
    id_ = Store.open(made[0]).image_ids[0]
    rows = Snapshot(made[0], ALL_TABLES).take_rows("images", [0])
    remove(made[0], ids=[id_])
    refused(StoreError, "the table 'images' has .* rows, but had", made, tmp_path / "merged")
    rows = rows.set_column(1, rows.schema.field(1), pa.array(["0" * 32]))
    append_rows(made[0], "images", rows)
    with pytest.raises(StoreError, match="differs from its checksum: the part is damaged"):
        merge(made, into=tmp_path / "merged")
    (tmp_path / "kept" / "shard.json").write_text('{"format": 1, "number": "x"}')
    refused(StoreError, "found a damaged one", [tmp_path / "kept", made[1]], tmp_path / "never")


@pytest.mark.slow
def test_parts_of_another_list_version_or_encoder_are_refused(tmp_path, data, parts, draw):
    made = parts(2)
    record = json.loads((made[1] / "shard.json").read_text())
    (made[1] / "shard.json").write_text(json.dumps({**record, "frevl": "9.9"}))
    refused(StoreError, "frevl 9.9 made this part, frevl 0.1.0 made", made, tmp_path / "merged")
    (made[1] / "shard.json").write_text(json.dumps({**record, "libraries": {"pillow": "1.0"}}))
    assert "different versions of libraries" in " ".join(merge(made, into=tmp_path / "noted").notes)
    (made[1] / "shard.json").write_text(json.dumps(record))

    draw(data["images"], [70])
    extract(made[1], **data, shard="2/2")
    refused(StoreError, r"saw a different list of images \(14\) from that of .* \(13\)", made, tmp_path / "merged")
    (data["images"] / "70.png").unlink()

    data["pairs"].write_text(data["pairs"].read_text() + json.dumps({"image": "1.png", "text": "one more"}) + "\n")
    extract(made[1], **data, shard="2/2")
    refused(StoreError, "saw a different list of texts", made, tmp_path / "merged")
    extract(made[0], **data, shard="1/2")
    extract(made[0], **{**data, "encoder": "toy2"}, shard="1/2")
    refused(StoreError, "only one of the two has toy2", made, tmp_path / "merged")
    half = tmp_path / "half"
    extract(half, **data, shard="2/2", dtype="float32")
    extract(tmp_path / "first", **data, shard="1/2")
    refused(
        FingerprintError, "'dtype' is 'float16' there and 'float32' here", [tmp_path / "first", half], tmp_path / "m"
    )


@pytest.mark.slow
def test_a_folder_belongs_to_one_shard(tmp_path, data, parts):
    made = parts(2)
    with pytest.raises(StoreError, match="expected the store of the shard 2/2, found that of 1/2"):
        extract(made[0], **data, shard="2/2")
    with pytest.raises(StoreError, match="this is the store of the shard 1/2; add --shard 1/2"):
        extract(made[0], **data)
    extract(tmp_path / "whole", **data)
    with pytest.raises(StoreError, match="found a complete store"):
        extract(tmp_path / "whole", **data, shard="1/2")


@pytest.mark.parametrize("written", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_shard_is_two_numbers(written):
    with pytest.raises(UsageError, match=r"from 1/8 to 8/8 for example; found"):
        Shard.parse(written)


# The command line, in a process that kills itself in its n-th commit.
DOOMED = """
import os, signal, sys
import lance
import frevl.store.sharding.merging
from frevl.cli.main import main

fatal_call, after = int(sys.argv[1]), sys.argv[2] == "after"
del sys.argv[1:3]
frevl.store.sharding.merging._COMMIT_ROWS = 3
calls = 0
original = lance.write_dataset

def write(*arguments, **options):
    global calls
    calls += 1
    if calls == fatal_call and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    done = original(*arguments, **options)
    if calls == fatal_call:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

lance.write_dataset = write
main()
"""


@pytest.mark.slow
def test_a_killed_merge_goes_on(tmp_path, data, parts):
    made = parts(2)
    merge(made, into=tmp_path / "whole")
    expected = content(tmp_path / "whole")
    (tmp_path / "doomed.py").write_text(DOOMED)
    kills = 0
    for fatal_call in (1, 2, 3, 4, 2, 1, 3):
        command = [sys.executable, tmp_path / "doomed.py", str(fatal_call), "after" if fatal_call % 2 else "before"]
        ended = subprocess.run(
            [*command, "store", "merge", *made, "--into", tmp_path / "merged", "--quiet"],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        kills += ended.returncode == -signal.SIGKILL
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    merge(made, into=tmp_path / "merged")
    assert kills >= 5
    assert content(tmp_path / "merged") == expected
    assert Store.open(tmp_path / "merged").image_ids == Store.open(tmp_path / "whole").image_ids
    assert verify(tmp_path / "merged") == []


@pytest.mark.slow
def test_the_command(tmp_path, data, frevl):
    flags = ["--images", data["images"], "--pairs", data["pairs"], "--encoder", "toy", "--quiet"]
    for number in (1, 2):
        assert frevl("extract", *flags, "--shard", f"{number}/2", "--store", tmp_path / str(number)).code == 0
    said = frevl("store", "info", tmp_path / "1", "--json", tmp_path / "i")
    assert "part 1/2 of a sharded extraction, complete" in said.out
    assert json.loads((tmp_path / "i").read_text())["shard"] == "1/2"
    said = frevl("store", "merge", tmp_path / "1", tmp_path / "2", "--into", tmp_path / "all", "--json", tmp_path / "j")
    assert said.code == 0
    assert said.out.startswith("Merged 12 images and 12 texts of 2 parts")
    assert json.loads((tmp_path / "j").read_text())["images"] == 12
    assert frevl("extract", *flags, "--shard", "3/2", "--store", tmp_path / "3").code == 2
    assert frevl("store", "merge", tmp_path / "1", "--into", tmp_path / "more").code == 1
