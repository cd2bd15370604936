"""Read images of any kind into upright opaque RGB.

Every image of the project passes through `read_image`: extraction, serving and `embed_images` alike, so the
same file gives the same pixels on every code path. Nothing here changes Pillow's settings, and several threads may
read at the same time.
"""

from __future__ import annotations

import importlib
import io
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from frevl.errors import ImageError

__all__ = ["DECODE_TARGET", "GUESSED_WHITE", "MAX_PIXELS", "ImageSource", "is_deep_grey", "quiet_pillow", "read_image"]

ImageSource = str | Path | bytes | Image.Image
"""A path, the bytes of an image file, or a Pillow image."""

MAX_PIXELS = 100_000_000
"""Largest image that is decoded by default: 10,000 x 10,000 (400 MB while decoding)."""

DECODE_TARGET = 336
"""The ``target`` requested by encoders: the largest input side of the usual frozen encoders, so that one decoded image
serves several of them."""

GUESSED_WHITE = "frevl: guessed white"
"""Key in an image's ``info``: the value taken for white if the file did not declare it."""

_BITS = (8, 10, 12, 14, 16)  # used by cameras, scanners and detectors
_MOST = 1 << 32
_CHUNKS = 1000  # of a PNG file to search; a file has about ten
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST_TEXT = 1 << 20  # bytes of one decompressed text in a PNG file; above this, Pillow refuses the whole image
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12, annexes

