"""Reading a whole store to find what is damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from frevl.errors import StoreError
from frevl.store.lance_tables import open_table, reading
from frevl.store.reader import TABLES, Store
from frevl.store.towers import Modality, Tower, checksum

if TYPE_CHECKING:
    import lance

__all__ = ["describe", "verify"]

_ROWS_AT_ONCE = {True: 4096, False: 128}  # pooled embeddings, tokens


def describe(store: Store) -> dict[str, Any]:
    """Return what a store holds, as `frevl store info` prints it."""
    rejects = store.rejects()
    return {
        "path": str(store.path),
        "fingerprint": store.fingerprint,
        "bytes": _size(store.path),
        "images": len(store.positions("image")),
        "texts": len(store.positions("text")),
        "rejects": dict(Counter(reject.kind for reject in rejects)),
        "rejected": [vars(reject) for reject in rejects],
        "encoders": store.encoders,
        "towers": [
            {
                "name": tower.name,
                "modality": tower.modality,
                "encoders": list(tower.encoders),
                "dim": tower.dim,
                "fingerprint": tower.fingerprint,
                "lacking": int((~store.states(tower.modality)[f"has:{tower.name}"]).sum()),
                "identity": tower.identity,
            }
            for tower in store.towers.values()
        ],
    }


def verify(path: str | Path) -> list[str]:
    """Read every embedding and say what is wrong.

    Missing and cut files are named. Every embedding is compared with the checksum that was stored beside it.

    Args:
        path: Folder of the store.

    Returns:
        One sentence a problem; empty if the store is sound.

    Raises:
        StoreError: There is no store at this path.
    """
    path = Path(path)
    damaged = {name: _file_problems(path, name) for name in ("towers", "rejects", *TABLES.values())}
    problems = [problem for found in damaged.values() for problem in found]
    try:
        store = Store.open(path)
    except StoreError as error:
        if not (path / "towers.lance").is_dir():
            raise
        return problems or [f"{error}."]
    for modality, name in TABLES.items():
        if damaged[name]:
            continue
        states = store.states(modality)
        repeated = [id_ for id_, count in Counter(store.ids(modality)).items() if count > 1]
        if repeated:
            problems.append(f"Table '{name}': {len(repeated):,} ids stand twice, the first is '{repeated[0]:.80}'.")
        for tower in store.select_towers(modality):
            has = states[f"has:{tower.name}"]
            if not has.all():
                problems.append(
                    f"Tower '{tower.name}': {int((~has).sum()):,} of {len(has):,} {modality}s lack an embedding; "
                    f"{tower.remedy}."
                )
            problems += _embedding_problems(store, modality, tower)
    return problems


def _file_problems(path: Path, name: str) -> list[str]:
    """Name the files of a table that are missing, have another size than when they were written, or cannot be read."""
    try:
        table = open_table(path, name)
    except StoreError as error:
        return [f"{error}."]
    if table is None:
        return []
    problems: list[str] = []
    plain = [field.name for field in table.schema if not _is_embedding(field.type)]
    for fragment in table.get_fragments():
        lost = [problem for file in fragment.data_files() for problem in _size_problems(path, name, file)]
        problems += lost or _read_problems(path, name, fragment, lambda part: part.to_table(columns=plain))
    return problems


def _size_problems(path: Path, name: str, file: Any) -> list[str]:
    place = path / f"{name}.lance" / "data" / file.path
    if not place.is_file():
        return [f"The table '{name}' has lost its file {place}."]
    found = place.stat().st_size
    if file.file_size_bytes in (None, found):
        return []
    return [
        f"The table '{name}' has a damaged file, {place}: expected {file.file_size_bytes:,} bytes, found {found:,}."
    ]


def _read_problems(
    path: Path, name: str, fragment: lance.LanceFragment, read: Callable[[lance.LanceFragment], object]
) -> list[str]:
    """Try to read a part of a table, and name its file if that fails."""
    try:
        with reading(path, name):
            read(fragment)
    except StoreError as error:
        files = ", ".join(str(path / f"{name}.lance" / "data" / file.path) for file in fragment.data_files())
        cause = " ".join(str(error.__cause__).split()).partition(", /")[0]
        return [f"The table '{name}' has a file that cannot be read, {files}: {cause:.200}."]
    return []


def _is_embedding(kind: pa.DataType) -> bool:
    vector: bool = pa.types.is_fixed_size_list(kind.value_type if pa.types.is_list(kind) else kind)
    return vector


def _embedding_problems(store: Store, modality: Modality, tower: Tower) -> list[str]:
    """Compare every embedding of a tower with its checksum, file by file."""
    name = TABLES[modality]
    table = open_table(store.path, name)
    problems: list[str] = []
    wrong: list[str] = []
    for fragment in [] if table is None or tower.name not in table.schema.names else table.get_fragments():
        problems += _read_problems(store.path, name, fragment, lambda part: wrong.extend(_wrong_ids(part, tower)))
    if wrong:
        problems.append(
            f"Tower '{tower.name}': {len(wrong):,} embeddings differ from their checksums, the first is of "
            f"'{wrong[0]:.80}'."
        )
    return problems


def _wrong_ids(fragment: lance.LanceFragment, tower: Tower) -> Iterator[str]:
    columns = ["id", "content_hash", "filled", tower.name]
    for batch in fragment.to_batches(columns=columns, batch_size=_ROWS_AT_ONCE[tower.pooled]):
        column = batch[tower.name]
        described = (batch[name].to_pylist() for name in columns[:3])
        for row, (id_, content_hash, filled) in enumerate(zip(*described, strict=True)):
            expected = {entry["tower"]: entry["crc32"] for entry in filled}.get(tower.name)
            found = None
            if column[row].is_valid:
                values = column[row].values if tower.pooled else column[row].values.flatten()
                found = checksum(id_, content_hash, values.to_numpy(zero_copy_only=False))
            if found != expected:
                yield id_


def _size(path: Path) -> int:
    size = 0
    for file in path.rglob("*"):
        try:
            size += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # a writer has tidied up meanwhile
            continue
    return size
