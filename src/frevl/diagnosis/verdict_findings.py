"""The findings under the verdict: all models side by side, and the fusion against each of them."""

from __future__ import annotations

from typing import Any

from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.gaps import edges
from frevl.diagnosis.model_choice import ModelChoice, ModelResult

__all__ = ["comparison_findings", "fusion_advice", "fusion_sentence", "model_sentence"]


_BEATS = {1: "beats", 0: "is not measurably better than", -1: "is worse than"}


def comparison_findings(choice: ModelChoice, scores: dict[str, Any], sentence: str) -> list[Finding]:
    """Return ``accuracy`` and ``fusion-against-NAME`` for every other model; where there is no fusion, the former.

    Args:
        choice: All models on the same test pairs.
        scores: By model ``value``, ``ci95``, ``development`` and ``cross_validated`` in percent.
        sentence: The verdict's, which is what to do about the table.
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
    """Return ``The linear probe beats the kernel model: +2.0 points, 1.0 to 3.0.``, or what else is the case."""
    gap = choice.gap(one, other)
    sentence = f"{one.title} {_BEATS[gap.sign]} {other.title}: {gap}."
    return sentence[0].upper() + sentence[1:]


def fusion_sentence(choice: ModelChoice, model: ModelResult) -> str:
    """Return ``The fusion (tiny) beats the linear probe: +2.0 points, 1.0 to 3.0.``, or what else is the case."""
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
    """Return what follows for the fusion from beating a model (1), losing to it (-1), or neither (0).

    None of it recommends a model: only the first sentence of the verdict does, because it has seen all of them.
    """
    return _ADVICE[model.role][sign].format(name=model.name)


_ADVICE = {
    "majority": {
        1: "The fusion has learnt something; read on.",
        0: "The fusion has learnt nothing that can be measured: look at targets and pairs first, then at the encoder.",
        -1: (
            "The fusion is worse than no model at all: look at the classes, and at whether training and test pairs "
            "were labelled alike."
        ),
    },
    "text": {
        1: "The fusion is better than {name}, which sees only the text; whether the image earns it, says its section.",
        0: "The image is not worth its cost in this model: the text alone, with {name}, does about as well.",
        -1: "Adding the image makes this model worse than {name}, which sees only the text.",
    },
    "image": {
        1: "The fusion is better than {name}, which sees only the image: the text is worth its cost.",
        0: "The text is not worth its cost in this model: the image alone, with {name}, does about as well.",
        -1: "Adding the text makes this model worse than {name}, which sees only the image.",
    },
    "baseline": {
        1: "The fusion is better than this simpler model; whether it is the best of all, says the first sentence.",
        0: "This simpler model does about as well: against it the fusion is not worth its cost.",
        -1: "This simpler model is better: against it the fusion is not worth its cost.",
    },
    "fusion": {
        1: "The better of the two fusions was chosen.",
        0: "The two fusions cannot be told apart here; the cross-validation, or the development pairs, chose.",
        -1: "{name} is the better of the two fusions here.",
    },
}
