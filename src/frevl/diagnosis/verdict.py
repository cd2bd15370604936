"""The verdict: what to use, in plain words, whatever the answer is.

The first sentence answers in this order: is anything better than always giving the most frequent answer; does the
image, does the text, add anything; which model is best of all, those that see one side only included, and by how much;
and only then whether the fusion is worth it. The claims are nested, so that chance alone makes few of them: nothing is
claimed before something beats the most frequent answer at the 99 % level, and a side is credited only if the best model
that sees it beats the best one without it and, where it sees both, loses when that side is exchanged. The rule is
ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from frevl.diagnosis.findings import Finding
from frevl.diagnosis.gaps import FEWEST_IMAGES, Gap, compare, span
from frevl.diagnosis.model_choice import SMALL_GAIN, ModelChoice, ModelResult
from frevl.diagnosis.verdict_findings import comparison_findings, fusion_sentence
from frevl.evaluation.intervals import bootstrap_interval

__all__ = ["KINDS", "reach_verdict"]

KINDS = ("few", "single", "chance", "either", "text", "image", "baseline", "simple", "mlp", "fusion")
_UNEVEN = 80.0  # percent of one answer, from which on accuracy hides what is learnt about the others
_FIRST_P = 0.01  # of the first claim, on which all others rest: for the best of all models
_FURTHER_P = 0.01 / 3  # the same for the best of each of three kinds, which are three more chances to be wrong

Exchanged = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class _Sides:
    """The best model of each kind, and what they say about image and text.

    Attributes:
        choice: All models.
        worth: What wrong images, and wrong texts, cost the best model that sees both.
    """

    choice: ModelChoice
    worth: dict[str, Gap]

    def alone(self, side: str) -> ModelResult:
        """Return the best model that sees this side only."""
        return self.choice.best(side)

    def learnt(self) -> bool:
        """Tell whether anything is surely better than always giving the most frequent answer."""
        choice = self.choice
        kinds = (self.alone("text"), self.alone("image"), choice.both)
        return choice.gap(choice.overall, choice.majority).better_at(_FIRST_P) or any(
            choice.gap(model, choice.majority).better_at(_FURTHER_P) for model in kinds
        )

    def adds(self, side: str) -> bool:
        """Tell whether a side adds anything measurable to the other one."""
        without, own = self.alone(_OTHER[side]), self.alone(side)
        with_both = self.choice.gap(self.choice.both, without).up and self.worth[side].up
        return with_both or self.choice.gap(own, without).up


_OTHER = {"image": "text", "text": "image"}


def reach_verdict(
    choice: ModelChoice, exchanged: Exchanged, *, only: str | None = None
) -> tuple[dict[str, Any], list[Finding]]:
    """Reach the verdict.

    Args:
        choice: All models on the same test pairs.
        exchanged: By name of the model (the best fusion, and the best that sees both) its ``(n,)`` hits with its
            ``image`` and with its ``text`` exchanged among the test pairs.
        only: The answer that all test pairs have, if they have one and the same.

    Returns:
        The verdict (``sentence``, ``kind``, ``detail`` and the numbers behind them), and its findings.
    """
    fusion, clusters = choice.best("fusion"), choice.clusters
    worth = {
        model.name: {side: compare(model.hits, hits, clusters) for side, hits in exchanged[model.name].items()}
        for model in (fusion, choice.both)
    }
    sides = _Sides(choice, worth[choice.both.name])
    scores = {model.name: _score(model, clusters) for model in choice.models}
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
            f"Nothing can be told from test pairs of a single class: all {n:,} have the answer '{only}', so always "
            "giving that answer is right every time. Give test pairs of every class."
        )
    elif not sides.learnt():
        kind, sentence = "chance", _at_chance(choice)
    else:
        kind, sentence = _learnt(sides, scores)
    told = kind not in ("few", "single", "chance")
    verdict = {
        "sentence": sentence,
        "kind": kind,
        "detail": _detail(sides, scores) if told else [],
        "fusion": fusion.name,
        "text": sides.alone("text").name,
        "image": sides.alone("image").name,
        "both": choice.both.name,
        "best": choice.overall.name if told else None,
        "recommended": choice.recommended.name if told else None,
        "metric": "accuracy",
        "test_pairs": n,
        "test_images": images,
        "scores": scores,
        "differences": {
            model.name: choice.gap(fusion, model).record() for model in choice.models if model is not fusion
        },
        "exchanged": {side: gap.record() for side, gap in worth[fusion.name].items()},
        "exchanged_both": {side: gap.record() for side, gap in sides.worth.items()},
    }
    return verdict, comparison_findings(choice, scores, sentence)


def _at_chance(choice: ModelChoice) -> str:
    """Say that nothing is surely better than the most frequent answer."""
    best, majority = choice.overall, choice.majority
    gap = choice.gap(best, majority)
    share = 100 * majority.accuracy
    start = {
        1: "Nothing is surely better than chance",
        0: "Everything is at chance",
        -1: "Nothing is as good as always giving the most frequent answer",
    }[gap.sign]
    return (
        f"{start}: the best model, {best.name}, answers {100 * best.accuracy:.1f} % right and always giving the most "
        f"frequent answer {share:.1f} % ({gap}); from these embeddings and this many pairs the task cannot be learnt, "
        "or labels and pairs do not belong together."
        + (f" As one answer is {share:.0f} % of the test pairs, look at the classes too." if share >= _UNEVEN else "")
    )


def _learnt(sides: _Sides, scores: dict[str, Any]) -> tuple[str, str]:
    """Return kind and sentence where something beats the most frequent answer."""
    image, text = sides.adds("image"), sides.adds("text")
    if image and text:
        return _both_needed(sides.choice, scores)
    if not image and not text:
        return "either", _neither_adds(sides, scores)
    kind, idle = ("text", "image") if text else ("image", "text")
    return kind, _one_adds_nothing(sides, idle, scores)


def _one_adds_nothing(sides: _Sides, idle: str, scores: dict[str, Any]) -> str:
    choice, enough = sides.choice, _OTHER[idle]
    n, alone, use = len(choice.clusters), sides.alone(enough), choice.recommended
    start = f"The {idle} adds nothing that can be measured on {n:,} pairs ({_not_added(sides, idle)}); "
    if use.role == enough:
        return f"{start}{_best_of_all(choice, scores, told=alone)}: {_use(choice)}, or try another {idle} encoder."
    return f"{start}{_best_of_all(choice, scores, told=alone)}: {_use(choice)}."


def _not_added(sides: _Sides, idle: str) -> str:
    """Say which of the conditions for crediting a side fails."""
    choice, alone = sides.choice, sides.alone(_OTHER[idle])
    gap = choice.gap(choice.both, alone)
    against = f"{choice.both.name}, the best model that sees both, against {alone.name}, the best that sees only the "
    told = f"{against}{_OTHER[idle]}: {gap}"
    if not gap.up:
        return told
    lost = sides.worth[idle]
    word = f"is even better, by {lost.size()}" if lost.down else f"loses nothing that can be measured ({lost})"
    return f"{told}, but with wrong {idle}s {choice.both.name} {word}"


def _neither_adds(sides: _Sides, scores: dict[str, Any]) -> str:
    choice = sides.choice
    return (
        f"Image and text add nothing to each other that can be measured on {len(choice.clusters):,} pairs "
        f"({_not_added(sides, 'image')}; {_not_added(sides, 'text')}); {_best_of_all(choice, scores)}: "
        f"{_use(choice)}."
    )


def _both_needed(choice: ModelChoice, scores: dict[str, Any]) -> tuple[str, str]:
    """Both sides earn their place: only now the question is whether the fusion is worth it."""
    fusion, best, use = choice.best("fusion"), choice.overall, choice.recommended
    baselines = [model for model in choice.models if model.role == "baseline"]
    start = f"Image and text are both needed; {_best_of_all(choice, scores)}"
    worse = [model for model in baselines if choice.gap(fusion, model).down]
    rivals = [model for model in baselines if not choice.gap(fusion, model).up]
    if worse:
        against = best if best in worse else max(worse, key=lambda model: model.accuracy)
        gap = choice.gap(fusion, against)
        told = "" if _told(choice, against) else f", and {fusion.title} is worse than {against.title} by {gap.size()}"
        return "baseline", f"{start}{told}: {_use(choice)}."
    if rivals:
        plain = [model for model in rivals if model.name != "mlp"]
        rival = use if use in rivals else max(plain or rivals, key=lambda model: model.accuracy)
        gap = choice.gap(fusion, rival)
        told = "" if _told(choice, rival) else f", and {fusion.title} does not measurably beat {rival.title} ({gap})"
        if use.role != "fusion":
            return ("simple" if plain else "mlp"), f"{start}{told}: {_use(choice)}."
        return ("simple" if plain else "mlp"), (
            f"{start}{told}: {_use(choice)}, but whether it is worth its cost cannot be told from "
            f"{len(choice.clusters):,} pairs."
        )
    probe = next((model for model in baselines if model.name == "linear"), choice.best("baseline"))
    gap = choice.gap(fusion, probe)
    told = "" if _told(choice, probe) else f", and {fusion.title} beats {probe.title} by {gap.size()}"
    lead = min(gap.value, *(choice.gap(fusion, model).value for model in baselines))
    worth_it = "worth it" if lead >= SMALL_GAIN else "measurable, but hardly worth it"
    return "fusion", f"{start}{told}: {worth_it}."


def _best_of_all(choice: ModelChoice, scores: dict[str, Any], *, told: ModelResult | None = None) -> str:
    """Say which model is best of all and by how much; the lead is left out where the sentence has told it already."""
    best, next_best = choice.overall, choice.runner_up
    start = f"best of all is {best.title} with {_right(scores, best)}"
    if told is not None and best is told and next_best is choice.both:
        return start
    gap = choice.gap(best, next_best)
    if gap.up:
        return f"{start}, {gap.size()} above {next_best.title}"
    return f"{start}, not measurably better than {next_best.title} ({gap})"


def _told(choice: ModelChoice, model: ModelResult) -> bool:
    """Tell whether `_best_of_all` has compared the fusion with this model."""
    return {choice.overall.name, choice.runner_up.name} == {choice.best("fusion").name, model.name}


def _use(choice: ModelChoice) -> str:
    best, use = choice.overall, choice.recommended
    if use is best:
        return f"use {use.title}"
    gap = choice.gap(best, use)
    simpler = "simpler and about as good" if use.simplicity < best.simplicity else "about as good"
    return f"use {use.title}, which is {simpler} ({-gap} against {best.title})"


def _right(scores: dict[str, Any], model: ModelResult) -> str:
    score = scores[model.name]
    return f"{score['value']:.1f} % right ({span(score['ci95'])})"


def _detail(sides: _Sides, scores: dict[str, Any]) -> list[str]:
    """Say how good the fusion is at all, and how it does against every baseline, whatever the first sentence said."""
    choice = sides.choice
    fusion = choice.best("fusion")
    level = (
        f"The fusion ({fusion.name}) answers {_right(scores, fusion)}; "
        f"without the image {scores[sides.alone('text').name]['value']:.1f} % can be answered "
        f"({sides.alone('text').name}), without the text {scores[sides.alone('image').name]['value']:.1f} % "
        f"({sides.alone('image').name}), and {scores[choice.majority.name]['value']:.1f} % by always giving the most "
        "frequent answer."
    )
    others = [model for model in choice.models if model.role == "baseline"]
    return [level, *(fusion_sentence(choice, model) for model in others)]


def _score(model: ModelResult, clusters: list[str]) -> dict[str, Any]:
    interval = bootstrap_interval(model.hits, clusters)
    return {
        "role": model.role,
        "value": 100 * interval.value,
        "ci95": interval.percent(),
        "development": 100 * model.dev,
        "cross_validated": None if model.cross_validated is None else 100 * model.cross_validated,
        "parameters": model.parameters,
        "train_seconds": model.seconds,
    }
