"""Items -> encoders -> store: decoding runs beside the networks, commits are small, a second call goes on."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from frevl.data.names import same_names, why_unknown
from frevl.data.pairs import Pairs, read_pairs
from frevl.encoders.images import read_image
from frevl.encoders.interface import ImageTower, TextTower, processors
from frevl.encoders.registry import load_encoder, with_layers
from frevl.errors import ImageError, InputError, UsageError
from frevl.progress import ProgressLine
from frevl.rejects import Reject, rejects_sentence
from frevl.store.canaries import tower_records
from frevl.store.commit_buffer import Pending, Work
from frevl.store.image_folder import FolderFile, list_folder, read_regular_file
from frevl.store.writer import Item, StoreWriter

__all__ = ["ExtractionReport", "extract"]

_TEXTS_AT_ONCE = 4096  # sorted by length, so that padding wastes little
_NEVER_CUT = 16  # characters; where four tokens stand for one (bytes of rare signs), 64 tokens hold them

A = TypeVar("A")
B = TypeVar("B")


@dataclass
class ExtractionReport:
    """What one extraction did.

    Attributes:
        store: Path of the store.
        images: Images embedded now by at least one tower.
        texts: Texts embedded now.
        images_kept: Images that were in the store already and had not changed.
        texts_kept: Texts that were in the store already.
        rejects: What was left out, now.
        notes: Sentences that a user should read.
        seconds: Wall time.
    """

    store: str
    images: int = 0
    texts: int = 0
    images_kept: int = 0
    texts_kept: int = 0
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return what `frevl extract --json` writes."""
        return {**vars(self), "rejects": [vars(reject) for reject in self.rejects]}

    def sentence(self) -> str:
        """Say it in one line."""
        done = (
            f"Embedded {self.images:,} images and {self.texts:,} texts in {self.seconds:.1f} s; "
            f"{self.images_kept:,} images and {self.texts_kept:,} texts were in the store already."
        )
        return " ".join([done, *self.notes, rejects_sentence(self.rejects)]).rstrip()


def extract(
    store: str | Path,
    *,
    images: str | Path | None = None,
    pairs: Sequence[str | Path | Pairs] = (),
    encoder: Sequence[str] = ("packaged",),
    tokens: str = "pooled",
    layers: Sequence[int] = (),
    dtype: str = "float16",
    commit_rows: int = 1024,
    commit_seconds: float = 5.0,
    workers: int | None = None,
    progress: bool = False,
) -> ExtractionReport:
    """Embed images and texts once and keep them.

    What is in the store already and has not changed is not embedded again: a call that was killed goes on
    where the last commit ended. Broken items go to the store's rejects.

    Args:
        store: Folder of the store; made if it is missing.
        images: Folder of images; an image's id is its path below it, with ``/``.
        pairs: Pairs files, or pairs, whose texts are embedded.
        encoder: Names for `load_encoder`; towers that two encoders share are embedded once.
        tokens: ``pooled``, or an image grid ``7x7``, ``4x4``, ``2x2`` with word tokens for texts.
        layers: Hidden layers to keep side by side instead of an encoder's own output, -1 for the last; only encoders
            ``hf:MODEL`` have them, and they become part of the encoder's name.
        dtype: ``float16`` or ``float32``, as stored.
        commit_rows: Commit after this many items,
        commit_seconds: or after this many seconds, whichever comes first.
        workers: Decoding threads; None takes one a processor.
        progress: Show progress lines.

    Returns:
        What was done.

    Raises:
        UsageError: Nothing to embed, an unknown encoder or type.
        InputError: The image folder is missing or holds no readable image, or a pairs file cannot be used.
        StoreError: The store cannot be written.
        FingerprintError: The store was made with other encoders or settings under the same name.
    """
    started = time.monotonic()
    if images is None and not pairs:
        raise UsageError("Nothing to embed: give a folder with --images, pairs files with --pairs, or both")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"The stored type must be 'float16' or 'float32', found '{dtype}'")
    if images is not None and not Path(images).is_dir():
        raise InputError(
            f"{images}: expected a folder of images, found {'a file' if Path(images).exists() else 'none'}"
        )
    names = dict.fromkeys(with_layers(name, layers) for name in encoder)
    loaded = [load_encoder(name, tokens=tokens) for name in names]
    if images is not None and next(list_folder(images), None) is None:
        raise InputError(f"{images}: expected images, found no file in that folder")
    report = ExtractionReport(str(store))
    texts, referred = _texts_of(pairs, report)
    with StoreWriter(store) as writer:
        writer.register([tower for one in loaded for tower in tower_records(one, dtype=dtype)])
        writer.reject(report.rejects)
        seen: set[str] = set()
        if images is not None:
            image_towers = list({one.image.name: one.image for one in loaded if one.image}.values())
            pending = Pending(writer, "image", image_towers, rows=commit_rows, seconds=commit_seconds)
            seen = _extract_images(
                Path(images), image_towers, pending, report, workers=workers or processors(), progress=progress
            )
        _reject_pairs_without_image(writer, referred, seen, images, report)
        _forgive_lines(writer, pairs, report)
        if texts:
            text_towers = list({one.text.name: one.text for one in loaded if one.text}.values())
            pending = Pending(writer, "text", text_towers, rows=commit_rows, seconds=commit_seconds)
            _extract_texts(texts, text_towers, pending, report, progress=progress)
    report.notes += writer.notes
    report.seconds = time.monotonic() - started
    return report


