"""Labels that are unlikely because they are wrong, and labels that are unlikely because the models are weak."""

import numpy as np
import pytest

from frevl.diagnosis.data_quality import label_probability
from frevl.diagnosis.data_quality.label_probability import draw_wrong_labels, judge_labels

N, CLASSES = 1_500, 12


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def planted(seed, strength, wrong, of_kind=False):
    """Labels drawn from what a calibrated model says, a share of them exchanged: for any, or within three kinds."""
    random = np.random.default_rng(seed)
    centre = random.integers(0, CLASSES, N)
    said = softmax(strength * np.eye(CLASSES)[centre] + 1.5 * random.standard_normal((N, CLASSES)))
    labels = (said.cumsum(axis=1) < random.random((N, 1))).sum(axis=1).clip(max=CLASSES - 1)
    exchanged = random.random(N) < wrong
    step = random.integers(1, 4, N)
    other = 4 * (labels // 4) + (labels + step) % 4 if of_kind else (labels + random.integers(1, CLASSES, N)) % CLASSES
    return np.where(exchanged, other, labels), said, exchanged


@pytest.mark.parametrize("strength", [3.5, 6.0])
def test_labels_that_weak_models_contradict_are_not_called_wrong(strength):
    """The models are right on 55 and 90 % of clean lines; counting contradictions calls many of these wrong."""
    labels, said, _ = planted(0, strength, 0.0)
    found = judge_labels(labels, said, np.arange(N), seed=0).mixture
    assert (found.right < 0.5).mean() < 0.01
    assert found.ci95[0] <= 0.005
    assert (said.argmax(axis=1) != labels).mean() > 0.08


@pytest.mark.parametrize(("wrong", "of_kind"), [(0.1, False), (0.3, False), (0.1, True)])
def test_exchanged_labels_are_found_and_their_share_is_told(wrong, of_kind):
    labels, said, exchanged = planted(1, 8.0, wrong, of_kind)
    found = judge_labels(labels, said, np.arange(N), seed=0).mixture
    flagged = found.right < 0.5
    assert (flagged & exchanged).sum() / flagged.sum() > 0.8
    assert (flagged & exchanged).sum() / exchanged.sum() > 0.8
    assert found.ci95[0] <= exchanged.mean() <= found.ci95[1]
    assert found.right[~flagged].min() >= 0.5


def test_drawn_labels_are_wrong_and_of_the_kind_that_occurs(monkeypatch):
    labels, said, _ = planted(2, 12.0, 0.2, of_kind=True)
    rows, drawn = draw_wrong_labels(labels, said, seed=3)
    assert (drawn != labels[rows]).all()
    assert len(rows) == 2 * N
    assert (drawn // 4 == labels[rows] // 4).mean() > 0.9
    again = draw_wrong_labels(labels, said, seed=3)
    assert all((one == other).all() for one, other in zip((rows, drawn), again, strict=True))
    monkeypatch.setattr(label_probability, "_MOST_CLASSES", 4)  # as where there are thousands
    rows, drawn = draw_wrong_labels(labels, said, seed=3)
    assert (drawn != labels[rows]).all()
    assert (drawn // 4 == labels[rows] // 4).mean() < 0.5


def test_of_two_classes_the_other_is_wrong():
    labels = np.array([0, 1] * 100)
    said = np.where(np.eye(2, dtype=bool)[labels], 0.97, 0.03).astype(np.float32)
    said[:2] = said[1::-1]
    rows, drawn = draw_wrong_labels(labels, said, seed=0)
    assert sorted(rows.tolist()) == sorted([*range(200), *range(200)])
    assert (drawn == 1 - labels[rows]).all()
    found = judge_labels(labels, said, np.arange(200), seed=0).mixture
    assert np.flatnonzero(found.right < 0.5).tolist() == [0, 1]
