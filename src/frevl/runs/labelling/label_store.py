"""Label every image of a store with a class and a probability, in blocks; an interrupted labelling continues."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frevl.data.ahead import ahead_of
from frevl.data.outputs import refuse_inputs
from frevl.errors import UsageError
from frevl.models.hub import weights_digest
from frevl.runs.labelling.label_file import check_label_file, continued
from frevl.runs.score_files import scoring_through
from frevl.runs.scorer import Scorer
from frevl.runs.targets import Ranked
from frevl.store.ids.rows_of_ids import ids_in_order
from frevl.terminal import print_progress

__all__ = ["Labelling", "label_store"]

_AT_ONCE = 16_384  # images written at once, and done again after an interruption
_APART = 65_536  # images whose most certain ones are selected together
_SHOWN = 8  # most certain images per class on the page, and as many least certain ones


@dataclass
class Labelling:
    """The result of a labelling.

    Attributes:
        labelled: Number of labelled images.
        unknown: How many of them belong to no class.
        counts: Number of images by label, not counting unknown ones.
        surest: By label, ``(probability, image id)`` of the most certain images, most certain first.
        least_sure: By label, the same for the least certain images.
        out: Path of the written file, or None.
    """

    labelled: int = 0
    unknown: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    surest: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    least_sure: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    out: Path | None = None
    _apart: list[tuple[Sequence[str], Ranked]] = field(default_factory=list, repr=False)  # added but not yet counted
    _labels: Sequence[str] = field(default=(), repr=False)  # labels of those

    def record(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        self._settle()
        return {
            "labelled": self.labelled,
            "unknown": self.unknown,
            "counts": dict(self.counts.most_common()),
            "out": None if self.out is None else str(self.out),
        }

    def add(self, image: str, label: str, probability: float, *, unknown: bool) -> None:
        """Count one image and keep it if it is among the most or least certain."""
        self._settle()
        self.labelled += 1
        if unknown:
            self.unknown += 1
            return
        self.counts[label] += 1
        _keep(self.surest.setdefault(label, []), (probability, image))
        _keep(self.least_sure.setdefault(label, []), (-probability, image))

    def add_all(self, images: Sequence[str], ranked: Ranked, labels: Sequence[str]) -> None:
        """Count many images, as `add` does for each, without a Python step for those not kept."""
        self.labelled += len(images)
        self._labels = labels
        self._apart.append((images, Ranked(ranked.classes[:, :1], ranked.probabilities[:, :1], ranked.unknown)))
        if sum(len(some) for some, _ in self._apart) >= _APART:
            self._settle()

    def _settle(self) -> None:
        """Count what `add_all` set aside, and keep those among the most or least certain."""
        if not self._apart:
            return
        images = [image for some, _ in self._apart for image in some]
        best, p = (np.concatenate([one[part][:, 0] for _, one in self._apart]) for part in (0, 1))
        known = np.flatnonzero(~np.concatenate([one.unknown for _, one in self._apart]))
        self._apart = []
        self.unknown += len(images) - len(known)
        best, p = best[known], p[known].astype(np.float64)
        first = np.full(len(self._labels), len(best))
        first[best[::-1]] = np.arange(len(best))[::-1]
        counts = np.bincount(best, minlength=len(first))
        for one in np.argsort(first)[: np.count_nonzero(counts)]:  # so that of equal counts the first seen is first
            self.counts[self._labels[one]] += int(counts[one])
        for kept, scores in ((self.surest, p), (self.least_sure, -p)):
            floors = np.array([_floor(kept.get(label, [])) for label in self._labels])
            rows = _contenders(best, scores, floors)
            for same in np.split(rows, np.flatnonzero(np.diff(best[rows])) + 1) if len(rows) else ():
                label = self._labels[best[same[0]]]
                more = zip(scores[same].tolist(), (images[row] for row in known[same]), strict=True)
                kept[label] = sorted([*kept.get(label, []), *more])[-_SHOWN:]  # sorted, it is a heap too

    def sorted(self) -> Labelling:
        """Sort the kept images in place, and return this object."""
        self._settle()
        self.surest = {label: sorted(kept, reverse=True) for label, kept in self.surest.items()}
        self.least_sure = {
            label: sorted((-negative, image) for negative, image in kept) for label, kept in self.least_sure.items()
        }
        return self


def label_store(
    scorer: Scorer,
    out: str | Path | None = None,
    *,
    where: str | None = None,
    k: int = 5,
    ray: str | None = None,
    notes: list[str] | None = None,
    progress: bool = False,
) -> Labelling:
    """Label all images of a store.

    Args:
        scorer: A run for images only, with its store.
        out: File with one JSON object per line: ``{"image", "label", "probability", "top": [[label, p], ...]}`` and, if
            the run has a threshold, ``"unknown"``; written completely or not at all. Repeating an interrupted call
            continues it. A terminal or a pipe is written to directly. None writes nothing.
        where: SQL condition on the metadata of images to label; None labels all.
        k: Number of classes to list in ``top``.
        ray: Score on the nodes of a Ray cluster: ``local``, ``auto``, or the address of its head node. Nodes must see
            run and store under the same paths. The file is the same, and either way continues what the other has
            written.
        notes: Receives notes for the user on lost workers.
        progress: Show progress.

    Raises:
        UsageError: The run reads texts too, the condition is invalid, or the output is also an input.
        InputError: The file cannot be written, or another labelling is writing it.
    """
    if scorer.run.sides != ("image",) or scorer.run.task != "classification":
        raise UsageError(
            f"{scorer.run.path}: expected a classification run for images only, such as one made by classify"
        )
    known = scorer.store.positions("image")
    ids = ids_in_order(known) if where is None else pa.array(scorer.store.matching("image", where), pa.large_string())
    labels = scorer.run.labels
    found = Labelling(out=None if out is None else Path(out))
    ranking = scoring_through(ray, scorer, partial(_ranked, k=k), notes=[] if notes is None else notes)
    if out is None:
        with ranking as through:
            for images, ranked in zip(_blocks(ids, 0), through(_blocks(ids, 0)), strict=True):
                found.add_all(images, ranked, labels)
                print_progress(f"labelled {found.labelled:,} of {len(ids):,}", enabled=progress)
        return found.sorted()
    check_label_file(Path(out))
    refuse_inputs({"--out": out}, {"run": scorer.run.path, "store": scorer.store.path})
    pieces = _Pieces.of(labels)

    def again(row: dict[str, Any]) -> None:
        found.add(row["image"], row["label"], float(np.float32(row["probability"])), unknown=row["unknown"])

    with (
        continued(Path(out), _identity(scorer, where, k), again) as (lines, done),
        ranking as through,
        ThreadPoolExecutor(1, thread_name_prefix="frevl-write") as pool,  # a block is written while the next is scored
    ):

        def write(block: tuple[list[str], Ranked]) -> int:
            lines.write(_lines(*block, pieces))
            lines.flush()
            found.add_all(*block, labels)
            return found.labelled

        blocks = zip(_blocks(ids, done), through(_blocks(ids, done)), strict=True)
        for labelled in ahead_of(pool, write, blocks, 1):
            print_progress(f"labelled {labelled:,} of {len(ids):,}", enabled=progress)
    return found.sorted()


def _floor(heap: list[tuple[float, str]]) -> float:
    """Return the value that a new image must reach to be kept."""
    return heap[0][0] if len(heap) == _SHOWN else float("-inf")


def _keep(heap: list[tuple[float, str]], one: tuple[float, str]) -> None:
    if len(heap) < _SHOWN:
        heapq.heappush(heap, one)
    else:
        heapq.heappushpop(heap, one)


def _contenders(best: np.ndarray, scores: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Return the rows that may be among the `_SHOWN` of their class, including ties with the last one, by class.

    Args:
        best: ``(n,)`` class of each image.
        scores: ``(n,)`` score of each image; the largest are wanted.
        floors: ``(classes,)`` minimum scores.
    """
    rows = np.flatnonzero(scores >= floors[best])
    rows = rows[np.lexsort((-scores[rows], best[rows]))]
    classes, starts = np.unique(best[rows], return_index=True)
    ends = np.append(starts[1:], len(rows))
    lowest = np.full(len(floors), -np.inf)
    lowest[classes] = scores[rows[np.minimum(starts + _SHOWN, ends) - 1]]
    found: np.ndarray = rows[scores[rows] >= lowest[best[rows]]]
    return found


