"""Embed the texts of an extraction, in batches that an interruption does not change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from frevl.encoders.interface import TextTower
from frevl.encoders.unreadable_texts import MOSTLY, unread_sentence
from frevl.store.extraction.embedder import Embedder
from frevl.store.extraction.items import CommitBuffer, ExtractionReport, PendingItem, StoredItems
from frevl.store.writer import Item, StoreWriter
from frevl.terminal import ProgressLine

__all__ = ["batches", "extract_texts"]

_TEXTS_AT_ONCE = 4096  # sorted by length to reduce padding, and passed to a tokenizer at once
_NEVER_CUT = 16  # characters; even at four tokens per character (bytes of rare signs), 64 tokens suffice


def extract_texts(
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
        for done in embedder.texts(batches(texts, lacking, pending, buffer.size), buffer):
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


def batches(
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
