"""Read a large pairs file into Arrow columns in blocks; the second time, from the cache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frevl.data.columns import FIELDS, choose_columns, renaming_note
from frevl.data.formats.json_rows import is_lines, json_value, too_long
from frevl.data.formats.pair_rows import TABLES, as_target, is_missing, nothing_found, with_the_same_sides
from frevl.data.formats.table_parts import ARROW, is_in_parts, place_of
from frevl.data.packed.blocks import Block, Layout, SeveralTextsError, read_block
from frevl.data.packed.cache import Kept, kept_columns
from frevl.data.packed.columns import joined_codes
from frevl.data.packed.tables import arrow_block, csv_block, open_csv

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_packed"]

_AT_ONCE = 2 << 20  # bytes of a block
_HEAD = 1 << 20
_BOM = b"\xef\xbb\xbf"
_WHOLE_FLOAT = re.compile(r"-?\d+\.0")


@dataclass(frozen=True)
class _Start:
    columns: dict[str, str]
    layout: Layout | None
    notes: list[str]


def read_packed(path: Path, given: Mapping[str, str]) -> Kept | None:
    """Read the pairs of a large file: JSON lines, text tables, Parquet, Arrow and Feather.

    Rejects and reasons are the same as when reading row by row. The columns are then cached in a file, and memory holds
    only the parts in use.

    Args:
        path: The file, or a table in parts.
        given: Columns that the user named (`frevl.data.columns.columns_of`).

    Returns:
        The columns; None for any other file: other formats (images inside tables, targets that are Arrow lists), lists
        of texts, and files without a single pair.

    Raises:
        OSError: The file cannot be read.
        PairsError: Only some of the pairs with a target have a text (an image), or the columns of a table cannot be
            identified.
    """
    suffix = path.suffix.lower()
    if suffix in ARROW or is_in_parts(path):
        return _read_arrow(path, given)
    with path.open("rb") as file:
        head = file.read(_HEAD).removeprefix(_BOM)
    if suffix in TABLES or (suffix == ".txt" and head.lstrip()[:1] not in (b"{", b"[")):
        return _read_csv(path, given)
    start = _begin(path, head, given)
    if start is None:
        return None
    return kept_columns(path, given, lambda: _read(path, start))


def _read_csv(path: Path, given: Mapping[str, str]) -> Kept | None:
    table = open_csv(path, given)
    if table is None:
        return None
    start = _Start(table.columns, None, renaming_note(table.columns))

    def read() -> Kept | None:
        try:
            block = csv_block(path, table)
        except SeveralTextsError:
            return None
        return _finished(path, block, start) if block is not None and block.lines else None

    return kept_columns(path, given, read)


def _read_arrow(path: Path, given: Mapping[str, str]) -> Kept | None:
    import pyarrow as pa

    from frevl.data.formats.arrow_rows import plain_batches
    from frevl.data.formats.arrow_tables import open_arrow

    found = plain_batches(open_arrow(path), given)
    if found is None:
        return None
    columns, notes, batches = found
    start = _Start(columns, None, [*notes, *renaming_note(columns)])

    def read() -> Kept | None:
        try:
            block = arrow_block(batches(), columns)
        except pa.ArrowException:
            return None  # reported when it is read row by row
        return _finished(path, block, start) if block.lines else None

    return kept_columns(path, given, read)


def _begin(path: Path, head: bytes, given: Mapping[str, str]) -> _Start | None:
    """Choose columns by the first object, as `pair_rows` does; None if it is not a line-based file."""
    if not is_lines(head) or b"\0" in head[:4]:
        return None
    for number, line in enumerate(head.split(b"\n")[:-1], start=1):
        row, problem = json_value(line) if line.strip() else (None, "")
        if isinstance(row, dict) and not problem:
            chosen = choose_columns(f"{path}:{number}", row, given, required=())
            columns = {name: given.get(name) or chosen.get(name) or name for name in FIELDS}
            return _Start(columns, Layout.of(columns, row), renaming_note(columns))
    return None


def _read(path: Path, start: _Start) -> Kept | None:
    block, first = Block(), 1
    for raw in _whole_lines(path):
        if isinstance(raw, int):
            block.rejected.append((first, too_long(raw)))
            first += 1
            continue
        try:
            read_block(raw, first, start.columns, start.layout, block)
        except SeveralTextsError:
            return None
        first += raw.count(b"\n")
    return _finished(path, block, start) if block.lines else None


def _whole_lines(path: Path) -> Iterator[bytes | int]:
    """Yield the file in chunks of whole lines; for an overlong line, only its size."""
    with path.open("rb") as file:
        rest, lost = b"", 0
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        while part := file.read(_AT_ONCE):
            if lost:
                cut = part.find(b"\n") + 1
                lost += cut or len(part)
                if not cut:
                    continue
                yield lost
                part, lost = part[cut:], 0
            cut = part.rfind(b"\n") + 1
            if cut:
                yield rest + part[:cut]
                rest = part[cut:]
            else:
                rest += part
            if too_long(len(rest)):  # a line without end must not fill memory
                rest, lost = b"", len(rest)
        if lost or rest:
            yield lost or rest


def _finished(path: Path, block: Block, start: _Start) -> Kept | None:
    """Assign a code to every distinct value, and drop pairs that lack a side that others have."""
    import pyarrow as pa

    lines, rejected = np.concatenate(block.lines), block.rejected
    block.lines = []
    columns: dict[str, pa.DictionaryArray] = {}
    for name in ("images", "texts", "targets", "extras"):
        parts = getattr(block, name)
        setattr(block, name, [])  # free the parts as soon as they are joined
        columns[name] = joined_codes(parts)
    lacks = {side: _lacking(columns[f"{side}s"]) for side in ("image", "text")}
    columns["targets"] = _canonical(columns["targets"])
    if any(lack.any() for lack in lacks.values()):
        kept = _of_the_same_sides(path, lines, lacks, columns["targets"], rejected)
        if not kept.any():
            return None
        rows = pa.array(np.flatnonzero(kept))
        columns, lines = {name: column.take(rows) for name, column in columns.items()}, lines[kept]
    columns["targets"] = _without_gaps(columns["targets"])
    return Kept(columns, lines, sorted(rejected), start.notes)


def _lacking(column: pa.DictionaryArray) -> np.ndarray:
    """Return which pairs lack a side: theirs is an empty string, which a given side never is."""
    from pyarrow import compute as pc

    empty = pc.index(column.dictionary, "").as_py()
    lacking: np.ndarray = column.indices.to_numpy() == empty
    return lacking


def _canonical(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """Convert each distinct target to its type."""
    import pyarrow as pa

    texts = [json.dumps(as_target(json.loads(text)), ensure_ascii=False) for text in column.dictionary.to_pylist()]
    if texts == column.dictionary.to_pylist():
        return column
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int32)
    indices = codes[column.indices.to_numpy()]
    return pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(list(numbers), pa.large_string()))


def _without_gaps(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """Turn ``1.0`` back into ``1`` if missing values turned a table's integer column into floats."""
    import pyarrow as pa

    used = np.unique(column.indices.to_numpy())
    targets = {int(code): json.loads(column.dictionary[int(code)].as_py()) for code in used}
    given = [target for target in targets.values() if target is not None]
    written = all(isinstance(target, str) and _WHOLE_FLOAT.fullmatch(target) for target in given)
    if not given or len(given) == len(targets) or not written:
        return column
    texts = column.dictionary.to_pylist()
    for code, target in targets.items():
        texts[code] = json.dumps(target.removesuffix(".0")) if isinstance(target, str) else texts[code]
    return pa.DictionaryArray.from_arrays(column.indices, pa.array(texts, pa.large_string()))


