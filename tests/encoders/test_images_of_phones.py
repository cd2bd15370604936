"""HEIF files, and PNG files with more metadata than Pillow accepts: sound images, or a message with the remedy."""

import base64
import importlib.util
import io
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from frevl.encoders.images import read_image
from frevl.errors import ImageError

# 16 x 8 pixels, red on the left and blue on the right, written by pillow-heif 1.8.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9j"
    "AAAAAERAAAEAAQAAAAABoAABAAAAAAAAAIkAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/Glw"
    "cnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AA"
    "AAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABA"
    "AAAAQAAAAChjbGFwAAAAEAAAAAEAAAAIAAAAAf///9AAAAAC////yAAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYEC"
    "AwWEAAAAkW1kYXQAAACFKAGvBjIayAqAXUCj29ev//6rr0PpmR/m+iJ33yOb//GnS6833IR4Nq1+8+7Ds3DW6iWoMJ9AqAd0QtqR+TAe5XyU"
    "mRTaiyB4oFSYwCv4MF34YX/jHeNUaH+NwJD+BlQ7dtSfagHrWmcJlLqwjlwDzUrfm7QpiQHQhmo4cNO51LdrGcwDYA=="
)
INSTALLED = importlib.util.find_spec("pillow_heif") is not None  # the extra `heif`, which the extra `test` brings


def side(picture, which):
    columns = {"left": slice(0, 6), "right": slice(10, 16)}[which]
    return np.asarray(picture)[:, columns].reshape(-1, 3).mean(axis=0)


def test_heif_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError) as raised:
        read_image(HEIC)
    assert str(raised.value) == (
        "Cannot read an image from the given bytes: it is a HEIF image (HEIC), which needs one more library; "
        "pip install 'frevl[heif]'."
    )


def test_heif_is_read_or_the_library_is_named():
    """Both environments are right: with the library the pixels come, without it the sentence."""
    if not INSTALLED:
        with pytest.raises(ImageError, match=r"pip install 'frevl\[heif\]'"):
            read_image(HEIC)
        return
    import pillow_heif

    picture = read_image(HEIC)
    assert (picture.mode, picture.size, picture.info) == ("RGB", (16, 8), {})
    np.testing.assert_allclose(side(picture, "left"), (230, 30, 30), atol=12)
    np.testing.assert_allclose(side(picture, "right"), (30, 60, 220), atol=12)
    with pytest.raises(ImageError, match="16 x 8 pixels, more than the limit of 100"):
        read_image(HEIC, max_pixels=100)
    for end in (14, 100, 300, len(HEIC) - 20):
        with pytest.raises(ImageError):
            read_image(HEIC[:end])
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    pillow_heif.from_pillow(Image.new("RGB", (64, 32), (230, 30, 30))).save(stream, exif=exif.tobytes())
    assert read_image(stream.getvalue()).size == (32, 64)


def png(**texts):
    info = PngImagePlugin.PngInfo()
    for name, (text, packed) in texts.items():
        info.add_text(name, text, zip=packed)
    stream = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8))
    picture.save(stream, "PNG", pnginfo=info)
    return stream.getvalue(), np.asarray(picture)


def chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iTXt, not packed", "iCCP", "tEXt"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_long_texts_of_a_png_do_not_cost_the_picture(kind, place):
    plain, pixels = png()
    long = b"node " * 300_000
    content = {
        "zTXt": b"workflow\0\0" + zlib.compress(long),
        "iTXt": b"workflow\0\1\0\0\0" + zlib.compress(long),
        "iTXt, not packed": b"workflow\0\0\0\0\0" + long,
        "iCCP": b"profile\0\0" + zlib.compress(long),
        "tEXt": b"workflow\0" + long * 50,
    }[kind]
    end = plain.index(b"IDAT") - 4 if place == "before" else plain.index(b"IEND") - 4
    whole = plain[:end] + chunk(kind[:4].encode(), content) + plain[end:]
    np.testing.assert_array_equal(np.asarray(read_image(whole)), pixels)


def test_a_short_text_that_turns_the_picture_is_kept_beside_a_long_one():
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(stream, "PNG", exif=exif)
    plain = stream.getvalue()
    end = plain.index(b"IDAT") - 4
    whole = plain[:end] + chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 2_000_000)) + plain[end:]
    assert read_image(whole).size == read_image(plain).size == (20, 30)


def test_a_damaged_png_with_a_long_text_stays_damaged():
    whole, _ = png(workflow=("node " * 300_000, True))
    with pytest.raises(ImageError, match="damaged or cut short"):
        read_image(whole[:-200])
