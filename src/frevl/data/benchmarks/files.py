"""Read the official files of a benchmark, with errors that name file and location."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from frevl.errors import InputError, PairsError

__all__ = ["Folder", "LeftOut", "Row", "csv_rows", "json_lines", "lines", "need", "read_json"]

Row = dict[str, Any]

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"))


class LeftOut(NamedTuple):
    """An omitted item, with the reason in one sentence."""

    id: str
    reason: str


class Folder:
    """Finds files below a folder by name: archives are unpacked in different ways, but file names stay the same.

    Attributes:
        root: The folder.
        found: Files found by `find` so far, which are those that are read.
    """

    def __init__(self, root: Path) -> None:
        """Walk the folder once.

        Args:
            root: The folder; links to folders are followed, hidden folders are not.

        Raises:
            InputError: The folder does not exist.
        """
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; give the folder with the benchmark's files.")
        self.root = root
        self.found: list[Path] = []
        self._files: dict[str, list[str]] = {}
        self._images: dict[str, list[str]] = {}
        seen: set[str] = set()
        for place, folders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(place)
            if real in seen:  # a link to a parent folder
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            inner = Path(place).relative_to(root).as_posix()
            prefix = "" if inner == "." else inner + "/"
            for name in sorted(names):
                stem, suffix = _split_suffix(name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    self._images.setdefault(stem, []).append(prefix + name)
                else:
                    self._files.setdefault(name, []).append(prefix + name)

    def find(self, name: str) -> Path | None:
        """Return the file with this name, the one nearest the root if there are several."""
        places = self._files.get(name)
        if not places:
            return None
        self.found.append(self.root / min(places, key=lambda place: (place.count("/"), place)))
        return self.found[-1]

    def image(self, name: str, *, exact: bool = False) -> str | None:
        """Return the path, relative to the root, of an image named in the official files.

        An image is found anywhere below the root and in any format (DAQUAR's PNG converted to JPEG keeps its name).
        Among several, one whose path ends with the official path is preferred, then the one nearest the root.

        Args:
            name: Official path or name, with or without the ending.
            exact: Require the whole official path, because names alone are not unique.
        """
        stem, suffix = _split_suffix(name)
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem = name
        places = self._images.get(stem.rpartition("/")[2], [])
        fitting = [place for place in places if ("/" + _split_suffix(place)[0]).endswith("/" + stem)]
        if not fitting and not exact:
            fitting = places
        same_ending = [place for place in fitting if place.endswith(suffix)]
        return min(same_ending or fitting, key=lambda place: (place.count("/"), place), default=None)


def _split_suffix(name: str) -> tuple[str, str]:
    suffix = PurePosixPath(name).suffix
    return name[: len(name) - len(suffix)], suffix


def need(mapping: Any, key: str, kind: type | tuple[type, ...], place: str) -> Any:
    """Return ``mapping[key]``, checked.

    Args:
        mapping: The value that should be a JSON object.
        key: A key of the official format.
        kind: Accepted types of the value.
        place: File and position, for the message.

    Raises:
        InputError: It is not an object, the key is missing, or the value has another type.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(f"{place}: expected an object with '{key}', found {type(mapping).__name__}.")
    if key not in mapping:
        found = ", ".join(f"'{name}'" for name in list(mapping)[:8]) or "nothing"
        raise InputError(f"{place}: expected the key '{key}', found {found}; is this another version of the file?")
    # In Python, True is a number; to the authors of these files it is not.
    if not isinstance(mapping[key], kind) or (isinstance(mapping[key], bool) and kind is not bool):
        wanted = " or ".join(t.__name__ for t in (kind if isinstance(kind, tuple) else (kind,)))
        raise InputError(f"{place}: expected '{key}' to be {wanted}, found {type(mapping[key]).__name__}.")
    return mapping[key]


def read_json(path: Path) -> Any:
    """Read a file with a single JSON value.

    Raises:
        InputError: The file cannot be read, is not UTF-8, or ends too early.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: the JSON breaks off or is malformed "
            f"({error.msg}); fetch the file again."
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # also from `_once`, or a number of thousands of digits
        reason = str(error).partition(";")[0]
        raise InputError(f"{path}: the file cannot be read as UTF-8 JSON ({reason}); fetch it again.") from error


def _once(entries: list[tuple[str, Any]]) -> Row:
    """Build an object, refusing repeated keys, where Python would silently keep the last."""
    row = dict(entries)
    if len(row) < len(entries):
        names = [name for name, _ in entries]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r:.40} appears twice")
    return row


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(place, line)`` for each non-blank line, stripped.

    Raises:
        InputError: The file cannot be read or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path.name}:{number}", line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the file cannot be read as UTF-8 text ({error}); fetch it again.") from error


def json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield ``(place, object)`` for each line of a JSONL file.

    Raises:
        PairsError: A line is not a JSON object; the last one of a truncated file is not.
        InputError: The file cannot be read.
    """
    for place, line in lines(path):
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise PairsError(
                f"{path.parent / place}: expected one JSON object, found {line[:40]!r}...; "
                "the file is truncated or malformed, fetch it again."
            ) from error
        if not isinstance(row, dict):
            raise PairsError(f"{path.parent / place}: expected one JSON object, found {type(row).__name__}.")
        yield place, row


def csv_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    """Yield ``(place, cells)`` for each row of a CSV file, the header included.

    Raises:
        InputError: The file cannot be read, or a quoted cell is never closed.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if any(cells):
                    yield f"{path.name}:{reader.line_num}", cells
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: malformed CSV ({error}); fetch the file again.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the file cannot be read as UTF-8 text ({error}); fetch it again.") from error
