"""Read large tables into Arrow columns: CSV in blocks of lines, Parquet, Arrow and Feather in batches.

Rejects and reasons are those of `frevl.data.formats.csv_rows` and `frevl.data.formats.arrow_rows`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frevl.data.columns import FIELDS, Columns
from frevl.data.formats.csv_rows import LISTS, records, table_header
from frevl.data.formats.json_rows import has_half_pair, json_value
from frevl.data.formats.pair_rows import has_several_texts, problem_in
from frevl.data.packed.blocks import Block, SeveralTextsError, doubtful, json_objects, renamed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Csv", "arrow_block", "csv_block", "open_csv"]

_AT_ONCE = 2 << 20  # bytes of a block
_FEW = 32  # records read one by one if a line is not plain
_UNFINISHED = "unexpected end of data"  # the csv module's wording
_NEWLINE, _QUOTE = b'\n"'
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Csv:
    """The format of a text table.

    Attributes:
        delimiter: Delimiter between columns.
        names: Names of the columns.
        columns: Maps a field to its column.
        begin: Byte at which the second line begins.
    """

    delimiter: str
    names: list[str]
    columns: Columns
    begin: int


def open_csv(path: Path, given: Mapping[str, str]) -> Csv | None:
    """Read the header of a UTF-8 table; None for another encoding, or if the header is not a single plain line.

    Raises:
        PairsError: The first line does not name the columns.
    """
    with path.open("rb") as file:
        head = file.read(4)
        if b"\0" in head or head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return None
        file.seek(len(_BOM) if head.startswith(_BOM) else 0)
        line = file.readline(1 << 20)
        begin = file.tell()
    if not line.endswith(b"\n") or b"\r" in line.removesuffix(b"\r\n") or line.count(b'"') % 2:
        return None
    header = line.decode("utf-8", "surrogateescape")
    delimiter, columns = table_header(f"{path}, line 1", path.suffix.lower(), header, given)
    try:
        names = next(csv.reader([header], strict=True, delimiter=delimiter), [])
    except csv.Error:
        return None  # reported when it is read row by row
    if has_half_pair(names):
        return None  # Arrow does not allow such a column name
    return Csv(delimiter, names, columns, begin)


def csv_block(path: Path, table: Csv) -> Block | None:
    """Read all pairs of a text table; None if its line endings are inconsistent."""
    block = Block()
    plain = _plain_lines(table)
    with path.open("rb") as file:
        file.seek(table.begin)
        raw, line = b"", 2
        while True:
            more = file.read(_AT_ONCE)
            raw += more
            whole = raw if not more else raw[: raw.rfind(b"\n") + 1]
            if whole.count(b"\r") != whole.count(b"\r\n"):
                return None  # this also ends a line
            done, lines = _read(whole, line, table, plain, block, at_end=not more)
            raw, line = raw[done:], line + lines
            if not more:
                return block


def _plain_lines(table: Csv) -> re.Pattern[bytes]:
    """Return a pattern for quoted lines that Python and Arrow read the same way."""
    other = re.escape(table.delimiter.encode())
    one = rb'(?:"(?:[^"\n]|"")*+"|[^"\r\n' + other + rb"]*+)"
    line = one + rb"(?:" + other + one + rb"){%d}" % (len(table.names) - 1)
    return re.compile(rb"(?:" + line + rb"(?:\r?\n|\Z))*+")


def _read(
    raw: bytes, line: int, table: Csv, plain: re.Pattern[bytes], block: Block, *, at_end: bool
) -> tuple[int, int]:
    """Read whole records from the start of a block of lines.

    Returns:
        The numbers of bytes and lines read; a record that may continue after these lines is left.
    """
    begin = lines = 0
    few = _FEW
    while begin < len(raw):
        ends = _ends(raw[begin:])
        odd = _first_odd(raw[begin:], ends, table, plain)
        if odd:
            part = raw[begin : begin + int(ends[odd - 1]) + 1]
            _by_arrow(part, line + lines, table, block)
            begin, lines = begin + len(part), lines + odd
        if odd == len(ends):
            break
        few = _FEW if odd > few else 2 * few  # every switch rescans all that is left
        used, count = _by_hand(raw[begin:], line + lines, few, table, block, at_end=at_end)
        begin, lines = begin + used, lines + count
        if not count:
            break
    return begin, lines


def _ends(raw: bytes) -> np.ndarray:
    ends = np.flatnonzero(np.frombuffer(raw, np.uint8) == _NEWLINE)
    return ends if raw.endswith(b"\n") else np.append(ends, len(raw))


def _first_odd(raw: bytes, ends: np.ndarray, table: Csv, plain: re.Pattern[bytes]) -> int:
    """Return the first line that Arrow might read differently, or the number of lines."""
    letters = np.frombuffer(raw, np.uint8)
    starts = np.append(0, ends[:-1] + 1)

    def count(letter: int) -> np.ndarray:
        at = np.searchsorted(ends, np.flatnonzero(letters == letter))
        return np.bincount(at, minlength=len(ends))

    odd = ends - starts > csv.field_size_limit()
    empty = ends == starts
    empty |= (ends - starts == 1) & (letters[np.minimum(starts, len(letters) - 1)] == 13)
    quotes = count(_QUOTE)
    odd |= empty | ((quotes == 0) & (count(ord(table.delimiter)) != len(table.names) - 1))
    if 0 in letters:
        odd |= count(0) > 0
    if _BOM in raw:  # Arrow drops one at the beginning of its input
        odd[np.searchsorted(starts, [found.start() for found in re.finditer(b"^" + _BOM, raw, re.MULTILINE)])] = True
    first = int(np.argmax(odd)) if odd.any() else len(odd)
    if quotes[:first].any():
        found = plain.match(raw, 0, len(raw) if first == len(ends) else int(starts[first]))
        first = min(first, int(np.searchsorted(starts, found.end() if found else 0)))
    try:
        raw[: int(starts[first]) if first < len(ends) else len(raw)].decode()
    except UnicodeDecodeError as error:
        first = int(np.searchsorted(ends, error.start))
    return first


def _by_arrow(raw: bytes, first: int, table: Csv, block: Block) -> None:
    """Add the pairs of plain lines."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    read = arrow_csv.read_csv(
        pa.BufferReader(raw),
        read_options=arrow_csv.ReadOptions(
            use_threads=False, block_size=len(raw) + 1, column_names=[str(n) for n in range(len(table.names))]
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=table.delimiter, ignore_empty_lines=False),
        convert_options=arrow_csv.ConvertOptions(
            column_types={str(n): pa.string() for n in range(len(table.names))},
            null_values=[],
            strings_can_be_null=False,
            check_utf8=False,
        ),
    )
    columns = {name: read[number].combine_chunks() for number, name in enumerate(table.names)}
    _add(columns, table.columns, np.arange(first, first + len(read)), block, written=True)


