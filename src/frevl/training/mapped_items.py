"""Training on embeddings that do not fit in memory: the items are in a memory-mapped file, read in block order."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from frevl.errors import TrainingError
from frevl.files import user_cache
from frevl.machine import memory_limit
from frevl.runs.batches import EmbeddedPairs

if TYPE_CHECKING:
    from frevl.store.reader import Store
    from frevl.store.towers import Modality, Tower

__all__ = ["Deal", "Mapped", "deal_all", "deal_in_blocks", "fit_in_memory", "map_items", "read_items"]

_MOST_IN_MEMORY = 3 << 29  # total bytes of a training's embeddings: 1.5 GiB ...
_SHARE_OF_MEMORY = 8  # ... and no more than an eighth of what the process may use
_AT_ONCE = 65_536  # number of items read and written at a time


def fit_in_memory(counts: Iterable[tuple[int, Sequence[Tower]]]) -> bool:
    """Return whether embeddings of this many items are kept in memory; those with several tokens always are."""
    found = list(counts)
    if not all(tower.pooled for _, towers in found for tower in towers):
        return True
    size = sum(n * tower.dim * np.dtype(tower.identity["dtype"]).itemsize for n, towers in found for tower in towers)
    return size <= min(_MOST_IN_MEMORY, memory_limit() / _SHARE_OF_MEMORY)


@dataclass(frozen=True)
class Mapped:
    """Pooled items in an unnamed file, which disappears with the process.

    Attributes:
        values: ``(n, 1, dim)`` in the stored type; pages are read when touched.
        mask: ``(n, 1)`` bool, all True.
    """

    values: Tensor
    mask: Tensor
    _map: mmap.mmap = field(repr=False)

    def touch(self, rows: Tensor) -> None:
        """Prefetch the pages of ``(r,)`` int64 rows, without blocking other threads."""
        width, page = self.values.shape[2], mmap.PAGESIZE // self.values.element_size()
        step = max(1, page // width)  # items per page
        starts = torch.unique(rows // step) * step * width
        self.values.view(-1)[starts[:, None] + torch.arange(0, width, page)].sum()

    def release(self) -> None:
        """Release all pages of this process; the system may keep them cached."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def map_items(store: Store, modality: Modality, ids: Sequence[str], towers: Sequence[Tower]) -> Mapped:
    """Copy pooled embeddings from a store into a file, and map it into memory.

    Args:
        store: The store with the embeddings.
        modality: Modality of the items.
        ids: At least one id, without repeats.
        towers: At least one tower, all pooled; they are concatenated.

    Raises:
        StoreError: An item or an embedding is missing.
        TrainingError: The file cannot be written.
    """
    try:
        folder = user_cache() / "training"
    except RuntimeError as error:
        raise TrainingError(f"{error}; set FREVL_CACHE to a folder for data that does not fit in memory") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            dtype = _copied(store, modality, ids, towers, file)
            # Shared with a file that nobody else has: a private copy would count where `ulimit -d` bounds the process.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE)
    except OSError as error:
        raise TrainingError(
            f"{folder}: the embeddings of this training do not fit in memory and cannot be written here "
            f"({error.strerror or error}); free some space, or set FREVL_CACHE to another folder"
        ) from error
    values = np.frombuffer(mapped, dtype).reshape(len(ids), 1, -1)
    return Mapped(torch.from_numpy(values), torch.ones(len(ids), 1, dtype=torch.bool), mapped)


def read_items(
    store: Store, modality: Modality, ids: Sequence[str], towers: Sequence[Tower]
) -> tuple[np.ndarray, np.ndarray]:
    """Read embeddings as in `Store.read`; many pooled ones are read in portions, to avoid a second copy of them all."""
    if len(ids) <= _AT_ONCE or not all(tower.pooled for tower in towers):
        return store.read(modality, ids, towers)
    dtype, width = np.result_type(*(tower.identity["dtype"] for tower in towers)), sum(tower.dim for tower in towers)
    values = np.empty((len(ids), 1, width), dtype)
    for start in range(0, len(ids), _AT_ONCE):
        values[start : start + _AT_ONCE] = store.read(modality, ids[start : start + _AT_ONCE], towers)[0]
    return values, np.ones((len(ids), 1), bool)


def _copied(
    store: Store, modality: Modality, ids: Sequence[str], towers: Sequence[Tower], file: IO[bytes]
) -> np.dtype[np.floating]:
    dtype = np.result_type(*(tower.identity["dtype"] for tower in towers))
    for start in range(0, len(ids), _AT_ONCE):
        values, _ = store.read(modality, ids[start : start + _AT_ONCE], towers)
        file.write(np.ascontiguousarray(values, dtype).data)
    file.flush()
    return dtype


Deal = Callable[[int, int, torch.Generator], Iterator[Tensor]]
"""Maps the number of rows, the number of steps and the generator of an epoch to the rows of each step."""

_BLOCK = 1024  # consecutive rows in the file
_BLOCKS = 64  # blocks shuffled together: 65,536 rows


def deal_all(count: int, steps: int, random: torch.Generator) -> Iterator[Tensor]:
    """Distribute all rows at random over steps of nearly equal size."""
    yield from torch.randperm(count, generator=random).tensor_split(steps)


def deal_in_blocks(pairs: EmbeddedPairs) -> Deal:
    """Return a function that distributes rows of pairs in such a way that few pages of the file are needed at a time.

    A thread reads the pages of the next blocks while training uses the current rows; used pages are released.

    Args:
        pairs: Pairs of mapped items, in file order.
    """

    def deal(count: int, steps: int, random: torch.Generator) -> Iterator[Tensor]:
        order = shuffled_in_blocks(count, random)
        group, reached, end = _BLOCK * _BLOCKS, 0, 0
        with ThreadPoolExecutor(1, thread_name_prefix="frevl-ahead") as ahead:
            coming = ahead.submit(pairs.touch, order[:group])
            for rows in order.tensor_split(steps):
                reached += len(rows)
                if reached > end:  # the first rows of new blocks
                    coming.result()
                    pairs.release()
                    end += group
                    coming = ahead.submit(pairs.touch, order[end : end + group])
                yield rows
            coming.result()
        pairs.release()

    return deal


def shuffled_in_blocks(count: int, random: torch.Generator) -> Tensor:
    """Return ``(count,)`` int64, a permutation of the rows: random blocks, and random rows within each 64 blocks."""
    whole, rest = divmod(count, _BLOCK)
    # An incomplete last block comes last, so that all groups but one are equally large.
    blocks = torch.cat([torch.randperm(whole, generator=random), torch.arange(whole, whole + bool(rest))])
    parts = []
    for some in torch.split(blocks, _BLOCKS):
        rows = (some[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
        rows = rows[rows < count]
        parts.append(rows[torch.randperm(len(rows), generator=random)])
    return torch.cat(parts)
