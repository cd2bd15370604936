"""Convert targets to tensors (class vocabularies, answer weights, matches), and scores back to classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.data.packed.columns import Coded, by_value, coded_values
from frevl.data.pairs import Pairs, Target
from frevl.errors import PairsError, UsageError
from frevl.runs.batches import moved

__all__ = [
    "Answers",
    "Prediction",
    "Ranked",
    "encode_answers",
    "hash_prefixes",
    "label_vocabulary",
    "match_truth",
    "predictions",
    "prefixes_of",
    "ranked",
    "row_prefixes",
]


_FEW = 64  # classes
_FEW_BEST = 10
_NUMBERS_AT_ONCE = 1 << 18  # scores ranked at once: with their probabilities, they fit in the cache of a core


@dataclass(frozen=True)
class Answers:
    """Encoded classification targets; a pair has up to ``k`` answers.

    Attributes:
        classes: ``(n, k)`` int64 class indices, -1 if there is no (known) answer.
        weights: ``(n, k)`` float32 in [0, 1], 0 if there is none.
        soft: True if the file gave weights: every answer then has its own probability, and they need not sum to 1.
    """

    classes: Tensor
    weights: Tensor
    soft: bool

    def dense(self, rows: Tensor, outputs: int) -> Tensor:
        """Return the ``(len(rows), outputs)`` float32 weights of every class."""
        rows = moved(rows, self.weights.device)  # without waiting for the steps before
        target = self.weights.new_zeros(len(rows), outputs + 1)
        # Answers outside the vocabulary (-1) go into a column that is dropped.
        target.scatter_(1, self.classes[rows].where(self.classes[rows] >= 0, outputs), self.weights[rows])
        return target[:, :outputs]

    def on(self, device: torch.device | str) -> Answers:
        """Return the same answers on a device."""
        return Answers(self.classes.to(device), self.weights.to(device), self.soft)

    def select(self, rows: Tensor) -> Answers:
        """Return the answers of some pairs, by index or bool mask."""
        return Answers(self.classes[rows], self.weights[rows], self.soft)

    def followed_by(self, other: Answers) -> Answers:
        """Return these answers followed by those of other pairs, for the same classes."""
        width = max(self.classes.shape[1], other.classes.shape[1])

        def wide(values: Tensor, empty: float) -> Tensor:
            return F.pad(values, (0, width - values.shape[1]), value=empty)

        return Answers(
            torch.cat([wide(self.classes, -1), wide(other.classes, -1)]),
            torch.cat([wide(self.weights, 0), wide(other.weights, 0)]),
            self.soft or other.soft,
        )

    def hits(self, predicted: Tensor) -> Tensor:
        """Return ``(n,)`` float32: the weight of the predicted class, 1 for a right answer."""
        return (self.weights * (self.classes == predicted[:, None])).sum(dim=1)


def label_vocabulary(targets: Sequence[Target | None], *, min_count: int = 1) -> list[str]:
    """Return the classes of training targets, most frequent first, ties in alphabetical order.

    Args:
        targets: Training targets only: a vocabulary that includes test answers is a leak.
        min_count: Leave out answers with fewer pairs than this.

    Raises:
        PairsError: No class is frequent enough.
    """
    counts: dict[str, int] = {}
    for target, times in _counted(targets):
        for answer, weight in _weights(target).items():
            if weight > 0:
                counts[answer] = counts.get(answer, 0) + times
    labels = sorted((answer for answer, n in counts.items() if n >= min_count), key=lambda a: (-counts[a], a))
    if not labels:
        raise PairsError(f"No answer occurs in at least {min_count} training pairs; lower the minimum")
    return labels


def encode_answers(targets: Sequence[Target | None], labels: Sequence[str]) -> Answers:
    """Convert targets to class indices and weights."""
    if isinstance(targets, Coded):  # encode each distinct target once
        codes, different = coded_values(targets)
        return encode_answers(list(different), labels).select(torch.from_numpy(codes.astype(np.int64)))
    index = {label: i for i, label in enumerate(labels)}
    rows = [_weights(target) for target in targets]
    longest = max((len(row) for row in rows), default=1) or 1
    classes = np.full((len(rows), longest), -1, np.int64)
    weights = np.zeros((len(rows), longest), np.float32)
    for i, row in enumerate(rows):
        for k, (answer, weight) in enumerate(row.items()):
            if answer in index:
                classes[i, k], weights[i, k] = index[answer], weight
    soft = any(isinstance(target, dict) for target in targets)
    return Answers(torch.from_numpy(classes), torch.from_numpy(weights), soft)


def _counted(targets: Sequence[Target | None]) -> Iterable[tuple[Target | None, int]]:
    """Return targets with their counts; entries of a list count separately."""
    if not isinstance(targets, Coded):
        return ((target, 1) for target in targets)
    codes, different = coded_values(targets)
    return zip(different, np.bincount(codes).tolist(), strict=True)


def _weights(target: Target | None) -> dict[str, float]:
    if target is None:
        return {}
    if isinstance(target, str):
        return {target: 1.0}
    return dict.fromkeys(target, 1.0) if isinstance(target, list) else target


def balanced_weights(counts: Tensor) -> Tensor:
    """Return class weights such that all classes count equally and pairs have a mean weight of 1.

    ``n / (C counts)`` over the ``C`` classes that occur, as scikit-learn's ``balanced``; 0 for a class that does not.

    Args:
        counts: ``(outputs,)`` number of pairs of each class.
    """
    there = counts > 0
    return torch.where(there, counts.sum() / (there.sum() * counts.clamp(min=1e-9)), 0.0)


def class_weights_of(truth: Answers | Tensor, outputs: int, class_weight: str | None) -> Tensor | None:
    """Return the ``(outputs,)`` class weights; None if all pairs count equally.

    Args:
        truth: Answers of the training pairs.
        outputs: Number of classes.
        class_weight: The option ``balanced``, or None.

    Raises:
        UsageError: The classes of these targets cannot be counted.
    """
    if class_weight is None:
        return None
    if not isinstance(truth, Answers) or truth.soft:
        found = "weights of answers" if isinstance(truth, Answers) else "a matching"
        raise UsageError(f"class_weight=balanced needs one or more right classes per pair, found {found}")
    counts = torch.zeros(outputs)
    for start in range(0, len(truth.classes), 65_536):
        shares = truth.dense(torch.arange(start, min(start + 65_536, len(truth.classes))), outputs)
        counts += (shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-9)).sum(dim=0)
    return balanced_weights(counts)


def match_truth(pairs: Pairs) -> Tensor:
    """Return ``(n,)`` float32: 1 if image and text belong together.

    No target means yes, as do ``true``, ``1`` and ``match``; ``false``, ``0`` and ``no match`` mean no.

    Raises:
        PairsError: There is another target.
    """
    meaning = {"true": 1.0, "1": 1.0, "match": 1.0, "false": 0.0, "0": 0.0, "no match": 0.0}

    def known(target: Target | None) -> float:
        if target is None:
            return 1.0
        return meaning.get(target.lower(), -1.0) if isinstance(target, str) else -1.0

    truth = by_value(pairs.targets, known, np.float32)
    for row in np.flatnonzero(truth < 0)[:1].tolist():
        place, target = pairs.places[row], pairs.targets[row]
        raise PairsError(
            f"{place}, field 'target': a matching task expects no target (a right pair) or one of "
            f"{', '.join(meaning)}; found {target!r:.60}. For classes use --task classification"
        )
    return torch.from_numpy(truth)


def hash_prefixes(hashes: Iterable[str]) -> np.ndarray:
    """Return the first 64 bits of content hashes as sorted, unique ``(n,)`` uint64."""
    return np.array(sorted({int(hash_[:16], 16) for hash_ in hashes}), np.uint64)


def row_prefixes(hashes: np.ndarray) -> np.ndarray:
    """Return the first 64 bits of each of ``(n,)`` content hashes that are bytes of 32 letters, ``(n,)`` uint64."""
    prefixes = np.zeros(len(hashes), np.uint64)
    letters = np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, hashes.dtype.itemsize)
    for place in range(16):  # one digit of all hashes at a time
        one = letters[:, place]
        digits = np.where(one > ord("9"), one - (ord("a") - 10), one - ord("0"))
        prefixes = (prefixes << np.uint64(4)) | digits.astype(np.uint64)
    return prefixes


def prefixes_of(hashes: np.ndarray) -> np.ndarray:
    """Return the same for ``(n,)`` content hashes given as 32-character bytes, without Python objects."""
    return np.unique(row_prefixes(hashes))


@dataclass(frozen=True)
class Prediction:
    """A classification run's answer to a pair.

    Attributes:
        label: The most probable class.
        probability: Its calibrated probability.
        top: The most probable classes with their probabilities, best first.
        unknown: Whether the pair probably belongs to no class; False if the run has no threshold
            (``classify --unknown``).
    """

    label: str
    probability: float
    top: list[tuple[str, float]]
    unknown: bool = False


class Ranked(NamedTuple):
    """The likeliest classes of ``n`` pairs.

    Attributes:
        classes: ``(n, k)`` int64, best first.
        probabilities: ``(n, k)`` calibrated probabilities.
        unknown: ``(n,)`` bool, as in `Prediction.unknown`.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    unknown: np.ndarray


