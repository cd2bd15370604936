"""How much each term of a reranked score should weigh, chosen on development data.

Weight 0 is always among what is tried, and a setting that loses R@1 in either direction is not: reranking
is never worse on development data than the first stage alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from frevl.models.retrieval.reranker import TermWeights

__all__ = ["FusionWeights", "RankedCandidates", "choose_weights", "few_enough", "rank_candidates", "recall_by_image"]

# Larger weights of hubness rank no better and make the scores of different items less comparable
# (research/experiments/log.md).
HUBNESS_WEIGHTS = (0.0, -0.25, -0.5)
ALIGNMENT_WEIGHTS = (0.0, 5.0, 10.0, 15.0)
FUSION_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
DEPTHS = (20, 50, 100)
_RANKS = (1, 5, 10)
_MOST_SCORES = 67_108_864  # images times texts that are compared in memory: 256 MB


@dataclass(frozen=True)
class RankedCandidates:
    """The best items of the first stage for every query of one direction, best first.

    Attributes:
        columns: ``(queries, depth)`` int64.
        right: ``(queries, depth)`` bool.
        terms: ``(queries, depth, 3)``: first stage, hubness of the candidate, fusion.
    """

    columns: Tensor
    right: Tensor
    terms: Tensor

    @property
    def first_hits(self) -> Tensor:
        """``(queries, 3)``: the hits of the terms as they are."""
        return self.hits(0.0, 0.0, self.columns.shape[1])

    def hits(self, hubness: float, fusion: float, depth: int) -> Tensor:
        """``(queries, 3)`` float: whether a right item is among the first 1, 5 and 10; ties count as misses."""
        terms, right = self.terms[:, :depth], self.right[:, :depth]
        scores = terms[..., 0] + hubness * terms[..., 1] + fusion * terms[..., 2]
        return _hits(scores, right)


@dataclass(frozen=True)
class FusionWeights:
    """The choice.

    Attributes:
        weights: Of the terms.
        depth: Candidates a query.
        i2t: ``(images, 3)`` hits among the first 1, 5 and 10.
        t2i: ``(texts, 3)``.
        tried: How many settings.
    """

    weights: TermWeights
    depth: int
    i2t: Tensor
    t2i: Tensor
    tried: int

    @property
    def metrics(self) -> dict[str, float]:
        """Recall in percent, by name."""
        rows = (("i2t", self.i2t), ("t2i", self.t2i))
        return {f"{name}_r{k}": 100 * hits[:, i].mean().item() for name, hits in rows for i, k in enumerate(_RANKS)}

    @property
    def mean(self) -> float:
        """Mean of the six recalls in percent."""
        values = list(self.metrics.values())
        return sum(values) / len(values)

    def record(self) -> dict[str, Any]:
        """Return what the run keeps."""
        return {
            "weights": self.weights.record(),
            "depth": self.depth,
            "metrics": self.metrics,
            "settings_tried": self.tried,
        }


def few_enough(image_rows: Tensor, text_rows: Tensor, seed: int) -> Tensor:
    """Choose pairs whose images and texts can all be compared with each other in memory.

    Args:
        image_rows: ``(n,)`` int64, the image of each pair.
        text_rows: ``(n,)`` int64, its text.
        seed: Of the images that are drawn where there are too many.

    Returns:
        ``(n,)`` bool: all pairs, or those of images drawn at random, at least two.
    """
    kept = torch.ones_like(image_rows, dtype=torch.bool)
    images = torch.unique(image_rows)
    drawn = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    while len(drawn) > 2:
        scores = len(drawn) * len(torch.unique(text_rows[kept]))
        if scores <= _MOST_SCORES:
            break
        drawn = drawn[: min(len(drawn) - 1, max(2, int(len(drawn) * (_MOST_SCORES / scores) ** 0.5)))]
        kept = torch.isin(image_rows, drawn)
    return kept


def rank_candidates(first: Tensor, right: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return columns and truth of the ``depth`` best of ``(queries, items)`` scores, wrong before right on ties."""
    lowered = torch.where(right, torch.nextafter(first, first.new_tensor(-torch.inf)), first)
    columns = lowered.topk(min(depth, first.shape[1]), dim=1).indices
    return columns, right.gather(1, columns)


def recall_by_image(scores: Tensor, right: Tensor) -> Tensor:
    """``(images,)``: the mean of the six hits of every image and its texts (among 1, 5, 10; both directions).

    Args:
        scores: ``(images, texts)``; ties count as misses.
        right: ``(images, texts)`` bool.
    """
    i2t, t2i = _hits(scores, right).mean(dim=1), _hits(scores.T, right.T).mean(dim=1)
    shares = right.float()
    of_texts = (shares @ t2i) / shares.sum(dim=1).clamp(min=1)
    return 0.5 * (i2t + of_texts)


def _hits(scores: Tensor, right: Tensor) -> Tensor:
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    before = ((scores >= best) & ~right).sum(dim=1)
    found = right.any(dim=1)
    return torch.stack([(found & (before < k)).float() for k in _RANKS], dim=1)


def choose_weights(
    i2t: RankedCandidates,
    t2i: RankedCandidates,
    *,
    hubs: bool = True,
    fusion: bool = True,
    least: tuple[float, float] | None = None,
) -> FusionWeights | None:
    """Take the weights and the depth with the best mean recall.

    The hubness of the query is the same for all its candidates, so each direction decides on one weight of hubness; the
    weight of the fusion and the depth are common to both.

    Args:
        i2t: For every image its best texts.
        t2i: For every text its best images.
        hubs: Whether hubness may have a weight.
        fusion: Whether the fusion may have one.
        least: R@1 of both directions that no choice may fall below; None takes that of the terms without weights.

    Returns:
        The best, or None if every setting loses R@1 in one direction.
    """
    hub_weights = HUBNESS_WEIGHTS if hubs else (0.0,)
    fusions = FUSION_WEIGHTS if fusion else (0.0,)
    longest = max(i2t.columns.shape[1], t2i.columns.shape[1])
    depths = sorted({min(depth, longest) for depth in DEPTHS})
    plain = [float(side.first_hits[:, 0].mean()) for side in (i2t, t2i)] if least is None else list(least)
    best: FusionWeights | None = None
    tried = 0
    for depth, weight in product(depths, fusions):
        chosen = []
        for number, side in enumerate((i2t, t2i)):
            found = [(value, side.hits(value, weight, depth)) for value in hub_weights]
            tried += len(found)
            kept = [one for one in found if float(one[1][:, 0].mean()) >= plain[number]]
            if kept:
                chosen.append(max(kept, key=lambda one: float(one[1].mean())))
        if len(chosen) < 2:
            continue
        (text_hubness, image_hits), (image_hubness, text_hits) = chosen
        weights = TermWeights(image_hubness=image_hubness, text_hubness=text_hubness, fusion=weight)
        one = FusionWeights(weights, depth, image_hits, text_hits, tried)
        if best is None or one.mean > best.mean + 1e-9:
            best = one
    return None if best is None else replace(best, tried=tried)
