"""Files that are no image, damaged or hostile: one clear ImageError each, and no setting of Pillow changes."""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import photo, png, saved
from PIL import Image, ImageFile

from frevl.encoders.images import MAX_PIXELS, read_image
from frevl.errors import ImageError

# --------------------------------------------------------------------------------------------------- refusals


def refusal(source: object, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folder_empty_and_foreign_files(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.write_bytes(b"")
    text.write_text("not an image")
    assert refusal(tmp_path / "no.jpg") == f"Cannot read image '{tmp_path}/no.jpg': the file does not exist."
    assert refusal(tmp_path) == f"Cannot read image '{tmp_path}': it is a folder; pass an image file."
    assert refusal(str(empty)) == f"Cannot read image '{empty}': it is empty (0 bytes)."
    assert refusal(text) == (f"Cannot read image '{text}': it is not an image in a format that Pillow can read.")
    assert refusal(b"") == "Cannot read an image from the given bytes: it is empty (0 bytes)."
    assert "the file cannot be opened" in refusal("a\0b.png")
    assert "the file cannot be opened" in refusal(tmp_path / ("x" * 300))


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "pipe.png").endswith("it is not a regular file.")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(photo(), "PNG"))

    def refuse(self: Path, *args: object) -> None:  # the tests may run as root, who may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path) == f"Cannot read image '{path}': there is no permission to read the file."


def test_an_image_without_pixels() -> None:
    assert refusal(Image.new("RGB", (0, 5))) == "Cannot read the given image: it has no pixels (0 x 5)."


def test_a_bomb_is_refused_by_its_header() -> None:
    # No pixel data at all: if anything were decoded, the message would be another.
    below_pillows_limit = png(12_000, 12_000, 1, 0, b"")
    assert refusal(below_pillows_limit) == (
        "Cannot read an image from the given bytes: it has 12000 x 12000 pixels, more than the limit of 100000000; "
        "resize it."
    )
    assert refusal(png(30_000, 30_000, 8, 2, b"")) == (
        "Cannot read an image from the given bytes: its header announces more pixels than Pillow's own limit."
    )
    assert refusal(png(0, 5, 8, 2, b"")).startswith("Cannot read an image from the given bytes: it ")


def test_the_limit_is_inclusive() -> None:
    image = saved(photo(11, 13), "PNG")
    assert read_image(image, max_pixels=143).size == (11, 13)
    assert "11 x 13 pixels, more than the limit of 142" in refusal(image, max_pixels=142)
    assert "more than the limit of 142" in refusal(photo(11, 13), max_pixels=142)


def test_postscript_is_never_run() -> None:
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n%%EOF\n"
    assert refusal(content).endswith("it is PostScript, a program and not an image; convert it to PNG.")


def test_a_picture_that_is_cut_short() -> None:
    for kind in ("JPEG", "PNG", "TIFF", "BMP"):
        content = saved(photo(97, 89), kind)
        assert "it is damaged" in refusal(content[: len(content) // 2]), kind


# --------------------------------------------------------------------------- hostile bytes, warnings, threads

WHOLE = {
    kind: saved(photo(23, 19), kind)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000", "DDS")
}


MAGIC = [content[:12] for content in WHOLE.values()] + [
    b"8BPS\0\1", b"%!PS", b"\xc5\xd0\xd3\xc6", b"icns", b"SIMPLE  =", b"GRIB", b"\x89HDF\r\n\x1a\n", b"qoif", b"DXT1",
    b"\xd7\xcd\xc6\x9a\0\0", b"FLI\x11\xaf", b"\x59\xa6\x6a\x95", b"BLP1", b"BLP2", b"\0\0\1\xb3", b"\x80\xe8\0\0",
    b"Pf 3 3 -1\n", b"P7 332", b"\0\0\0\x1cftypavif", b"#define a_width 9\n", b"/* XPM */", b"II*\0", b"MM\0*",
]  # fmt: skip


def never_another_exception(content: bytes) -> None:
    try:
        image = read_image(content, target=4, max_pixels=1_000_000)
    except ImageError as caught:
        message = str(caught)
    else:
        assert image.mode == "RGB"
        assert min(image.size) >= 1
        return
    assert message.startswith("Cannot read an image from the given bytes: ")
    for unwanted in ("\n", " at 0x", "Warning"):
        assert unwanted not in message


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_random_bytes(content: bytes) -> None:
    never_another_exception(content)


@pytest.mark.slow
@given(st.sampled_from(MAGIC), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_behind_a_true_beginning(magic: bytes, rest: bytes) -> None:
    never_another_exception(magic + rest)


@pytest.mark.slow
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_files_that_are_cut_anywhere(kind: str, part: float) -> None:
    never_another_exception(WHOLE[kind][: int(part * len(WHOLE[kind]))])


@pytest.mark.slow
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=9))
@settings(max_examples=300, deadline=None)
def test_files_with_changed_bytes(kind: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE[kind])
    for place, value in changes:
        # half of the changes hit the header, where the structure is
        content[place % (len(content) if place % 2 else 64)] = value
    never_another_exception(bytes(content))


def test_pillows_settings_and_the_warning_filters_stay_as_they_were() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    corrupt = saved(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    with pytest.warns(UserWarning, match=r"(?i)corrupt exif"):  # without us, Pillow warns of this file
        Image.open(io.BytesIO(corrupt)).getexif()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read_image(corrupt)
        with pytest.raises(ImageError):
            read_image(png(12_000, 12_000, 1, 0, b""))
    assert seen == []
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    assert MAX_PIXELS == 10_000 * 10_000


def test_many_threads_read_the_same_and_leave_no_filter() -> None:
    corrupt = saved(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    expected = np.asarray(read_image(corrupt))
    before = list(warnings.filters)
    start = threading.Barrier(8)

    def read(_: int) -> bool:
        start.wait()
        return all(np.array_equal(np.asarray(read_image(corrupt)), expected) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert before == list(warnings.filters)


def test_the_message_of_a_damaged_file_holds_no_address() -> None:
    message = refusal(WHOLE["PNG"][:60])
    assert re.fullmatch(r"Cannot read an image from the given bytes: it is damaged[^<>]*\.", message)
