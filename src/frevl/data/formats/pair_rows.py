"""Read rows of a pairs file in any format, each with its line and any problem."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from frevl.data.columns import FIELDS, REQUIRED, Columns, choose_columns, renaming_note
from frevl.data.formats.csv_rows import table_rows
from frevl.data.formats.json_rows import json_rows
from frevl.data.formats.table_parts import ARROW, is_in_parts
from frevl.data.names import has_value, value_name
from frevl.errors import PairsError, Reject, counted

__all__ = [
    "ARROW",
    "ENDINGS",
    "JSON_ENDINGS",
    "LEFT_ALONE",
    "NO_VALUE",
    "TABLES",
    "WITH_ARTICLE",
    "as_target",
    "form_of",
    "group_name",
    "has_several_texts",
    "in_fields",
    "is_missing",
    "is_of_several",
    "lacking_side",
    "nothing_found",
    "one_text_each",
    "problem_in",
    "rows_of",
    "with_the_same_sides",
    "without_gaps",
]

ENDINGS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".tab", ".txt", ".parquet", ".arrow", ".feather")
JSON_ENDINGS = (".jsonl", ".json", ".ndjson", ".txt")
TABLES = (".csv", ".tsv", ".tab")
_REMEDIES = {
    ".xlsx": "save the sheet as CSV (UTF-8)", ".xls": "save the sheet as CSV (UTF-8)",
    ".ods": "save the sheet as CSV (UTF-8)", ".gz": "unpack it", ".zip": "unpack it", ".zst": "unpack it",
    ".tar": "import its embeddings with frevl import, or write a pairs file from it",
}  # fmt: skip

Row = tuple[int, Any, str]
_OF_SEVERAL = re.compile(r":\d+ \(text \d+\)$")
_WHOLE_FLOAT = re.compile(r"-?\d+\.0")


def rows_of(path: Path, given: Mapping[str, str], notes: list[str]) -> Iterator[Row]:
    """Yield ``(line, row, problem)`` with the keys ``image``, ``text``, ``target`` and all others.

    Text formats are recognised by content, not by suffix.

    Args:
        path: The file, or a table in parts (`frevl.data.formats.table_parts`).
        given: Columns that the user named (`frevl.data.columns.columns_of`).
        notes: Receives sentences on renamed columns and on what was not read.

    Raises:
        PairsError: The file is missing or of another kind, or the columns of image and text cannot be determined.
    """
    in_parts = not path.is_file() and is_in_parts(path)
    if not in_parts and not path.exists():
        raise PairsError(f"{path}: no such pairs file; check the path")
    suffix = path.suffix.lower()
    if suffix not in ENDINGS and not in_parts:
        remedy = f"; {_REMEDIES[suffix]}" if suffix in _REMEDIES else ""
        raise PairsError(
            f"{path}: expected a pairs file ending in {', '.join(ENDINGS)}; found '{path.suffix or path.name}'{remedy}"
        )
    try:
        if suffix in ARROW or in_parts:
            from frevl.data.formats.arrow_rows import arrow_rows
            from frevl.data.formats.arrow_tables import open_arrow

            yield from in_fields(arrow_rows(open_arrow(path), given, notes), notes)
            return
        with path.open("rb") as file:
            stream = _in_utf8(path, file)
            first = stream.peek(1 << 16).lstrip()[:1]  # type: ignore[attr-defined]
            if suffix in TABLES or (suffix == ".txt" and first not in (b"{", b"[")):
                yield from in_fields(table_rows(path, stream, given), notes)
            else:
                yield from in_fields(_with_columns(path, json_rows(path, stream), given), notes)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise PairsError(f"{path}: the file cannot be read ({reason})") from error


def form_of(source: object) -> str:
    """Return the form of a pair in this source, a file or pairs in memory, to be followed by an example in JSON."""
    if not isinstance(source, str | PathLike):
        return "pairs such as"
    path = Path(source)
    table = path.suffix.lower() in (*TABLES, *ARROW) or (not path.is_file() and is_in_parts(path))
    return "one row per pair, with columns as in" if table else "one object per line such as"


def in_fields(rows: Iterator[tuple[Columns, Row]], notes: list[str]) -> Iterator[Row]:
    """Rename columns to the field names, and note once which were renamed."""
    noted = False
    for columns, (line, row, problem) in rows:
        if not noted:
            notes += renaming_note(columns)
            noted = True
        if isinstance(row, dict) and any(name != field for field, name in columns.items()):
            fields = {field: row[name] for field, name in columns.items() if name in row}
            taken = {*columns.values(), *FIELDS}
            row = {**fields, **{name: value for name, value in row.items() if name not in taken}}
        yield line, row, problem


def one_text_each(
    rows: Iterator[Row], place_of: Callable[[int], str], notes: list[str]
) -> Iterator[tuple[str, Any, str]]:
    """Yield ``(place, row, problem)``; a row with a list of texts is yielded once with each of them.

    Hugging Face's versions of Flickr30k and COCO store the five captions of an image that way.

    Args:
        rows: Rows with the keys of the fields.
        place_of: Returns the place of a line. Those of a list also name the number of the text: places are unique.
        notes: Receives a sentence on how many lists there were.
    """
    lists = texts = 0
    for line, row, problem in rows:
        if problem or not has_several_texts(row):
            yield place_of(line), row, problem
            continue
        lists, texts = lists + 1, texts + len(row["text"])
        for number, text in enumerate(row["text"], start=1):
            yield f"{place_of(line)} (text {number})", {**row, "text": text}, ""
    if lists:
        notes.append(
            f"The text of {counted(lists, 'line')} is a list: each of the {counted(texts, 'entry', 'entries')} is a "
            "pair of its own."
        )


def is_of_several(place: str) -> bool:
    """Return whether a place is that of one text of several in a line."""
    return _OF_SEVERAL.search(place) is not None


def has_several_texts(row: Any) -> bool:
    """Return whether the text of a row is a list of texts."""
    texts = row.get("text") if isinstance(row, dict) else None
    return isinstance(texts, list) and bool(texts) and all(isinstance(text, str) for text in texts)


def _with_columns(path: Path, rows: Iterator[Row], given: Mapping[str, str]) -> Iterator[tuple[Columns, Row]]:
    """Determine from the first object which of its keys are the fields."""
    columns: Columns | None = None
    for line, row, problem in rows:
        if columns is None and isinstance(row, dict) and not problem:
            columns = choose_columns(f"{path}:{line}", row, given, required=())
            columns = {field: given.get(field) or columns.get(field) or field for field in FIELDS}
        yield columns or {}, (line, row, problem)


def _in_utf8(path: Path, file: BinaryIO) -> BinaryIO:
    """Return the file after its byte order mark, with UTF-16 and UTF-32 converted to UTF-8."""
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


# ---- problems of a row

# How spreadsheets, R and Python write a missing value. Lower-case "none" and "na" are excluded, because people give
# them as answers.
NO_VALUE = frozenset(
    ("nan", "NaN", "NAN", "-nan", "null", "Null", "NULL", "None", "N/A", "n/a", "#N/A", "NA", "<NA>", "NaT")
)
WITH_ARTICLE = {"image": "an image", "text": "a text"}
LEFT_ALONE = {"image": "texts", "text": "images"}  # what is left if this side is missing


def problem_in(row: object) -> str:
    """Return what is wrong with a row, naming the field, or an empty string; one side may be missing."""
    if not isinstance(row, dict):
        return f"expected one JSON object, found {type(row).__name__}"
    given = [side for side in REQUIRED if row.get(side) is not None]
    if not given:
        return "field 'image': expected a string, found nothing"
    for name in given:
        if not isinstance(row[name], str):
            return f"field '{name}': expected a string, found {type(row[name]).__name__} {row[name]!r:.40}"
        if not row[name].strip():
            return f"field '{name}': expected text, found only blanks"
    if "text" in given and is_missing(row["text"]):
        return f"field 'text': expected text, found '{row['text']}', which marks a missing value"
    return _target_problem(row.get("target"))


def lacking_side(row: Mapping[str, Any]) -> str:
    """Return the side that a row lacks, or an empty string."""
    return next((side for side in REQUIRED if row.get(side) is None), "")


def nothing_found(side: str) -> str:
    """Return the problem that a row lacks a side."""
    return f"field '{side}': expected a string, found nothing"


def with_the_same_sides(
    rows: list[tuple[int, str, dict[str, Any]]], rejected: list[tuple[int, Reject]]
) -> list[tuple[int, str, dict[str, Any]]]:
    """Keep rows that all have an image and a text, or all lack the same one; reject incomplete rows.

    Raises:
        PairsError: Rows with a target have different sides, so a missing text may have been forgotten or never
            intended.
    """
    lacking = {lacking_side(row) for _, _, row in rows}
    if len(lacking) < 2:
        return rows
    kept = []
    for number, place, row in rows:
        side = lacking_side(row)
        if side and "" in lacking and is_missing(row.get("target")):
            rejected.append((number, Reject("pair", place, nothing_found(side))))
        else:
            kept.append((number, place, row))
    first, of_first = kept[0][1], lacking_side(kept[0][2])
    for _, place, row in kept:
        if lacking_side(row) != of_first:
            side = lacking_side(row) or of_first
            without, having = (place, first) if lacking_side(row) == side else (first, place)
            a = WITH_ARTICLE[side]
            raise PairsError(
                f"{without}, field '{side}': expected {a} as in {having}, found nothing; a file must have {a} in "
                f"every pair or in none (then only {LEFT_ALONE[side]} are classified). Complete these pairs, or "
                "move them to a separate file"
            )
    return kept


def _target_problem(target: object) -> str:
    expected = "field 'target': expected a class, a list of answers or an object of answer weights, found "
    if target is None or isinstance(target, bool | int) or (isinstance(target, float) and target.is_integer()):
        return ""
    if isinstance(target, str):
        return "" if target.strip() else expected + "only blanks"
    if isinstance(target, list):
        if target and all(isinstance(answer, str) and answer.strip() for answer in target):
            return ""
        return expected + ("an empty list" if not target else "a list with an entry that is not a text")
    if isinstance(target, dict):
        if not target:
            return expected + "an empty object"
        for answer, weight in target.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
                return f"field 'target': expected weights from 0 to 1, found {weight!r:.40} for {answer!r:.40}"
        return ""
    return expected + f"{type(target).__name__} {target!r:.40}"


def as_target(target: Any) -> Any:
    """Convert a valid target to its type; numbers and booleans become classes by their JSON spelling."""
    if is_missing(target):
        return None
    if isinstance(target, bool | int):
        return json.dumps(target)
    if isinstance(target, float):  # an integer that has been through a float column
        return str(int(target))
    if isinstance(target, dict):
        return {answer: float(weight) for answer, weight in target.items()}
    return target


def is_missing(value: object) -> bool:
    """Return whether a value stands for a missing one."""
    return value is None or (isinstance(value, str) and (not value.strip() or value.strip() in NO_VALUE))


def group_name(value: object) -> str | None:
    """Return the name of the group that a value of ``cluster``, or of another key, puts a pair in; None if missing.

    All pairs without a value would otherwise be one large group, and 1 and "1" two.
    """
    if is_missing(value) or value != value:  # NaN marks an empty cell
        return None
    return value_name(value) if has_value(value) else str(value)


def without_gaps(targets: list[Any]) -> list[Any]:
    """Turn ``1.0`` back into ``1`` if missing values turned a table's integer column into floats."""
    given = [target for target in targets if target is not None]
    written = all(isinstance(target, str) and _WHOLE_FLOAT.fullmatch(target) for target in given)
    if not given or len(given) == len(targets) or not written:
        return targets
    return [target.removesuffix(".0") if isinstance(target, str) else target for target in targets]
