"""Pairs and their embeddings as tensors in memory, batched by index.

Every image and text is stored once, however many pairs use it, in the store's data type. For images only, or texts
only, the other side is a single item of width 0 (`absent_side`), so networks need no special case.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import starmap
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from frevl.data.ahead import ahead_of
from frevl.data.names import as_list
from frevl.devices import Steps, in_steps, is_accelerator
from frevl.encoders.interface import stack
from frevl.models.interface import Items, PairLogits, PairNetwork, set_evaluating

if TYPE_CHECKING:  # batches are also made where no store can be read
    from frevl.store.reader import Store
    from frevl.store.towers import Modality, Tower

__all__ = [
    "EmbeddedPairs",
    "Inputs",
    "ItemFile",
    "absent_side",
    "copied_to",
    "exact_enough",
    "grid_scorer",
    "list_logits",
    "logits_of",
    "moved",
    "placed",
    "read_side",
    "vectors_of",
]

_READ_AT_ONCE = 4_096  # images of a store
_BATCHES_KEPT = 64  # batches after which the mapped pages of items are released

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class ItemFile(Protocol):
    """Items of one modality in a memory-mapped file."""

    def touch(self, rows: Tensor) -> None:
        """Read the pages of some items, ``(r,)`` int64."""

    def release(self) -> None:
        """Release all pages."""


@dataclass(frozen=True)
class EmbeddedPairs:
    """Embeddings of the distinct images and texts, and which of them form pairs.

    Attributes:
        images: ``(images, tokens, dim)`` in the stored type; ``dim`` is 0 if the pairs are only texts.
        image_mask: ``(images, tokens)`` bool, True where a token exists.
        texts: ``(texts, tokens, dim)`` in the stored type; ``dim`` is 0 if the pairs are only images.
        text_mask: ``(texts, tokens)`` bool, True where a token exists.
        image_rows: ``(n,)`` int64, row of each pair's image.
        text_rows: ``(n,)`` int64, row of each pair's text.
        files: The files of items that are not in memory: images and texts.
    """

    images: Tensor
    image_mask: Tensor
    texts: Tensor
    text_mask: Tensor
    image_rows: Tensor
    text_rows: Tensor
    files: tuple[ItemFile, ItemFile] | None = field(default=None, repr=False, kw_only=True)

    @classmethod
    def of(
        cls,
        images: Sequence[str],
        texts: Sequence[str],
        image_embeddings: dict[str, int],
        image_values: tuple[np.ndarray, np.ndarray],
        text_embeddings: dict[str, int],
        text_values: tuple[np.ndarray, np.ndarray],
    ) -> EmbeddedPairs:
        """Build from ids, the row of every id, and ``(values, mask)`` arrays."""
        return cls(
            torch.from_numpy(image_values[0]),
            torch.from_numpy(image_values[1]),
            torch.from_numpy(text_values[0]),
            torch.from_numpy(text_values[1]),
            torch.tensor([image_embeddings[id_] for id_ in images], dtype=torch.long),
            torch.tensor([text_embeddings[text] for text in texts], dtype=torch.long),
        )

    @classmethod
    def images_alone(cls, images: Tensor, mask: Tensor | None = None) -> EmbeddedPairs:
        """Return images as pairs without a text.

        Args:
            images: ``(n, dim)`` pooled embeddings, or ``(n, tokens, dim)`` with a mask.
            mask: ``(n, tokens)`` bool.
        """
        if mask is None:
            images, mask = images[:, None], torch.ones(len(images), 1, dtype=torch.bool)
        one = torch.ones(1, 1, dtype=torch.bool)
        rows = torch.arange(len(images))
        return cls(images, mask, torch.zeros(1, 1, 0), one, rows, torch.zeros_like(rows))

    @classmethod
    def images_ahead(
        cls, read: Callable[[list[str]], tuple[np.ndarray, np.ndarray]], ids: list[str], size: int
    ) -> Iterator[EmbeddedPairs]:
        """Yield images as `images_alone`, at most ``size`` at a time, while the next are read (see `read_side`)."""
        parts = (ids[start : start + _READ_AT_ONCE] for start in range(0, len(ids), _READ_AT_ONCE))
        with ThreadPoolExecutor(1, thread_name_prefix="frevl-read") as pool:
            for both in ahead_of(pool, read, parts, 1):
                batches = (torch.split(torch.from_numpy(part), size) for part in both)
                yield from starmap(cls.images_alone, zip(*batches, strict=True))

    def __len__(self) -> int:
        return len(self.image_rows)

    def with_rows(self, image_rows: Tensor, text_rows: Tensor) -> EmbeddedPairs:
        """Return other pairs over the same items."""
        return replace(self, image_rows=image_rows, text_rows=text_rows)

    def on(self, device: torch.device | str) -> EmbeddedPairs:
        """Return the same pairs with the items on a device; the pair indices stay on the CPU."""
        images, image_mask, texts, text_mask = (
            part.to(device) for part in (self.images, self.image_mask, self.texts, self.text_mask)
        )
        items = {"images": images, "image_mask": image_mask, "texts": texts, "text_mask": text_mask}
        return self if images is self.images and texts is self.texts else replace(self, **items, files=None)

    def fits(self, device: torch.device | str) -> bool:
        """Return whether these items should be copied to a device: an accelerator with four times that memory free.

        Batches are then better gathered there than gathered on the CPU and copied.
        """
        if not is_accelerator(device) or self.images.is_cuda:
            return False
        needed = sum(part.nbytes for part in (self.images, self.image_mask, self.texts, self.text_mask))
        return 4 * needed <= torch.cuda.mem_get_info(torch.device(device))[0]

    def items(self, image_rows: Tensor, text_rows: Tensor) -> EmbeddedPairs:
        """Return some of the items, ``(n,)`` and ``(m,)`` int64, without pairs."""
        none = image_rows.new_zeros(0)
        return EmbeddedPairs(
            self.images[image_rows], self.image_mask[image_rows], self.texts[text_rows], self.text_mask[text_rows],
            none, none,
        )  # fmt: skip

    def touch(self, rows: Tensor) -> None:
        """Prefetch the items of some pairs from their files."""
        if self.files is not None:
            for file, items in zip(self.files, (self.image_rows, self.text_rows), strict=True):
                file.touch(items[rows])

    def release(self) -> None:
        """Release what was read from files."""
        for file in self.files or ():
            file.release()

    def select(self, rows: Tensor) -> EmbeddedPairs:
        """Return some of the pairs, by index or bool mask."""
        return self.with_rows(self.image_rows[rows], self.text_rows[rows])

    def inputs(self, image_rows: Tensor, text_rows: Tensor, device: torch.device | str = "cpu") -> Inputs:
        """Return ``(image, text, image_mask, text_mask)`` of pairs in float32, as `PairNetwork.forward` takes them.

        Pooled embeddings come as ``(n, dim)`` without a mask.
        """
        image, image_mask = _rows(self.images, self.image_mask, image_rows, device)
        text, text_mask = _rows(self.texts, self.text_mask, text_rows, device)
        return image, text, image_mask, text_mask

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[Inputs]:
        """Yield the inputs of all pairs in order."""
        for number, start in enumerate(range(0, len(self), size)):
            if number and number % _BATCHES_KEPT == 0:
                self.release()
            rows = slice(start, start + size)
            yield self.inputs(self.image_rows[rows], self.text_rows[rows], device)


def absent_side(items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of a missing side: ``(items, 1, 0)`` values and an ``(items, 1)`` mask."""
    return np.zeros((items, 1, 0), np.float16), np.ones((items, 1), bool)


