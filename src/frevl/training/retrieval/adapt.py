"""Adapt an encoder's common space to the user's pairs in closed form, or leave it unchanged.

Hubness is corrected and canonical directions are added (`frevl.models.retrieval.adapted_cosine`) with small weights.
Their worth is decided by cross-validation over the training images, because a development set of some fifty images is
too small to reveal two points. The simplest variant within one standard error of the best is chosen; plain cosine is
the simplest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frevl.models.retrieval.adapted_cosine import fit_adapted_cosine
from frevl.models.retrieval.first_stage import FirstStage
from frevl.models.retrieval.reranker import Reranked, TermWeights
from frevl.models.retrieval.two_tower import Cosine
from frevl.runs.batches import EmbeddedPairs
from frevl.training.examples import Examples
from frevl.training.retrieval.fit import BANK, right_pairs
from frevl.training.retrieval.reranker import bank_of
from frevl.training.retrieval.score_fusion import DEPTHS, few_enough, recall_by_image
from frevl.training.retrieval.two_tower import pooled_items
from frevl.training.selection.measures import one_standard_error, standard_error

__all__ = ["FEWEST_TO_ADAPT", "Adapted", "adapt_cosine", "full_recall", "measurably_worse"]

FEWEST_TO_ADAPT = 50
"""Minimum number of training images; with fewer no difference would show."""

_FOLDS = 4
_MOST = 4_000  # images on which the variants are compared
# With logits up to 50, an item's hubness depends on its nearest ten or so; imported encoders mostly declare no scale.
_SCALE = 50.0
_VARIANTS = (  # name, weight of the canonical cosine, of hubness; simplest first
    ("cosine", 0.0, 0.0),
    ("cosine with hubness", 0.0, -0.5),
    ("adapted cosine with hubness", 0.1, -0.5),
    ("adapted cosine (0.2) with hubness", 0.2, -0.5),
)


@dataclass(frozen=True)
class Adapted:
    """The result of adapting the encoder's space.

    Attributes:
        name: Name of the chosen variant.
        network: The variant fitted on all training pairs: a `Cosine`, or a `Reranked` that corrects hubness.
        first: The first stage, whose results a fusion may rerank.
        rows: The table: every variant with its mean recall and distance from the best.
        reason: Why it was chosen.
        judged_on: The data of the comparison, in words.
    """

    name: str
    network: Cosine | Reranked
    first: FirstStage
    rows: list[dict[str, Any]]
    reason: str
    judged_on: str

    def record(self) -> dict[str, Any]:
        """Return the record stored in the run."""
        return {"chosen": self.name, "reason": self.reason, "judged_on": self.judged_on, "candidates": self.rows}


@dataclass(frozen=True)
class _Variant:
    """A variant with its ``(images,)`` mean recall for every held-out image."""

    name: str
    hits: Tensor
    fit_seconds: float = 0.0
    seeds: int = 1


def adapt_cosine(cosine: Cosine, train: Examples, seed: int) -> Adapted | None:
    """Compare the variants by cross-validation over images, and fit the chosen one.

    Args:
        cosine: The cosine of the encoder.
        train: Training examples of a matching task.
        seed: Random seed of the folds and of the sample used to measure hubness.

    Returns:
        The chosen variant; None for fewer than `FEWEST_TO_ADAPT` images.
    """
    pairs = right_pairs(train)
    right = train.truth > 0.5 if isinstance(train.truth, Tensor) else None
    clusters = train.clusters if right is None else train.clusters[right]
    if len(torch.unique(pairs.image_rows)) < FEWEST_TO_ADAPT or len(torch.unique(clusters)) < FEWEST_TO_ADAPT:
        return None
    random = torch.Generator().manual_seed(seed)
    _, numbers = torch.unique(clusters, return_inverse=True)
    count = int(numbers.max()) + 1
    fold_of = torch.randperm(count, generator=random) % _FOLDS
    place = torch.randperm(count, generator=random)
    used = place[numbers] < _MOST
    hits: list[list[Tensor]] = [[] for _ in _VARIANTS]
    owners: list[Tensor] = []
    for fold in range(_FOLDS):
        held = (fold_of[numbers] == fold) & used
        held[held.clone()] = few_enough(pairs.image_rows[held], pairs.text_rows[held], seed)
        inside, outside = pairs.select((fold_of[numbers] != fold).nonzero()[:, 0]), pairs.select(held.nonzero()[:, 0])
        for variant, network in enumerate(_fitted(cosine, inside, seed)):
            hits[variant].append(full_recall(network, outside))
        images, at = torch.unique(outside.image_rows, return_inverse=True)
        owners.append(torch.zeros(len(images), dtype=torch.long).index_copy_(0, at, numbers[held]))
    tried = [_Variant(name, torch.cat(found)) for (name, _, _), found in zip(_VARIANTS, hits, strict=True)]
    _, groups = torch.unique(torch.cat(owners), return_inverse=True)
    winner, reason, rows = one_standard_error(tried, groups)
    network = _fitted(cosine, pairs, seed)[tried.index(winner)]
    judged_on = f"{len(groups):,} training images by {_FOLDS}-fold cross-validation"
    return Adapted(winner.name, network, network.first_stage, rows, reason, judged_on)


def measurably_worse(one: Tensor, other: Tensor) -> bool:
    """Return whether ``(images,)`` recalls are more than one paired standard error below others on the same images."""
    behind = other - one
    return behind.mean().item() > standard_error(behind, torch.arange(len(behind)))


def full_recall(network: Cosine | Reranked, pairs: EmbeddedPairs) -> Tensor:
    """Return the mean of the six hits of every image of right pairs and its texts, ranking all pairs, ``(images,)``.

    Args:
        network: A first stage, or one with hubness correction, without a fusion.
        pairs: Right pairs.
    """
    image_ids, image_at = torch.unique(pairs.image_rows, return_inverse=True)
    text_ids, text_at = torch.unique(pairs.text_rows, return_inverse=True)
    right = torch.zeros(len(image_ids), len(text_ids), dtype=torch.bool)
    right[image_at, text_at] = True
    images, texts = pairs.images[image_ids].float(), pairs.texts[text_ids].float()
    masks = (None if mask.shape[1] == 1 else mask for mask in (pairs.image_mask[image_ids], pairs.text_mask[text_ids]))
    image_mask, text_mask = masks
    with torch.inference_mode():
        of_images, of_texts = network.image_items(images, image_mask), network.text_items(texts, text_mask)
        return recall_by_image(network.rank_all(of_images, of_texts), right)


def _fitted(cosine: Cosine, pairs: EmbeddedPairs, seed: int) -> list[Cosine | Reranked]:
    """Fit every variant on right pairs."""
    images, texts = pooled_items(pairs.images, pairs.image_mask), pooled_items(pairs.texts, pairs.text_mask)
    found: list[Cosine | Reranked] = []
    for _, weight, hubs in _VARIANTS:
        if hubs == 0:
            found.append(cosine)
            continue
        first = fit_adapted_cosine(
            cosine, images[pairs.image_rows], texts[pairs.text_rows], weight=weight, scale=_SCALE
        )
        banks = bank_of(first, images, texts, pairs.image_rows, pairs.text_rows, BANK, seed)
        banks = banks[0].half().float(), banks[1].half().float()  # as stored in a run
        weights = TermWeights(image_hubness=hubs, text_hubness=hubs)
        found.append(Reranked.of(first, *banks, None, weights=weights, depth=max(DEPTHS)))
    return found
