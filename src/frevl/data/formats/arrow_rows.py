"""Read rows from Arrow tables (`frevl.data.formats.arrow_tables`).

Columns of bytes never appear in the rows: images inside a table (Hugging Face, img2dataset) are referred to by id, and
`pictures_of` reads them for embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from frevl.data.columns import FIELDS, Columns, choose_columns, means_image
from frevl.data.formats.arrow_tables import ArrowSource, unreadable
from frevl.data.formats.json_rows import HALF_PAIR, has_half_pair
from frevl.errors import PairsError

__all__ = ["arrow_rows", "pictures_of", "plain_batches"]

_ROWS_AT_ONCE, _PICTURES_AT_ONCE = 65_536, 64
_LONGEST_LIST = 64  # numbers; a longer list is an embedding, not a key of a pair
_PICTURES = ("jpg", "jpeg", "png", "webp", "picture", "bytes", "image_bytes")  # names besides those of image ids
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
_HASH = 32  # characters of a content hash, as in a store
_LONGEST_NAME = 1024  # bytes


@dataclass(frozen=True)
class _Plan:
    """The columns to read.

    Attributes:
        columns: Columns of the fields. Without ``image``, ids come from the images.
        picture: Column of image bytes, or None.
        extras: Further columns to keep.
        notes: Sentences on columns that are not read, and why.
    """

    columns: Columns
    picture: str | None
    extras: list[str]
    notes: list[str]


def arrow_rows(source: ArrowSource, given: Mapping[str, str], notes: list[str]) -> Iterator[tuple[Columns, Any]]:
    """Yield the columns with every ``(row number, row, problem)``, rows counted from 1.

    Args:
        source: The table.
        given: Columns that the user named.
        notes: Receives sentences on what was not read.

    Raises:
        PairsError: The columns of image and text cannot be determined, or the table cannot be read.
    """
    number = 0
    try:
        plan = _plan(source, given)
        notes += plan.notes
        columns = {"image": plan.picture or "image", **plan.columns}
        names = [*plan.columns.values(), *plan.extras]
        ids = None if plan.picture is None or "image" in plan.columns else _ids_of(source, plan.picture, notes)
        for batch in source.read(names, _ROWS_AT_ONCE):
            for row in batch.select(names).to_pylist():
                number += 1
                if ids is not None:
                    row[columns["image"]] = next(ids)
                strings = [value for value in row.values() if isinstance(value, str) and not value.isascii()]
                problem = HALF_PAIR if any(map(has_half_pair, strings)) else ""
                yield columns, (number, _plain_row(row, columns), problem)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(source.place, number, error) from error


def plain_batches(
    source: ArrowSource, given: Mapping[str, str]
) -> tuple[Columns, list[str], Callable[[], Iterator[pa.RecordBatch]]] | None:
    """Return the fields' columns, notes on skipped columns, and a function that yields the batches.

    Args:
        source: The table.
        given: Columns that the user named.

    Returns:
        None if a column is not of texts, integers or booleans, or holds images; use `arrow_rows` for those.

    Raises:
        PairsError: The columns of image and text cannot be determined.
    """
    try:
        plan = _plan(source, given)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(source.place, 0, error) from error
    names = [*plan.columns.values(), *plan.extras]
    types = {one.name: one.type for one in source.schema}
    if plan.picture is not None or ("text" in plan.columns and not _is_plain_text(types[plan.columns["text"]])):
        return None
    if "image" in plan.columns and pa.types.is_boolean(types[plan.columns["image"]]):
        return None
    plain = (pa.types.is_integer, pa.types.is_boolean, _is_plain_text)
    if not all(any(test(types[name]) for test in plain) for name in names):
        return None

    def batches() -> Iterator[pa.RecordBatch]:
        return (batch.select(names) for batch in source.read(names, _ROWS_AT_ONCE))

    return {"image": "image", **plan.columns} if "image" in plan.columns else plan.columns, plan.notes, batches


def _is_plain_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def pictures_of(source: ArrowSource, given: Mapping[str, str]) -> Iterator[tuple[str, bytes]] | None:
    """Return id and bytes of every image inside a table, each id once; None if no column holds images.

    Args:
        source: The table.
        given: Columns that the user named.

    Raises:
        PairsError: Two different images have one id, or the table cannot be read.
    """
    plan = _plan(source, given)
    return None if plan.picture is None else _pictures(source, plan.picture, plan.columns.get("image"))


def _pictures(source: ArrowSource, picture: str, named: str | None) -> Iterator[tuple[str, bytes]]:
    number = 0
    seen: dict[str, str] = {}
    ids = iter(()) if named else _ids_of(source, picture, [])
    try:
        for batch in source.read([picture, named] if named else [picture], _PICTURES_AT_ONCE):
            own = map(_plain_id, batch[named].to_pylist()) if named else islice(ids, len(batch))
            for id_, content in zip(own, _contents(batch[picture]), strict=True):
                number += 1
                if not id_ or content is None:
                    continue
                if id_ not in seen:
                    seen[id_] = _hash(content)
                    yield id_, content
                elif seen[id_] != _hash(content):
                    raise PairsError(
                        f"{source.place}, row {number:,}: another image in the file is also named '{id_:.80}'; "
                        "give a column of unique names, as in --columns image=NAME"
                    )
    except pa.ArrowException as error:
        raise unreadable(source.place, number, error) from error


# ---- columns


def _plan(source: ArrowSource, given: Mapping[str, str]) -> _Plan:
    types = {one.name: one.type for one in source.schema}
    names = list(source.schema.names)
    picture = _picture_column(source, names, types, given) if len(types) == len(names) else None
    if picture is None:
        columns = choose_columns(source.place, names, given)
    else:
        asked = {*given.values()}
        others = [name for name in names if name in asked or _is_text(types[name]) or not means_image(name)]
        others = [name for name in others if name != picture]
        named = {field: name for field, name in given.items() if name != picture}
        columns = choose_columns(source.place, others, named, required=("text",))
    extras, notes = [], []
    for name in names:
        if name in columns.values() or name in FIELDS or (name == picture and "image" not in columns):
            continue
        if _holds_bytes(types[name]):
            notes.append(f"The column '{name}' holds bytes and is not part of the pairs.")
        elif _holds_vectors(source, name, types[name]):
            notes.append(f"The column '{name}' holds vectors and is not part of the pairs.")
        else:
            extras.append(name)
    return _Plan(columns, picture, extras, notes)


def _picture_column(
    source: ArrowSource, names: list[str], types: Mapping[str, pa.DataType], given: Mapping[str, str]
) -> str | None:
    """Return the column chosen by the user, one named like an image, or the only column of images."""
    chosen = choose_columns(source.place, names, given, required=())
    used = {chosen.get("text"), chosen.get("target")}
    possible = [name for name in names if name not in used and _may_hold_pictures(types[name])]
    possible = [name for name in possible if not _holds_names(source, name, types[name])]
    named = [name for name in possible if name == given.get("image")]
    named += [name for name in possible if means_image(name) or name.lower() in _PICTURES]
    # In a column with another name, bytes may be anything.
    named += [name for name in possible if len(possible) == 1 and _begins_as_pictures(source, name)]
    return next(iter(named), None)


def _may_hold_pictures(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or (pa.types.is_struct(kind) and any(part.name == "bytes" for part in kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _holds_names(source: ArrowSource, name: str, kind: pa.DataType) -> bool:
    """Return whether a column of bytes holds file names: some programs write text as bytes."""
    if not _is_bytes(kind):
        return False
    some = [value for value in _first(source, name) if value is not None]
    try:
        return bool(some) and all(len(value) <= _LONGEST_NAME and value.decode().isprintable() for value in some)
    except UnicodeDecodeError:
        return False


def _begins_as_pictures(source: ArrowSource, name: str) -> bool:
    batch = next(iter(source.read([name], 8)), None)
    some = [] if batch is None else [value for value in _contents(batch[name]) if value]
    return bool(some) and all(value.startswith(_BEGINNINGS) or value[4:8] == b"ftyp" for value in some)


def _holds_vectors(source: ArrowSource, name: str, kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(kind) for test in lists) or not pa.types.is_floating(kind.value_type):
        return False
    return any(value is not None and len(value) > _LONGEST_LIST for value in _first(source, name))


def _first(source: ArrowSource, name: str) -> list[Any]:
    for batch in source.read([name], 8):
        return list(batch[name].to_pylist())
    return []


# ---- ids of images


def _ids_of(source: ArrowSource, picture: str, notes: list[str]) -> Iterator[str | None]:
    """Return the id of the image in every row: its path, or a hash of its content where paths are ambiguous."""
    paths = _paths(source, picture)
    if paths is not None and all(paths) and (len(set(paths)) == len(paths) or _paths_identify(source, picture, paths)):
        return iter(paths)
    notes.append(f"The images of the column '{picture}' have no unique names: ids are content hashes.")
    return _hash_ids(source, picture, paths)


def _paths(source: ArrowSource, picture: str) -> list[str | None] | None:
    kind = source.schema.field(picture).type
    if not pa.types.is_struct(kind) or all(part.name != "path" for part in kind):
        return None
    batches = source.read([f"{picture}.path"], _ROWS_AT_ONCE)
    return [path for batch in batches for path in pc.struct_field(batch[picture], "path").to_pylist()]


def _paths_identify(source: ArrowSource, picture: str, paths: list[str | None]) -> bool:
    """Return whether equal paths always mean equal images."""
    seen: dict[str | None, str | None] = {}
    hashes = _hash_ids(source, picture, None)
    return all(seen.setdefault(path, hash_) == hash_ for path, hash_ in zip(paths, hashes, strict=True))


def _hash_ids(source: ArrowSource, picture: str, paths: list[str | None] | None) -> Iterator[str | None]:
    number = 0
    for batch in source.read([picture], _PICTURES_AT_ONCE):
        for content in _contents(batch[picture]):
            path = paths[number] if paths is not None else None
            yield path if content is None else f"sha256-{_hash(content)}"
            number += 1


def _contents(column: pa.Array) -> Iterator[bytes | None]:
    inner = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    for value in inner:
        yield value.as_py()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HASH]


# ---- rows


def _plain_row(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Convert a row to the form that the same pair would have in JSON."""
    fields = {name: row[name] for name in columns.values() if name in row}
    target = columns.get("target")
    if target in fields:
        fields[target] = _plain_target(fields[target])
    if columns["image"] in fields:
        fields[columns["image"]] = _plain_id(fields[columns["image"]])
    return {**fields, **{name: _as_json(value) for name, value in row.items() if name not in fields}}


def _plain_id(id_: Any) -> Any:
    """Return an id as text: a typed table may hold names as bytes, and numbers, in pandas with gaps as floats."""
    if isinstance(id_, bytes):
        return id_.decode()
    if isinstance(id_, float) and (math.isnan(id_) or id_.is_integer()):
        return None if math.isnan(id_) else str(int(id_))
    return str(id_) if isinstance(id_, int) and not isinstance(id_, bool) else id_


def _plain_target(target: Any) -> Any:
    if isinstance(target, bytes):  # some programs write text as bytes, as for names of images; others are rejected
        try:
            return target.decode()
        except UnicodeDecodeError:
            return target
    if isinstance(target, list) and target and isinstance(target[0], tuple):  # a map column
        target = dict(target)
    if isinstance(target, dict):  # a struct column has every key in every row
        return {key: weight for key, weight in target.items() if weight is not None}
    # In pandas, integers with missing values become floats, and missing values NaN.
    return None if isinstance(target, float) and math.isnan(target) else target


def _as_json(value: Any) -> Any:
    """Convert values without a JSON type (times, decimals) to text."""
    if isinstance(value, dict):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
