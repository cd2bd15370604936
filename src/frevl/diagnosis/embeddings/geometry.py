"""What an embedding space is like before anything is trained on it, and what a fusion's projection keeps of it.

All items are those that the pairs use, at most a few thousand, drawn at random; all embeddings are at unit length, so
neighbours are those of the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding, chart, series
from frevl.encoders.interface import pool
from frevl.evaluation.intervals import Interval, bootstrap_interval, bootstrap_statistic
from frevl.models.interface import Projection
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.store.towers import Modality
from frevl.training.retrieval.common_space import COMMON_SPACE

__all__ = ["effective_rank", "embedding_findings", "hub_counts", "modality_gap", "neighbours", "overlap", "skewness"]

K = 10  # neighbours
_FEWEST = 3 * K  # items below which neighbourhoods of K mean nothing
_MOST = 2000  # items; a neighbourhood needs all distances
_SHARES = (50, 90, 99)  # percent of the variance
_MODALITIES: tuple[Modality, Modality] = ("image", "text")


def embedding_findings(
    store: Store,
    pairs: Pairs,
    *,
    encoders: Sequence[str] | None = None,
    scorers: Sequence[Scorer] = (),
    most: int = _MOST,
    seed: int = 0,
) -> list[Finding]:
    """Describe the embeddings of every encoder.

    Args:
        store: Holds them.
        pairs: Whose images and texts to look at.
        encoders: Names of encoders; None takes all in the store.
        scorers: Trained models; the projection of every fusion network among them is looked at.
        most: Items of a modality, at most.
        seed: Of the draw of items.

    Returns:
        An encoder: effective rank and variance, hubs, and the gap between the modalities where they share a space. A
        fusion: which neighbours its projection keeps.

    Raises:
        StoreError: Embeddings are missing.
        UsageError: An encoder is not in the store.
    """
    rows = _drawn(len(pairs), most, seed)
    drawn = pairs.select(rows)
    items: dict[Modality, list[str]] = {
        "image": list(dict.fromkeys(drawn.images)),
        "text": list(dict.fromkeys(drawn.texts)),
    }
    findings = []
    for name in store.encoders if encoders is None else encoders:
        spaces = {
            modality: (store.read_images if modality == "image" else store.read_texts)(ids, encoders=[name])
            for modality, ids in items.items()
            if store.select_towers(modality, [name]) and len(ids) > 2
        }
        if not spaces:
            continue
        findings.append(_rank_finding(name, spaces))
        many = {modality: values for modality, values in spaces.items() if len(values) >= _FEWEST}
        if many:
            findings.append(_hub_finding(name, many))
        if _common(store, name):
            findings.append(_gap_finding(store, name, drawn))
    learned = [(scorer, scorer.network.projections()) for scorer in scorers]
    return findings + [_projection_finding(scorer, maps, items) for scorer, maps in learned if maps is not None]


# ---- measures


def effective_rank(values: np.ndarray) -> float:
    """Return the effective rank: ``exp`` of the entropy of the singular values' shares (Roy and Vetterli 2007).

    Args:
        values: ``(n, dim)``; the mean is taken off first.

    Returns:
        Between 1 (all variance in one direction) and ``min(n - 1, dim)`` (the same in all).
    """
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    shares = singular / max(singular.sum(), 1e-12)
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def explained(values: np.ndarray) -> np.ndarray:
    """Return the share of the variance in the first 1, 2, ... principal directions, ascending to 1."""
    squares = np.linalg.svd(values - values.mean(axis=0), compute_uv=False).astype(np.float64) ** 2
    shares: np.ndarray = np.cumsum(squares) / max(squares.sum(), 1e-12)
    return shares


def neighbours(values: np.ndarray, k: int = K) -> np.ndarray:
    """Return ``(n, k)`` numbers of the items with the largest cosine to each item, itself left out.

    Args:
        values: ``(n, dim)``, ``n > k``; brought to unit length.
        k: How many.
    """
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def hub_counts(nearest: np.ndarray) -> np.ndarray:
    """Return ``(n,)``: in how many neighbourhoods each item is (k-occurrence, Radovanovic et al. 2010)."""
    return np.bincount(nearest.ravel(), minlength=len(nearest))


def skewness(counts: np.ndarray) -> float:
    """Return the third standardised moment; 0 where all counts are equal."""
    centred = counts - counts.mean()
    deviation = float(np.sqrt((centred**2).mean()))
    return float((centred**3).mean() / deviation**3) if deviation > 0 else 0.0


def overlap(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return ``(n,)`` in [0, 1]: the share of each item's neighbours that two ``(n, k)`` lists have in common."""
    shared = (before[:, :, None] == after[:, None, :]).any(axis=2)
    common: np.ndarray = shared.mean(axis=1)
    return common


def modality_gap(images: np.ndarray, texts: np.ndarray) -> float:
    """Return the distance between the mean image and the mean text (Liang et al. 2022); both at unit length."""
    return float(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)))


# ---- findings


