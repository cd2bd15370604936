"""The classifier of `frevl classify`, fitted again and again while somebody labels: quickly, then with held-out labels.

Only methods whose head is linear are taken, because every picture of the store is scored after every few labels. The
quick fit keeps the method, penalty and scale that held-out labels chose last, and fits those on all labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from frevl.models.classification.heads import Features, Head, statistics_of, unit_features
from frevl.models.inputs import ZScore
from frevl.training.classification.candidates import Candidate, fixed_candidate
from frevl.training.classification.choose import choose_head, fitted_head
from frevl.training.classification.trials import Labelled
from frevl.training.options import Session

__all__ = ["Taught", "teach"]

_WIDEST = 4_096  # numbers of an embedding for which the curvature, its square, is factored in time
_AT_ONCE = 8_192


@dataclass(frozen=True)
class Taught:
    """A linear classifier of pictures.

    Attributes:
        method: What was chosen, with its setting.
        notes: Sentences for the user.
        held_out: ``(m,)`` int64, the examples that were held out, or empty where none could be.
        held_out_probabilities: ``(m, classes)``, what a classifier that had not seen them says of them.
        head: The classifier itself.
        statistics: Of the examples.
        members: The choice, for the next quick fit.
    """

    method: str
    notes: list[str]
    held_out: np.ndarray
    held_out_probabilities: np.ndarray
    head: Head
    statistics: ZScore
    members: tuple[tuple[Candidate, tuple[float, float]], ...]

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Return ``(n, classes)`` float32 calibrated probabilities of ``(n, dim)`` embeddings."""
        inverse = 1 / self.statistics.scale  # zero where a dimension never varied
        weight = (self.head.weight * inverse).T.contiguous()
        found = []
        with torch.no_grad():
            for start in range(0, len(vectors), _AT_ONCE):
                block = (
                    torch.from_numpy(np.asarray(vectors[start : start + _AT_ONCE], np.float32)) - self.statistics.mean
                )
                length = torch.linalg.vector_norm(block * inverse, dim=1, keepdim=True).clamp_min(1e-12)
                found.append(torch.addmm(self.head.bias, block.div_(length), weight).softmax(dim=1))
        empty = torch.zeros(0, len(self.head.bias))
        probabilities: np.ndarray = (torch.cat(found) if found else empty).numpy()
        return probabilities


def teach(
    vectors: np.ndarray, labels: np.ndarray, clusters: Sequence[int], classes: int, *, before: Taught | None = None
) -> Taught:
    """Fit the classifier.

    Args:
        vectors: ``(n, dim)`` embeddings of pictures with a label.
        labels: ``(n,)`` int64 below `classes`; every class has at least one.
        clusters: ``(n,)``; pictures of one number are copies, and held out together.
        classes: How many there are, at least 2.
        before: What was chosen on fewer labels: only its weights are fitted again, and nothing is held out.
    """
    images = F.normalize(torch.from_numpy(np.asarray(vectors, np.float32)), dim=1)
    statistics = statistics_of(images)
    features = Features(images, unit_features(images, statistics), None)
    numbers = torch.from_numpy(np.unique(np.asarray(clusters), return_inverse=True)[1])
    examples = Labelled(features, torch.from_numpy(np.asarray(labels, np.int64)), numbers)
    if before is not None:
        head = fitted_head(before.members, examples, classes, 0.0)
        nothing = np.zeros(0, np.int64), np.zeros((0, classes), np.float32)
        return Taught(before.method, before.notes, *nothing, head, statistics, before.members)
    method = "probe" if images.shape[1] <= _WIDEST else "means"
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    choice = choose_head(examples, None, classes, method=method, names=0.0, session=session)
    logits, _ = choice.held_out
    rows = torch.cat([out for _, out in choice.splits]) if len(logits) else torch.zeros(0, dtype=torch.long)
    members = choice.members or _fixed_members(method)
    return Taught(
        choice.method, choice.notes, rows.numpy(), logits.softmax(dim=1).numpy(), choice.head, statistics, members
    )  # fmt: skip


def _fixed_members(method: str) -> tuple[tuple[Candidate, tuple[float, float]], ...]:
    candidate, scale = fixed_candidate(method, has_names=False)
    return ((candidate, (1.0, scale)),)
