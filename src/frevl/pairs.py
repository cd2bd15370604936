"""Pairs files: read, check, split by image.

A pair is an image id, a text and maybe a target. One JSON object a line (also Parquet and CSV with the same
columns): ``{"image": id, "text": "a sentence or question", "target": ...}``. No target: a positive image-text
pair. A string: a class. A list of strings: several right answers. An object ``{answer: weight}``: soft target.
Other keys are kept and can slice results.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frevl.errors import PairsError
from frevl.rejects import Reject, rejects_sentence

__all__ = ["Pairs", "Target", "read_pairs", "split_by_image"]

Target = str | list[str] | dict[str, float]

_FIELDS = ("image", "text", "target")


@dataclass(frozen=True)
class Pairs:
    """Pairs in columns; the same position in every column is one pair.

    Attributes:
        images: Image ids.
        texts: Sentences or questions, exactly as they stand in the file.
        targets: One target a pair, or None.
        extras: Every other key of the pair.
        places: ``file:line`` of the pair (``file:row`` counted from 1 for Parquet), for messages.
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
    for place, row, problem in _rows(path):
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


def split_by_image(pairs: Pairs, share: float, *, seed: int = 0) -> tuple[Pairs, Pairs]:
    """Split pairs so that no image stands on both sides.

    Args:
        pairs: At least two different images.
        share: Share of the images, in (0, 1), that goes to the second part; at least one image goes there.
        seed: Chooses the images.

    Returns:
        The larger and the smaller part; the order of the file is kept.

    Raises:
        PairsError: There are fewer than two different images.
    """
    unique = sorted(set(pairs.images))
    if len(unique) < 2:
        raise PairsError(
            f"{pairs.places[0].rpartition(':')[0]}: expected at least two different images to set some aside "
            f"for development, found {len(unique)}; give more pairs, or a development file with --dev"
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    held = {unique[i] for i in order[: min(max(1, round(share * len(unique))), len(unique) - 1)]}
    kept_rows = [i for i, image in enumerate(pairs.images) if image not in held]
    held_rows = [i for i, image in enumerate(pairs.images) if image in held]
    return pairs.select(kept_rows), pairs.select(held_rows)


def _rows(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Yield ``(place, row, problem)``; a problem says why the line is not an object."""
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


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any, str]]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            place = f"{path.name}:{number}"
            if not raw.strip():
                continue
            try:
                # utf-8-sig: a byte order mark at the start of the file is not part of the data.
                yield place, json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8")), ""
            except UnicodeDecodeError as error:
                yield place, None, f"expected UTF-8 text, found byte 0x{raw[error.start]:02x}"
            except (json.JSONDecodeError, RecursionError) as error:
                column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                yield place, None, f"expected one JSON object, found malformed JSON{column}"


def _csv_rows(path: Path) -> Iterator[tuple[str, Any, str]]:
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as lines:
        reader = csv.DictReader(lines, restkey="")
        missing = [name for name in ("image", "text") if name not in (reader.fieldnames or [])]
        if missing:
            raise PairsError(
                f"{path}, line 1: expected a header with the columns 'image' and 'text' (and 'target'), "
                f"found {reader.fieldnames}"
            )
        try:
            for row in reader:
                place = f"{path.name}:{reader.line_num}"
                if "" in row:
                    yield place, None, f"expected {len(reader.fieldnames or [])} columns, found more"
                    continue
                target = row.get("target")
                if target and target.lstrip()[:1] in ("[", "{"):
                    try:
                        row["target"] = json.loads(target)
                    except json.JSONDecodeError:
                        yield (
                            place,
                            None,
                            "field 'target': expected JSON after '[' or '{', found malformed JSON",
                        )
                        continue
                if not target:
                    row.pop("target", None)
                yield place, row, ""
        except csv.Error as error:
            raise PairsError(f"{path}, line {reader.line_num}: malformed CSV ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise PairsError(f"{path}: expected a Parquet file ({error})") from error
    missing = [name for name in ("image", "text") if name not in file.schema_arrow.names]
    if missing:
        raise PairsError(
            f"{path}: expected the columns 'image' and 'text' (and 'target'), found {file.schema_arrow.names}"
        )
    number = 0
    for batch in file.iter_batches(batch_size=65_536):
        for row in batch.to_pylist():
            number += 1
            target = row.get("target")
            if isinstance(target, dict):  # a struct column has every key in every row
                row["target"] = {key: weight for key, weight in target.items() if weight is not None}
            elif isinstance(target, list) and target and isinstance(target[0], tuple):  # a map column
                row["target"] = dict(target)
            yield f"{path.name}:{number}", row, ""


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
        try:
            row[name].encode("utf-8")
        except UnicodeEncodeError:
            return f"field '{name}': expected text, found half of a surrogate pair"
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
