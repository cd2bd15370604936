"""`frevl.extract`: embed items into a store, decoding in parallel with the networks; a repeated call resumes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.columns import columns_of
from frevl.data.formats.arrow_rows import ArrowSource, open_arrow, pictures_of, table_source
from frevl.data.in_memory import PLACE, table_of
from frevl.data.names import as_list
from frevl.data.packed.columns import joined
from frevl.data.pairs import Pairs, read_pairs
from frevl.devices import check_device
from frevl.encoders.interface import TextTower
from frevl.encoders.registry import load_encoder, with_layers
from frevl.encoders.runtime import on_device
from frevl.encoders.unreadable_texts import MOSTLY, unread_sentence
from frevl.errors import InputError, UsageError
from frevl.machine import processors
from frevl.store.canaries import tower_records
from frevl.store.embedder import Embedder, Here
from frevl.store.items import CommitBuffer, ExtractionReport, PendingItem, StoredItems
from frevl.store.many_nodes.on_nodes import on_nodes
from frevl.store.pairs_without_image import reject_pairs_without_image
from frevl.store.pictures.extract_images import extract_images, extract_pictures
from frevl.store.pictures.extract_tars import extract_tars, in_a_tar
from frevl.store.pictures.files import Choice, list_folder
from frevl.store.pictures.tables import TABLES_WITH_PICTURES
from frevl.store.pictures.tar_members import Captions, find_tars
from frevl.store.sharding.shares import Shard, Share, begin_part, finish_part, refuse_part
from frevl.store.towers import Tower
from frevl.store.writer import Item, StoreWriter
from frevl.terminal import ProgressLine

__all__ = ["ExtractionReport", "extract"]

_TEXTS_AT_ONCE = 4096  # sorted by length to reduce padding, and passed to a tokenizer at once
_NEVER_CUT = 16  # characters; even at four tokens per character (bytes of rare signs), 64 tokens suffice


def extract(
    store: str | Path,
    *,
    images: str | Path | None = None,
    pairs: Any = (),
    columns: str | Sequence[str] | Mapping[str, str] | None = None,
    encoder: str | Sequence[str] = ("packaged",),
    tokens: str = "pooled",
    layers: Sequence[int] = (),
    dtype: str = "float16",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    prune: bool = False,
    check_content: bool = False,
    shard: str | None = None,
    write_pairs: str | Path | None = None,
    commit_rows: int = 1024,
    commit_seconds: float = 5.0,
    workers: int | None = None,
    device: str | None = None,
    ray: str | None = None,
    progress: bool = False,
) -> ExtractionReport:
    """Embed images and texts once and keep them.

    Unchanged items already in the store are not embedded again, and repeating a killed call continues after its last
    commit. A moved or copied file with known content takes over the embeddings. Stored images without a file are
    counted. Unreadable items are recorded as rejects of the store.

    Args:
        store: Folder of the store; created if missing.
        images: Folder of images; an image's id is its path below it, with ``/``. Alternatively a tar (webdataset), a
            folder of tars, or a text file that lists tars: the id is then ``TAR/path inside``.
        pairs: Pairs files, or pairs in memory, whose texts are embedded; one, or a list of several. Without ``images``,
            images inside Parquet, Arrow and Feather files and inside tables in memory are embedded too
            (`frevl.data.formats.arrow_rows`).
        columns: Columns of the pairs files, as in `frevl.data.pairs.read_pairs`.
        encoder: Names for `load_encoder`; towers shared by two encoders are embedded once.
        tokens: ``pooled``, or an image grid ``7x7``, ``4x4``, ``2x2`` with word tokens for texts.
        layers: Hidden layers to concatenate instead of an encoder's own output, -1 for the last; only ``hf:MODEL``
            encoders support this, and the layers become part of the encoder's name.
        dtype: Stored number type, ``float16`` or ``float32``.
        include: Only images whose id, or a folder above, matches one of these shell patterns, such as ``*.jpg``.
        exclude: Skip images that match one of these. Thumbnail folders (``@eaDir``, ``__MACOSX`` and the like) are
            skipped unless ``include`` names them.
        prune: Remove stored images that have no file in the folder. Refused if that would remove all of them.
        check_content: Compare the content of all files, even if size and modification time are unchanged.
        shard: Only this share of the images and texts, such as ``3/8``, into a store of its own: a part. All parts
            merged by `frevl.store.sharding.merging.merge` equal the result of one extraction.
        write_pairs: Pairs file to write: every image of the tars with the caption, or the label, next to it. The
            captions are embedded, too.
        commit_rows: Commit after this many items, or after `commit_seconds`, whichever comes first.
        commit_seconds: Seconds after which to commit.
        workers: Number of decoding threads; None uses one per CPU core. With ``ray``, the number of workers on the
            cluster.
        device: Device for encoders from a model hub: ``cpu``, ``cuda`` (one copy per NVIDIA device), ``cuda:1``; None
            uses all accelerators. The packaged encoders run on the CPU.
        ray: Embed on the nodes of a Ray cluster: ``local`` (a cluster on this machine, started for this call),
            ``auto``, or the address of its head node. Nodes must see the files under the same paths. Only this process
            commits.
        progress: Show progress.

    Returns:
        A report of what was done.

    Raises:
        UsageError: Nothing to embed, an unknown encoder or type, or a missing device.
        InputError: The image folder is missing or has no readable image, or a pairs file cannot be used.
        StoreError: The store cannot be written, or is the part of another shard.
        FingerprintError: The store was made with other encoders or settings under the same name.
    """
    started = time.monotonic()
    encoder = as_list(encoder, "encoder")
    named = columns_of(columns)
    pairs, in_memory = _several(pairs, named)
    share = None if shard is None else Shard.parse(shard)
    if ray is not None and share is not None:
        raise UsageError("--shard is for independent processes; with --ray leave it out")
    if images is not None and not isinstance(images, str | Path):
        raise UsageError(f"images: expected the path of one folder, found {type(images).__name__}")
    if images is None and not pairs:
        raise UsageError("Nothing to embed: give a folder with --images, pairs files with --pairs, or both")
    if images is None and (prune or check_content):
        raise UsageError("--prune and --check-content compare the store with a folder of images; give it with --images")
    choice = Choice(as_list(include, "include"), as_list(exclude, "exclude"))
    if images is None and (choice.include or choice.exclude):
        raise UsageError("--include and --exclude select files of a folder; give it with --images")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"The stored type must be 'float16' or 'float32', found '{dtype}'")
    tars = None if images is None else find_tars(Path(images), leave_out=Path(store), choice=choice)
    if images is not None and tars is None and not Path(images).is_dir():
        raise InputError(
            f"{images}: expected a folder of images, found {'a file' if Path(images).exists() else 'none'}; a tar, "
            "or a list of tars (.txt), also works"
        )
    _check_tars(tars is not None, prune=prune, write_pairs=write_pairs)
    names = dict.fromkeys(with_layers(name, layers) for name in encoder)
    if device is not None:
        check_device(device)
    with on_device(device):
        loaded = [load_encoder(name, tokens=tokens) for name in names]
    some = Choice(choice.include, choice.exclude)
    if images is not None and tars is None and next(list_folder(images, choice=some), None) is None:
        aside = " ".join(["", *some.sentences()])
        raise InputError(f"{images}: expected images, found no file in that folder{aside and '.' + aside.rstrip('.')}")
    report = ExtractionReport(str(store))
    texts, referring = _texts_of(pairs, named, report)
    tables = [] if images is not None else _with_pictures([*_arrow_files(pairs), *in_memory], named)
    if images is None and not texts and not tables:
        raise UsageError("Nothing to embed: the pairs have no text; give the folder of their images with --images")
    of_images, of_texts = Share(share, remember=bool(referring)), Share(share)

    def towers() -> list[Tower]:
        return [tower for one in loaded for tower in tower_records(one, dtype=dtype)]

    embedding: AbstractContextManager[Embedder] = nullcontext(Here(workers or processors()))
    if ray is not None:
        embedding = on_nodes(
            ray, tuple(names), towers(), tokens=tokens, dtype=dtype, device=device, workers=workers, notes=report.notes
        )
        images = None if images is None else os.path.abspath(images)  # noqa: PTH100 - links stay as they are
    with (
        embedding as embedder,
        StoreWriter(store) as writer,
        Captions(None if write_pairs is None else Path(write_pairs)) as captions,
    ):
        part = None
        if share is None:
            refuse_part(writer.path)
        else:
            part = begin_part(writer.path, share, empty=not writer.store.towers)
        writer.register(towers())
        writer.reject(report.rejects)
        outside, others = set[str](), set[str]()
        image_towers = list({one.image.name: one.image for one in loaded if one.image}.values())
        buffer = CommitBuffer(writer, "image", image_towers, rows=commit_rows, seconds=commit_seconds)
        if tars is not None:
            outside = extract_tars(
                tars, image_towers, buffer, report, choice=choice, share=of_images, captions=captions,
                embedder=embedder, progress=progress,
            )  # fmt: skip
            report.notes += captions.finish()
            others = set(of_images.names) - outside  # tars, and their members, of other shards
        elif images is not None:
            outside = extract_images(
                Path(images), image_towers, buffer, report, choice=choice, share=of_images, prune=prune,
                check_content=check_content, embedder=embedder, progress=progress,
            )  # fmt: skip
        elif tables and image_towers:
            outside = extract_pictures(
                tables, named, image_towers, buffer, report, share=of_images, embedder=embedder, progress=progress
            )
        report.rejects += reject_pairs_without_image(
            writer, referring, [outside, of_images.names], images, elsewhere=lambda id_: in_a_tar(id_, others)
        )
        _clear_lines(writer, pairs, report)
        if texts or captions.texts:
            text_towers = list({one.text.name: one.text for one in loaded if one.text}.values())
            buffer = CommitBuffer(writer, "text", text_towers, rows=commit_rows, seconds=commit_seconds)
            # With a shard, the captions of other tars are unknown here: each process takes those of its own.
            own = list(dict.fromkeys([*of_texts.own(texts, str), *captions.texts]))
            _extract_texts(own, text_towers, buffer, embedder, report, progress=progress)
        if part is not None:
            lists = {"images": of_images.digest(), "texts": of_texts.digest()}
            read = _names_of(pairs) | {tar.name for tar in tars or ()}
            finish_part(writer.path, part, lists=lists, pairs=read, rows=writer.rows())
    report.notes += writer.notes
    report.seconds = time.monotonic() - started
    return report


def _check_tars(of_tars: bool, *, prune: bool, write_pairs: str | Path | None) -> None:
    if of_tars and prune:
        raise UsageError("--prune compares the store with the files of a folder, not with tars; use frevl store remove")
    if write_pairs is not None and not of_tars:
        raise UsageError("--write-pairs writes the captions next to images in tars; give tars with --images")


def _extract_texts(
    texts: Sequence[str],
    towers: Sequence[TextTower],
    buffer: CommitBuffer,
    embedder: Embedder,
    report: ExtractionReport,
    *,
    progress: bool,
) -> None:
    """Embed the texts that the store lacks."""
    stored = StoredItems(buffer.writer.store, "text", [tower.name for tower in towers])
    lacking = stored.lacking(texts)
    report.texts_kept += len(texts) - int(lacking.sum())

    def pending(row: int) -> PendingItem:
        text, known = texts[row], stored.get(texts[row])
        content = text.encode("utf-8")
        item = Item(text, hashlib.sha256(content).hexdigest()[:32], len(content))
        needing = [tower.name for tower in towers] if known is None else known.lacking
        return PendingItem(item, "append" if known is None else "fill", dict.fromkeys(needing, text))

    with ProgressLine("texts", int(lacking.sum()), enabled=progress) as line:
        for done in embedder.texts(_batches(texts, lacking, pending, buffer.size), buffer):
            line.advance(done, note=f"{line.rate:.0f}/s")
        buffer.commit()
    report.texts = buffer.embedded
    report.rejects += buffer.rejected
    _tell_unread(texts, towers, buffer.writer, report)
    # A text this short is never truncated; the others are counted by the tower that truncates most.
    long = [texts[row] for row in np.flatnonzero(lacking).tolist() if len(texts[row]) > _NEVER_CUT]
    cut = max((sum(map(tower.truncated, _parts(long))) for tower in towers), default=0)
    if cut:
        report.notes.append(f"{cut:,} texts are longer than the encoder can read and were truncated.")


def _batches(
    texts: Sequence[str], lacking: np.ndarray, pending: Callable[[int], PendingItem], size: int
) -> Iterator[list[PendingItem]]:
    """Arrange the texts to embed in batches.

    An embedding may depend, in its last bit, on the rest of its batch. Batches are therefore cut from the list of all
    texts, whatever is already stored: an interrupted extraction continues with the same batches.

    Args:
        texts: All texts.
        lacking: ``(n,)`` bool, which texts must be embedded.
        pending: Makes an element of a batch from the row of a text.
        size: Batch size.
    """
    rest: list[int] = []
    for batch in _of_similar_length(texts, range(len(texts)), size):
        own = [row for row in batch if lacking[row]]
        if len(own) == len(batch):
            yield [pending(row) for row in own]
        else:
            rest += own
    for batch in _of_similar_length(texts, rest, size):
        yield [pending(row) for row in batch]


def _of_similar_length(texts: Sequence[str], rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Split the rows of texts into batches of similar length, which need little padding."""
    for start in range(0, len(rows), _TEXTS_AT_ONCE):
        chunk = sorted(rows[start : start + _TEXTS_AT_ONCE], key=lambda row: len(texts[row]))
        for first in range(0, len(chunk), size):
            yield chunk[first : first + size]


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split texts into parts for a tokenizer, whose output takes kilobytes per text."""
    return (texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE))


def _tell_unread(
    texts: Sequence[str], towers: Sequence[TextTower], writer: StoreWriter, report: ExtractionReport
) -> None:
    """Count texts that no tower can read, and record them for each tower."""
    most_read = np.ones(len(texts), np.float32)
    for tower in towers:
        shares = np.concatenate([np.zeros(0, np.float32), *map(tower.unread, _parts(texts))])
        most_read = np.minimum(most_read, shares)
        rows = np.flatnonzero(shares > MOSTLY).tolist()
        writer.note_unread(tower.name, {texts[row]: float(shares[row]) for row in rows})
    unread = [texts[row] for row in np.flatnonzero(most_read > MOSTLY).tolist()] if towers else []
    report.texts_unread = len(unread)
    if unread:
        report.notes.append(unread_sentence(unread, len(texts), [tower.name for tower in towers]))


def _several(pairs: Any, columns: Mapping[str, str]) -> tuple[list[Path | Pairs], list[ArrowSource]]:
    """Return all sources of pairs, as files or in-memory `Pairs`, and the tables among the latter."""
    several = [pairs]
    if isinstance(pairs, list | tuple | Iterator):
        several = list(pairs)
        if several and all(isinstance(one, Mapping | list | tuple) for one in several):  # rows, and no files
            several = [several]
    in_memory = [one for one in several if not isinstance(one, str | Path | Pairs)]
    tables = [table for table in map(table_of, in_memory) if table is not None]
    read = [Path(one) if isinstance(one, str | Path) else read_pairs(one, columns=columns) for one in several]
    return read, [table_source(PLACE, table) for table in tables]


def _arrow_files(files: Sequence[Path | Pairs]) -> list[ArrowSource]:
    paths = dict.fromkeys(file for file in files if isinstance(file, Path))
    return [open_arrow(path) for path in paths if path.suffix.lower() in TABLES_WITH_PICTURES]


def _with_pictures(tables: Sequence[ArrowSource], columns: Mapping[str, str]) -> list[ArrowSource]:
    """Return the tables that have a column of images."""
    return [table for table in tables if pictures_of(table, columns) is not None]


def _texts_of(
    files: Sequence[Path | Pairs], columns: Mapping[str, str], report: ExtractionReport
) -> tuple[list[str], list[Pairs]]:
    """Return the distinct texts of some pairs files, and the pairs that refer to images."""
    texts: dict[str, None] = {}
    referring: list[Pairs] = []
    for file in {id(file) if isinstance(file, Pairs) else file: file for file in files}.values():
        pairs = file if isinstance(file, Pairs) else read_pairs(file, columns=columns)
        report.rejects += pairs.rejected
        report.notes += pairs.notes
        if "text" in pairs.sides:
            texts.update(dict.fromkeys(joined([pairs.texts])[1]))  # in the order in which they first appear
        if "image" in pairs.sides:
            referring.append(pairs)
    return list(texts), referring


def _clear_lines(writer: StoreWriter, files: Sequence[Path | Pairs], report: ExtractionReport) -> None:
    """Clear earlier rejects of lines that are now valid."""
    names = _names_of(files)
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "pair"}
    repaired = {place for place in former if place.rpartition(":")[0] in names}
    writer.clear_rejects("pair", repaired - {reject.id for reject in report.rejects if reject.kind == "pair"})


def _names_of(files: Sequence[Path | Pairs]) -> set[str]:
    return {str(file.source if isinstance(file, Pairs) else file) for file in files}
