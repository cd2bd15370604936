"""Images of a folder, or pictures inside tables -> encoders -> store: decoding runs in parallel with the networks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from frevl.data.arrow_rows import ArrowSource
from frevl.encoders.interface import ImageTower
from frevl.errors import InputError, UsageError
from frevl.rejects import Reject, rejects_sentence
from frevl.store.commit_buffer import CommitBuffer, PendingItem
from frevl.store.extraction_report import ExtractionReport
from frevl.store.image_folder.files import ImageFiles
from frevl.store.image_folder.listing import Choice, FolderFile, list_folder
from frevl.store.image_folder.tables import Picture, TablePictures
from frevl.store.sharding.shares import Share
from frevl.store.stored_items import StoredItems
from frevl.store.writer import StoreWriter
from frevl.terminal import ProgressLine

__all__ = ["embed_images", "extract_images", "extract_pictures", "tell_guessed"]

A = TypeVar("A")
B = TypeVar("B")


def extract_images(
    folder: Path,
    towers: Sequence[ImageTower],
    buffer: CommitBuffer,
    report: ExtractionReport,
    *,
    choice: Choice,
    share: Share,
    prune: bool,
    check_content: bool,
    workers: int,
    progress: bool,
) -> set[str]:
    """Embed the images of a folder that the store lacks; return the ids of all files of its share."""
    writer = buffer.writer
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "image"}
    stored = StoredItems(writer.store, "image", [tower.name for tower in towers])
    prepared = ImageFiles(folder, towers, stored, check_content=check_content)
    counted = Choice(choice.include, choice.exclude)
    listed = list_folder(folder, leave_out=writer.path, choice=counted) if progress else None
    total = None if listed is None else sum(1 for _ in share.apart().own(listed, _id_of))
    files = share.own(list_folder(folder, leave_out=writer.path, choice=choice), _id_of)
    seen = embed_images(
        str(folder), "file", files, prepared.prepare, buffer, report, total=total, may_be_empty=share.partial,
        workers=workers, progress=progress,
    )  # fmt: skip
    writer.clear_rejects("image", former.intersection(seen) - {reject.id for reject in buffer.rejected})
    report.notes += choice.sentences()
    _tell_changes(folder, prepared, report)
    _gone(folder, stored.gone(seen, prepared.is_gone), writer, report, prune=prune, stored=stored.with_file)
    if prune:
        writer.clear_rejects("image", {id_ for id_ in former - seen if prepared.is_gone(id_)})
    return seen


def extract_pictures(
    tables: Sequence[ArrowSource],
    columns: Mapping[str, str],
    towers: Sequence[ImageTower],
    buffer: CommitBuffer,
    report: ExtractionReport,
    *,
    share: Share,
    workers: int,
    progress: bool,
) -> set[str]:
    """Embed the pictures inside tables that the store lacks; return the ids of all of them that are its share."""
    writer = buffer.writer
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "image"}
    inside = TablePictures(tables, columns, towers, StoredItems(writer.store, "image", [one.name for one in towers]))
    names = ", ".join(table.place for table in tables)
    seen = embed_images(
        names, "picture", share.own(inside.pictures(), _id_of_picture), inside.prepare, buffer, report,
        ahead=4 * workers,  # the bytes of every picture that waits are in memory
        may_be_empty=share.partial, workers=workers, progress=progress,
    )  # fmt: skip
    writer.clear_rejects("image", former.intersection(seen) - {reject.id for reject in buffer.rejected})
    tell_guessed(inside.guessed_white, report)
    return seen


def embed_images(
    place: str,
    what: str,
    sources: Iterable[A],
    prepare: Callable[[A], tuple[str, PendingItem | Reject | None]],
    buffer: CommitBuffer,
    report: ExtractionReport,
    *,
    total: int | None = None,
    ahead: int | None = None,
    may_be_empty: bool = False,
    workers: int,
    progress: bool,
) -> set[str]:
    """Prepare images in threads and embed what the store lacks.

    Args:
        place: Where they are, for messages.
        what: What one of them is, for messages.
        sources: The images.
        prepare: Returns id of one, and what has to be done; it runs in threads.
        buffer: Embeds and commits.
        report: Filled in.
        total: How many there are, or None.
        ahead: How many are prepared ahead of the one that is embedded; None takes four batches.
        may_be_empty: Do not refuse to find none.
        workers: Threads.
        progress: Show a progress line.

    Returns:
        The ids of all.

    Raises:
        InputError: There was no image.
    """
    seen: set[str] = set()
    batch: list[PendingItem] = []
    with (
        buffer.writer.keep_version("image"),
        ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool,
        ProgressLine("images", total, enabled=progress) as line,
    ):
        for id_, work in _ahead(pool, prepare, sources, ahead or 4 * buffer.size):
            seen.add(id_)
            if isinstance(work, Reject):
                buffer.reject(work)
            elif work is None:
                report.images_kept += 1
            else:
                batch.append(work)
            if len(batch) == buffer.size:
                buffer.add(batch)
                batch = []
            line.advance(note=f"{line.rate:.0f}/s")
        if batch:
            buffer.add(batch)
        buffer.commit()
    report.images, report.images_moved, report.images_copied = buffer.embedded, buffer.moved, buffer.copied
    report.rejects += buffer.rejected
    if not may_be_empty and not any((report.images, report.images_kept, report.images_moved, report.images_copied)):
        raise InputError(
            f"{place}: expected images, found no {what} that can be read as one. {rejects_sentence(buffer.rejected)}"
        )
    return seen


def _id_of(file: FolderFile) -> str:
    return file.id


def _id_of_picture(picture: Picture) -> str:
    return picture[1]


def _tell_changes(folder: Path, prepared: ImageFiles, report: ExtractionReport) -> None:
    if report.images_moved or report.images_copied:
        report.notes.append(
            f"Moved: {_images(report.images_moved)}; copies of others: {_images(report.images_copied)}. Their "
            "embeddings were taken over."
        )
    tell_guessed(prepared.guessed_white, report)
    silent = sorted(prepared.changed_in_silence)
    if silent:
        report.notes.append(
            f"{len(silent):,} images of {folder} had changed with the same size and time, the first is "
            f"'{silent[0]:.200}'; they were embedded again."
        )


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def tell_guessed(guessed: Sequence[str], report: ExtractionReport) -> None:
    """Say for how many grey pictures it was a guess what is white."""
    if guessed:
        report.notes.append(
            f"{len(guessed):,} grey pictures use only a part of their bits and do not say which: the largest value "
            f"decided what is white, the first is '{min(guessed):.200}'."
        )


def _gone(
    folder: Path, gone: list[str], writer: StoreWriter, report: ExtractionReport, *, prune: bool, stored: int
) -> None:
    """Count images of the store without a file in the folder; remove them if asked to."""
    report.images_gone = len(gone)
    if not gone:
        return
    first = f"the first is '{gone[0]:.200}'"
    if not prune:
        report.notes.append(
            f"{len(gone):,} images of the store have no file in {folder}, {first}: searches still find them. --prune "
            "removes them; leave it out if the store also holds images of other folders."
        )
        return
    if len(gone) == stored:
        raise UsageError(
            f"{folder}: --prune would remove all {stored:,} images that the store had before, {first}: that looks like "
            "another folder. Nothing was removed; to remove them all the same use frevl store remove"
        )
    report.images_pruned = writer.remove("image", gone)
    report.notes.append(f"Removed {report.images_pruned:,} images that have no file in {folder}, {first}.")


def _ahead(pool: ThreadPoolExecutor, call: Callable[[A], B], arguments: Iterable[A], depth: int) -> Iterator[B]:
    """Map in threads, in order, never more than ``depth`` results ahead: memory stays flat."""
    waiting: deque[Future[B]] = deque()
    try:
        for argument in arguments:
            waiting.append(pool.submit(call, argument))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:  # after an error nobody wants them
            future.cancel()
