"""Parse lines of JSON in blocks with Arrow, which gets only what it reads exactly as `json_rows` does.

A block that is not plain is halved until the offending lines are isolated; these few are read row by row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from frevl.data.columns import FIELDS
from frevl.data.formats.json_rows import json_value, too_long
from frevl.data.formats.pair_rows import NO_VALUE, has_several_texts, problem_in

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Block", "Layout", "SeveralTextsError", "doubtful", "json_objects", "json_strings", "read_block", "renamed"]

_FEW = 32  # lines to read row by row
_NEWLINE, _RETURN, _OPEN, _CLOSE = b"\n\r{}"


class SeveralTextsError(Exception):
    """A line has a list of texts, and so is several pairs: the file is read row by row."""


@dataclass(frozen=True)
class Layout:
    """The keys of a file's lines.

    Attributes:
        columns: Maps a field to its key, as in `frevl.data.formats.pair_rows`.
        extras: Keys to keep besides the fields, with the Arrow type of their values.
        dropped: Keys that are not read, with their types.
    """

    columns: Mapping[str, str]
    extras: Mapping[str, pa.DataType]
    dropped: Mapping[str, pa.DataType]

    @classmethod
    def of(cls, columns: Mapping[str, str], row: Mapping[str, Any]) -> Layout | None:
        """Return the layout of the first row; None if Arrow has no plain type for one of its values."""
        import pyarrow as pa

        plain = {str: pa.string(), bool: pa.bool_(), int: pa.int64()}
        renamed = any(name != key for name, key in columns.items())
        taken = {*columns.values(), *(FIELDS if renamed else ())}
        types: dict[str, pa.DataType] = {}
        for key, value in row.items():
            if key in columns.values():
                continue
            if type(value) not in plain:
                return None
            types[key] = plain[type(value)]
        extras = {key: kind for key, kind in types.items() if key not in taken}
        dropped = {key: kind for key, kind in types.items() if key in taken}
        return cls(columns, extras, dropped)

    @property
    def schema(self) -> pa.Schema:
        """Return the schema for Arrow."""
        import pyarrow as pa

        fields = {self.columns.get(name, name): pa.string() for name in FIELDS}
        return pa.schema(list({**fields, **self.extras, **self.dropped}.items()))


def renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """Return a row with the names of the fields, as `frevl.data.formats.pair_rows.in_fields` does."""
    if not isinstance(row, dict) or all(name == key for name, key in columns.items()):
        return row
    fields = {name: row[key] for name, key in columns.items() if key in row}
    taken = {*columns.values(), *FIELDS}
    return {**fields, **{name: value for name, value in row.items() if name not in taken}}


@dataclass
class Block:
    """Pairs from a block of lines, in columns.

    Attributes:
        images: Dictionary-encoded Arrow strings; an empty string if a pair has no image.
        texts: Dictionary-encoded Arrow strings; an empty string if a pair has no text.
        targets: Dictionary-encoded JSON of each target; ``null`` if there is none.
        extras: Dictionary-encoded JSON of all other keys.
        lines: Line of each pair.
        rejected: Lines that are not pairs, with the reason.
    """

    images: list[pa.Array] = field(default_factory=list)
    texts: list[pa.Array] = field(default_factory=list)
    targets: list[pa.Array] = field(default_factory=list)
    extras: list[pa.Array] = field(default_factory=list)
    lines: list[np.ndarray] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)

    def add(self, images: pa.Array, texts: pa.Array, targets: pa.Array, extras: pa.Array, *, lines: np.ndarray) -> None:
        """Add pairs; codes are assigned per block, so that repeated values are stored once."""
        for own, column, missing in (
            (self.images, images, ""),
            (self.texts, texts, ""),
            (self.targets, targets, "null"),
            (self.extras, extras, ""),
        ):
            own.append(_coded(column, missing))
        self.lines.append(lines.astype(np.int32 if lines[-1] < 2**31 else np.int64))

    def add_rows(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Add pairs given as Python objects, each with its line."""
        import pyarrow as pa

        if not rows:
            return
        targets = (row.get("target") for _, row in rows)
        others = ({key: value for key, value in row.items() if key not in FIELDS} for _, row in rows)
        columns = (
            [row.get("image") for _, row in rows],
            [row.get("text") for _, row in rows],
            [None if target is None else json.dumps(target, ensure_ascii=False) for target in targets],
            [json.dumps(one, ensure_ascii=False) if one else "{}" for one in others],
        )
        strings = (pa.array(column, pa.large_string()) for column in columns)
        self.add(*strings, lines=np.array([line for line, _ in rows]))


def _coded(column: pa.Array, missing: str) -> pa.DictionaryArray:
    import pyarrow as pa
    from pyarrow import compute as pc

    column = column.cast(pa.large_string())
    return (pc.fill_null(column, missing) if column.null_count else column).dictionary_encode()


