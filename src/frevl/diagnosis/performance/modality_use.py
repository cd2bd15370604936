"""Does the image matter: the fusion with wrong images, with a mean image, and what can be solved without any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.model_comparison import Contest, Marks, fit, mark, marks_of, seen_by
from frevl.diagnosis.splits import Splits
from frevl.diagnosis.verdict import FEWEST_IMAGES, HOW_COMPARED, compare, edges, points
from frevl.evaluation.intervals import bootstrap_interval

__all__ = ["another_of_class", "exchange", "exchanged_hits", "image_findings", "solvable_blind"]

_ROUNDS = 3  # exchanges that are averaged, so that one lucky draw does not decide
_FOLDS = 3
_MOST_BLIND = 5_000  # training pairs of the blind check; text alone needs no more
_MEAN = "the mean of the training images"


def exchanged_hits(contest: Contest) -> dict[str, np.ndarray]:
    """Return hits of the fusion with its images, and with its texts, exchanged among the test pairs."""
    pairs, scorer, seed = contest.splits.test, contest.best("fusion").scorer, contest.splits.seed
    images = [mark(scorer, pairs, images=exchange(pairs.images, seed + r)).hits for r in range(_ROUNDS)]
    texts = [mark(scorer, pairs, texts=exchange(pairs.texts, seed + r)).hits for r in range(_ROUNDS)]
    return {"image": np.mean(images, axis=0), "text": np.mean(texts, axis=0)}


def exchange(items: list[str], seed: int) -> list[str]:
    """Deal the items out again, so that nearly every pair gets another one; each is used as often as before."""
    random = np.random.default_rng(seed)
    dealt = random.permutation(len(items))
    for _ in range(8):
        same = np.array([row for row, other in enumerate(dealt) if items[row] == items[other]], np.int64)
        if len(same) == 0:
            break
        partners = random.integers(0, len(items), len(same))
        for row, partner in zip(same, partners, strict=True):
            dealt[row], dealt[partner] = dealt[partner], dealt[row]
    return [items[other] for other in dealt]


def another_of_class(pairs: Pairs, seed: int) -> tuple[list[str], np.ndarray]:
    """Give every pair the image of another pair with the same target.

    Returns:
        The images, and the rows of the pairs for which there is one with another image.
    """
    random = np.random.default_rng(seed)
    of_target: dict[str, list[int]] = {}
    for row, target in enumerate(pairs.targets):
        of_target.setdefault(str(target), []).append(row)
    images, found = list(pairs.images), []
    for row, target in enumerate(pairs.targets):
        others = of_target[str(target)]
        for drawn in random.integers(0, len(others), 16):
            if pairs.images[others[drawn]] != pairs.images[row]:
                images[row] = pairs.images[others[drawn]]
                found.append(row)
                break
    return images, np.array(found, np.int64)


def image_findings(contest: Contest, exchanged: dict[str, np.ndarray]) -> list[Finding]:
    """Say how much of the score the image earns.

    Args:
        contest: The trained models.
        exchanged: From `exchanged_hits`.
    """
    splits, fusion = contest.splits, contest.best("fusion")
    own, clusters = fusion.test.hits, contest.clusters
    shown: list[tuple[str, np.ndarray, np.ndarray]] = [
        ("its own image", own, np.arange(len(own))),
        ("an image of another pair", exchanged["image"], np.arange(len(own))),
        ("the mean image", _with_mean_image(contest).hits, np.arange(len(own))),
    ]
    if splits.task == "classification":
        images, rows = another_of_class(splits.test, splits.seed)
        if len(rows):
            kin = mark(fusion.scorer, splits.test.select(rows), images=[images[row] for row in rows]).hits
            shown.append(("an image of the same class", kin, rows))
    table = []
    for name, hits, rows in shown:
        some = [clusters[row] for row in rows]
        interval, gap = bootstrap_interval(hits, some), compare(own[rows], hits, some)
        bounds = edges(points(interval))
        line: dict[str, Any] = {"shown": name, "pairs": len(rows), "accuracy %": 100 * interval.value}
        line |= {"low": bounds[0], "high": bounds[1], "lost points": gap.value}
        lost_bounds = edges(gap.ci95)
        table.append({**line, "lost low": lost_bounds[0], "lost high": lost_bounds[1]})
    lost = compare(own, exchanged["image"], clusters)
    if lost.up:
        claim = f"With wrong images the fusion loses {lost.value:.1f} points: it looks at the image."
        advice = "The image earns these points; a better image encoder may earn more."
    elif len(set(clusters)) < FEWEST_IMAGES:
        claim = f"What wrong images cost cannot be told from {len(set(clusters)):,} test images."
        advice = f"Test on {FEWEST_IMAGES} different images or more."
    else:
        claim = f"With wrong images the fusion loses nothing that can be measured ({lost}): it does not use the image."
        advice = "Use the text alone, or an encoder that sees what the question is about."
    how = (
        f"The trained {fusion.name} scored the same test pairs with other images: of another test pair (mean of "
        f"{_ROUNDS} exchanges), the mean of the training images, and of another test pair with the same answer. "
        f"Points of accuracy lost, {HOW_COMPARED}"
    )
    plot = chart(
        "bars",
        "image shown",
        "right answers, %",
        series(
            fusion.name,
            [line["shown"] for line in table],
            [line["accuracy %"] for line in table],
            low=[line["low"] for line in table],
            high=[line["high"] for line in table],
        ),
    )
    findings = [Finding("wrong-image", "image", claim, lost.value, lost.ci95, how, advice, table, plot)]
    if len(shown) > 3:
        findings.append(_same_class(fusion.name, own, *shown[3][1:], clusters))
    return findings


def _same_class(name: str, own: np.ndarray, kin: np.ndarray, rows: np.ndarray, clusters: list[str]) -> Finding:
    gap = compare(own[rows], kin, [clusters[row] for row in rows])
    if gap.up:
        claim = f"An image of another pair with the same answer costs {gap.value:.1f} points: it needs this very image."
    elif len(set(clusters)) < FEWEST_IMAGES:
        claim = (
            "What an image of another pair with the same answer costs cannot be told from "
            f"{len(set(clusters)):,} test images."
        )
    else:
        claim = (
            f"An image of another pair with the same answer does as well ({gap}): the image says which answers are "
            "likely, not more."
        )
    return Finding(
        name="same-class-image",
        section="image",
        claim=claim,
        value=gap.value,
        ci95=gap.ci95,
        how=(
            f"The trained {name} scored {len(rows):,} test pairs with the image of another test pair of the same "
            f"target. Points of accuracy lost, {HOW_COMPARED}"
        ),
        advice="Small here and large with any wrong image: the model knows kinds of scenes rather than what is asked.",
    )


def _with_mean_image(contest: Contest) -> Marks:
    splits, scorer = contest.splits, contest.best("fusion").scorer
    ids = list(dict.fromkeys(splits.train.images))
    towers = splits.store.select_towers("image", splits.encoder)
    values, mask = splits.store.read("image", ids, towers)
    weights = mask.astype(np.float32)
    total = np.einsum("ntd,nt->td", values.astype(np.float32), weights)
    counts = np.maximum(weights.sum(axis=0), 1.0)[:, None]
    mean = (total / counts).astype(values.dtype)
    shown = [(_MEAN, text) for text in splits.test.texts]
    return marks_of(scorer, scorer.score(shown, images={_MEAN: mean}), splits.test)


def solvable_blind(contest: Contest, *, folder: Path, time_limit: float) -> Finding:
    """Say which share of the test pairs a text-only model solves, cross-validated over the test images.

    A third of the test images is judged by a model that learnt from the training pairs and the other two thirds, so
    that what the test set gives away about itself counts too.
    """
    splits = contest.splits
    text, majority = contest.best("text"), contest.best("majority")
    names = sorted(set(splits.test.clusters))
    if len(names) < _FOLDS:
        return _too_few(len(names))
    random = np.random.default_rng(splits.seed)
    fold_of = dict(zip(random.permutation(names).tolist(), np.arange(len(names)) % _FOLDS, strict=True))
    folds = np.array([fold_of[name] for name in splits.test.clusters])
    hits = np.zeros(len(folds))
    for fold in range(_FOLDS):
        inside = _joined(splits, np.flatnonzero(folds != fold), random)
        judged = splits.test.select(np.flatnonzero(folds == fold))
        scorer = fit(splits, text.entrant, folder=folder / str(fold), time_limit=time_limit / _FOLDS, pairs=inside)
        hits[folds == fold] = mark(scorer, seen_by(text.entrant, judged, splits)).hits
    interval = bootstrap_interval(hits, contest.clusters)
    share = 100 * majority.test.hits.mean()
    gap = compare(hits, majority.test.hits, contest.clusters)
    more = f"{gap.value:.1f} points more than" if gap.up else "not measurably more than"
    return Finding(
        name="solvable-blind",
        section="image",
        claim=(
            f"{100 * interval.value:.1f} % of the test pairs can be solved without looking at the image, {more} by "
            f"always giving the most frequent answer ({share:.1f} %)."
        ),
        value=100 * interval.value,
        ci95=points(interval),
        how=(
            f"The {text.name} model, {_FOLDS}-fold cross-validated over the test images; it learnt from the training "
            f"pairs and the test pairs of the other folds. Percent of test pairs, {HOW_COMPARED}"
        ),
        advice="Read every score beside this one: only what lies above it can come from the image.",
    )


def _too_few(images: int) -> Finding:
    return Finding(
        name="solvable-blind",
        section="image",
        claim=f"What can be solved without the image cannot be told from {images} test images.",
        value=None,
        ci95=None,
        how=f"A {_FOLDS}-fold cross-validation over test images.",
        advice="Give more test images.",
    )


def _joined(splits: Splits, rows: np.ndarray, random: np.random.Generator) -> Pairs:
    """Put some test pairs beside training pairs, as many as the blind check takes."""
    train, test = splits.train, splits.test.select(rows)
    room = max(_MOST_BLIND - len(test), len(test))
    if len(train) > room:
        train = train.select(np.sort(random.permutation(len(train))[:room]))
    columns = ("images", "texts", "targets", "extras", "places")
    return replace(train, **{name: getattr(train, name) + getattr(test, name) for name in columns})
