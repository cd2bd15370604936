"""Prediction sets contain the right class as often as promised, even with five captions per image."""

import json

import numpy as np
import pytest

import frevl as package
from frevl.errors import UsageError
from frevl.estimators import EmbeddingClassifier
from frevl.runs.calibration import ConformalScores


def world(clusters, each, seed, *, classes=6, own=1.5):
    """Probabilities of a calibrated model, and right classes; pairs of one cluster share what makes them hard."""
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(clusters), each)
    logits = own * random.standard_normal((clusters, classes))[names] + 0.3 * random.standard_normal(
        (len(names), classes)
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # The pairs of a cluster are right and wrong together.
    draws = random.random(clusters)[names]
    labels = (probabilities.cumsum(axis=1) < draws[:, None]).sum(axis=1).clip(0, classes - 1)
    return probabilities, np.eye(classes, dtype=bool)[labels], names


@pytest.mark.parametrize("each", [1, 5])
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_coverage_over_fresh_splits(each, level):
    found = []
    for seed in range(40):
        probabilities, right, names = world(400, each, seed)
        held = names < 200
        conformal = ConformalScores.fit(probabilities[held], right[held], names[held])
        found.append((conformal.sets(probabilities[~held], level) & right[~held]).any(axis=1).mean())
    assert abs(np.mean(found) - level) < 0.015
    assert np.mean(np.abs(np.array(found) - level) < 0.08) > 0.9


def test_rows_instead_of_images_would_promise_too_much():
    """What weights by image are for: of nine images with five pairs each nobody can promise 95 %."""
    covered = []
    for seed in range(60):
        probabilities, right, names = world(109, 5, seed)
        held = names < 9
        by_image, by_row = (
            ConformalScores.fit(probabilities[held], right[held], clusters)
            for clusters in (names[held], np.arange(held.sum()))
        )
        assert by_image.sets(probabilities, 0.95).all()
        assert by_image.note(0.95)
        assert not by_row.note(0.95)
        covered.append((by_row.sets(probabilities[~held], 0.95) & right[~held]).any(axis=1).mean())
    assert np.mean(covered) < 0.94, "45 rows claim 95 % and do not have it"


def test_every_image_counts_once_and_pairs_that_differ_steady_the_coverage():
    """Images with one to nine pairs, whose answers do not depend on each other: by hand, and against one draw each."""
    two = ConformalScores.fit(
        np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]]), np.array([[False, True]] * 3), np.array(["a", "a", "b"])
    )
    assert two.scores == pytest.approx([0.8, 0.8, 0.9])  # half an image has 0.6, a whole one 0.8, half of one 0.9
    assert (two.count, two.threshold(0.3), two.threshold(0.34)) == (2, pytest.approx(0.8), pytest.approx(0.8))
    assert two.threshold(2 / 3) == pytest.approx(0.9)
    assert two.threshold(0.67) == np.inf
    spread = {"all": [], "drawn": []}
    for seed in range(60):
        random = np.random.default_rng(seed)
        names = np.repeat(np.arange(160), random.integers(1, 10, 160))
        probabilities, right, _ = world(len(names), 1, seed)
        held = names < 80
        _, first = np.unique(names[held], return_index=True)
        for name, rows in (("all", np.arange(held.sum())), ("drawn", first)):
            conformal = ConformalScores.fit(probabilities[held][rows], right[held][rows], names[held][rows])
            spread[name].append((conformal.sets(probabilities[~held], 0.8) & right[~held]).any(axis=1).mean())
    assert abs(np.mean(spread["all"]) - 0.8) < 0.02
    assert np.std(spread["all"]) < 0.7 * np.std(spread["drawn"])


