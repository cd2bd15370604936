"""Rows of a pairs file, whatever its format (JSON lines, CSV, Parquet), with their line and what is wrong with them."""

from __future__ import annotations

import codecs
import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from frevl.errors import PairsError

__all__ = ["FIELDS", "HALF_PAIR", "has_half_pair", "rows_of"]

FIELDS = ("image", "text", "target")
HALF_PAIR = "expected text, found half of a surrogate pair"
_LONGEST_LINE = 1 << 22  # bytes; a pair is a sentence


def rows_of(path: Path) -> Iterator[tuple[int, Any, str]]:
    """Yield ``(line, row, problem)``; a problem says why the line is not an object."""
    if not path.exists():
        raise PairsError(f"{path}: there is no such pairs file; check the path")
    readers = {".jsonl": _jsonl_rows, ".json": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PairsError(
            f"{path}: expected a pairs file ending in {', '.join(readers)}; found '{path.suffix or path.name}'"
        )
    try:
        yield from reader(path)
    except OSError as error:
        raise PairsError(f"{path}: the file cannot be read ({error.strerror or error})") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any, str]]:
    with path.open("rb") as lines:
        number = 0
        while raw := lines.readline(_LONGEST_LINE + 1):
            number += 1
            if len(raw) > _LONGEST_LINE:
                while raw and not raw.endswith(b"\n"):  # a line without end must not fill memory
                    raw = lines.readline(_LONGEST_LINE)
                yield number, None, f"expected at most {_LONGEST_LINE:,} bytes a line, found more"
            elif raw.strip():
                # A byte order mark at the start of the file is not part of the data.
                yield number, *_json_row(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw)


def _json_row(raw: bytes) -> tuple[Any, str]:
    """Read one JSON value; return it, and what is wrong with it."""
    try:
        row = _STRICT_JSON.decode(raw.decode().strip())
        # Only an escape can bring half of a surrogate pair, which no file and no network takes.
        return row, HALF_PAIR if b"\\u" in raw and has_half_pair(row) else ""
    except UnicodeDecodeError as error:
        return None, f"expected UTF-8 text, found byte 0x{raw[error.start]:02x}"
    except json.JSONDecodeError as error:
        return None, f"expected JSON, found malformed JSON at column {error.colno} ({error.msg})"
    except RecursionError:
        return None, "expected JSON, found one that is nested too deep"
    except ValueError as error:  # from the two functions below, or from Python: a number of thousands of digits
        return None, f"expected JSON, found malformed JSON: {str(error).partition(';')[0]}"


def _once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(entries)
    if len(row) < len(entries):
        names = [name for name, _ in entries]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r:.40} stands twice")
    return row


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# Python would take NaN and the last of several equal keys without a word.
_STRICT_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


def _csv_rows(path: Path) -> Iterator[tuple[int, Any, str]]:
    # Bytes that are not UTF-8 become surrogates, which nothing else in a file can be.
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise PairsError(f"{path}, line 1: expected a header, found malformed CSV ({error})") from error
        _check_columns(f"{path}, line 1", header)
        while True:
            first = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                upto = f" (from line {first})" if reader.line_num > first else ""
                yield reader.line_num, None, f"malformed CSV{upto}: {error}"
                continue
            if not values:
                continue
            if len(values) != len(header):
                yield reader.line_num, None, f"expected {len(header)} columns, found {len(values)}"
            else:
                yield reader.line_num, *_csv_row(dict(zip(header, values, strict=True)))


def _csv_row(row: dict[str, Any]) -> tuple[Any, str]:
    for value in row.values():
        if not value.isascii() and has_half_pair(value):
            byte = next(ord(letter) for letter in value if "\ud800" <= letter <= "\udfff") & 0xFF
            return None, f"expected UTF-8 text, found byte 0x{byte:02x}"
    target = row.get("target", "")
    if not target:
        row.pop("target", None)
    elif target.lstrip()[:1] in ("[", "{"):
        row["target"], problem = _json_row(target.encode())
        return row, f"field 'target': {problem}" if problem else ""
    return row, ""


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        _check_columns(str(path), file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=65_536):
            for row in batch.to_pylist():
                number += 1
                strings = [value for value in row.values() if isinstance(value, str) and not value.isascii()]
                yield number, _plain_row(row), HALF_PAIR if any(map(has_half_pair, strings)) else ""
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PairsError(
            f"{path}, after row {number:,}: expected a Parquet file that can be read ({reason})"
        ) from error


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Bring the columns of a Parquet row to what the same pair has in JSON."""
    target = row.get("target")
    if isinstance(target, list) and target and isinstance(target[0], tuple):  # a map column
        target = dict(target)
    if isinstance(target, dict):  # a struct column has every key in every row
        target = {key: weight for key, weight in target.items() if weight is not None}
    elif isinstance(
        target, float
    ):  # whole numbers beside gaps become floats, and gaps NaN, on their way through pandas
        target = int(target) if target.is_integer() else None if math.isnan(target) else target
    extras = {name: _as_json(value) for name, value in row.items() if name not in FIELDS}
    return {"image": row["image"], "text": row["text"], "target": target, **extras}


def _as_json(value: Any) -> Any:
    """Turn what JSON does not know (times, decimals, bytes) into text."""
    if isinstance(value, dict):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _check_columns(place: str, names: Sequence[str]) -> None:
    missing = [name for name in ("image", "text") if name not in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if missing or twice:
        expected = (
            f"each column once, found '{twice[0]}' twice in"
            if twice
            else "the columns 'image' and 'text' (and 'target'), found"
        )
        raise PairsError(f"{place}: expected {expected} {list(names)}")


def has_half_pair(value: Any) -> bool:
    """Whether a text, or a text inside, holds half of a surrogate pair."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, dict):
        return any(has_half_pair(entry) for item in value.items() for entry in item)
    return isinstance(value, list) and any(has_half_pair(entry) for entry in value)
