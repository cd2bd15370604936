"""Tars: finding them, and reading their members even if damaged."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from frevl.errors import InputError
from frevl.files import read_text
from frevl.store.pictures.files import MAX_BYTES, Choice, list_folder

__all__ = ["Member", "Tar", "find_tars", "is_picture", "read_members"]

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PICTURES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif",
     ".jp2", ".ppm", ".pgm", ".pbm", ".pnm")
)  # fmt: skip
_FORK = "._"  # prefix of members in which macOS stores what does not fit into the neighbouring one
_READ_AHEAD = 1 << 20
# The last three: raised by Python's own reader if a header is truncated or has no numbers
_FAILURES = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, TypeError, ValueError, IndexError)


@dataclass(frozen=True)
class Tar:
    """One tar.

    Attributes:
        name: Prefix of the ids of its images: its path below the folder of tars, or its own name.
        path: Path of the tar.
    """

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar, or a problem with the tar.

    Attributes:
        id: ``TAR/path inside``, or only the name of the tar for a problem with all of it.
        content: Bytes of the member.
        problem: Why it cannot be used; empty if it can.
    """

    id: str
    content: bytes = b""
    problem: str = ""


def is_picture(name: str) -> bool:
    """Return whether a name has an image suffix."""
    return PurePosixPath(name).suffix.lower() in _PICTURES


def find_tars(images: Path, *, leave_out: Path, choice: Choice) -> list[Tar] | None:
    """Find the tars with the images: a tar, a folder of tars, or a text file with one tar per line.

    A folder that contains images is treated as a folder of images, whatever else it contains.

    Args:
        images: The path given by the user.
        leave_out: A folder below it to skip: the store.
        choice: Selects the files of a folder that count.

    Returns:
        The tars in the order of their names; None if it is a folder of images, or does not exist.

    Raises:
        InputError: A tar in a list is missing, or two have the same name.
    """
    if images.is_file() and images.name.lower().endswith(_TARS):
        return [Tar(_printable(images.name), str(images))]
    if images.is_file() and images.suffix.lower() in (".txt", ".list"):
        return _listed(images)
    if not images.is_dir():
        return None
    found = []
    for file in list_folder(images, leave_out=leave_out, choice=Choice(choice.include, choice.exclude)):
        if is_picture(file.id):
            return None
        if file.id.lower().endswith(_TARS) and not file.problem:
            found.append(Tar(file.id, file.path))
    return sorted(found, key=lambda tar: tar.name) or None


def _listed(listing: Path) -> list[Tar]:
    try:
        lines = read_text(listing).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listing}: the list of tars (one per line) cannot be read ({error})") from error
    tars = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        path = Path(line.strip())
        path = path if path.is_file() or path.is_absolute() else listing.parent / path
        if not path.is_file() or not path.name.lower().endswith(_TARS):
            found = "another file" if path.exists() else "none"
            raise InputError(
                f"{listing}, line {number}: expected the path of a tar, found {found}: {line.strip():.200}"
            )
        tars.append(Tar(_printable(path.name), str(path)))
    if not tars:
        raise InputError(f"{listing}: expected a list of tars, one per line, found an empty file")
    name, count = Counter(tar.name for tar in tars).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{listing}: {count} of its tars are named '{name:.200}', and ids begin with that name; rename them, or "
            "give the folder that holds them"
        )
    return sorted(tars, key=lambda tar: tar.name)


class _Header(tarfile.TarInfo):
    """A header that records on the tar how reading ended; Python's own reader stops silently at a damaged one."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.ended_by = type(error).__name__  # type: ignore[attr-defined]
            raise


def read_members(tar: Tar, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """Yield the members of a tar in order, and at the end any problem with the tar itself.

    Args:
        tar: The tar, which may be compressed.
        wanted: Returns whether a member with this name is to be read.
    """
    count = 0
    try:
        with tarfile.open(tar.path, "r|*", bufsize=_READ_AHEAD, tarinfo=_Header) as stream:
            for info in stream:
                stream.members.clear()  # type: ignore[attr-defined]  # it would keep the headers of all
                count += 1
                name = _printable(info.name.removeprefix("./"))
                if not wanted(name) or info.isdir() or PurePosixPath(name).name.startswith(_FORK):
                    continue
                yield _member(f"{tar.name}/{name}", stream, info)
            problem = _end(stream)
    except _FAILURES as error:
        problem = _reason(error)
    if problem:
        before = f"{count:,} members before that were read" if count else "none of it was read"
        yield Member(tar.name, problem=f"{problem}; {before}")


def _member(id_: str, stream: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if not info.isreg():
        return Member(id_, problem="it is a link, a device or the like in its tar, not a file")
    if ".." in PurePosixPath(info.name).parts or info.name.startswith("/"):
        return Member(id_, problem="its path leads outside the tar")
    if info.size > MAX_BYTES:
        return Member(id_, problem=f"it has {info.size:,} bytes, more than the limit of {MAX_BYTES:,}")
    content = stream.extractfile(info)
    found = b"" if content is None else content.read()
    utf8 = not any("\udc80" <= letter <= "\udcff" for letter in info.name)
    return Member(id_, found, "" if utf8 else "the name of the member is not UTF-8; rename it")


def _end(stream: tarfile.TarFile) -> str:
    """Return what is wrong with the end of a tar."""
    ended_by = getattr(stream, "ended_by", None)
    if ended_by == "EOFHeaderError":
        behind = 0
        while True:
            more = stream.fileobj.read(_READ_AHEAD)
            if not more:
                break
            behind += len(more) if more.strip(b"\0") else 0
        return "there is more data after the tar's end marker, as in joined tars; join them with tar -A" * bool(behind)
    if ended_by == "InvalidHeaderError":
        return "the tar is damaged in the middle, and the rest was not read"
    return "the tar has no end marker: it was truncated, and the rest is lost"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"the tar cannot be read ({error.strerror})"
    if "unexpected end" in str(error) or isinstance(error, EOFError | TypeError):
        return "the tar ends in the middle of a member: it was truncated, and the rest is lost"
    return f"expected a tar, found something else or a damaged one ({' '.join(str(error).split()):.100})"


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