def _by_hand(raw: bytes, first: int, few: int, table: Csv, block: Block, *, at_end: bool) -> tuple[int, int]:
    """Add the pairs of some records as read by `frevl.data.formats.csv_rows`; return the bytes and lines consumed."""
    used = count = given = 0

    def lines() -> Iterator[str]:
        nonlocal given
        while given < len(raw):
            begin, given = given, raw.find(b"\n", given) + 1 or len(raw)
            yield raw[begin:given].decode("utf-8", "surrogateescape")

    kept: list[tuple[int, Any]] = []
    found = records(lines(), table.delimiter, table.names, table.columns, first - 1)
    for number, (line, row, problem) in enumerate(found, start=1):
        if problem.endswith(_UNFINISHED) and not at_end:
            break
        used, count = given, line - first + 1
        row = renamed(row, table.columns)
        if not problem and has_several_texts(row):
            raise SeveralTextsError
        problem = problem or problem_in(row)
        if problem:
            block.rejected.append((line, problem))
        else:
            kept.append((line, row))
        if number == few:
            break
    else:  # empty lines may follow the last record
        used, count = len(raw), raw.count(b"\n") + (not raw.endswith(b"\n"))
    block.add_rows(kept)
    return used, count


def arrow_block(batches: Iterator[pa.RecordBatch], columns: Columns) -> Block:
    """Read all pairs of a table with columns of texts, integers and booleans.

    Args:
        batches: The table's columns: those of the fields, and those to keep besides them.
        columns: Maps a field to its column.
    """
    block, first = Block(), 1
    for batch in batches:
        read = {name: batch[name] for name in batch.schema.names}
        _add(read, columns, np.arange(first, first + len(batch)), block, written=False)
        first += len(batch)
    return block


