"""The verdict: what the fusion is worth against everything simpler, in plain words, whatever the answer is.

A model "beats" another only if the 95 % interval of the paired difference (bootstrap over images) lies above 0 and the
exact sign-flip test over images agrees. The claims are nested, so that chance alone makes few of them: nothing is
claimed before something beats the majority at the 99 % level, and the image is credited only if the fusion beats the
best model without it and loses when its own images are exchanged. The rule is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from frevl.diagnosis.findings import Finding, chart, series
from frevl.evaluation.intervals import Interval, bootstrap_interval, paired_difference, paired_test

__all__ = [
    "FEWEST_IMAGES",
    "HOW_COMPARED",
    "KINDS",
    "Gap",
    "Judged",
    "compare",
    "edges",
    "points",
    "reach_verdict",
    "span",
]

KINDS = ("few", "single", "chance", "either", "text", "image", "baseline", "simple", "mlp", "fusion")
FEWEST_IMAGES = 20  # with fewer, a bootstrap over images is too narrow to be believed
HOW_COMPARED = (
    "95 % percentile bootstrap over images; called better or worse only if the paired sign-flip permutation test over "
    "images agrees (p < 0.05)."
)
_SMALL = 1.0  # points; a gain below this is not called worth its cost, however certain
_UNEVEN = 80.0  # percent of one answer, from which on accuracy hides what is learnt about the others
_P = 0.05
_FIRST_P = 0.01  # of the first claim, on which all others rest and of which several are tried


@dataclass(frozen=True)
class Judged:
    """What a verdict needs of a model.

    Attributes:
        name: In the report.
        role: As in `frevl.diagnosis.model_comparison.Entrant`.
        hits: ``(n,)`` in [0, 1] on the test pairs.
        dev: Share of right answers on development data, in [0, 1].
        parameters: Number of its parameters.
        seconds: Time of its training.
    """

    name: str
    role: str
    hits: np.ndarray
    dev: float
    parameters: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Gap:
    """A paired difference in points with its 95 % interval, and whether it is more than chance."""

    value: float
    low: float
    high: float
    p: float

    @property
    def up(self) -> bool:
        """Whether the first is measurably better."""
        return self.low > 0 and self.p < _P

    @property
    def certain(self) -> bool:
        """Whether the first is better beyond the level of the first claim."""
        return self.low > 0 and self.p < _FIRST_P

    @property
    def down(self) -> bool:
        """Whether the first is measurably worse."""
        return self.high < 0 and self.p < _P

    @property
    def ci95(self) -> list[float] | None:
        """The interval, None where it cannot be told."""
        return None if np.isnan(self.low) else [self.low, self.high]

    def __str__(self) -> str:
        # Where interval and test disagree, nothing is claimed, and the reader must see why.
        differ = (self.low > 0 and not self.up) or (self.high < 0 and not self.down)
        return f"{self.value:+.1f} points, {span(self.ci95)}" + (f", p = {self.p:.2f}" if differ else "")

    def record(self) -> dict[str, Any]:
        """Return what the JSON holds."""
        return {"difference": self.value, "ci95": self.ci95, "p": self.p}


def compare(a: np.ndarray, b: np.ndarray, clusters: list[str]) -> Gap:
    """Compare two models on the same pairs; hits in [0, 1] become points."""
    gap = paired_difference(a, b, clusters)
    return Gap(100 * gap.value, 100 * gap.low, 100 * gap.high, paired_test(a, b, clusters, permutations=4000))


def span(bounds: list[float] | None) -> str:
    """Return ``1.2 to 3.4``, or what to say without an interval."""
    return "no interval" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"


def edges(bounds: list[float] | None) -> tuple[float | None, float | None]:
    """Return low and high for a table, None twice where there is no interval."""
    return (None, None) if bounds is None else (bounds[0], bounds[1])


def points(interval: Interval) -> list[float] | None:
    """Return the bounds of an interval of shares in percent, None where they cannot be told."""
    return None if np.isnan(interval.low) else [100 * interval.low, 100 * interval.high]


def reach_verdict(
    models: list[Judged], exchanged: dict[str, np.ndarray], clusters: list[str], *, only: str | None = None
) -> tuple[dict[str, Any], list[Finding]]:
    """Reach the verdict.

    Args:
        models: All models; the fusion, and the best with one side alone, are chosen by their development scores.
        exchanged: Hits of the fusion with its ``image`` or its ``text`` exchanged among the test pairs.
        clusters: Image of every test pair.
        only: The answer that all test pairs have, if they have one and the same.

    Returns:
        The verdict (``sentence``, ``kind``, ``detail`` and the numbers behind them), and its findings.
    """
    fusion, text, image = (_best(models, role) for role in ("fusion", "text", "image"))
    majority = _best(models, "majority")
    others = [model for model in models if model.role == "baseline"]
    gaps = {model.name: compare(fusion.hits, model.hits, clusters) for model in models if model is not fusion}
    worth = {side: compare(fusion.hits, hits, clusters) for side, hits in exchanged.items()}
    images, n = len(set(clusters)), len(clusters)
    if images < FEWEST_IMAGES:
        kind = "few"
        sentence = (
            f"Too few pairs to tell: {n:,} test pairs on {images:,} images; a verdict needs at least {FEWEST_IMAGES} "
            "different test images, and several hundred to see gains of a few points."
        )
    elif only is not None:
        kind = "single"
        sentence = (
            f"Nothing can be told from test pairs of a single class: all {n:,} have the answer '{only}', so whoever "
            "always says that is right. Give test pairs of every class."
        )
    elif not gaps[majority.name].certain:
        kind, sentence = _nothing_learnt(fusion, majority, text, image, others, gaps, clusters)
    else:
        kind, sentence = _something_learnt(fusion, text, image, others, gaps, worth, n)
    scores = {model.name: _score(model, clusters) for model in models}
    detail = _detail(kind, fusion, others, gaps)
    if detail:
        detail.insert(0, _level(fusion, text, image, majority, scores))
    verdict = {
        "sentence": sentence,
        "kind": kind,
        "detail": detail,
        "fusion": fusion.name,
        "text": text.name,
        "image": image.name,
        "metric": "accuracy",
        "test_pairs": n,
        "test_images": images,
        "scores": scores,
        "differences": {name: gap.record() for name, gap in gaps.items()},
        "exchanged": {side: gap.record() for side, gap in worth.items()},
    }
    return verdict, [_table(models, scores, fusion, sentence, n, images), *_against(fusion, models, gaps)]


def _best(models: list[Judged], role: str) -> Judged:
    return max((model for model in models if model.role == role), key=lambda model: model.dev)


def _nothing_learnt(
    fusion: Judged,
    majority: Judged,
    text: Judged,
    image: Judged,
    others: list[Judged],
    gaps: dict[str, Gap],
    clusters: list[str],
) -> tuple[str, str]:
    """Return kind and sentence where the fusion does not beat the majority."""
    best = max([text, image, *others], key=lambda model: model.dev)
    other = compare(best.hits, majority.hits, clusters)
    share = 100 * majority.hits.mean()
    if other.certain and best.dev > fusion.dev:
        return "baseline", (
            f"The fusion ({fusion.name}) is at chance ({gaps[majority.name]} against always giving the most frequent "
            f"answer), but the {best.name} model is not ({other}): use that."
        )
    start = "Nothing is surely better than chance" if gaps[majority.name].up else "Everything is at chance"
    return "chance", (
        f"{start}: the fusion ({fusion.name}) answers {100 * fusion.hits.mean():.1f} % right and "
        f"always giving the most frequent answer {share:.1f} % ({gaps[majority.name]}); from these embeddings and this "
        "many pairs the task cannot be learnt, or labels and pairs do not belong together."
        + (f" As one answer is {share:.0f} % of the test pairs, look at the classes too." if share >= _UNEVEN else "")
    )


def _something_learnt(
    fusion: Judged,
    text: Judged,
    image: Judged,
    others: list[Judged],
    gaps: dict[str, Gap],
    worth: dict[str, Gap],
    n: int,
) -> tuple[str, str]:
    """Return kind and sentence where the fusion beats the majority."""
    named = f"The fusion ({fusion.name})"
    better = max((model for model in others if gaps[model.name].down), key=lambda model: model.dev, default=None)
    if better is not None:
        gap = gaps[better.name]
        return "baseline", (
            f"{named} is worse than the {better.name} model, by {-gap.value:.1f} points ({-gap.high:.1f} to "
            f"{-gap.low:.1f}): use that one."
        )
    credited = {side: gaps[alone.name].up and worth[side].up for side, alone in (("image", text), ("text", image))}
    if not credited["image"] and not credited["text"]:
        return "either", (
            f"Image and text add nothing to each other that can be measured on {n:,} pairs: the text alone is as good "
            f"as both ({gaps[text.name]}), and so is the image alone ({gaps[image.name]}): use the cheaper one."
        )
    if not credited["image"]:
        why = _why_not(named, "text", text, gaps, worth)
        return "text", (
            f"The image adds nothing that can be measured on {n:,} pairs ({why}): use the text alone "
            "or another encoder."
        )
    if not credited["text"]:
        why = _why_not(named, "image", image, gaps, worth)
        return "image", (
            f"The text adds nothing that can be measured on {n:,} pairs ({why}): use the image alone "
            "or another text encoder."
        )
    rivals = [model for model in others if not gaps[model.name].up]
    plain = [model for model in rivals if model.name != "mlp"]
    if plain:
        rival = max(plain, key=lambda model: model.dev)
        title = "linear probe" if rival.name == "linear" else f"{rival.name} model"
        return "simple", (
            f"{named} does not measurably beat the {title} ({gaps[rival.name]} on {n:,} pairs): use the {title}."
        )
    probe = "linear" if "linear" in gaps else max(others, key=lambda model: model.dev).name
    gap = gaps[probe]
    title = "linear probe" if probe == "linear" else f"{probe} model"
    worth_it = "worth it" if gap.value >= _SMALL else "measurable, but hardly worth it"
    kind, end = ("mlp", f"{worth_it}, but a plain MLP is as good") if rivals else ("fusion", worth_it)
    return kind, f"{named} beats the {title} by {gap.value:.1f} points ({span(gap.ci95)}): {end}."


def _why_not(named: str, side: str, alone: Judged, gaps: dict[str, Gap], worth: dict[str, Gap]) -> str:
    """Say which of the two conditions for crediting the other side fails."""
    named = named[0].lower() + named[1:]
    if not gaps[alone.name].up:
        return f"{named} against the {side} alone: {gaps[alone.name]}"
    other = "image" if side == "text" else "text"
    return f"{named} with its own against wrong {other}s: {worth[other]}"


def _detail(kind: str, fusion: Judged, others: list[Judged], gaps: dict[str, Gap]) -> list[str]:
    """Say how the fusion does against every baseline, where the first sentence leaves that open."""
    if kind in ("few", "single", "chance"):
        return []
    sentences = []
    for model in others:
        gap = gaps[model.name]
        word = "beats" if gap.up else "is worse than" if gap.down else "is not measurably better than"
        sentences.append(f"The fusion ({fusion.name}) {word} the {model.name} model: {gap}.")
    return sentences


def _level(fusion: Judged, text: Judged, image: Judged, majority: Judged, scores: dict[str, Any]) -> str:
    """Say how good it is at all: a fusion may be worth its cost and still be wrong most of the time."""
    own = scores[fusion.name]
    blind, deaf, always = (scores[model.name]["value"] for model in (text, image, majority))
    return (
        f"The fusion ({fusion.name}) answers {own['value']:.1f} % of the test pairs right ({span(own['ci95'])}); "
        f"without the image {blind:.1f} % can be answered ({text.name}), without the text {deaf:.1f} % ({image.name}), "
        f"and {always:.1f} % by always giving the most frequent answer."
    )


def _score(model: Judged, clusters: list[str]) -> dict[str, Any]:
    interval = bootstrap_interval(model.hits, clusters)
    return {
        "role": model.role,
        "value": 100 * interval.value,
        "ci95": points(interval),
        "development": 100 * model.dev,
        "parameters": model.parameters,
        "train_seconds": model.seconds,
    }


def _table(models: list[Judged], scores: dict[str, Any], fusion: Judged, sentence: str, n: int, images: int) -> Finding:
    rows = [
        {
            "model": model.name,
            "role": model.role,
            "accuracy %": scores[model.name]["value"],
            "low": edges(scores[model.name]["ci95"])[0],
            "high": edges(scores[model.name]["ci95"])[1],
            "development %": scores[model.name]["development"],
        }
        for model in models
    ]
    return Finding(
        name="accuracy",
        section="verdict",
        claim=f"The fusion ({fusion.name}) answers {scores[fusion.name]['value']:.1f} % of {n:,} test pairs right.",
        value=scores[fusion.name]["value"],
        ci95=scores[fusion.name]["ci95"],
        how=(
            f"Every model was trained on the same pairs, the fusion was chosen on development pairs, all were judged "
            f"on {n:,} test pairs about {images:,} images. Percent of right answers, 95 % percentile bootstrap over "
            "images (1,000 draws)."
        ),
        advice=sentence,
        table=rows,
        plot=chart(
            "bars",
            "model",
            "right answers, %",
            series(
                "test",
                [model.name for model in models],
                [row["accuracy %"] for row in rows],
                low=[row["low"] for row in rows],
                high=[row["high"] for row in rows],
            ),
        ),
    )


def _against(fusion: Judged, models: list[Judged], gaps: dict[str, Gap]) -> list[Finding]:
    findings = []
    for model in models:
        if model is fusion:
            continue
        gap = gaps[model.name]
        word = "beats" if gap.up else "is worse than" if gap.down else "does not measurably beat"
        findings.append(
            Finding(
                name=f"fusion-against-{model.name.replace(' ', '-')}",
                section="verdict",
                claim=f"The fusion ({fusion.name}) {word} {model.name}: {gap}.",
                value=gap.value,
                ci95=gap.ci95,
                how=(
                    "Difference of accuracies on the same test pairs in points; 95 % percentile bootstrap over images "
                    "(1,000 draws); paired sign-flip permutation test over images (Fisher's randomisation test, "
                    f"two-sided, 4,000 flips), p = {gap.p:.4f}."
                ),
                advice=_ADVICE[model.role][0 if gap.up else 1],
            )
        )
    return findings


# What follows from beating, or not beating, a model of this role.
_ADVICE = {
    "majority": (
        "Something can be learnt; read on.",
        "Nothing was learnt: look at targets and pairs first, then at another encoder.",
    ),
    "text": (
        "The image is needed, if the section on the image agrees.",
        "The text alone does as well: an image encoder is not worth its cost here.",
    ),
    "image": ("The text is needed.", "The image alone does as well: the text is not worth its cost here."),
    "baseline": ("The fusion is worth its cost against this model.", "This simpler model does as well or better."),
    "fusion": ("The better fusion was taken.", "The two fusions cannot be told apart; take the cheaper one."),
}
