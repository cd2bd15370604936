"""The rule for wrong labels on its own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality import label_errors
from frevl.diagnosis.data_quality.label_rule import (
    find_wrong_labels,
    least_accuracy,
    missed,
    model_weights,
    most_missed,
    stands_out,
)


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
        found = find_wrong_labels(labels, said, np.arange(600), seed=0).rows
        precisions.append((found < 60).mean())
        recalls.append((found < 60).sum() / 60)
    assert np.mean(precisions) > 0.78  # counting contradictions 0.73
    assert np.mean(recalls) > 0.65


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


def test_the_likeliest_wrong_label_is_first():
    """200 lines of each of two classes; the models doubt every tenth label, the later ones more."""
    labels, wrong = np.repeat([0, 1], 200), np.arange(0, 400, 10)
    for_label = 4 + 0.1 * np.random.default_rng(0).standard_normal(400)
    for_label[wrong] = np.linspace(-3.8, -4.2, 40)
    right = 1 / (1 + np.exp(-for_label))
    said = np.where(np.eye(2, dtype=bool)[labels], right[:, None], 1 - right[:, None]).astype(np.float32)
    found = find_wrong_labels(labels, [said, said], np.arange(400), seed=0)
    assert found.rows.tolist() == wrong[::-1][: len(found.rows)].tolist()
    assert len(found.rows) >= 30
    assert found.likelier[found.rows].tolist() == (1 - labels[found.rows]).tolist()
    assert found.beliefs.tolist() == pytest.approx(right.tolist(), abs=1e-6)
    assert found.likeliest.tolist() == pytest.approx(np.maximum(right, 1 - right).tolist(), abs=1e-6)
    assert found.ci95[0] <= 0.1 <= found.ci95[1]


def test_pairs_known_to_be_wrong_show_how_a_wrong_match_scores():
    """Of 400 labelled matches 40 are none; 400 drawn pairs are none, 20 of which look like matches."""
    random = np.random.default_rng(0)
    matches = np.concatenate([np.arange(400) >= 40, np.arange(400) < 20])
    match = 1 / (1 + np.exp(-(np.where(matches, 4.0, -4.0) + random.standard_normal(800))))
    said = np.stack([1 - match, match], axis=1).astype(np.float32)
    labels = np.repeat([1, 0], 400)
    found = find_wrong_labels(labels, [said, said], np.arange(800), seed=0, judged=np.arange(400))
    assert (found.rows < 40).all()
    assert len(found.rows) >= 30
    assert (found.likelier[found.rows] == 0).all()
    assert found.ci95[0] <= 0.1 <= found.ci95[1]


@pytest.mark.parametrize(("strength", "least", "most"), [(2.0, 0.05, 0.6), (2.5, 0.3, 0.85), (5.0, 0.9, 1.0)])
def test_how_many_wrong_labels_are_found_is_known(strength, least, most):
    """A tenth of 1,500 labels is exchanged; models are right on 69, 83 and nearly 100 % of the others."""
    told, true = [], []
    for seed in range(8):
        random = np.random.default_rng(seed)
        truth = random.integers(0, 8, 1500)
        said = softmax(strength * np.eye(8)[truth] + random.standard_normal((1500, 8)))
        labels = truth.copy()
        labels[:150] = (truth[:150] + random.integers(1, 8, 150)) % 8
        found = find_wrong_labels(labels, [said, said], np.arange(1500), seed=0)
        told.append(found.found_share)
        true.append((found.rows < 150).sum() / 150)
    assert np.mean(told) == pytest.approx(np.mean(true), abs=0.06)
    assert least < np.mean(true) < most


def test_missed_labels_in_words():
    assert missed(0.08, 0.97, (0.012, 0.0544)) == (
        "up to 97 % of the wrong labels are missed (of labels made wrong for comparison, 8 % are found): "
        "1.2 to 5.4 % of all labels may be wrong, not counting labels exchanged for similar classes, most of which are "
        "missed"
    )
    assert missed(0.64, 0.4, (0, 0.1)).startswith("up to 40 % of")
    assert missed(0.65, 0.4, (0, 0.1)) == missed(1.0, 0.0, (0, 0.1)) == ""


def test_the_limit_of_missed_labels_is_that_of_wilson():
    """Of 10 wrong labels 6 are missed on average: the limit lies 1.645 of its own standard errors above that."""
    limit = most_missed(0.4, 0.0, 10)
    assert limit == pytest.approx(0.8058, abs=1e-4)
    assert limit - 0.6 == pytest.approx(1.645 * (limit * (1 - limit) / 10) ** 0.5)
    assert most_missed(0.4, 0.0, 1e12) == pytest.approx(0.6, abs=1e-5)
    # An error of 0.1 in the share, of which the variance is 0.24, is that of 24 labels: 1 / (1 / 10 + 1 / 24).
    assert most_missed(0.4, 0.1, 10) == pytest.approx(most_missed(0.4, 0.0, 120 / 17))
    assert most_missed(0.4, 0.0, 1e-9) == pytest.approx(1.0, abs=1e-6)
    assert most_missed(0.4, 0.0, 0) == most_missed(0.0, 0.0, 10) == 1.0
    assert most_missed(1.0, 0.0, 10) == 0.0


@pytest.mark.slow
def test_hardly_ever_more_wrong_labels_are_missed_than_is_said():
    """A tenth of 1,500 labels is exchanged; without sampling errors, more than is said were missed in 20 of 48."""
    within = []
    for seed in range(100, 140):
        random = np.random.default_rng(seed)
        truth = random.integers(0, 8, 1500)
        said = softmax(1.7 * np.eye(8)[truth] + random.standard_normal((1500, 8)))
        labels = truth.copy()
        labels[:150] = (truth[:150] + random.integers(1, 8, 150)) % 8
        found = find_wrong_labels(labels, [said, said], np.arange(1500), seed=seed)
        within.append(1 - (found.rows < 150).sum() / 150 <= found.most_missed)
    assert np.mean(within) >= 0.95


def test_the_share_that_is_found_is_that_of_the_wrong_labels_of_all_parts():
    """Clean test labels, of which none is called wrong, say nothing about how many wrong ones are found."""
    part = label_errors._CalledWrong
    test, train = part(100, [], 0.0, 0.01, 0.0, 0.0), part(900, [], 0.1, 0.01, 0.7, 0.02)
    assert label_errors._together([test, train]).found_share == pytest.approx(0.7)
    assert label_errors._together([part(100, [], 0.3, 0.01, 0.2, 0.04), train]).found_share == pytest.approx(0.575)
    assert label_errors._together([part(100, [], 0.3, 0.01, 0.2, 0.04), train]).found_error == pytest.approx(
        0.018028, abs=1e-6
    )
    assert (
        label_errors._together([part(300, [], 0.0, 0.0, 0.0, 0.0), part(100, [], 0.0, 0.0, 0.4, 0.0)]).found_share
        == 0.1
    )
    assert label_errors._together([]).found_share == 0.0


def test_what_models_only_doubt_is_not_wrong():
    labels = np.repeat([0, 1], 200)
    said = np.where(np.eye(2, dtype=bool)[labels], 0.9, 0.1).astype(np.float32)
    assert not len(find_wrong_labels(labels, [said, said], np.arange(400), seed=0).rows)
    said[3] = [0.51, 0.49]  # the least sure of all, but on the side of the label
    assert not len(find_wrong_labels(labels, [said, said], np.arange(400), seed=0).rows)


def test_when_models_may_contradict():
    assert least_accuracy(0.5) == pytest.approx(0.7)
    assert stands_out(0.05, [0.95, 0.9])
    assert not stands_out(0.04, [0.95, 0.9])  # less than half of what the weaker one gets wrong
    assert not stands_out(0.2, [0.95, 0.89])


def test_a_class_unknown_to_a_model_is_no_evidence_in_a_diagnosis(monkeypatch):
    """All pairs of class `rare` lie in one part: its models give it nothing, as they never saw it."""
    labels = ["a"] * 100 + ["b"] * 100 + ["rare"] * 6
    images, places = [f"{row}.png" for row in range(206)], [f"p:{row}" for row in range(206)]
    pairs = Pairs(images, ["?"] * 206, list(labels), [{}] * 206, places)
    classes = ["a", "b", "rare"]
    pairs.targets[3] = "b"
    said = np.where(np.array(classes) == np.array(labels)[:, None], 0.9, 0.05).astype(np.float32)
    said[200:] = [0.9, 0.1, 0.0]
    monkeypatch.setattr(label_errors, "_probabilities", lambda scorer, pairs, _: said[scorer.rows(pairs)])
    monkeypatch.setattr(label_errors, "seen_by", lambda _, pairs, __: pairs)
    rows = lambda pairs: [int(place[2:]) for place in pairs.places]  # noqa: E731
    run = SimpleNamespace(task="classification", labels=["a", "b"])
    scorers = [SimpleNamespace(run=run, rows=rows)] * 2
    splits = SimpleNamespace(task="classification", seed=0, train=pairs)
    found = label_errors._called_wrong([label_errors._Part(pairs, scorers)], classes, splits, [None, None])
    assert found.looked_at == 200
    assert [(row["place"], row["label"], row["likelier"]) for row in found.rows] == [("p:3", "b", "a")]