def test_the_likeliest_class_is_always_in_so_it_needs_no_threshold():
    """Of nine images, an unsure answer is right for seven; for two the second class is."""
    probabilities = np.array([[0.4, 0.35, 0.25]] * 7 + [[0.5, 0.45, 0.05]] * 2)
    right = np.eye(3, dtype=bool)[[0] * 7 + [1] * 2]
    conformal = ConformalScores.fit(probabilities, right, np.arange(9))
    assert conformal.scores == pytest.approx([0.0] * 7 + [0.55] * 2)
    assert conformal.sets(probabilities, 0.7).tolist() == [[True, False, False]] * 9  # it took 0.6: two classes, 78 %
    assert conformal.sets(probabilities, 0.8).tolist() == [[True, False, False]] * 7 + [[True, True, False]] * 2


@pytest.mark.parametrize("level", [0.5, 0.65])
def test_coverage_where_the_likeliest_class_is_nearly_right_often_enough(level):
    found, alone = [], []
    for seed in range(40):
        probabilities, right, names = world(800, 1, seed)
        held = names < 400
        conformal = ConformalScores.fit(probabilities[held], right[held], names[held])
        found.append((conformal.sets(probabilities[~held], level) & right[~held]).any(axis=1).mean())
        alone.append(right[np.arange(800), probabilities.argmax(axis=1)].mean())
    assert abs(np.mean(found) - max(level, np.mean(alone))) < 0.01


def test_the_smaller_kind_is_kept():
    probabilities, right, names = world(400, 1, 3)
    conformal = ConformalScores.fit(probabilities, right, names)
    other = ConformalScores("adaptive" if conformal.kind == "probability" else "probability", conformal.scores)
    assert conformal.kind in ("probability", "adaptive")
    again = ConformalScores.from_record(json.loads(json.dumps(conformal.record())))
    np.testing.assert_array_equal(again.sets(probabilities, 0.9), conformal.sets(probabilities, 0.9))
    assert other.kind != conformal.kind


def test_too_few_images_promise_everything_and_say_so():
    probabilities, right, names = world(8, 5, 0)
    conformal = ConformalScores.fit(probabilities, right, names)
    assert conformal.sets(probabilities, 0.9).all()
    assert "8 held-out images cannot guarantee more (at least 9 are needed" in conformal.note(0.9)[0]
    assert ": 1 held-out image cannot guarantee more" in ConformalScores("probability", np.zeros(1)).note(0.9)[0]
    assert conformal.note(0.5) == []


def test_a_right_class_that_is_no_class_counts_as_missed():
    probabilities, right, names = world(50, 1, 0)
    right[:20] = False
    conformal = ConformalScores.fit(probabilities, right, names)
    assert conformal.sets(probabilities, 0.9).all(), "with 40 % of strange classes nothing smaller is honest"


@pytest.fixture(scope="module")
def classified(named, tmp_path_factory):
    run = tmp_path_factory.mktemp("sets") / "run"
    package.classify(named.store, run=run, examples=named.examples, method="means")
    return run


@pytest.mark.slow
def test_score_and_evaluate(named, classified, frevl, tmp_path):
    call = ("--store", named.store.path, "--run", classified, "--pairs", named.test)
    done = frevl("score", *call, "--sets", 0.9, "--out", tmp_path / "scores.jsonl")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert all(row["set"][0] == row["label"] for row in rows)
    done = frevl("evaluate", *call, "--sets", 0.9, "--json", tmp_path / "result.json")
    sets = json.loads((tmp_path / "result.json").read_text())["sets"]
    assert sets["set_coverage"] == pytest.approx(100 * np.mean([row["target"] in row["set"] for row in rows]))
    assert sets["set_size"] == pytest.approx(np.mean([len(row["set"]) for row in rows]))
    assert sets["single"] == pytest.approx(100 * np.mean([len(row["set"]) == 1 for row in rows]))
    assert sets["set_coverage"] > 80
    assert "the right class is in" in done.out
    lower = frevl("evaluate", *call, "--sets", 0.5, "--json", tmp_path / "lower.json")
    assert lower.code == 0
    assert json.loads((tmp_path / "lower.json").read_text())["sets"]["set_size"] <= sets["set_size"]


