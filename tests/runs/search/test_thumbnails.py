"""Small JPEGs inside a page."""

import base64
import io

import pytest
from PIL import Image

from frevl.errors import ImageError
from frevl.runs.search.thumbnails import thumbnail_address


def picture_of(address):
    kind, _, encoded = address.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_the_longer_side_has_the_size_and_small_pictures_stay(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (200, 100), (200, 40, 40)).save(file)
    small = picture_of(thumbnail_address(file, 50))
    assert (small.size, small.format) == ((50, 25), "JPEG")
    assert max(abs(a - b) for a, b in zip(small.getpixel((25, 12)), (200, 40, 40), strict=True)) <= 3
    assert picture_of(thumbnail_address(file.read_bytes(), 300)).size == (200, 100)


def test_a_broken_picture_and_one_that_is_too_large_are_refused(tmp_path):
    with pytest.raises(ImageError):
        thumbnail_address(b"no picture", 50)
    file = tmp_path / "a.png"
    Image.new("RGB", (200, 100)).save(file)
    with pytest.raises(ImageError):
        thumbnail_address(file, 50, max_pixels=19_999)
