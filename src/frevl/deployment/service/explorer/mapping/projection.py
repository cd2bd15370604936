"""Project every image onto the two directions in which embeddings vary most."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frevl.deployment.service.explorer.rows import Rows
from frevl.files import replace_file

__all__ = ["MOST_POINTS", "Projection", "principal_plane", "projection_of", "read_projection", "write_projection"]

MOST_POINTS = 100_000
"""Above this number, images are sampled at random."""
_AT_ONCE = 8_192
_WIDEST = 2_048  # embedding width up to which the full covariance is decomposed
_EXTRA, _PASSES = 8, 12


@dataclass(frozen=True)
class Projection:
    """A map.

    Attributes:
        rows: ``(n,)`` int64, rows of the drawn images, ascending.
        points: ``(n, 2)`` float32 in [-1, 1].
        explained: Share of the variance along each direction, 0 to 1.
    """

    rows: np.ndarray
    points: np.ndarray
    explained: tuple[float, float]


def projection_of(rows: Rows, *, keep: bool) -> Projection:
    """Return the map of all images, computed once per version of the store and cached next to its vectors."""
    path = rows.kept("map", ".npz")
    kept = read_projection(path, len(rows))
    if kept is not None:
        return kept
    drawn = np.flatnonzero(rows.usable)
    if len(drawn) > MOST_POINTS:
        drawn = np.sort(np.random.default_rng(0).choice(drawn, MOST_POINTS, replace=False))
    found = Projection(drawn, *principal_plane(rows.vectors, drawn))
    if keep:
        write_projection(path, found)
    return found


def read_projection(path: Path, count: int) -> Projection | None:
    """Return a cached map; None if there is none, or if the file is truncated or damaged.

    Args:
        path: The file.
        count: Number of images in the store.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            drawn, points, explained = kept["rows"], kept["points"], kept["explained"]
        if points.shape == (len(drawn), 2) and (not len(drawn) or int(drawn.max()) < count):
            return Projection(drawn, points, (float(explained[0]), float(explained[1])))
    return None


def write_projection(path: Path, found: Projection) -> None:
    """Cache a map, unless the disk is full."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # given a name, savez would append a suffix
                np.savez(file, rows=found.rows, points=found.points, explained=np.array(found.explained))

        replace_file(path, write)


def principal_plane(vectors: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Project onto the first two principal components (Pearson 1901).

    Up to a width of 2,048, the covariance is decomposed; above it, subspace iteration is accurate enough for display.

    Args:
        vectors: ``(m, d)``.
        drawn: ``(n,)`` rows of these.

    Returns:
        ``(n, 2)`` float32, scaled into [-1, 1] with one scale for both axes, and the shares of variance of both. The
        signs are such that the largest entry of each direction is positive.
    """
    n, width = len(drawn), vectors.shape[1]
    if n < 2 or width < 2:
        return np.zeros((n, 2), np.float32), (0.0, 0.0)

    def blocks() -> list[np.ndarray]:
        return [drawn[at : at + _AT_ONCE] for at in range(0, n, _AT_ONCE)]

    def centred(some: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.asarray(vectors[some], np.float32) - mean
        return found

    mean = np.zeros(width, np.float32)
    mean = (sum(np.asarray(vectors[some], np.float64).sum(axis=0) for some in blocks()) / n).astype(np.float32)
    total = float(sum(float(np.square(centred(some), dtype=np.float64).sum()) for some in blocks()))
    if total <= 0:
        return np.zeros((n, 2), np.float32), (0.0, 0.0)
    if width <= _WIDEST:
        covariance = sum((part.T @ part).astype(np.float64) for part in map(centred, blocks()))
        values, directions = np.linalg.eigh(covariance)
        values, directions = values[::-1][:2], directions[:, ::-1][:, :2]
    else:
        values, directions = _subspace(lambda: map(centred, blocks()), width)
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, [0, 1]])
    points = np.concatenate([part @ directions.astype(np.float32) for part in map(centred, blocks())])
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    points /= max(float(np.abs(points).max()), 1e-12)
    shares = (np.maximum(values, 0) / total).tolist()
    return points.astype(np.float32), (float(shares[0]), float(shares[1]))


def _subspace(blocks: Callable[[], Iterable[np.ndarray]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two largest eigenvalues of the scatter and their ``(d, 2)`` directions."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((width, 2 + _EXTRA)))[0].astype(np.float32)
    for _ in range(_PASSES):
        spread = sum((part.T @ (part @ basis)).astype(np.float64) for part in blocks())
        basis = np.linalg.qr(spread)[0].astype(np.float32)
    inner = sum(np.square((part @ basis).astype(np.float64)).sum(axis=0) for part in blocks())
    order = np.argsort(-inner)[:2]
    return inner[order], basis[:, order].astype(np.float64)
