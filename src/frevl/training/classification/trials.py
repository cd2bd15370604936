"""Fit candidates on folds, and calibrate their held-out predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.classification.heads import Features, Head
from frevl.models.classification.landmarks import MOST_EXACT, landmark_count
from frevl.models.classification.linear_problem import minimise
from frevl.training.classification.candidates import Candidate
from frevl.training.selection.measures import standard_error

__all__ = ["Compared", "Labelled", "Trials", "calibrated_parts", "no_surer_than_right"]

_ENOUGH_HELD_OUT = 1_000  # held-out examples that make further folds unnecessary
_ENOUGH_FOR_SETTINGS = 200  # held out in the first fold: it chooses a method's setting; all folds choose the method
_TRIED = 1_024  # landmarks, of four times as many examples, that show whether they lose anything
_STEADY = 1e-4  # pull of the scales towards 1, where they stay if the data fit any scale


@dataclass(frozen=True)
class Labelled:
    """Images of known classes.

    Attributes:
        features: Features of ``n`` images.
        labels: ``(n,)`` int64.
        clusters: ``(n,)`` int64; images with the same number are not independent.
        weights: ``(n,)`` weights above 0; None weights all equally.
        known: ``(n,)`` bool, on which images the names' space was trained: names look better there than elsewhere, so
            neither these images nor the rest of their clusters are held out. None: on none of them.
    """

    features: Features
    labels: Tensor
    clusters: Tensor
    weights: Tensor | None = None
    known: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def each(self) -> Tensor:
        """``(n,)`` weights scaled to mean 1, so that the mean of weighted values is their weighted mean."""
        return torch.ones(len(self)) if self.weights is None else self.weights / self.weights.mean()

    def select(self, rows: Tensor) -> Labelled:
        """Return some of the images."""
        weights, known = (None if one is None else one[rows] for one in (self.weights, self.known))
        return Labelled(self.features.select(rows), self.labels[rows], self.clusters[rows], weights, known)


@dataclass(frozen=True)
class Compared:
    """A candidate with its calibrated logits of held-out images."""

    name: str
    members: tuple[tuple[Candidate, tuple[float, float]], ...]
    logits: Tensor
    hits: Tensor
    losses: Tensor
    fit_seconds: float
    seeds: int = 1


class Trials:
    """Fit candidates on folds (or on all examples if there are development images), and predict the rest."""

    def __init__(self, examples: Labelled, folds: Tensor, held: Labelled | None, classes: int, names: float) -> None:
        self.examples, self.held, self.classes, self.names = examples, held, classes, names
        self.splits: list[tuple[Tensor, Tensor]] = []  # rows to fit on, rows to predict
        self._copied: tuple[int, tuple[Labelled, Labelled]] | None = None  # of the split used last
        out = 0
        for fold in range(0 if held is not None else int(folds.max()) + 1):
            if out < _ENOUGH_HELD_OUT:
                self.splits.append(((folds != fold).nonzero()[:, 0], (folds == fold).nonzero()[:, 0]))
                out += len(self.splits[-1][1])
        self.truth = held if held is not None else examples.select(torch.cat([rows for _, rows in self.splits]))
        self.compared_on = f"{len(self.truth):,} development images" if held is not None else (
            f"{len(self.truth):,} held-out examples in {len(self.splits)} folds"
        )  # fmt: skip

    def unfit(self, candidate: Candidate, *, whole: bool = False) -> str:
        """Return why a candidate cannot be fitted without held-out examples, or on all; empty if it can be."""
        if candidate.every_class and len(set(self.examples.labels.tolist())) < self.classes:
            return "needs examples of every class"
        if candidate.most is not None and len(self.examples) > candidate.most and self.classes > candidate.beyond:
            few = f" with more than {candidate.beyond:,} classes" if candidate.beyond else ""
            return f"keeps every example{few}, at most {candidate.most:,}"
        fits = [rows for rows, _ in self.splits] if self.splits and not whole else [torch.arange(len(self.examples))]
        if min(len(rows) / len(set(self.examples.labels[rows].tolist())) for rows in fits) > candidate.fewest - 0.5:
            return ""
        return f"needs {candidate.fewest} examples per class{'' if whole else ' besides those held out'}"

    def compare(self, settings: Sequence[Candidate]) -> list[Compared]:
        """Predict held-out images with every setting of a method, or with the one preferred by the first fold."""
        started = time.monotonic()
        settings = self._with_landmarks(settings)
        first = [self._predict(one, 0) for one in settings]
        each = (time.monotonic() - started) / max(1, len(settings))
        if len(self.splits) > 1 and len(settings) > 1 and len(self.splits[0][1]) >= _ENOUGH_FOR_SETTINGS:
            part = self.examples.select(self.splits[0][1])
            losses = [float(calibrated_parts(one, parts, part, 0.0).losses.mean())
                      for one, parts in zip(settings, first, strict=True)]  # fmt: skip
            best = losses.index(min(losses))
            settings, first = settings[best : best + 1], first[best : best + 1]
        found = []
        for one, parts in zip(settings, first, strict=True):
            started = time.monotonic()
            rest = [self._predict(one, number) for number in range(1, len(self.splits))]
            of_names, of_rest = (torch.cat(side) for side in zip(parts, *rest, strict=True))
            seconds = each + time.monotonic() - started
            found.append(calibrated_parts(one, (of_names, of_rest), self.truth, seconds))
        return found

    def _with_landmarks(self, settings: Sequence[Candidate]) -> Sequence[Candidate]:
        """Let some examples carry the kernels of many, unless that measurably loses likelihood on a part of them.

        With 20 directions a class, it lost 24 points of accuracy; with one, and on real embeddings, nothing.
        """
        count = landmark_count(len(self.examples), self.classes)
        if not (settings and settings[0].beyond and count):
            return settings
        carried = [replace(one, settings={**one.settings, "landmarks": count}) for one in settings]
        if len(self.examples) > MOST_EXACT:
            return carried
        kept, out = self._parts(0)
        some = kept.select(torch.arange(4 * _TRIED) * len(kept) // (4 * _TRIED))
        middle, few = len(settings) // 2, {"landmarks": _TRIED}
        exact, fewer = (
            self._tried(one, some, out)
            for one in (settings[middle], replace(carried[middle], settings={**settings[middle].settings, **few}))
        )
        lost = fewer.losses - exact.losses
        return settings if float(lost.mean()) > standard_error(lost, out.clusters) else carried

    def _tried(self, candidate: Candidate, kept: Labelled, out: Labelled) -> Compared:
        head = candidate.fit(kept.features, kept.labels, self.classes, names=self.names, weights=kept.weights)
        return calibrated_parts(candidate, _in_parts(head, candidate, out.features, kept.features), out, 0.0)

    @property
    def share_fitted(self) -> float:
        """Share of the examples that a fit uses, on average over the folds, in (0, 1]."""
        if self.held is not None:
            return 1.0
        return sum(len(kept) for kept, _ in self.splits) / len(self.splits) / len(self.examples)

    def logits(self, members: Sequence[tuple[Candidate, tuple[float, float]]]) -> Tensor:
        """Return the ``(n, classes)`` logits of the held-out images, a sum over candidates with their two scales."""
        folds = []
        for number in range(len(self.splits)):
            parts = [(self._predict(candidate, number), scales) for candidate, scales in members]
            folds.append(sum(scales[side] * part[side] for part, scales in parts for side in (0, 1)))
        return torch.cat([one for one in folds if isinstance(one, Tensor)])

    def _predict(self, candidate: Candidate, number: int) -> tuple[Tensor, Tensor]:
        """Return the ``(n, classes)`` logits of held-out images in two parts: from the names, and from the rest."""
        kept, out = self._parts(number)
        head = candidate.fit(kept.features, kept.labels, self.classes, names=self.names, weights=kept.weights)
        return _in_parts(head, candidate, out.features, kept.features)

    def _parts(self, number: int) -> tuple[Labelled, Labelled]:
        """Return the parts to fit on and to predict; consecutive settings share the copies."""
        if self.held is not None:
            return self.examples, self.held
        if self._copied is None or self._copied[0] != number:
            self._copied = None  # free the previous copies before making new ones
            kept, out = (self.examples.select(rows) for rows in self.splits[number])
            self._copied = number, (kept, out)
        return self._copied[1]


def _in_parts(head: Head, candidate: Candidate, features: Features, kept: Features) -> tuple[Tensor, Tensor]:
    if candidate.anchored:
        whole = head.logits(features, kept)
        return whole, torch.zeros_like(whole)
    rest = head.with_names(0.0).logits(features, kept)
    if not head.names or features.cosines is None:
        return torch.zeros_like(rest), rest
    return head.names * features.cosines, rest


def calibrated_parts(candidate: Candidate, parts: tuple[Tensor, Tensor], truth: Labelled, seconds: float) -> Compared:
    """Fit the scales of both parts by maximum likelihood on held-out images: at most two parameters.

    The scale of a head also states how much to trust the examples relative to the names.
    """
    each = truth.each
    there = [side for side, part in enumerate(parts) if bool(part.any())]
    # Scaled to about unit size, so that the curvature in the logarithms of the scales is about 1.
    both = [parts[side] / max(float(parts[side].std()), 1e-6) for side in there]
    rows = torch.arange(len(truth))

    def evaluate(logs: Tensor) -> tuple[float, Tensor]:
        scaled = [float(log.exp()) * part for log, part in zip(logs, both, strict=True)]
        likely = torch.log_softmax(sum(scaled[1:], scaled[0]), dim=1)
        value = float((-likely[rows, truth.labels] * each).mean() + _STEADY * logs.square().sum())
        residual = likely.exp_()
        residual[rows, truth.labels] -= 1
        residual *= each[:, None] / len(each)
        slopes = torch.stack([(residual * part).sum() for part in scaled])
        return value, slopes + 2 * _STEADY * logs

    logs = minimise(evaluate, torch.zeros(len(both)), steps=30, tolerance=1e-5) if both else torch.zeros(0)
    found = [0.0, 0.0]
    for side, log in zip(there, logs, strict=True):
        found[side] = float(log.exp()) / max(float(parts[side].std()), 1e-6)
    logits = found[0] * parts[0] + found[1] * parts[1]
    hits = (logits.argmax(dim=1) == truth.labels) * each
    losses = F.cross_entropy(logits, truth.labels, reduction="none") * each
    return Compared(candidate.name, ((candidate, (found[0], found[1])),), logits, hits, losses, seconds)


def no_surer_than_right(head: Head, examples: Labelled) -> Head:
    """Shrink a head that is surer of its own examples than it is right on them, as where equal ones contradict.

    The scales used where nothing can be held out come from examples that a head can learn by heart.
    """
    logits = head.logits(examples.features, examples.features)
    if bool((logits.argmax(dim=1) == examples.labels).all()):
        return head
    one = Candidate("scale", None, anchored=True)
    factor = calibrated_parts(one, (logits, torch.zeros_like(logits)), examples, 0.0).members[0][1][0]
    return head.scaled(factor) if 0 < factor < 1 else head
