"""Findings on classes: imbalance, classes missing from training, and parts with a single class."""

from __future__ import annotations

from collections import Counter

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.gaps import edges, span
from frevl.diagnosis.model_comparison import ModelComparison
from frevl.diagnosis.splits import Splits, answers_of
from frevl.evaluation.intervals import bootstrap_statistic, hit_interval
from frevl.runs.targets import match_truth

__all__ = [
    "FEWEST_OF_CLASS",
    "balance_advice",
    "balanced_claim",
    "balanced_findings",
    "imbalance_finding",
    "only_class",
    "single_class_findings",
]

FEWEST_OF_CLASS = 5
"""Number of training pairs below which a class is called rare; the threshold of such a class depends on single
pairs."""

_SURE = 0.99
_UNEVEN = 2 / 3  # share of the most frequent answer above which accuracy hides what is learned about the others
_SHOWN = 30


def imbalance_finding(splits: Splits) -> Finding:
    """Report on the classes: number, imbalance, and test pairs whose classes are all missing from training."""
    if splits.task == "matching" and bool((match_truth(splits.train) > 0.5).all()):
        return _only_right_pairs(len(splits.train))
    counts = Counter(answer for target in splits.train.targets for answer in answers_of(target, splits.task))
    total = sum(counts.values())
    shares = np.array(list(counts.values())) / total
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    unseen = sum(1 for target in splits.test.targets if counts.keys().isdisjoint(answers_of(target, splits.task)))
    rare = sum(1 for count in counts.values() if count < FEWEST_OF_CLASS)
    most, often = counts.most_common(1)[0]
    share = 100 * often / total
    n = len(splits.test)
    named = f"{len(counts):,} class{'es' if len(counts) > 1 else ''}"
    return Finding(
        name="class-balance",
        section="data",
        claim=(
            f"{named}, as uneven as {effective:.1f} equal classes; '{most}' alone is {share:.1f} %, {rare:,} "
            f"{'has' if rare == 1 else 'have'} fewer than {FEWEST_OF_CLASS} training pairs, and {unseen:,} of {n:,} "
            f"test pairs {'has' if unseen == 1 else 'have'} a class that does not occur in training."
        ),
        value=share,
        ci95=None,
        how="Targets of the training pairs; percent of the most frequent class. Equal classes: exp of the entropy.",
        advice=balance_advice(share, rare, unseen / n),
        table=[{"class": name, "training pairs": count} for name, count in counts.most_common(_SHOWN)],
        plot=chart(
            "bars",
            "class",
            "training pairs",
            series("training", [name for name, _ in counts.most_common(20)], [c for _, c in counts.most_common(20)]),
        ),
    )


def balance_advice(share: float, rare: int, unseen: float) -> str:
    """Return advice on the classes.

    Args:
        share: Percent of the most frequent answer.
        rare: Number of classes with fewer than `FEWEST_OF_CLASS` training pairs.
        unseen: Share of the test pairs with a class that does not occur in training, in [0, 1].
    """
    if unseen:
        most = f"{100 * (1 - unseen):.1f} %"
        return f"No model can answer more than {most} of the test pairs; add pairs of the missing classes."
    if share > 50:
        return "Report accuracy next to that of the most frequent answer, and macro-F1 if rare classes matter."
    if rare:
        return "Add pairs of the rare classes, or leave those classes out: nothing reliable is learned about them."
    return "Nothing to do."


