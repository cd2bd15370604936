"""Every claim and all advice over all signs and sizes: none may contradict its own number.

The verdict has its own file, test_verdict.py.
"""

import re

import numpy as np
import pytest

from frevl.diagnosis.embeddings.encoder_comparison import encoder_advice, encoder_claim, together_advice
from frevl.diagnosis.gaps import Gap
from frevl.diagnosis.performance.class_balance import balance_advice, balanced_claim
from frevl.diagnosis.performance.learning_curve import curve_claim
from frevl.diagnosis.performance.modality_use import same_class_claim, text_only_claim, wrong_image_claim
from frevl.diagnosis.performance.ranking import ranking_claim
from frevl.diagnosis.performance.run_costs import cost_advice
from frevl.diagnosis.performance.selective_prediction import abstention_claim, calibration_claim
from frevl.diagnosis.performance.skills import skills_claim
from frevl.evaluation.intervals import Interval

NAN = float("nan")


LARGE, SMALL = Gap(20.0, 12.0, 28.0, 0.0002), Gap(0.4, 0.1, 0.7, 0.01)


UP_BUT_FOR_THE_TEST = Gap(3.0, 0.2, 5.8, 0.08)


NONE = Gap(0.3, -1.0, 1.6, 0.7)


UNKNOWN = Gap(5.0, NAN, NAN, 0.5)


# Name -> difference and its sign.
GAPS = {
    "large": (LARGE, 1), "small": (SMALL, 1), "not certain": (UP_BUT_FOR_THE_TEST, 0), "none": (NONE, 0),
    "zero": (Gap(0.0, 0.0, 0.0, 1.0), 0), "no interval": (UNKNOWN, 0), "less, not certain": (-UP_BUT_FOR_THE_TEST, 0),
    "less": (-SMALL, -1), "much less": (-LARGE, -1),
}  # fmt: skip


BETTER = re.compile(r"\b(beats?|better than|better by|is better|ranks best)\b")


def by_sign(words):
    """Return ``(difference, words of its sign)`` of every difference."""
    return [pytest.param(gap, words[sign], id=name) for name, (gap, sign) in GAPS.items()]


@pytest.mark.parametrize(("name", "expected"), [(name, sign) for name, (_, sign) in GAPS.items()])
def test_signs(name, expected):
    gap, _ = GAPS[name]
    assert gap.sign == expected
    assert (-gap).sign == -expected


# ------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("gap", "words"),
    by_sign({
        1: ("it looks at the image", "The image earns points that the text alone cannot"),
        0: ("loses nothing measurable", "Leave the image out"),
        -1: ("its own images mislead it", "Check which image belongs to which pair"),
    }),
)  # fmt: skip
def test_wrong_images(gap, words):
    claim, advice = wrong_image_claim("the mlp model", gap, 200, adds=True)
    assert words[0] in claim
    assert words[1] in advice
    assert f"{abs(gap.value):.1f} points" in claim
    _, without = wrong_image_claim("the mlp model", gap, 200, adds=False)
    assert ("relies on the image without gaining from it" in without) == (gap.sign == 1)
    claim, advice = wrong_image_claim("the mlp model", gap, 19, adds=True)
    assert claim == "The cost of wrong images cannot be measured with 19 test images."
    assert advice == "Test on at least 20 different images."


@pytest.mark.parametrize(
    ("gap", "words"),
    by_sign({
        1: ("needs this very image", "reads the answer to this pair from the image"),
        0: ("does as well", "recognises kinds of scenes rather than the answer"),
        -1: ("does better, by", "recognises kinds of scenes rather than the answer"),
    }),
)  # fmt: skip
def test_images_of_the_same_class(gap, words):
    """What is said of kinds of scenes holds only where images of any other pair cost something."""
    claim, advice = same_class_claim("the mlp model", gap, LARGE, 200)
    assert words[0] in claim
    assert words[1] in advice
    for lost in (NONE, -LARGE, UNKNOWN):
        claim, advice = same_class_claim("the mlp model", gap, lost, 200)
        assert claim.endswith("images of any pair cost nothing measurable.")
        assert advice == "This says nothing about the mlp model, which does not need its own images."
    assert "cannot be measured with 1 test image." in same_class_claim("the mlp model", gap, LARGE, 1)[0]


@pytest.mark.parametrize(
    ("gap", "words"),
    by_sign({
        1: ("more than by always", "only what lies above it can come from the image"),
        0: ("not measurably more (", "The texts give nothing away"),
        -1: ("fewer than by always", "The texts mislead"),
    }),
)  # fmt: skip
def test_what_can_be_answered_without_the_image(gap, words):
    claim, advice = text_only_claim(60.0, 40.0, gap)
    assert words[0] in claim
    assert words[1] in advice


