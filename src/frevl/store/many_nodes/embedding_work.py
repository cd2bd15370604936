"""The work of an extraction worker: open the encoders and embed assigned blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from frevl.data.ahead import ahead_of
from frevl.devices import check_device
from frevl.encoders.registry import load_encoder
from frevl.encoders.runtime import on_device
from frevl.errors import Reject
from frevl.store.canaries import tower_records
from frevl.store.extraction.embedder import MakePictures
from frevl.store.extraction.items import KnownItem, PendingItem, Row, embed_items
from frevl.store.towers import Tower

__all__ = ["Done", "EmbeddingWork", "ImageBlock", "PackedRows", "TextBlock", "open_work"]


@dataclass(frozen=True, repr=False)
class ImageBlock:
    """A block of images for one worker.

    Attributes:
        number: Number of the block, from 0.
        first: Id of the first image.
        make: Creates the object that prepares the images.
        sources: Sources of the images.
        known: The items known to the store.
    """

    number: int
    first: str
    make: MakePictures[Any]
    sources: Sequence[Any]
    known: dict[str, KnownItem]

    def __str__(self) -> str:
        return f"{len(self.sources)} images from '{self.first:.80}' on"


@dataclass(frozen=True, repr=False)
class TextBlock:
    """A block of texts for one worker, embedded as one batch.

    Attributes:
        number: Number of the block, from 0.
        items: The texts.
    """

    number: int
    items: Sequence[PendingItem]

    def __str__(self) -> str:
        return f"{len(self.items)} texts from '{self.items[0].item.id:.80}' on"


@dataclass(frozen=True)
class PackedRows:
    """Embeddings of several items in one array per tower, because sending thousands of small arrays would be slow.

    Attributes:
        values: By tower, ``(tokens of all items, dim)``.
        places: By tower, the positions of the items that have it.
        lengths: By tower, the number of tokens of each of those.
        count: Number of items.
    """

    values: dict[str, np.ndarray]
    places: dict[str, list[int]]
    lengths: dict[str, list[int]]
    count: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> PackedRows:
        """Pack rows."""
        names = dict.fromkeys(name for row in rows for name in row)
        places = {name: [i for i, row in enumerate(rows) if name in row] for name in names}
        parts = {name: [rows[i][name] for i in places[name]] for name in names}
        lengths = {name: [len(part) for part in parts[name]] for name in names}
        return cls({name: np.concatenate(parts[name]) for name in names}, places, lengths, len(rows))

    def rows(self) -> list[Row]:
        """Return the rows."""
        rows: list[Row] = [{} for _ in range(self.count)]
        for name, values in self.values.items():
            ends = np.cumsum(self.lengths[name]).tolist()
            for i, end, length in zip(self.places[name], ends, self.lengths[name], strict=True):
                rows[i][name] = values[end - length : end]
        return rows


@dataclass(frozen=True)
class Done:
    """The result of a block.

    Attributes:
        work: Id and work of each image; embedded images come without the input of their networks.
        packed: Embeddings of the items among them, in order.
        refused: By position of an item, why it cannot be used.
        remarks: See `frevl.store.extraction.embedder`.
    """

    work: list[tuple[str, PendingItem | Reject | None]]
    packed: PackedRows
    refused: dict[int, str]
    remarks: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Known:
    """The store's records of the items of one block; other items' embeddings cannot be reused through it."""

    items: dict[str, KnownItem]

    def get(self, id_: str) -> KnownItem | None:
        return self.items.get(id_)

    def take_over(self, content_hash: str, is_gone: Callable[[str], bool]) -> None:  # noqa: ARG002
        return None


class EmbeddingWork:
    """Embed blocks with the encoders of this node.

    Args:
        encoders: Names of the encoders.
        tokens: See `frevl.encoders.registry.load_encoder`.
        dtype: Stored number type.
        device: Device for networks from a model hub.

    Attributes:
        about: Records of its towers, with their embeddings of the canaries.
    """

    def __init__(self, encoders: Sequence[str], tokens: str, dtype: str, device: str | None) -> None:
        if device is not None:
            check_device(device)
        with on_device(device):
            loaded = [load_encoder(name, tokens=tokens) for name in encoders]
        self.about: list[Tower] = [tower for one in loaded for tower in tower_records(one, dtype=dtype)]
        self._images = list({one.image.name: one.image for one in loaded if one.image}.values())
        self._texts = list({one.text.name: one.text for one in loaded if one.text}.values())
        self._dtypes = {tower.name: dtype for tower in self.about}
        self._size = max((tower.batch_size for tower in self._images), default=1)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def __call__(self, block: ImageBlock | TextBlock) -> Done:
        """Embed a block."""
        return self._embed_images(block) if isinstance(block, ImageBlock) else self._embed_texts(block)

    def _embed_texts(self, block: TextBlock) -> Done:
        rows, refused = embed_items(block.items, self._texts, self._dtypes)
        return Done([], PackedRows.of(rows), refused)

    def _embed_images(self, block: ImageBlock) -> Done:
        pictures = block.make(self._images, _Known(block.known))
        work: list[tuple[str, PendingItem | Reject | None]] = []
        batch: list[PendingItem] = []
        rows: list[Row] = []
        refused: dict[int, str] = {}

        def embed() -> None:
            embedded, bad = embed_items(batch, self._images, self._dtypes)
            refused.update({len(rows) + i: reason for i, reason in bad.items()})
            rows.extend(embedded)
            batch.clear()

        for id_, one in ahead_of(self._pool, pictures.prepare, block.sources, self._size):
            if isinstance(one, PendingItem):
                batch.append(one)
                work.append((id_, replace(one, prepared={})))
            else:
                work.append((id_, one))
            if len(batch) == self._size:
                embed()
        if batch:
            embed()
        return Done(work, PackedRows.of(rows), refused, pictures.remarks)


def open_work(encoders: Sequence[str], tokens: str, dtype: str, device: str | None) -> EmbeddingWork:
    """Open the encoders on a node: see `EmbeddingWork`."""
    return EmbeddingWork(encoders, tokens, dtype, device)
