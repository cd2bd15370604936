"""Extract the images of a folder, or images inside tables; decoding runs in parallel with the networks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from frevl.data.formats.arrow_tables import ArrowSource
from frevl.encoders.interface import ImageTower
from frevl.errors import InputError, Reject, UsageError, counted, rejects_sentence
from frevl.store.extraction.embedder import GUESSED, IN_SILENCE, Embedder, Pictures
from frevl.store.extraction.items import CommitBuffer, ExtractionReport, StoredItems
from frevl.store.pictures.captions import Captions, holds_caption
from frevl.store.pictures.files import Choice, FolderFile, ImageFiles, list_folder
from frevl.store.pictures.folder_captions import folder_captions
from frevl.store.pictures.seen_images import SeenImages
from frevl.store.pictures.tables import TablePictures
from frevl.store.sharding.shares import Share
from frevl.store.writer import StoreWriter
from frevl.terminal import ProgressLine

__all__ = ["embed_images", "extract_images", "extract_pictures", "tell_guessed"]

A = TypeVar("A")
_REMOVED_AT_ONCE = 1_000_000  # ids of images in a commit of --prune: a join of ten million takes gigabytes


def extract_images(
    folder: Path,
    towers: Sequence[ImageTower],
    buffer: CommitBuffer,
    report: ExtractionReport,
    *,
    choice: Choice,
    share: Share,
    captions: Captions,
    prune: bool,
    check_content: bool,
    embedder: Embedder,
    progress: bool,
) -> set[str]:
    """Embed a folder's images that the store lacks; return the ids in its share that the store may still lack.

    If captions are wanted, files that may hold one count as captions, not as images.
    """
    writer = buffer.writer

    def listed(choice: Choice) -> Iterator[FolderFile]:
        files = list_folder(folder, leave_out=writer.path, choice=choice)
        return (file for file in files if not (captions.wanted and holds_caption(file.id)))

    former = {reject.id for reject in writer.store.rejects() if reject.kind == "image"}
    stored = StoredItems(writer.store, "image", [tower.name for tower in towers])
    prepared = ImageFiles(folder, towers, stored, check_content=check_content)
    before = listed(Choice(choice.include, choice.exclude)) if progress else None
    total = None if before is None else sum(1 for _ in share.apart().own(before, prepared.id_of))
    files = share.own(listed(choice), prepared.id_of)
    seen = embed_images(
        str(folder), "file", prepared, files, stored, embedder, buffer, report, former=former, total=total,
        may_be_empty=share.partial, progress=progress,
    )  # fmt: skip
    again = seen.former | ({id_ for id_ in former if holds_caption(id_)} if captions.wanted else set())
    writer.clear_rejects("image", again - {reject.id for reject in buffer.rejected})
    report.notes += choice.sentences()
    _tell_changes(folder, prepared, report)
    _gone(folder, stored.gone(seen.rows(), prepared.is_gone), stored, writer, report, prune=prune)
    if prune:
        writer.clear_rejects("image", {id_ for id_ in former - seen.former if prepared.is_gone(id_)})
    if captions.wanted:
        folder_captions(folder, captions, writer, report, choice=choice, share=share, outside=seen.outside)
    return seen.outside


def extract_pictures(
    tables: Sequence[ArrowSource],
    columns: Mapping[str, str],
    towers: Sequence[ImageTower],
    buffer: CommitBuffer,
    report: ExtractionReport,
    *,
    share: Share,
    embedder: Embedder,
    progress: bool,
) -> set[str]:
    """Embed images inside tables that the store lacks; return the ids in its share that the store may still lack."""
    writer = buffer.writer
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "image"}
    stored = StoredItems(writer.store, "image", [tower.name for tower in towers])
    inside = TablePictures(towers, stored)
    cells = inside.once(share.own(inside.pictures(tables, columns), inside.id_of))
    names = ", ".join(table.place for table in tables)
    seen = embed_images(
        names, "image", inside, cells, stored, embedder, buffer, report, former=former,
        may_be_empty=share.partial, progress=progress,
    )  # fmt: skip
    writer.clear_rejects("image", seen.former - {reject.id for reject in buffer.rejected})
    tell_guessed(inside.remarks[GUESSED], report)
    return seen.outside


def embed_images(
    place: str,
    what: str,
    pictures: Pictures[A],
    sources: Iterable[A],
    stored: StoredItems,
    embedder: Embedder,
    buffer: CommitBuffer,
    report: ExtractionReport,
    *,
    former: Collection[str],
    total: int | None = None,
    may_be_empty: bool = False,
    progress: bool,
) -> SeenImages:
    """Embed the images that the store lacks.

    Args:
        place: Source of the images, for messages.
        what: Word for one of them, for messages.
        pictures: Prepares single images.
        sources: The images.
        stored: The items known to the store.
        embedder: Embeds the images.
        buffer: Commits the embeddings.
        report: Report to fill in.
        former: Ids of images that earlier extractions rejected.
        total: Number of images, or None if unknown.
        may_be_empty: Whether finding no image is acceptable.
        progress: Show progress.

    Returns:
        The images that were found.

    Raises:
        InputError: No image was found.
    """
    seen = SeenImages(stored, former, embedded=bool(buffer.dtypes))
    with buffer.writer.keep_version("image"), ProgressLine("images", total, enabled=progress) as line:
        for id_, work in embedder.images(pictures, sources, stored, buffer):
            seen.add(id_, work)
            if isinstance(work, Reject):
                buffer.reject(work)
            elif work is None:
                report.images_kept += 1
            line.advance(note=f"{line.rate:.0f}/s")
        buffer.commit()
    seen.outside.update(reject.id for reject in buffer.rejected)  # including those refused by a tower
    report.images, report.images_moved, report.images_copied = buffer.embedded, buffer.moved, buffer.copied
    report.rejects += buffer.rejected
    if not may_be_empty and not any((report.images, report.images_kept, report.images_moved, report.images_copied)):
        raise InputError(
            f"{place}: expected images, found no {what} that can be read as one. {rejects_sentence(buffer.rejected)}"
        )
    return seen


def _tell_changes(folder: Path, prepared: ImageFiles, report: ExtractionReport) -> None:
    if report.images_moved or report.images_copied:
        report.notes.append(
            f"Moved: {counted(report.images_moved, 'image')}; copies of others: "
            f"{counted(report.images_copied, 'image')}. Their embeddings were taken over."
        )
    tell_guessed(prepared.remarks[GUESSED], report)
    silent = sorted(prepared.remarks[IN_SILENCE])
    if silent:
        report.notes.append(
            f"{counted(len(silent), 'image')} in {folder} had changed although size and modification time are the "
            f"same (the first is '{silent[0]:.200}'); {'it was' if len(silent) == 1 else 'they were'} embedded again."
        )


def tell_guessed(guessed: Sequence[str], report: ExtractionReport) -> None:
    """Return a note on how many grey images needed a guess of the white level."""
    if guessed:
        report.notes.append(
            f"{counted(len(guessed), 'grey image')} {'uses' if len(guessed) == 1 else 'use'} only some bits without "
            f"stating which, so the largest value was taken as white; the first is '{min(guessed):.200}'."
        )


def _gone(
    folder: Path, gone: np.ndarray, stored: StoredItems, writer: StoreWriter, report: ExtractionReport, *, prune: bool
) -> None:
    """Count stored images without a file in the folder, and remove them if requested."""
    report.images_gone = len(gone)
    if not len(gone):
        return
    first = f"the first is '{stored.ids(gone[:1])[0]:.200}'"
    if not prune:
        report.notes.append(
            f"{counted(len(gone), 'image')} in the store {'has' if len(gone) == 1 else 'have'} no file in {folder} "
            f"({first}); searches still find {'it' if len(gone) == 1 else 'them'}. --prune removes such images; leave "
            "it out if the store also holds images from other folders."
        )
        return
    if len(gone) == stored.with_file:
        raise UsageError(
            f"{folder}: --prune would remove all {len(gone):,} images that the store had before ({first}), so this "
            "looks like another folder. Nothing was removed; to remove them anyway, use frevl store remove"
        )
    for start in range(0, len(gone), _REMOVED_AT_ONCE):
        report.images_pruned += writer.remove("image", stored.ids(gone[start : start + _REMOVED_AT_ONCE]))
    report.notes.append(f"Removed {counted(report.images_pruned, 'image')} without a file in {folder} ({first}).")