def _rank_finding(name: str, spaces: dict[Modality, np.ndarray]) -> Finding:
    rows: list[dict[str, Any]] = []
    lines, spoken = [], []
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
        spoken.append(
            f"{rank:.0f} of {values.shape[1]:,} directions for {len(values):,} {modality}s ({needed[90]:,} carry 90 % "
            "of the variance)"
        )
    first = rows[0]
    return Finding(
        name=f"rank-{name}",
        section="embedding",
        claim=f"The embeddings of {name} use about {' and '.join(spoken)}.",
        value=float(first["effective rank"]),
        ci95=None,
        how=(
            f"Effective rank of the centred {first['embeddings']} embeddings: exp of the entropy of the singular "
            "values' shares (Roy and Vetterli 2007). It grows with the number of items until there are many more than "
            "directions: compare it with that of half the items."
        ),
        advice=(
            "Few directions in a wide embedding: a smaller encoder, or a projection to as many directions as carry 99 "
            "% of the variance, may do as well. An effective rank of a few dozen for thousands of different items: the "
            "items look alike to this encoder."
        ),
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
    word = "few hubs" if worst["skewness"] < 2 else "some hubs" if worst["skewness"] < 5 else "strong hubs"
    return Finding(
        name=f"hubs-{name}",
        section="embedding",
        claim=(
            f"Searching the {worst['embeddings']}s of {name} meets {word}: skewness {worst['skewness']:.1f}, the most "
            f"frequent neighbour is in {worst['the largest hub is in']:,} of {worst['items']:,} neighbourhoods."
        ),
        value=worst["skewness"],
        ci95=[worst["low"], worst["high"]],
        how=(
            f"Skewness of how often an item is among the {K} nearest neighbours of the others by cosine (Radovanovic "
            "et al. 2010); 0 would be evenly. 95 % bootstrap over items. Below 2 we speak of few, from 5 of strong "
            "hubs."
        ),
        advice=(
            "Hubs come up for many queries whatever was asked. With strong ones, rerank search results with a trained "
            "model, or take the mean off the embeddings before searching."
        ),
        table=rows,
    )


def _skewness_interval(counts: np.ndarray) -> Interval:
    return bootstrap_statistic(lambda chosen: skewness(counts[chosen]), np.arange(len(counts)), resamples=500)


def _common(store: Store, name: str) -> bool:
    """Tell whether an encoder declares that its images and texts lie in one space."""
    image, text = (
        {tower.identity.get(COMMON_SPACE) for tower in store.select_towers(modality, [name])} - {None}
        for modality in _MODALITIES
    )
    return bool(image & text)


def _gap_finding(store: Store, name: str, pairs: Pairs) -> Finding:
    """The gap, and whether the texts of an image are nearer to it than those of another."""
    images = store.read_images(pairs.images, encoders=[name])
    texts = store.read_texts(pairs.texts, encoders=[name])
    gap = bootstrap_statistic(lambda rows: modality_gap(images[rows], texts[rows]), list(pairs.images), resamples=200)
    own = (images * texts).sum(axis=1)
    others = np.roll(np.arange(len(pairs)), 1 + len(pairs) // 2)
    other = (images * texts[others]).sum(axis=1)
    foreign = np.array([pairs.texts[i] != pairs.texts[j] for i, j in enumerate(others)])
    wins = bootstrap_interval(
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
        advice=(
            "A gap is normal and harmless while the ranking is right. Where the right text does not win, cosine search "
            "will not work: train a matching model."
        ),
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
    """Which neighbours the projection of a fusion keeps ("Lost in Embeddings", Li et al. 2025)."""
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
        kept = bootstrap_interval(overlap(neighbours(pool(values, mask)), neighbours(after)))
        rows.append(
            {
                "embeddings": modality,
                "items": len(ids),
                "width before": values.shape[2],
                "width after": after.shape[1],
                "neighbours kept %": 100 * kept.value,
                "low": 100 * kept.low,
                "high": 100 * kept.high,
                "by chance %": 100 * K / (len(ids) - 1),
                "rank before": effective_rank(pool(values, mask)),
                "rank after": effective_rank(after),
            }
        )
    name = f"projection-{scorer.run.model}"
    if not rows:
        return Finding(
            name, "embedding", "There are too few items to look at neighbours before and after the projection.", None,
            None, f"At least {_FEWEST} different images or texts are needed.", "Give more pairs.",
        )  # fmt: skip
    first = rows[0]
    return Finding(
        name=name,
        section="embedding",
        claim=(
            f"The trained projection of {scorer.run.model} keeps {first['neighbours kept %']:.1f} % of the {K} nearest "
            f"neighbours of the {first['embeddings']}s ({first['by chance %']:.1f} % would be chance)."
        ),
        value=first["neighbours kept %"],
        ci95=[first["low"], first["high"]],
        how=(
            f"Share of each item's {K} nearest neighbours by cosine in the frozen embedding that are among its {K} "
            "nearest after the projection, in percent (as in Lost in Embeddings, Li et al. 2025); 95 % bootstrap over "
            "items."
        ),
        advice=(
            "The projection keeps what the task needs, so a low share is no fault by itself; but do not search or "
            "cluster with projected embeddings where it is low."
        ),
        table=rows,
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _drawn(n: int, most: int, seed: int) -> np.ndarray:
    """Return the numbers of at most so many pairs, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])
