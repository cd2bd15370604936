"""Tables that are stored in several files: a folder of Parquet, Arrow or Feather files, or a pattern of their names.

Large data sets come like this: from img2dataset, Spark, and the hub and ``save_to_disk`` of Hugging Face's datasets.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import re
from collections.abc import Callable
from pathlib import Path

from frevl.errors import PairsError

__all__ = ["ARROW", "is_in_parts", "parts_of", "place_of"]

ARROW = (".parquet", ".arrow", ".feather")
"""Endings of the files of a table that may have several."""

_NUMBER = re.compile(r"\d+")
_ONE_OF_MANY = re.compile(r"-(\d+)-of-(\d+)\.\w+$")
_SHOWN = 5


def is_in_parts(path: Path) -> bool:
    """Return whether a path is a folder, or a pattern such as ``data/train-*.parquet``, and not a file."""
    return path.is_dir() or (path.name != glob.escape(path.name) and not path.exists())


def parts_of(path: Path) -> list[Path]:
    """Return the files of a table in parts, in the order of their names, with numbers compared as numbers.

    Names that begin with a dot or an underscore, and other endings, are left out.

    Args:
        path: A folder, or a pattern of names in one.

    Raises:
        PairsError: There is no such file, or the files of a folder are not one table: names that differ in more than
            numbers may be other splits, and ``-00000-of-00003`` says that there are more.
    """
    names = list(path.iterdir()) if path.is_dir() else list(path.parent.glob(path.name))
    seen = [one for one in names if not one.name.startswith((".", "_"))]
    found = sorted((one for one in seen if one.suffix.lower() in ARROW and one.is_file()), key=_in_order)
    if not found:
        raise PairsError(f"{path}: {_none_found(path, seen)}")
    if path.is_dir():
        _refuse_several(path, found)
        _refuse_incomplete(path, found)
    return found


def place_of(path: Path) -> Callable[[int], str]:
    """Return what names the place of a line or row of a pairs file: ``file:line``, and of parts ``folder/file:row``."""
    if not is_in_parts(path):
        return lambda line: f"{path}:{line}"
    parts = parts_of(path)
    ends = list(itertools.accumulate(map(_rows_in, parts)))

    def place(row: int) -> str:
        number = min(bisect.bisect_left(ends, row), len(parts) - 1)
        return f"{parts[number]}:{row - (ends[number - 1] if number else 0)}"

    return place


def _rows_in(part: Path) -> int:
    """Return the number of rows in a file; 0 if it is damaged, which is reported when it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if part.suffix.lower() == ".parquet":
            with pq.ParquetFile(part, memory_map=True) as file:
                return int(file.metadata.num_rows)
        with pa.memory_map(str(part)) as mapped:
            try:
                table = pa.ipc.open_file(mapped)
                return sum(table.get_batch(number).num_rows for number in range(table.num_record_batches))
            except pa.ArrowInvalid:
                mapped.seek(0)
                return sum(batch.num_rows for batch in pa.ipc.open_stream(mapped))
    except (pa.ArrowException, UnicodeDecodeError, OSError):
        return 0


def _in_order(path: Path) -> tuple[str, list[int], str]:
    return _NUMBER.sub("#", path.name), [int(one) for one in _NUMBER.findall(path.name)], path.name


def _none_found(path: Path, seen: list[Path]) -> str:
    """Say what else there is instead of a table."""
    expected = f"expected a table in files ending in {', '.join(ARROW)}, found "
    folders = sorted(one for one in seen if one.is_dir() and any(each.suffix in ARROW for each in one.iterdir()))
    if folders:
        return f"{expected}only folders of them; give one, such as '{folders[0]}'" + _among(folders)
    lines = sorted(one for one in seen if one.suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv"))
    if lines:
        return f"{expected}{lines[0].name}{_among(lines)}; give one file of pairs, such as their lines together"
    if not path.is_dir():
        return f"{expected}no file of such a name; check the path"
    return (
        f"{expected}'{path.name}', a folder without any; list its images in a file, a line such as "
        '{"image": "dogs/1.jpg", "text": "a dog"} each, or {"image": "dogs/1.jpg", "target": "dog"} for classes'
    )


def _among(paths: list[Path]) -> str:
    return f" (of {len(paths):,})" if len(paths) > 1 else ""


def _refuse_several(folder: Path, found: list[Path]) -> None:
    patterns = {_NUMBER.sub("*", one.name) for one in found}
    if len(patterns) == 1:
        return
    shown = ", ".join(sorted(patterns)[:_SHOWN]) + (", ..." if len(patterns) > _SHOWN else "")
    raise PairsError(
        f"{folder}: expected the files of one table, whose names differ only in numbers, found {shown}; these may be "
        f"different splits: give one file, or a pattern in quotation marks, such as '{folder / min(patterns)}'"
    )


def _refuse_incomplete(folder: Path, found: list[Path]) -> None:
    numbers = [_ONE_OF_MANY.search(one.name) for one in found]
    if not all(numbers):
        return
    total = max(int(one[2]) for one in numbers if one)
    missing = sorted({*range(total)} - {int(one[1]) for one in numbers if one})
    if missing and total <= 1_000_000:
        raise PairsError(
            f"{folder}: expected all {total:,} files of the table, as their names say, found {len(found):,}; number "
            f"{missing[0]} is missing. Complete the folder, or choose files by a pattern in quotation marks, such as "
            f"'{folder / _NUMBER.sub('*', found[0].name)}'"
        )