def _blocks(ids: pa.Array, start: int) -> Iterator[list[str]]:
    return (ids[begin : begin + _AT_ONCE].to_pylist() for begin in range(start, len(ids), _AT_ONCE))


def _ranked(scorer: Scorer, images: list[str], *, k: int) -> Ranked:
    with ThreadPoolExecutor(1, thread_name_prefix="frevl-rank") as pool:  # a batch is ranked while the next is scored
        parts = [*ahead_of(pool, partial(scorer.rank_classes, k=k), scorer.score_stored(images), 1)]
    return Ranked(*map(np.concatenate, zip(*parts, strict=True)))


class _Pieces(NamedTuple):
    """What lines have between their numbers, as columns of strings by class; joined once, not once an image.

    Attributes:
        label: The label of an image.
        first: The likeliest class in ``top``.
        other: Another class in ``top``.
        end: What comes last, for images of a class and for unknown ones.
    """

    label: pa.Array
    first: pa.Array
    other: pa.Array
    end: pa.Array

    @classmethod
    def of(cls, labels: Sequence[str]) -> _Pieces:
        spelled = pa.array(map(encode_basestring, labels), pa.large_string(), size=len(labels))
        return cls(
            _joined(', "label": ', spelled, ', "probability": '),
            _joined(', "top": [[', spelled, ", "),
            _joined("], [", spelled, ", "),
            pa.array(f']], "unknown": {word}}}\n' for word in ("false", "true")).cast(pa.large_string()),
        )


