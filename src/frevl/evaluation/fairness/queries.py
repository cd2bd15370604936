"""Compare search results with the pool of images by group: MaxSkew@k, MinSkew@k and differences in shares."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import has_value, value_name
from frevl.data.pairs import Pairs, read_pairs
from frevl.errors import InputError, UsageError, counted, in_bytes, rejects_sentence
from frevl.evaluation.fairness.groups import FEWEST_PICTURES, groups_of
from frevl.evaluation.intervals import drawn_counts
from frevl.files import read_text
from frevl.provenance import provenance
from frevl.runs.scorer import Scorer
from frevl.store.usable_pairs import content_of_units, usable_pairs

__all__ = ["SkewDraws", "evaluate_queries", "ranked_pool", "read_queries", "share_gaps", "skews"]

_RESAMPLES = 1000
_NUMBERS = 64_000_000  # cells of a draw times the queries: limits the number of resamples
_FEWEST_RESAMPLES = 100
_MOST_RANKS = 500_000_000  # queries times images: 2 GB
_SCORES = 4_194_304  # scores at once


def read_queries(file: str | Path) -> list[str]:
    """Read one query per line, skipping empty lines and repeats.

    Raises:
        InputError: The file cannot be read, has no query, or holds JSON.
    """
    path = Path(file)
    try:
        lines = read_text(path).split("\n")  # not splitlines, which also splits at separators of other scripts
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"{path}: the queries cannot be read ({reason}); give a text file with one query per line"
        ) from error
    queries = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    for number, line in enumerate(lines, start=1):
        if line.strip()[:1] + line.strip()[-1:] in ("{}", "[]"):  # it would be searched for as it stands
            raise InputError(
                f"{path}:{number}: expected a query such as a person riding a bike, found JSON: '{line.strip()[:60]}'; "
                "give a text file with one query per line"
            )
    if not queries:
        raise InputError(f"{path}: expected one query per line, found an empty file")
    return queries


def evaluate_queries(
    scorer: Scorer, pairs: str | Path | Pairs, queries: str | Path | list[str], *, groups: str, k: int = 25
) -> dict[str, Any]:
    """Compare who appears in the first hits of searches with the searched pool.

    Args:
        scorer: A matching run with its store.
        pairs: Their images form the pool, each once; copies count as one image.
        queries: Texts, or a file with one per line. Use queries that do not name a group.
        groups: A key of the pairs. An image's group is the value that its pairs share; images with none or several
            are not in the pool.
        k: Number of hits shown.

    Returns:
        ``{"task", "n", "k", "metrics": {"max_skew", "min_skew", "share_gap"}, "ci95", "groups", "queries",
        "provenance", "notes", "left_out"}``: means over queries with 95 % intervals by bootstrap over images; skews
        in nats, ``share_gap`` in points.

    Raises:
        UsageError: The run is not for matching, ``k`` does not suit the pool, or there are no groups to compare.
        InputError: The pairs or the queries cannot be used.
    """
    if scorer.run.task != "matching":
        raise UsageError(
            f"{scorer.run.path}: --queries needs a matching run, which can search, found task '{scorer.run.task}'"
        )
    if not isinstance(k, int) or k < 1:
        raise UsageError(f"-k must be a whole number of at least 1, found {k!r}")
    asked = list(dict.fromkeys(queries)) if isinstance(queries, list) else read_queries(queries)
    if not asked:
        raise InputError("expected at least one query, found none")
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    usable, left_out = usable_pairs(read, scorer.store)
    rejects = [*read.rejected, *left_out]
    searched = _pool(usable, groups, scorer)
    images, names = searched.images, searched.names
    if k >= len(images):
        raise UsageError(
            f"-k {k}: the pool has {len(images):,} images, so the first {k:,} are all of them; use a smaller k"
        )
    order = ranked_pool(scorer, images, asked, k)
    drawing = SkewDraws(order, searched.groups, searched.clusters, len(names), k)
    top, pool = drawing.shares()
    resamples = max(_FEWEST_RESAMPLES, min(_RESAMPLES, _NUMBERS // max(1, order.size)))
    drawn = [_measured(*shares, k) for shares in drawing.draws(resamples) if (shares[1] > 0).all()]
    whole = _measured(top, pool, k)
    each = skews(top, pool, k)
    return {
        "task": "matching",
        "n": len(images),
        "k": k,
        "metrics": whole,
        "ci95": {name: _bounds([one[name] for one in drawn], value) for name, value in whole.items()},
        "groups": {
            name: {
                "pictures": int((searched.groups == number).sum()),
                "pool_share": 100 * float(pool[number]),
                "top_share": 100 * float(top[:, number].mean()),
            }
            for number, name in enumerate(names)
        },
        "queries": [
            {
                "query": query,
                "max_skew": float(each[row].max()),
                "min_skew": float(each[row].min()),
                "share_gap": 100 * float(share_gaps(top[row], pool)),
                "top_shares": {name: 100 * float(top[row, number]) for number, name in enumerate(names)},
            }
            for row, query in enumerate(asked)
        ],
        "provenance": provenance(
            run=str(scorer.run.path),
            store_fingerprint=scorer.store.fingerprint,
            seed=scorer.run.provenance["seed"],
        ),
        "notes": [*read.notes, *filter(None, [rejects_sentence(rejects)]), *searched.notes, *_absent(top, k)],
        "left_out": [{"pair": one.id, "reason": one.reason} for one in rejects],
    }


def ranked_pool(scorer: Scorer, images: list[str], queries: list[str], k: int) -> NDArray[np.int32]:
    """Return ``(queries, images)`` row numbers of the images, best first, in search order.

    Scores are computed for a few queries at a time; only the ranks are kept.

    Args:
        scorer: A matching run. If it reranks, it rescores the best candidates of its first stage, at least ``k``.
        images: Ids of the images in the pool.
        queries: Texts.
        k: Number of hits shown.

    Raises:
        UsageError: The ranks would take more than 2 GB.
    """
    if len(queries) * len(images) > _MOST_RANKS:
        raise UsageError(
            f"{len(queries):,} queries over a pool of {len(images):,} images need "
            f"{in_bytes(4 * len(queries) * len(images))} of ranks; expected at most {4e-9 * _MOST_RANKS:,.0f} GB: "
            "give fewer queries, or fewer images"
        )
    between = None if scorer.has_first_stage and not scorer.rerank_depth else scorer.between(images, queries)
    vectors = scorer.image_vectors(images) if scorer.has_first_stage else None
    asked = scorer.text_vectors(queries) if scorer.has_first_stage else None
    depth = min(len(images), max(k, scorer.rerank_depth)) if scorer.rerank_depth else 0
    order = np.empty((len(queries), len(images)), np.int32)
    step = max(1, _SCORES // len(images))
    for start in range(0, len(queries), step):
        rows = np.arange(start, min(start + step, len(queries)))
        if vectors is not None and asked is not None:
            scores = asked[rows] @ vectors.T
        elif between is not None:
            scores = between(np.tile(np.arange(len(images)), len(rows)), np.repeat(rows, len(images)))
        ranked = np.argsort(-scores.reshape(len(rows), -1), axis=1, kind="stable")
        if depth and between is not None:
            best = ranked[:, :depth]
            again = between(best.reshape(-1), np.repeat(rows, depth)).reshape(best.shape)
            ranked[:, :depth] = np.take_along_axis(best, np.argsort(-again, axis=1, kind="stable"), axis=1)
        order[rows] = ranked
    return order


@dataclass(frozen=True)
class _Pool:
    """The images that are searched.

    Attributes:
        images: Distinct images with one value of the key.
        groups: ``(images,)`` place of each image's group in ``names``, -1 if the group is left out.
        clusters: ``(images,)``, equal for images that are resampled together.
        names: The groups that are compared.
        notes: What is left out, and why.
    """

    images: list[str]
    groups: NDArray[np.int64]
    clusters: NDArray[np.int64]
    names: list[str]
    notes: list[str]


def _pool(pairs: Pairs, key: str, scorer: Scorer) -> _Pool:
    """Return the pool of the images of pairs, in groups by a key.

    Raises:
        UsageError: Fewer than two groups have enough images.
    """
    compared = groups_of(pairs, key, content_of_units(scorer.store, pairs))
    images, of_image, mixed = _images_of_one_value(pairs, compared.of(len(pairs)), key, scorer)
    notes = compared.notes()
    pictures = {name: int((of_image == at).sum()) for at, name in enumerate(compared.rows)}
    few = {name: count for name, count in pictures.items() if count < FEWEST_PICTURES}
    if len(pictures) - len(few) < 2:
        shown = ", ".join(f"'{name:.40}' {count:,}" for name, count in few.items())
        raise UsageError(
            f"--groups {key}: expected at least two groups of at least {FEWEST_PICTURES} images that have the same "
            f"value in all their pairs, found fewer in {shown}; give a key that describes images"
        )
    if few:
        shown = ", ".join(f"'{name:.40}' ({count:,})" for name, count in few.items())
        notes.append(
            f"Groups of '{key}' of which fewer than {FEWEST_PICTURES} images have the same value in all their pairs "
            f"are left out of the comparison: {shown}."
        )
    if mixed:
        notes.append(f"Not in the pool: {counted(mixed, 'image')} with different values of '{key}' in its pairs.")
    cluster_of = dict(zip(reversed(pairs.images), reversed(pairs.clusters), strict=True))
    return _Pool(
        images=images,
        groups=np.array([-1, *_places(list(pictures), few)], np.int64)[of_image + 1],
        clusters=_numbers([cluster_of[image] for image in images]),
        names=[name for name in pictures if name not in few],
        notes=notes,
    )


def _absent(top: NDArray[np.float64], k: int) -> list[str]:
    """Return a note on queries without any hit of some group; ``top`` is ``(queries, groups)`` shares."""
    absent = int((top == 0).any(axis=1).sum())
    if not absent:
        return []
    return [
        f"For {absent:,} of {len(top):,} queries, some group does not appear in the first {k}; it counts as half an "
        "image there, because ln 0 has no mean."
    ]


def _images_of_one_value(
    pairs: Pairs, cells: NDArray[np.int64], key: str, scorer: Scorer
) -> tuple[list[str], NDArray[np.int64], int]:
    """Return the distinct images with one value, their groups (-1 if too small), and how many have several values."""
    hashes = scorer.store.content_hashes(pairs.images)
    first: dict[str, str] = {}
    values: dict[str, set[str]] = {}
    cell_of: dict[str, int] = {}
    for row, (image, extra) in enumerate(zip(pairs.images, pairs.extras, strict=True)):
        if not has_value(extra.get(key)):
            continue
        name = first.setdefault(hashes.get(image, image), image)
        values.setdefault(name, set()).add(value_name(extra[key]) if cells[row] < 0 else f"group {cells[row]}")
        cell_of[name] = int(cells[row])
    kept = [name for name, own in values.items() if len(own) == 1]
    return kept, np.array([cell_of[name] for name in kept], np.int64), len(values) - len(kept)


def _measured(top: NDArray[np.float64], pool: NDArray[np.float64], k: int) -> dict[str, float]:
    each = skews(top, pool, k)
    return {
        "max_skew": float(each.max(axis=1).mean()),
        "min_skew": float(each.min(axis=1).mean()),
        "share_gap": 100 * float(share_gaps(top, pool).mean()),
    }


def _bounds(drawn: list[float], value: float) -> list[float] | None:
    """Return the quantiles of the draws, widened to hold the value of all images.

    A draw adds its own deviation from the pool, so all draws may lie farther from 0 than a value near it.
    """
    if len(drawn) < 2:
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [min(float(low), value), max(float(high), value)]


def _places(names: list[str], without: Collection[str]) -> list[int]:
    """Return the place of every name among those that are kept, -1 for the others."""
    places = {name: place for place, name in enumerate(name for name in names if name not in without)}
    return [places.get(name, -1) for name in names]


def _numbers(names: list[str]) -> NDArray[np.int64]:
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)


Floats = NDArray[np.float64]
_HALF = 0.5
_PLACES = 4_194_304  # ranking cells processed at once


def skews(top: Floats, pool: Floats, k: int) -> Floats:
    """Return ``(..., groups)`` skews in nats.

    Args:
        top: ``(..., groups)`` shares in the first ``k``.
        pool: ``(..., groups)`` shares in the pool, above 0.
        k: Number of hits shown.
    """
    found: Floats = np.log(np.maximum(top, _HALF / k) / pool)
    return found


def share_gaps(top: Floats, pool: Floats) -> Floats:
    """Return ``(...,)``: the mean over groups of |share in the first k - share in the pool|.

    For two groups that make up the pool, this is the same for either group.
    """
    gaps: Floats = np.abs(top - pool).mean(axis=-1)
    return gaps


class SkewDraws:
    """The first hits when the pool's images are resampled, for intervals over images.

    Args:
        order: ``(queries, images)`` integers: the images of the pool, best first.
        groups: ``(images,)`` group index of every image; -1 if its group is left out.
        clusters: ``(images,)`` int64, images that are resampled together.
        count: Number of groups.
        k: Number of hits shown.
    """

    def __init__(
        self,
        order: NDArray[np.integer[Any]],
        groups: NDArray[np.int64],
        clusters: NDArray[np.int64],
        count: int,
        k: int,
    ) -> None:
        self._order, self._clusters, self.k = order, clusters, k
        self._member: Floats = (groups[:, None] == np.arange(count)).astype(np.float64)

    def shares(self, weights: Floats | None = None) -> tuple[Floats, Floats]:
        """Return ``(queries, groups)`` shares in the first k and ``(groups,)`` shares in the pool.

        Args:
            weights: ``(images,)`` multiplicity of each image; 1 if None.
        """
        pictures = self._member if weights is None else self._member * weights[:, None]
        pool = pictures.sum(axis=0) / max(1.0, float(len(pictures) if weights is None else weights.sum()))
        if weights is None:
            return self._member[self._order[:, : self.k]].mean(axis=1), pool
        top = np.empty((len(self._order), self._member.shape[1]))
        step = max(1, _PLACES // max(1, self._order.shape[1]))
        for start in range(0, len(top), step):  # what follows holds several numbers per position
            order = self._order[start : start + step]
            counts = weights[order]
            before = np.cumsum(counts, axis=1) - counts
            taken = np.clip(self.k - before, 0, counts)
            shown: Floats = np.einsum("qp,qpg->qg", taken, self._member[order])
            top[start : start + step] = shown / taken.sum(axis=1, keepdims=True).clip(min=1.0)
        return top, pool

    def draws(self, resamples: int, seed: int = 0) -> list[tuple[Floats, Floats]]:
        """Return the `shares` for a number of draws of the pool's clusters."""
        number = int(self._clusters.max()) + 1
        found = []
        for block in drawn_counts(number, resamples, seed):
            found += [self.shares(weights[self._clusters].astype(np.float64)) for weights in block]
        return found
