"""The lines of a labels file: who labelled what, and when.

| line | means |
|---|---|
| ``{"id", "at", "by", "image", "class"}`` | this labeller's answer; a class of null withdraws it |
| ``{"id", "at", "by", "define"}`` | a class is defined, before any image has it |
| ``{"id", "at", "by", "rename", "to"}`` | a class is renamed; if the new name is taken, the two are merged |
| ``{"id", "at", "by", "undo"}`` | entries written under this id do not count |
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from frevl.data.formats.pair_rows import is_missing
from frevl.errors import UsageError

__all__ = ["FORMAT", "LONGEST_NAME", "Action", "Entry", "class_name", "labeller_name", "now", "parse", "request_id"]

FORMAT = 1
LONGEST_NAME = 200
"""Maximum number of characters in the name of a class or a labeller."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[0-9]{1,9})?")
_LONGEST_IMAGE = 4096

Action = Literal["label", "define", "rename", "undo"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The content of a line.

    Attributes:
        id: Id of the request that wrote it; ``ID.3`` is the fourth of several entries.
        at: Time of writing, in UTC (ISO 8601).
        by: Name of the labeller.
        action: Kind of line.
        image: The image, for a label.
        name: The class: of a label (None withdraws it), defined, or renamed. For an undo, the id to undo.
        to: The new name, for a rename.
    """

    id: str
    at: str
    by: str
    action: Action
    name: str | None
    image: str = ""
    to: str = ""

    @property
    def request(self) -> str:
        """Id of the request that wrote it."""
        return self.id.partition(".")[0]

    def line(self) -> bytes:
        """Return the line, including its newline."""
        record: dict[str, Any] = {"id": self.id, "at": self.at, "by": self.by}
        if self.action == "label":
            record |= {"image": self.image, "class": self.name}
        elif self.action == "rename":
            record |= {"rename": self.name, "to": self.to}
        else:
            record[self.action] = self.name
        # ASCII, so that no Unicode line separator and no lone surrogate can break a line.
        return json.dumps(record).encode("ascii") + b"\n"


def now() -> str:
    """Return the current time in the format of the file."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def class_name(given: str) -> str:
    """Check the name of a class, stripping surrounding spaces.

    Raises:
        UsageError: The name is empty, too long, has control characters, or marks a missing value in a pairs file.
    """
    name = _name(given, "the name of a class")
    if is_missing(name):  # exported, it would not be a class
        raise UsageError(f"the name of a class: {name!r} marks a missing value in pairs files; choose another name")
    return name


def labeller_name(given: str) -> str:
    """Check the name of a labeller, as in `class_name`."""
    return _name(given, "the name of a labeller")


def _name(given: str, what: str) -> str:
    name = unicodedata.normalize("NFC", given).strip()
    if not name or len(name) > LONGEST_NAME:
        found = f"{len(name):,}" if name else "none"
        raise UsageError(f"{what}: expected 1 to {LONGEST_NAME} characters, found {found}")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise UsageError(f"{what}: expected letters, found control characters in {name!r:.80}; leave them out")
    return name


def request_id(given: str) -> str:
    """Check the id of a request.

    Raises:
        UsageError: It has characters other than letters, digits, - and _, or more than 64.
    """
    if not _ID.fullmatch(given) or "." in given:
        raise UsageError(f"the id of a request: expected 1 to 64 letters, digits, - or _, found {given!r:.80}")
    return given


def parse(line: bytes) -> Entry | None:
    """Parse a line; None for the first line of a file, which states the format.

    Raises:
        ValueError: It is not a line of a labels file; the message states why.
    """
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except ValueError:
        raise ValueError("something other than JSON") from None
    if not isinstance(record, dict):
        raise ValueError("JSON that is not an object")
    if "frevl_labels" in record:
        if record["frevl_labels"] != FORMAT:
            raise ValueError(f"format {record['frevl_labels']!r:.20}, which a newer frevl writes")
        return None
    known = {key: _text(record, key) for key in ("id", "at", "by")}
    if not _ID.fullmatch(known["id"]):
        raise ValueError("a key 'id' with characters other than letters, digits, - and _")
    if "image" in record:
        named = None if record.get("class", "") is None else _text(record, "class")
        image = _text(record, "image", _LONGEST_IMAGE)
        return Entry(action="label", image=image, name=named, **known)
    if "rename" in record:
        return Entry(action="rename", name=_text(record, "rename"), to=_text(record, "to"), **known)
    for action in ("define", "undo"):
        if action in record:
            return Entry(action=action, name=_text(record, action), **known)
    raise ValueError("none of the keys image, define, rename, undo")


def _text(record: dict[str, Any], key: str, longest: int = LONGEST_NAME) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip() or len(value) > longest:
        raise ValueError(f"a key '{key}' that is not a text of 1 to {longest} characters")
    return value