def _add(read: Mapping[str, pa.Array], columns: Columns, lines: np.ndarray, block: Block, *, written: bool) -> None:
    """Add pairs in columns; those that cannot be used are rejected.

    Args:
        read: Columns of the table.
        columns: Maps a field to its column.
        lines: Line of each row.
        block: Receives the pairs.
        written: Whether an empty target means none, and one that looks like JSON is JSON, as in a text table.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    if not len(lines):
        return
    texts = {name: _text(read[columns[name]]) for name in ("image", "text") if name in columns}
    nothing = pa.nulls(len(lines), pa.string())
    image, text = texts.get("image", nothing), texts.get("text", nothing)
    if written and any(pc.any(pc.starts_with(text, mark)).as_py() for mark in LISTS):
        raise SeveralTextsError
    target, broken, unfit = nothing, dict[int, str](), dict[int, str]()
    if "target" in columns:
        target, broken, unfit = _targets(read[columns["target"]], written=written)
    look = pc.and_(pc.is_null(image), pc.is_null(text)).to_numpy(zero_copy_only=False)
    for column in (image, text):
        if column.null_count < len(column):
            look = look | doubtful(column)
    sides = ((row, {"image": image[row].as_py(), "text": text[row].as_py()}) for row in np.flatnonzero(look).tolist())
    wrong = unfit | {row: problem for row, pair in sides if (problem := problem_in(pair))} | broken
    block.rejected += [(int(lines[row]), wrong[row]) for row in sorted(wrong)]
    other = any(name != field for field, name in columns.items())
    taken = {*columns.values(), *(FIELDS if other else ())}
    extras = json_objects({name: column for name, column in read.items() if name not in taken}, len(lines))
    pairs = [image, text, target, extras]
    if wrong:
        left = np.setdiff1d(np.arange(len(lines)), sorted(wrong))
        pairs, lines = [column.take(pa.array(left)) for column in pairs], lines[left]
    if len(lines):
        block.add(*pairs, lines=lines)


def _text(column: pa.Array) -> pa.StringArray:
    import pyarrow as pa

    return column.cast(pa.string())


def _targets(column: pa.Array, *, written: bool) -> tuple[pa.Array, dict[int, str], dict[int, str]]:
    """Return the JSON of targets (null if missing), and by row the problems of those that are no JSON or no target."""
    import pyarrow as pa

    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    values: list[str | None] = []
    broken, unfit = dict[int, str](), dict[int, str]()
    for code, value in enumerate(coded.dictionary.to_pylist()):
        given: Any = value
        if written and not value:
            given = None
        elif written and value.lstrip()[:1] in ("[", "{"):
            given, problem = json_value(value.encode())
            if problem:
                broken[code] = f"field 'target': {problem}"
        if code not in broken and (problem := problem_in({"image": "i", "target": given})):
            unfit[code] = problem
        fits = code not in broken and code not in unfit and given is not None
        values.append(json.dumps(given, ensure_ascii=False) if fits else None)
    made = pa.array([*values, None], pa.large_string()).take(pa.array(codes % (len(values) + 1)))
    rows = [np.flatnonzero(np.isin(codes, list(problems))).tolist() for problems in (broken, unfit)]
    return made, {row: broken[int(codes[row])] for row in rows[0]}, {row: unfit[int(codes[row])] for row in rows[1]}