def _extract_images(
    folder: Path,
    towers: Sequence[ImageTower],
    pending: Pending,
    report: ExtractionReport,
    *,
    workers: int,
    progress: bool,
) -> set[str]:
    """Embed the images of a folder that the store lacks; return the ids of all files in the folder."""
    writer = pending.writer
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "image"}
    seen: set[str] = set()
    batch: list[Work] = []
    total = sum(1 for _ in list_folder(folder, leave_out=writer.path)) if progress else None
    files = list_folder(folder, leave_out=writer.path)
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool,
        ProgressLine("images", total, enabled=progress) as line,
    ):
        for id_, work in _ahead(pool, lambda file: _prepare(file, towers, pending), files, 4 * pending.size):
            seen.add(id_)
            if isinstance(work, Reject):
                pending.reject(work)
            elif work is None:
                report.images_kept += 1
            else:
                batch.append(work)
            if len(batch) == pending.size:
                pending.add(batch)
                batch = []
            line.advance(note=f"{line.rate:.0f}/s")
        if batch:
            pending.add(batch)
        pending.commit()
    report.images = pending.embedded
    report.rejects += pending.rejected
    if not report.images and not report.images_kept:
        raise InputError(
            f"{folder}: expected images, found no file that can be read as one. {rejects_sentence(pending.rejected)}"
        )
    writer.forgive("image", former.intersection(seen) - {reject.id for reject in pending.rejected})
    return seen


def _prepare(file: FolderFile, towers: Sequence[ImageTower], pending: Pending) -> tuple[str, Work | Reject | None]:
    """Read, hash and decode one file, if the store does not hold it as it is. Runs in a thread."""
    if file.problem:
        return file.id, Reject("image", file.id, file.problem)
    state = pending.state(file.id)
    try:
        status = os.stat(file.path)  # noqa: PTH116
        unchanged = state and (state["bytes"], state["modified_ns"]) == (status.st_size, status.st_mtime_ns)
        imported = state and not state["bytes"]  # its file was never seen, so nothing says that it changed
        if state and (unchanged or imported) and not state["lacking"]:
            return file.id, None
        content = read_regular_file(file.path, status)
        item = Item(file.id, hashlib.sha256(content).hexdigest()[:32], len(content), status.st_mtime_ns)
        needing, way = towers, "append"
        if state and imported:
            item = Item(file.id, state["content_hash"], 0)
        if state and state["content_hash"] != item.content_hash:
            way = "replace"
        elif state:
            needing, way = [tower for tower in towers if tower.name in state["lacking"]], "fill"
            if not needing:
                return file.id, None
        # Every tower gets the pixels that its identity names, whichever others need the picture too.
        pictures = {target: read_image(content, target=target) for target in {tower.target for tower in needing}}
        return file.id, Work(item, way, {tower.name: tower.prepare(pictures[tower.target]) for tower in needing})
    except ImageError as error:
        reason = str(error).rpartition("the given bytes: ")[2].rstrip(".")
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror or error})"
    kept = "; the store keeps the embedding of its former content" if state else ""
    return file.id, Reject("image", file.id, reason + kept)


