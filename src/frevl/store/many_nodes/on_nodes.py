"""Extraction on a cluster: this process lists, compares and commits; workers read, decode and embed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from frevl.errors import FrevlError, Reject
from frevl.store.extraction.embedder import MakePictures, Pictures
from frevl.store.extraction.items import CommitBuffer, KnownItem, PendingItem, Row, StoredItems
from frevl.store.many_nodes.connection import connected, versions_here
from frevl.store.many_nodes.embedding_work import Done, ImageBlock, TextBlock, open_work
from frevl.store.many_nodes.workers import Greeting, Workers
from frevl.store.towers import Tower, different_fields

__all__ = ["OnNodes", "on_nodes"]

A = TypeVar("A")

_BLOCK = 256  # images; the most that a killed worker loses; every worker gets several
_BLOCK_BYTES = 16 << 20  # bytes of images sent with a block
_HUB = ("hf:", "openclip:")


@contextmanager
def on_nodes(
    address: str,
    encoders: Sequence[str],
    towers: Sequence[Tower],
    *,
    tokens: str,
    dtype: str,
    device: str | None,
    workers: int | None,
    notes: list[str],
) -> Iterator[OnNodes]:
    """Connect to a cluster and start workers that embed identically to this process.

    Args:
        address: See `frevl.store.many_nodes.connection.connected`.
        encoders: Names of the encoders.
        towers: Towers of these encoders in this process.
        tokens: See `frevl.encoders.registry.load_encoder`.
        dtype: Stored number type.
        device: Device for networks from a model hub; None uses the accelerators of the nodes, one per worker.
        workers: Number of workers; None starts as many as there are CPU cores, or accelerators.
        notes: Receives notes for the user.

    Raises:
        MissingExtraError: Ray is not installed.
        FrevlError: There is no cluster, or a node cannot do the work, or has another frevl or other encoders.
    """
    with connected(address) as ray:
        of_hub = device != "cpu" and any(name.startswith(_HUB) for name in encoders)
        accelerators = 1 if of_hub and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        make = partial(open_work, tuple(encoders), tokens, dtype, device)
        hired: Workers[ImageBlock | TextBlock, Done] = Workers(ray, make, count=workers, accelerators=accelerators)
        here = {tower.name: tower for tower in towers}
        others: dict[str, None] = {}

        def greeted(greeting: Greeting) -> None:
            _check_towers(greeting, here)
            others.update(dict.fromkeys(_differences(greeting, here)))

        with hired:
            hired.start(greeted)
            yield OnNodes(hired)
        notes += [*hired.notes, *others]


class OnNodes:
    """Embeds on the workers of a cluster; an `frevl.store.extraction.embedder.Embedder`.

    Blocks are cut from the list of items to embed, so they do not depend on the number of workers. Every result returns
    to this process, which commits it.

    Args:
        workers: Started workers.
    """

    def __init__(self, workers: Workers[ImageBlock | TextBlock, Done]) -> None:
        self._workers = workers

    def images(
        self, pictures: Pictures[A], sources: Iterable[A], stored: StoredItems, buffer: CommitBuffer
    ) -> Iterator[tuple[str, PendingItem | Reject | None]]:
        """Embed images, block by block: see `frevl.store.extraction.embedder.Embedder.images`."""
        settled: list[str] = []

        def open_ones() -> Iterator[A]:
            for source in sources:
                if pictures.is_settled(source):
                    settled.append(pictures.id_of(source))
                else:
                    yield source

        order: dict[str, tuple[int, int]] = {}
        for block, done in self._workers.results(_blocks(pictures, open_ones(), stored)):
            items = [one for _, one in done.work if isinstance(one, PendingItem)]
            bad = {items[i].item.id for i in done.refused}
            order.update(
                (id_, (block.number, place))
                for place, (id_, one) in enumerate(done.work)
                if isinstance(one, Reject) or id_ in bad
            )
            rows = done.packed.rows()
            if not stored.empty:
                items, rows = _taken_over(items, rows, stored, pictures.is_gone)
            buffer.keep(items, rows, done.refused)
            for what, ids in done.remarks.items():
                pictures.remarks[what] += ids
            yield from done.work
            yield from ((id_, None) for id_ in settled)
            settled.clear()
        yield from ((id_, None) for id_ in settled)
        buffer.commit()
        buffer.rejected.sort(key=lambda one: order[one.id])  # in the order of a single process

    def texts(self, batches: Iterable[Sequence[PendingItem]], buffer: CommitBuffer) -> Iterator[int]:
        """Embed batches of texts: see `frevl.store.extraction.embedder.Embedder.texts`."""
        for block, done in self._workers.results(TextBlock(*numbered) for numbered in enumerate(batches)):
            items = [replace(one, prepared={}) for one in block.items] if isinstance(block, TextBlock) else []
            buffer.keep(items, done.packed.rows(), done.refused)
            yield len(items)


def _blocks(pictures: Pictures[A], sources: Iterable[A], stored: StoredItems) -> Iterator[ImageBlock]:
    make = pictures.elsewhere()
    block: list[A] = []
    number = size = 0
    for source in sources:
        block.append(source)
        size += pictures.bytes_of(source)
        if len(block) == _BLOCK or size >= _BLOCK_BYTES:
            yield _block(number, pictures, make, block, stored)
            number, block, size = number + 1, [], 0
    if block:
        yield _block(number, pictures, make, block, stored)


def _block(
    number: int, pictures: Pictures[A], make: MakePictures[A], sources: Sequence[A], stored: StoredItems
) -> ImageBlock:
    ids = [pictures.id_of(source) for source in sources]
    found: list[tuple[str, KnownItem | None]] = [(id_, stored.get(id_)) for id_ in ids]
    return ImageBlock(number, ids[0], make, sources, {id_: known for id_, known in found if known is not None})


def _taken_over(
    items: Sequence[PendingItem], rows: Sequence[Row], stored: StoredItems, is_gone: Callable[[str], bool]
) -> tuple[list[PendingItem], list[Row]]:
    """Let items take over embeddings with the same content, which a worker could not know and has embedded again."""
    kept: list[PendingItem] = []
    left: list[Row] = []
    for one, row in zip(items, rows, strict=True):
        taken = None if one.action == "fill" else stored.take_over(one.item.content_hash, is_gone)
        if taken is None:
            kept.append(one)
            left.append(row)
            continue
        source, moved = taken
        kept.append(PendingItem(one.item, "fill", {}, source.id, moved))
        left.append({name: values for name, values in row.items() if name in source.lacking})
    return kept, left


def _check_towers(greeting: Greeting, here: dict[str, Tower]) -> None:
    """Refuse a node whose encoders differ from this process's.

    Raises:
        FrevlError: The encoders differ.
    """
    there = {tower.name: tower for tower in greeting.about}
    for name, tower in here.items():
        fields = different_fields(there[name].identity, tower.identity) if name in there else "it is not there"
        if fields:
            raise FrevlError(
                f"--ray: the node {greeting.node} has another encoder '{name}' than this process: {fields}; install "
                "the same packages on all nodes"
            )


def _differences(greeting: Greeting, here: dict[str, Tower]) -> list[str]:
    """Return notes on where a node may compute different last digits."""
    notes = []
    mine: dict[str, Any] = versions_here()
    other = [
        f"{name} {greeting.versions.get(name, 'none')} instead of {mine.get(name, 'none')}"
        for name in sorted({*mine, *greeting.versions})
        if mine.get(name) != greeting.versions.get(name)
    ]
    if other:
        notes.append(
            f"The node {greeting.node} has other versions of libraries ({', '.join(other)}), so its embeddings may "
            "differ in the last digit."
        )
    unlike = [one.name for one in greeting.about if not np.array_equal(one.canaries, here[one.name].canaries)]
    if unlike:
        notes.append(
            f"The embeddings by {', '.join(unlike)} on the node {greeting.node} differ from this process's in the last "
            "digits."
        )
    return notes
