"""Find the parts of an import, with ids, vectors and metadata: a clip-retrieval folder, an array or a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from frevl.errors import InputError, UsageError
from frevl.store.importing.arrays import read_arrays
from frevl.store.importing.formats import (
    VectorBlock,
    as_input_error,
    is_table,
    named_id,
    parquet_shape,
    read_ids,
    read_table,
)
from frevl.store.towers import Modality

__all__ = ["Part", "is_clip_retrieval", "lacking_parts", "open_parts"]

_FOLDERS: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}
_CLIP_IDS: dict[Modality, str] = {"image": "image_path", "text": "caption"}
_USUAL_IDS: dict[Modality, tuple[str, ...]] = {
    "image": ("id", "image", "image_id", "image_path", "path", "filename", "file_name", "key"),
    "text": ("id", "text", "caption", "sentence", "question", "title"),
}


@dataclass(frozen=True)
class Part:
    """A file of vectors with the ids of its rows.

    Attributes:
        modality: Modality of the vectors.
        place: The file, for messages.
        metadata: Types of the columns besides the ids.
        blocks: Yields blocks of at most a given number of rows; ``columns`` has ``id`` (string) and the metadata.
        width: Width of the vectors; None if it is only known from reading them, or if there are none.
    """

    modality: Modality
    place: str
    metadata: pa.Schema
    blocks: Callable[[int], Iterator[VectorBlock]]
    width: int | None = None


def is_clip_retrieval(source: Path) -> bool:
    """Return whether a folder has the layout of ``clip-retrieval inference``."""
    return any((source / folder).is_dir() for folder in _FOLDERS.values())


def open_parts(
    source: Path,
    *,
    of: Modality | None,
    ids: Path | None,
    id_column: str | None,
    vector_column: str | None,
    array: str | None,
) -> list[Part]:
    """Find the vectors and check that there are as many ids.

    Args:
        source: A clip-retrieval folder, an array or a table.
        of: Modality of the vectors; None takes both from a clip-retrieval folder.
        ids: Ids of an array's rows.
        id_column: Column of the ids.
        vector_column: Column of the vectors of a table.
        array: Name of the array in a file with several arrays.

    Raises:
        InputError: A file is missing or damaged, or the numbers of ids and vectors differ.
        UsageError: The meaning of the source is ambiguous.
    """
    if source.is_dir() and not is_table(source):
        if not is_clip_retrieval(source):
            raise InputError(
                f"{source}: expected a clip-retrieval folder with 'img_emb' or 'text_emb' in it, found neither; to "
                "import a single file, name it"
            )
        chosen: list[Modality] = [of] if of else [one for one in _FOLDERS if (source / _FOLDERS[one]).is_dir()]
        if id_column is not None and len(chosen) > 1:
            raise UsageError(
                f"{source}: images and texts have their ids in different columns, and --id-column names one; add --of "
                "images or --of texts, and import the others with a second command"
            )
        return [part for one in chosen for part in _clip_retrieval(source, one, ids, id_column)]
    if not source.exists():
        raise InputError(f"{source}: no such file of vectors or ids; check the path")
    if of is None:
        raise UsageError(f"{source}: specify what the vectors represent with --of images or --of texts")
    if is_table(source):
        if ids is not None:
            raise UsageError(
                f"{source}: a table contains its own ids; leave out --ids, or name their column with --id-column"
            )
        return [_table(source, of, id_column, vector_column)]
    if ids is None:
        raise UsageError(f"{source}: an array contains no ids; give a list of them in the same order with --ids FILE")
    described = read_ids(ids, id_column=id_column, usual=_USUAL_IDS[of])
    return [_array(source, of, ids, len(described), described.schema, lambda: described, array)]


def _clip_retrieval(source: Path, modality: Modality, ids: Path | None, id_column: str | None) -> list[Part]:
    """Pair ``img_emb/img_emb_0.npy`` with ``metadata/metadata_0.parquet``, by the number in the name."""
    if ids is not None:
        raise UsageError(f"{source}: a clip-retrieval folder has its ids in 'metadata'; leave out --ids")
    vectors = _numbered(source / _FOLDERS[modality], ".npy")
    described = _numbered(source / "metadata", ".parquet")
    if not vectors:
        raise InputError(f"{source}: expected {_FOLDERS[modality]}/*.npy, found none; the folder is incomplete")
    lost = sorted(vectors.keys() - described.keys())
    if lost:
        raise InputError(
            f"{vectors[lost[0]]}: expected its ids in {source}/metadata/metadata_{lost[0]}.parquet, found none; copy "
            "the folder completely, or import the file by itself with --ids"
        )
    parts = [_clip_part(vectors[number], described[number], modality, id_column) for number in sorted(vectors)]
    known = [part for part in parts if part.width is not None]
    for part in known:  # before anything is written
        if part.width != known[0].width:
            raise InputError(
                f"{part.place}: expected vectors of {known[0].width} numbers as in {known[0].place}, found "
                f"{part.width}; vectors of different widths cannot share a column. Nothing was imported; take the "
                "parts of another encoder out of the folder"
            )
    return parts


def _clip_part(vectors: Path, described: Path, modality: Modality, id_column: str | None) -> Part:
    rows, schema = parquet_shape(described)
    usual = (_CLIP_IDS[modality],)
    named = named_id(described, schema.empty_table(), id_column, usual).schema
    # Read only when needed: a part has up to a million rows, a folder hundreds of parts.
    return _array(
        vectors, modality, described, rows, named, lambda: read_ids(described, id_column=id_column, usual=usual), None
    )


def lacking_parts(source: Path, of: Modality | None) -> list[str]:
    """List the parts of a clip-retrieval folder with ids but no vectors; empty for anything else.

    Such a folder can be imported, but is usually an incomplete copy.
    """
    if not source.is_dir() or is_table(source):
        return []
    described = _numbered(source / "metadata", ".parquet")
    notes = []
    for modality, folder in _FOLDERS.items():
        if of not in (None, modality) or not (source / folder).is_dir():
            continue
        lost = sorted(described.keys() - _numbered(source / folder, ".npy").keys())
        if lost:
            rows = sum(parquet_shape(described[number])[0] for number in lost)
            named = ", ".join(map(str, lost[:3])) + (" ..." if len(lost) > 3 else "")
            notes.append(
                f"{source / folder} is missing {len(lost):,} of {len(described):,} parts ({named}): {rows:,} "
                f"{modality}s of the metadata were not imported."
            )
    return notes


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Return the files of a folder by the number at the end of their names, however many zeros precede it.

    Raises:
        InputError: Two files have one number, and only one of them can be of that part.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []:
        number = re.search(r"(\d+)$", path.stem)
        if number is None:
            continue
        one = found.setdefault(int(number.group(1)), path)
        if one != path:
            raise InputError(
                f"{folder}: expected one file for every part, found {one.name} and {path.name} for part "
                f"{int(number.group(1))}; move the one that does not belong to it out of the folder"
            )
    return found


def _array(
    source: Path,
    modality: Modality,
    ids: Path,
    count: int,
    schema: pa.Schema,
    described: Callable[[], pa.Table],
    array: str | None,
) -> Part:
    total, width, blocks = read_arrays(source, array=array)
    if total != count:
        raise InputError(
            f"{ids}: expected one id for each of the {total:,} vectors of {source}, found {count:,} ids; both must "
            "have the same number and order"
        )

    def read(rows: int) -> Iterator[VectorBlock]:
        first, table = 0, described()
        for block in blocks(rows):
            yield VectorBlock(str(source), first, block, table.slice(first, len(block)))
            first += len(block)

    return Part(modality, str(source), _without_id(schema), read, width if total else None)


def _table(source: Path, modality: Modality, id_column: str | None, vector_column: str | None) -> Part:
    schema, _, blocks = read_table(source, vector_column=vector_column)
    with as_input_error(source):
        empty = schema.empty_table()
    named = named_id(source, empty, id_column, _USUAL_IDS[modality])

    def read(rows: int) -> Iterator[VectorBlock]:
        for block in blocks(rows):
            if block.columns is not None:
                block.columns = named_id(source, block.columns, id_column, _USUAL_IDS[modality])
            yield block

    return Part(modality, str(source), _without_id(named.schema), read)


def _without_id(schema: pa.Schema) -> pa.Schema:
    return schema.remove(schema.get_field_index("id"))
