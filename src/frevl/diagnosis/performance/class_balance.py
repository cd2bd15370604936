"""The classes: how uneven they are, which of them training never saw, and parts that hold a single one."""

from __future__ import annotations

from collections import Counter

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.model_comparison import Contest
from frevl.diagnosis.splits import Splits, answers_of
from frevl.diagnosis.verdict import edges, points, span
from frevl.evaluation.intervals import bootstrap_interval, bootstrap_statistic
from frevl.runs.targets import match_truth

__all__ = ["FEWEST_OF_CLASS", "balanced_findings", "imbalance_finding", "only_class", "single_class_findings"]

FEWEST_OF_CLASS = 5
"""Training pairs of a class below which it is called rare; the threshold of such a class is the noise of one pair."""

_SURE = 0.99
_UNEVEN = 2 / 3  # share of the most frequent answer, from which on accuracy hides what is learnt about the others
_SHOWN = 30


def imbalance_finding(splits: Splits) -> Finding:
    """Count classes: how many, how uneven, and what test pairs have only classes that training never saw."""
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
            f"{named}, as uneven as {effective:.1f} equal ones; '{most}' alone is {share:.1f} %, {rare:,} have fewer "
            f"than {FEWEST_OF_CLASS} training pairs, and {unseen:,} of {n:,} test pairs ask for a class that training "
            "never saw."
        ),
        value=share,
        ci95=None,
        how="Targets of the training pairs; percent of the most frequent class. Equal classes: exp of the entropy.",
        advice=(
            f"No model can answer more than {100 * (1 - unseen / n):.1f} % of the test pairs; add pairs of the missing "
            "classes."
            if unseen
            else "Report accuracy beside that of the most frequent answer, and macro-F1 if rare classes matter."
            if share > 50
            else "Nothing to do."
        ),
        table=[{"class": name, "training pairs": count} for name, count in counts.most_common(_SHOWN)],
        plot=chart(
            "bars",
            "class",
            "training pairs",
            series("training", [name for name, _ in counts.most_common(20)], [c for _, c in counts.most_common(20)]),
        ),
    )


def balanced_findings(contest: Contest) -> list[Finding]:
    """Judge the fusion with every class counting the same, where one answer is two thirds of the test pairs or more.

    Where nearly all pairs have one answer, always giving it is hard to beat in accuracy, whatever was learnt.
    """
    splits, fusion = contest.splits, contest.best("fusion")
    answers = [answers_of(target, splits.task) for target in splits.test.targets]
    single = [row for row, given in enumerate(answers) if len(given) == 1]
    counts = Counter(next(iter(answers[row])) for row in single)
    if len(counts) < 2 or counts.most_common(1)[0][1] < _UNEVEN * len(single):
        return []
    names = [name for name, _ in counts.most_common()]
    number_of = {name: number for number, name in enumerate(names)}
    classes = np.array([number_of[next(iter(answers[row]))] for row in single])
    hits, clusters = fusion.test.hits[single], [contest.clusters[row] for row in single]

    def balanced(rows: np.ndarray) -> float:
        totals = np.bincount(classes[rows], minlength=len(names))
        right = np.bincount(classes[rows], weights=hits[rows], minlength=len(names))
        return float((right[totals > 0] / totals[totals > 0]).mean())

    whole = bootstrap_statistic(balanced, clusters)
    bounds = points(whole)
    often, even = 100 * counts[names[0]] / len(single), 100 / len(names)
    learnt = 100 * bootstrap_statistic(balanced, clusters, level=_SURE).low > even  # False where it cannot be told
    table = []
    for name in names[:_SHOWN]:
        rows = np.flatnonzero(classes == number_of[name])
        one = bootstrap_interval(hits[rows], [clusters[row] for row in rows])
        low, high = edges(points(one))
        table.append({"class": name, "test pairs": len(rows), "right %": 100 * one.value, "low": low, "high": high})
    return [
        Finding(
            name="balanced-accuracy",
            section="verdict",
            claim=(
                f"With every class counting the same, the fusion ({fusion.name}) answers {100 * whole.value:.1f} % "
                f"right ({span(bounds)}); always giving '{names[0]}', which is {often:.1f} % of the test pairs, would "
                f"give {even:.1f} %: "
                + ("something was learnt about the other classes." if learnt else "nothing was learnt that shows here.")
            ),
            value=100 * whole.value,
            ci95=bounds,
            how=(
                f"Balanced accuracy: the mean over {len(names):,} classes of the share of their test pairs that is "
                "answered right, in percent; 95 % percentile bootstrap over images (1,000 draws). Something is said to "
                "be learnt only if the 99 % interval lies above always giving one answer."
            ),
            advice=(
                "Read it beside the accuracy. If the rare classes matter, choose a threshold by what an error costs "
                "instead of the most likely answer."
            ),
            table=table,
        )
    ]


def single_class_findings(splits: Splits) -> list[Finding]:
    """Warn of test or development pairs that all ask for one and the same answer; nothing where none do."""
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
                advice=f"Draw the {wide} pairs anew, with every class among them; split by image, not by class.",
            )
        )
    return findings


_SPOILT = {
    "test": "a model that always gives it would be right every time, so they cannot tell a good model from a bad one",
    "dev": "models, temperatures and thresholds were chosen on them, and those choices mean nothing",
}


def only_class(pairs: Pairs, task: str) -> str | None:
    """Return the answer that all pairs have and beside which no pair has another; None if there is no such."""
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
        claim=f"All {n:,} training pairs are right pairs; wrong ones are drawn while training.",
        value=None,
        ci95=None,
        how="Targets of the training pairs.",
        advice="Nothing to do; wrong pairs of your own, which are harder, may teach more than drawn ones.",
    )