def test_matching_says_true_false_or_cannot_tell(made, frevl, tmp_path):
    run = package.train(made.store, made.captions, run=tmp_path / "run", task="matching", model="linear")
    call = ("--store", made.store.path, "--run", run.path, "--pairs", made.captions_file)
    assert frevl("score", *call, "--sets", 0.9, "--out", tmp_path / "scores.jsonl").code == 0
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert {row["matches"] for row in rows} <= {True, False, None}
    for row in rows:
        assert row["matches"] in (None, row["probability"] > 0.5)


@pytest.mark.slow
def test_pairs_to_measure_on_and_what_is_refused(named, frevl, tmp_path):
    run = package.classify(named.store, named.classes, run=tmp_path / "run")  # nothing was held out
    call = ("--store", named.store.path, "--run", run.path, "--pairs", named.test)
    refused = frevl("evaluate", *call, "--sets", 0.9)
    assert refused.code == 2
    assert "give held-out pairs with --calibrate" in refused.err
    done = frevl("evaluate", *call, "--sets", 0.9, "--calibrate", named.examples, "--json", tmp_path / "result.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "result.json").read_text())["sets"]["set_coverage"] > 80
    for wrong in (0, 1, 1.5):
        assert "between 0 and 1" in frevl("evaluate", *call, "--sets", wrong).err
    assert "request them with --sets" in frevl("evaluate", *call, "--calibrate", named.examples).err


def test_estimators(named):
    rows = [json.loads(line) for line in named.examples.read_text().splitlines()]
    X, y = named.store.read_images([row["image"] for row in rows]), np.array([row["target"] for row in rows])  # noqa: N806
    fitted = EmbeddingClassifier(method="means").fit(X, y)
    with pytest.warns(UserWarning, match=r"rest on \d+ held-out groups of rows: .* fit on more groups\.$"):
        sets = fitted.predict_set(X, 0.9)
    assert sets.shape == (len(X), 6)
    assert sets[np.arange(len(X)), np.searchsorted(fitted.classes_, fitted.predict(X))].all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        fitted.predict_set(X, 1.0)
    with pytest.warns(UserWarning, match="contain every class"):
        assert fitted.predict_set(X, 0.999).all()
    alone = EmbeddingClassifier().fit(X[:6], np.zeros(6))
    assert alone.predict_set(X, 0.9).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        alone.predict_set(X, 2.0)
    with pytest.raises(ValueError, match="nothing was held out"):
        EmbeddingClassifier().fit(X[:6], np.arange(6)).predict_set(X)


@pytest.mark.slow
def test_soft_targets_have_no_sets(made, tmp_path):
    pairs = [{**made.train.row(row), "target": {made.train.targets[row]: 0.7}} for row in range(len(made.train))]
    run = package.train(made.store, pairs, run=tmp_path / "run", task="classification", model="linear")
    assert run.results.get("prediction_sets") is None
    with pytest.raises(UsageError, match="soft targets"):
        package.evaluate(package.Scorer.open(run.path, store=made.store), made.test, sets=0.9)


@pytest.mark.slow
def test_pairs_that_are_no_fair_measure_say_so_first(named, classified, frevl, tmp_path):
    call = ("--store", named.store.path, "--run", classified, "--pairs", named.test, "--sets", 0.9)
    done = frevl("evaluate", *call, "--calibrate", named.examples)
    assert done.out.startswith("Leak: 60 of 60 different images of --calibrate were in training or development")
    done = frevl("evaluate", *call, "--calibrate", named.test)
    assert done.out.startswith("Leak: 120 images of --calibrate are also evaluated")
    done = frevl("score", *call, "--calibrate", named.examples, "--out", tmp_path / "scores.jsonl")
    assert "Leak: 60 of 60" in done.out


def test_pairs_without_answers_are_counted_or_refused(named, classified, frevl, tmp_path):
    rows = [json.loads(line) for line in named.test.read_text().splitlines()]
    call = ("--store", named.store.path, "--run", classified, "--pairs", named.test, "--sets", 0.9)
    some, none = tmp_path / "some.jsonl", tmp_path / "none.jsonl"
    some.write_text("".join(json.dumps(row if n % 2 else {"image": row["image"]}) + "\n" for n, row in enumerate(rows)))
    none.write_text("".join(json.dumps({"image": row["image"]}) + "\n" for row in rows))
    assert "Left out: 60 pairs" in frevl("evaluate", *call, "--calibrate", some).out
    refused = frevl("evaluate", *call, "--calibrate", none)
    assert refused.code == 1
    assert "expected the right answer, found none in any pair" in refused.err


@pytest.mark.slow
def test_classes_of_pairs_to_measure_on_are_checked(named, classified, frevl, tmp_path):
    """Of one class, sets of others hold nothing of what is said; of other classes, there is nothing to measure."""
    rows = [json.loads(line) for line in named.test.read_text().splitlines()]
    file, target = tmp_path / "some.jsonl", rows[0]["target"]
    call = ("--store", named.store.path, "--run", classified, "--pairs", named.test, "--sets", 0.9)

    def calibrated(changed):
        file.write_text("".join(json.dumps(row) + "\n" for row in changed))
        return frevl("score", *call, "--calibrate", file, "--out", tmp_path / "scores.jsonl")

    done = calibrated([row for row in rows if row["target"] == target])
    assert f"One class: all pairs of --calibrate have the right answer '{target}', so sets contain other" in done.out
    done = calibrated([{**row, "target": "lila"} if n == 1 else row for n, row in enumerate(rows)])
    assert (
        f"Unknown classes: 1 pair of {len(rows)} of --calibrate (the first is {file}:2: 'lila') have only classes that "
        "were not in training: no set contains these, so all sets are larger."
    ) in done.out
    assert "One class" not in done.out
    assert "--no-groups" not in calibrated([*rows, *rows]).out  # score has no such flag
    refused = calibrated([{**row, "target": "lila"} for row in rows])
    assert refused.code == 1
    assert f"{file}:1, field 'target': expected classes of the run, such as '" in refused.err
    assert refused.err.strip().endswith("found only others, such as 'lila'; write them as in training")


def test_captions_alone_are_no_test_of_a_level(made, frevl, tmp_path):
    run = package.train(made.store, made.captions, run=tmp_path / "run", task="matching", model="linear")
    done = frevl(
        "evaluate", "--store", made.store.path, "--run", run.path, "--pairs", made.captions_file, "--sets", 0.9
    )
    assert "All pairs are right pairs, or all are wrong pairs" in done.out


def test_how_far_the_coverage_may_lie_is_said_and_true():
    """Of 12 images the coverage is anywhere in a range of 30 points; of 2,000 it is near enough to say nothing."""
    random = np.random.default_rng(0)
    few = ConformalScores("probability", np.sort(random.random(12)))
    assert few.notes(0.9) == [
        f"Sets of 90 % rest on 12 held-out images: the right class may be in {100 * few.coverage(0.9)[0]:.0f} to "
        f"{100 * few.coverage(0.9)[1]:.0f} % of them; give more with --calibrate."
    ]
    assert ConformalScores("probability", np.sort(random.random(2000))).notes(0.9) == []
    # Scores are uniform, so that the coverage of one measurement is its threshold.
    for many in (12, 60):
        low, high = ConformalScores("probability", np.zeros(many)).coverage(0.9)
        drawn = np.sort(random.random((4000, many)), axis=1)
        reached = [ConformalScores("probability", one).threshold(0.9) for one in drawn]
        assert abs(np.mean([low <= one <= high for one in reached]) - 0.95) < 0.015
        assert np.mean(reached) >= 0.9 - 0.01
    assert ConformalScores("probability", np.zeros(8)).notes(0.9) == ConformalScores("p", np.zeros(8)).note(0.9)