def balanced_findings(comparison: ModelComparison) -> list[Finding]:
    """Weight all classes equally for the recommended model, if one answer makes up two thirds of the test pairs.

    If nearly all pairs have one answer, always giving it is hard to beat in accuracy, whatever was learned.
    """
    splits, model = comparison.splits, comparison.recommended
    answers = [answers_of(target, splits.task) for target in splits.test.targets]
    single = [row for row, given in enumerate(answers) if len(given) == 1]
    counts = Counter(next(iter(answers[row])) for row in single)
    if len(counts) < 2 or counts.most_common(1)[0][1] < _UNEVEN * len(single):
        return []
    names = [name for name, _ in counts.most_common()]
    number_of = {name: number for number, name in enumerate(names)}
    classes = np.array([number_of[next(iter(answers[row]))] for row in single])
    hits, clusters = model.test.hits[single], [comparison.clusters[row] for row in single]

    def balanced(rows: np.ndarray) -> float:
        totals = np.bincount(classes[rows], minlength=len(names))
        right = np.bincount(classes[rows], weights=hits[rows], minlength=len(names))
        return float((right[totals > 0] / totals[totals > 0]).mean())

    whole = bootstrap_statistic(balanced, clusters)
    bounds = whole.percent()
    often, even = 100 * counts[names[0]] / len(single), 100 / len(names)
    strict = bootstrap_statistic(balanced, clusters, level=_SURE)
    claim, advice = balanced_claim(100 * strict.low, 100 * strict.high, even)
    table = []
    for name in names[:_SHOWN]:
        rows = np.flatnonzero(classes == number_of[name])
        one = hit_interval(hits[rows], [clusters[row] for row in rows])
        low, high = edges(one.percent())
        table.append({"class": name, "test pairs": len(rows), "right %": 100 * one.value, "low": low, "high": high})
    return [
        Finding(
            name="balanced-accuracy",
            section="verdict",
            claim=(
                f"With every class weighted equally, {model.title} answers {100 * whole.value:.1f} % "
                f"right ({span(bounds)}); always giving '{names[0]}', which is {often:.1f} % of the test pairs, would "
                f"give {even:.1f} %: {claim}"
            ),
            value=100 * whole.value,
            ci95=bounds,
            how=(
                f"Balanced accuracy: the mean over {len(names):,} classes of the share of their test pairs that is "
                "answered right, in percent; 95 % percentile bootstrap over images (1,000 draws). Something counts as "
                "learned only if the 99 % interval lies above always giving one answer."
            ),
            advice=advice,
            table=table,
        )
    ]


def balanced_claim(low: float, high: float, even: float) -> tuple[str, str]:
    """Return what a balanced accuracy shows, and advice.

    Args:
        low: Lower end of its 99 % interval in percent; NaN if unknown.
        high: Upper end of its 99 % interval in percent; NaN if unknown.
        even: Percent reached by always giving one answer.
    """
    if low > even:
        return (
            "something was learned about the other classes.",
            "Read it next to the accuracy. If the rare classes matter, choose a threshold by the cost of an error "
            "instead of the most likely answer.",
        )
    if high < even:
        return (
            "that is worse, so what was learned about the classes misleads.",
            "Look at the labels of the rare classes, in training and in test: they do not agree.",
        )
    return (
        "nothing measurable was learned about the other classes.",
        "Do not trust the accuracy alone: it is that of the most frequent answer. Give more pairs of the rare classes.",
    )


def single_class_findings(splits: Splits) -> list[Finding]:
    """Warn of test or development pairs that all have the same answer; empty if none do."""
    findings = []
    for part, name, wide in ((splits.test, "test", "test"), (splits.dev, "dev", "development")):
        only = only_class(part, splits.task)
        if only is None:
            continue
        findings.append(
            Finding(
                name=f"single-class-{name}",
                section="data",
                claim=f"All {len(part):,} {wide} pairs have the one answer '{only}': {_SPOILT[name]}.",
                value=100.0,
                ci95=None,
                how=f"Targets of the {wide} pairs. Percent of pairs with that answer.",
                advice=f"Draw the {wide} pairs again, with every class among them; split by image, not by class.",
            )
        )
    return findings


_SPOILT = {
    "test": "a model that always gives it would be right every time, so they cannot tell a good model from a bad one",
    "dev": "models, temperatures and thresholds were chosen on them, and those choices are meaningless",
}


def only_class(pairs: Pairs, task: str) -> str | None:
    """Return the answer that all pairs have and that is the only one of each; None if there is none."""
    answers: set[str] = set()
    for target in pairs.targets:
        answers |= answers_of(target, task)
        if len(answers) > 1:
            return None
    return next(iter(answers), None)


def _only_right_pairs(n: int) -> Finding:
    return Finding(
        name="class-balance",
        section="data",
        claim=f"All {n:,} training pairs are right pairs; wrong ones are drawn during training.",
        value=None,
        ci95=None,
        how="Targets of the training pairs.",
        advice="Nothing to do; your own, harder wrong pairs may teach more than drawn ones.",
    )
