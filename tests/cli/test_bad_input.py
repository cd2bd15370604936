"""Bad input and bad luck on the command line: one clear message, the right exit code, nothing lost."""

import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify

# Root may do everything; without these two capabilities (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) modes hold for it too.
AS_ANYBODY = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "frevl", *sys.argv[1:]])
"""

# A limit on the size of files fails a write as a full disk does: in the middle.
WITH_LITTLE_ROOM = """
import resource, sys
from frevl.cli.main import main
size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
main()
"""


def run(*arguments, code=None, timeout=60):
    start = ["-m", "frevl"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *map(os.fspath, arguments)], capture_output=True, text=True, timeout=timeout
    )


def one_sentence(done, code):
    """Check that a command failed as a known failure does, and return what it said."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("frevl: ")
    assert done.stdout == ""
    return lines[0].removeprefix("frevl: ")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.fixture
def hostile(tmp_path, draw):
    """A folder with everything that should not be in one; returns it with the good ids and the bad ones."""
    folder = draw(tmp_path / "images", [0])
    good = (folder / "0.png").read_bytes()
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    Image.new("RGB", (20_000, 1)).save(folder / "wide.png")
    Image.new("1", (1, 1)).save(folder / "dot.gif")
    shutil.copy(folder / "0.png", folder / ("n" * 251 + ".png"))
    shutil.copy(folder / "0.png", folder / "line\nbreak \x1b[31m.png")
    shutil.copy(folder / "0.png", folder / "no suffix")
    (folder / "full.jpg").mkdir()
    shutil.copy(folder / "0.png", folder / "full.jpg" / "inner.png")
    fine = {"0.png", "photo.jpg", "wide.png", "dot.gif", "n" * 251 + ".png", "line\nbreak \x1b[31m.png", "no suffix"}

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    contents = {
        "zero.jpg": b"",
        "text.jpg": b"this is no picture",
        "page.png": b"<!doctype html><html><body>404</body></html>",
        "cut.jpg": (folder / "photo.jpg").read_bytes()[:-400],
        "cut.png": good[:60],
        "noise.tif": rng.bytes(500),
        "bomb.png": bomb,
        "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "notes.txt": b"captions",
    }
    for name, raw in contents.items():
        (folder / name).write_bytes(raw)
    (folder / "empty.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket.jpg"))
    links = {"endless.jpg": "/dev/zero", "dangling.jpg": "nowhere.jpg", "loop.jpg": "loop.jpg"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "up").symlink_to("..")
    with (folder / "sparse.jpg").open("wb") as sparse:
        sparse.truncate(5 << 30)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(good)
    bad = {*contents, *links, "empty.jpg", "pipe.jpg", "socket.jpg", "sparse.jpg", "\\udcff\\udcfe.png"}
    return folder, fine | {"full.jpg/inner.png"}, bad


@pytest.mark.slow
def test_a_hostile_folder_stops_nothing_and_hides_nothing(tmp_path, hostile):
    folder, fine, bad = hostile
    arguments = [
        "extract",
        "--images",
        folder,
        "--encoder",
        "toy",
        "--store",
        tmp_path / "s",
        "--commit-rows",
        "3",
        "--quiet",
    ]
    for attempt in range(2):
        done = run(*arguments, "--json", tmp_path / "report.json")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        # The link that leads up lists the folder above: its own entries come back under names of the link.
        report = json.loads((tmp_path / "report.json").read_text())
        rejected = {reject["id"]: reject["reason"] for reject in report["rejects"] if not reject["id"].startswith("up")}
        assert set(rejected) == bad
        assert report["images" if attempt == 0 else "images_kept"] == len(fine)
        assert len(done.stdout.strip().splitlines()) == 1
        beside = [reject["id"][-5:] for reject in report["rejects"] if reject["id"].endswith((".txt", ".json"))]
        assert f"Left out: {len(report['rejects']) - len(beside)} images (" in done.stdout
        assert f", and {len(beside)} other file" in done.stdout
        assert "\x1b" not in done.stdout
    store = Store.open(tmp_path / "s")
    assert set(store.image_ids) == fine
    assert len(store.image_ids) == len(fine)
    assert len(store.rejects()) == len({reject.id for reject in store.rejects()}) == len(report["rejects"])
    assert verify(tmp_path / "s") == []
    assert (
        rejected["pipe.jpg"] == rejected["endless.jpg"] == "it is not a regular file but a pipe, a device or the like"
    )
    assert rejected["dangling.jpg"] == "the file cannot be read (No such file or directory)"
    assert rejected["loop.jpg"] == "the file cannot be read (Too many levels of symbolic links)"
    assert rejected["sparse.jpg"] == "it has 5,368,709,120 bytes, more than the limit of 1,073,741,824"
    assert rejected["\\udcff\\udcfe.png"] == "the file name is not UTF-8; rename it"
    assert rejected["empty.jpg"] == "it is named like an image but is an empty folder"
    assert rejected["zero.jpg"] == "it is empty (0 bytes)"
    assert rejected["text.jpg"] == "it is not an image in a format that Pillow can read"
    assert "60000" in rejected["bomb.png"] or "more pixels" in rejected["bomb.png"]


