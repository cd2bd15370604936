"""The classifier of `frevl classify`, refitted while people label: first quickly, then with held-out labels.

Only methods with a linear head are used, because every image of the store is scored after every few labels. The quick
fit keeps the method, penalty and scale last chosen on held-out labels, and refits the weights on all labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.classification.heads import Features, Head, statistics_of, unit_features
from frevl.models.inputs import ZScore
from frevl.training.classification.candidates import Candidate, fixed_candidate
from frevl.training.classification.choose import Choice, choose_head, fitted_head
from frevl.training.classification.trials import Labelled
from frevl.training.options import Session
from frevl.training.selection.measures import standard_error

__all__ = ["USUAL_SCALE", "Taught", "teach"]

USUAL_SCALE = 100.0
"""The logit of a cosine of 1 with a name, for CLIP and similar models."""

_WIDEST = 4_096  # width of an embedding up to which the curvature matrix is factored quickly enough
_AT_ONCE = 8_192


@dataclass(frozen=True)
class Taught:
    """A linear classifier of images.

    Attributes:
        method: The chosen method with its setting.
        notes: Sentences for the user.
        held_out: ``(m,)`` int64, the held-out examples; empty if none could be held out.
        held_out_probabilities: ``(m, classes)``, from a classifier not trained on them.
        head: The classifier itself.
        statistics: Mean and deviation of the examples.
        members: The terms of the choice, for the next quick fit.
        names: ``(classes, dim)`` unit vectors of the names, or None.
        by_names: Whether the choice uses the names.
    """

    method: str
    notes: list[str]
    held_out: np.ndarray
    held_out_probabilities: np.ndarray
    head: Head
    statistics: ZScore
    members: tuple[tuple[Candidate, tuple[float, float]], ...]
    names: Tensor | None = None
    by_names: bool = False

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities of ``(n, dim)`` embeddings, ``(n, classes)`` float32."""
        inverse = 1 / self.statistics.scale  # zero for constant dimensions
        weight = (self.head.weight * inverse).T.contiguous()
        columns = self.names.T.contiguous() if self.names is not None and self.head.names else None
        found = []
        with torch.no_grad():
            for start in range(0, len(vectors), _AT_ONCE):
                # A copy, because memory-mapped files are read-only. PyTorch converts to float five times as fast as
                # numpy.
                block = torch.from_numpy(np.array(vectors[start : start + _AT_ONCE])).float()
                logits = self.head.bias.expand(len(block), -1)
                if columns is not None:
                    logits = torch.addmm(logits, block, columns, alpha=self.head.names)
                if self.head.linear:
                    block = block - self.statistics.mean
                    length = torch.linalg.vector_norm(block * inverse, dim=1, keepdim=True).clamp_min(1e-12)
                    logits = torch.addmm(logits, block.div_(length), weight)
                found.append(logits.softmax(dim=1))
        empty = torch.zeros(0, len(self.head.bias))
        probabilities: np.ndarray = (torch.cat(found) if found else empty).numpy()
        return probabilities


