"""Randomly broken tars, labels and cached pairs files: what is sound is read, and the rest is reported."""

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import broken, broken_json
from test_fuzz_readers import fuzzed, most_memory

from frevl.data.pairs import read_pairs
from frevl.errors import FrevlError, PairsError
from frevl.store.labels.labels_file import LabelsFile
from frevl.store.pictures.captions import Captions, holds_caption
from frevl.store.pictures.tar_members import Tar, is_picture, read_members
from frevl.store.sharding.shares import read_part

MOST_MEMORY = 1 << 20  # KiB an example


class Hidden(bytes):
    """Hypothesis would print all of it."""

    def __repr__(self):
        return f"{len(self)} bytes"


def check_sentence(error, name=""):
    assert name in str(error)
    assert "\n" not in str(error)


def made_tar(mode):
    """A tar of three images with their captions, a label and a record."""
    content = io.BytesIO()
    record = {"caption": "c", "n": [1, None], "deep": {"x": 1}}
    members = {
        "a/0.jpg": b"\xff\xd8" + bytes(40), "a/0.txt": "a d\u00f6g".encode(),
        "1.png": b"\x89PNG" + bytes(40), "1.cls": b"3",
        "2.webp": b"RIFF" + bytes(40), "2.json": json.dumps(record).encode(),
    }  # fmt: skip
    with tarfile.open(fileobj=content, mode=mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def read_tar(path, out):
    """Read a tar as `extract` does, up to what it hands to the encoder."""
    pictures = 0
    with Captions(out) as captions:
        for member in read_members(Tar(path.name, str(path)), lambda name: is_picture(name) or holds_caption(name)):
            assert "\n" not in member.problem
            if not member.problem and is_picture(member.id):
                captions.picture(member.id)
                pictures += 1
            elif holds_caption(member.id):
                captions.add(member)
        captions.write()
        captions.finish()
    return pictures, captions


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars(tmp_path, mode):
    content = made_tar(mode)
    path, out = tmp_path / "x.tar", tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    pictures, captions = read_tar(path, out)
    assert (pictures, captions.written, captions.rejects) == (3, 3, [])

    @fuzzed(150)
    @given(broken(content).map(Hidden))
    def check(changed):
        path.write_bytes(changed)
        before = most_memory()
        _, captions = read_tar(path, out)
        assert most_memory() - before < MOST_MEMORY
        if not captions.written:
            return
        try:  # frevl reads what it wrote
            read = read_pairs(out)
            assert (len(read), len(read.rejected)) == (captions.written, 0)
        except PairsError as error:  # the caption of one image was lost, and its label was not
            check_sentence(error, "expected a text as in")

    check()


@pytest.mark.slow
def test_records_in_tars(tmp_path):
    record = {"caption": "a dog", "n": 1.5, "tags": ["a", None], "deep": {"x": [1, {"y": 2}]}}
    out = tmp_path / "pairs.jsonl"

    @fuzzed(200)
    @given(st.one_of(broken_json(record), broken(json.dumps(record).encode())))
    def check(changed):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name, data in (("0.jpg", b"x"), ("0.json", changed)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        _, captions = read_tar(tmp_path / "x.tar", out)
        if captions.written:
            read = read_pairs(out)
            assert (len(read), len(read.rejected)) == (1, 0)

    check()


@pytest.mark.slow
def test_labels_files(tmp_path):
    book = LabelsFile(tmp_path)
    book.define("ada", ["cat", "d\u00f6g"])
    book.label("ada", [("0.png", "cat"), ("1.png", "d\u00f6g")])
    book.label("bob", [("0.png", "d\u00f6g")])
    book.rename("ada", "cat", "kitten")
    book.undo("bob")
    whole = book.path.read_bytes()

    @fuzzed(200)
    @given(broken(whole))
    def check(changed):
        book.path.write_bytes(changed)
        try:
            labels = LabelsFile(tmp_path)
            labels.reading(lambda state: (state.agreed(), state.classes(), state.both(), state.disputed()))
            labels.label("eve", [("2.png", "bird")])
            assert labels.book().of("2.png")["eve"] == "bird"
        except FrevlError as error:
            check_sentence(error)

    check()


@pytest.mark.slow
def test_records_of_shards(tmp_path):
    record = {"number": 1, "of": 2, "frevl": "1", "libraries": {"pillow": "1"}, "complete": True,
              "lists": {"images": "1:ab"}, "pairs": ["x"], "rows": {"images": 3}}  # fmt: skip

    @fuzzed(150)
    @given(st.one_of(broken_json(record), broken(json.dumps(record).encode())))
    def check(changed):
        (tmp_path / "shard.json").write_bytes(changed)
        try:
            read_part(tmp_path)
        except FrevlError as error:
            check_sentence(error, tmp_path.name)

    check()


@pytest.mark.slow
def test_kept_pairs_files(tmp_path, monkeypatch):
    monkeypatch.setattr("frevl.data.pairs._LARGE", 0)
    monkeypatch.setattr("frevl.data.packed.blocks._FEW", 2)
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "pairs.jsonl"
    rows = [{"image": f"{number}.png", "text": f"caption {number}", "target": str(number % 3)} for number in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"image": "x"}\n')
    expected = read_pairs(path)
    (kept,) = tmp_path.glob(".*.arrow")
    whole = kept.read_bytes()

    @fuzzed(150)
    @given(broken(whole))
    def check(changed):
        kept.unlink(missing_ok=True)
        kept.write_bytes(changed)
        read = read_pairs(path)
        for part in ("images", "texts", "targets", "places"):
            assert list(getattr(read, part)) == list(getattr(expected, part))
        assert read.rejected == expected.rejected

    check()