def _joined(*pieces: str | pa.Array) -> pa.Array:
    """Return columns of strings joined row by row; a string stands for a column of it."""
    whole = [pa.scalar(piece, pa.large_string()) if isinstance(piece, str) else piece for piece in (*pieces, "")]
    return pc.binary_join_element_wise(*whole)  # the last one is the separator


def _lines(images: Sequence[str], ranked: Ranked, pieces: _Pieces) -> memoryview:
    """Return the lines of a file, assembled column by column: with `json.dumps`, writing took longer than scoring.

    Args:
        images: ``n`` image ids.
        ranked: The classes of the images.
        pieces: The labels as JSON strings.

    Returns:
        UTF-8 bytes; numbers are the shortest that convert back to the same float32.
    """
    classes = [pa.array(column) for column in ranked.classes.T]
    numbers = [pa.array(column.astype(np.float32)).cast(pa.large_string()) for column in ranked.probabilities.T]
    others = (
        part for one, number in zip(classes[1:], numbers[1:], strict=True) for part in (pieces.other.take(one), number)
    )
    lines = _joined(
        '{"image": ', pa.array(map(encode_basestring, images), pa.large_string(), size=len(images)),
        pieces.label.take(classes[0]), numbers[0], pieces.first.take(classes[0]), numbers[0], *others,
        pieces.end.take(pa.array(ranked.unknown.astype(np.int8))),
    )  # fmt: skip
    _, ends, text = lines.buffers()
    return memoryview(text)[: np.frombuffer(ends, np.int64)[len(images)]]


def _identity(scorer: Scorer, where: str | None, k: int) -> dict[str, Any]:
    """Return what determines the lines; with another run, store or condition, the labelling starts over."""
    weights = weights_digest(scorer.run.path)[:16]
    record = hashlib.sha256((scorer.run.path / "run.json").read_bytes()).hexdigest()[:16]
    version = scorer.store.version("image")
    return {"weights": weights, "run": record, "store": str(scorer.store.path.absolute()), "version": version,
            "where": where, "k": k}  # fmt: skip
