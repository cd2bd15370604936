"""Late fusion: choose the weight of each term of a reranked score on development data.

Weight 0 is always tried, and settings that lose R@1 in either direction are excluded, so on development data, reranking
is never worse than the first stage alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from frevl.models.interface import Items
from frevl.models.retrieval.first_stage import FirstStage
from frevl.models.retrieval.reranker import Reranked, TermWeights, hubness
from frevl.runs.batches import EmbeddedPairs

__all__ = [
    "FusionWeights",
    "RankedCandidates",
    "WeightSearch",
    "choose_weights",
    "development_part",
    "few_enough",
    "rank_candidates",
    "recall_by_image",
    "search_alone",
    "search_weights",
]

# Larger weights of hubness rank no better, and make scores of different items less comparable
# (research/experiments/log.md).
HUBNESS_WEIGHTS = (0.0, -0.25, -0.5)
ALIGNMENT_WEIGHTS = (0.0, 5.0, 10.0, 15.0)
FUSION_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
DEPTHS = (20, 50, 100)
_RANKS = (1, 5, 10)
_MOST_SCORES = 67_108_864  # images times texts compared in memory: 256 MB


@dataclass(frozen=True)
class RankedCandidates:
    """The first stage's best items for every query in one direction, best first.

    Attributes:
        columns: ``(queries, depth)`` int64, the items.
        right: ``(queries, depth)`` bool, whether each is right.
        terms: ``(queries, depth, 3)``: first stage, hubness of the candidate, fusion.
    """

    columns: Tensor
    right: Tensor
    terms: Tensor

    @property
    def first_hits(self) -> Tensor:
        """Return the ``(queries, 3)`` hits of the unweighted terms."""
        return self.hits(0.0, 0.0, self.columns.shape[1])

    def hits(self, hubness: float, fusion: float, depth: int) -> Tensor:
        """Return whether a right item is among the first 1, 5 and 10, ``(queries, 3)`` float; ties count as misses."""
        terms, right = self.terms[:, :depth], self.right[:, :depth]
        scores = terms[..., 0] + hubness * terms[..., 1] + fusion * terms[..., 2]
        return _hits(scores, right)


@dataclass(frozen=True)
class FusionWeights:
    """The chosen weights and their results.

    Attributes:
        weights: Weights of the terms.
        depth: Number of candidates per query.
        i2t: ``(images, 3)`` hits at 1, 5 and 10.
        t2i: ``(texts, 3)`` hits at 1, 5 and 10.
        tried: Number of settings tried.
    """

    weights: TermWeights
    depth: int
    i2t: Tensor
    t2i: Tensor
    tried: int

    @property
    def metrics(self) -> dict[str, float]:
        """Return the recalls in percent, by name."""
        rows = (("i2t", self.i2t), ("t2i", self.t2i))
        return {f"{name}_r{k}": 100 * hits[:, i].mean().item() for name, hits in rows for i, k in enumerate(_RANKS)}

    @property
    def mean(self) -> float:
        """Return the mean of the six recalls in percent."""
        values = list(self.metrics.values())
        return sum(values) / len(values)

    def record(self) -> dict[str, Any]:
        """Return the record stored in the run."""
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
        text_rows: ``(n,)`` int64, the text of each pair.
        seed: Random seed for sampling images if there are too many.

    Returns:
        ``(n,)`` bool: all pairs, or those of randomly drawn images, at least two.
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
    """Return the mean of the six hits of every image and its texts (at 1, 5, 10; both directions), ``(images,)``.

    Args:
        scores: ``(images, texts)`` scores; ties count as misses.
        right: ``(images, texts)`` bool, whether they belong together.
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
    """Choose the weights and the depth with the best mean recall.

    The hubness of the query is the same for all its candidates, so each direction determines one weight of hubness; the
    weight of the fusion and the depth are common to both.

    Args:
        i2t: The best texts for every image.
        t2i: The best images for every text.
        hubs: Whether hubness may have a weight.
        fusion: Whether the fusion may have a weight.
        least: Minimum R@1 of both directions; None uses that of the unweighted terms.

    Returns:
        The best choice, or None if every setting loses R@1 in one direction.
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


_MOST_IMAGES = 1000  # development images on which weights are chosen
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True)
class WeightSearch:
    """Development results of a first stage alone, with hubness correction, and with the fusion.

    Attributes:
        first: The first stage as used in search: with its alignment, if it has one.
        without_hubs: With hubness correction, and the best weight of the alignment.
        fused: With the fusion too.
        owners: ``(texts,)`` row of the image of each text.
    """

    first: FusionWeights
    without_hubs: FusionWeights
    fused: FusionWeights
    owners: Tensor

    def by_image(self, found: FusionWeights) -> Tensor:
        """Return the mean of the six hits of each image and its texts, ``(images,)``, used to compare candidates."""
        texts = torch.zeros(len(found.i2t)).index_add_(0, self.owners, found.t2i.mean(dim=1))
        counts = torch.zeros(len(found.i2t)).index_add_(0, self.owners, torch.ones(len(self.owners)))
        return 0.5 * found.i2t.mean(dim=1) + 0.5 * texts / counts.clamp(min=1)

    def record(self) -> dict[str, Any]:
        """Return the record stored in the run."""
        named = {"first_stage": self.first, "with_crowds": self.without_hubs, "with_fusion": self.fused}
        return {name: found.record() for name, found in named.items()}


def development_part(dev: EmbeddedPairs, seed: int) -> EmbeddedPairs:
    """Return the pairs of at most 1,000 development images (fewer with very many texts), enough to choose weights."""
    kept = torch.unique(dev.image_rows)
    kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:_MOST_IMAGES]]
    part = dev.select(torch.isin(dev.image_rows, kept))
    return part.select(few_enough(part.image_rows, part.text_rows, seed))


def search_alone(network: FirstStage, dev: EmbeddedPairs) -> WeightSearch:
    """Measure a first stage alone, without a fusion, and with banks of zeros, so that hubness has no effect."""
    width = network.image_parts(dev.images[:1].float(), _mask(dev.image_mask, torch.tensor([0]))).shape[1]
    bank = torch.zeros(1, width)
    return search_weights(Reranked.of(network, bank, bank, None, weights=TermWeights(), depth=max(DEPTHS)), dev)


def search_weights(network: Reranked, dev: EmbeddedPairs) -> WeightSearch:
    """Rank development data with the first stage, and choose the weights of the other terms.

    Args:
        network: First stage, banks and fusion; its own weights are ignored.
        dev: Right development pairs.
    """
    image_ids, image_at = torch.unique(dev.image_rows, return_inverse=True)
    text_ids, text_at = torch.unique(dev.text_rows, return_inverse=True)
    right = torch.zeros(len(image_ids), len(text_ids), dtype=torch.bool)
    right[image_at, text_at] = True
    with torch.inference_mode():
        images = _items(network.image_items, dev.images, dev.image_mask, image_ids)
        texts = _items(network.text_items, dev.texts, dev.text_mask, text_ids)

        def grid_of(weight: float) -> tuple[Tensor, Tensor, Tensor]:
            """Return scores of all pairs with this weight of the alignment, hubness of images, and hubness of texts."""
            scales = network.first.part_scales(weight, images[0].shape[1])
            both = hubness(images[0], network.bank_texts, scales), hubness(texts[0], network.bank_images, scales)
            return images[0] * scales @ texts[0].T, *both

        first = grid_of(network.first.alignment_weight)[0]
        of_image = rank_candidates(first, right, max(DEPTHS))
        of_text = rank_candidates(first.T.contiguous(), right.T.contiguous(), max(DEPTHS))
        queries = [
            torch.arange(len(columns))[:, None].expand_as(columns).reshape(-1) for columns, _ in (of_image, of_text)
        ]
        pairs = ((queries[0], of_image[0].reshape(-1)), (of_text[0].reshape(-1), queries[1]))

        def fusion_of(rows: Tensor, columns: Tensor) -> Tensor:
            if network.fusion is None:
                return torch.zeros(len(rows))
            parts = []
            for start in range(0, len(rows), _PAIRS_AT_ONCE):
                a, b = rows[start : start + _PAIRS_AT_ONCE], columns[start : start + _PAIRS_AT_ONCE]
                masks = _mask(dev.image_mask, image_ids[a]), _mask(dev.text_mask, text_ids[b])
                parts.append(network.terms(_at(images, a), _at(texts, b), *masks)[:, 3])
            return torch.cat(parts)

        sought = of_image, of_text
        fused = [fusion_of(*pair).view(side[0].shape) for pair, side in zip(pairs, sought, strict=True)]
        own = network.first.alignment_weight
        weights = [own] if network.first.alignment is None else sorted({own, *ALIGNMENT_WEIGHTS})
        sides = {}
        for weight in weights:
            base, image_hubness, text_hubness = grid_of(weight)
            both = []
            for grid, chosen, hubs, fusion in (
                (base, of_image, text_hubness, fused[0]),
                (base.T, of_text, image_hubness, fused[1]),
            ):
                columns = torch.stack([grid.gather(1, chosen[0]), hubs[chosen[0]], fusion], dim=2)
                both.append(RankedCandidates(*chosen, columns))
            sides[weight] = both
    least: tuple[float, float] | None = None

    def best(weights: list[float], *, hubs: bool, fusion: bool) -> FusionWeights:
        """Return the best mean recall; in case of ties the first, which gives the alignment the least weight."""
        tried = []
        for weight in weights:
            found = choose_weights(*sides[weight], hubs=hubs, fusion=fusion, least=least)
            if found is not None:
                tried.append(replace(found, weights=replace(found.weights, alignment=weight)))
        return max(tried, key=lambda found: found.mean)

    alone = best([own], hubs=False, fusion=False)
    least = alone.metrics["i2t_r1"] / 100 - 1e-6, alone.metrics["t2i_r1"] / 100 - 1e-6
    without_hubs = best(weights, hubs=True, fusion=False)
    whole = best(weights, hubs=True, fusion=network.fusion is not None)
    return WeightSearch(alone, without_hubs, whole, right.float().argmax(dim=0))


def _items(make: Callable[..., tuple[Tensor, ...]], values: Tensor, mask: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """Do the work on single items, in blocks."""
    starts = range(0, len(ids), 1024)
    parts = [make(values[part].float(), _mask(mask, part)) for part in (ids[start : start + 1024] for start in starts)]
    return tuple(torch.cat(field) for field in zip(*parts, strict=True))


def _mask(mask: Tensor, rows: Tensor) -> Tensor | None:
    return None if mask.shape[1] == 1 else mask[rows]


def _at(items: Items, rows: Tensor) -> Items:
    return tuple(part[rows] for part in items)
