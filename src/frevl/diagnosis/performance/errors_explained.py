"""Findings on what errors have in common: features that correlate with the hits of the best two-sided model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.diagnosis.findings import Finding
from frevl.diagnosis.model_comparison import ModelComparison
from frevl.diagnosis.performance.error_features import LEVEL, Explained, explain, text_features
from frevl.diagnosis.splits import Splits
from frevl.runs.targets import match_truth
from frevl.store.grouping.unit_vectors import unit_vectors
from frevl.store.ids.rows_of_ids import rows_of_values

__all__ = ["FEWEST", "errors_claim", "errors_explained_finding", "features_of"]

FEWEST = 100
"""Test images below which nothing is reported: each half must be able to show a correlation of 0.3."""

_NEIGHBOURS = 10
_MOST_COMPARED = 5_000  # training images by which crowdedness is measured
_AT_ONCE = 1_024
_MATCH = "text is right"


def errors_explained_finding(comparison: ModelComparison) -> Finding:
    """Look for features of test pairs that go with right or wrong answers."""
    splits, model = comparison.splits, comparison.both
    images = len(set(comparison.clusters))
    hits = model.test.hits.astype(np.float64)
    how = (
        "Features of every test pair, computed automatically: number of words, rarity of the rarest word in the "
        "training texts, whether it has a number, a negation, a colour, a place or a question word, bytes of the "
        f"image, and crowdedness, the mean cosine to its {_NEIGHBOURS} nearest training images. Partial rank "
        f"correlation with the hits of {model.name}, all others held fixed, with errors by image; named only if it "
        f"survives Benjamini-Hochberg at {100 * LEVEL:.0f} % on half of the images and has the same sign on the other "
        "half. It shows what goes with errors, not what causes them. The value is the number of named features."
    )
    if images < FEWEST or hits.std() == 0:
        reason = (
            f"{model.title} answers every test pair alike"
            if images >= FEWEST
            else f"{images:,} test images are too few; {FEWEST} or more are needed"
        )
        return Finding(
            "errors-explained", "skills", f"What errors have in common is unknown: {reason}.", None, None, how,
            "Read the example cases at the end of the page instead.",
        )  # fmt: skip
    features = features_of(splits)
    found = explain(features, hits, comparison.clusters, seed=splits.seed)
    claim, advice = errors_claim(model.title, [one for one in found if one.name != _MATCH])
    return Finding(
        name="errors-explained",
        section="skills",
        claim=claim,
        value=float(sum(one.named for one in found if one.name != _MATCH)),
        ci95=None,
        how=how,
        advice=advice,
        table=[_row(one, features[one.name], hits) for one in found],
    )


def features_of(splits: Splits) -> dict[str, NDArray[np.float64]]:
    """Return the features of the test pairs by name, ``(n,)`` each, for the sides that the pairs have."""
    test = splits.test
    features: dict[str, NDArray[np.float64]] = {}
    if "text" in test.sides:
        features |= text_features(test.texts, splits.train.texts)
    if "image" in test.sides:
        stored = splits.store.states("image")["bytes"]
        rows = rows_of_values(splits.store.positions("image"), test.images)
        features["picture bytes"] = stored[rows].astype(np.float64)
        features["crowdedness"] = _crowdedness(splits)
    if splits.task == "matching":  # right and wrong pairs are not equally hard
        features[_MATCH] = (match_truth(test).numpy() > 0.5).astype(np.float64)
    return features


def errors_claim(name: str, found: Sequence[Explained]) -> tuple[str, str]:
    """Return claim and advice on features that go with errors.

    Args:
        name: Name of the model.
        found: The features, the named ones first.
    """
    named = [one for one in found if one.named]
    if not named:
        return (
            f"No feature of the pairs goes measurably with the errors of {name} ({len(found)} were examined).",
            "Nothing to do here: read the example cases at the end of the page.",
        )
    worse = ", ".join(_in_words(one) for one in named if one.correlation < 0)
    better = ", ".join(_in_words(one) for one in named if one.correlation > 0)
    parts = [f"errors come with {worse}"] if worse else []
    parts += [f"right answers with {better}"] if better else []
    return (
        f"Of {name}, {'; '.join(parts)} (partial correlation; {len(found)} features examined).",
        "Look at wrong pairs with these features: label more of that kind, or report them apart. These features go "
        "with errors, which does not make them the cause.",
    )


def _in_words(one: Explained) -> str:
    wording = {
        "words": "more words", "rarest word": "a rare word", "number": "a number", "negation": "a negation",
        "colour": "a named colour", "place": "a named place", "question word": "a question word",
        "picture bytes": "larger image files", "crowdedness": "images like many others",
    }  # fmt: skip
    return f"{wording.get(one.name, one.name)} ({one.correlation:+.2f})"


def _row(one: Explained, values: NDArray[np.float64], hits: NDArray[np.float64]) -> dict[str, Any]:
    """Return a table row, with the share of right answers where the feature is smallest and where it is largest."""
    low, high = np.quantile(values, [0.25, 0.75])
    if low == high:  # most pairs have the same value: compare the others with them
        least, most = values <= values.min(), values > values.min()
    else:
        least, most = values <= low, values >= high
    return {
        "feature": one.name, "partial correlation": one.correlation,
        "low": one.correlation - 1.96 * one.standard_error, "high": one.correlation + 1.96 * one.standard_error,
        "p": one.p, "on the other half": one.other, "named": "yes" if one.named else "no",
        "right where least %": 100 * float(hits[least].mean()), "right where most %": 100 * float(hits[most].mean()),
    }  # fmt: skip


def _crowdedness(splits: Splits) -> NDArray[np.float64]:
    """Return the mean cosine of each test pair's image to the nearest training images, ``(n,)``."""
    known = list(dict.fromkeys(splits.train.images))
    random = np.random.default_rng(splits.seed)
    known = [known[row] for row in np.sort(random.permutation(len(known))[:_MOST_COMPARED])]
    images = list(dict.fromkeys(splits.test.images))
    towers = splits.store.select_towers("image", splits.encoders_of("image"))
    there, here = (unit_vectors(splits.store, ids, towers) for ids in (known, images))
    number = min(_NEIGHBOURS, len(known))
    means = []
    for start in range(0, len(here), _AT_ONCE):
        cosines = here[start : start + _AT_ONCE] @ there.T
        means.append(np.partition(cosines, -number, axis=1)[:, -number:].mean(axis=1))
    value = dict(zip(images, np.concatenate(means).tolist(), strict=True))
    return np.array([value[image] for image in splits.test.images])