def _of_the_same_sides(
    path: Path,
    lines: np.ndarray,
    lacks: Mapping[str, np.ndarray],
    targets: pa.DictionaryArray,
    rejected: list[tuple[int, str]],
) -> np.ndarray:
    """Return which pairs to keep, as `frevl.data.formats.pair_rows.with_the_same_sides` decides."""
    kept = np.ones(len(lines), bool)
    whole = ~(lacks["image"] | lacks["text"])
    if whole.any():
        null = np.array([is_missing(json.loads(text)) for text in targets.dictionary.to_pylist()])
        without_target = null[targets.indices.to_numpy()]
        for side, lack in lacks.items():
            left_out = lack & without_target
            rejected += [(line, nothing_found(side)) for line in lines[left_out].tolist()]
            kept &= ~left_out
    sides = np.where(lacks["image"], 1, np.where(lacks["text"], 2, 0))[kept]
    other = np.flatnonzero(sides != sides[:1])
    if len(other):
        examples: list[tuple[int, str, dict[str, Any]]] = []
        for row in (0, int(other[0])):
            fields = {0: {"image": "i", "text": "t"}, 1: {"text": "t"}, 2: {"image": "i"}}[int(sides[row])]
            examples.append((row, place_of(path)(int(lines[kept][row])), {**fields, "target": "known"}))
        with_the_same_sides(examples, [])  # raises the error
    return kept
