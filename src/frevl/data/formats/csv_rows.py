"""Read rows from text tables: CSV, tab-separated files, and spreadsheet variants."""

from __future__ import annotations

import ast
import csv
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from frevl.data.columns import Columns, choose_columns
from frevl.data.formats.json_rows import has_half_pair, json_value
from frevl.errors import PairsError

__all__ = ["LISTS", "records", "table_header", "table_rows"]

_DELIMITERS = (",", "\t", ";", "|")
LISTS = ('["', "['")
"""How a cell begins in which a program has printed a list of texts."""

Row = tuple[int, Any, str]


def table_rows(path: Path, stream: BinaryIO, given: Mapping[str, str]) -> Iterator[tuple[Columns, Row]]:
    """Yield the columns of the table with every ``(line, row, problem)``.

    The delimiter is the one of ``, ; |`` and tab for which the first line contains the columns.

    Args:
        path: For messages.
        stream: The file in UTF-8, after any byte order mark.
        given: Columns that the user named.

    Raises:
        PairsError: The first line does not name the columns.
    """
    begin = stream.tell()
    header = stream.readline(1 << 20).decode("utf-8", "surrogateescape")
    stream.seek(begin)
    delimiter, columns = table_header(f"{path}, line 1", path.suffix.lower(), header, given)
    # Bytes that are not UTF-8 become surrogates, which cannot otherwise occur in a file.
    lines = io.TextIOWrapper(stream, encoding="utf-8", newline="", errors="surrogateescape")
    try:
        yield from ((columns, row) for row in _rows(path, lines, delimiter, columns))
    finally:
        lines.detach()  # the caller closes the file


def _rows(path: Path, lines: Iterable[str], delimiter: str, columns: Columns) -> Iterator[Row]:
    lines = iter(lines)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise PairsError(f"{path}, line 1: expected a header, found malformed CSV ({error})") from error
    yield from records(lines, delimiter, names, columns, reader.line_num)


def records(lines: Iterable[str], delimiter: str, names: list[str], columns: Columns, before: int) -> Iterator[Row]:
    """Yield ``(line, row, problem)`` for every record after the header.

    Args:
        lines: The remaining lines, with their line endings.
        delimiter: Delimiter between columns.
        names: Names of the columns.
        columns: Columns of the fields.
        before: Number of lines before these.
    """
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    while True:
        first = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            upto = f" (from line {before + first})" if reader.line_num > first else ""
            yield before + reader.line_num, None, f"malformed CSV{upto}: {error}"
            continue
        if not values:
            continue
        if len(values) != len(names):
            yield before + reader.line_num, None, f"expected {len(names)} columns, found {len(values)}"
        else:
            yield before + reader.line_num, *_table_row(dict(zip(names, values, strict=True)), columns)


def table_header(place: str, suffix: str, header: str, given: Mapping[str, str]) -> tuple[str, Columns]:
    """Find the delimiter that splits the first line into column names, and the column of each field."""
    first = "\t" if suffix in (".tsv", ".tab") else ","
    found: dict[str, list[str]] = {}
    for delimiter in sorted(_DELIMITERS, key=lambda one: one != first):
        try:
            found[delimiter] = next(csv.reader([header], strict=True, delimiter=delimiter), [])
        except csv.Error:
            continue
    fitting = {delimiter: choose_columns(place, names, given, required=()) for delimiter, names in found.items()
               if len(set(names)) == len(names)}  # fmt: skip
    most = max(map(len, fitting.values()), default=0)
    best = [delimiter for delimiter, columns in fitting.items() if len(columns) == most and most]
    if not best:
        best = sorted(found, key=lambda one: -len(found[one])) or [first]
    return best[0], choose_columns(place, found.get(best[0], [header]), given)


def _table_row(row: dict[str, Any], columns: Columns) -> tuple[Any, str]:
    target, text = columns.get("target", "target"), columns.get("text", "text")
    for value in row.values():
        if not value.isascii() and has_half_pair(value):
            byte = next(ord(letter) for letter in value if "\ud800" <= letter <= "\udfff") & 0xFF
            return None, f"expected UTF-8 text, found byte 0x{byte:02x}"
    if row.get(text, "").startswith(LISTS):
        row[text] = _printed_list(row[text]) or row[text]
    written = row.get(target, "")
    if not written:
        row.pop(target, None)
    elif written.lstrip()[:1] in ("[", "{"):
        row[target], problem = json_value(written.encode())
        return row, f"field 'target': {problem}" if problem else ""
    return row, ""


def _printed_list(cell: str) -> list[str]:
    """Return the texts of a list printed as JSON, or by Python or NumPy; nothing for anything else."""
    found, problem = json_value(cell.encode())
    if not problem and isinstance(found, list) and all(isinstance(text, str) for text in found):
        return found
    texts = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(cell).readline):
            if token.type == tokenize.STRING and token.string[0] in "\"'":
                texts.append(ast.literal_eval(token.string))
            elif token.string.strip() not in ("", "[", "]", ","):
                return []
    except (SyntaxError, ValueError, tokenize.TokenError):
        return []
    return [] if any(map(has_half_pair, texts)) else texts
