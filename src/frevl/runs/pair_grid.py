"""Scores, or dot products, of all pairs of some images and some texts.

The scores of all pairs of ``n`` images and ``m`` texts take ``4 n m`` bytes. `ScoreRows` provides a tile of them, or a
few rows, at a time, without ever holding them all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.errors import InputError, in_bytes

__all__ = [
    "PairScores",
    "ScoreRows",
    "dot_products",
    "dot_rows",
    "full_grid",
    "scored_rows",
]


# Pairs per tile when scoring and when multiplying: few enough that the scores are still in the CPU's caches when used.
_PAIRS, _PRODUCTS = 1_048_576, 1_048_576
_WHOLE = 16_777_216  # scores of whole rows at once: 64 MB
_ROWS, _ALIGNED = 512, 32  # rows at once; a matrix product takes less time for a multiple of 32
_IN_MEMORY = 67_108_864  # scores; a larger grid goes into a temporary file, so that memory stays bounded

PairScores = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class ScoreRows:
    """The scores of all pairs, computed a tile at a time, and recomputed in every pass.

    Tiles always begin at the same rows and columns, so the scores are identical in every pass, by tiles or whole rows.

    Attributes:
        shape: Number of images and of texts.
        step: Rows of a tile.
        across: Columns of a tile.
        of: Function from the first row, the row after the last, the first column and the column after the last of a
            tile to its ``(rows, columns)`` float32 scores.
    """

    shape: tuple[int, int]
    step: int
    across: int
    of: Callable[[int, int, int, int], NDArray[np.float32]]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Yield blocks of whole rows in order."""
        for start in range(0, self.shape[0], self.step):
            end = min(start + self.step, self.shape[0])
            if self.across >= self.shape[1]:
                yield self.of(start, end, 0, self.shape[1])
                continue
            block = np.empty((end - start, self.shape[1]), np.float32)
            for first in range(0, self.shape[1], self.across):
                last = min(first + self.across, self.shape[1])
                block[:, first:last] = self.of(start, end, first, last)
            yield block

    def tiles(self, chosen: NDArray[np.bool_] | None = None) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Yield every tile with its first row and column: row by row, from left to right.

        Args:
            chosen: ``(rows of tiles, columns of tiles)``, False for tiles to skip; None computes all.
        """
        for down, start in enumerate(range(0, self.shape[0], self.step)):
            for right, first in enumerate(range(0, self.shape[1], self.across)):
                if chosen is None or chosen[down, right]:
                    end, last = min(start + self.step, self.shape[0]), min(first + self.across, self.shape[1])
                    yield start, first, self.of(start, end, first, last)

    @classmethod
    def of_array(cls, grid: NDArray[np.float32]) -> ScoreRows:
        """Return the rows of an array of scores."""
        images, texts = grid.shape
        return cls(
            (images, texts), *_tile(texts, _PRODUCTS), lambda start, end, first, last: grid[start:end, first:last]
        )

    def kept(self) -> ScoreRows:
        """Return the same rows, computed once and kept in memory if they take at most 256 MB."""
        return self if self.shape[0] * self.shape[1] > _IN_MEMORY else ScoreRows.of_array(self.grid())

    def grid(self) -> NDArray[np.float32]:
        """Return all ``(images, texts)`` scores: in memory, or in an unnamed temporary file if there are many.

        Raises:
            InputError: The temporary file does not fit on the disk.
        """
        grid = _empty_grid(*self.shape)
        for start, first, tile in self.tiles():
            grid[start : start + tile.shape[0], first : first + tile.shape[1]] = tile
        return grid


def scored_rows(images: int, texts: int, score: PairScores) -> ScoreRows:
    """Return the ``(images, texts)`` scores computed by a function."""

    def tile(start: int, end: int, first: int, last: int) -> NDArray[np.float32]:
        rows, columns = np.divmod(np.arange((end - start) * (last - first)), last - first)
        return score(rows + start, columns + first).reshape(end - start, last - first)

    return ScoreRows((images, texts), *_tile(texts, _PAIRS), tile)


def dot_rows(images: NDArray[np.float32], texts: NDArray[np.float32]) -> ScoreRows:
    """Return the ``(images, texts)`` dot products of ``(images, d)`` and ``(texts, d)`` vectors."""
    return ScoreRows(
        (len(images), len(texts)),
        *_tile(len(texts), _PRODUCTS),
        lambda start, end, first, last: images[start:end] @ texts[first:last].T,
    )


def _tile(texts: int, most: int) -> tuple[int, int]:
    """Return the rows and columns of a tile, with few enough rows that whole ones fit into memory too."""
    rows = min(_ROWS, max(1, _WHOLE // max(texts, 1)))
    rows -= rows % _ALIGNED if rows > _ALIGNED else 0
    return rows, max(1, most // rows)


def full_grid(images: int, texts: int, score: PairScores) -> NDArray[np.float32]:
    """Return the ``(images, texts)`` scores of all pairs; see `ScoreRows.grid`."""
    return scored_rows(images, texts, score).grid()


def dot_products(images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ``(images, texts)`` dot products of ``(images, d)`` and ``(texts, d)`` vectors."""
    return dot_rows(images, texts).grid()


def _empty_grid(images: int, texts: int) -> NDArray[np.float32]:
    if images * texts <= _IN_MEMORY:
        return np.empty((images, texts), np.float32)
    folder, size = tempfile.gettempdir(), 4 * images * texts
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the file's name
            # A sparse file would crash the process with a bus error if the disk is full.
            _reserve(file.fileno(), size)
            return np.memmap(file, np.float32, "r+", shape=(images, texts))
    except OSError as error:
        raise InputError(
            f"{folder}: the scores of {images:,} images with {texts:,} texts need {in_bytes(size)} there, "
            f"which is not available ({error.strerror or error}); free some space, set TMPDIR to another folder, "
            "or score fewer"
        ) from error


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = memoryview(bytes(1 << 20))
    for start in range(0, size, len(zeros)):
        os.pwrite(file, zeros[: size - start], start)
