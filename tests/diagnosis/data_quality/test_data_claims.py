"""Claims and advice on labels and leaks over all sizes: none may contradict its own number."""

import pytest

from frevl.diagnosis.data_quality.conflicting_labels import conflict_claim
from frevl.diagnosis.data_quality.image_leaks import near_image_claim, same_image_claim, same_pair_claim
from frevl.diagnosis.data_quality.label_errors import label_claim
from frevl.diagnosis.data_quality.text_leaks import near_pair_claim, near_text_claim, same_text_claim


@pytest.mark.parametrize(
    ("named", "found", "accuracies", "start"),
    [
        (0, 0.0, (0.95, 0.94), "None of the 1,000 labels examined is likely wrong according to mlp and kernel."),
        (
            0,
            0.0,
            (0.95, 0.89),
            "None of the 1,000 labels examined is called wrong, but the models may miss wrong ones: up to 5.4 % of the "
            "labels may be wrong, not counting labels exchanged for similar classes, most of which are missed "
            "(accuracy on ",
        ),
        (
            17,
            0.08,
            (0.68, 0.66),
            "17 of 1,000 labels are called wrong (1.7 %), some of them may be model errors, and up to 95 % of the "
            "wrong labels are missed (of labels made wrong for comparison, 8 % are found): 1.2 to 5.4 % of all labels "
            "may be wrong, not counting labels exchanged for similar classes, most of which are missed. Accuracy on ",
        ),
        (
            330,
            0.9,
            (0.68, 0.66),
            "330 of 1,000 labels are called wrong (33.0 %), and some of them may be model errors. Acc",
        ),
        (40, 0.9, (0.95, 0.94), "40 of 1,000 labels are likely wrong (4.0 %), as mlp and kernel, which were not"),
        (
            40,
            0.6,
            (0.95, 0.94),
            "40 of 1,000 labels are likely wrong (4.0 %), as mlp and kernel, which were not trained on these pairs, "
            "together favour another answer, and up to 43 % of the wrong labels are missed (of ",
        ),
        (1, 0.9, (0.95, 0.94), "1 of 1,000 labels is called wrong (0.1 %), and"),
        (20, 0.9, (0.95, 0.94), "20 of 1,000 labels are called wrong"),  # less than half of the second's errors
        (40, 0.9, (0.95, 0.89), "40 of 1,000 labels are called wrong"),  # one of them is not right often enough
    ],
)
def test_label_errors(named, found, accuracies, start):
    measured = dict(zip(("mlp", "kernel"), accuracies, strict=True))
    claim, advice = label_claim(named, 1000, measured, ci95=(0.012, 0.054), found_share=found, most=1.03 - found)
    assert claim.startswith(start)
    if named == 0:
        assert advice == "Nothing to do." if "miss" not in claim else "Look at a hundred labels" in advice
    elif "called wrong" in claim:
        assert "ccuracy on unseen pairs: mlp " in claim
        assert "before changing anything" in advice
        assert "likely wrong" not in claim
    else:
        assert "correct them rather than just deleting them" in advice


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
