"""Copies, conflicts and wrong labels in the data, by hand and planted."""

import numpy as np
import pytest

from frevl.diagnosis.data_quality.conflicting_labels import conflict_finding
from frevl.diagnosis.data_quality.image_leaks import leak_findings, likeness_threshold, nearest_others
from frevl.diagnosis.data_quality.label_rule import find_wrong_labels
from frevl.diagnosis.data_quality.near_duplicates import normal_text
from frevl.diagnosis.splits import Splits, read_splits
from planted import pairs_of, plant, xor

# ------------------------------------------------------------------------------------ leaks, labels


def test_texts_are_compared_without_case_and_punctuation():
    assert normal_text("  What's THIS? ") == normal_text("what s this")


def test_the_nearest_other_by_hand():
    pool = np.array([[1.0, 0], [0.6, 0.8], [0, 1]], np.float32)
    cosines, rows = nearest_others(pool, pool, not_these=[np.array([0]), np.array([1]), np.array([2])])
    assert cosines.tolist() == pytest.approx([0.6, 0.8, 0.8])
    assert rows.tolist() == [1, 2, 1]


def test_a_threshold_is_only_taken_where_ordinary_images_do_not_reach_it():
    cosines = np.linspace(0.0, 0.93, 1000)
    chosen = likeness_threshold(cosines)
    assert (chosen.threshold, chosen.rate) == (0.95, 0.0)
    film = likeness_threshold(np.full(10, 0.9999))
    assert film.threshold is None
    assert film.rate == 1.0


def test_all_planted_copies_across_splits_are_found_and_nothing_else(tmp_path):
    copies = {f"copy{k}.png": f"{k}.png" for k in range(7)}
    near = {f"near{k}.png": f"{k}.png" for k in range(20, 31)}
    world = plant(tmp_path / "store", copies=copies, near=near)
    own = [f"{k}.png" for k in range(300)]
    train = world.pairs(own[:200], xor)
    test = world.pairs([*own[200:], *copies, *near], xor, seed=1)
    # One pair of a copied image asks what was asked of the original, in other letters.
    asked = train.texts[train.images.index("3.png")]
    row = test.images.index("copy3.png")
    test.texts[row] = asked.upper() if asked.upper() in world.texts else asked
    splits = read_splits(world.store, train, test, task="classification", dev=None, encoder=None, seed=0)
    found = {finding.name: finding for finding in leak_findings(splits)}
    assert {row["test image"] for row in found["same-image"].table} == set(copies)
    assert found["same-image"].claim.startswith("7 of 118 test images")
    assert {row["test image"] for row in found["near-same-image"].table} == set(near)
    assert all(row["training image"] == near[row["test image"]] for row in found["near-same-image"].table)
    assert any(row["image"] == "copy3.png" for row in found["same-pair"].table)
    assert "nothing to do" in found["same-text"].advice  # questions repeat in training too


def test_conflicts_are_pairs_of_one_image_and_text_without_a_common_answer(tmp_path):
    world = plant(tmp_path / "store", images=30, copies={"copy.png": "0.png"})
    question = next(iter(world.texts))
    train = pairs_of(
        ("0.png", question, "yes"), ("1.png", question, "yes"), ("2.png", question, "no"), ("3.png", question, "no")
    )
    test = pairs_of(("copy.png", question, "no"), ("5.png", question, ["no", "yes"]), ("5.png", question, "no"))
    splits = Splits(world.store, "classification", train, train.select([1]), test, None, 0)
    finding = conflict_finding(splits)
    assert finding.table == [{"image": "0.png", "text": question, "pairs": 2, "targets": "no; yes"}]
    assert finding.value == pytest.approx(100 * 2 / 8)
    assert finding.claim.startswith("2 of 8 pairs contradict")


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_planted_label_errors_are_found_with_stated_precision(share):
    """By a model that is itself wrong in 1 of 100 cases, those errors being among what is named."""
    random = np.random.default_rng(12)
    n, classes = 2000, 3
    truth = random.integers(0, classes, n)
    model = np.where(random.random(n) < 0.99, truth, (truth + 1) % classes)
    sure = random.uniform(1 - 1.5 * share, 0.99, n)
    probabilities = np.full((n, classes), 0.0) + ((1 - sure) / (classes - 1))[:, None]
    probabilities[np.arange(n), model] = sure
    wrong = random.random(n) < share
    labels = np.where(wrong, (truth + random.integers(1, classes, n)) % classes, truth)
    said = probabilities.astype(np.float32)
    found = find_wrong_labels(labels, [said, said], np.arange(n), seed=0).rows
    precision, recall = wrong[found].mean(), wrong[found].sum() / wrong.sum()
    assert precision > share / (share + 0.01) - 0.03  # 0.80 and 0.92
    assert recall > 0.85
