"""Skills, exchanged images, learning curves, calibration and abstention, by hand and against a planted truth."""

import numpy as np
import pytest

from frevl.diagnosis.performance.learning_curve import Law, fit_law, law_interval
from frevl.diagnosis.performance.modality_use import another_of_class, exchange
from frevl.diagnosis.performance.selective_prediction import (
    abstention_finding,
    calibration_finding,
    reliability,
    risk_coverage,
    threshold_for,
)
from frevl.diagnosis.performance.skills import skills_of, slices_of
from planted import pairs_of, predictions

# ------------------------------------------------------------------------------------------ skills


@pytest.mark.parametrize(
    ("text", "skills"),
    [
        ("How many chairs are there?", ["count"]),
        ("what color is the chair left of the table?", ["colour", "spatial"]),
        ("what is left of the red chair?", ["spatial", "object"]),
        ("is the square red?", ["colour", "yes/no"]),
        ("Are there two dogs?", ["count", "yes/no"]),
        ("what does the sign say?", ["reading"]),
        ("what is the table made of?", ["material"]),
        ("which is the largest object?", ["size"]),
        ("who holds the ball?", ["object"]),
        ("where is the lamp?", ["spatial"]),
        ("a man sleeps", []),
        ("two men on the left in a big green car", ["count", "colour", "spatial", "size"]),
        ("A wooden bench.", ["material"]),
        ("Isn't it tall?", ["size", "yes/no"]),
        ("why?", []),
    ],
)
def test_skills_by_rules(text, skills):
    assert skills_of(text) == skills


def test_slices_are_rules_and_the_users_keys():
    extras = [{"kind": "a", "id": 0, "cluster": "x"}, {"kind": "b", "id": 1}, {"kind": "a", "id": 2, "list": [1]}]
    pairs = pairs_of(("1", "is it red?", "yes"), ("2", "how many?", "2"), ("3", "is it big?", "no"), extras=extras)
    slices = slices_of(pairs)
    assert {key: {value: rows.tolist() for value, rows in groups.items()} for key, groups in slices.items()} == {
        "text": {"colour": [0], "count": [1], "size": [2], "yes/no": [0, 2]},
        "kind": {"a": [0, 2], "b": [1]},
        "id": {"0": [0], "1": [1], "2": [2]},
    }


# -------------------------------------------------------------------------------------- exchanging


def test_an_exchange_keeps_every_item_and_moves_nearly_all():
    items = [f"{number}.png" for number in range(53)]
    dealt = exchange(items, 1)
    assert sorted(dealt) == sorted(items)
    assert all(a != b for a, b in zip(items, dealt, strict=True))
    assert exchange(["same"] * 5, 0) == ["same"] * 5


def test_an_image_of_the_same_class_is_another_image_of_it():
    pairs = pairs_of(("1", "q", "a"), ("2", "q", "a"), ("3", "q", "b"), ("4", "q", "a"))
    images, rows = another_of_class(pairs, 0)
    assert rows.tolist() == [0, 1, 3]  # b has no other image
    for row in rows:
        assert images[row] in {"1", "2", "4"} - {pairs.images[row]}
    assert images[2] == "3"


# -------------------------------------------------------------------------------------------- curve


def test_the_law_is_found_where_it_holds_exactly():
    sizes = np.array([100.0, 200, 400, 800, 1600])
    law = fit_law(sizes, 0.1 + 2.0 * sizes**-0.5)
    assert law.exponent == pytest.approx(0.5)
    assert law.floor == pytest.approx(0.1)
    assert law.factor == pytest.approx(2.0)
    assert law.at(10_000) == pytest.approx(0.12)  # 0.1 + 2 / 100