def ranked(
    scores: np.ndarray, probabilities: Callable[[np.ndarray], np.ndarray], *, k: int, unknown_below: float | None
) -> Ranked:
    """Find the likeliest classes, a few rows at a time.

    Args:
        scores: ``(n, classes)`` logits.
        probabilities: Converts rows of logits to calibrated probabilities of the same shape.
        k: Number of classes to find.
        unknown_below: A largest logit below this means "unknown"; None disables this.
    """
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, scores.shape[1]))
    least = -np.inf if unknown_below is None else unknown_below
    parts = []
    for start in range(0, max(1, len(scores)), at_once):
        some = scores[start : start + at_once]
        best = _best(some, k)
        at = best + np.arange(len(some))[:, None] * scores.shape[1]
        unknown = some.reshape(-1).take(at[:, 0]) < least
        parts.append(Ranked(best, probabilities(some).reshape(-1).take(at), unknown))
    return Ranked(*map(np.concatenate, zip(*parts, strict=True)))


def predictions(found: Ranked, labels: Sequence[str]) -> list[Prediction]:
    """Return the likeliest classes by name."""
    return [
        Prediction(labels[row[0]], p[0], [(labels[c], one) for c, one in zip(row, p, strict=True)], is_unknown)
        for row, p, is_unknown in zip(*(part.tolist() for part in found), strict=True)
    ]


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the ``k`` largest scores of every row, largest first; the first column in case of ties."""
    if scores.shape[1] <= max(_FEW, k):
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    if k > _FEW_BEST:
        return _sorted_candidates(scores, k)
    # Finding a maximum is memory-bound, and faster than a partial sort of a thousand classes. What was found is taken
    # out and put back, because a copy of all scores takes as long as two more maxima.
    scores = np.require(scores, requirements=["C", "W"])
    left, begins = scores.reshape(-1), np.arange(0, scores.size, scores.shape[1])
    columns, values = np.empty((len(scores), k), np.int64), np.empty((len(scores), k), scores.dtype)
    for place in range(k):
        columns[:, place] = scores.argmax(axis=1)
        at = begins + columns[:, place]
        values[:, place], left[at] = left[at], -np.inf
    left[begins[:, None] + columns[:, ::-1]] = values[:, ::-1]  # the first last: with -inf it may be found again
    odd = ~np.isfinite(values).all(axis=1)  # argmax treats NaN as the largest
    if odd.any():
        columns[odd] = np.argsort(-scores[odd], axis=1, kind="stable")[:, :k]
    return columns


def _sorted_candidates(scores: np.ndarray, k: int) -> np.ndarray:
    """Do the same as `_best` for a larger ``k``, where sorting a thousand classes would cost more than scoring them."""
    values, columns = (part.numpy() for part in torch.from_numpy(scores).topk(max(k, 2), dim=1))
    tied = np.flatnonzero(values[:, 0] == values[:, 1])  # the first of several largest may not be among those
    columns = columns[:, :k]
    if len(tied):
        first = scores[tied].argmax(axis=1)
        columns[tied, -1] = np.where((columns[tied] == first[:, None]).any(axis=1), columns[tied, -1], first)
    some = np.sort(columns, axis=1)
    order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)
