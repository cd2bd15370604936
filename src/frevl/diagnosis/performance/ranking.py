"""Retrieval with the models of a matching diagnosis: recall among the test images and texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.gaps import HOW_COMPARED, Gap, compare, edges
from frevl.diagnosis.model_comparison import ModelComparison
from frevl.diagnosis.splits import share_of_clusters
from frevl.evaluation.evaluation import Result, evaluate
from frevl.runs.targets import match_truth

__all__ = ["ranking_claim", "ranking_findings"]

_MOST_SCORES = 250_000  # images times texts, per model
_METRICS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")


def ranking_findings(comparison: ModelComparison) -> list[Finding]:
    """Rank the right test texts for every test image and vice versa, with every model that sees both.

    Returns:
        One finding; none for classification, or if fewer than two images have right texts.
    """
    splits = comparison.splits
    if splits.task != "matching":
        return []
    right = splits.test.select(np.flatnonzero(match_truth(splits.test).numpy() > 0.5))
    ranked = _some(right, splits.seed)
    if len(set(ranked.images)) < 2:
        return []
    fusion = comparison.best("fusion")
    models = [model for model in comparison.models if model.spec.role in ("fusion", "baseline")]
    results = {model.name: evaluate(model.scorer, ranked) for model in models}
    own, others = results[fusion.name], [name for name in results if name != fusion.name]
    gaps = {name: compare(own.hits, results[name].hits, own.clusters) for name in others}
    best = max(others, key=lambda name: results[name].metrics["i2t_r1"])
    images, texts = len(set(ranked.images)), len(set(ranked.texts))
    recall = own.metrics["i2t_r1"]
    word, advice = ranking_claim(fusion.name, best, gaps[best])
    return [
        Finding(
            name="ranking",
            section="verdict",
            claim=(
                f"Among {texts:,} texts the fusion ({fusion.name}) finds a right one first for {recall:.1f} % of "
                f"{images:,} images, {word}."
            ),
            value=recall,
            ci95=own.ci95["i2t_r1"],
            how=(
                "Recall at 1, 5 and 10 in percent, from image to text and from text to image, as in evaluate; a hit "
                f"if any right one is found. Test images are sampled so that at most {_MOST_SCORES:,} scores per model "
                f"are needed; fewer candidates make it easier. Differences of i2t_r1: {HOW_COMPARED}"
            ),
            advice=f"The first sentence is about right against wrong pairs; for search, see this table. {advice}",
            table=[_row(name, result) for name, result in results.items()],
        )
    ]


def ranking_claim(fusion: str, other: str, gap: Gap) -> tuple[str, str]:
    """Return how the fusion ranks compared with the best other model, and advice.

    Args:
        fusion: Name of the fusion.
        other: Name of the best-ranking other model.
        gap: Difference between their recalls at 1 from image to text.
    """
    return {
        1: (f"better than the best other model, {other}, by {gap.size()}", f"Here {fusion} ranks best."),
        0: (
            f"not measurably better than the best other model, {other} ({gap})",
            f"Here {fusion} and {other} are indistinguishable: use the one that costs less.",
        ),
        -1: (f"worse than the best other model, {other}, by {gap.size()}", f"Here {other} ranks best."),
    }[gap.sign]


def _some(right: Pairs, seed: int) -> Pairs:
    """Sample images until all scores fit the limit."""
    scores = len(set(right.clusters)) * len(set(right.texts))
    return right if scores <= _MOST_SCORES else share_of_clusters(right, (_MOST_SCORES / scores) ** 0.5, seed=seed)


def _row(name: str, result: Result) -> dict[str, Any]:
    low, high = edges(result.ci95["i2t_r1"])
    return {"model": name, **{metric: result.metrics[metric] for metric in _METRICS}, "r1 low": low, "r1 high": high}
