"""Choose on development data how much of one side's prior to subtract; 0 is always tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frevl.errors import PairsError, UsageError
from frevl.evaluation.intervals import paired_difference
from frevl.models.classification.without_prior import WithoutPrior
from frevl.models.inputs import mean_pool
from frevl.models.interface import PairNetwork, PriorSide
from frevl.models.retrieval.first_stage import FirstStage
from frevl.models.retrieval.reranker import Reranked, TermWeights, hubness
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.run import Run
from frevl.runs.targets import Answers
from frevl.training.debiasing.own_data import OwnData
from frevl.training.retrieval.fit import BANK, right_pairs
from frevl.training.retrieval.reranker import bank_of
from frevl.training.retrieval.score_fusion import DEPTHS, development_part, recall_by_image
from frevl.training.retrieval.two_tower import pooled_items

__all__ = ["BANK_OF_CLASSES", "STRENGTHS", "Lessened", "check_both_sides", "flattened", "without_side"]

STRENGTHS = tuple(tenth / 10 for tenth in range(11))
BANK_OF_CLASSES = 64
"""Number of training items whose answers are averaged; each costs a pass per item."""

_LEAST_SHARE = 0.02  # of an answer's probability from one side alone: a pair weighs at most 50 times another


@dataclass(frozen=True)
class Lessened:
    """A network minus a prior.

    Attributes:
        network: The network with the chosen strength.
        strength: Strength of the subtraction, in [0, 1]; 0 leaves the run unchanged.
        tried: The development results of each strength, in percent and points.
        notes: Notes for the user.
        change: Makes such a network of the run's, or of another fit of it.
    """

    network: PairNetwork
    strength: float
    tried: list[dict[str, Any]]
    notes: list[str]
    change: Callable[[PairNetwork], PairNetwork]


def check_both_sides(run: Run, side: PriorSide) -> None:
    """Refuse a run that reads one side.

    Raises:
        UsageError: The run does not read both sides.
    """
    if len(run.sides) < 2:
        raise UsageError(
            f"{run.path}: --without {side} expects a run that reads images and texts, found one of "
            f"{run.sides[0]}s alone"
        )


def without_side(run: Run, data: OwnData, side: PriorSide, *, strength: float | None, seed: int) -> Lessened:
    """Subtract a run's answer to one side alone.

    Args:
        run: The finished run.
        data: The run's own examples.
        side: The side to remove: ``image`` subtracts the answer to the text alone.
        strength: In [0, 1]; None chooses it on the development pairs.
        seed: Random seed for the bank.

    Raises:
        PairsError: The strength is to be chosen, and the run was fitted on its development pairs.
    """
    if strength is None and data.learned:
        raise PairsError(
            f"{run.path}: a {data.learned} also trains on its development part, so nothing is left to choose the "
            "strength on; give pairs of other images with --dev, or a strength with --strength"
        )
    make = _of_matching if run.task == "matching" else _of_classes
    return make(run, data, side, strength, seed)


# ---------------------------------------------------------------------------------------------- classes


def _of_classes(run: Run, data: OwnData, side: PriorSide, strength: float | None, seed: int) -> Lessened:
    network = run.network
    if network.prior is not None:
        raise UsageError(f"{run.path}: its prior was already subtracted; start from the original run")
    kept: PriorSide = "text" if side == "image" else "image"
    bank, mask = _bank(network, data.train.pairs, side, seed)

    def changed(share: float) -> Callable[[PairNetwork], PairNetwork]:
        return lambda one: WithoutPrior(one, bank, mask, kept=kept, strength=share).eval()

    truth = data.dev.truth
    if not isinstance(truth, Answers):
        raise UsageError(f"{run.path}: expected classes, found a matching")
    if strength is not None and data.learned:
        note = f"Without {side}, strength {strength:g}, as given: what this changes was not measured."
        return Lessened(changed(strength)(network), strength, [], [note], changed(strength))
    plain = data.logits(network, lambda one: one)
    prior = plain - data.logits(network, changed(1.0))
    priors = (run.calibration["scale"] * prior).softmax(dim=1)
    weights = flattened(priors, truth)
    tried = compare(
        plain, prior, truth, weights, data.dev.clusters.numpy(), STRENGTHS if strength is None else (0.0, strength)
    )
    chosen = _best(tried) if strength is None else strength
    notes = [_sentence(side, chosen, tried)]
    if data.dev_is_seen:
        notes.append("The strength was chosen on training pairs of the run: give others with --dev.")
    return Lessened(changed(chosen)(network), chosen, tried, notes, changed(chosen))


def _bank(network: PairNetwork, pairs: EmbeddedPairs, side: PriorSide, seed: int) -> tuple[Tensor, Tensor]:
    """Return embeddings and mask of training items, as stored in a run.

    If logits are affine, one item is enough: the mean of all.
    """
    of_image = side == "image"
    rows = torch.unique(pairs.image_rows if of_image else pairs.text_rows)
    values, masks = (pairs.images, pairs.image_mask) if of_image else (pairs.texts, pairs.text_mask)
    if network.affine:
        total = torch.zeros(values.shape[2], dtype=torch.double)
        for part in rows.split(4096):
            total += mean_pool(values[part].float(), masks[part]).double().sum(dim=0)
        return (total / len(rows)).float()[None].half().float(), torch.ones(1, 1, dtype=torch.bool)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:BANK_OF_CLASSES]
    chosen = rows[order.sort().values]
    bank, mask = values[chosen].float().half().float(), masks[chosen]
    return (bank[:, 0], mask) if mask.shape[1] == 1 else (bank, mask)


def flattened(priors: Tensor, truth: Answers) -> Tensor:
    """Return ``(n,)`` weights under which the prior is uninformative.

    A pair is weighted by the inverse of the probability that the prior gives its right answer, as if pairs had been
    resampled so that an answer suggested by one side alone is right no more often than any other.

    Args:
        priors: ``(n, classes)`` probabilities from one side alone.
        truth: The right answers; a pair without a known one has weight 0.
    """
    right = (truth.dense(torch.arange(len(priors)), priors.shape[1]) > 0).float()
    expected = (priors * right).sum(dim=1)
    return torch.where(right.any(dim=1), 1 / expected.clamp(min=_LEAST_SHARE), 0.0)


def compare(
    plain: Tensor,
    prior: Tensor,
    truth: Answers,
    weights: Tensor,
    clusters: NDArray[np.int64],
    strengths: tuple[float, ...],
) -> list[dict[str, Any]]:
    """Return plain and flattened accuracy for every strength, in percent, with the change from 0 in points.

    Args:
        plain: ``(n, classes)`` logits.
        prior: ``(n, classes)`` logits from one side alone.
        truth: The right answers.
        weights: ``(n,)``, from `flattened`.
        clusters: ``(n,)`` clusters to resample for the intervals.
        strengths: Strengths to compare; the first is 0.
    """
    found, before = [], truth.hits(plain.argmax(dim=1)).double()
    share = (weights / weights.sum().clamp(min=1e-9)).double()
    for strength in strengths:
        hits = truth.hits((plain - strength * prior).argmax(dim=1)).double()
        gap = paired_difference(hits.numpy(), before.numpy(), clusters)
        found.append(
            {
                "strength": strength,
                "accuracy": 100 * float(hits.mean()),
                "flattened": 100 * float(share @ hits),
                "change": 100 * gap.value,
                "ci95": gap.percent(),
            }
        )
    return found


def _best(tried: list[dict[str, Any]]) -> float:
    """Return the strength with the best flattened accuracy among those without a measurable loss in plain accuracy.

    Its loss must lie within the interval, and below one point. Ties go to the weakest.
    """
    allowed = [
        one
        for one in tried
        if one["strength"] == 0 or (one["change"] > -_MOST_LOST and one["ci95"] is not None and one["ci95"][1] >= 0)
    ]
    best = max(allowed, key=lambda one: (round(one["flattened"], 9), -one["strength"]))
    return float(best["strength"]) if best["flattened"] >= tried[0]["flattened"] + _LEAST_GAIN else 0.0


_MOST_LOST = 0.5  # points of accuracy on development data
_LEAST_GAIN = 0.1  # points of flattened accuracy: less is not worth a second network


def _sentence(side: str, chosen: float, tried: list[dict[str, Any]]) -> str:
    if chosen == 0:
        return (
            f"Nothing was subtracted: no strength gains accuracy when the answers without the {side} are made "
            "uninformative and keeps it on the original development pairs."
        )
    now, before = next(one for one in tried if one["strength"] == chosen), tried[0]
    return (
        f"Without {side}, strength {chosen:g}: {before['accuracy']:.2f} -> {now['accuracy']:.2f} % of development "
        f"pairs as they are, {before['flattened']:.2f} -> {now['flattened']:.2f} % where answers without the {side} "
        "are made useless."
    )


# --------------------------------------------------------------------------------------------- matching


def _of_matching(run: Run, data: OwnData, side: PriorSide, strength: float | None, seed: int) -> Lessened:
    network = run.network
    whole = cast("Reranked", network) if network.prior is not None else _with_bank(run, network, data, seed)
    name = "text_hubness" if side == "image" else "image_hubness"
    before = -float(getattr(whole.weights, name))
    if before:
        raise UsageError(
            f"{run.path}: one side's own answer was already subtracted, with strength {before:g}; start from a run "
            "without that"
        )
    strengths = STRENGTHS if strength is None else (0.0, strength)
    recalls = _recalls(whole, development_part(right_pairs(data.dev), seed), name, strengths)
    tried = [
        {"strength": one, "recall": 100 * float(recall.mean()), "change": 100 * float((recall - recalls[0]).mean())}
        for one, recall in zip(strengths, recalls, strict=True)
    ]
    best = max(tried, key=lambda one: (round(one["recall"], 9), -one["strength"]))
    chosen = float(best["strength"]) if strength is None else strength
    now = next(one for one in tried if one["strength"] == chosen)
    notes = [
        f"Without {side}, strength {chosen:g}: {tried[0]['recall']:.2f} -> {now['recall']:.2f} % mean recall of "
        f"development pairs{', without the fusion that reranks' if whole.fusion is not None else ''}."
    ]
    weights = replace(whole.weights, **{name: -chosen})
    made = whole.weighed(weights, whole.depth)
    return Lessened(made, chosen, tried, notes, lambda _: made)


def _with_bank(run: Run, network: PairNetwork, data: OwnData, seed: int) -> Reranked:
    """Add a bank of training items to a first stage, with weights of 0."""
    found: object = network.first_stage
    if found is not network:
        raise UsageError(
            f"{run.path}: --without of a matching run expects a first stage (--model dual, cosine, or auto), found "
            f"'{network.key}'"
        )
    pairs = right_pairs(data.train)
    images, texts = pooled_items(pairs.images, pairs.image_mask), pooled_items(pairs.texts, pairs.text_mask)
    first = cast("FirstStage", network)
    banks = bank_of(first, images, texts, pairs.image_rows, pairs.text_rows, BANK, seed)
    weights = TermWeights(alignment=first.alignment_weight)
    return Reranked.of(first, *banks, None, weights=weights, depth=max(DEPTHS))


def _recalls(whole: Reranked, dev: EmbeddedPairs, name: str, strengths: tuple[float, ...]) -> list[Tensor]:
    """Return ``(images,)`` mean hits of each image and its texts for every strength.

    Only the direction whose candidates the prior reorders changes.
    """
    image_ids, image_at = torch.unique(dev.image_rows, return_inverse=True)
    text_ids, text_at = torch.unique(dev.text_rows, return_inverse=True)
    right = torch.zeros(len(image_ids), len(text_ids), dtype=torch.bool)
    right[image_at, text_at] = True
    with torch.inference_mode():
        scales = whole.first.part_scales(whole.weights.alignment, whole.bank_images.shape[1])
        images = whole.first.image_parts(pooled_items(dev.images, dev.image_mask)[image_ids].float())
        texts = whole.first.text_parts(pooled_items(dev.texts, dev.text_mask)[text_ids].float())
        scores = images * scales @ texts.T
        if name == "text_hubness":
            prior = hubness(texts, whole.bank_images, scales)[None]
        else:
            prior = hubness(images, whole.bank_texts, scales)[:, None]
        return [recall_by_image(scores - one * prior, right) for one in strengths]
