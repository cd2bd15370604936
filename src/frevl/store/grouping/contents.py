"""Number the contents of images and texts, without a Python object for each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from frevl.data.packed.columns import Coded, coded_values
from frevl.data.pairs import Pairs
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.reader import Store
from frevl.store.usable_pairs import contents_of

__all__ = ["among", "content_numbers", "numbers_by", "numbers_of"]

V = TypeVar("V")

_MIXING = np.uint64(0x9E3779B97F4A7C15)
_DIGEST = 16  # bytes


def content_numbers(store: Store, units: Sequence[str], parts: Sequence[Pairs]) -> NDArray[np.int64]:
    """Return ``(n,)``: a number for the content of each unit of some pairs, in order of first appearance.

    An image missing from the store has a content of its own.
    """
    if "image" not in parts[0].sides:
        blank = [""] * len(units)
        return numbers_of(contents_of(store, Pairs(blank, units, [None] * len(units), [], blank))[1])
    known = np.flatnonzero(find_rows(store.positions("image"), units) >= 0)
    if len(known) == len(units):
        return numbers_of(store.content_column(units))
    hashes = np.zeros(len(units), "S32")
    hashes[known] = store.content_column([units[row] for row in known.tolist()])
    lacking = np.flatnonzero(hashes == b"")
    hashes[lacking] = [f"unknown {row}".encode() for row in lacking.tolist()]
    return numbers_of(hashes)


def numbers_of(values: np.ndarray) -> NDArray[np.int64]:
    """Number ``(n,)`` byte strings in order of first appearance; equal ones get the same number."""
    words = _words(values)
    mixed = _mixed(words)
    order = np.argsort(mixed, kind="stable")
    mixed = mixed[order]
    again = np.flatnonzero(mixed[1:] == mixed[:-1]) + 1
    if not len(again):
        return np.arange(len(values))
    if not np.array_equal(words[order[again]], words[order[again - 1]]):  # a hash collision
        _, firsts, groups = np.unique(values, return_index=True, return_inverse=True)
        return _in_order_of(firsts, groups)
    begins = np.ones(len(values), bool)
    begins[again] = False
    groups = np.empty(len(values), np.int64)
    groups[order] = np.cumsum(begins) - 1
    return _in_order_of(order[begins], groups)


def numbers_by(column: Sequence[V], content: Callable[[V], str]) -> NDArray[np.int64]:
    """Number the contents of ``(n,)`` values in order of first appearance; equal ones get the same number.

    A content is kept as 128 bits of its SHA-256, so ten million texts take 160 MB.

    Args:
        column: The values, as a list or `Coded`.
        content: Returns the text that decides; it is called once per distinct value of a `Coded`.
    """
    different = column.used_values() if isinstance(column, Coded) else column
    hashes = np.zeros(len(different), f"S{_DIGEST}")
    for row, value in enumerate(different):
        hashes[row] = hashlib.sha256(content(value).encode(errors="surrogatepass")).digest()[:_DIGEST]
    numbers = numbers_of(hashes)
    if not isinstance(column, Coded):
        return numbers
    _, firsts, groups = np.unique(numbers[coded_values(column)[0]], return_index=True, return_inverse=True)
    return _in_order_of(firsts, groups)


def among(values: np.ndarray, others: np.ndarray) -> NDArray[np.bool_]:
    """Return ``(n,)`` bool: which of ``(n,)`` byte strings are among others; equal hashes are compared in full."""
    if not len(values) or not len(others):
        return np.zeros(len(values), bool)
    own, theirs = _mixed(_words(values)), _mixed(_words(others))
    ordered = np.sort(theirs)
    found: NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, own), len(ordered) - 1)] == own
    if found.any():
        alike = others[np.isin(theirs, own[found])]
        found[found] = np.isin(values[found], alike)
    return found


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return ``(n,)`` hashes of the ``(n, w)`` words of every row, which very rarely collide."""
    mixed = words[:, 0].copy()
    for column in range(1, words.shape[1]):
        mixed *= _MIXING
        mixed ^= words[:, column]
    return mixed


def _words(values: np.ndarray) -> NDArray[np.uint64]:
    """Return byte strings as ``(n, w)`` 64-bit numbers."""
    size = max(1, -(-values.dtype.itemsize // 8))
    padded = np.ascontiguousarray(values, f"S{8 * size}")
    return padded.view(np.uint64).reshape(len(values), size)


def _in_order_of(firsts: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    numbers = np.empty(len(firsts), np.int64)
    numbers[np.argsort(firsts, kind="stable")] = np.arange(len(firsts))
    found: NDArray[np.int64] = numbers[groups]
    return found