@pytest.mark.parametrize(
    ("large", "gains", "losses", "claim", "advice"),
    [
        ([], {}, {}, "none can be examined on its own", "Give more test images of each kind"),
        (["a", "b"], {}, {}, "the image adds nothing measurable for any", "too small to show a gain, or"),
        (["a", "b"], {"a": 0.4}, {}, "points for a (+0.4); nothing measurable for b", "adds nothing (b)"),
        (["a", "b"], {"a": 2.0, "b": 30.0}, {}, "points for b (+30.0), a (+2.0).", "earns its cost in every slice"),
        (["a", "b"], {}, {"b": -3.0}, "the text alone is better for b (-3.0)", "the image misleads the model: look at"),
        (
            ["a", "b"],
            {"a": 2.0},
            {"b": -3.0},
            "points for a (+2.0); the text alone is better for b (-3.0)",
            "pairs of b",
        ),
    ],
)
def test_skills(large, gains, losses, claim, advice):
    told, todo = skills_claim("rules on the text", large, gains, losses)
    assert claim in told
    assert advice in todo
    assert ("earns" in todo) == (set(gains) == {"a", "b"})


# -------------------------------------------------------------------------- models side by side


@pytest.mark.parametrize(
    ("gap", "words"),
    by_sign({
        1: ("better than the best other model, dual, by", "Here tiny ranks best."),
        0: ("not measurably better than the best other model, dual (", "are indistinguishable"),
        -1: ("worse than the best other model, dual, by", "Here dual ranks best."),
    }),
)  # fmt: skip
def test_ranking(gap, words):
    claim, advice = ranking_claim("tiny", "dual", gap)
    assert claim.startswith(words[0])
    assert words[1] in advice


@pytest.mark.parametrize(
    ("gap", "words"),
    by_sign({
        1: {0.5: "there is no reason to use the other", 3.0: "whether the gain is worth it is up to you"},
        0: {0.5: "The two are indistinguishable", 3.0: "The two are indistinguishable"},
        -1: {0.5: "consider it only if time is critical", 3.0: "there is no reason to use it"},
    }),
)  # fmt: skip
def test_costs(gap, words):
    for times, told in ((0.5, "2.0 times faster"), (3.0, "3.0 times slower")):
        advice = cost_advice("tiny", "linear", gap, times)
        assert told in advice
        assert words[times] in advice
        assert bool(BETTER.search(advice)) == (gap.sign == 1)
        assert ("worse" in advice) == (gap.sign == -1)


@pytest.mark.parametrize(
    ("gap", "words"),
    by_sign({1: " beats b with mlp: ", 0: " is not measurably better than b with mlp: ", -1: " is worse than b with "}),
)
def test_encoders(gap, words):
    claim = encoder_claim("a with its mlp model", "b with mlp", gap, 2.0)
    assert words in claim
    assert claim.endswith(", at 2.0 times its time per image.")
    assert encoder_claim("a", "b", gap, None).endswith(f"{gap}.")


def test_which_encoder_to_take():
    assert encoder_advice("a", [], "b") == "As a single encoder, use a, unless its cost per item rules it out."
    assert encoder_advice("a", ["b"], "b").endswith("As a single encoder, use b, the fastest of them.")
    assert encoder_advice("a", ["b"], None).endswith("As a single encoder, use the cheapest one.")


@pytest.mark.parametrize(
    ("gap", "words"),
    by_sign({1: "The recommended model stays better (", 0: "so one encoder may be enough", -1: "use it."}),
)
def test_encoders_together(gap, words):
    assert words in together_advice("kernel on all encoders together", "mlp on a alone", gap)


# ------------------------------------------------------------------------------------------- growth


@pytest.mark.parametrize(
    ("now", "reached", "then", "bounds", "claim", "advice"),
    [
        (
            60.0,
            60.0,
            75.0,
            (68.0, 80.0),
            "would bring tiny from 60.0 to about 75.0 % (68.0 to 80.0).",
            "worth their cost",
        ),
        (60.0, 60.0, 61.5, (60.6, 62.0), "would bring tiny from 60.0 to about 61.5 %", "worth their cost"),
        (
            60.0,
            60.0,
            64.0,
            (58.0, 70.0),
            "whether ten times the data would help tiny: from 60.0 to about 64.0 %",
            "label some more and diagnose",
        ),
        (
            60.0,
            60.0,
            59.0,
            (55.0, 66.0),
            "whether ten times the data would help tiny: from 60.0 to about 59.0 %",
            "label some more and diagnose",
        ),
        (60.0, 60.0, 60.1, (59.8, 60.3), "would leave tiny at about 60.1 %", "Do not label more pairs"),
        (60.0, 60.0, 58.0, (57.0, 59.0), "would leave tiny at about 58.0 %", "Do not label more pairs"),
        # The last point lies below the law: what the law says of today's pairs is no gain to come.
        (60.0, 70.0, 70.0, (69.0, 70.2), "would leave tiny at about 70.0 %", "Do not label more pairs"),
    ],
)
def test_learning_curves(now, reached, then, bounds, claim, advice):
    told, todo = curve_claim("tiny", now, reached, then, bounds)
    assert claim in told
    assert advice in todo