# The operation that each EXIF orientation requires (EXIF 2.32, tag 0x0112); 1 means upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: ImageSource, *, target: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one image as upright opaque RGB, 8 bits per channel.

    EXIF orientation is applied; transparency is composited over white; only the first of several frames is used; grey
    of more than 8 bits is scaled by the bits that the file declares, else by its largest value (see `_grey_to_bytes`).
    Colour profiles are not applied (CMYK is converted by Pillow's formula), as is usual for network input.

    Args:
        source: A path, the bytes of an image file, or a Pillow image. A Pillow image is not modified, except that
            Pillow loads its pixels if they were not loaded yet.
        target: Side in pixels that the image will be resized to. JPEG files may then be decoded at 1/2, 1/4 or
            1/8 of their size, several times faster, as long as both sides stay at least twice the target. A
            Pillow image is never reduced.
        max_pixels: Refuse images with more pixels than this, going by the header, before decoding. Pillow's
            own hard limit (twice ``PIL.Image.MAX_IMAGE_PIXELS``) applies as well.

    Returns:
        An image of mode ``RGB`` that is not bound to an open file. Its ``info`` is empty except for `GUESSED_WHITE`.

    Raises:
        ImageError: The file is missing, is not a readable image, is damaged, empty or too large.
    """
    with quiet_pillow():
        if isinstance(source, Image.Image):
            return _decode(source, "the given image", None, max_pixels)
        if isinstance(source, bytes):
            return _read_stream(io.BytesIO(source), "an image from the given bytes", target, max_pixels)
        name = f"image '{source}'"
        try:
            # Opening a named pipe would block forever, and reading a device might never end.
            mode = Path(source).stat().st_mode
            if stat.S_ISDIR(mode):
                raise _refusal(name, "it is a folder; pass an image file")
            if not stat.S_ISREG(mode):
                raise _refusal(name, "it is not a regular file")
            with Path(source).open("rb") as stream:
                return _read_stream(stream, name, target, max_pixels)
        except FileNotFoundError:
            raise _refusal(name, "the file does not exist") from None
        except PermissionError:
            raise _refusal(name, "there is no permission to read the file") from None
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise _refusal(name, f"the file cannot be opened ({_brief(error)})") from None


def _read_stream(stream: IO[bytes], name: str, target: int | None, max_pixels: int) -> Image.Image:
    if not stream.read(1):
        raise _refusal(name, "it is empty (0 bytes)")
    try:
        return _read_whole(stream, name, target, max_pixels)
    except ImageError:
        shorter = _without_long_texts(stream)
        if shorter is None:
            raise
        return _read_whole(shorter, name, target, max_pixels)


def _read_whole(stream: IO[bytes], name: str, target: int | None, max_pixels: int) -> Image.Image:
    stream.seek(0)
    try:
        significant = _significant_bits(stream)
        stream.seek(0)
        image = Image.open(stream)
    except UnidentifiedImageError:
        if _is_heif(stream):
            return _decode(_open_heif(stream, name, max_pixels), name, None, max_pixels)
        raise _refusal(name, "it is not an image in a format that Pillow can read") from None
    except Image.DecompressionBombError:
        raise _refusal(name, "its header announces more pixels than Pillow's own limit") from None
    # Malformed files make Pillow's parsers raise nearly any exception (struct.error, KeyError, SyntaxError,
    # ZeroDivisionError, zlib.error, MemoryError and more), so nothing narrower is right, here and in _decode.
    except Exception as error:
        raise _refusal(name, f"it is damaged ({_brief(error)})") from error
    return _decode(image, name, target, max_pixels, significant)


def _is_heif(stream: IO[bytes]) -> bool:
    stream.seek(0)
    head = stream.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _open_heif(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """Decode the primary image of a HEIF file, upright, to 8 bits per channel (the upper bits of HDR)."""
    try:
        heif = importlib.import_module("pillow_heif")
    except ModuleNotFoundError:
        raise _refusal(
            name, "it is a HEIF image (HEIC), which needs one more library; pip install 'frevl[heif]'"
        ) from None
    try:
        stream.seek(0)
        opened = heif.open_heif(stream)  # reads only the header; pixels follow later
        width, height = opened.size
        if width * height <= max_pixels:
            decoded: Image.Image = opened.to_pillow()
            return decoded
    except Exception as error:
        raise _refusal(name, f"it is damaged ({_brief(error)})") from error
    raise _refusal(name, f"it has {width} x {height} pixels, more than the limit of {max_pixels}; resize it")


def _without_long_texts(stream: IO[bytes]) -> IO[bytes] | None:
    """Return a PNG file without texts and profiles that are too long for Pillow; None if it has none.

    Image generators write all their settings into the file, and any viewer still shows it.
    """
    stream.seek(0)
    if stream.read(8) != _PNG:
        return None
    kept, long = [_PNG], False
    while len(head := stream.read(8)) == 8:
        content = stream.read(int.from_bytes(head[:4], "big") + 4)
        if _is_long_text(head[4:], content[:-4]):
            long = True
        else:
            kept += [head, content]
    return io.BytesIO(b"".join(kept)) if long else None


def _is_long_text(kind: bytes, content: bytes) -> bool:
    _, _, rest = content.partition(b"\0")  # after the keyword
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return len(rest) > _LONGEST_TEXT
    if kind == b"iTXt":  # flag, method, language, translated keyword
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif kind in (b"zTXt", b"iCCP"):
        packed = rest[1:]
    else:
        return False
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _LONGEST_TEXT)
    except zlib.error:
        return True
    return bool(unpacking.unconsumed_tail)


def _decode(
    image: Image.Image, name: str, target: int | None, max_pixels: int, significant: int | None = None
) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise _refusal(name, f"it has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise _refusal(name, f"it has {width} x {height} pixels, more than the limit of {max_pixels}; resize it")
    if image.format == "EPS":
        # Pillow would pass the file to Ghostscript, an external program that executes its contents.
        raise _refusal(name, "it is PostScript, a program and not an image; convert it to PNG")
    try:
        if target is not None and image.format in {"JPEG", "MPO"}:
            image.draft(None, (2 * target, 2 * target))
        image.load()
        rgb, guessed = _to_rgb(image, significant)
    except Exception as error:
        raise _refusal(name, f"it is damaged or cut short ({_brief(error)})") from error
    turn = _UPRIGHT.get(_orientation(image))
    rgb.info.clear()  # above all the orientation; otherwise a second reading would rotate the image again
    upright = rgb if turn is None else rgb.transpose(turn)
    if guessed is not None:
        upright.info[GUESSED_WHITE] = guessed
    return upright


def is_deep_grey(content: bytes) -> bool:
    """Return whether a file holds grey of more than 8 bits, judging by its header; False if it is not an image."""
    with quiet_pillow():
        try:
            mode = Image.open(io.BytesIO(content)).mode
        except Exception:  # as in `_read_whole`
            return False
    return mode in {"I", "F"} or mode.startswith("I;16")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) if there is none or the metadata is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata must not cost the user an image with intact pixels
        return 1


def _to_rgb(image: Image.Image, significant: int | None) -> tuple[Image.Image, int | None]:
    """Return an opaque RGB image, and the value of white if it had to be guessed."""
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        grey, guessed = _grey_to_bytes(image, _declared_white(image, significant))
        return Image.fromarray(grey).convert("RGB"), guessed
    if not image.has_transparency_data:
        return image.copy() if image.mode == "RGB" else image.convert("RGB"), None
    # Pillow has no direct conversion from premultiplied La to RGBA.
    with_alpha = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return white, None


def _grey_to_bytes(image: Image.Image, declared: int | None) -> tuple[np.ndarray, int | None]:
    """Scale grey of more than 8 bits to 0..255.

    White is the value that the file declares. If it declares none, the values decide (ours). Integers up to 65535 are
    taken to have the fewest of 8, 10, 12, 14 and 16 bits that hold the largest of them (always 16 in PPM files, which
    Pillow scales). Floats within 0..1 have white at 1; within 0..255 they are bytes already. Anything else is stretched
    from its smallest to its largest value. Not-a-number becomes black.

    Args:
        image: An image of mode ``I;16*``, ``I`` or ``F``.
        declared: The value of white that the file declares, or None.

    Returns:
        ``(height, width)`` uint8, and the value of white if it was guessed from the values of an integer image that
        does not fill 16 bits.
    """
    values = np.asarray(image)
    if values.dtype == np.int32 and _unsigned(image):
        values = values.view(np.uint32)
    low, high, guessed = _black_and_white(image, values, declared)
    if (low, high) == (0, 65535):
        grey = ((np.clip(values, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
        # Not-a-number must not reach the cast, where it would be undefined.
        grey = np.rint(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: this one grey value is transparent, so the white background shows
        grey[values == transparent] = 255
    return grey, guessed


def _black_and_white(image: Image.Image, values: np.ndarray, declared: int | None) -> tuple[float, float, int | None]:
    """Return the values of black and white, and white again if it was guessed from fewer than 16 bits."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise ValueError("no pixel is a finite number")
    low, high = float(finite.min()), float(finite.max())
    if declared is not None and low >= 0 and high <= declared:
        return 0, declared, None
    if low >= 0 and image.mode == "F":
        if high <= 1:
            return 0, 1, None
        if high <= 255:
            return 0, 255, None
    elif low >= 0 and high <= 65535:
        # Bytes widened to 16 bits are multiples of 257: an image of such values is a dark 8-bit image.
        whole = image.format == "PPM" or (values.dtype.itemsize == 2 and not (values % 257).any())
        bits = 16 if whole else next(bits for bits in _BITS if high < 1 << bits)
        white = (1 << bits) - 1
        return 0, white, white if bits < 16 else None
    return low, high if high > low else low + 1, None


def _unsigned(image: Image.Image) -> bool:
    """Return whether the 32-bit integers of a TIFF file are unsigned, for which Pillow has no mode."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)


def _declared_white(image: Image.Image, significant: int | None) -> int | None:
    """Return the value of white that a file declares if it uses fewer bits than its samples have.

    Args:
        image: An image with more than 8 bits per channel.
        significant: Significant bits of a PNG file (its sBIT chunk). By the standard they are the upper bits of a
            sample, where 16-bit white is right; many programs use the lower ones.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    stated, bits = tags.get(281), tags.get(258)  # MaxSampleValue, BitsPerSample
    if stated and 255 <= stated[0] < _MOST:
        return int(stated[0])
    if bits and 8 < bits[0] < 16:
        return (1 << int(bits[0])) - 1
    if significant and 8 <= significant < 16:
        return (1 << significant) - 1
    return None


def _significant_bits(stream: IO[bytes]) -> int | None:
    """Return the significant bits that a grey PNG file declares (its sBIT chunk); None for all other files."""
    stream.seek(0)
    if stream.read(8) != _PNG:
        return None
    for _ in range(_CHUNKS):  # it comes before the pixels
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind in (b"IDAT", b"IEND"):
            return None
        if kind == b"sBIT":
            return stream.read(1)[0] if length == 1 else None
        stream.seek(length + 4, io.SEEK_CUR)
    return None


def _refusal(name: str, reason: str) -> ImageError:
    return ImageError(f"Cannot read {name}: {reason}.")


def _brief(error: BaseException) -> str:
    """Summarise an exception in one line, without the addresses and line breaks of Pillow's messages."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split()).split(" <", 1)[0]
    return f"{type(error).__name__}: {text[:100]}" if text else type(error).__name__


# Pillow warns about corrupt EXIF, odd palettes, large images and more. `warnings.catch_warnings` would hide these
# warnings, but it replaces the whole list of filters and is not thread-safe. Instead, one entry, for Pillow's
# modules only, is in the list while at least one thread reads. It is inserted directly and not by
# `filterwarnings`, which would also make every module of the process forget the warnings it has shown.
_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_readers = 0
_readers_lock = threading.Lock()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Suppress Pillow's warnings while at least one thread reads."""
    global _readers
    with _readers_lock:
        _readers += 1
        if _IGNORE_PILLOW not in warnings.filters:
            cast(list[object], warnings.filters).insert(0, _IGNORE_PILLOW)
    try:
        yield
    finally:
        with _readers_lock:
            _readers -= 1
            if _readers == 0 and _IGNORE_PILLOW in warnings.filters:
                cast(list[object], warnings.filters).remove(_IGNORE_PILLOW)
