"""Skills: how the fusion does on kinds of questions, each against its blind baseline.

Kinds are the user's own keys, and a rule set on the words of the text (docs/diagnosis.md lists it). A pair may show
several skills.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.model_comparison import Contest
from frevl.diagnosis.verdict import FEWEST_IMAGES, edges, points
from frevl.evaluation.intervals import bootstrap_interval, paired_difference, paired_test
from frevl.evaluation.slices import slice_rows

__all__ = ["RULES", "skill_findings", "skills_of", "slices_of"]

_NUMBERS = "two|three|four|five|six|seven|eight|nine|ten|[0-9]+"
_COLOURS = "red|green|blue|yellow|black|white|brown|gr[ae]y|orange|purple|pink|teal|violet|golden|silver"
_PLACES = (
    "left|right|above|below|under|underneath|beneath|over|behind|in front|on top|next to|beside|besides|between|near|"
    "inside|outside|around|top|bottom|middle|corner|where"
)
_SIZES = (
    "big|bigger|biggest|small|smaller|smallest|large|larger|largest|tall|taller|tallest|short|shorter|shortest|long|"
    "longer|longest|tiny|huge|size|wide|wider|widest"
)
_VERBS = (
    "is|are|was|were|am|do|does|did|can|could|has|have|had|will|would|should|may|might|must|isn't|aren't|doesn't|don't"
)
_ASKS = re.compile(r"\b(what|which|who|whom|whose|where|when|why|how)\b")

# Skill -> what its text holds. `wh` rules hold for questions with a question word, the others for every text; in a
# question such as "what is left of the red chair?" the colour is given, not asked for.
RULES: dict[str, dict[str, re.Pattern[str]]] = {
    "count": {
        "wh": re.compile(r"\bhow many\b|\b(number|amount|count) of\b"),
        "other": re.compile(rf"\b({_NUMBERS}|how many|number of)\b"),
    },
    "colour": {"wh": re.compile(r"\bcolou?r(ed|s)?\b"), "other": re.compile(rf"\b({_COLOURS}|colou?r(ed|s)?)\b")},
    "spatial": {"wh": re.compile(rf"\b({_PLACES})\b"), "other": re.compile(rf"\b({_PLACES})\b")},
    "reading": {
        "wh": re.compile(r"\b(say|says|written|writing|read|reads|word|words|letter|letters|spell|spelled|time)\b"),
        "other": re.compile(r"\b(says|written|reads|word|words|letter|letters|spells)\b"),
    },
    "size": {"wh": re.compile(rf"\b({_SIZES})\b"), "other": re.compile(rf"\b({_SIZES})\b")},
    "material": {
        "wh": re.compile(r"\bmade (out )?of\b|\bmaterial\b"),
        "other": re.compile(
            r"\b(made (out )?of|material|wooden|metal|metallic|plastic|leather|rubber|ceramic|brick)\b"
        ),
    },
}
_ASKS_FOR_ELSE = ("count", "colour", "reading", "size", "material")


def skills_of(text: str) -> list[str]:
    """Return the skills that a text asks for, by the rules of `RULES`.

    ``yes/no`` is a question that begins with a verb, ``object`` one that asks what, which or who and for none of
    count, colour, reading, size and material.
    """
    words = text.lower().strip()
    first = words.split(maxsplit=1)[0].strip(",") if words else ""
    yes_no = words.endswith("?") and re.fullmatch(_VERBS, first) is not None
    asks = not yes_no and _ASKS.search(words) is not None
    found = [name for name, rules in RULES.items() if rules["wh" if asks else "other"].search(words)]
    if yes_no:
        found.append("yes/no")
    elif re.search(r"\b(what|which|who)\b", words) and not any(name in found for name in _ASKS_FOR_ELSE):
        found.append("object")
    return found


def slices_of(pairs: Pairs) -> dict[str, dict[str, np.ndarray]]:
    """Return the rows of every slice: by the key ``text`` for the rules, and by each key that makes groups."""
    groups: dict[str, list[int]] = {}
    skills = {text: skills_of(text) for text in dict.fromkeys(pairs.texts)}
    for row, text in enumerate(pairs.texts):
        for skill in skills[text]:
            groups.setdefault(skill, []).append(row)
    slices = {"text": dict(sorted(groups.items()))} if groups else {}
    slices |= slice_rows(pairs.extras)
    return {key: {value: np.array(rows) for value, rows in own.items()} for key, own in slices.items()}


def skill_findings(contest: Contest) -> list[Finding]:
    """Judge every slice of the test pairs against the best text-only model; one finding a key."""
    return [
        finding
        for key, groups in slices_of(contest.splits.test).items()
        if (finding := _finding(contest, key, groups)) is not None
    ]


def _finding(contest: Contest, key: str, groups: dict[str, np.ndarray]) -> Finding | None:
    fusion, blind, clusters = contest.best("fusion"), contest.best("text"), contest.clusters
    large = [v for v, rows in groups.items() if len({clusters[row] for row in rows}) >= FEWEST_IMAGES]
    table: list[dict[str, Any]] = []
    gains: dict[str, float] = {}
    losses: list[str] = []
    for value, rows in groups.items():
        some = [clusters[row] for row in rows]
        own, without = fusion.test.hits[rows], blind.test.hits[rows]
        gap = paired_difference(own, without, some)
        interval = bootstrap_interval(own, some)
        bounds, between = edges(points(interval)), edges(points(gap))
        table.append(
            {
                "slice": value, "pairs": len(rows), "images": len(set(some)),
                "fusion %": 100 * interval.value, "low": bounds[0], "high": bounds[1],
                "text alone %": 100 * float(without.mean()), "gain points": 100 * gap.value,
                "gain low": between[0], "gain high": between[1],
            }
        )  # fmt: skip
        if value not in large:
            continue
        # So many slices are looked at that one of them would "win" by chance: the level is shared among them.
        strict = paired_difference(own, without, some, level=1 - 0.05 / len(large), resamples=4000)
        certain = paired_test(own, without, some, permutations=4000) < 0.05 / len(large)
        if strict.low > 0 and certain:
            gains[value] = 100 * gap.value
        elif strict.high < 0 and certain:
            losses.append(value)
    if not table:
        return None
    named = "rules on the text" if key == "text" else f"'{key}'"
    level = f"{100 * (1 - 0.05 / max(len(large), 1)):.4g}"
    claim, won = _claim(large, gains, losses, named)
    advice = (
        "Where the image adds nothing, the embedding does not hold what is asked, or the text gives it away: tokens "
        "or another encoder may help there; more of the same pairs will not."
    )
    names = [row["slice"] for row in table]
    return Finding(
        name=f"skills-by-{key}",
        section="skills",
        claim=claim,
        value=won,
        ci95=None,
        how=(
            f"Test pairs sliced by {named}; {fusion.name} against {blind.name}, paired. Named as a gain or loss only "
            f"if the {level} % interval over images excludes 0 (0.05 shared among {len(large)} slices of at least "
            f"{FEWEST_IMAGES} images: Bonferroni) and the paired sign-flip permutation test over images agrees; the "
            "table has 95 % percentile bootstrap intervals. The value counts the slices with a gain."
        ),
        advice=advice,
        table=table,
        plot=chart(
            "bars",
            key,
            "right answers, %",
            series(
                fusion.name,
                names,
                [row["fusion %"] for row in table],
                low=[row["low"] for row in table],
                high=[row["high"] for row in table],
            ),
            series("text alone", names, [row["text alone %"] for row in table]),
        ),
    )


def _claim(large: list[str], gains: dict[str, float], losses: list[str], named: str) -> tuple[str, float | None]:
    if not large:
        return f"No slice by {named} has {FEWEST_IMAGES} test images or more: it cannot be judged.", None
    won = ", ".join(f"{name} ({gain:+.1f})" for name, gain in sorted(gains.items(), key=lambda one: -one[1]))
    rest = ", ".join(name for name in large if name not in gains and name not in losses)
    parts = [f"the image adds points for {won}" if won else "the image adds nothing that can be measured for any"]
    if won and rest:
        parts.append(f"nothing that can be measured for {rest}")
    if losses:
        parts.append(f"the text alone is better for {', '.join(losses)}")
    return f"By {named}, slices judged: {len(large)}; {'; '.join(parts)}.", float(len(gains))
