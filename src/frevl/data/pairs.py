"""Pairs files: read, check, split by image.

A pair is an image id, a text and maybe a target. One JSON object a line (also Parquet and CSV with the same
columns): ``{"image": id, "text": "a sentence or question", "target": ...}``. No target: a positive image-text
pair. A string: a class. A list of strings: several right answers. An object ``{answer: weight}``: soft target.
Other keys are kept and can slice results.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frevl.errors import PairsError
from frevl.rejects import Reject, rejects_sentence

__all__ = ["Pairs", "Target", "problem_of", "read_pairs", "split_by_image"]

Target = str | list[str] | dict[str, float]

_FIELDS = ("image", "text", "target")
_LONGEST_LINE = 1 << 22  # bytes; a pair is a sentence
_HALF_PAIR = "expected text, found half of a surrogate pair"


@dataclass(frozen=True)
class Pairs:
    """Pairs in columns; the same position in every column is one pair.

    Attributes:
        images: Image ids.
        texts: Sentences or questions, exactly as they stand in the file.
        targets: One target a pair, or None.
        extras: Every other key of the pair.
        places: ``file:line`` of the pair (``file:row`` counted from 1 for Parquet), the file as it was given.
        rejected: Lines that could not be read, with their reasons.
    """

    images: list[str]
    texts: list[str]
    targets: list[Target | None]
    extras: list[dict[str, Any]]
    places: list[str]
    rejected: tuple[Reject, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.images)

    @property
    def clusters(self) -> list[str]:
        """What stays together when pairs are split or resampled: the key ``cluster`` if there is one, or the image."""
        return [str(extra.get("cluster", image)) for image, extra in zip(self.images, self.extras, strict=True)]

    def select(self, rows: Sequence[int] | np.ndarray) -> Pairs:
        """Return the pairs at these positions, in this order, without the rejects."""
        return Pairs(
            images=[self.images[i] for i in rows],
            texts=[self.texts[i] for i in rows],
            targets=[self.targets[i] for i in rows],
            extras=[self.extras[i] for i in rows],
            places=[self.places[i] for i in rows],
        )

    def row(self, position: int) -> dict[str, Any]:
        """Return one pair as the object that stood in the file."""
        row: dict[str, Any] = {"image": self.images[position], "text": self.texts[position]}
        if self.targets[position] is not None:
            row["target"] = self.targets[position]
        return {**row, **self.extras[position]}


def read_pairs(path: str | Path) -> Pairs:
    """Read a pairs file.

    Lines that cannot be used (malformed, without image or text, with a target of another kind) are kept
    aside in ``rejected`` with file, line and field.

    Args:
        path: A ``.jsonl`` (or ``.json`` with one object a line), ``.parquet`` or ``.csv`` file.

    Returns:
        The pairs in file order.

    Raises:
        PairsError: The file is missing, empty, of another kind, or not one line of it can be used.
    """
    path = Path(path)
    images: list[str] = []
    texts: list[str] = []
    targets: list[Target | None] = []
    extras: list[dict[str, Any]] = []
    places: list[str] = []
    rejected: list[Reject] = []
    for line, row, problem in _rows(path):
        place = f"{path}:{line}"
        problem = problem or _problem(row)
        if problem:
            rejected.append(Reject("pair", place, problem))
            continue
        images.append(row["image"])
        texts.append(row["text"])
        targets.append(_target(row.get("target")))
        extras.append({key: value for key, value in row.items() if key not in _FIELDS})
        places.append(place)
    if not images:
        detail = rejects_sentence(rejected) or "It is empty."
        raise PairsError(
            f"{path}: no usable pair found; expected one object a line such as "
            f'{{"image": "a.jpg", "text": "a dog"}}. {detail}'
        )
    return Pairs(images, texts, targets, extras, places, tuple(rejected))


def problem_of(row: object) -> str:
    """Say why a pairs file cannot hold a row, naming the field; an empty string if it can.

    Args:
        row: An object with ``image``, ``text`` and maybe ``target``, as it would stand in a line.
    """
    return _problem(row) or (_HALF_PAIR if _has_half_pair(row) else "")


def split_by_image(pairs: Pairs, share: float, *, seed: int = 0) -> tuple[Pairs, Pairs]:
    """Split pairs so that no image (no ``cluster``, where pairs name one) stands on both sides.

    Args:
        pairs: At least two different images.
        share: Share of the images, in (0, 1), that goes to the second part; at least one image goes there.
        seed: Chooses the images.

    Returns:
        The larger and the smaller part; the order of the file is kept.

    Raises:
        PairsError: There are fewer than two different images.
    """
    clusters = pairs.clusters
    unique = sorted(set(clusters))
    if len(unique) < 2:
        raise PairsError(
            f"{pairs.places[0].rpartition(':')[0]}: expected at least two different images to set some aside "
            f"for development, found {len(unique)}; give more pairs, or a development file with --dev"
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    held = {unique[i] for i in order[: min(max(1, round(share * len(unique))), len(unique) - 1)]}
    kept_rows = [i for i, cluster in enumerate(clusters) if cluster not in held]
    held_rows = [i for i, cluster in enumerate(clusters) if cluster in held]
    return pairs.select(kept_rows), pairs.select(held_rows)


def _rows(path: Path) -> Iterator[tuple[int, Any, str]]:
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
        return row, _HALF_PAIR if b"\\u" in raw and _has_half_pair(row) else ""
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
        if not value.isascii() and _has_half_pair(value):
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
                yield number, _plain_row(row), _HALF_PAIR if any(map(_has_half_pair, strings)) else ""
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
    extras = {name: _as_json(value) for name, value in row.items() if name not in _FIELDS}
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


def _has_half_pair(value: Any) -> bool:
    """Whether a text, or a text inside, holds half of a surrogate pair."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, dict):
        return any(_has_half_pair(entry) for item in value.items() for entry in item)
    return isinstance(value, list) and any(_has_half_pair(entry) for entry in value)


def _problem(row: object) -> str:
    """Return what is wrong with a row, naming the field, or an empty string."""
    if not isinstance(row, dict):
        return f"expected one JSON object, found {type(row).__name__}"
    for name in ("image", "text"):
        if name not in row or row[name] is None:
            return f"field '{name}': expected a string, found nothing"
        if not isinstance(row[name], str):
            return f"field '{name}': expected a string, found {type(row[name]).__name__} {row[name]!r:.40}"
        if not row[name].strip():
            return f"field '{name}': expected a string with content, found only blanks"
    return _target_problem(row.get("target"))


def _target_problem(target: object) -> str:
    expected = "field 'target': expected a class, a list of answers or an object of answer weights, found "
    if target is None or isinstance(target, bool | int):
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


def _target(target: Any) -> Target | None:
    """Bring a valid target to its type; numbers and truth values are classes by their JSON spelling."""
    if isinstance(target, bool | int):
        return json.dumps(target)
    if isinstance(target, dict):
        return {answer: float(weight) for answer, weight in target.items()}
    return target  # type: ignore[no-any-return]