def read_side(
    store: Store, modality: Modality, ids: Sequence[str], towers: Sequence[Tower], given: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Read items of one modality from the store, except those with given ``(tokens, dim)`` embeddings.

    Returns:
        ``(n, tokens, dim)`` values and ``(n, tokens)`` mask; those of `absent_side` without towers.
    """
    ids = as_list(ids, f"{modality}s")
    if not towers:
        return absent_side(len(ids))
    if given.keys().isdisjoint(ids):
        return store.read(modality, ids, towers)
    stored = [id_ for id_ in dict.fromkeys(ids) if id_ not in given]
    parts = {id_: given[id_] for id_ in ids if id_ in given}
    if stored:
        values, mask = store.read(modality, stored, towers)
        parts.update({id_: v[m] for id_, v, m in zip(stored, values, mask, strict=True)})
    together, order = stack(list(parts.values())), {id_: row for row, id_ in enumerate(parts)}
    rows = [order[id_] for id_ in ids]
    return together[0][rows], together[1][rows]


def moved(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device; to an NVIDIA device from pinned memory, so that the CPU does not wait."""
    if torch.device(device).type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _rows(values: Tensor, mask: Tensor, rows: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
    rows = moved(rows, values.device)
    chosen = moved(_chosen(values, rows), device).float()
    if values.shape[1] == 1:
        return chosen[:, 0], None
    return chosen, moved(mask[rows], device)


def _chosen(values: Tensor, rows: Tensor) -> Tensor:
    """Return some items, without a copy where they follow each other and `float` makes one anyway."""
    if values.dtype == torch.float16 and not rows.is_cuda and len(rows):
        first, last = int(rows[0]), int(rows[-1])
        if last - first == len(rows) - 1 and bool((rows[1:] > rows[:-1]).all()):
            return values[first : last + 1]
    return values.index_select(0, rows)  # whole items: `values[rows]` copies number by number


_log = logging.getLogger("frevl")
_MOST_THERE = 1 << 26  # logits accumulated on a device before they are copied


def placed(network: PairNetwork, device: str) -> PairNetwork:
    """Return a run's network in its scoring form, on a device; on an accelerator in float16 if that is safe."""
    twin = _scoring_form(network, device)
    return twin.half() if is_accelerator(device) and network.scores_in_half else twin


def _scoring_form(network: PairNetwork, device: torch.device | str) -> PairNetwork:
    """Return what scores as a network does, on a device; the network itself stays where it is."""
    return copied_to(network.for_inference(), device).eval()  # a network may share parts with its scoring form


def copied_to(network: PairNetwork, device: torch.device | str) -> PairNetwork:
    """Return a copy of a network on a device; on a CPU the network itself."""
    return network if torch.device(device).type == "cpu" else copy.deepcopy(network).to(device)


def exact_enough(network: PairNetwork, original: PairNetwork, logits: Tensor) -> PairNetwork:
    """Return the network that gave these logits, or a float32 version if they overflowed in float16."""
    first = next(network.parameters(), torch.empty(0))
    if first.dtype != torch.float16 or bool(logits.isfinite().all()):
        return network
    _log.warning("frevl: the scores of this run overflow in float16; scoring in float32 instead.")
    return _scoring_form(original, first.device)


def vectors_of(
    make: Callable[[Tensor, Tensor], Tensor], values: np.ndarray, mask: np.ndarray, batch_size: int, device: str
) -> np.ndarray:
    """Return the ``(n, d)`` float32 vectors of ``(n, tokens, dim)`` items with their ``(n, tokens)`` mask."""
    items, masks = torch.from_numpy(values), torch.from_numpy(mask)

    def made(rows: slice) -> Tensor:
        return make(moved(items[rows], device).float(), moved(masks[rows], device))

    with torch.inference_mode():
        return torch.cat([part for _, part in in_steps(len(items), batch_size, device, made)]).cpu().numpy()


def logits_of(network: nn.Module, pairs: EmbeddedPairs, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the ``(n, outputs)`` float32 logits of a network in evaluation mode, on the CPU."""
    set_evaluating(network)
    pairs, steps = pairs.on(device) if pairs.fits(device) else pairs, Steps(len(pairs), batch_size, device)
    found: list[Tensor] = []  # on the CPU
    there: list[Tensor] = []  # on the device; many batches are copied at once, since each copy waits for the device
    here = done = 0
    with torch.inference_mode():
        while steps.left:  # not by `in_steps`: from a score to its network there are four frames at most
            rows = steps.rows
            try:
                there.append(network(*pairs.inputs(pairs.image_rows[rows], pairs.text_rows[rows], device)))
            except torch.OutOfMemoryError as error:
                steps.halve(error)
                continue
            steps.done()
            here, done = here + there[-1].numel(), done + 1
            if done % _BATCHES_KEPT == 0:
                pairs.release()
            if here > _MOST_THERE:
                found.append(torch.cat(there).cpu())
                there, here = [], 0
        if there:
            found.append((torch.cat(there) if len(there) > 1 else there[0]).cpu())
        return found[0] if len(found) == 1 else torch.cat(found)


def list_logits(network: PairNetwork, pairs: EmbeddedPairs, batch_size: int, device: str = "cpu") -> Tensor:
    """Return the ``(n, outputs)`` float32 logits of a list of pairs, on the CPU, by the cheaper of two methods.

    A network with expensive item work (`PairNetwork.item_work`) does it once per item; others process pair by pair.

    Args:
        network: Network on the device, in evaluation mode afterwards.
        pairs: The pairs and their embeddings.
        batch_size: Maximum number of pairs or items per batch.
        device: Device to compute on.
    """
    if network.item_work != "always":
        return logits_of(network, pairs, batch_size, device)
    set_evaluating(network)
    with torch.inference_mode():
        return grid_scorer(network, pairs, batch_size, device)(pairs.image_rows, pairs.text_rows).cpu()


def grid_scorer(network: PairNetwork, embedded: EmbeddedPairs, batch_size: int, device: str) -> PairLogits:
    """Do the work on single items once, and return a function that scores any pairs of them.

    Args:
        network: Network on the device, in evaluation mode.
        embedded: The items; its pairs are not used.
        batch_size: Maximum number of items per batch.
        device: Device to compute on.

    Returns:
        A function from ``(n,)`` image rows and ``(n,)`` text rows, any number of them, to ``(n, outputs)`` logits. Call
        both in inference mode.
    """
    if network.item_work == "never":
        return _in_batches(lambda rows, columns: network(*embedded.inputs(rows, columns, device)), batch_size, device)
    images = _items(network.image_items, embedded.images, embedded.image_mask, batch_size, device)
    texts = _items(network.text_items, embedded.texts, embedded.text_mask, batch_size, device)
    # Only the masks are needed from here on, so the embeddings can be freed.
    image_mask, text_mask = _mask(embedded.image_mask, device), _mask(embedded.text_mask, device)
    shared = None if image_mask is not None or text_mask is not None else network.shared_scorer(images, texts)
    if shared is not None:
        return shared

    def logits(rows: Tensor, columns: Tensor) -> Tensor:
        rows, columns = moved(rows, device), moved(columns, device)
        return network.score_items(
            tuple(part[rows] for part in images),
            tuple(part[columns] for part in texts),
            None if image_mask is None else image_mask[rows],
            None if text_mask is None else text_mask[columns],
        )

    return _in_batches(logits, batch_size, device)


def _in_batches(logits: PairLogits, batch_size: int, device: str) -> PairLogits:
    def of_any_number(rows: Tensor, columns: Tensor) -> Tensor:
        found = torch.empty(0, 0)
        for own, part in in_steps(len(rows), batch_size, device, lambda own: logits(rows[own], columns[own])):
            # Results go into one tensor, because small pieces kept between large ones would fragment the heap.
            found = part.new_empty(len(rows), part.shape[1]) if own.start == 0 else found
            found[own] = part
        return found

    return of_any_number


def _items(
    make: Callable[[Tensor, Tensor | None], Items], values: Tensor, mask: Tensor, batch_size: int, device: str
) -> Items:
    def made(rows: slice) -> Items:
        return make(moved(values[rows], device).float(), _mask(mask[rows], device))

    whole: list[Tensor] = []
    for rows, part in in_steps(len(values), batch_size, device, made) if len(values) else ():
        # Filled in place, because joining pieces at the end would take twice the memory.
        whole = whole or [piece.new_empty((len(values), *piece.shape[1:])) for piece in part]
        for kept, piece in zip(whole, part, strict=True):
            kept[rows] = piece
    return tuple(whole)


def _mask(mask: Tensor, device: str) -> Tensor | None:
    return None if mask.shape[1] == 1 else moved(mask, device)
