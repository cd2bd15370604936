"""Parts of a diagnosis whose numbers can be checked with a pencil or against a planted truth."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality.image_leaks import leak_findings, likeness_threshold, nearest_others
from frevl.diagnosis.data_quality.label_errors import conflict_finding
from frevl.diagnosis.data_quality.label_rule import likely_errors
from frevl.diagnosis.data_quality.near_duplicates import normal_text
from frevl.diagnosis.model_comparison import ComparedModel, ModelComparison, Predictions
from frevl.diagnosis.model_specs import MODEL_SPECS
from frevl.diagnosis.performance.class_balance import (
    balanced_findings,
    imbalance_finding,
    only_class,
    single_class_findings,
)
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
from frevl.diagnosis.splits import Splits, constant, read_splits, share_of_clusters, with_wrong_pairs
from frevl.errors import PairsError
from planted import plant


def pairs_of(*rows, extras=None):
    images, texts, targets = ([row[column] for row in rows] for column in range(3))
    places = [f"a.jsonl:{number + 1}" for number in range(len(rows))]
    return Pairs(images, texts, targets, extras or [{} for _ in rows], places)


def xor(image, text, random):
    return image ^ text


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


# ---------------------------------------------------------------------------- calibration, abstention


def predictions(confidence, hits, raw=None):
    confidence, hits = np.array(confidence, float), np.array(hits, float)
    return Predictions(np.zeros(len(hits), np.int64), ["a"], hits, confidence, confidence if raw is None else raw)


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


def test_classes_by_hand(tmp_path):
    world = plant(tmp_path / "store", images=10)
    train = pairs_of(*[(f"{k}.png", "q", "a") for k in range(6)], *[(f"{k}.png", "q", "b") for k in range(2)])
    test = pairs_of(("8.png", "q", "a"), ("9.png", "q", "c"), ("9.png", "q", ["c", "a"]))
    finding = imbalance_finding(Splits(world.store, "classification", train, train, test, None, 0))
    assert finding.value == 75
    # exp(-(0.75 ln 0.75 + 0.25 ln 0.25)) = 1.755
    assert "2 classes, as uneven as 1.8 equal classes; 'a' alone is 75.0 %, 1 has fewer than 5" in finding.claim
    assert "1 of 3 test pairs has a class that does not occur in training" in finding.claim
    assert "No model can answer more than 66.7 %" in finding.advice


def test_a_part_with_one_class_is_named(tmp_path):
    world = plant(tmp_path / "store", images=10)
    both = pairs_of(("1.png", "q", "a"), ("2.png", "q", "b"))
    one = pairs_of(("8.png", "q", "a"), ("9.png", "q", ["a"]), ("9.png", "r", {"a": 0.5, "b": 0.0}))
    assert only_class(one, "classification") == "a"
    assert only_class(both, "classification") is None
    assert only_class(pairs_of(("1", "q", ["a", "b"])), "classification") is None
    assert only_class(pairs_of(("1", "q", "false"), ("2", "q", "0")), "matching") == "no match"
    assert single_class_findings(Splits(world.store, "classification", both, both, both, None, 0)) == []
    named = single_class_findings(Splits(world.store, "classification", both, both, one, None, 0))
    assert [(finding.name, finding.claim) for finding in named] == [
        (
            "single-class-test",
            "All 3 test pairs have the one answer 'a': a model that always gives it would be right every time, so they "
            "cannot tell a good model from a bad one.",
        )
    ]
    (dev,) = single_class_findings(Splits(world.store, "classification", both, one, both, None, 0))
    assert dev.claim.startswith("All 3 development pairs have the one answer 'a': models, temperatures and thresholds")


def uneven(tmp_path, hits):
    """100 test pairs, 90 of them ``no``; a comparison of one fusion with these hits."""
    world = plant(tmp_path / "store", images=10)
    test = pairs_of(*[(f"{k}.png", "q", "no" if k < 90 else "yes") for k in range(100)])
    said = predictions(np.full(100, 0.9), hits)
    spec = next(one for one in MODEL_SPECS if one.name == "kernel")
    model = ComparedModel(spec, SimpleNamespace(run=SimpleNamespace(parameters=1)), said, said, 0.0)
    return ModelComparison(Splits(world.store, "classification", test, test, test, None, 0), [model])


def test_accuracy_by_class_where_one_answer_is_nearly_all(tmp_path):
    """81 of 90 and 6 of 10 are right: (90 + 60) / 2 = 75, where always `no` gives 50 (and an accuracy of 90)."""
    hits = [k < 81 or k >= 94 for k in range(100)]
    (finding,) = balanced_findings(uneven(tmp_path, hits))
    assert finding.value == pytest.approx(75)
    assert finding.ci95[0] < 75 < finding.ci95[1]
    assert (
        "always giving 'no', which is 90.0 % of the test pairs, would give 50.0 %: something was learned"
        in finding.claim
    )
    assert [(row["class"], row["test pairs"], row["right %"]) for row in finding.table] == [
        ("no", 90, pytest.approx(90)), ("yes", 10, pytest.approx(60))
    ]  # fmt: skip
    (none,) = balanced_findings(uneven(tmp_path / "b", [k < 90 for k in range(100)]))
    assert none.value == 50
    assert "nothing measurable was learned about the other classes" in none.claim


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_planted_label_errors_are_found_with_stated_precision(share):
    """By a model that is itself wrong in 1 of 100 cases, those errors being among what is named."""
    random = np.random.default_rng(11)
    n, classes = 2000, 3
    truth = random.integers(0, classes, n)
    model = np.where(random.random(n) < 0.99, truth, (truth + 1) % classes)
    sure = random.uniform(1 - 1.5 * share, 0.99, n)
    probabilities = np.full((n, classes), 0.0) + ((1 - sure) / (classes - 1))[:, None]
    probabilities[np.arange(n), model] = sure
    wrong = random.random(n) < share
    labels = np.where(wrong, (truth + random.integers(1, classes, n)) % classes, truth)
    found = likely_errors(labels, probabilities)
    precision, recall = wrong[found].mean(), wrong[found].sum() / wrong.sum()
    assert precision > share / (share + 0.01) - 0.03  # 0.80 and 0.92
    assert recall > 0.85


# ------------------------------------------------------------------------------------------- splits


def test_wrong_pairs_are_drawn_from_other_images():
    pairs = pairs_of(("1", "a", None), ("1", "b", None), ("2", "a", None), ("3", "c", None))
    both = with_wrong_pairs(pairs, 0)
    assert both.targets == ["true"] * 4 + ["false"] * 4
    right = set(zip(pairs.images, pairs.texts, strict=True))
    drawn = list(zip(both.images, both.texts, strict=True))[4:]
    assert right.isdisjoint(drawn)
    assert with_wrong_pairs(both, 0) is both
    with pytest.raises(PairsError, match="no wrong text can be drawn: expected at least two images with different"):
        with_wrong_pairs(pairs_of(("1", "a", None), ("2", "a", None)), 0)


def test_a_constant_side_keeps_the_clusters():
    pairs = pairs_of(("1", "a", "x"), ("2", "b", "y"))
    blind = constant(pairs, image="1")
    assert blind.images == ["1", "1"]
    assert blind.clusters == ["1", "2"]
    assert constant(pairs, text="a").texts == ["a", "a"]


def test_smaller_shares_are_part_of_larger_ones():
    pairs = pairs_of(*[(str(k // 2), "q", "a") for k in range(100)])
    small, large = (share_of_clusters(pairs, share, seed=0) for share in (0.2, 0.5))
    assert (len(small), len(large)) == (20, 50)
    assert set(small.images) < set(large.images)


def test_splits_refuse_pairs_without_answers_and_leave_single_ones_out(tmp_path):
    world = plant(tmp_path / "store", images=30)
    train = world.pairs([f"{k}.png" for k in range(20)], xor)
    test = world.pairs(["25.png"], xor)
    options = {"task": "classification", "dev": None, "encoder": None, "seed": 0}
    with pytest.raises(PairsError, match=r"field 'target': a diagnosis of a classification expects a target in every"):
        read_splits(world.store, train, replace(test, targets=[None, None]), **options)
    some = read_splits(world.store, train, replace(test, targets=[None, "yes"]), **options)
    assert some.test.targets == ["yes"]
    assert any("Left out: 1 pair" in note and "field 'target'" in note for note in some.notes), some.notes


def test_a_diagnosis_keeps_copies_together_and_draws_them_together(made):
    from frevl.diagnosis.splits import read_splits

    options = {"task": "classification", "dev": None, "encoder": None, "seed": 0}
    video = [{**extra, "video": row // 4} for row, extra in enumerate(made.train.extras)]
    train = replace(made.train, extras=video)
    splits = read_splits(made.store, train, made.test, **options)
    sides = [{extra["video"] for extra in part.extras} for part in (splits.train, splits.dev)]
    assert not sides[0] & sides[1]
    assert any("pairs with the same 'video' belong together" in note for note in splits.notes)
    apart = read_splits(made.store, train, made.test, **options, find_groups=False)
    assert not apart.notes
