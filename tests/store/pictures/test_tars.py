"""Tars: images are embedded without unpacking, captions become pairs, and damage is reported."""

import gzip
import io
import json
import tarfile

import pytest
from PIL import Image

from frevl.data.pairs import read_pairs
from frevl.encoders.toy import ToyImageTower
from frevl.errors import InputError, StoreError, UsageError
from frevl.store.extraction.extract import extract
from frevl.store.pictures.tar_members import Tar, read_members
from frevl.store.reader import Store
from frevl.store.sharding.merging import merge
from frevl.store.upkeep.verification import verify


def picture(number):
    drawn = Image.new("RGB", (24, 16), (number * 23 % 256, number * 91 % 256, number * 7 % 256))
    drawn.putpixel((number % 24, number % 16), (255, 255, 255))
    written = io.BytesIO()
    drawn.save(written, "PNG")
    return written.getvalue()


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers):
    """What img2dataset writes: image, caption and record of every key."""
    for number in numbers:
        key = f"{number:09}"
        record = {"caption": f"a picture of {number}", "width": 24, "url": f"http://x/{number}", "exif": None}
        yield f"{key}.png", picture(number)
        yield f"{key}.txt", f"a picture of {number}\n".encode()
        yield f"{key}.json", json.dumps(record).encode()


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    for number in range(3):
        write_tar(folder / f"{number:05}.tar", samples(range(4 * number, 4 * number + 4)))
    (folder / "00000_stats.json").write_text("{}")
    return folder


def stored(store):
    at = Store.open(store)
    return sorted(at.rows("image", at.image_ids).to_pylist(), key=lambda row: row["id"]), sorted(at.texts), at.rejects()


def test_a_folder_of_tars_is_embedded_as_the_same_pictures_in_files_are(tmp_path, tars):
    files = tmp_path / "files"
    for tar in sorted(tars.glob("*.tar")):
        (files / tar.name).mkdir(parents=True)
        with tarfile.open(tar) as stream:
            for member in stream:
                if member.name.endswith(".png"):
                    (files / tar.name / member.name).write_bytes(stream.extractfile(member).read())

    report = extract(tmp_path / "a", images=tars, encoder="toy", write_pairs=tmp_path / "pairs.jsonl")
    extract(tmp_path / "b", images=files, encoder="toy")

    assert (report.images, report.texts, report.rejects) == (12, 12, [])
    there, here = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    assert set(there.image_ids) == set(here.image_ids)
    assert (there.read_images(there.image_ids) == here.read_images(there.image_ids)).all()
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert list(pairs.images) == sorted(there.image_ids)
    assert pairs.texts[0] == "a picture of 0"
    line = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    assert line == {
        "image": "00000.tar/000000000.png", "text": "a picture of 0", "width": 24, "url": "http://x/0"
    }  # fmt: skip
    assert verify(tmp_path / "a") == []


def test_a_second_call_embeds_only_what_is_new_or_has_changed(tmp_path, tars, monkeypatch):
    extract(tmp_path / "s", images=tars, encoder="toy")
    write_tar(tars / "00001.tar", [*samples(range(4, 7)), ("000000007.png", picture(70)), ("new.png", picture(71))])
    asked = []
    original = ToyImageTower.embed

    def embed(self, prepared):
        asked.append(len(prepared))
        return original(self, prepared)

    monkeypatch.setattr(ToyImageTower, "embed", embed)

    report = extract(tmp_path / "s", images=tars, encoder="toy")

    assert (report.images, report.images_kept) == (2, 11)
    assert asked[1:] == [2]  # the first are the canaries
    extract(tmp_path / "fresh", images=tars, encoder="toy")
    assert stored(tmp_path / "s")[0] == stored(tmp_path / "fresh")[0]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_one_tar_and_a_list_of_tars(tmp_path, tars, mode):
    tar = write_tar(tmp_path / ("x.tar" if mode == "w" else f"x.tar.{mode[2:]}"), samples([1]), mode)
    assert extract(tmp_path / "one", images=tar, encoder="toy").images == 1
    assert Store.open(tmp_path / "one").image_ids == [f"{tar.name}/000000001.png"]
    listing = tmp_path / "tars.txt"
    listing.write_text(f"# two\ntars/00001.tar\n\n{tar}\n")
    assert extract(tmp_path / "two", images=listing, encoder="toy").images == 5
    for wrong, match in [
        ("tars/9.tar\n", "line 1: expected the path of a tar, found none"),
        ("\n", "found an empty file"),
        (f"tars/00001.tar\n{tars}/00001.tar", "2 of its tars are named '00001.tar'"),
    ]:
        listing.write_text(wrong)
        with pytest.raises(InputError, match=match):
            extract(tmp_path / "three", images=listing, encoder="toy")


