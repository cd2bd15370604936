"""Read rows from JSON: one object per line, a list of objects, or one object that contains a list."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from frevl.errors import PairsError

__all__ = ["HALF_PAIR", "has_half_pair", "is_lines", "json_rows", "json_value", "too_long"]

HALF_PAIR = "expected text, found half of a surrogate pair"
_LONGEST_LINE = 1 << 22  # bytes; a pair is a sentence
_HEAD = 1 << 20  # bytes used to detect the form of the file
_MOST_BYTES = 256 << 20  # bytes of a file with a single object, which is read whole
# A first line after which an object or list continues: pretty-printed JSON.
_GOES_ON = re.compile(rb"[\[{,:]\s*$")

Row = tuple[int, Any, str]


def json_rows(path: Path, stream: BinaryIO) -> Iterator[Row]:
    """Yield ``(line, row, problem)``; a problem states why a line or list entry is not an object.

    Args:
        path: For messages.
        stream: The file in UTF-8, after any byte order mark.

    Raises:
        PairsError: The file is one JSON value without a list of pairs, or a list that cannot be read to its end.
    """
    begin = stream.tell()
    head = stream.read(_HEAD)
    cut = bool(stream.read(1))
    stream.seek(begin)
    filled = [line.strip() for line in head.split(b"\n", 64) if line.strip()][:2]
    first, single = filled[0] if filled else b"", len(filled) == 1
    goes_on = single or _GOES_ON.search(first) is not None
    if first[:1] == b"[" and (single or _begins_a_list(first)):
        yield from _entries(path, stream)
    elif first[:1] == b"{" and goes_on:
        raw = stream.read(_MOST_BYTES + 1) if cut else head
        value, problem = ({}, "too long") if len(raw) > _MOST_BYTES else json_value(raw)
        stream.seek(begin)
        yield from _lines(stream) if problem or not isinstance(value, dict) else _unwrapped(path, value)
    else:
        yield from _lines(stream)


def _begins_a_list(first: bytes) -> bool:
    """Return whether a line starts a list that continues on later lines; a line may also contain a whole list."""
    rest = first[1:].strip()
    return rest in (b"", b"{") or not json_value(rest.rstrip(b", "))[1]


def _lines(stream: BinaryIO) -> Iterator[Row]:
    number = 0
    while raw := stream.readline(_LONGEST_LINE + 1):
        number += 1
        if problem := too_long(len(raw)):
            while raw and not raw.endswith(b"\n"):  # an endless line must not fill memory
                raw = stream.readline(_LONGEST_LINE)
            yield number, None, problem
        elif raw.strip():
            yield number, *json_value(raw)


def too_long(count: int) -> str:
    """Return the problem if a line with this many bytes, including its end, is too long; else an empty string."""
    return f"expected at most {_LONGEST_LINE:,} bytes per line, found more" if count > _LONGEST_LINE else ""


def is_lines(head: bytes) -> bool:
    """Return whether a file with this beginning has one object per line rather than one multi-line JSON value."""
    filled = [line.strip() for line in head.split(b"\n", 64) if line.strip()][:2]
    return len(filled) == 2 and filled[0][:1] == b"{" and _GOES_ON.search(filled[0]) is None


def _entries(path: Path, stream: BinaryIO) -> Iterator[Row]:
    """Yield the entries of a list, each with the line on which it begins."""
    text = _Text(path, stream)
    text.skip(_BLANKS)
    text.at += 1  # the bracket
    while True:
        text.skip(_BETWEEN)
        letter = text.letter()
        if letter == "]":
            text.at += 1
            text.skip(_BLANKS)
            if text.letter():
                yield text.line, None, "expected nothing after the end of the list, found more"
            return
        if not letter:
            yield text.line, None, "expected the end of the list, found the end of the file: it is truncated"
            return
        line = text.line
        row, problem = text.value()
        yield line, row, problem
        if problem and row is None:
            following = text.skip_entry()
            if following == "lost":
                raise PairsError(
                    f"{path}, line {line}: {problem}, and the list cannot be read past that point; fix it, or write "
                    "one object per line"
                )
            if following == "none":
                return


_BLANKS = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,]*")


class _Text:
    """The text of a file, with only the part being read in memory.

    Attributes:
        at: Reading position within that part.
        line: Line of the position, counted from 1.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._part = ""
        self._counted = 0
        self._ended = False
        self.at, self.line = 0, 1

    def _more(self) -> bool:
        """Read more; False at the end of the file."""
        if self._ended:
            return False
        raw = self._stream.read(_LONGEST_LINE)
        try:
            text = self._decoder.decode(raw, not raw)
        except UnicodeDecodeError as error:
            byte = f"0x{error.object[error.start]:02x}"
            raise PairsError(f"{self._path}, after line {self.line}: expected UTF-8 text, found byte {byte}") from error
        self._ended = not raw
        # The line with the current entry is kept: its indentation shows where the next one begins.
        kept = self._part.rfind("\n", 0, self.at) + 1 if self.at - self._counted < _LONGEST_LINE else self.at
        self._count(self.at)
        self._part = self._part[kept:] + text
        self.at, self._counted = self.at - kept, self._counted - kept
        return bool(raw)

    def _count(self, upto: int) -> None:
        self.line += self._part.count("\n", self._counted, upto)
        self._counted = upto

    def letter(self) -> str:
        """Return the next character; an empty string at the end of the file."""
        while self.at >= len(self._part) and self._more():
            pass
        return self._part[self.at : self.at + 1]

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Skip text that matches a pattern."""
        while self.letter():
            found = pattern.match(self._part, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self._part):
                break
        self._count(self.at)

    def value(self) -> tuple[Any, str]:
        """Read one value, and return it with its problem; if the value is None, the position has not advanced."""
        while True:
            try:
                row, end = _STRICT.raw_decode(self._part, self.at)
            except (ValueError, RecursionError) as error:
                too_long = len(self._part) - self.at > _LONGEST_LINE
                if too_long or not self._more():  # otherwise it may just be incomplete
                    return None, _reason(error)
                continue
            if end >= len(self._part) and self._more():  # a number might continue
                continue
            problem = HALF_PAIR if "\\u" in self._part[self.at : end] and has_half_pair(row) else ""
            self.at = end
            return row, problem

    def skip_entry(self) -> str:
        """Move to the next entry, which starts like this one: with the same indentation on a line of its own.

        Returns:
            ``next``; ``none`` after the last entry; ``lost`` if entries do not start on their own lines.
        """
        before = self._part[self._part.rfind("\n", 0, self.at) + 1 : self.at]
        wanted = "\n" + ("" if before.strip() else before) + "{"
        while (found := self._part.find(wanted, self.at)) < 0:
            self.at = max(self.at, len(self._part) - len(wanted))
            if not self._more():
                return "lost" if before.strip() else "none"
        self.at = found + 1
        self._count(self.at)
        return "next"


def _unwrapped(path: Path, value: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of one object: itself, those in its only list, or those in its columns."""
    lists = {key: entry for key, entry in value.items() if isinstance(entry, list) and entry}
    objects = [entry for entry in lists.values() if all(isinstance(row, dict) for row in entry)]
    if set(value) >= {"columns", "data"} and isinstance(value["columns"], list) and isinstance(value["data"], list):
        rows: list[Any] = [dict(zip(value["columns"], row, strict=False)) for row in value["data"]]
    elif len(objects) == 1 and len(lists) == 1:
        rows = objects[0]
    elif value and all(isinstance(entry, dict) for entry in value.values()):
        keys = list(dict.fromkeys(key for entry in value.values() for key in entry))
        rows = [{name: entry.get(key) for name, entry in value.items()} for key in keys]
    elif lists.keys() == value.keys() and len({len(entry) for entry in lists.values()}) == 1 and not objects:
        rows = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    elif len(objects) > 1:
        found = ", ".join(f"'{key}'" for key in list(value)[:6])
        raise PairsError(
            f"{path}: expected one JSON object per line, or a list of objects, found one object with {found}; read "
            "COCO's files with frevl pairs coco; for others, extract the list of pairs, for example with: jq -c "
            f"'.{next(iter(lists))}[]' {path.name} > pairs.jsonl"
        )
    else:
        rows = [value]
    yield from ((number, row, HALF_PAIR if has_half_pair(row) else "") for number, row in enumerate(rows, start=1))


