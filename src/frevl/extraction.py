"""Items -> encoders -> store: decoding runs beside the networks, commits are small, a second call goes on."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from frevl.canaries import tower_records
from frevl.embeddings import stack
from frevl.encoders import Embeddings, ImageTower, TextTower, load_encoder, processors
from frevl.errors import ImageError, InputError, UsageError
from frevl.images import read_image
from frevl.pairs import read_pairs
from frevl.progress import ProgressLine
from frevl.rejects import Reject, rejects_sentence
from frevl.towers import Modality
from frevl.writer import Item, StoreWriter

__all__ = ["ExtractionReport", "extract"]

_TEXTS_AT_ONCE = 4096  # sorted by length, so that padding wastes little
_NEVER_CUT = 64  # characters; no tower reads fewer tokens than that
_COMMIT_BYTES = 64 << 20  # token embeddings of 1,024 images would fill memory

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
    pairs: Sequence[str | Path] = (),
    encoder: Sequence[str] = ("packaged",),
    tokens: str = "pooled",
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
        pairs: Pairs files whose texts are embedded.
        encoder: Names for `load_encoder`; towers that two encoders share are embedded once.
        tokens: ``pooled``, or an image grid ``7x7``, ``4x4``, ``2x2`` with word tokens for texts.
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
    loaded = [load_encoder(name, tokens=tokens) for name in dict.fromkeys(encoder)]
    report = ExtractionReport(str(store))
    texts, referred = _texts_of(pairs, report)
    with StoreWriter(store) as writer:
        for one in loaded:
            for tower in tower_records(one, dtype=dtype):
                writer.register(tower)
        writer.reject(report.rejects)
        limits = (commit_rows, commit_seconds)
        if images is not None:
            towers = list({one.image.name: one.image for one in loaded if one.image}.values())
            buffer = _Buffer(writer, "image", limits, np.dtype(dtype))
            seen = _extract_images(
                Path(images), towers, buffer, report, workers=workers or processors(), progress=progress
            )
            lost = [
                Reject("pair", place, f"the folder has no image '{id_}'") for id_, place in referred if id_ not in seen
            ]
            report.rejects += lost
            writer.reject(lost)
        if texts:
            text_towers = list({one.text.name: one.text for one in loaded if one.text}.values())
            buffer = _Buffer(writer, "text", limits, np.dtype(dtype))
            _extract_texts(texts, text_towers, buffer, report, progress=progress)
    report.seconds = time.monotonic() - started
    return report


@dataclass(frozen=True)
class _Work:
    """One item on its way: what the store knows of it decides what has to be done.

    Attributes:
        item: Identity of the item.
        way: ``new``, ``changed`` (embed again) or ``fill`` (further towers).
        prepared: Input of every tower that still has to see it, by name.
    """

    item: Item
    way: str
    prepared: dict[str, np.ndarray | str]


class _Buffer:
    """Rows that wait for the next commit."""

    def __init__(
        self, writer: StoreWriter, modality: Modality, limits: tuple[int, float], dtype: np.dtype[Any]
    ) -> None:
        self.writer = writer
        self._modality = modality
        self._rows_limit, self._seconds_limit = limits
        self._dtype = dtype
        self._rows: list[tuple[_Work, dict[str, np.ndarray]]] = []
        self._bytes = 0
        self._since = time.monotonic()
        self.known = writer.store.positions(modality)
        self.states = writer.store.states(modality)

    def add(self, work: Sequence[_Work], towers: Sequence[ImageTower | TextTower]) -> None:
        """Embed a batch and keep the rows until the next commit."""
        rows: list[dict[str, np.ndarray]] = [{} for _ in work]
        for tower in towers:
            needing = [i for i, one in enumerate(work) if tower.name in one.prepared]
            if not needing:
                continue
            embedded = tower.embed([work[i].prepared[tower.name] for i in needing])  # type: ignore[misc]
            for i, values, mask in zip(needing, embedded.values, embedded.mask, strict=True):
                rows[i][tower.name] = values[mask].astype(self._dtype)
        self._rows += zip(work, rows, strict=True)
        self._bytes += sum(values.nbytes for row in rows for values in row.values())
        waited = time.monotonic() - self._since
        if len(self._rows) >= self._rows_limit or self._bytes >= _COMMIT_BYTES or waited >= self._seconds_limit:
            self.commit()

    def commit(self) -> None:
        """Write what waits; items that need the same treatment go in one commit."""
        write = {"new": self.writer.append, "changed": self.writer.replace, "fill": self.writer.fill}

        def treatment(entry: tuple[_Work, dict[str, np.ndarray]]) -> tuple[str, tuple[str, ...]]:
            return entry[0].way, tuple(entry[1])

        for (way, names), group in groupby(sorted(self._rows, key=treatment), key=treatment):
            entries = list(group)
            columns = {name: Embeddings(*stack([row[name] for _, row in entries])) for name in names}
            write[way](self._modality, [work.item for work, _ in entries], columns)
        self._rows, self._bytes, self._since = [], 0, time.monotonic()

    def lacking(self, row: int, towers: Sequence[ImageTower | TextTower]) -> list[str]:
        """Return the names of the towers of which an item that is in the store has no embedding."""
        return [tower.name for tower in towers if not self.states[f"has:{tower.name}"][row]]


def _extract_images(
    folder: Path,
    towers: Sequence[ImageTower],
    buffer: _Buffer,
    report: ExtractionReport,
    *,
    workers: int,
    progress: bool,
) -> set[str]:
    """Embed the images of a folder that the store lacks; return the ids of all files in the folder."""
    size = max((tower.batch_size for tower in towers), default=1)
    former = {reject.id for reject in buffer.writer.store.rejects() if reject.kind == "image"}
    seen: set[str] = set()
    batch: list[_Work] = []
    rejected: list[Reject] = []
    total = sum(1 for _ in _files(folder)) if progress else None
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool,
        ProgressLine("images", total, enabled=progress) as line,
    ):
        for id_, work in _ahead(pool, lambda path: _prepare(folder, path, towers, buffer), _files(folder), 4 * size):
            seen.add(id_)
            if isinstance(work, Reject):
                rejected.append(work)
                buffer.writer.reject([work])
            elif work is None:
                report.images_kept += 1
            else:
                batch.append(work)
                report.images += 1
            if len(batch) == size:
                buffer.add(batch, towers)
                batch = []
            line.advance(note=f"{line.rate:.0f}/s")
        if batch:
            buffer.add(batch, towers)
        buffer.commit()
    report.rejects += rejected
    if len(seen) == len(rejected):
        raise InputError(
            f"{folder}: expected images, found no file that can be read as one. {rejects_sentence(rejected)}".rstrip()
        )
    buffer.writer.forgive("image", former.intersection(seen) - {reject.id for reject in rejected})
    return seen


def _prepare(
    folder: Path, path: Path, towers: Sequence[ImageTower], buffer: _Buffer
) -> tuple[str, _Work | Reject | None]:
    """Read, hash and decode one file, if the store does not hold it as it is. Runs in a thread."""
    id_ = path.relative_to(folder).as_posix()
    try:
        id_.encode("utf-8")
    except UnicodeEncodeError:
        printable = id_.encode("utf-8", "backslashreplace").decode()
        return printable, Reject("image", printable, "the file name is not UTF-8; rename it")
    row = buffer.known.get(id_)
    try:
        status = path.stat()
        if row is not None:
            lacking = buffer.lacking(row, towers)
            same_file = (
                buffer.states["bytes"][row] == status.st_size
                and buffer.states["modified_ns"][row] == status.st_mtime_ns
            )
            if same_file and not lacking:
                return id_, None
        content = path.read_bytes()
        item = Item(id_, hashlib.sha256(content).hexdigest()[:32], len(content), status.st_mtime_ns)
        needing, way = list(towers), "new"
        if row is not None:
            same = buffer.states["content_hash"][row].decode() == item.content_hash
            if same and not lacking:
                return id_, None
            needing, way = ([t for t in towers if t.name in lacking], "fill") if same else (needing, "changed")
        picture = read_image(content, target=max(tower.target for tower in needing))
        return id_, _Work(item, way, {tower.name: tower.prepare(picture) for tower in needing})
    except ImageError as error:
        return id_, Reject("image", id_, str(error))
    except OSError as error:
        return id_, Reject("image", id_, f"the file cannot be read ({error.strerror or error})")


def _extract_texts(
    texts: Sequence[str], towers: Sequence[TextTower], buffer: _Buffer, report: ExtractionReport, *, progress: bool
) -> None:
    """Embed the texts that the store lacks."""
    work = []
    for text in texts:
        row = buffer.known.get(text)
        needing = towers if row is None else [t for t in towers if t.name in buffer.lacking(row, towers)]
        if not needing:
            report.texts_kept += 1
            continue
        content = text.encode("utf-8")
        item = Item(text, hashlib.sha256(content).hexdigest()[:32], len(content))
        work.append(_Work(item, "new" if row is None else "fill", {tower.name: text for tower in needing}))
    report.texts = len(work)
    size = max((tower.batch_size for tower in towers), default=1)
    with ProgressLine("texts", len(work), enabled=progress) as line:
        for start in range(0, len(work), _TEXTS_AT_ONCE):
            # Neighbours of one length need little padding.
            chunk = sorted(work[start : start + _TEXTS_AT_ONCE], key=lambda one: len(one.item.id))
            for first in range(0, len(chunk), size):
                batch = chunk[first : first + size]
                buffer.add(batch, towers)
                line.advance(len(batch), note=f"{line.rate:.0f}/s")
        buffer.commit()
    # A text of so few characters is never cut; the others are counted by the tower that cuts most.
    long = [one.item.id for one in work if len(one.item.id) > _NEVER_CUT]
    cut = max((tower.truncated(long) for tower in towers), default=0)
    if cut:
        report.notes.append(f"{cut:,} texts are longer than the encoder reads and were cut.")


def _texts_of(files: Sequence[str | Path], report: ExtractionReport) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the different texts of some pairs files, and the image id and place of every pair."""
    texts: dict[str, None] = {}
    referred: dict[str, str] = {}
    for file in files:
        pairs = read_pairs(file)
        report.rejects += pairs.rejected
        texts.update(dict.fromkeys(pairs.texts))
        for image, place in zip(pairs.images, pairs.places, strict=True):
            referred.setdefault(image, place)
    return list(texts), list(referred.items())


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in a fixed order, hidden ones left out; a linked folder is entered once."""
    entered: set[str] = set()

    def walk(current: Path) -> Iterator[Path]:
        real = os.path.realpath(current)
        if real in entered:
            return
        entered.add(real)
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{current}: the folder cannot be read ({error.strerror})") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(Path(entry.path))
            else:
                yield Path(entry.path)

    yield from walk(folder)


def _ahead(pool: ThreadPoolExecutor, call: Callable[[A], B], arguments: Iterable[A], depth: int) -> Iterator[B]:
    """Map in threads, in order, never more than ``depth`` results ahead: memory stays flat."""
    waiting: deque[Future[B]] = deque()
    for argument in arguments:
        waiting.append(pool.submit(call, argument))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
