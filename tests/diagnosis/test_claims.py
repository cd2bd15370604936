"""Every claim and all advice over all signs and sizes: none may contradict its own number.

The verdict has its own file, test_verdict.py.
"""

import re

import numpy as np
import pytest

from frevl.diagnosis.data_quality.image_leaks import near_image_claim, same_image_claim, same_pair_claim
from frevl.diagnosis.data_quality.label_errors import conflict_claim, label_claim
from frevl.diagnosis.data_quality.text_leaks import near_pair_claim, near_text_claim, same_text_claim
from frevl.diagnosis.embeddings.embedding_findings import gap_advice, hub_claim, projection_advice, rank_advice
from frevl.diagnosis.embeddings.encoder_comparison import encoder_advice, encoder_claim, together_advice
from frevl.diagnosis.embeddings.probes import fine_grained_claim, skills_advice, tokens_claim
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


@pytest.mark.parametrize(
    ("named", "accuracies", "start"),
    [
        (0, (0.68, 0.66), "None of the 1,000 labels examined is contradicted by both mlp and kernel."),
        (
            185,
            (0.68, 0.66),
            "Wrong labels cannot be distinguished from model errors (accuracy on unseen pairs: mlp 68.0 % and ",
        ),
        (330, (0.68, 0.66), "Wrong labels cannot be distinguished from model errors"),  # all that they get wrong
        (40, (0.95, 0.94), "40 of 1,000 labels are likely wrong (4.0 %): mlp and kernel, which were not trained on"),
        (20, (0.95, 0.94), "Wrong labels cannot be distinguished"),  # most of what either gets wrong the other does not
        (40, (0.95, 0.89), "Wrong labels cannot be distinguished"),  # one of them is not right often enough
    ],
)
def test_label_errors(named, accuracies, start):
    claim, advice = label_claim(named, 1000, dict(zip(("mlp", "kernel"), accuracies, strict=True)))
    assert claim.startswith(start)
    if named == 0:
        assert advice == "Nothing to do."
    elif "cannot be distinguished" in claim:
        assert f"Together they clearly contradict {named} of 1,000 labels ({named / 10:.1f} %)." in claim
        assert "before changing anything" in advice
        assert "likely wrong" not in claim
    else:
        assert "correct them rather than just deleting them" in advice


# --------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize(
    ("rank", "items", "width", "advice"),
    [
        (120.0, 131, 1280, "as many as possible"),
        (15.0, 2000, 1280, "look alike to this encoder"),
        (15.0, 100, 1280, "wider than it needs to be"),
        (265.0, 2000, 1280, "wider than it needs to be"),
        (300.0, 2000, 384, "as many as possible"),
    ],
)
def test_effective_ranks(rank, items, width, advice):
    assert advice in rank_advice(rank, items, width)


@pytest.mark.parametrize(
    ("skew", "word", "advice"),
    [(-0.2, "few hubs", "Nothing to do"), (1.9, "few hubs", "Nothing to do"), (2.0, "some hubs", "look at the first"),
     (4.9, "some hubs", "look at the first"), (5.0, "strong hubs", "rerank")],
)  # fmt: skip
def test_hubs(skew, word, advice):
    told, todo = hub_claim(skew)
    assert told == word
    assert advice in todo


@pytest.mark.parametrize(
    ("wins", "advice"),
    [
        (Interval(0.98, 0.95, 1.0), "harmless while the right text wins, as it does here"),
        (Interval(0.52, 0.48, 0.56), "train a matching model"),
        (Interval(0.5, NAN, NAN), "train a matching model"),
        (Interval(0.3, 0.25, 0.35), "The wrong text wins more often than not"),
    ],
)
def test_gaps_between_the_modalities(wins, advice):
    assert advice in gap_advice(wins)


@pytest.mark.parametrize(
    ("low", "high", "advice"),
    [
        (80.0, 90.0, "Most neighbours stay the same"),
        (45.0, 55.0, "about half of the neighbours differ"),
        (20.0, 30.0, "do not search or cluster with projected embeddings"),
        (6.0, 9.0, "do not search or cluster with projected embeddings"),
    ],
)
def test_projections(low, high, advice):
    assert advice in projection_advice(low, high, 7.7)


# -------------------------------------------------------------------------------------------- probes


@pytest.mark.parametrize(
    ("semantic", "gap", "claim", "advice"),
    [
        (
            40.0,
            Interval(30.0, 25.0, 35.0),
            "cannot be measured by the paper's rule",
            "captures little of what is drawn",
        ),
        (90.0, Interval(30.0, 25.0, 35.0), "are behind the semantic ones by 30.0 points", "are the wrong tool"),
        (90.0, Interval(16.0, 10.0, 22.0), "whether that is more than 15 is uncertain", "This is borderline"),
        (
            90.0,
            Interval(6.0, 2.0, 10.0),
            "by 6.0 points (2.0 to 10.0), less than the 15",
            "the fine detail is captured",
        ),
        (90.0, Interval(1.0, -2.0, 4.0), "are as good as the semantic ones as far as", "the fine detail is captured"),
        (90.0, Interval(-5.0, -8.0, -2.0), "are ahead of the semantic ones by 5.0 points (2.0 to 8.0)", "less so"),
    ],
)
def test_fine_grained_skills(semantic, gap, claim, advice):
    told, todo = fine_grained_claim(semantic, gap)
    assert claim in told
    assert advice in todo


