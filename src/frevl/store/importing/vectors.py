"""Import embeddings computed elsewhere without embedding anything again; unusable rows are reported."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from frevl.data.outputs import refuse_inputs
from frevl.encoders.interface import Embeddings
from frevl.errors import InputError, Reject, UsageError, counted, rejects_sentence
from frevl.files import replace_file
from frevl.store.commits.unfinished import call_of
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.importing.formats import VectorBlock
from frevl.store.importing.identity import declared_towers, verified_towers
from frevl.store.importing.layouts import Part, lacking_parts, open_parts
from frevl.store.importing.metadata import columns_left_out, metadata_fields, named_metadata
from frevl.store.towers import CANARY_COSINE, Modality, Tower
from frevl.store.writer import Item, StoreWriter
from frevl.terminal import ProgressLine

__all__ = ["ImportReport", "import_embeddings"]

_COMMIT_BYTES = 16 << 20
_NOT_UNIT = 1e-3  # rounding to float16 changes the length of a unit vector of 8 or more numbers by less than this

_OF: dict[str, Modality] = {"images": "image", "texts": "text"}


@dataclass
class ImportReport:
    """The result of an import.

    Attributes:
        store: Path of the store.
        images: Number of images whose embedding was stored by this call.
        texts: Number of texts whose embedding was stored by this call.
        images_kept: Number of images that already had an embedding of this tower.
        texts_kept: Number of texts that already had one.
        differing: Number of these images and texts with a different vector in the import; the store keeps its own.
        scaled: Number of vectors that did not have unit length and were normalised.
        repeats: Number of rows that repeat an item of this import with the same vector; the first is kept.
        rejects: Items left out by this call.
        notes: Notes for the user.
        seconds: Wall time in seconds.
    """

    store: str
    images: int = 0
    texts: int = 0
    images_kept: int = 0
    texts_kept: int = 0
    differing: int = 0
    scaled: int = 0
    repeats: int = 0
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl import --json` writes."""
        return {**vars(self), "rejects": [vars(reject) for reject in self.rejects]}

    def sentence(self) -> str:
        """Return a one-line summary."""
        total = self.images + self.texts
        lengths = (
            f"{self.scaled:,} of {total:,} vectors did not have unit length and were normalised."
            if self.scaled
            else "All vectors had unit length."
        )
        done = (
            f"Imported {counted(self.images, 'image')} and {counted(self.texts, 'text')} in {self.seconds:.1f} s; "
            f"{counted(self.images_kept, 'image')} and {counted(self.texts_kept, 'text')} were already in the store."
        )
        differing = (
            f"{self.differing:,} of these have a different vector in the import (cosine below {CANARY_COSINE}); "
            "the store keeps its own. To use the new ones, import into a new store, or give --encoder another "
            "name."
        )
        repeats = f"Rows that repeat an item with the same vector: {self.repeats:,}."
        said = [
            done,
            *([differing] if self.differing else []),
            *([lengths] if total else []),
            *([repeats] if self.repeats else []),
            *self.notes,
        ]
        return " ".join([*said, rejects_sentence(self.rejects)]).rstrip()


