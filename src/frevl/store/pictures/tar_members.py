"""Tars: finding them, reading their members even if damaged, and the captions next to images."""

from __future__ import annotations

import io
import json
import lzma
import math
import os
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

from frevl.data.formats.json_rows import HALF_PAIR, has_half_pair
from frevl.errors import InputError, Reject, counted
from frevl.files import read_text, replace_file
from frevl.store.pictures.files import MAX_BYTES, Choice, list_folder

__all__ = ["Captions", "Member", "Tar", "find_tars", "holds_caption", "is_picture", "read_members"]

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


_TEXTS = (".txt", ".caption", ".text")
_LABELS = (".cls",)
_FIELDS = (".json",)
_CAPTION_KEYS = ("caption", "text", "TEXT")
_NAMES = {"text": "captions", "target": "labels", "record": "records"}


def holds_caption(name: str) -> bool:
    """Return whether a member with this name may hold a caption, a label, or a record with one."""
    return _ending(name) in (*_TEXTS, *_LABELS, *_FIELDS)


class Captions:
    """Write the pairs of tars to a file in turn; a context manager.

    Members belong together if their names agree up to the first dot: ``000.jpg`` with ``000.txt`` (its caption),
    ``000.cls`` (its target), ``000.json`` (a record: its ``caption``, if there is no text, and further fields that JSON
    can represent). The part after that dot determines what a member is, as in webdataset: ``000.ocr.txt`` is not a
    caption. Of two different captions, labels or records with one key, the first is used, and the other is rejected.

    Args:
        out: Pairs file to write when everything is read; None keeps nothing.

    Attributes:
        texts: The distinct texts, in order.
        rejects: Members that could not be used.
        written: Number of pairs written.
        without: Number of images with neither caption nor target.
    """

    def __init__(self, out: Path | None) -> None:
        self.wanted = out is not None
        self.texts: dict[str, None] = {}
        self.rejects: list[Reject] = []
        self.written = self.without = 0
        self._out = out
        self._lines: IO[bytes]
        self._pictures: dict[str, list[str]] = {}
        self._fields: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, bytes] = {}
        self._given: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Captions:
        self._lines = tempfile.TemporaryFile("w+b") if self.wanted else io.BytesIO()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()

    def picture(self, id_: str) -> None:
        """Record an image of the current tar."""
        if not self.wanted:
            return
        self._pictures.setdefault(_key(id_), []).append(id_)

    def add(self, member: Member) -> None:
        """Record a caption, a label, or a record of the current tar."""
        problem = member.problem
        if not problem and self._seen.setdefault(member.id, member.content) != member.content:
            problem = "the tar has two different members of this name; the first is used"
        elif not problem:
            try:
                self._take(member)
            except ValueError as error:
                problem = str(error)
        if problem:
            self.rejects.append(Reject("pair", member.id, problem))

    def _take(self, member: Member) -> None:
        """Add a member's content to the fields of its pair.

        Raises:
            ValueError: The member cannot be used; the message states why.
        """
        try:
            written = member.content.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError("expected text in UTF-8, found other bytes") from None
        key, ending = _key(member.id), _ending(member.id)
        fields = self._fields.setdefault(key, {})
        if ending in _FIELDS:
            what, found = "record", _record(written)
            if "text" in fields:
                found.pop("text", None)
        elif written:
            what = "target" if ending in _LABELS else "text"
            found = {what: written}
        else:
            raise ValueError("expected a caption or a label, found nothing")
        if self._given.setdefault((key, what), written) != written:
            raise ValueError(f"the tar has two different {_NAMES[what]} of this key; the first is used")
        fields.update(found)

    def end_tar(self) -> None:
        """Write the pairs of the current tar."""
        for key, pictures in self._pictures.items():
            fields = self._fields.get(key, {})
            if "text" not in fields and "target" not in fields:
                self.without += len(pictures)
                continue
            if "text" in fields:
                self.texts[fields["text"]] = None
            for id_ in dict.fromkeys(pictures):
                line = json.dumps({"image": id_, **fields}, ensure_ascii=False)
                self._lines.write(line.encode() + b"\n")
                self.written += 1
        self._pictures, self._fields, self._seen, self._given = {}, {}, {}, {}

    def finish(self) -> list[str]:
        """Write the pairs file.

        Returns:
            Notes for the user.

        Raises:
            InputError: The file cannot be written.
        """
        if self._out is None:
            return []
        self._lines.seek(0)
        try:
            replace_file(self._out, self._copy)
        except OSError as error:
            raise InputError(f"{self._out}: the pairs cannot be written ({error.strerror or error})") from error
        notes = [f"Wrote {counted(self.written, 'pair')} to {self._out}."]
        if self.without:
            notes.append(f"Images without a caption: {self.without:,}.")
        return notes

    def _copy(self, target: Path) -> None:
        with target.open("wb") as stream:
            shutil.copyfileobj(self._lines, stream)


def _key(id_: str) -> str:
    folder, slash, name = id_.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _ending(id_: str) -> str:
    """Return everything from the first dot of a name, in lower case."""
    name = id_.rpartition("/")[2]
    return name[name.find(".") :].lower() if name.find(".") > 0 else ""


def _record(written: str) -> dict[str, Any]:
    """Return the fields of a record as fields of a pair, leaving out those that a pairs file cannot represent.

    Raises:
        ValueError: It is not a record, or its caption cannot be used.
    """
    try:
        record = json.loads(written, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise ValueError("expected JSON, found something else") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    plain = {
        key: value
        for key, value in record.items()
        if isinstance(value, str | int | float | bool)
        and not (isinstance(value, float) and not math.isfinite(value))
        and not has_half_pair([key, value])
        and key not in ("image", "text", "target", *_CAPTION_KEYS)
    }
    caption = next((record[key] for key in _CAPTION_KEYS if isinstance(record.get(key), str)), "").strip()
    if has_half_pair(caption):
        raise ValueError(HALF_PAIR)
    return {**plain, "text": caption} if caption else plain