@pytest.mark.parametrize(
    ("score", "above", "advice"),
    [
        (3.0, False, "contain nothing measurable about count"),
        (30.0, True, "this encoder is the bottleneck"),
        (80.0, True, "All skills can be read from these embeddings, even count."),
    ],
)
def test_the_weakest_skill(score, above, advice):
    assert advice in skills_advice("count", score, above)


@pytest.mark.parametrize(
    ("gain", "claim", "advice"),
    [
        (
            Interval(20.0, 15.0, 25.0),
            "Tokens hold more fine detail than pooled embeddings: +20.0",
            "extract with --tokens",
        ),
        (Interval(0.5, 0.1, 0.9), "Tokens hold more fine detail", "extract with --tokens"),
        (Interval(1.0, -2.0, 4.0), "Tokens add nothing measurable", "smaller and quicker"),
        (Interval(-9.0, -12.0, -6.0), "Tokens serve the fusion worse", "more to learn from the same images"),
    ],
)
def test_tokens(gain, claim, advice):
    told, todo = tokens_claim(gain)
    assert claim in told
    assert advice in todo


def test_no_function_here_depends_on_how_a_number_is_held():
    """Numbers of NumPy are written like those of Python."""
    gap = Gap(*(np.float64(number) for number in (20.0, 12.0, 28.0)), 0.0002)
    said = [wrong_image_claim("x", one, count, adds=True) for one, count in ((gap, np.int64(200)), (LARGE, 200))]
    assert said[0] == said[1]


# -------------------------------------------------------------------------------------------- leaks


@pytest.mark.parametrize(
    ("copies", "claim", "advice"),
    [
        (0, "None of the 20 test images is in the training or development pairs.", "Nothing to do."),
        (1, "1 of 20 test images is also in the training or development pairs (2 of 40 test pairs): all", "Split"),
        (20, "20 of 20 test images are also in the training or development pairs", "Split by image content"),
    ],
)
def test_same_images(copies, claim, advice):
    told, todo = same_image_claim(copies, 20, 2 * copies, 40)
    assert told.startswith(claim)
    assert todo.startswith(advice)


@pytest.mark.parametrize(
    ("same", "claim", "advice"),
    [
        (0, "None of the 40 test pairs is in the training", "Nothing to do."),
        (1, "1 of 40 test pairs is also in the training", "Remove them"),
        (40, "40 of 40 test pairs are also in the training", "Remove them"),
    ],
)
def test_same_pairs(same, claim, advice):
    told, todo = same_pair_claim(same, 40)
    assert told.startswith(claim)
    assert todo.startswith(advice)


NEAR = [
    (0, 1.0, "0 of 200 further test ", "Nothing to do."),
    (1, 0.6, "1 of 200 further test ", "No more than similarity explains"),
    (3, 0.02, "3 of 200 further test ", "No more than similarity explains"),
    (30, 0.0001, ": more than chance explains.", "Look at them"),
]


@pytest.mark.parametrize(("found", "p", "claim", "advice"), NEAR)
def test_near_copies(found, p, claim, advice):
    for told, todo in (near_image_claim(found, 200, 0.9, 1.0, p), near_text_claim(found, 200, 1.0, p)):
        assert claim in told
        assert todo.startswith(advice)
        assert ("chance explains" in told) == (p < 0.01)
        assert "1.0 expected" in told


@pytest.mark.parametrize(
    ("shared", "found", "usual", "leak", "claim", "advice"),
    [
        (0, 0.0, 4.0, False, "0 of 50 different test texts (0.0 %) are in", "Nothing to do."),
        (
            1,
            2.0,
            4.0,
            False,
            "1 of 50 different test texts (2.0 %) is in",
            "Texts recur no more than",
        ),
        (
            25,
            52.0,
            51.0,
            False,
            "a test image shares 52.0 % of its texts with",
            "Texts recur no more",
        ),
        (25, 52.0, 4.0, True, ": more than is usual in this set.", "More texts are shared with training than is usual"),
    ],
)
def test_same_texts(shared, found, usual, leak, claim, advice):
    told, todo = same_text_claim(shared, 50, found, usual, leak=leak)
    assert claim in told
    assert todo.startswith(advice)


@pytest.mark.parametrize(
    ("found", "claim", "advice"),
    [(0, "0 of 40 further test pairs have", "Nothing to do."), (1, "1 of 40 further test pairs has", "Look at them"),
     (9, "9 of 40 further test pairs have", "Look at them")],
)  # fmt: skip
def test_near_pairs(found, claim, advice):
    told, todo = near_pair_claim(found, 40)
    assert told.startswith(claim)
    assert todo.startswith(advice)


def test_conflicts():
    assert conflict_claim(0, 8) == (
        "No two pairs with the same image and text contradict each other.",
        "Nothing to do.",
    )
    told, todo = conflict_claim(2, 8)
    assert told == "2 of 8 pairs contradict another pair with the same image and text."
    assert todo.startswith("Decide which is right")