def import_embeddings(
    source: str | Path,
    *,
    store: str | Path,
    encoder: str,
    of: str | None = None,
    ids: str | Path | None = None,
    id_column: str | None = None,
    vector_column: str | None = None,
    array: str | None = None,
    revision: str = "not declared",
    preprocessing: str = "not declared",
    common_space: bool = False,
    images: str | Path | None = None,
    dtype: str = "float16",
    write_pairs: str | Path | None = None,
    progress: bool = False,
) -> ImportReport:
    """Put existing embeddings into a store; an interrupted call resumes after the last commit.

    Items in the store are kept, and rows that would change them are counted. Vectors are stored unchanged, in the
    stored type, except that they are normalised to unit length. Zero or non-finite vectors, rows without an id, and
    repeated ids with different vectors go to the store's rejects. Other columns of numbers, text, booleans or times
    are kept as metadata for filtering searches.

    Args:
        source: A clip-retrieval folder (``img_emb``, ``text_emb``, ``metadata``); an array (``.npy``, ``.npz``,
            ``.safetensors``) together with ``ids``; a table with a column of vectors (Parquet, Arrow, Lance).
        store: Folder of the store; created if missing.
        encoder: Name of the encoder that made the vectors. An encoder known to frevl (see `frevl.load_encoder`) is
            verified: 32 of the texts, or of the images in ``images``, are embedded again and must agree; new items can
            then be embedded, too. Any other name counts as declared.
        of: ``images`` or ``texts``; not needed for a clip-retrieval folder.
        ids: Ids of an array's rows: text, one per line; a JSON list; JSON lines or a table with a column of ids.
        id_column: Name of the column of ids.
        vector_column: Name of the column of vectors.
        array: Name of the array in a file with several arrays.
        revision: Revision of the declared encoder; part of the identity, like everything declared.
        preprocessing: How its inputs were prepared.
        common_space: Declare that images and texts of this encoder share a space, as in CLIP.
        images: Folder of the images: ids become paths below it, and images for the verification are read from it.
        dtype: Stored number type, ``float16`` or ``float32``.
        write_pairs: Pairs file to write: every image of a clip-retrieval folder with its caption.
        progress: Show progress.

    Returns:
        A report of what was done.

    Raises:
        UsageError: The meaning of the source is ambiguous.
        InputError: Files are missing, damaged, or differ in their numbers.
        StoreError: The store cannot be written.
        FingerprintError: The store has vectors with the same name from elsewhere, or the named encoder did not make
            these vectors.
    """
    started = time.monotonic()
    refuse_inputs({"write_pairs": write_pairs}, {"source": source, "ids": ids, "images": images, "store": store})
    if of is not None and of not in _OF:
        raise UsageError(f"--of must be 'images' or 'texts', found '{of}'")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"The stored type must be 'float16' or 'float32', found '{dtype}'")
    if not encoder.strip():
        raise UsageError("The encoder that made the vectors needs a name; give it with --encoder")
    parts = open_parts(
        Path(source),
        of=_OF[of] if of else None,
        ids=Path(ids) if ids else None,
        id_column=id_column,
        vector_column=vector_column,
        array=array,
    )
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of images, found {'a file' if folder.exists() else 'none'}")
    modalities = list(dict.fromkeys(part.modality for part in parts))
    dims = {modality: _width([part for part in parts if part.modality == modality]) for modality in modalities}
    verified = verified_towers(encoder, parts, folder, dtype=dtype)
    towers = verified or declared_towers(
        encoder, dims, revision=revision, preprocessing=preprocessing, common_space=common_space, dtype=dtype
    )
    report = ImportReport(str(store), notes=lacking_parts(Path(source), _OF[of] if of else None))
    if verified:
        report.notes.append(f"'{encoder}' gives the same vectors for the items embedded again.")
    imported: dict[Modality, dict[str, int]] = {}
    asked = {"encoder": encoder, "of": of, "array": array, "vector-column": vector_column}
    with StoreWriter(store, work=call_of("frevl import", [source], asked)) as writer:
        writer.register(list(towers.values()))
        for modality in dims:
            own = [part for part in parts if part.modality == modality]
            writer.describe(modality, metadata_fields([part.metadata for part in own]))
            one = _Import(writer, towers[modality], folder, report)
            try:
                one.run(own, progress=progress)
            except InputError as error:
                if not report.images + report.texts:
                    raise
                raise InputError(
                    f"{error}. The {counted(report.images, 'image')} and {counted(report.texts, 'text')} imported "
                    "before that are in the store; once the file is mended, the same command continues"
                ) from error
            imported[modality] = one.seen
        report.notes += writer.notes
    if left := columns_left_out([part.metadata for part in parts]):
        report.notes.append(f"Not kept, being neither numbers, text, booleans nor times: {', '.join(left)}.")
    for modality, usable in imported.items():
        if not usable:
            raise InputError(
                f"{source}: expected {modality} vectors, found no usable ones. "
                + rejects_sentence([reject for reject in report.rejects if reject.kind == modality])
            )
    if write_pairs is not None:
        written = _write_pairs(Path(write_pairs), parts, folder, imported)
        report.notes.append(f"Wrote {counted(written, 'pair')} to {write_pairs}.")
    report.seconds = time.monotonic() - started
    return report


