"""Skills: how the best two-sided model does on kinds of questions, compared with the text alone.

Kinds come from the user's own keys and from rules on the words of the text (docs/diagnosis.md lists them). A pair may
involve several skills.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.gaps import FEWEST_IMAGES, edges
from frevl.diagnosis.model_comparison import ModelComparison
from frevl.evaluation.intervals import hit_interval, paired_difference, paired_test
from frevl.evaluation.slices import slice_rows

__all__ = ["RULES", "skill_findings", "skills_claim", "skills_of", "slices_of"]

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

# Skill -> patterns in the text. `wh` rules apply to questions with a question word, the others to every text; in a
# question such as "what is left of the red chair?" the colour is given, not requested.
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
    """Return the skills that a text requires, by the rules of `RULES`.

    ``yes/no`` is a question that starts with a verb; ``object`` is one that asks what, which or who, and for none of
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
    """Return the rows of every slice: by the key ``text`` for the rules, and by each key that forms groups."""
    groups: dict[str, list[int]] = {}
    skills = {text: skills_of(text) for text in dict.fromkeys(pairs.texts)}
    for row, text in enumerate(pairs.texts):
        for skill in skills[text]:
            groups.setdefault(skill, []).append(row)
    slices = {"text": {value: np.array(rows) for value, rows in sorted(groups.items())}} if groups else {}
    return slices | slice_rows(pairs.extras)


def skill_findings(comparison: ModelComparison) -> list[Finding]:
    """Compare the best model that sees both with the best text-only model in every slice; one finding per key."""
    return [
        finding
        for key, groups in slices_of(comparison.splits.test).items()
        if (finding := _finding(comparison, key, groups)) is not None
    ]


def _finding(comparison: ModelComparison, key: str, groups: dict[str, np.ndarray]) -> Finding | None:
    model, text, clusters = comparison.both, comparison.best("text"), comparison.clusters
    large = [v for v, rows in groups.items() if len({clusters[row] for row in rows}) >= FEWEST_IMAGES]
    table: list[dict[str, Any]] = []
    gains: dict[str, float] = {}
    losses: dict[str, float] = {}
    for value, rows in groups.items():
        some = [clusters[row] for row in rows]
        own, without = model.test.hits[rows], text.test.hits[rows]
        gap = paired_difference(own, without, some)
        interval = hit_interval(own, some)
        bounds, between = edges(interval.percent()), edges(gap.percent())
        table.append(
            {
                "slice": value, "pairs": len(rows), "images": len(set(some)),
                "accuracy %": 100 * interval.value, "low": bounds[0], "high": bounds[1],
                "text alone %": 100 * float(without.mean()), "gain points": 100 * gap.value,
                "gain low": between[0], "gain high": between[1],
            }
        )  # fmt: skip
        if value not in large:
            continue
        # With many slices, one of them would "win" by chance: the significance level is shared among them.
        strict = paired_difference(own, without, some, level=1 - 0.05 / len(large), resamples=4000)
        certain = paired_test(own, without, some, permutations=4000) < 0.05 / len(large)
        if strict.low > 0 and certain:
            gains[value] = 100 * gap.value
        elif strict.high < 0 and certain:
            losses[value] = 100 * gap.value
    if not table:
        return None
    named = "rules on the text" if key == "text" else f"'{key}'"
    level = f"{100 * (1 - 0.05 / max(len(large), 1)):.4g}"
    claim, advice = skills_claim(named, large, gains, losses)
    names = [row["slice"] for row in table]
    return Finding(
        name=f"skills-by-{key}",
        section="skills",
        claim=claim,
        value=float(len(gains)) if large else None,
        ci95=None,
        how=(
            f"Test pairs sliced by {named}; {model.name}, the best model that sees both, against {text.name}, the best "
            f"that sees only the text, paired. Named as a gain or loss only if the {level} % interval over images "
            f"excludes 0 (0.05 shared among {len(large)} slices of at least {FEWEST_IMAGES} images: Bonferroni) and "
            "the paired sign-flip permutation test over images agrees; the table has 95 % percentile bootstrap "
            "intervals. The value counts the slices with a gain."
        ),
        advice=advice,
        table=table,
        plot=chart(
            "bars",
            key,
            "right answers, %",
            series(
                model.name,
                names,
                [row["accuracy %"] for row in table],
                low=[row["low"] for row in table],
                high=[row["high"] for row in table],
            ),
            series("text alone", names, [row["text alone %"] for row in table]),
        ),
    )


def skills_claim(
    named: str, large: Sequence[str], gains: Mapping[str, float], losses: Mapping[str, float]
) -> tuple[str, str]:
    """Return claim and advice on where the image helps.

    Args:
        named: The key or rules that define the slices.
        large: Slices with enough test images.
        gains: Slices in which the model with the image is measurably better, with the gain in points.
        losses: Slices in which it is measurably worse, with the (negative) difference in points.
    """
    if not large:
        return (
            f"No slice by {named} has {FEWEST_IMAGES} test images or more: none can be examined on its own.",
            "Give more test images of each kind.",
        )
    won, lost = _with_points(gains, largest=True), _with_points(losses, largest=False)
    rest = ", ".join(name for name in large if name not in gains and name not in losses)
    parts = [f"the image adds points for {won}" if won else "the image adds nothing measurable for any"]
    if won and rest:
        parts.append(f"nothing measurable for {rest}")
    if lost:
        parts.append(f"the text alone is better for {lost}")
    claim = f"By {named}, slices compared: {len(large)}; {'; '.join(parts)}."
    missing = (
        "the embedding does not hold the answer, or the text gives it away: tokens or another encoder may help "
        "there; more of the same pairs will not."
    )
    if losses:
        return (
            claim,
            f"Where the text alone is better, the image misleads the model: look at pairs of {', '.join(losses)}.",
        )
    if gains and rest:
        return claim, f"Where the image adds nothing ({rest}), {missing}"
    if gains:
        return claim, "The image earns its cost in every slice."
    return claim, f"Either the slices are too small to show a gain, or {missing}"


def _with_points(slices: Mapping[str, float], *, largest: bool) -> str:
    """Return ``colour (+3.1), count (+1.2)``, the largest first."""
    ordered = sorted(slices.items(), key=lambda one: one[1], reverse=largest)
    return ", ".join(f"{name} ({points_:+.1f})" for name, points_ in ordered)