def teach(
    vectors: np.ndarray,
    labels: np.ndarray,
    clusters: Sequence[int],
    classes: int,
    *,
    before: Taught | None = None,
    names: np.ndarray | None = None,
    scale: float = USUAL_SCALE,
) -> Taught:
    """Fit the classifier.

    With names it is one of three, whichever is likeliest on held-out labels: the names alone, the probe around them, or
    the probe without them, because some names carry no information ("good", "bad"). As in `frevl classify`, names alone
    win within one standard error, and nothing is used that is measurably less accurate than they are.

    Args:
        vectors: ``(n, dim)`` embeddings of images with a label; may be empty with names.
        labels: ``(n,)`` int64 below `classes`; without names, every class has at least one.
        clusters: ``(n,)``; images with the same number are copies, and held out together.
        classes: Number of classes, at least 2.
        before: The choice on fewer labels: only its weights are refitted, and nothing is held out.
        names: ``(classes, dim)`` unit vectors of the names in the space of the images, or None.
        scale: The logit of a cosine of 1 with a name.
    """
    images = F.normalize(torch.from_numpy(np.asarray(vectors, np.float32)), dim=1)
    given = torch.from_numpy(np.asarray(labels, np.int64))
    vectors_of_names = None if names is None else torch.from_numpy(np.asarray(names, np.float32))
    width = images.shape[1]
    # Without examples, nothing uses standardised features.
    statistics = statistics_of(images) if len(images) else ZScore(torch.zeros(width), torch.ones(width))
    cosines = None if vectors_of_names is None else images @ vectors_of_names.T
    features = Features(images, unit_features(images, statistics), cosines)
    numbers = torch.from_numpy(np.unique(np.asarray(clusters, np.int64), return_inverse=True)[1])
    examples = Labelled(features, given, numbers)
    complete = len(torch.unique(given)) == classes
    method = "probe" if width <= _WIDEST else "means"
    if before is not None and (complete or (names is not None and before.by_names)) and len(given):
        by_names = before.by_names and names is not None
        head = fitted_head(before.members, examples, classes, scale if by_names else 0.0)
        nothing = np.zeros(0, np.int64), np.zeros((0, classes), np.float32)
        return Taught(
            before.method, before.notes, *nothing, head, statistics, before.members, vectors_of_names, by_names
        )
    tried: list[_Tried] = []
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    for by_names, own in _methods(method, complete=complete, names=names is not None, empty=not len(given)):
        choice = choose_head(examples, None, classes, method=own, names=scale if by_names else 0.0, session=session)
        tried.append(_Tried(choice, own, by_names))
    best = _likeliest(tried, numbers)
    choice = best.choice
    logits, _ = choice.held_out
    rows = torch.cat([out for _, out in choice.splits]) if len(logits) else torch.zeros(0, dtype=torch.long)
    members = choice.members or _fixed_members(best.method, has_names=best.by_names)
    return Taught(
        best.name, choice.notes, rows.numpy(), logits.softmax(dim=1).numpy(), choice.head, statistics, members,
        vectors_of_names, best.by_names,
    )  # fmt: skip


@dataclass(frozen=True)
class _Tried:
    choice: Choice
    method: str
    by_names: bool

    @property
    def name(self) -> str:
        """The name shown on the page."""
        return "names alone" if self.method == "names" else self.choice.method + " around the names" * self.by_names


def _methods(method: str, *, complete: bool, names: bool, empty: bool) -> list[tuple[bool, str]]:
    """Return the candidates as (with names, method), simplest first.

    A probe around the names leaves a class without labels only its name; without names, and for class means, every
    class must have a label.
    """
    if not names:
        return [(False, method)]
    if empty:
        return [(True, "names")]
    around = [(True, method)] if complete or method == "probe" else []
    return [(True, "names"), *around, *([(False, method)] if complete else [])]


def _likeliest(tried: Sequence[_Tried], clusters: Tensor) -> _Tried:
    """Choose by the likelihood of held-out labels; if there are none, the fit around the names."""
    held = [one for one in tried if len(one.choice.held_out[1])]
    if len(held) < len(tried):
        return tried[min(1, len(tried) - 1)]
    truth, rows = held[0].choice.held_out[1], torch.cat([out for _, out in held[0].choice.splits])
    logits = {id(one): one.choice.held_out[0] / one.choice.scale for one in held}  # calibrated for what was held out
    losses = {name: F.cross_entropy(own, truth, reduction="none") for name, own in logits.items()}
    hits = {id(one): (one.choice.held_out[0].argmax(dim=1) == truth).float() for one in held}
    names = next((one for one in held if one.method == "names"), None)
    groups = clusters[rows]
    if names is not None:
        own = {id(one): hits[id(names)] - hits[id(one)] for one in held}
        held = [one for one in held if float(own[id(one)].mean()) <= standard_error(own[id(one)], groups)]
    best = min(held, key=lambda one: float(losses[id(one)].mean()))
    if names is not None:
        behind = losses[id(names)] - losses[id(best)]
        if best is names or float(behind.mean()) <= standard_error(behind, groups):
            return names
    return best


def _fixed_members(method: str, *, has_names: bool) -> tuple[tuple[Candidate, tuple[float, float]], ...]:
    candidate, scale = fixed_candidate(method, has_names=has_names)
    return ((candidate, (1.0, scale)),)