def _extract_texts(
    texts: Sequence[str], towers: Sequence[TextTower], pending: Pending, report: ExtractionReport, *, progress: bool
) -> None:
    """Embed the texts that the store lacks."""
    work = []
    for text in texts:
        state = pending.state(text)
        needing = [tower.name for tower in towers] if state is None else state["lacking"]
        if not needing:
            report.texts_kept += 1
            continue
        content = text.encode("utf-8")
        item = Item(text, hashlib.sha256(content).hexdigest()[:32], len(content))
        work.append(Work(item, "append" if state is None else "fill", dict.fromkeys(needing, text)))
    with ProgressLine("texts", len(work), enabled=progress) as line:
        for start in range(0, len(work), _TEXTS_AT_ONCE):
            # Neighbours of one length need little padding.
            chunk = sorted(work[start : start + _TEXTS_AT_ONCE], key=lambda one: len(one.item.id))
            for first in range(0, len(chunk), pending.size):
                batch = chunk[first : first + pending.size]
                pending.add(batch)
                line.advance(len(batch), note=f"{line.rate:.0f}/s")
        pending.commit()
    report.texts = pending.embedded
    report.rejects += pending.rejected
    # A text of so few characters is never cut; the others are counted by the tower that cuts most.
    long = [one.item.id for one in work if len(one.item.id) > _NEVER_CUT]
    cut = max((tower.truncated(long) for tower in towers), default=0)
    if cut:
        report.notes.append(f"{cut:,} texts are longer than the encoder reads and were cut.")


def _texts_of(files: Sequence[str | Path | Pairs], report: ExtractionReport) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the different texts of some pairs files, and the image id and place of every pair."""
    texts: dict[str, None] = {}
    referred: list[tuple[str, str]] = []
    for file in {id(file) if isinstance(file, Pairs) else Path(file): file for file in files}.values():
        pairs = file if isinstance(file, Pairs) else read_pairs(file)
        report.rejects += pairs.rejected
        report.notes += pairs.notes
        texts.update(dict.fromkeys(pairs.texts))
        referred += zip(pairs.images, pairs.places, strict=True)
    return list(texts), referred


def _reject_pairs_without_image(
    writer: StoreWriter,
    referred: Sequence[tuple[str, str]],
    seen: set[str],
    folder: str | Path | None,
    report: ExtractionReport,
) -> None:
    """Reject pairs whose image neither the folder nor the store has; not before there are images at all."""
    known = writer.store.positions("image")
    if not known and not seen:
        return
    there = seen | known.keys()
    same = same_names((id_ for id_, _ in referred), there)
    nowhere = [
        (id_, place)
        for id_, place in referred
        if id_ not in there and id_ not in same and not _lies_below(id_, place, folder)
    ]
    nearest = why_unknown(nowhere[0][0], there) if nowhere else ""  # for the first: it is a walk over all ids
    lost = [
        Reject("pair", place, f"field 'image': there is no image '{id_}' in the folder or the store" + why)
        for (id_, place), why in zip(nowhere, [f"; {nearest}" if nearest else "", *[""] * len(nowhere)], strict=False)
    ]
    writer.reject(lost)
    report.rejects += lost


def _lies_below(name: str, place: str, folder: str | Path | None) -> bool:
    """Whether a name is the path of a file in the folder, seen from the working directory or from the pairs file."""
    if folder is None:
        return False
    below = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118
    beside = os.path.dirname(place.rpartition(":")[0])  # noqa: PTH120
    written = (name, name.replace("\\", "/"))
    paths = [path for one in written for path in (one, os.path.join(beside, one))]  # noqa: PTH118
    return any(os.path.realpath(path).startswith(below) and os.path.isfile(path) for path in paths)  # noqa: PTH113


def _forgive_lines(writer: StoreWriter, files: Sequence[str | Path | Pairs], report: ExtractionReport) -> None:
    """Take back former rejects of lines of these files that are in order now."""
    names = {file.source if isinstance(file, Pairs) else str(Path(file)) for file in files}
    former = {reject.id for reject in writer.store.rejects() if reject.kind == "pair"}
    repaired = {place for place in former if place.rpartition(":")[0] in names}
    writer.forgive("pair", repaired - {reject.id for reject in report.rejects if reject.kind == "pair"})


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