def cut(tars, size):
    path = tars / "00001.tar"
    path.write_bytes(path.read_bytes()[:size])


def offsets(path):
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "left", "reason"),
    [
        ("in a picture", 1, "truncated, and the rest is lost; 4 members before that were read"),
        ("in a header", 1, "truncated, and the rest is lost; 3 members before that were read"),
        ("between members", 1, "the tar has no end marker: it was truncated"),
        ("everywhere", 0, "none of it was read"),
        ("in the middle", 2, "the tar is damaged in the middle, and the rest was not read"),
        ("not a tar", 0, "expected a tar, found something else"),
    ],
)
def test_a_broken_tar_keeps_what_can_be_read(tmp_path, tars, where, left, reason):
    path = tars / "00001.tar"
    starts = offsets(path)
    content = path.read_bytes()
    if where == "in the middle":
        content = content[: starts[6]] + b"\x07" * 512 + content[starts[6] + 512 :]
    else:
        end = {"in a picture": starts[3] + 520, "in a header": starts[3] + 100, "between members": starts[3]}
        content = content[: end.get(where, 0)] if where != "not a tar" else b"<html>no such file</html>" * 400
    path.write_bytes(content)

    report = extract(tmp_path / "s", images=tars, encoder="toy", write_pairs=tmp_path / "p.jsonl")

    assert report.images == 8 + left
    (reject,) = [one for one in report.rejects if one.id == "00001.tar"]
    assert reason in reject.reason
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 8 + left
    write_tar(path, samples(range(4, 8)))
    again = extract(tmp_path / "s", images=tars, encoder="toy")
    assert (again.images, again.images_kept) == (4 - left, 8 + left)
    assert Store.open(tmp_path / "s").rejects() == []


def test_joined_tars_say_that_there_is_more(tmp_path, tars):
    path = tars / "00001.tar"
    path.write_bytes(path.read_bytes() + (tars / "00002.tar").read_bytes())
    report = extract(tmp_path / "s", images=tars, encoder="toy")
    assert "more data after the tar's end marker" in report.sentence()
    assert report.images == 12


def test_keys_that_stand_twice(tmp_path):
    tar = write_tar(
        tmp_path / "x.tar",
        [
            *samples([1]),
            ("000000001.png", picture(1)),  # the same again
            ("000000001.png", picture(2)),  # another one of this name
            ("000000001.txt", b"another caption"),
            ("000000001.jpg", picture(3)),  # another image of this key
        ],
    )
    report = extract(tmp_path / "s", images=tar, encoder="toy", write_pairs=tmp_path / "p.jsonl")
    assert sorted(Store.open(tmp_path / "s").image_ids) == ["x.tar/000000001.jpg", "x.tar/000000001.png"]
    assert {one.kind: one.reason for one in report.rejects} == {
        "image": "the tar has two different images of this name; the first is used",
        "pair": "the tar has two different members of this name; the first is used",
    }
    assert "with the same content count once: 1 (the first is 'x.tar/000000001.png')" in report.sentence()
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [(line["image"], line["text"]) for line in lines] == [
        ("x.tar/000000001.png", "a picture of 1"), ("x.tar/000000001.jpg", "a picture of 1")
    ]  # fmt: skip
    assert verify(tmp_path / "s") == []


