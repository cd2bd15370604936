"""Wrong lines are drawn without any that might be right."""

import torch

from frevl.diagnosis.curation.evidence import draw_wrong
from frevl.runs.batches import EmbeddedPairs


def lines_of(image, text):
    items = torch.zeros(max(image) + 1, 1, 2), torch.ones(max(image) + 1, 1, dtype=torch.bool)
    texts = torch.zeros(max(text) + 1, 1, 2), torch.ones(max(text) + 1, 1, dtype=torch.bool)
    return EmbeddedPairs(*items, *texts, torch.tensor(image), torch.tensor(text))


def drawn(pairs, groups, *, meaning=None, near=float("inf"), right=None):
    right = torch.ones(len(pairs), dtype=torch.bool) if right is None else right
    rows, columns = draw_wrong(pairs, meaning, groups, right, torch.arange(len(pairs)), near, 0)
    return {
        (int(pairs.image_rows[row]), int(pairs.text_rows[column])) for row, column in zip(rows, columns, strict=True)
    }


def test_no_text_of_the_image_or_its_group_and_none_that_is_given_as_wrong():
    # Images 0 and 1 are one group; text 1 stands with images 0 and 2; the last line is given as wrong.
    pairs = lines_of([0, 0, 1, 2, 3, 3], [0, 1, 2, 1, 3, 4])
    groups = torch.tensor([0, 0, 0, 1, 2, 2])
    found = drawn(pairs, groups, right=torch.tensor([True] * 5 + [False]))
    assert found <= {(0, 3), (1, 1), (1, 3), (2, 0), (2, 2), (2, 3), (3, 0), (3, 1), (3, 2)}
    assert len(found) > 4


def test_no_text_that_is_near_to_one_of_the_image():
    pairs, groups = lines_of([0, 0, 1, 2], [0, 1, 2, 3]), torch.tensor([0, 0, 1, 2])
    meaning = torch.eye(4)
    meaning[2] = torch.tensor([0.0, 0.9, 0.436, 0.0])  # near to text 1, the second text of image 0
    found = drawn(pairs, groups, meaning=meaning, near=0.8)
    assert (0, 2) not in found
    assert (1, 1) not in found
    assert {(0, 3), (1, 0)} & found


def test_nothing_is_drawn_where_every_text_is_right():
    pairs = lines_of([0, 1], [0, 0])
    assert drawn(pairs, torch.tensor([0, 1])) == set()