def test_bad_lines_are_counted_in_the_closing_line(tmp_path, frevl):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(
        b'{"image": "a", "text": "a dog"}\n'
        b'{"image": "a", "text": "   "}\n'
        b"not json\n"
        b'{"image": 1, "text": "a"}\n'
        b'{"image": "a", "text": "\xff"}\n'
        b'{"image": "a", "text": "' + b"x" * (5 << 20) + b'"}\n'
        b'{"image": "a", "text": "a cat"}'
    )
    done = frevl("extract", "--pairs", file, "--encoder", "toy", "--store", tmp_path / "s", "--quiet")
    assert done.code == 0
    assert "Embedded 0 images and 2 texts in" in done.out
    assert f"Left out: 5 pairs ({file}:2: field 'text': expected text, found only blanks; " in done.out
    assert done.out.rstrip().endswith("; and 2 more).")
    assert sorted(Store.open(tmp_path / "s").texts) == ["a cat", "a dog"]
    assert [reject.id for reject in Store.open(tmp_path / "s").rejects()] == [f"{file}:{n}" for n in (2, 3, 4, 5, 6)]


def test_no_readable_image(tmp_path, frevl):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    done = frevl("extract", "--images", tmp_path / "images", "--encoder", "toy", "--store", tmp_path / "s", "--quiet")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"frevl: {tmp_path / 'images'}: expected images, found no file that can be read as one. Left out: 1 image "
        "(a.jpg: it is not an image in a format that Pillow can read).\n"
    )
    assert [reject.id for reject in Store.open(tmp_path / "s").rejects()] == ["a.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--images", "none", "--store", "s"], 1, "none: expected a folder of images, found none"),
        (["--images", "file", "--store", "s"], 1, "file: expected a folder of images, found a file"),
        (["--images", "empty", "--store", "s"], 1, "empty: expected images, found no file in that folder"),
        (["--pairs", "none.jsonl", "--store", "s"], 1, "none.jsonl: no such pairs file; check the path"),
        (
            ["--images", "good", "--store", "file"],
            1,
            "file: expected a store, or an empty or new folder for one, found a file",
        ),
        (
            ["--images", "good", "--store", "good"],
            1,
            "good: expected a store, or an empty or new folder for one, found '0.png' in it; choose another folder",
        ),
        (
            ["--images", "good", "--store", "file/s"],
            1,
            "file/s: the store cannot be written (Not a directory); choose a",
        ),
        (
            ["--images", "good", "--store", "s", "--encoder", "toyy"],
            2,
            "There is no encoder 'toyy'. Did you mean 'toy'?",
        ),
        (
            ["--images", "good", "--store", "s", "--dtype", "float61"],
            2,
            "must be 'float16' or 'float32', found 'float61'",
        ),
    ],
)
def test_wrong_paths_and_names(tmp_path, draw, frevl, monkeypatch, arguments, code, message):
    draw(tmp_path / "good", [0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    done = frevl("extract", "--encoder", "toy", *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_an_unknown_flag_suggests_the_nearest(frevl):
    done = frevl("extract", "--imagse", "x", "--store", "s")
    assert done.code == 2
    assert "--images" in done.err


def test_the_page_of_labels_needs_the_folder_that_was_named(frevl, tmp_path):
    asked = ["--store", "s", "--classes", "c.txt", "--run", "r", "--html", tmp_path / "h.html", "--images", "none"]
    done = frevl("classify", *asked)
    assert (done.code, done.out) == (2, "")
    assert "none: no such folder; expected the folder of the images for --html" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_damaged_store_is_one_sentence_for_every_command(tmp_path, draw, frevl, damage):
    draw(tmp_path / "images", range(3))
    arguments = ["extract", "--images", tmp_path / "images", "--encoder", "toy", "--store", tmp_path / "s", "--quiet"]
    assert frevl(*arguments).code == 0
    (file,) = (tmp_path / "s" / "images.lance" / "data").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-9]) if damage == "cut" else file.unlink()
    done = frevl("store", "verify", tmp_path / "s")
    assert done.code == 1
    assert str(file) in done.err
    assert len(done.err.strip().splitlines()) == 1
    for command in (arguments, ["store", "info", tmp_path / "s"]):
        done = frevl(*command)
        assert done.code == 1
        assert "the table 'images' cannot be read" in done.err
        assert len(done.err.strip().splitlines()) == 1
    file.write_bytes(whole)
    assert frevl("store", "verify", tmp_path / "s").code == 0


@pytest.mark.slow
def test_without_permission(tmp_path, draw):
    images = draw(tmp_path / "images", range(4))
    (images / "locked").mkdir()
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"image": "0.png", "text": "a"}')
    extract = ["extract", "--encoder", "toy", "--quiet"]
    (images / "1.png").chmod(0)
    (images / "locked").chmod(0)
    done = run(*extract, "--images", images, "--store", tmp_path / "s", code=AS_ANYBODY)
    assert done.returncode == 0, done.stderr
    assert "Embedded 3 images" in done.stdout
    rejects = sorted((reject.id, reject.reason) for reject in Store.open(tmp_path / "s").rejects())
    assert rejects == [
        ("1.png", "the file cannot be read (Permission denied)"),
        ("locked", "the folder cannot be read (Permission denied)"),
    ]

    (tmp_path / "closed").mkdir(mode=0o500)
    said = one_sentence(run(*extract, "--images", images, "--store", tmp_path / "closed" / "s", code=AS_ANYBODY), 1)
    assert said == (
        f"{tmp_path / 'closed' / 's'}: the store cannot be written (Permission denied); choose a folder that you may "
        "write to"
    )

    pairs.chmod(0)
    for command in (
        [*extract, "--pairs", pairs, "--store", tmp_path / "s"],
        ["train", "--store", tmp_path / "s", "--pairs", pairs, "--task", "matching", "--run", tmp_path / "r"],
        ["evaluate", "--store", tmp_path / "s", "--pairs", pairs, "--run", tmp_path / "r"],
    ):
        done = run(*command, code=AS_ANYBODY)
        assert done.returncode == 1, done.stderr
    assert one_sentence(run(*extract, "--pairs", pairs, "--store", tmp_path / "s", code=AS_ANYBODY), 1) == (
        f"{pairs}: the file cannot be read (Permission denied)"
    )
    pairs.chmod(0o600)

    for folder in (tmp_path / "s").rglob("*"):
        folder.chmod(0o500 if folder.is_dir() else 0o400)
    said = one_sentence(run(*extract, "--pairs", pairs, "--store", tmp_path / "s", code=AS_ANYBODY), 1)
    assert said == f"{tmp_path / 's'}: the store cannot be locked for writing (Permission denied)"
    (tmp_path / "s" / ".lock").chmod(0o600)
    (tmp_path / "s").chmod(0o500)
    said = one_sentence(run(*extract, "--pairs", pairs, "--store", tmp_path / "s", code=AS_ANYBODY), 1)
    assert "the store cannot be written (Permission denied); everything committed before is kept" in said
    assert run("store", "verify", tmp_path / "s", code=AS_ANYBODY).returncode == 0  # reading is allowed

    (tmp_path / "s" / "images.lance" / "_versions").chmod(0)
    said = one_sentence(run("store", "info", tmp_path / "s", code=AS_ANYBODY), 1)
    assert said == f"{tmp_path / 's'}: no permission to read the table 'images'; ask its owner"
    for folder in [tmp_path / "s", *(tmp_path / "s").rglob("*"), images / "locked", tmp_path / "closed"]:
        folder.chmod(0o700)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, draw):
    images = draw(tmp_path / "images", range(30))
    pairs = tmp_path / "pairs.jsonl"
    texts = ["short", "x" * 60_000, *(f"text {number}" for number in range(20))]
    pairs.write_text("\n".join(json.dumps({"image": "0.png", "text": text}) for text in texts))
    arguments = [
        "extract",
        "--images",
        images,
        "--pairs",
        pairs,
        "--encoder",
        "toy",
        "--store",
        tmp_path / "s",
        "--quiet",
    ]
    arguments += ["--commit-rows", "7"]
    # The last text of the chunk, which is sorted by length, does not fit.
    said = one_sentence(run(str(40_000), *arguments, code=WITH_LITTLE_ROOM), 1)
    assert said == (
        f"{tmp_path / 's'}: writing the table 'texts' failed (File too large); everything committed before is kept: "
        "free some space or fix the permissions, and run the same command again to continue"
    )
    store = Store.open(tmp_path / "s")
    assert len(store.image_ids) == 30
    assert len(store.texts) == 21
    assert verify(tmp_path / "s") == []
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Embedded 0 images and 1 text in" in done.stdout
    assert "30 images and 21 texts were already in the store" in done.stdout
    again = Store.open(tmp_path / "s")
    assert sorted(again.texts) == sorted(texts)
    np.testing.assert_array_equal(again.read_images(store.image_ids), store.read_images(store.image_ids))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.slow
def test_a_disk_that_is_full_at_once(tmp_path, draw):
    images = draw(tmp_path / "images", range(3))
    arguments = ["extract", "--images", images, "--encoder", "toy", "--store", tmp_path / "s", "--quiet"]
    said = one_sentence(run(str(10), *arguments, code=WITH_LITTLE_ROOM), 1)
    assert "the store cannot be written (File too large); everything committed before is kept" in said
    assert run(*arguments).returncode == 0
    assert len(Store.open(tmp_path / "s").image_ids) == 3


@pytest.mark.slow
def test_a_second_writer_is_refused(tmp_path, draw, frevl):
    from frevl.store.writer import StoreWriter

    images = draw(tmp_path / "images", range(3))
    with StoreWriter(tmp_path / "s"):
        done = run("extract", "--images", images, "--encoder", "toy", "--store", tmp_path / "s")
    said = one_sentence(done, 1)
    assert said == f"{tmp_path / 's'}: another process is writing to this store; wait for it to finish"
