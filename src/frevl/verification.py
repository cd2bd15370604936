"""Reading a whole store to find what is damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frevl.errors import StoreError
from frevl.store import TABLES, Store
from frevl.tables import open_table, reading
from frevl.towers import Modality, Tower, checksum

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
    problems: list[str] = []
    for name in ("towers", "rejects", *TABLES.values()):
        problems += _file_problems(path, name)
    try:
        store = Store.open(path)
    except StoreError as error:
        if not (path / "towers.lance").is_dir():
            raise
        return problems or [f"{error}."]
    for modality, name in TABLES.items():
        try:
            states = store.states(modality)
            repeated = [id_ for id_, count in Counter(store.ids(modality)).items() if count > 1]
        except StoreError as error:
            problems += [] if any(f"table '{name}'" in problem for problem in problems) else [f"{error}."]
            continue
        if repeated:
            problems.append(f"Table '{name}': {len(repeated):,} ids stand twice, the first is '{repeated[0]:.80}'.")
        for tower in store.select_towers(modality):
            has = states[f"has:{tower.name}"]
            if not has.all():
                problems.append(
                    f"Tower '{tower.name}': {int((~has).sum()):,} of {len(has):,} {modality}s lack an embedding; "
                    f"run frevl extract again with --encoder {tower.encoders[0]}."
                )
            problems += _embedding_problems(store, modality, tower)
    return problems


def _file_problems(path: Path, name: str) -> list[str]:
    """Name the files of a table that are missing, have another size than when they were written, or cannot be read."""
    try:
        table = open_table(path, name)
    except StoreError as error:
        return [f"{error}."]
    problems = []
    for fragment in [] if table is None else table.get_fragments():
        for file in fragment.data_files():
            place = path / f"{name}.lance" / "data" / file.path
            if not place.is_file():
                problems.append(f"The table '{name}' has lost its file {place}.")
            elif file.file_size_bytes is not None and place.stat().st_size != file.file_size_bytes:
                found = place.stat().st_size
                problems.append(
                    f"The table '{name}' has a damaged file, {place}: expected {file.file_size_bytes:,} bytes, "
                    f"found {found:,}."
                )
    return problems


def _embedding_problems(store: Store, modality: Modality, tower: Tower) -> list[str]:
    """Compare every embedding of a tower with its checksum, file by file."""
    name = TABLES[modality]
    table = open_table(store.path, name)
    problems: list[str] = []
    wrong: list[str] = []
    for fragment in [] if table is None or tower.name not in table.schema.names else table.get_fragments():
        try:
            with reading(store.path, name):
                wrong += _wrong_ids(fragment, tower)
        except StoreError as error:
            files = ", ".join(str(store.path / f"{name}.lance" / "data" / file.path) for file in fragment.data_files())
            problems.append(f"The table '{name}' has a file that cannot be read: {files} ({error.__cause__!s:.200}).")
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
