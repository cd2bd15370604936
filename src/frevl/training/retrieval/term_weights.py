"""What each term of a reranked score is worth on development data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from frevl.models.interface import Items
from frevl.models.retrieval.first_stage import FirstStage
from frevl.models.retrieval.reranker import Reranked, TermWeights, hubness
from frevl.runs.batches import EmbeddedPairs
from frevl.training.retrieval.score_fusion import (
    ALIGNMENT_WEIGHTS,
    DEPTHS,
    FusionWeights,
    RankedCandidates,
    choose_weights,
    few_enough,
    rank_candidates,
)

__all__ = ["WeightSearch", "development_part", "search_alone", "search_weights"]

_MOST_IMAGES = 1000  # development images that weights are chosen on
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True)
class WeightSearch:
    """A first stage alone, with hubness taken back, and with the fusion too, on development data.

    Attributes:
        first: The first stage as it searches: with its alignment, if it has one.
        without_hubs: With hubness taken back, and the alignment at its best weight.
        fused: With the fusion too.
        owners: ``(texts,)`` row of the image of each text.
    """

    first: FusionWeights
    without_hubs: FusionWeights
    fused: FusionWeights
    owners: Tensor

    def by_image(self, found: FusionWeights) -> Tensor:
        """``(images,)``: the mean of the six hits of each image and its texts, what candidates are compared by."""
        texts = torch.zeros(len(found.i2t)).index_add_(0, self.owners, found.t2i.mean(dim=1))
        counts = torch.zeros(len(found.i2t)).index_add_(0, self.owners, torch.ones(len(self.owners)))
        return 0.5 * found.i2t.mean(dim=1) + 0.5 * texts / counts.clamp(min=1)

    def record(self) -> dict[str, Any]:
        """Return what the run keeps."""
        named = {"first_stage": self.first, "with_crowds": self.without_hubs, "with_fusion": self.fused}
        return {name: found.record() for name, found in named.items()}


def development_part(dev: EmbeddedPairs, seed: int) -> EmbeddedPairs:
    """Return the pairs of at most 1,000 development images (fewer with very many texts): weights need no more."""
    kept = torch.unique(dev.image_rows)
    kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:_MOST_IMAGES]]
    part = dev.select(torch.isin(dev.image_rows, kept))
    return part.select(few_enough(part.image_rows, part.text_rows, seed))


def search_alone(network: FirstStage, dev: EmbeddedPairs) -> WeightSearch:
    """Measure a first stage alone; all results are the same but for hubness, which means nothing here."""
    width = network.image_parts(dev.images[:1].float(), _mask(dev.image_mask, torch.tensor([0]))).shape[1]
    bank = torch.zeros(1, width)
    return search_weights(Reranked.of(network, bank, bank, None, weights=TermWeights(), depth=max(DEPTHS)), dev)


def search_weights(network: Reranked, dev: EmbeddedPairs) -> WeightSearch:
    """Rank development data by the first stage and choose the weights of the other terms.

    Args:
        network: First stage, banks and fusion; its own weights play no part.
        dev: Right pairs of development.
    """
    image_ids, image_at = torch.unique(dev.image_rows, return_inverse=True)
    text_ids, text_at = torch.unique(dev.text_rows, return_inverse=True)
    right = torch.zeros(len(image_ids), len(text_ids), dtype=torch.bool)
    right[image_at, text_at] = True
    with torch.inference_mode():
        images = _items(network.image_items, dev.images, dev.image_mask, image_ids)
        texts = _items(network.text_items, dev.texts, dev.text_mask, text_ids)

        def grid_of(weight: float) -> tuple[Tensor, Tensor, Tensor]:
            """Scores of all pairs with this weight of the alignment, hubness of images and of texts."""
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
        """The best mean recall; among equals the first, which weighs the alignment least."""
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
    """Do the work of single items, in blocks."""
    starts = range(0, len(ids), 1024)
    parts = [make(values[part].float(), _mask(mask, part)) for part in (ids[start : start + 1024] for start in starts)]
    return tuple(torch.cat(field) for field in zip(*parts, strict=True))


def _mask(mask: Tensor, rows: Tensor) -> Tensor | None:
    return None if mask.shape[1] == 1 else mask[rows]


def _at(items: Items, rows: Tensor) -> Items:
    return tuple(part[rows] for part in items)
