"""The rule for wrong labels on its own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality import label_errors
from frevl.diagnosis.data_quality.label_rule import find_wrong_labels, least_accuracy, model_weights, stands_out


def test_the_largest_odds_are_wrong_rather_than_what_the_models_cannot_do():
    """Two models of unequal sharpness, and lines that are hard to both: a wrong label has larger odds against it."""
    precisions, recalls = [], []
    for seed in range(3):
        random = np.random.default_rng(seed)
        truth, hard = random.integers(0, 12, 600), 2.1 * random.random((600, 1))
        logits = 3.5 * np.eye(12)[truth] + hard * random.standard_normal((600, 12))
        said = [
            softmax(logits + 0.5 * random.standard_normal(logits.shape)),
            softmax(0.6 * (logits + 0.8 * random.standard_normal(logits.shape))),
        ]
        labels = truth.copy()
        labels[:60] = (truth[:60] + random.integers(1, 12, 60)) % 12
        found = find_wrong_labels(labels, said, weights=np.array([0.5, 0.5], np.float32)).rows
        precisions.append((found < 60).mean())
        recalls.append((found < 60).sum() / 60)
    assert np.mean(precisions) > 0.73  # by the probability of the label 0.61
    assert np.mean(recalls) > 0.73  # 0.62


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def test_of_a_model_that_knows_and_one_that_guesses_the_first_counts():
    labels = np.arange(300) % 3
    knows = np.where(np.eye(3, dtype=bool)[labels], 0.9, 0.05).astype(np.float32)
    guesses = np.random.default_rng(0).dirichlet(np.ones(3), 300).astype(np.float32)
    assert model_weights(labels, [knows, guesses]).tolist() == [1, 0]
    assert model_weights(labels, [guesses, knows]).tolist() == [0, 1]
    halves = [np.where(np.arange(300)[:, None] % 2 == part, knows, 1 / 3).astype(np.float32) for part in (0, 1)]
    assert model_weights(labels, halves).tolist() == [0.5, 0.5]  # each knows what the other does not


def test_the_likeliest_wrong_label_is_first_and_classes_that_are_no_label_do_not_count():
    """20 lines each of classes 0 and 1, two of each contradicted; class 2 is no line's label."""
    labels = np.repeat([0, 1], 20)
    said = np.where(np.eye(3, dtype=bool)[labels], 0.9, 0.05).astype(np.float32)
    said[[3, 4]], said[[30, 31]] = [0.08, 0.72, 0.2], [0.76, 0.04, 0.2]
    said[7] = [0.1, 0.1, 0.8]  # says only that it is a class that does not occur
    found = find_wrong_labels(labels, [said, said])
    assert found.rows.tolist() == [30, 31, 3, 4]
    assert found.likelier[[30, 3]].tolist() == [0, 1]
    assert found.beliefs[[30, 3, 7]].tolist() == pytest.approx([0.05, 0.1, 0.5])
    assert found.likeliest[[30, 3]].tolist() == pytest.approx([0.95, 0.9])
    only = np.arange(40) < 20
    assert find_wrong_labels(labels, [said, said], candidates=only).rows.tolist() == [3, 4]


def test_a_cautious_count_names_fewer_clean_labels():
    """On lines that are hard to both models, without and with wrong labels among them."""
    random = np.random.default_rng(0)
    counts = {True: [0, 0, 0], False: [0, 0, 0]}
    for planted in (0, 60):
        truth, hard = random.integers(0, 12, 600), 2.1 * random.random((600, 1))
        logits = 3.5 * np.eye(12)[truth] + hard * random.standard_normal((600, 12))
        said = [softmax(logits + noise * random.standard_normal(logits.shape)) for noise in (0.5, 0.8)]
        labels = truth.copy()
        labels[:planted] = (truth[:planted] + random.integers(1, 12, planted)) % 12
        for cautious, count in counts.items():
            rows = find_wrong_labels(labels, said, cautious=cautious).rows
            count[0] += len(rows) if not planted else 0
            count[1] += int((rows < planted).sum())
            count[2] += int((rows >= planted).sum()) if planted else 0
    assert counts[True][0] < counts[False][0]  # of the clean labels
    assert counts[True][2] < counts[False][2]  # of the clean ones beside 60 wrong ones
    assert 0.4 * counts[False][1] < counts[True][1] < counts[False][1]


def test_what_no_model_or_only_one_contradicts_is_not_wrong():
    labels = np.repeat([0, 1], 20)
    said = np.where(np.eye(2, dtype=bool)[labels], 0.9, 0.1).astype(np.float32)
    assert not len(find_wrong_labels(labels, [said, said]).rows)
    other = said.copy()
    other[3] = other[3, ::-1]
    assert not len(find_wrong_labels(labels, [said, other]).rows)
    assert not len(find_wrong_labels(labels[:20], [said[:20], other[:20]]).rows)  # one class only
    assert not len(find_wrong_labels(labels[:0], [said[:0], other[:0]]).rows)


def test_when_models_may_contradict():
    assert least_accuracy(0.5) == pytest.approx(0.7)
    assert stands_out(0.05, [0.95, 0.9])
    assert not stands_out(0.04, [0.95, 0.9])  # less than half of what the weaker one gets wrong
    assert not stands_out(0.2, [0.95, 0.89])


def test_a_class_unknown_to_a_model_is_no_evidence_in_a_diagnosis(monkeypatch):
    """All pairs of class `rare` lie in one part: its models give it nothing, as they never saw it."""
    labels = ["a"] * 20 + ["b"] * 20 + ["rare"] * 6
    images, places = [f"{row}.png" for row in range(46)], [f"p:{row}" for row in range(46)]
    pairs = Pairs(images, ["?"] * 46, list(labels), [{}] * 46, places)
    classes = ["a", "b", "rare"]
    pairs.targets[3] = "b"
    said = np.where(np.array(classes) == np.array(labels)[:, None], 0.9, 0.05).astype(np.float32)
    said[40:] = [0.9, 0.1, 0.0]
    monkeypatch.setattr(label_errors, "_probabilities", lambda scorer, pairs, _: said[scorer.rows(pairs)])
    monkeypatch.setattr(label_errors, "seen_by", lambda _, pairs, __: pairs)
    rows = lambda pairs: [int(place[2:]) for place in pairs.places]  # noqa: E731
    run = SimpleNamespace(task="classification", labels=["a", "b"])
    scorers = [SimpleNamespace(run=run, rows=rows)] * 2
    splits = SimpleNamespace(task="classification", seed=0, train=pairs)
    found = label_errors._contradicted([label_errors._Part(pairs, scorers)], classes, splits, [None, None])
    assert found.looked_at == 40
    assert [(row["place"], row["label"], row["likelier"]) for row in found.rows] == [("p:3", "b", "a")]
