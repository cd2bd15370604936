"""Properties of an embedding space before training, and which neighbours a fusion's projection preserves.

Items are those used by the pairs, at most a few thousand, sampled at random; all embeddings have unit length, so
neighbours are by cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from frevl.data.pairs import Pairs
from frevl.diagnosis.embeddings.geometry import (
    NEIGHBOURS,
    effective_rank,
    explained,
    hub_counts,
    modality_gap,
    neighbours,
    overlap,
    skewness,
)
from frevl.diagnosis.findings import Finding, chart, series
from frevl.encoders.interface import pool
from frevl.evaluation.intervals import Interval, bootstrap_statistic, hit_interval
from frevl.models.interface import Projection
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.store.towers import MODALITIES, Modality
from frevl.training.retrieval.two_tower import COMMON_SPACE

__all__ = ["embedding_findings", "gap_advice", "hub_claim", "projection_advice", "rank_advice"]

_FEWEST = 3 * NEIGHBOURS  # items below which neighbourhoods are meaningless
_MOST = 2000  # items, as neighbourhoods need all distances
_SHARES = (50, 90, 99)  # percent of the variance
_WELL_USED = 0.5  # share of the possible directions
_ALIKE, _MANY_ITEMS = 40, 1000  # an effective rank that is small for so many items
_MOST_KEPT = 50.0  # percent of the neighbours


def embedding_findings(
    store: Store,
    pairs: Pairs,
    *,
    encoders: Mapping[Modality, Sequence[str] | None] | None = None,
    scorers: Sequence[Scorer] = (),
    most: int = _MOST,
    seed: int = 0,
) -> list[Finding]:
    """Describe the embeddings of every encoder.

    Args:
        store: The store with the embeddings.
        pairs: Pairs whose images and texts to examine.
        encoders: Names of the encoders of images and of texts; None takes all in the store.
        scorers: Trained models; the projection of every fusion network among them is examined.
        most: Maximum items per modality.
        seed: Random seed for sampling items.

    Returns:
        For an encoder: effective rank and variance, hubs, and the modality gap if it has a common space. For a fusion:
        which neighbours its projection preserves.

    Raises:
        StoreError: Embeddings are missing.
        UsageError: An encoder is not in the store.
    """
    rows = _drawn(len(pairs), most, seed)
    drawn = pairs.select(rows)
    both: dict[Modality, Sequence[str]] = {"image": drawn.images, "text": drawn.texts}
    items = {modality: list(dict.fromkeys(both[modality])) for modality in pairs.sides}
    findings = []
    used = {modality: (encoders or {}).get(modality) or store.encoders for modality in items}
    for name in dict.fromkeys(name for names in used.values() for name in names):
        spaces = {
            modality: (store.read_images if modality == "image" else store.read_texts)(ids, encoders=[name])
            for modality, ids in items.items()
            if name in used[modality] and store.select_towers(modality, [name]) and len(ids) > 2
        }
        if not spaces:
            continue
        findings.append(_rank_finding(name, spaces))
        many = {modality: values for modality, values in spaces.items() if len(values) >= _FEWEST}
        if many:
            findings.append(_hub_finding(name, many))
        if len(used) == 2 and all(name in names for names in used.values()) and _common(store, name):
            findings.append(_gap_finding(store, name, drawn))
    learned = [(scorer, scorer.network.projections()) for scorer in scorers]
    return findings + [_projection_finding(scorer, maps, items) for scorer, maps in learned if maps is not None]


def _rank_finding(name: str, spaces: dict[Modality, np.ndarray]) -> Finding:
    rows: list[dict[str, Any]] = []
    lines, phrases = [], []
    for modality, values in spaces.items():
        rank, shares = effective_rank(values), explained(values)
        needed = {share: int(np.searchsorted(shares, share / 100 - 1e-9)) + 1 for share in _SHARES}
        half = effective_rank(values[: len(values) // 2])
        rows.append(
            {
                "embeddings": modality,
                "items": len(values),
                "width": values.shape[1],
                "effective rank": rank,
                "of half the items": half,
                **{f"directions for {share} %": needed[share] for share in _SHARES},
            }
        )
        at = sorted({int(k) for k in np.geomspace(1, len(shares), 25)})
        lines.append(series(modality, at, [100 * float(shares[k - 1]) for k in at]))
        phrases.append(
            f"{rank:.0f} of {values.shape[1]:,} directions for {len(values):,} {modality}s ({needed[90]:,} carry 90 % "
            "of the variance)"
        )
    first = rows[0]
    return Finding(
        name=f"rank-{name}",
        section="embedding",
        claim=f"The embeddings of {name} use about {' and '.join(phrases)}.",
        value=float(first["effective rank"]),
        ci95=None,
        how=(
            f"Effective rank of the centred {first['embeddings']} embeddings: exp of the entropy of the singular "
            "values' shares (Roy and Vetterli 2007). It grows with the number of items until there are many more than "
            "directions: compare it with that of half the items."
        ),
        advice=rank_advice(float(first["effective rank"]), first["items"], first["width"]),
        table=rows,
        plot=chart("lines", "directions", "variance explained, %", *lines, log_x=True),
    )


def _hub_finding(name: str, spaces: dict[Modality, np.ndarray]) -> Finding:
    rows: list[dict[str, Any]] = []
    for modality, values in spaces.items():
        counts = hub_counts(neighbours(values))
        skewed = _skewness_interval(counts)
        rows.append(
            {
                "embeddings": modality,
                "items": len(values),
                "skewness": skewed.value,
                "low": skewed.low,
                "high": skewed.high,
                "in nobody's neighbourhood %": 100 * float((counts == 0).mean()),
                "the largest hub is in": int(counts.max()),
            }
        )
    worst = max(rows, key=lambda row: row["skewness"])
    word, advice = hub_claim(worst["skewness"])
    return Finding(
        name=f"hubs-{name}",
        section="embedding",
        claim=(
            f"The {worst['embeddings']}s of {name} have {word}: skewness {worst['skewness']:.1f}, the most "
            f"frequent neighbour is in {worst['the largest hub is in']:,} of {worst['items']:,} neighbourhoods."
        ),
        value=worst["skewness"],
        ci95=[worst["low"], worst["high"]],
        how=(
            f"Skewness of how often an item is among the {NEIGHBOURS} nearest neighbours of the others by cosine "
            "(Radovanovic et al. 2010); 0 would be evenly. 95 % bootstrap over items. Hubs are called few below 2, "
            "strong from 5 on."
        ),
        advice=advice,
        table=rows,
    )


def rank_advice(rank: float, items: int, width: int) -> str:
    """Return advice on an effective rank.

    Args:
        rank: Effective rank of the embeddings.
        items: Number of items.
        width: Width of an embedding.
    """
    most = min(items - 1, width)
    if rank >= _WELL_USED * most:
        return "The items differ in many directions, about as many as possible with this number of items and width."
    if rank < _ALIKE and items >= _MANY_ITEMS:
        return "So many items in so few directions look alike to this encoder: compare it with another one."
    return (
        "The embedding is wider than it needs to be for these items: a smaller encoder, or a projection to the "
        "directions that carry 99 % of the variance, may do as well."
    )


def hub_claim(skew: float) -> tuple[str, str]:
    """Return the name for a skewness of k-occurrences, and advice."""
    if skew < 2:
        return "few hubs", "Nothing to do: hardly any item turns up regardless of the query."
    if skew < 5:
        return "some hubs", (
            "Some items turn up for many queries regardless of content: look at the first results of a few "
            "searches before doing anything about it."
        )
    return "strong hubs", (
        "The same items turn up for many queries regardless of content: rerank search results with a trained "
        "model, or subtract the mean embedding before searching."
    )


def gap_advice(wins: Interval) -> str:
    """Return advice on how often an image is nearer to its own text, from 0 to 1; half is chance."""
    if wins.low > 0.5:
        return "A gap is normal and harmless while the right text wins, as it does here for most pairs."
    if wins.high < 0.5:
        return (
            "The wrong text wins more often than not: check that images and texts belong together and come from the "
            "same encoder. Search by cosine will not work like this."
        )
    return (
        "The right text does not win more often than by chance: search by cosine will not work; train a matching model."
    )


def projection_advice(low: float, high: float, chance: float) -> str:
    """Return advice on the share of preserved neighbours, from its interval and the chance level, in percent."""
    start = "The projection keeps what the task needs, so this is not a fault in itself; "
    if high < _MOST_KEPT or low <= chance:
        return start + "but do not search or cluster with projected embeddings: their neighbours differ."
    if low > _MOST_KEPT:
        return "Most neighbours stay the same: the task needs what the encoder holds anyway."
    return start + "about half of the neighbours differ, so search and cluster with the original embeddings."


def _skewness_interval(counts: np.ndarray) -> Interval:
    return bootstrap_statistic(lambda chosen: skewness(counts[chosen]), np.arange(len(counts)), resamples=500)


def _common(store: Store, name: str) -> bool:
    """Return whether an encoder declares a common space for images and texts."""
    image, text = (
        {tower.identity.get(COMMON_SPACE) for tower in store.select_towers(modality, [name])} - {None}
        for modality in MODALITIES
    )
    return bool(image & text)


def _gap_finding(store: Store, name: str, pairs: Pairs) -> Finding:
    """Return the modality gap, and whether an image's own texts are nearer to it than others."""
    images = store.read_images(pairs.images, encoders=[name])
    texts = store.read_texts(pairs.texts, encoders=[name])
    gap = bootstrap_statistic(lambda rows: modality_gap(images[rows], texts[rows]), list(pairs.images), resamples=200)
    own = (images * texts).sum(axis=1)
    others = np.roll(np.arange(len(pairs)), 1 + len(pairs) // 2)
    other = (images * texts[others]).sum(axis=1)
    foreign = np.array([pairs.texts[i] != pairs.texts[j] for i, j in enumerate(others.tolist())])
    wins = hit_interval(
        np.where(own > other, 1.0, np.where(own == other, 0.5, 0.0))[foreign] if foreign.any() else np.full(1, 0.5),
        [image for image, kept in zip(pairs.images, foreign, strict=True) if kept] if foreign.any() else None,
    )
    return Finding(
        name=f"modality-gap-{name}",
        section="embedding",
        claim=(
            f"Images and texts of {name} lie {gap.value:.2f} apart in their common space, and an image is nearer to "
            f"its own text than to another one in {100 * wins.value:.1f} % of the pairs (50 would be chance)."
        ),
        value=gap.value,
        ci95=None if np.isnan(gap.low) else [gap.low, gap.high],
        how=(
            f"Distance between the mean image and the mean text of {len(pairs):,} pairs at unit length (Liang et al. "
            "2022; 0 none, 2 at most); 95 % bootstrap over images."
        ),
        advice=gap_advice(wins),
        table=[
            {"what": "gap", "value": gap.value, "low": _known(gap.low), "high": _known(gap.high)},
            {"what": "own text nearer %", "value": 100 * wins.value, "low": _known(100 * wins.low),
             "high": _known(100 * wins.high)},
            {"what": "mean cosine to the own text", "value": float(own.mean()), "low": None, "high": None},
            {"what": "mean cosine to another text", "value": float(other.mean()), "low": None, "high": None},
        ],
    )  # fmt: skip


def _projection_finding(
    scorer: Scorer, projections: tuple[Projection, Projection], items: dict[Modality, list[str]]
) -> Finding:
    """Return which neighbours a fusion's projection preserves ("Lost in Embeddings", Li et al. 2025)."""
    rows: list[dict[str, Any]] = []
    for modality, ids in items.items():
        if len(ids) < _FEWEST:
            continue
        values, mask = scorer.store.read(
            modality, ids, [scorer.store.towers[name] for name in scorer.run.towers[modality]]
        )
        project = projections[0] if modality == "image" else projections[1]
        with torch.inference_mode():
            parts = [project(part.float()) for part in torch.from_numpy(values).split(256)]  # type: ignore[no-untyped-call]
        after = pool(torch.cat(parts).cpu().numpy(), mask)
        kept = hit_interval(overlap(neighbours(pool(values, mask)), neighbours(after)))
        rows.append(
            {
                "embeddings": modality,
                "items": len(ids),
                "width before": values.shape[2],
                "width after": after.shape[1],
                "neighbours kept %": 100 * kept.value,
                "low": 100 * kept.low,
                "high": 100 * kept.high,
                "by chance %": 100 * NEIGHBOURS / (len(ids) - 1),
                "rank before": effective_rank(pool(values, mask)),
                "rank after": effective_rank(after),
            }
        )
    name = f"projection-{scorer.run.model}"
    if not rows:
        return Finding(
            name, "embedding", "There are too few items to compare neighbours before and after the projection.", None,
            None, f"At least {_FEWEST} different images or texts are needed.", "Give more pairs.",
        )  # fmt: skip
    first = rows[0]
    return Finding(
        name=name,
        section="embedding",
        claim=(
            f"The trained projection of {scorer.run.model} keeps {first['neighbours kept %']:.1f} % of the "
            f"{NEIGHBOURS} nearest neighbours of the {first['embeddings']}s ({first['by chance %']:.1f} % would be "
            "chance)."
        ),
        value=first["neighbours kept %"],
        ci95=[first["low"], first["high"]],
        how=(
            f"Share of each item's {NEIGHBOURS} nearest neighbours by cosine in the frozen embedding that are among "
            f"its {NEIGHBOURS} nearest after the projection, in percent (as in Lost in Embeddings, Li et al. 2025); 95 "
            "% bootstrap over items."
        ),
        advice=projection_advice(first["low"], first["high"], first["by chance %"]),
        table=rows,
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _drawn(n: int, most: int, seed: int) -> np.ndarray:
    """Return the numbers of a random sample of pairs, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])
