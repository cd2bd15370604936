"""Which groups of pairs are choice sets, and what becomes of the others."""

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.evaluation.benchmarks.choice_sets import choice_set_scores


def scored(rows):
    """Score ``(group, image, text, right, score)`` rows; groups of two images get two more entries."""
    extras = [dict(zip(("group", "caption", "picture"), (row[0], *row[5:]), strict=False)) for row in rows]
    pairs = Pairs(
        [row[1] for row in rows], [row[2] for row in rows], [None] * len(rows), extras, ["made:1"] * len(rows)
    )
    truth, scores = np.array([row[3] for row in rows]), np.array([row[4] for row in rows], float)
    measured, notes = choice_set_scores(scores, truth, pairs)
    return {name: 100 * measure.interval().value for name, measure in measured.items()}, notes


def texts(group, right, scores):
    return [(group, f"i{group}", f"{group} {n}", n in right, score) for n, score in enumerate(scores)]


def crossed(group, block, own=((0, 0), (1, 1)), captions=(0, 1)):
    return [
        (group, f"{group} {m}", f"{group} {c}", (c, m) in own, block[c][m], captions[c], m)
        for c in (0, 1)
        for m in (0, 1)
    ]


def test_groups_without_exactly_one_right_text_are_left_out():
    rows = [*texts(0, {0}, [2, 1]), *texts(1, {1}, [2, 1]), *texts(2, set(), [2, 1]), *texts(3, {0, 1}, [2, 2, 1])]
    found, (note,) = scored(rows)
    assert found == {"choice_accuracy": 50}, "0 is right, 1 is wrong, 2 and 3 cannot be judged"
    assert "only 2 of 4 groups are choice sets" in note


def test_sets_of_different_sizes_are_scored():
    assert scored([*texts(0, {0}, [2, 1]), *texts(1, {2}, [0, 1, 2, 1])]) == ({"choice_accuracy": 100}, [])


def test_groups_that_are_no_sets_give_no_scores():
    assert scored([*texts(0, {0}, [2]), *texts(1, {0}, [1])]) == ({}, []), "a key that numbers the pairs"
    found, (note,) = scored([*texts(0, {0}, [2, 1]), *texts(1, {0}, [2]), *texts(2, {0}, [2])])
    assert found == {}
    assert note.startswith("No choice_accuracy: only 1 of 3 groups")


def test_captions_may_belong_to_the_other_picture():
    found, notes = scored(crossed(0, [[0, 2], [2, 0]], own={(0, 1), (1, 0)}))
    assert (found, notes) == ({"text_score": 100, "image_score": 100, "group_score": 100}, [])


@pytest.mark.parametrize(
    "odd",
    [
        crossed(1, [[0, 2], [2, 0]])[:3],
        crossed(1, [[0, 2], [2, 0]], own={(0, 0), (0, 1)}),
        crossed(1, [[0, 2], [2, 0]], captions=(0, 0)),
        [(*row[:5], n, row[6]) for n, row in enumerate(crossed(1, [[0, 2], [2, 0]]))],
    ],
    ids=["a row is missing", "one caption for both", "captions not numbered", "four captions"],
)
def test_incomplete_sets_of_two_images_are_left_out(odd):
    found, (note,) = scored([*crossed(0, [[2, 0], [0, 2]]), *odd])
    assert found == {"text_score": 100, "image_score": 100, "group_score": 100}
    assert "only 1 of 2 groups" in note
