"""Captions, labels and records next to images, in tars or in folders: collect them, and write them as pairs."""

from __future__ import annotations

import io
import json
import math
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from frevl.data.formats.json_rows import HALF_PAIR, has_half_pair
from frevl.errors import InputError, Reject, counted
from frevl.files import replace_file
from frevl.store.pictures.tar_members import Member

__all__ = ["Captions", "holds_caption", "key_of"]

_TEXTS = (".txt", ".caption", ".text")
_LABELS = (".cls",)
_FIELDS = (".json",)
_CAPTION_KEYS = ("caption", "text", "TEXT")
_NAMES = {"text": "captions", "target": "labels", "record": "records"}


def holds_caption(name: str) -> bool:
    """Return whether a member with this name may hold a caption, a label, or a record with one."""
    return _ending(name) in (*_TEXTS, *_LABELS, *_FIELDS)


class Captions:
    """Write the pairs of images with the captions next to them to a file; a context manager.

    The images and captions of a tar, or of one key in a folder, are recorded in any order and written by `write`.
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
        self.written = self.without = self._with_lines = 0
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
        """Record an image."""
        if not self.wanted:
            return
        self._pictures.setdefault(key_of(id_), []).append(id_)

    def add(self, member: Member) -> None:
        """Record a caption, a label, or a record."""
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
        key, ending = key_of(member.id), _ending(member.id)
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
            raise ValueError(f"there are two different {_NAMES[what]} of this key; the first is used")
        fields.update(found)

    def write(self) -> None:
        """Write the pairs of what was recorded, and forget it."""
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
                self._with_lines += "\n" in fields.get("text", "")
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
        if not self.written:
            notes = [
                f"No pairs in {self._out}: no image has a caption (.txt, .caption, .json) or label (.cls) beside it."
            ]
        elif self.without:
            notes.append(f"Images without a caption: {self.without:,}.")
        if self._with_lines:
            notes.append(
                f"Captions of several lines, each of which is one text: {self._with_lines:,}; where every line is a "
                'caption, make it an entry of a list, as in "text": ["first", "second"].'
            )
        return notes

    def _copy(self, target: Path) -> None:
        with target.open("wb") as stream:
            shutil.copyfileobj(self._lines, stream)


def key_of(id_: str) -> str:
    """Return the key of an image or caption: its path up to the first dot of its name."""
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
