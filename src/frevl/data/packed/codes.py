"""Codes of many blocks made one, in little more memory than the values take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["joined_codes"]

_MANY = 1 << 20  # different values: finding the same ones takes four times their room, so it is done for some at a time
_SHARES = 8  # at a time an eighth: those whose bytes have a sum with the same remainder


def joined_codes(parts: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """Return the codes of all parts, in one numbering of their values.

    Args:
        parts: Large strings in codes, without nulls; the list is emptied.
    """
    import pyarrow as pa

    values, codes = [part.dictionary for part in parts], [part.indices.to_numpy() for part in parts]
    parts.clear()
    shares = _SHARES if sum(map(len, values)) > _MANY else 1
    share_of = [_byte_sums(one) % shares for one in values]
    numbers = [np.empty(len(one), np.int32) for one in values]
    found, count = [], 0
    for share in range(shares):
        rows = [np.flatnonzero(one == share) for one in share_of]
        some = pa.chunked_array(
            [one.take(pa.array(at)) for one, at in zip(values, rows, strict=True)], pa.large_string()
        )
        encoded = some.combine_chunks().dictionary_encode()
        new, start = encoded.indices.to_numpy() + count, 0
        for own, at in zip(numbers, rows, strict=True):
            own[at] = new[start : start + len(at)]
            start += len(at)
        found.append(encoded.dictionary)
        count += len(encoded.dictionary)
        del some, encoded, new
    values.clear()
    pa.default_memory_pool().release_unused()
    whole = np.concatenate([own[code] for own, code in zip(numbers, codes, strict=True)])
    return pa.DictionaryArray.from_arrays(pa.array(whole), pa.concat_arrays(found))


def _byte_sums(values: pa.LargeStringArray) -> np.ndarray:
    """Return the sum of the bytes of each text."""
    _, at, data = values.buffers()
    places = np.frombuffer(at, np.int64)[values.offset : values.offset + len(values) + 1]
    if data is None:
        return np.zeros(len(values), np.uint32)
    sums = np.concatenate([np.zeros(1, np.uint32), np.cumsum(np.frombuffer(data, np.uint8), dtype=np.uint32)])
    difference: np.ndarray = sums[places[1:]] - sums[places[:-1]]
    return difference
