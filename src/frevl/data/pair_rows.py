"""Rows of a pairs file, whatever its format, with the line of each and what is wrong with it."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from frevl.data.columns import FIELDS, Columns, choose_columns, renaming_note
from frevl.data.json_rows import json_rows
from frevl.data.table_rows import table_rows
from frevl.errors import PairsError

__all__ = ["ENDINGS", "in_fields", "rows_of"]

ENDINGS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".tab", ".txt", ".parquet", ".arrow", ".feather")
_ARROW = (".parquet", ".arrow", ".feather")
_TABLES = (".csv", ".tsv", ".tab")
_REMEDIES = {
    ".xlsx": "save the sheet as CSV (UTF-8)", ".xls": "save the sheet as CSV (UTF-8)",
    ".ods": "save the sheet as CSV (UTF-8)", ".gz": "unpack it", ".zip": "unpack it", ".zst": "unpack it",
    ".tar": "import its embeddings with frevl import, or write a pairs file from it",
}  # fmt: skip

Row = tuple[int, Any, str]


def rows_of(path: Path, given: Mapping[str, str], notes: list[str]) -> Iterator[Row]:
    """Yield ``(line, row, problem)`` with the keys ``image``, ``text``, ``target`` and all others.

    Text files are told apart by what they hold, not by their ending.

    Args:
        path: The file.
        given: Columns that the user named (`frevl.data.columns.columns_of`).
        notes: Gets sentences on renamed columns and on what was not read.

    Raises:
        PairsError: The file is missing, of another kind, or does not say what the image and the text are.
    """
    if not path.exists():
        raise PairsError(f"{path}: there is no such pairs file; check the path")
    suffix = path.suffix.lower()
    if suffix not in ENDINGS:
        remedy = f"; {_REMEDIES[suffix]}" if suffix in _REMEDIES else ""
        raise PairsError(
            f"{path}: expected a pairs file ending in {', '.join(ENDINGS)}; found '{path.suffix or path.name}'{remedy}"
        )
    try:
        if suffix in _ARROW:
            from frevl.data.arrow_rows import arrow_rows, open_arrow

            yield from in_fields(arrow_rows(open_arrow(path), given, notes), notes)
            return
        with path.open("rb") as file:
            stream = _in_utf8(path, file)
            first = stream.peek(1 << 16).lstrip()[:1]  # type: ignore[attr-defined]
            if suffix in _TABLES or (suffix == ".txt" and first not in (b"{", b"[")):
                yield from in_fields(table_rows(path, stream, given), notes)
            else:
                yield from in_fields(_with_columns(path, json_rows(path, stream), given), notes)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise PairsError(f"{path}: the file cannot be read ({reason})") from error


def in_fields(rows: Iterator[tuple[Columns, Row]], notes: list[str]) -> Iterator[Row]:
    """Give the fields their own names, and say once what they were named."""
    said = False
    for columns, (line, row, problem) in rows:
        if not said:
            notes += renaming_note(columns)
            said = True
        if isinstance(row, dict) and any(name != field for field, name in columns.items()):
            fields = {field: row[name] for field, name in columns.items() if name in row}
            taken = {*columns.values(), *FIELDS}
            row = {**fields, **{name: value for name, value in row.items() if name not in taken}}
        yield line, row, problem


def _with_columns(path: Path, rows: Iterator[Row], given: Mapping[str, str]) -> Iterator[tuple[Columns, Row]]:
    """Decide by the first object which of its keys are the fields."""
    columns: Columns | None = None
    for line, row, problem in rows:
        if columns is None and isinstance(row, dict) and not problem:
            columns = choose_columns(f"{path}:{line}", row, given, required=())
            columns = {field: given.get(field) or columns.get(field) or field for field in FIELDS}
        yield columns or {}, (line, row, problem)


def _in_utf8(path: Path, file: BinaryIO) -> BinaryIO:
    """Return the file behind its byte order mark; one in UTF-16 or UTF-32 as UTF-8."""
    head = file.read(4)
    file.seek(0)
    if head.startswith(codecs.BOM_UTF8):
        file.seek(len(codecs.BOM_UTF8))
        return file
    wide = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
            codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
    encoding = next((name for mark, name in wide.items() if head.startswith(mark)), None)
    if encoding is None and b"\0" in head[:4]:
        encoding = "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    if encoding is None:
        return file
    try:
        return io.BufferedReader(io.BytesIO(file.read().decode(encoding).encode()))
    except UnicodeDecodeError as error:
        raise PairsError(f"{path}: expected text in UTF-8 or UTF-16, found neither ({error.reason})") from error