# ----------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize(
    ("gap", "miscalibrated", "claim", "advice"),
    [
        (Interval(0.15, 0.12, 0.18), True, "over-confident by 15.0 points (12.0 to 18.0)", "Do not act on its"),
        (Interval(0.004, 0.001, 0.007), True, "over-confident by 0.4 points", "Do not act on its"),
        (Interval(-0.15, -0.18, -0.12), True, "under-confident by 15.0 points (12.0 to 18.0)", "too low"),
        (Interval(0.01, -0.02, 0.04), True, "not calibrated bin by bin", "rank answers"),
        (Interval(0.15, NAN, NAN), True, "not calibrated bin by bin", "rank answers"),
        (Interval(0.02, 0.01, 0.03), False, "as calibrated as can be measured", "can be read as the share"),
        (Interval(-0.02, -0.03, -0.01), False, "as calibrated as can be measured", "can be read as the share"),
    ],
)
def test_calibration(gap, miscalibrated, claim, advice):
    told, todo = calibration_claim(gap, miscalibrated=miscalibrated)
    assert told.startswith(claim)
    assert advice in todo


def threshold(answered, right, low, high, at=0.8):
    return {"threshold": at, "answered %": answered, "right %": right, "low": low, "high": high}


@pytest.mark.parametrize(
    ("row", "claim", "advice"),
    [
        (
            threshold(40.0, 91.0, 88.0, 94.0),
            "40.0 % of the test pairs, 91.0 % of them right (88.0 to 94.0).",
            "Use 0.80 as",
        ),
        (threshold(40.0, 87.0, 82.0, 92.0), "87.0 % of them right (82.0 to 92.0).", "Use 0.80 as"),
        (threshold(40.0, 96.0, 93.0, 99.0), "96.0 % of them right (93.0 to 99.0).", "Use 0.80 as"),
        (
            threshold(40.0, 70.0, 65.0, 75.0),
            "(65.0 to 75.0): fewer than the target.",
            "Do not use this threshold",
        ),
        (threshold(2.0, 95.0, 85.0, 100.0), "answers 2.0 % of the test pairs", "saves hardly any work"),
        (threshold(99.0, 92.0, 90.0, 94.0), "answers 99.0 % of the test pairs", "hardly needed at this precision"),
        (threshold(40.0, 91.0, None, None), "91.0 % of them right.", "A single image shows nothing"),
        (threshold(0.0, None, None, None), "but no test pair reaches that confidence", "The test pairs differ"),
        (threshold(None, None, None, None, at=None), "No threshold gives 90 % right answers of mlp", "Do not automate"),
    ],
)
def test_abstention(row, claim, advice):
    told, todo = abstention_claim("mlp", 0.9, row)
    assert claim in told
    assert advice in todo


# -------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("share", "rare", "unseen", "advice"),
    [
        (20.0, 0, 0.0, "Nothing to do."),
        (50.1, 0, 0.0, "Report accuracy next to that of the most frequent answer"),
        (20.0, 3, 0.0, "Add pairs of the rare classes"),
        (95.0, 3, 0.25, "No model can answer more than 75.0 % of the test pairs"),
    ],
)
def test_classes(share, rare, unseen, advice):
    assert balance_advice(share, rare, unseen).startswith(advice)


@pytest.mark.parametrize(
    ("low", "high", "claim", "advice"),
    [
        (60.0, 80.0, "something was learned", "Read it next to the accuracy"),
        (
            49.0,
            70.0,
            "nothing measurable was learned about the other classes",
            "Do not trust the accuracy alone",
        ),
        (30.0, 49.0, "that is worse", "Look at the labels of the rare classes"),
        (
            NAN,
            NAN,
            "nothing measurable was learned about the other classes",
            "Do not trust the accuracy alone",
        ),
    ],
)
def test_every_class_counting_the_same(low, high, claim, advice):
    told, todo = balanced_claim(low, high, 50.0)
    assert told.startswith(claim)
    assert todo.startswith(advice)


def test_no_function_here_depends_on_how_a_number_is_held():
    """Numbers of NumPy are written like those of Python."""
    gap = Gap(*(np.float64(number) for number in (20.0, 12.0, 28.0)), 0.0002)
    said = [wrong_image_claim("x", one, count, adds=True) for one, count in ((gap, np.int64(200)), (LARGE, 200))]
    assert said[0] == said[1]