def read_block(raw: bytes, first: int, columns: Mapping[str, str], layout: Layout | None, block: Block) -> None:
    """Read whole lines and add their pairs to a block.

    Args:
        raw: Lines, the last one with or without its end.
        first: Number of the first line.
        columns: Maps a field to its key.
        layout: Layout of plain lines; None reads all of them row by row.
        block: Receives the pairs.

    Raises:
        SeveralTextsError: A line has a list of texts.
    """
    ends = np.flatnonzero(np.frombuffer(raw, np.uint8) == _NEWLINE)
    if not len(ends) or ends[-1] != len(raw) - 1:
        ends = np.append(ends, len(raw))
    if layout is None or len(ends) <= _FEW:
        _row_by_row(raw, first, columns, block)
        return
    if _is_plain(raw, ends) and _by_arrow(raw, first, len(ends), layout, block):
        return
    middle = int(ends[len(ends) // 2]) + 1
    read_block(raw[:middle], first, columns, layout, block)
    read_block(raw[middle:], first + len(ends) // 2 + 1, columns, layout, block)


def _is_plain(raw: bytes, ends: np.ndarray) -> bool:
    """Return whether every line appears to hold exactly one object."""
    if b"\0" in raw or too_long(int(np.diff(ends, prepend=-1).max())):
        return False
    letters = np.frombuffer(raw, np.uint8)
    starts = np.append(0, ends[:-1] + 1)
    last = ends - 1
    if (ends == starts).any():  # an empty line
        return False
    last = np.where(letters[last] == _RETURN, last - 1, last)
    if (last < starts).any() or not (letters[starts] == _OPEN).all() or not (letters[last] == _CLOSE).all():
        return False
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _by_arrow(raw: bytes, first: int, count: int, layout: Layout, block: Block) -> bool:
    """Add the pairs of lines that Arrow reads as Python does; False if it might not."""
    import pyarrow as pa
    from pyarrow import compute as pc
    from pyarrow import json as arrow_json

    try:
        table = arrow_json.read_json(
            pa.BufferReader(raw),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(raw) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=layout.schema, unexpected_field_behavior="error"),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    if len(table) != count or any(table[key].null_count for key in layout.extras):
        return False  # a missing key could not be distinguished from null
    image, text, target = (table[layout.columns.get(name, name)].combine_chunks() for name in FIELDS)
    if pc.any(pc.and_(pc.is_null(image), pc.is_null(text))).as_py():
        return False
    look = np.zeros(count, bool)
    for column in (image, text, target):
        look |= doubtful(column)
    rows = np.flatnonzero(look)
    if len(rows):
        given = (column.take(pa.array(rows)).to_pylist() for column in (image, text, target))
        if any(problem_in(dict(zip(FIELDS, row, strict=True))) for row in zip(*given, strict=True)):
            return False
    strings = image, text, json_strings(target)
    extras = json_objects({key: table[key].combine_chunks() for key in layout.extras}, count)
    block.add(*strings, extras, lines=np.arange(first, first + count))
    return True


def doubtful(column: pa.StringArray) -> np.ndarray:
    """Return which texts may denote a missing value.

    They are empty, a marker of one, or do not begin and end with a printable ASCII character other than a blank.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    words = pc.is_in(column, value_set=pa.array(sorted(NO_VALUE))).to_numpy(zero_copy_only=False)
    if column.null_count:
        column = pc.fill_null(column, "x")
    _, at, data = column.buffers()
    places = np.frombuffer(at, np.int32)[column.offset : column.offset + len(column) + 1]
    if data is None or data.size == 0:
        return np.ones(len(column), bool)
    letters = np.frombuffer(data, np.uint8)
    ends = [letters[np.minimum(where, len(letters) - 1)] for where in (places[:-1], places[1:] - 1)]
    blank = (places[:-1] == places[1:]) | (ends[0] <= 32) | (ends[0] >= 127) | (ends[1] <= 32) | (ends[1] >= 127)
    found: np.ndarray = words | blank
    return found


def json_strings(column: pa.StringArray) -> pa.Array:
    """Return the JSON of strings; null stays null."""
    import pyarrow as pa
    from pyarrow import compute as pc

    if column.null_count == len(column):
        return pa.nulls(len(column), pa.large_string())
    if pc.any(pc.match_substring_regex(column, r'["\\\x00-\x1f]')).as_py():
        texts = (None if text is None else json.dumps(text, ensure_ascii=False) for text in column.to_pylist())
        return pa.array(texts, pa.large_string())
    return pc.binary_join_element_wise('"', column, '"', "").cast(pa.large_string())


def json_objects(columns: Mapping[str, pa.Array], count: int) -> pa.Array:
    """Return the JSON of objects with these columns as keys: texts, integers and booleans."""
    import pyarrow as pa
    from pyarrow import compute as pc

    if not columns:
        return pa.array(np.repeat("{}", count), pa.large_string())
    parts: list[Any] = []
    for number, (key, column) in enumerate(columns.items()):
        parts.append(f"{'{' if number == 0 else ', '}{json.dumps(key, ensure_ascii=False)}: ")
        texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        made = json_strings(column) if texts else column.cast(pa.large_string())
        parts.append(pc.fill_null(made, "null") if made.null_count else made)
    arguments: Sequence[Any] = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in parts]
    closed = pa.scalar("}", pa.large_string())
    return pc.binary_join_element_wise(*arguments, closed, pa.scalar("", pa.large_string()))


def _row_by_row(raw: bytes, first: int, columns: Mapping[str, str], block: Block) -> None:
    kept: list[tuple[int, Any]] = []
    count = raw.count(b"\n")
    for number, line in enumerate(raw.split(b"\n"), start=first):
        if not line.strip():
            continue
        ended = number < first + count
        row, problem = (None, problem) if (problem := too_long(len(line) + ended)) else json_value(line)
        row = renamed(row, columns)
        if not problem and has_several_texts(row):
            raise SeveralTextsError
        problem = problem or problem_in(row)
        if problem:
            block.rejected.append((number, problem))
        else:
            kept.append((number, row))
    block.add_rows(kept)
