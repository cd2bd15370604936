"""64-bit hashes of ids, computed for a whole Arrow column at once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from frevl.data.packed.columns import Coded

__all__ = ["as_arrow", "id_hash", "id_hashes", "repeated"]

_WORD = 8  # bytes mixed in at a time
_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_ALL = 2**64 - 1
_MASKS = np.array([(1 << (8 * kept)) - 1 for kept in range(_WORD)] + [_ALL], np.uint64)


def as_arrow(ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return ids as one Arrow array, with null for invalid ones (not text, or not UTF-8)."""
    if isinstance(ids, Coded) and ids.plain:
        return ids.values.take(pa.array(ids.codes)).cast(pa.large_string())
    if isinstance(ids, pa.ChunkedArray):
        return ids.cast(pa.large_string()).combine_chunks()
    if isinstance(ids, pa.Array):
        return ids.cast(pa.large_string())
    with contextlib.suppress(pa.ArrowException, UnicodeError, TypeError):
        return pa.array(ids, pa.large_string(), from_pandas=False)
    return pa.array([id_ if isinstance(id_, str) and _is_utf8(id_) else None for id_ in ids], pa.large_string())


def id_hashes(ids: pa.Array) -> NDArray[np.uint64]:
    """Return a hash of every id's bytes; different ids very rarely collide.

    Eight bytes are mixed in at a time by the finalizer of SplitMix64 (Steele, Lea and Flood 2014). It is not
    cryptographic: a look-up compares the id itself.

    Args:
        ids: ``(n,)`` strings of any kind; the hash of null is that of an empty text.

    Returns:
        ``(n,)`` uint64 hashes.
    """
    ids = ids.cast(pa.large_string())
    _, at, data = ids.buffers()
    places = np.frombuffer(at, np.int64)[ids.offset : ids.offset + len(ids) + 1] if len(ids) else np.zeros(1, np.int64)
    first, last = int(places[0]), int(places[-1])
    content = np.zeros(last - first + _WORD, np.uint8)
    if last > first:
        content[:-_WORD] = np.frombuffer(data, np.uint8)[first:last]
    # A view, without a copy, in which every byte begins a word of eight bytes.
    words = np.ndarray((len(content) - _WORD + 1,), np.dtype("<u8"), content, strides=(1,))
    starts, lengths = places[:-1] - first, np.diff(places)
    hashes = _mixed(lengths.astype(np.uint64) * _GOLDEN + _FIRST)
    rows, done = np.arange(len(ids)), 0
    while len(rows := rows[lengths[rows] > done]):
        word = words[starts[rows] + done] & _MASKS[np.minimum(lengths[rows] - done, _WORD)]
        done += _WORD
        hashes[rows] = _mixed((hashes[rows] ^ word) * _GOLDEN + np.uint64(done))
    return hashes


def id_hash(id_: str) -> int:
    """Return the hash of one id, as `id_hashes` does, without the 50 µs that arrays take.

    Raises:
        UnicodeError: The id is not valid UTF-8.
    """
    content = id_.encode()
    golden = int(_GOLDEN)
    number = _mixed_one(len(content) * golden + int(_FIRST))
    for start in range(0, len(content), _WORD):
        word = int.from_bytes(content[start : start + _WORD], "little")
        number = _mixed_one((number ^ word) * golden + start + _WORD)
    return number


def repeated(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the positions, ascending, of ``(n,)`` hashes that occur more than once."""
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    return np.union1d(order[again], order[again + 1])


def _mixed_one(number: int) -> int:
    number &= _ALL
    number = ((number ^ (number >> 30)) * int(_FIRST)) & _ALL
    number = ((number ^ (number >> 27)) * int(_SECOND)) & _ALL
    return number ^ (number >> 31)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _FIRST
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _SECOND
    return numbers ^ (numbers >> np.uint64(31))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True
