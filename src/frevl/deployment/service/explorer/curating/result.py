"""Results of ``frevl curate``, reopened: for every checked line, its place in the files and a few numbers."""

from __future__ import annotations

import hashlib
import heapq
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.errors import InputError
from frevl.files import read_record

__all__ = ["FILTERS", "REPEATED", "CurationResult", "Group", "open_result", "stamp_of"]

FILTERS = ("match", "label", "blind", "text", "image", "duplicate")
"""Filters by name, in page order."""

REPEATED = "repeated"
"""Verdict on a repeated line; the filter ``duplicate`` drops it."""

_OVER = "curate again with --out KEPT --dropped DROPPED --json RESULT"


@dataclass
class Group:
    """Images (or texts, if there are only texts) that are copies of one another.

    Attributes:
        kept: The image that ``frevl curate`` keeps.
        rows: Lines of every image of the group, without repeated lines.
    """

    kept: str
    rows: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class CurationResult:
    """A curation: first the kept lines, then the dropped ones, each in file order.

    Attributes:
        record: Contents of ``--json``.
        files: Files of the kept and the dropped lines; the second is missing if nothing was dropped.
        kept: ``(n,)`` bool, by ``frevl curate``.
        places: ``(n,)`` int64, byte offsets of the lines in their file.
        order_of_file: ``(n,)`` int64, the lines in the order of the file that was judged; if that is unknown, as in
            results of earlier versions, in the order given here.
        keys: ``(n,)`` uint64, hashes of a line's content and, for equal lines, of its position among them.
        beliefs: For each probabilistic filter, ``(n,)`` float32 in [0, 1], NaN for unchecked lines. For ``match`` and
            ``label``, the probability that the line is correct; for ``blind``, that the text alone gives the label
            away.
        flags: For each filter, ``(n,)`` bool, lines dropped because of it.
        seen: For each filter (and `REPEATED`), ``(n,)`` bool, lines that it checked individually.
        groups: Copies, by the kept image.
        group_of: Maps every image in a group to the group's name.
    """

    record: dict[str, Any]
    files: list[Path]
    kept: NDArray[np.bool_]
    places: NDArray[np.int64]
    order_of_file: NDArray[np.int64]
    keys: NDArray[np.uint64]
    beliefs: dict[str, NDArray[np.float32]]
    flags: dict[str, NDArray[np.bool_]]
    seen: dict[str, NDArray[np.bool_]]
    groups: dict[str, Group]
    group_of: dict[str, str]

    def __len__(self) -> int:
        return len(self.kept)

    def lines(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Read lines.

        Raises:
            InputError: A file has changed since, or cannot be read.
        """
        found: dict[int, dict[str, Any]] = {}
        try:
            for number, path in enumerate(self.files):
                own = [row for row in rows if bool(self.kept[row]) == (number == 0)]
                if own:
                    with path.open("rb") as file:
                        for row in own:
                            file.seek(int(self.places[row]))
                            found[row] = json.loads(file.readline())
        except (OSError, ValueError) as error:
            raise InputError(f"The lines of this curation cannot be read ({error}); {_OVER}") from None
        return [found[row] for row in rows]

    def every_line(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Read all lines with their rows, in the order of the file that was judged."""
        place = np.empty(len(self), np.int64)
        place[self.order_of_file] = np.arange(len(self))
        first = int(self.kept.sum())
        parts = [self._numbered(path, first * number) for number, path in enumerate(self.files)]
        # Both files have kept the order, so one line of each is held at a time.
        return heapq.merge(*parts, key=lambda one: int(place[one[0]]))

    @staticmethod
    def _numbered(path: Path, row: int) -> Iterator[tuple[int, dict[str, Any]]]:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield row, json.loads(line)
                    row += 1

    def row_of(self, key: str) -> int | None:
        """Return the row of the line with this key; None if there is none."""
        try:
            wanted = np.uint64(int(key, 16))
        except (ValueError, OverflowError):
            return None
        order, ordered = self._order
        at = int(np.searchsorted(ordered, wanted))
        return int(order[at]) if at < len(ordered) and ordered[at] == wanted else None

    @cached_property
    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        order = np.argsort(self.keys, kind="stable")
        return order, self.keys[order]

    def order(self, name: str, shown: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return some of the lines that a filter checked, most suspicious first."""
        rows = np.flatnonzero(self.seen[name] & shown)
        belief = self.beliefs.get(name)
        if belief is None:
            return rows
        doubt = belief[rows] if name != "blind" else -belief[rows]
        return rows[np.argsort(doubt, kind="stable")]


def key_of(line: dict[str, Any], number: int) -> int:
    """Return the key of a line: a hash of its content without verdicts, and of the number of equal lines before it."""
    content = json.dumps({name: value for name, value in line.items() if name != "curate"}, sort_keys=True)
    known = content if not number else f"{content}\n{number}"
    return int.from_bytes(hashlib.blake2b(known.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def stamp_of(path: Path) -> tuple[object, ...]:
    """Return a stamp that changes when a result or one of its files is rewritten.

    Raises:
        InputError: The result or one of its files is missing.
    """
    record = _record(path)
    try:
        return tuple(
            (status.st_ino, status.st_mtime_ns, status.st_size)
            for status in (one.stat() for one in (path, *_files(path, record)))
        )
    except OSError as error:
        raise InputError(f"{path}: the curation cannot be read ({error.strerror or error}); {_OVER}") from None


def open_result(path: Path) -> CurationResult:
    """Open the result of ``frevl curate --json`` with its lines.

    Args:
        path: The JSON file. The files of its lines are looked for next to it, then where they were written.

    Raises:
        InputError: The file is not such a result, lines are missing, or their files belong to another call.
    """
    record = _record(path)
    files = _files(path, record)
    scan = _Scan()
    for number, file in enumerate(files):
        scan.read(file, kept=number == 0)
    kept = np.array(scan.kept, bool)
    if len(kept) != record["lines"] or int(kept.sum()) != record["kept"]:
        raise InputError(
            f"{path}: the curation kept {record['kept']:,} of {record['lines']:,} lines, found {int(kept.sum()):,} "
            f"of {len(kept):,} in {' and '.join(file.name for file in files)}; have they changed since? {_OVER}"
        )
    flags = {name: np.array([name in why for why in scan.why], bool) for name in FILTERS}
    flags[REPEATED] = np.array(scan.seen[REPEATED], bool)
    seen = {name: np.array(values, bool) for name, values in scan.seen.items()}
    return CurationResult(
        record=record,
        files=files,
        kept=kept,
        places=np.array(scan.places, np.int64),
        order_of_file=_order_of_file(np.array(scan.numbers, np.int64), kept),
        keys=np.array(scan.keys, np.uint64),
        beliefs={name: np.array(values, np.float32) for name, values in scan.beliefs.items()},
        flags=flags,
        seen=seen,
        groups=scan.groups,
        group_of=scan.group_of,
    )


def _order_of_file(numbers: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rows in the order of their line numbers; unchanged if these do not order both files."""
    rows = np.arange(len(numbers))
    sorted_ = all((np.diff(numbers[part]) > 0).all() for part in (kept, ~kept))
    known = sorted_ and bool((numbers >= 0).all()) and len(np.unique(numbers)) == len(numbers)
    return np.argsort(numbers, kind="stable") if known else rows


def _record(path: Path) -> dict[str, Any]:
    try:
        record = read_record(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the one that frevl curate --json wrote") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the file that frevl curate --json wrote ({error})") from None
    missing = [name for name in ("task", "lines", "kept", "filters", "out") if name not in record]
    if missing:
        hint = "the core of a test set has nothing to curate" if "core" in record else _OVER
        raise InputError(
            f"{path}: expected the result of frevl curate --json, found a file without '{missing[0]}'; {hint}"
        )
    return record


def _files(path: Path, record: dict[str, Any]) -> list[Path]:
    """Return the files of the kept and of the dropped lines."""
    found = []
    wanted = {"out": record["kept"], "dropped": record["lines"] - record["kept"]}
    for name, lines in wanted.items():
        written = record.get(name)
        if written is None:
            if lines:
                raise InputError(f"{path}: {lines:,} lines of the curation were not written ('{name}'); {_OVER}")
            continue
        places = [path.parent / Path(written).name, Path(written)]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            raise InputError(f"{path}: the lines of the curation are not at {places[0]} or {written}; {_OVER}")
        found.append(there)
    return found


class _Scan:
    """Reads checked lines sequentially."""

    def __init__(self) -> None:
        # Arrays, because a million Python numbers take ten times the memory.
        self.kept = array("B")
        self.places = array("q")
        self.keys = array("Q")
        self.numbers = array("q")
        self.why: list[tuple[str, ...]] = []
        self.beliefs = {name: array("f") for name in ("match", "label", "blind")}
        self.seen = {name: array("B") for name in (*FILTERS, REPEATED) if name != "duplicate"}
        self.groups: dict[str, Group] = {}
        self.group_of: dict[str, str] = {}
        self._once: set[int] = set()
        self._again: dict[int, int] = {}
        self._reasons: dict[tuple[str, ...], tuple[str, ...]] = {}

    def read(self, file: Path, *, kept: bool) -> None:
        """Add the lines of a file."""
        place = 0
        try:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        try:
                            self._take(json.loads(line), place, kept)
                        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                            raise InputError(
                                f"{file}, line {number:,}: expected a line written by frevl curate; {_OVER}"
                            ) from None
                    place += len(line)
        except OSError as error:
            raise InputError(f"{file}: the lines cannot be read ({error.strerror or error}); {_OVER}") from None

    def _take(self, line: dict[str, Any], place: int, kept: bool) -> None:
        said = line["curate"]
        if said["kept"] is not kept:
            raise ValueError
        row = len(self.kept)
        key = key_of(line, 0)
        number = 0
        if key in self._once:
            number = self._again[key] = self._again.get(key, 0) + 1
        self._once.add(key)
        why = tuple(str(one) for one in said["why"])
        label = said["label"]
        beliefs = {"match": said["match"], "label": label[2] if label else None, "blind": said["blind"]}
        for name, value in beliefs.items():
            self.beliefs[name].append(np.nan if value is None else float(value))
            self.seen[name].append(value is not None)
        for name in ("text", "image"):
            self.seen[name].append(bool(said[name]))
        unit = str(line.get("image", line.get("text", "")))
        repeated = said["duplicate_of"] == unit
        self.seen[REPEATED].append(repeated)
        if (said["copies"] or 0) > 1 and not repeated:
            name = said["duplicate_of"] or unit
            self.groups.setdefault(name, Group(name)).rows.setdefault(unit, []).append(row)
            self.group_of[unit] = name
        self.kept.append(kept)
        self.places.append(place)
        self.numbers.append(int(said.get("row", -1)))
        self.keys.append(key if not number else key_of(line, number))
        self.why.append(self._reasons.setdefault(why, why))
