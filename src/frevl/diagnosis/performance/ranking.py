"""How the models of a matching diagnosis rank: recall among the test images and texts, beside the match decisions."""

from __future__ import annotations

from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.model_comparison import Contest
from frevl.diagnosis.splits import share_of_clusters
from frevl.diagnosis.verdict import HOW_COMPARED, compare, edges
from frevl.evaluation.evaluation import Result, evaluate
from frevl.runs.targets import match_truth

__all__ = ["ranking_findings"]

_MOST_SCORES = 250_000  # images times texts, a model
_METRICS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")


def ranking_findings(contest: Contest) -> list[Finding]:
    """Rank the right test texts for every test image and the other way round, by every model that sees both.

    Returns:
        One finding; none for classification, or where fewer than two images have right texts.
    """
    splits = contest.splits
    if splits.task != "matching":
        return []
    right = splits.test.select(np.flatnonzero(match_truth(splits.test).numpy() > 0.5))
    judged = _some(right, splits.seed)
    if len(set(judged.images)) < 2:
        return []
    fusion = contest.best("fusion")
    entries = [entry for entry in contest.entries if entry.entrant.role in ("fusion", "baseline")]
    results = {entry.name: evaluate(entry.scorer, judged) for entry in entries}
    own, others = results[fusion.name], [name for name in results if name != fusion.name]
    gaps = {name: compare(own.hits, results[name].hits, own.clusters) for name in others}
    best = max(others, key=lambda name: results[name].metrics["i2t_r1"])
    images, texts = len(set(judged.images)), len(set(judged.texts))
    recall = own.metrics["i2t_r1"]
    word = "better than" if gaps[best].up else "worse than" if gaps[best].down else "not measurably better than"
    return [
        Finding(
            name="ranking",
            section="verdict",
            claim=(
                f"Among {texts:,} texts the fusion ({fusion.name}) finds a right one first for {recall:.1f} % of "
                f"{images:,} images, {word} the best other model, {best} ({gaps[best]})."
            ),
            value=recall,
            ci95=own.ci95["i2t_r1"],
            how=(
                "Recall at 1, 5 and 10 in percent, from image to text and from text to image, as frevl evaluate; a hit "
                f"if any right one is found. Test images are drawn so that at most {_MOST_SCORES:,} scores a model "
                f"are needed; fewer candidates make it easier. Differences of i2t_r1: {HOW_COMPARED}"
            ),
            advice=(
                "The first sentence is about telling right from wrong pairs; for search, read this table, and rank "
                "with what is best here."
            ),
            table=[_row(name, result) for name, result in results.items()],
        )
    ]


def _some(right: Pairs, seed: int) -> Pairs:
    """Draw images until all scores fit."""
    scores = len(set(right.clusters)) * len(set(right.texts))
    return right if scores <= _MOST_SCORES else share_of_clusters(right, (_MOST_SCORES / scores) ** 0.5, seed=seed)


def _row(name: str, result: Result) -> dict[str, Any]:
    low, high = edges(result.ci95["i2t_r1"])
    return {"model": name, **{metric: result.metrics[metric] for metric in _METRICS}, "r1 low": low, "r1 high": high}