def json_value(raw: bytes) -> tuple[Any, str]:
    """Read one JSON value, and return it with its problem, an empty string if there is none."""
    try:
        row = _STRICT.decode(raw.decode().strip())
        # Only an escape can produce half of a surrogate pair, which no file or network accepts.
        return row, HALF_PAIR if b"\\u" in raw and has_half_pair(row) else ""
    except UnicodeDecodeError as error:
        return None, f"expected UTF-8 text, found byte 0x{raw[error.start]:02x}"
    except (ValueError, RecursionError) as error:
        return None, _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"expected JSON, found malformed JSON at column {error.colno} ({error.msg})"
    if isinstance(error, RecursionError):
        return "the JSON is nested too deep"
    # From the two functions below, or from Python: a number with thousands of digits.
    return f"expected JSON, found malformed JSON: {str(error).partition(';')[0]}"


def _once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(entries)
    if len(row) < len(entries):
        names = [name for name, _ in entries]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r:.40} appears twice")
    return row


def _constant(name: str) -> None:
    """Return None for NaN, by which pandas and Python mark a missing value under any key; refuse infinity."""
    if name != "NaN":
        raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.20} is too large a number")
    return value


# Python would silently take NaN as a number and 1e999 as infinite, and take the last of several equal keys.
_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_constant, parse_float=_finite)


def has_half_pair(value: Any) -> bool:
    """Return whether a text, or any text inside a value, contains half of a surrogate pair."""
    if isinstance(value, list) and set(map(type, value)) <= {str} and "".join(value).isascii():
        return False  # a whole store of ids
    left = [value]  # not recursive: JSON may be nested deeper than Python's recursion limit
    while left:
        one = left.pop()
        if isinstance(one, str):
            if not one.isascii() and any("\ud800" <= letter <= "\udfff" for letter in one):
                return True
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
    return False
