"""The verdict: a plain statement of what to use.

The first sentence answers these questions in order: is anything better than always giving the most frequent answer;
does the image, and does the text, add anything; which model is best overall, including those that see one side only,
and by how much; and only then whether the fusion is worth it. The claims are nested to limit false claims: nothing is
claimed before something beats the most frequent answer at the 99 % level, and a side is credited only if the best model
that sees it beats the best one without it and, if that model sees both, loses when the side is exchanged. The rule is
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.gaps import FEWEST_IMAGES, edges, span
from frevl.diagnosis.model_choice import SMALL_GAIN, ModelChoice, ModelResult
from frevl.errors import counted
from frevl.evaluation.intervals import hit_interval

__all__ = ["KINDS", "comparison_findings", "fusion_advice", "fusion_sentence", "model_sentence", "reach_verdict"]

_BEATS = {1: "beats", 0: "is not measurably better than", -1: "is worse than"}


def comparison_findings(choice: ModelChoice, scores: dict[str, Any], sentence: str) -> list[Finding]:
    """Return ``accuracy`` and ``fusion-against-NAME`` for every other model; only the former if there is no fusion.

    Args:
        choice: All models on the same test pairs.
        scores: For each model ``value``, ``ci95``, ``development`` and ``cross_validated`` in percent.
        sentence: The verdict's sentence, used as advice on the table.
    """
    if choice.one_side:
        return [_accuracy(choice, scores, sentence)]
    fusion = choice.best("fusion")
    others = [model for model in choice.models if model is not fusion]
    return [_accuracy(choice, scores, sentence), *(_against(choice, model) for model in others)]


def _accuracy(choice: ModelChoice, scores: dict[str, Any], sentence: str) -> Finding:
    rows = []
    for model in choice.models:
        low, high = edges(scores[model.name]["ci95"])
        rows.append(
            {
                "model": model.name,
                "role": model.role,
                "accuracy %": scores[model.name]["value"],
                "low": low,
                "high": high,
                "cross-validated %": scores[model.name]["cross_validated"],
                "development %": scores[model.name]["development"],
            }
        )
    best = choice.overall
    fusion = best if choice.one_side else choice.best("fusion")
    n, images = len(choice.clusters), len(set(choice.clusters))
    own, top = scores[fusion.name], scores[best.name]
    named = f"The best of all models, {best.name}," if choice.one_side else f"The fusion ({fusion.name})"
    claim = f"{named} answers {own['value']:.1f} % of {n:,} test pairs right"
    claim += "." if best is fusion else f"; the best of all models, {best.name}, {top['value']:.1f} %."
    crossed = any(row["cross-validated %"] is not None for row in rows)
    chosen = "by cross-validation over the images of the training pairs" if crossed else "on the development pairs"
    return Finding(
        name="accuracy",
        section="verdict",
        claim=claim,
        value=own["value"],
        ci95=own["ci95"],
        how=(
            f"Every model was trained on the same pairs, and all were compared on {n:,} test pairs about {images:,} "
            f"images. The best of each kind was chosen {chosen}, among those that no other model measurably beats. "
            "Percent of right answers, 95 % percentile bootstrap over images (1,000 draws)."
        ),
        advice=sentence,
        table=rows,
        plot=chart(
            "bars",
            "model",
            "right answers, %",
            series(
                "test",
                [model.name for model in choice.models],
                [row["accuracy %"] for row in rows],
                low=[row["low"] for row in rows],
                high=[row["high"] for row in rows],
            ),
        ),
    )


def model_sentence(choice: ModelChoice, one: ModelResult, other: ModelResult) -> str:
    """Return ``The linear probe beats the kernel model: +2.0 points, 1.0 to 3.0.``, or whatever holds."""
    gap = choice.gap(one, other)
    sentence = f"{one.title} {_BEATS[gap.sign]} {other.title}: {gap}."
    return sentence[0].upper() + sentence[1:]


def fusion_sentence(choice: ModelChoice, model: ModelResult) -> str:
    """Return ``The fusion (tiny) beats the linear probe: +2.0 points, 1.0 to 3.0.``, or whatever holds."""
    gap = choice.gap(choice.best("fusion"), model)
    return f"The fusion ({choice.best('fusion').name}) {_BEATS[gap.sign]} {model.title}: {gap}."


def _against(choice: ModelChoice, model: ModelResult) -> Finding:
    gap = choice.gap(choice.best("fusion"), model)
    return Finding(
        name=f"fusion-against-{model.name.replace(' ', '-')}",
        section="verdict",
        claim=fusion_sentence(choice, model),
        value=gap.value,
        ci95=gap.ci95,
        how=(
            "Difference of accuracies on the same test pairs in points; 95 % percentile bootstrap over images "
            "(1,000 draws); paired sign-flip permutation test over images (Fisher's randomisation test, "
            f"two-sided, 4,000 flips), p = {gap.p:.4f}."
        ),
        advice=fusion_advice(model, gap.sign),
    )


def fusion_advice(model: ModelResult, sign: int) -> str:
    """Return what follows from the fusion beating a model (1), losing to it (-1), or neither (0).

    It never recommends a model: only the first sentence of the verdict does, because it considers all of them.
    """
    return _ADVICE[model.role][sign].format(name=model.name)


_ADVICE = {
    "majority": {
        1: "The fusion has learned something; read on.",
        0: "The fusion has learned nothing measurable: look at targets and pairs first, then at the encoder.",
        -1: (
            "The fusion is worse than no model at all: look at the classes, and at whether training and test pairs "
            "were labelled alike."
        ),
    },
    "text": {
        1: "The fusion is better than {name}, which sees only the text; the section on the image says why.",
        0: "The image is not worth its cost in this model: the text alone, with {name}, does about as well.",
        -1: "Adding the image makes this model worse than {name}, which sees only the text.",
    },
    "image": {
        1: "The fusion is better than {name}, which sees only the image: the text is worth its cost.",
        0: "The text is not worth its cost in this model: the image alone, with {name}, does about as well.",
        -1: "Adding the text makes this model worse than {name}, which sees only the image.",
    },
    "baseline": {
        1: "The fusion is better than this simpler model; see the first sentence for whether it is the best of all.",
        0: "This simpler model does about as well: against it the fusion is not worth its cost.",
        -1: "This simpler model is better: against it the fusion is not worth its cost.",
    },
    "fusion": {
        1: "The better of the two fusions was chosen.",
        0: "The two fusions are indistinguishable here; cross-validation, or the development pairs, chose.",
        -1: "{name} is the better of the two fusions here.",
    },
}


KINDS = ("few", "single", "chance", "side", "either", "text", "image", "baseline", "simple", "mlp", "fusion")
_MOST_NAMED = 4  # models in one sentence
_UNEVEN = 80.0  # percent of one answer above which accuracy hides what is learned about the others
_OTHER = {"image": "text", "text": "image"}


def reach_verdict(choice: ModelChoice, *, only: str | None = None) -> tuple[dict[str, Any], list[Finding]]:
    """Reach the verdict.

    Args:
        choice: All models on the same test pairs; the best fusion, and the best model that sees both, also with wrong
            images and texts.
        only: The answer that all test pairs have, if there is only one.

    Returns:
        The verdict (``sentence``, ``kind``, ``detail`` and the numbers behind them), and its findings. If the pairs
        have only one side, there is no fusion, and the differences are those of the best model.
    """
    fusion, clusters = choice.both if choice.one_side else choice.best("fusion"), choice.clusters
    scores = {model.name: _score(model, clusters) for model in choice.models}
    images, n = len(set(clusters)), len(clusters)
    if images < FEWEST_IMAGES:
        kind = "few"
        sentence = (
            f"Too few pairs to tell: {n:,} test pairs on {images:,} {choice.unit}s; a verdict needs at least "
            f"{FEWEST_IMAGES} different test {choice.unit}s, and several hundred to see gains of a few points."
        )
    elif only is not None:
        kind = "single"
        sentence = (
            f"Test pairs of a single class show nothing: all {n:,} have the answer '{only}', so always "
            "giving that answer is right every time. Give test pairs of every class."
        )
    elif not choice.learned:
        kind, sentence = "chance", _at_chance(choice)
    elif choice.one_side:
        kind = "side"
        sentence = f"From {choice.unit}s alone {_best_of_all(choice, scores)}: {_use(choice)}."
    else:
        kind, sentence = _above_chance(choice, scores)
    conclusive = kind not in ("few", "single", "chance")
    verdict = {
        "sentence": sentence,
        "kind": kind,
        "detail": _detail(choice, scores) if conclusive else [],
        **_best_of_each_kind(choice),
        "best": [model.name for model in choice.leaders] if conclusive else [],
        "recommended": choice.recommended.name if conclusive else None,
        "metric": "accuracy",
        "unit": choice.unit,
        "test_pairs": n,
        "test_images": images,
        "scores": scores,
        "differences": {
            model.name: choice.gap(fusion, model).record() for model in choice.models if model is not fusion
        },
        "exchanged": {side: gap.record() for side, gap in choice.lost(fusion).items()},
        "exchanged_both": {side: gap.record() for side, gap in choice.lost(choice.both).items()},
    }
    return verdict, comparison_findings(choice, scores, sentence)


def _best_of_each_kind(choice: ModelChoice) -> dict[str, str | None]:
    """Return the name of the best model of each kind; None if the pairs have one side only."""
    if choice.one_side:
        return {**dict.fromkeys(("fusion", "text", "image", "both")), choice.unit: choice.both.name}
    kinds: dict[str, str | None] = {kind: choice.best(kind).name for kind in ("fusion", "text", "image")}
    return {**kinds, "both": choice.both.name}


def _at_chance(choice: ModelChoice) -> str:
    """Report that nothing is reliably better than the most frequent answer."""
    best, majority = choice.chosen, choice.majority
    gap = choice.gap(best, majority)
    share = 100 * majority.accuracy
    start = {
        1: "Nothing is reliably better than chance",
        0: "Everything is at chance",
        -1: "Nothing is as good as always giving the most frequent answer",
    }[gap.sign]
    return (
        f"{start}: the best model, {best.name}, answers {100 * best.accuracy:.1f} % right and always giving the most "
        f"frequent answer {share:.1f} % ({gap}); from these embeddings and this many pairs the task cannot be learned, "
        "or labels and pairs do not belong together."
        + (f" As one answer is {share:.0f} % of the test pairs, look at the classes too." if share >= _UNEVEN else "")
    )


def _above_chance(choice: ModelChoice, scores: dict[str, Any]) -> tuple[str, str]:
    """Return kind and sentence if something beats the most frequent answer."""
    image, text = choice.adds("image"), choice.adds("text")
    if image and text:
        return _both_needed(choice, scores)
    if not image and not text:
        return "either", _neither_adds(choice, scores)
    kind, idle = ("text", "image") if text else ("image", "text")
    return kind, _one_adds_nothing(choice, idle, scores)


def _one_adds_nothing(choice: ModelChoice, idle: str, scores: dict[str, Any]) -> str:
    n = len(choice.clusters)
    start = f"The {idle} adds nothing measurable on {n:,} pairs ({_not_added(choice, idle)})"
    other = f", or try another {idle} encoder" if choice.recommended.role == _OTHER[idle] else ""
    return f"{start}; {_best_of_all(choice, scores)}: {_use(choice)}{other}."


def _not_added(choice: ModelChoice, idle: str) -> str:
    """Report which condition for crediting a side fails."""
    both, alone = choice.both, choice.best(_OTHER[idle])
    gap = choice.gap(both, alone)
    compared = f"{both.name}, which sees both, against {alone.name}, which sees only the {_OTHER[idle]}: {gap}"
    if not gap.up:
        return compared
    lost = choice.lost(both)[idle]
    word = f"is even better, by {lost.size()}" if lost.down else f"loses nothing measurable ({lost})"
    return f"{compared}, but with wrong {idle}s {both.name} {word}"


def _neither_adds(choice: ModelChoice, scores: dict[str, Any]) -> str:
    return (
        f"Image and text add nothing measurable to each other on {len(choice.clusters):,} pairs "
        f"({_not_added(choice, 'image')}; {_not_added(choice, 'text')}); {_best_of_all(choice, scores)}: "
        f"{_use(choice)}."
    )


def _both_needed(choice: ModelChoice, scores: dict[str, Any]) -> tuple[str, str]:
    """Both sides are needed: only now does the question arise whether the fusion is worth it."""
    fusion, use = choice.best("fusion"), choice.recommended
    baselines = [model for model in choice.models if model.role == "baseline"]
    start = f"Image and text are both needed; {_best_of_all(choice, scores)}"
    worse = [model for model in baselines if choice.gap(fusion, model).down]
    rivals = [model for model in baselines if not choice.gap(fusion, model).up]
    if worse:
        against = use if use in worse else max(worse, key=lambda model: model.accuracy)
        gap = choice.gap(fusion, against)
        clause = f", and {fusion.title} is worse than {against.title} by {gap.size()}"
        return "baseline", f"{start}{'' if _compared(choice, against) else clause}: {_use(choice)}."
    if rivals:
        plain = [model for model in rivals if model.name != "mlp"]
        rival = use if use in rivals else max(plain or rivals, key=lambda model: model.accuracy)
        gap = choice.gap(fusion, rival)
        clause = f", and {fusion.title} does not measurably beat {rival.title} ({gap})"
        doubt = (
            f", but {len(choice.clusters):,} pairs are too few to tell whether it is worth its cost"
            if use.role == "fusion"
            else ""
        )
        kind = "simple" if plain else "mlp"
        return kind, f"{start}{'' if _compared(choice, rival) else clause}: {_use(choice)}{doubt}."
    probe = next((model for model in baselines if model.name == "linear"), choice.best("baseline"))
    clause = f", and {fusion.title} beats {probe.title} by {choice.gap(fusion, probe).size()}"
    lead = min(choice.gap(fusion, model).value for model in baselines)
    worth_it = "worth it" if lead >= SMALL_GAIN else "measurable, but hardly worth it"
    several = f": {_use(choice)}" if len(choice.leaders) > 1 else ""
    return "fusion", f"{start}{'' if _compared(choice, probe) else clause}{several}: {worth_it}."


def _best_of_all(choice: ModelChoice, scores: dict[str, Any]) -> str:
    """Report which model is best overall and by how much, or which ones are indistinguishably best."""
    best, leaders = choice.overall, choice.leaders
    if len(leaders) == 1:
        gap = choice.gap(best, choice.runner_up)
        start = f"best of all is {best.title} with {_right(scores, best)}"
        if gap.up:
            return f"{start}, {gap.size()} above {choice.runner_up.title}"
        return f"{start}, ahead of {choice.runner_up.title} ({gap})"
    shown = [f"{model.title} ({scores[model.name]['value']:.1f} % right)" for model in leaders[:_MOST_NAMED]]
    shown += [counted(len(leaders) - _MOST_NAMED, "other")] if len(leaders) > _MOST_NAMED else []
    return f"best of all are {', '.join(shown[:-1])} and {shown[-1]}, which are indistinguishable"


def _compared(choice: ModelChoice, model: ModelResult) -> bool:
    """Return whether `_best_of_all` has compared the fusion with this model."""
    compared = choice.leaders if len(choice.leaders) > 1 else [choice.overall, choice.runner_up]
    return choice.best("fusion") in compared and model in compared


def _use(choice: ModelChoice) -> str:
    use = choice.recommended
    if any(model.simplicity > use.simplicity for model in choice.leaders):
        alike = sum(model.simplicity == use.simplicity for model in choice.leaders)
        return f"use {use.title}, {'the simplest' if alike == 1 else 'one of the simplest'} of them"
    return f"use {use.title}"


def _right(scores: dict[str, Any], model: ModelResult) -> str:
    score = scores[model.name]
    return f"{score['value']:.1f} % right ({span(score['ci95'])})"


def _detail(choice: ModelChoice, scores: dict[str, Any]) -> list[str]:
    """Report how good the fusion is in itself and compared with every baseline, whatever the first sentence says.

    If the pairs have one side only, compare the recommended model with every other.
    """
    if choice.one_side:
        use = choice.recommended
        usual = scores[choice.majority.name]["value"]
        level = (
            f"{use.title} answers {_right(scores, use)}, and {usual:.1f} % by always giving the most frequent answer."
        )
        others = [model for model in choice.models if model.role == "side" and model is not use]
        return [level[0].upper() + level[1:], *(model_sentence(choice, use, model) for model in others)]
    fusion, text, image = (choice.best(role) for role in ("fusion", "text", "image"))
    level = (
        f"The fusion ({fusion.name}) answers {_right(scores, fusion)}; without the image "
        f"{scores[text.name]['value']:.1f} % can be answered ({text.name}), without the text "
        f"{scores[image.name]['value']:.1f} % ({image.name}), and {scores[choice.majority.name]['value']:.1f} % by "
        "always giving the most frequent answer."
    )
    others = [model for model in choice.models if model.role == "baseline"]
    return [level, *(fusion_sentence(choice, model) for model in others)]


def _score(model: ModelResult, clusters: Sequence[str]) -> dict[str, Any]:
    interval = hit_interval(model.hits, clusters)
    return {
        "role": model.role,
        "value": 100 * interval.value,
        "ci95": interval.percent(),
        "development": 100 * model.dev,
        "cross_validated": None if model.cross_validated is None else 100 * model.cross_validated,
        "parameters": model.parameters,
        "train_seconds": model.seconds,
    }
