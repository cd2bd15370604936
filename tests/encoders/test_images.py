"""Every kind of image comes out as the right RGB, and everything else as one clear ImageError."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import photo, pixels, png, saved
from PIL import ExifTags, Image

from frevl.encoders.images import DECODE_TARGET, GUESSED_WHITE, read_image
from frevl.errors import ImageError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


# ---------------------------------------------------------------------------------------------- orientation

A, B, C, D, E, F = (10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120), (130, 140, 150), (160, 170, 180)


STORED = [[A, B, C], [D, E, F]]


UPRIGHT = {
    1: [[A, B, C], [D, E, F]],
    2: [[C, B, A], [F, E, D]],
    3: [[F, E, D], [C, B, A]],
    4: [[D, E, F], [A, B, C]],
    5: [[A, D], [B, E], [C, F]],
    6: [[D, A], [E, B], [F, C]],
    7: [[F, C], [E, B], [D, A]],
    8: [[C, F], [B, E], [A, D]],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.array(STORED, np.uint8))
    options = {"lossless": True} if kind == "WEBP" else {}
    assert pixels(saved(image, kind, exif=exif, **options)) == UPRIGHT[orientation]


def test_a_picture_that_was_read_is_not_turned_again() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    once = read_image(saved(Image.fromarray(np.array(STORED, np.uint8)), "PNG", exif=exif))
    assert pixels(once) == UPRIGHT[6]
    assert once.info == {}


def test_jpeg_orientation_turns_the_picture() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    image = Image.new("RGB", (32, 16), "red")
    image.paste((0, 0, 255), (16, 0, 32, 16))  # blue on the right: after a quarter turn to the left it is on top
    turned = np.asarray(read_image(saved(image, "JPEG", exif=exif, quality=100, subsampling=0))).astype(int)
    assert turned.shape == (32, 16, 3)
    assert np.abs(turned[3, 8] - BLUE).max() < 6
    assert np.abs(turned[28, 8] - RED).max() < 6


def test_unknown_orientation_and_broken_exif_mean_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 77
    image = Image.fromarray(np.array(STORED, np.uint8))
    assert pixels(saved(image, "PNG", exif=exif)) == STORED
    for broken in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*", b"Exif\0\0" + b"\x00" * 40):
        found = read_image(saved(photo(), "JPEG", exif=broken))
        assert found.size == (61, 43)


# ------------------------------------------------------------------------------------- transparency, palettes


def test_alpha_is_laid_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 128), (0, 0, 0, 0), (10, 20, 30, 255)])
    # 0 * 128/255 + 255 * 127/255 = 127
    assert pixels(saved(image, "PNG")) == [[(255, 127, 127), WHITE, (10, 20, 30)]]


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 51), (100, 255)])
    assert pixels(saved(image, "PNG")) == [[(204, 204, 204), (100, 100, 100)]]
    premultiplied = Image.new("RGBa", (1, 1), (64, 0, 0, 128))
    assert pixels(premultiplied) == [[(191, 127, 127)]]  # 64 * 255/128 = 127; 127 * 128/255 + 127


def test_palette() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([2, 0, 1])
    assert pixels(saved(image, "PNG")) == [[BLUE, RED, GREEN]]
    assert pixels(saved(image, "GIF")) == [[BLUE, RED, GREEN]]
    assert pixels(saved(image, "GIF", transparency=0)) == [[BLUE, WHITE, GREEN]]
    assert pixels(saved(image, "PNG", transparency=1)) == [[BLUE, RED, WHITE]]
    # each palette entry its own alpha: red 255, green 0, blue 204 -> 255 * 51/255 = 51 of white
    assert pixels(saved(image, "PNG", transparency=bytes([255, 0, 204]))) == [[(51, 51, 255), RED, WHITE]]


def test_one_transparent_colour_in_rgb_and_grey() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    assert pixels(saved(image, "PNG", transparency=(4, 5, 6))) == [[(1, 2, 3), WHITE]]
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 9])
    assert pixels(saved(grey, "PNG", transparency=7)) == [[WHITE, (9, 9, 9)]]
    sixteen = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 257 * 5, 257 * 6), tRNS=struct.pack(">H", 257 * 6))
    assert pixels(sixteen) == [[(5, 5, 5), WHITE]]


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putdata([255, 0])
    assert pixels(saved(image, "PNG")) == [[WHITE, BLACK]]
    assert pixels(saved(image, "TIFF", compression="group4")) == [[WHITE, BLACK]]


# ------------------------------------------------------------------------------------------ more than 8 bits


def grey(found: list[list[tuple[int, ...]]]) -> list[int]:
    assert all(len(set(pixel)) == 1 for row in found for pixel in row)
    return [pixel[0] for row in found for pixel in row]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257 * 100, 32768, 65535]], np.uint16)
    # 128/257 rounds to 0, 129/257 to 1, 32768/257 = 127.5 rounds to 128
    expected = [0, 0, 1, 100, 128, 255]
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    assert grey(pixels(image)) == expected
    assert grey(pixels(saved(image, "PNG"))) == expected
    assert grey(pixels(saved(image, "TIFF"))) == expected
    big_endian = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    assert grey(pixels(big_endian)) == expected
    assert grey(pixels(b"P5 6 1 65535 " + values.astype(">u2").tobytes())) == expected


RAMP = np.linspace(0, 255, 48).round().astype(np.uint16).reshape(6, 8)


@pytest.mark.parametrize(
    ("bits", "declared"),
    [
        *((bits, declared) for bits in (9, 10, 11, 12, 14) for declared in ("TIFF", "PNG")),
        *((bits, "nothing") for bits in (10, 12, 14, 16)),
    ],
)
def test_fewer_bits_in_a_wider_sample(bits: int, declared: str) -> None:
    """Microscopes, scanners and detectors leave the upper bits empty: the image must not become black."""
    white = (1 << bits) - 1
    values = np.round(RAMP * (white / 255)).astype(np.uint16)
    file = {
        "TIFF": lambda: saved(Image.fromarray(values), "TIFF", tiffinfo={281: white}),
        "PNG": lambda: png(
            8, 6, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values), sBIT=bytes([bits])
        ),
        "nothing": lambda: saved(Image.fromarray(values), "TIFF"),
    }[declared]()
    read = read_image(file)
    assert np.abs(np.asarray(read)[..., 0].astype(int) - RAMP).max() <= 1
    assert read.info.get(GUESSED_WHITE) == (white if declared == "nothing" and bits < 16 else None)


def test_declared_bits_keep_a_dark_picture_dark() -> None:
    values = np.array([[0, 8, 16]], np.uint16)
    assert grey(pixels(saved(Image.fromarray(values), "TIFF", tiffinfo={281: 4095}))) == [0, 0, 1]
    assert grey(pixels(png(3, 1, 16, 0, b"\0" + values.astype(">u2").tobytes(), sBIT=b"\x0c"))) == [0, 0, 1]


def test_significant_bits_in_the_upper_part_as_the_standard_says() -> None:
    values = (np.array([[0, 2048, 4095]]) << 4).astype(">u2")
    assert grey(pixels(png(3, 1, 16, 0, b"\0" + values.tobytes(), sBIT=b"\x0c"))) == [0, 128, 255]


def test_bytes_that_were_widened_stay_as_dark_as_they_were() -> None:
    values = 257 * np.array([[0, 3, 9]], np.uint16)
    read = read_image(saved(Image.fromarray(values), "TIFF"))
    assert np.asarray(read)[0, :, 0].tolist() == [0, 3, 9]
    assert GUESSED_WHITE not in read.info


def test_unsigned_32_bit_integers() -> None:
    values = np.array([[0, 1 << 31, (1 << 32) - 1]], np.uint32)
    file = saved(Image.fromarray(values.view(np.int32)), "TIFF").replace(
        struct.pack("<HHIHH", 339, 3, 1, 2, 0), struct.pack("<HHIHH", 339, 3, 1, 1, 0)
    )
    assert grey(pixels(file)) == [0, 128, 255]


def test_a_dark_16_bit_ppm_stays_dark() -> None:
    assert grey(pixels(b"P5 2 1 65535 " + struct.pack(">HH", 0, 200))) == [0, 1]


def test_16_bit_rgb() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 257 * 128, 0, 257 * 7, 257 * 8, 257 * 9)
    assert pixels(png(2, 1, 16, 2, rows)) == [[(255, 128, 0), (7, 8, 9)]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),  # bytes in a wider type
        ([0, 257, 65535], [0, 1, 255]),  # 16 bits in a wider type
        ([-100, 20, 100], [0, 153, 255]),  # stretched: 120 of 200
        ([0, 1_000_000, 2_000_000_000], [0, 0, 255]),
        ([7, 7, 7], [7, 7, 7]),
        ([-7, -7, -7], [0, 0, 0]),
    ],
)
def test_32_bit_integers(values: list[int], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.int32))
    assert image.mode == "I"
    assert grey(pixels(image)) == expected
    assert grey(pixels(saved(image, "TIFF"))) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 99.6, 200.0], [0, 100, 200]),
        ([-1.0, 0.0, 3.0], [0, 64, 255]),  # 63.75
        ([np.nan, 0.5, 1.0], [0, 128, 255]),
        ([-np.inf, 0.5, np.inf], [0, 0, 255]),  # the only finite value is black
    ],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    found = grey(pixels(image))
    if np.isinf(values[0]):
        assert (found[0], found[2]) == (0, 255)
    else:
        assert found == expected
    assert grey(pixels(saved(image, "TIFF"))) == found


def test_no_finite_value_is_refused() -> None:
    with pytest.raises(ImageError, match=r"no pixel is a finite number"):
        read_image(Image.fromarray(np.full((2, 3), np.nan, np.float32)))


# --------------------------------------------------------------------------------------------- other colours


def test_cmyk() -> None:
    image = Image.new("CMYK", (4, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0)])
    assert pixels(saved(image, "TIFF")) == [[WHITE, (0, 255, 255), BLACK, RED]]


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 200, 100, 30)])
def test_cmyk_jpeg_is_not_inverted(ink: tuple[int, int, int, int]) -> None:
    expected = [(255 - colour) * (255 - ink[3]) / 255 for colour in ink[:3]]
    found = pixels(saved(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100))[8][8]
    assert np.abs(np.array(found) - expected).max() < 4


def test_lab_and_ycbcr() -> None:
    lab = Image.new("LAB", (1, 1), (255, 128, 128))  # full lightness, no colour
    assert min(pixels(saved(lab, "TIFF"))[0][0]) > 245
    assert np.abs(np.array(pixels(Image.new("RGB", (1, 1), RED).convert("YCbCr"))[0][0]) - RED).max() < 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels(content) == [[RED] * 8] * 8


@pytest.mark.parametrize("kind", ["BMP", "PPM", "TGA", "PCX", "SGI", "ICO", "JPEG2000", "DDS", "QOI"])
def test_lossless_formats(kind: str) -> None:
    image = photo(16, 16)
    assert np.array_equal(np.asarray(read_image(saved(image, kind))), np.asarray(image))


# -------------------------------------------------------------------------------------------------- sources


def test_path_string_bytes_and_pillow_image_agree(tmp_path: Path) -> None:
    content = saved(photo(), "JPEG", quality=90)
    path = tmp_path / "größe 1.jpg"
    path.write_bytes(content)
    given = Image.open(io.BytesIO(content))
    expected = np.asarray(Image.open(io.BytesIO(content)))
    for source in (path, str(path), content, given):
        assert np.array_equal(np.asarray(read_image(source)), expected)


def test_a_pillow_image_is_not_changed() -> None:
    image = Image.new("RGBA", (5, 3), (1, 2, 3, 100))
    image.info["note"] = "mine"
    found = read_image(image)
    found.paste((9, 9, 9), (0, 0, 5, 3))
    assert (image.mode, image.info, image.getpixel((0, 0))) == ("RGBA", {"note": "mine"}, (1, 2, 3, 100))
    rgb = Image.new("RGB", (5, 3), RED)
    read_image(rgb).paste((9, 9, 9), (0, 0, 5, 3))
    assert rgb.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((320, 240), None, (320, 240)),
        ((320, 240), 20, (80, 60)),  # 1/4: 1/8 would leave 30 of the 40 that are asked for
        ((320, 240), 15, (40, 30)),
        ((320, 240), 60, (160, 120)),
        ((320, 240), 61, (320, 240)),
        ((320, 24), 20, (320, 24)),
    ],
)
def test_jpeg_is_reduced_to_at_least_twice_the_target(
    size: tuple[int, int], target: int | None, expected: tuple[int, int]
) -> None:
    content = saved(photo(*size), "JPEG")
    assert read_image(content, target=target).size == expected
    assert read_image(Image.open(io.BytesIO(content)), target=target).size == size
    assert read_image(saved(photo(64, 64), "PNG"), target=4).size == (64, 64)


@pytest.mark.slow
def test_a_reduced_picture_looks_the_same() -> None:
    content = saved(photo(1400, 1350), "JPEG", quality=95)
    full, reduced = (
        np.asarray(read_image(content, target=target).resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
        for target in (None, DECODE_TARGET)
    )
    assert np.abs(full - reduced).mean() < 1.0