class _Import:
    """The import of one modality into one tower."""

    def __init__(self, writer: StoreWriter, tower: Tower, folder: Path | None, report: ImportReport) -> None:
        self.writer, self.tower, self.folder, self.report = writer, tower, folder, report
        self.seen: dict[str, int] = {}  # by id, a checksum of its vector
        self.rejects: list[Reject] = []
        modality = tower.modality
        self.known = writer.store.positions(modality)
        self.states = writer.store.states(modality)

    def run(self, parts: Sequence[Part], *, progress: bool) -> None:
        modality = self.tower.modality
        rows = max(1, _COMMIT_BYTES // (self.tower.dim * np.dtype(self.tower.identity["dtype"]).itemsize))
        # The version is kept, because ids are looked up in it until the end.
        with self.writer.keep_version(modality), ProgressLine(f"{modality}s", None, enabled=progress) as line:
            for part in parts:
                for block in part.blocks(rows):
                    self._add(block)
                    line.advance(len(block.vectors), note=f"{line.rate:.0f}/s")
        self.report.rejects += self.rejects

    def _add(self, block: VectorBlock) -> None:
        width = block.vectors.shape[1]
        if width != self.tower.dim and len(block.problems) < len(block.vectors):
            raise InputError(
                f"{block.place}: expected vectors of {self.tower.dim} numbers, found {width}; vectors of different "
                "widths cannot share a column"
            )
        columns = block.columns if block.columns is not None else pa.table({})
        ids = [item_id(id_, self.tower.modality, self.folder) for id_ in columns["id"].to_pylist()]
        there = find_rows(self.known, [id_ or "" for id_ in ids])
        values, scaled, problems = self._values(block)
        new: dict[str, list[int]] = {"append": [], "fill": []}
        kept: list[int] = []
        rejects: list[Reject] = []
        for row, id_ in enumerate(ids):
            place = f"{block.place}, row {block.first + row + 1:,}"
            if id_ is None or not id_.strip():
                rejects.append(Reject(self.tower.modality, place, "it has no id" if id_ is None else "its id is empty"))
            elif row in problems:
                rejects.append(Reject(self.tower.modality, id_, f"{place}: {problems[row]}"))
            elif id_ in self.seen:
                if self.seen[id_] == zlib.crc32(values[row]):  # an image with several captions
                    self.report.repeats += 1
                    continue
                reason = f"{place}: the id appears twice with different vectors; the first one is kept"
                rejects.append(Reject(self.tower.modality, id_, reason))
            else:
                self.seen[id_] = zlib.crc32(values[row])
                way = self._way(int(there[row]))
                if way is None:
                    kept.append(row)
                else:
                    new[way].append(row)
                    self.report.scaled += bool(scaled[row])
        self._count(kept=len(kept))
        self.report.differing += self._differing([str(ids[row]) for row in kept], values[kept])
        metadata = columns.drop_columns(["id"])
        for way, rows in new.items():
            if rows:
                self._write(way, [str(ids[row]) for row in rows], there[rows], values[rows], metadata.take(rows))
        self.writer.reject(rejects)
        self.rejects += rejects

    def _way(self, row: int) -> str | None:
        if row < 0:
            return "append"
        return None if self.states[f"has:{self.tower.name}"][row] else "fill"

    def _differing(self, ids: list[str], values: np.ndarray) -> int:
        """Count the items whose stored vector differs from this one."""
        if not ids:
            return 0
        stored = self.writer.store.read(self.tower.modality, ids, [self.tower])[0][:, 0].astype(np.float32)
        given = values.astype(np.float32)
        lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(given, axis=1)
        return int(((stored * given).sum(axis=1) < CANARY_COSINE * lengths).sum())

    def _write(self, way: str, ids: list[str], there: np.ndarray, values: np.ndarray, metadata: pa.Table) -> None:
        items = [self._item(id_, row, value) for id_, row, value in zip(ids, there.tolist(), values, strict=True)]
        embeddings = {self.tower.name: Embeddings(values[:, None], np.ones((len(values), 1), bool))}
        named = named_metadata(metadata, self.writer.metadata_types(self.tower.modality))
        write = self.writer.append if way == "append" else self.writer.fill
        write(self.tower.modality, items, embeddings, metadata=named)
        self._count(new=len(ids))

    def _item(self, id_: str, row: int, value: np.ndarray) -> Item:
        if row >= 0:
            of = {name: self.states[name][row] for name in ("content_hash", "bytes", "modified_ns")}
            return Item(id_, of["content_hash"].decode(), int(of["bytes"]), int(of["modified_ns"]))
        if self.tower.modality == "text":
            content = id_.encode()
            return Item(id_, hashlib.sha256(content).hexdigest()[:32], len(content))
        # The file was never seen, so its vector identifies it; the same image under two names is still found.
        return Item(id_, hashlib.sha256(value.tobytes()).hexdigest()[:32], 0)

    def _values(self, block: VectorBlock) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Return ``(n, dim)`` values in the stored type, which rows were scaled, and the problems by row."""
        with np.errstate(over="ignore", invalid="ignore"):
            # Numbers of float64 that float32 cannot hold make a direction like any other.
            wide = block.vectors.astype(np.float64 if block.vectors.dtype.itemsize == 8 else np.float32)
            finite = np.isfinite(wide).all(axis=1)
            # Divide by the largest number first, because the squares of large numbers overflow.
            largest = np.abs(wide).max(axis=1, initial=0)
            zero = finite & (largest == 0)
            safe = np.where(finite & ~zero, largest, 1)
            lengths = np.linalg.norm(wide / safe[:, None], axis=1) * safe
        scaled = finite & ~zero & (np.abs(lengths - 1) > _NOT_UNIT)
        values = np.zeros(wide.shape, self.tower.identity["dtype"])
        good = finite & ~zero
        values[good & ~scaled] = wide[good & ~scaled]
        shrunk = wide[scaled] / safe[scaled][:, None]
        values[scaled] = shrunk / np.linalg.norm(shrunk, axis=1, keepdims=True)
        problems = {int(row): "its vector is not finite" for row in np.flatnonzero(~finite)}
        problems |= {int(row): "its vector is zero" for row in np.flatnonzero(zero)}
        return values, scaled, problems | block.problems

    def _count(self, *, new: int = 0, kept: int = 0) -> None:
        if self.tower.modality == "image":
            self.report.images += new
            self.report.images_kept += kept
        else:
            self.report.texts += new
            self.report.texts_kept += kept


def item_id(id_: str | None, modality: Modality, folder: Path | None) -> str | None:
    """Return an item's id in the store: an image's path below its folder, with ``/``; the text itself."""
    if id_ is None or modality == "text" or folder is None:
        return id_
    path = Path(id_)
    for root in (folder, folder.resolve()):
        if path.is_relative_to(root):
            return str(PurePosixPath(path.relative_to(root)))
    return id_


def _width(parts: Sequence[Part]) -> int:
    """Return the width of the first vectors."""
    for part in parts:
        for block in part.blocks(1024):
            if len(block.problems) < len(block.vectors):
                return int(block.vectors.shape[1])
    raise InputError(f"{parts[0].place}: expected vectors, found none")


def _write_pairs(
    path: Path, parts: Sequence[Part], folder: Path | None, imported: Mapping[Modality, Collection[str]]
) -> int:
    """Write every image of a clip-retrieval folder with its caption, except those left out.

    Captions without vectors are written if the folder has no text vectors at all: they may be embedded later.
    """
    described = [part for part in parts if "caption" in part.metadata.names and part.modality == "image"]
    if not described:
        raise UsageError(
            "--write-pairs needs images with captions (a column 'caption'), as in a clip-retrieval folder with "
            "texts; leave it out, and write the pairs file yourself"
        )
    images, texts = imported["image"], imported.get("text")
    written = 0

    def write(target: Path) -> None:
        nonlocal written
        with target.open("w", encoding="utf-8") as lines:
            for part in described:
                for block in part.blocks(8192):
                    table = block.columns if block.columns is not None else pa.table({})
                    for id_, text in zip(table["id"].to_pylist(), table["caption"].to_pylist(), strict=True):
                        image = item_id(id_, "image", folder)
                        usable = image in images and text is not None and text.strip()
                        if usable and (texts is None or text in texts):
                            lines.write(json.dumps({"image": image, "text": text}, ensure_ascii=False) + "\n")
                            written += 1

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except OSError as error:
        raise InputError(f"{path}: the pairs cannot be written ({error.strerror or error})") from error
    return written