def test_a_flat_curve_promises_nothing_and_no_error_falls_below_zero():
    sizes = np.array([100.0, 200, 400, 800, 1600])
    assert fit_law(sizes, np.full(5, 0.4)) == Law(0.4, 0.0, 1.0)
    rising = fit_law(sizes, np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert rising.factor == 0
    steep = fit_law(sizes, 50 / sizes - 0.02)  # would cross zero at 2,500 pairs
    assert steep.floor == 0
    assert 0 < steep.at(1e6) < 0.01


@pytest.mark.slow
def test_the_interval_of_the_law_holds_the_truth_and_narrows_with_the_test():
    random = np.random.default_rng(5)
    sizes = np.array([100.0, 200, 400, 800, 1600])
    truth = 0.1 + 2.0 * sizes**-0.5
    held, widths = 0, []
    for n in (400, 4000):
        for draw in range(10):
            ease = random.random(n)  # a pair that a small model can do, a larger one can too
            hits = (ease[None] > truth[:, None]).astype(float)
            low, high = law_interval(sizes, hits, [str(k) for k in range(n)], 16_000, draw)
            held += low <= 0.1 + 2.0 * 16_000**-0.5 <= high
            widths.append(high - low)
    assert held >= 17
    assert np.mean(widths[10:]) < 0.6 * np.mean(widths[:10])


def test_reliability_by_hand():
    rows = reliability(np.array([0.1, 0.2, 0.9, 1.0]), np.array([0.0, 1, 1, 1]), bins=2)
    assert [(row["pairs"], row["right %"]) for row in rows] == [(2, 50.0), (2, 100.0)]
    assert rows[0]["confidence %"] == pytest.approx(15)
    assert rows[1]["bin"] == "50 to 100 %"


def test_planted_overconfidence_is_found_with_its_size():
    random = np.random.default_rng(0)
    n = 1500
    right = random.uniform(0.5, 0.8, n)
    hits = (random.random(n) < right).astype(float)
    clusters = [str(k // 3) for k in range(n)]
    honest = calibration_finding("the fusion (x)", predictions(right, hits), clusters)
    assert "as calibrated as can be measured" in honest.claim
    sure = calibration_finding("the fusion (x)", predictions(right + 0.15, hits, raw=np.ones(n)), clusters)
    assert "over-confident by" in sure.claim
    assert sure.value == pytest.approx(15, abs=3)
    before = f"{100 * (1 - hits.mean()):.1f}"  # always sure: both are the share of wrong answers
    assert sure.claim.endswith(f"({before} % before the temperature, over-confident by {before} points).")
    shy = calibration_finding("the fusion (x)", predictions(right - 0.15, hits), clusters)
    assert "under-confident by" in shy.claim
    assert sure.ci95[0] < sure.value < sure.ci95[1]
    before = [row for row in sure.table if row["temperature"] == "before"]
    assert before[0]["pairs"] == n
    assert before[0]["right %"] == pytest.approx(100 * hits.mean())


@pytest.mark.parametrize(("temperature", "word"), [(0.3, "over-confident by"), (3.0, "under-confident by")])
def test_a_planted_temperature_is_found_before_and_after(temperature, word):
    random = np.random.default_rng(2)
    logits = 2 * random.normal(size=(800, 5))
    honest, wrong = (np.exp(logits / t) / np.exp(logits / t).sum(1, keepdims=True) for t in (1.0, temperature))
    truth = np.array([random.choice(5, p=row) for row in honest])
    hits, clusters = logits.argmax(axis=1) == truth, [str(k) for k in range(800)]
    planted = calibration_finding(
        "the fusion (x)", predictions(wrong.max(axis=1), hits, raw=honest.max(axis=1)), clusters
    )
    assert word in planted.claim.split(":")[0]
    assert planted.value == pytest.approx(100 * abs(wrong.max(axis=1).mean() - hits.mean()), abs=1.5)
    mended = calibration_finding(
        "the fusion (x)", predictions(honest.max(axis=1), hits, raw=wrong.max(axis=1)), clusters
    )
    assert mended.claim.startswith("The fusion (x) is as calibrated as can be measured here")
    assert f"before the temperature, {word}" in mended.claim


@pytest.mark.slow
def test_calibrated_answers_are_seldom_accused():
    random = np.random.default_rng(1)
    accused = 0
    for _ in range(30):
        right = random.uniform(0.4, 1.0, 300)
        hits = (random.random(300) < right).astype(float)
        finding = calibration_finding("the fusion (x)", predictions(right, hits), [str(k) for k in range(300)])
        accused += "as calibrated as can be measured" not in finding.claim
    assert accused <= 4


def test_risk_and_coverage_by_hand():
    coverage, right = risk_coverage(np.array([0.9, 0.8, 0.8, 0.1]), np.array([1.0, 1, 0, 0]))
    assert coverage.tolist() == [0.25, 0.75, 1.0]  # equal confidences go together
    assert right.tolist() == pytest.approx([1, 2 / 3, 1 / 2])
    assert threshold_for(0.6, np.array([0.9, 0.8, 0.8, 0.1]), np.array([1.0, 1, 0, 0])) is None  # fewer than 20 pairs


def test_a_threshold_comes_from_development_pairs():
    confidence = np.linspace(0.01, 1.0, 100)
    hits = (confidence > 0.4).astype(float)
    # 60 right answers; with 15 wrong ones below them 60 / 75 = 80 % are right: the 75 surest begin at 0.26.
    assert threshold_for(0.8, confidence, hits) == pytest.approx(0.26)
    assert threshold_for(0.99, confidence, hits) == pytest.approx(0.41)
    assert threshold_for(0.9, confidence, 0 * hits) is None
    test = predictions(confidence, (confidence > 0.6).astype(float))
    finding = abstention_finding(
        "mlp", predictions(confidence, hits), test, [str(k) for k in range(100)], precision=0.8
    )
    row = next(row for row in finding.table if row["wanted %"] == 80)
    assert row["threshold"] == pytest.approx(0.26)
    assert row["answered %"] == 75
    assert finding.value == pytest.approx(100 * 40 / 75)  # what the test says, not what development promised
    assert finding.ci95[0] < finding.value < finding.ci95[1]
