"""Modality use: the best model with wrong images or a mean image, and what can be answered without any image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.gaps import FEWEST_IMAGES, HOW_COMPARED, Gap, compare, edges
from frevl.diagnosis.model_comparison import (
    ComparedModel,
    ModelComparison,
    Predictions,
    fit,
    predict_all,
    predictions_of,
    seen_by,
)
from frevl.diagnosis.splits import Splits
from frevl.errors import counted
from frevl.evaluation.intervals import hit_interval

__all__ = [
    "another_of_class",
    "exchange",
    "exchanged_hits",
    "image_findings",
    "same_class_claim",
    "text_only_claim",
    "text_only_finding",
    "wrong_image_claim",
]

_ROUNDS = 3  # exchanges to average, so that one lucky draw does not decide
_PARTS = 3
_MOST_TRAINED_ON = 5_000  # training pairs of the text-only check; text alone needs no more
_MEAN = "the mean of the training images"


def exchanged_hits(comparison: ModelComparison) -> dict[str, dict[str, np.ndarray]]:
    """Return the hits of two models with their images, and with their texts, exchanged among the test pairs.

    Returns:
        For each model name (the best fusion, and the best model that sees both), ``image`` and ``text``, each ``(n,)``
        in [0, 1].
    """
    pairs, seed = comparison.splits.test, comparison.splits.seed
    hits = {}
    for model in (comparison.best("fusion"), comparison.both):
        if model.name in hits:
            continue
        rounds = [seed + number for number in range(_ROUNDS)]
        images = [predict_all(model.scorer, pairs, images=exchange(pairs.images, one)).hits for one in rounds]
        texts = [predict_all(model.scorer, pairs, texts=exchange(pairs.texts, one)).hits for one in rounds]
        hits[model.name] = {"image": np.mean(images, axis=0), "text": np.mean(texts, axis=0)}
    return hits


def exchange(items: Sequence[str], seed: int) -> list[str]:
    """Redistribute the items so that nearly every pair gets another one; each is used as often as before."""
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
        The images, and the rows of the pairs for which another image exists.
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


def image_findings(comparison: ModelComparison) -> list[Finding]:
    """Report how much of its score the best model that sees both owes to the image."""
    splits, model = comparison.splits, comparison.both
    own, clusters = model.test.hits, comparison.clusters
    wrong = (comparison.exchanged or exchanged_hits(comparison))[model.name]["image"]
    shown: list[tuple[str, np.ndarray, np.ndarray]] = [
        ("its own image", own, np.arange(len(own))),
        ("an image of another pair", wrong, np.arange(len(own))),
        ("the mean image", _with_mean_image(comparison).hits, np.arange(len(own))),
    ]
    if splits.task == "classification":
        images, rows = another_of_class(splits.test, splits.seed)
        if len(rows):
            alike = predict_all(model.scorer, splits.test.select(rows), images=[images[row] for row in rows]).hits
            shown.append(("an image of the same class", alike, rows))
    table = []
    for name, hits, rows in shown:
        some = [clusters[row] for row in rows]
        interval, gap = hit_interval(hits, some), compare(own[rows], hits, some)
        bounds = edges(interval.percent())
        line: dict[str, Any] = {"shown": name, "pairs": len(rows), "accuracy %": 100 * interval.value}
        line |= {"low": bounds[0], "high": bounds[1], "lost points": gap.value}
        lost_bounds = edges(gap.ci95)
        table.append({**line, "lost low": lost_bounds[0], "lost high": lost_bounds[1]})
    lost = compare(own, wrong, clusters)
    claim, advice = wrong_image_claim(model.title, lost, len(set(clusters)), adds=comparison.choice.adds("image"))
    how = (
        f"The trained {model.name}, the best model that sees both, answered the same test pairs with images from "
        f"another test pair (mean of {_ROUNDS} exchanges), the mean of the training images, and from another test pair "
        f"with the same answer. Points of accuracy lost, {HOW_COMPARED}"
    )
    plot = chart(
        "bars",
        "image shown",
        "right answers, %",
        series(
            model.name,
            [line["shown"] for line in table],
            [line["accuracy %"] for line in table],
            low=[line["low"] for line in table],
            high=[line["high"] for line in table],
        ),
    )
    findings = [Finding("wrong-image", "image", claim, lost.value, lost.ci95, how, advice, table, plot)]
    if len(shown) > 3:
        findings.append(_same_class(model, *shown[3][1:], clusters, lost))
    return findings


def wrong_image_claim(name: str, lost: Gap, images: int, *, adds: bool) -> tuple[str, str]:
    """Return claim and advice on what wrong images cost a model.

    Args:
        name: Name of the model.
        lost: Accuracy of the model with its own images minus that with images of other pairs.
        images: Number of distinct test images.
        adds: Whether the image adds anything measurable to the text.
    """
    if images < FEWEST_IMAGES:
        return (
            f"The cost of wrong images cannot be measured with {counted(images, 'test image')}.",
            f"Test on at least {FEWEST_IMAGES} different images.",
        )
    return {
        1: (
            f"With wrong images {name} loses {lost.size()}: it looks at the image.",
            "The image earns points that the text alone cannot; a better image encoder may earn more."
            if adds
            else "It relies on the image without gaining from it: the text alone is not measurably worse.",
        ),
        0: (
            f"With wrong images {name} loses nothing measurable ({lost}): it does not use the image.",
            "Leave the image out, or try an encoder that sees what the question is about.",
        ),
        -1: (
            f"With wrong images {name} is better by {lost.size()}: its own images mislead it.",
            "Check which image belongs to which pair, in training and in test: the image is not used as intended.",
        ),
    }[lost.sign]


def _same_class(
    model: ComparedModel, alike: np.ndarray, rows: np.ndarray, clusters: Sequence[str], lost: Gap
) -> Finding:
    some = [clusters[row] for row in rows]
    gap = compare(model.test.hits[rows], alike, some)
    claim, advice = same_class_claim(model.title, gap, lost, len(set(some)))
    return Finding(
        name="same-class-image",
        section="image",
        claim=claim,
        value=gap.value,
        ci95=gap.ci95,
        how=(
            f"The trained {model.name} answered {len(rows):,} test pairs with the image of another test pair with the "
            f"same target. Points of accuracy lost, {HOW_COMPARED}"
        ),
        advice=advice,
    )


def same_class_claim(name: str, gap: Gap, lost: Gap, images: int) -> tuple[str, str]:
    """Return claim and advice on the cost of using an image of another pair with the same answer.

    Args:
        name: Name of the model.
        gap: Accuracy of the model with its own images minus that with such images.
        lost: Accuracy of the model with its own images minus that with images of any other pair.
        images: Number of distinct test images.
    """
    if images < FEWEST_IMAGES:
        return (
            "The cost of an image of another pair with the same answer cannot be measured with "
            f"{counted(images, 'test image')}.",
            f"Test on at least {FEWEST_IMAGES} different images.",
        )
    if not lost.up:
        effect = {1: f"costs {gap.size()}", 0: f"does as well ({gap})", -1: f"does better, by {gap.size()}"}[gap.sign]
        return (
            f"An image of another pair with the same answer {effect}, and images of any pair cost nothing measurable.",
            f"This says nothing about {name}, which does not need its own images.",
        )
    return {
        1: (
            f"An image of another pair with the same answer costs {gap.size()}: {name} needs this very image.",
            "The model reads the answer to this pair from the image.",
        ),
        0: (
            f"An image of another pair with the same answer does as well ({gap}): the image tells {name} which answers "
            "are likely, and nothing more.",
            "The model recognises kinds of scenes rather than the answer; test it on pairs where one image has several "
            "answers.",
        ),
        -1: (
            f"An image of another pair with the same answer does better, by {gap.size()}: the image tells {name} which "
            "answers are likely, and its own is not the best example.",
            "The model recognises kinds of scenes rather than the answer; test it on pairs where one image has several "
            "answers.",
        ),
    }[gap.sign]


def _with_mean_image(comparison: ModelComparison) -> Predictions:
    splits, scorer = comparison.splits, comparison.both.scorer
    ids = list(dict.fromkeys(splits.train.images))
    towers = splits.store.select_towers("image", splits.encoders_of("image"))
    values, mask = splits.store.read("image", ids, towers)
    weights = mask.astype(np.float32)
    total = np.einsum("ntd,nt->td", values.astype(np.float32), weights)
    counts = np.maximum(weights.sum(axis=0), 1.0)[:, None]
    mean = (total / counts).astype(values.dtype)
    shown = [(_MEAN, text) for text in splits.test.texts]
    return predictions_of(scorer, scorer.score(shown, images={_MEAN: mean}), splits.test)


def text_only_finding(comparison: ModelComparison, *, folder: Path, time_limit: float) -> Finding:
    """Report the share of test pairs that a text-only model answers, cross-validated over the test images.

    A third of the test images is answered by a model trained on the training pairs and the other two thirds, so that
    regularities of the test set itself count too.

    Args:
        comparison: The trained models.
        folder: Folder for the runs.
        time_limit: Total seconds for all trainings.
    """
    splits = comparison.splits
    text, majority = comparison.best("text"), comparison.best("majority")
    names = sorted(set(splits.test.clusters))
    if len(names) < _PARTS:
        return _too_few(len(names))
    random = np.random.default_rng(splits.seed)
    part_of = dict(zip(random.permutation(names).tolist(), np.arange(len(names)) % _PARTS, strict=True))
    parts = np.array([part_of[name] for name in splits.test.clusters])
    hits = np.zeros(len(parts))
    for part in range(_PARTS):
        training = _joined(splits, np.flatnonzero(parts != part), random)
        held_out = splits.test.select(np.flatnonzero(parts == part))
        scorer = fit(splits, text.spec, folder=folder / str(part), time_limit=time_limit / _PARTS, pairs=training)
        hits[parts == part] = predict_all(scorer, seen_by(text.spec, held_out, splits)).hits
    interval = hit_interval(hits, comparison.clusters)
    gap = compare(hits, majority.test.hits, comparison.clusters)
    claim, advice = text_only_claim(100 * interval.value, 100 * majority.test.hits.mean(), gap)
    return Finding(
        name="solvable-blind",
        section="image",
        claim=claim,
        value=100 * interval.value,
        ci95=interval.percent(),
        how=(
            f"The {text.name} model, cross-validated over {_PARTS} parts of the test images; it learned from the "
            f"training pairs and the test pairs of the other parts. Percent of test pairs, {HOW_COMPARED}"
        ),
        advice=advice,
    )


def text_only_claim(share: float, usual: float, gap: Gap) -> tuple[str, str]:
    """Return claim and advice on what can be answered without the image.

    Args:
        share: Percent of test pairs that the text-only model answers right.
        usual: Percent that always giving the most frequent answer gets right.
        gap: The difference of the two.
    """
    more = {1: f"{gap.size()} more than", 0: f"not measurably more ({gap}) than", -1: f"{gap.size()} fewer than"}
    claim = (
        f"{share:.1f} % of the test pairs can be answered without looking at the image, {more[gap.sign]} by always "
        f"giving the most frequent answer ({usual:.1f} %)."
    )
    advice = {
        1: "Compare every score with this one: only what lies above it can come from the image.",
        0: "The texts give nothing away: compare every score with that of the most frequent answer.",
        -1: "The texts mislead: training and test pairs may have been labelled differently, or the classes differ.",
    }
    return claim, advice[gap.sign]


def _too_few(images: int) -> Finding:
    return Finding(
        name="solvable-blind",
        section="image",
        claim=f"The share answered without the image cannot be measured with {counted(images, 'test image')}.",
        value=None,
        ci95=None,
        how=f"A cross-validation over {_PARTS} parts of the test images.",
        advice="Give more test images.",
    )


def _joined(splits: Splits, rows: np.ndarray, random: np.random.Generator) -> Pairs:
    """Combine some test pairs with training pairs, as many as the text-only check takes."""
    train, test = splits.train, splits.test.select(rows)
    room = max(_MOST_TRAINED_ON - len(test), len(test))
    if len(train) > room:
        train = train.select(np.sort(random.permutation(len(train))[:room]))
    columns = ("images", "texts", "targets", "extras", "places")
    return replace(train, **{name: getattr(train, name) + getattr(test, name) for name in columns})