def test_members_of_every_kind(tmp_path):
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as stream:
        for name, content in [
            ("./a/b c.ü.jpg", picture(1)), ("a/b c.txt", b" ein Hund "),
            ("late.txt", b"before its picture"), ("late.png", picture(2)),
            ("label.png", picture(3)), ("label.cls", b"7"),
            ("alone.png", picture(4)), ("broken.jpg", b"no picture"), ("broken.txt", b"of a broken one"),
            ("bad.png", picture(5)), ("bad.txt", b"\xff\xfe\xfa"), ("j.png", picture(6)), ("j.json", b"[1"),
            ("k.png", picture(7)), ("k.json", b'{"caption": " of k ", "text": 3, "image": "evil", "deep": [1]}'),
            ("e.png", picture(8)), ("e.txt", b" "), ("vector.npy", b"123"), ("../out.png", picture(9)),
            ("._fork.png", b"fork"), ("empty.png", b""),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            stream.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        stream.addfile(link)
        device = tarfile.TarInfo("pipe.jpg")
        device.type = tarfile.FIFOTYPE
        stream.addfile(device)

    report = extract(tmp_path / "s", images=tar, encoder="toy", write_pairs=tmp_path / "p.jsonl")

    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {line["image"].partition("/")[2]: line.get("text", line.get("target")) for line in lines} == {
        "a/b c.ü.jpg": "ein Hund", "late.png": "before its picture", "label.png": "7", "broken.jpg": "of a broken one",
        "k.png": "of k",
    }  # fmt: skip
    reasons = {one.id.partition("/")[2]: one.reason for one in report.rejects}
    assert set(reasons) == {
        "broken.jpg", "bad.txt", "j.json", "e.txt", "../out.png", "empty.png", "link.png", "pipe.jpg"
    }  # fmt: skip
    assert reasons["../out.png"] == "its path leads outside the tar"
    assert "Images without a caption: 5." in report.sentence()
    assert set(Store.open(tmp_path / "s").texts) == {"ein Hund", "before its picture", "of a broken one", "of k"}


def test_a_tar_without_pictures_is_an_error(tmp_path):
    tar = write_tar(tmp_path / "x.tar", [("a.txt", b"text")])
    with pytest.raises(InputError, match=r"x.tar: expected images, found no image"):
        extract(tmp_path / "s", images=tar, encoder="toy")
    (tmp_path / "y.tar").write_bytes(gzip.compress(b"nothing")[:-9])
    with pytest.raises(InputError, match="found no image"):
        extract(tmp_path / "s", images=tmp_path / "y.tar", encoder="toy")


def test_a_folder_of_pictures_stays_one_beside_a_tar(tmp_path, tars, draw):
    draw(tars, [1, 2])
    report = extract(tmp_path / "s", images=tars, encoder="toy")
    assert sorted(Store.open(tmp_path / "s").image_ids) == ["1.png", "2.png"]
    assert {one.id for one in report.rejects} >= {"00000.tar", "00001.tar"}


@pytest.mark.slow
def test_shards_share_tars_out_and_merge_to_the_same(tmp_path, tars):
    (tmp_path / "more.jsonl").write_text(
        json.dumps({"image": "00002.tar/000000008.png", "text": "one more"}) + "\n"
        + json.dumps({"image": "00001.tar/nowhere.png", "text": "nothing"}) + "\n"
    )  # fmt: skip
    write_tar(tars / "00003.tar", [("a.png", picture(30)), ("a.txt", b"a picture of 1"), ("b.png", b"broken")])
    given = {"images": tars, "pairs": tmp_path / "more.jsonl", "encoder": "toy"}
    extract(tmp_path / "whole", **given, write_pairs=tmp_path / "whole.jsonl")
    lines = []
    for number in (1, 2, 3):
        out = tmp_path / f"{number}.jsonl"
        extract(tmp_path / str(number), **given, shard=f"{number}/3", write_pairs=out)
        lines += out.read_text().splitlines()

    merge([tmp_path / str(number) for number in (1, 2, 3)], into=tmp_path / "merged")

    whole, merged = stored(tmp_path / "whole"), stored(tmp_path / "merged")
    assert whole[:2] == merged[:2]
    assert sorted(whole[2], key=str) == sorted(merged[2], key=str)
    assert sorted(lines) == sorted((tmp_path / "whole.jsonl").read_text().splitlines())


def test_what_does_not_go_with_tars(tmp_path, tars):
    with pytest.raises(UsageError, match="--prune compares"):
        extract(tmp_path / "s", images=tars, encoder="toy", prune=True)
    with pytest.raises(InputError, match="found a file"):
        extract(tmp_path / "s", images=write_tar(tmp_path / "x.zip", []), encoder="toy")
    with pytest.raises(InputError, match="cannot be written"):
        extract(tmp_path / "s", images=tars, encoder="toy", write_pairs=tmp_path / "no" / "p.jsonl")
    assert not isinstance(verify(tmp_path / "s"), StoreError)


def test_the_command(tmp_path, tars, frevl):
    said = frevl(
        "extract",
        "--images",
        tars,
        "--encoder",
        "toy",
        "--store",
        tmp_path / "s",
        "--write-pairs",
        tmp_path / "p.jsonl",
    )
    assert said.code == 0, said.err
    assert f"Wrote 12 pairs to {tmp_path / 'p.jsonl'}." in said.out


def pairs_of(tmp_path, members):
    """What the pairs file of a tar says, by name of the image, and what was rejected, by name of the member."""
    tar = write_tar(tmp_path / "x.tar", members)
    report = extract(tmp_path / "s", images=tar, encoder="toy", write_pairs=tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    rejects = {one.id.partition("/")[2]: one.reason for one in report.rejects}
    return {line.pop("image").partition("/")[2]: line for line in lines}, rejects


def test_only_what_follows_the_first_dot_says_what_a_member_is(tmp_path):
    pairs, rejects = pairs_of(
        tmp_path,
        [
            ("0.png", picture(1)), ("0.txt", b"a dog"), ("0.ocr.txt", b"EXIT"), ("0.meta.json", b'{"caption": "no"}'),
            ("1.png", picture(2)), ("1.a.cls", b"3"), ("1.cls", b"4"), ("1.b.cls", b"5"),
            ("2.png", picture(3)), ("2.ocr.txt", b"STOP"),
            ("d.x/3.png", picture(4)), ("d.x/3.TXT", b"a cat"),
        ],
    )  # fmt: skip
    assert pairs == {"0.png": {"text": "a dog"}, "1.png": {"target": "4"}, "d.x/3.png": {"text": "a cat"}}
    assert rejects == {}


def test_of_two_captions_of_a_key_the_first_is_used_and_the_other_is_said(tmp_path):
    pairs, rejects = pairs_of(
        tmp_path,
        [
            ("0.png", picture(1)), ("0.txt", b"a dog"), ("0.caption", b"a cat"), ("0.text", b" a dog\n"),
            ("1.png", picture(2)), ("1.json", b'{"caption": "of the record"}'), ("1.caption", b"its own"),
            ("2.png", picture(3)), ("2.cls", b"3"), ("2.CLS", b"4"),
            ("3.png", picture(4)), ("3.json", b'{"caption": "one", "n": 1}'), ("3.JSON", b'{"caption": "two"}'),
        ],
    )  # fmt: skip
    assert pairs == {
        "0.png": {"text": "a dog"}, "1.png": {"text": "its own"}, "2.png": {"target": "3"},
        "3.png": {"n": 1, "text": "one"},
    }  # fmt: skip
    assert rejects == {
        "0.caption": "there are two different captions of this key; the first is used",
        "2.CLS": "there are two different labels of this key; the first is used",
        "3.JSON": "there are two different records of this key; the first is used",
    }


def test_what_no_pairs_file_can_hold_is_left_out_of_a_record(tmp_path):
    pairs, rejects = pairs_of(
        tmp_path,
        [
            ("0.png", picture(1)), ("0.json", b'{"caption": "half \\ud83d of it"}'),
            ("1.png", picture(2)),
            ("1.json", b'{"caption": "whole \\ud83d\\ude00", "a": NaN, "b": -Infinity, "c": 1e999, "d": "\\udc00", '
             b'"\\ud83d": 1, "e": 0.5, "f": ' + b"9" * 400 + b"}"),
        ],
    )  # fmt: skip
    assert pairs == {"1.png": {"e": 0.5, "f": int("9" * 400), "text": "whole \U0001f600"}}
    assert rejects == {"0.json": "expected text, found half of a surrogate pair"}
    read = read_pairs(tmp_path / "p.jsonl")
    assert (len(read), len(read.rejected)) == (1, 0)


@pytest.mark.parametrize("length", range(14))
def test_a_compressed_tar_that_was_cut_in_its_first_bytes_is_said(tmp_path, length):
    (tmp_path / "x.tar").write_bytes(gzip.compress(bytes(600))[:length])
    (member,) = read_members(Tar("x.tar", str(tmp_path / "x.tar")), bool)
    assert member.id == "x.tar"
    assert "none of it was read" in member.problem
