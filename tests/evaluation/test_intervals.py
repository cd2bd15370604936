"""Intervals: worked out by hand if the bootstrap can be enumerated, covering the truth otherwise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from frevl.data.packed.columns import Coded
from frevl.errors import UsageError
from frevl.evaluation import intervals, measures, metrics
from frevl.evaluation.intervals import (
    Interval,
    bootstrap_interval,
    bootstrap_statistic,
    hit_interval,
    hit_record,
    paired_difference,
    paired_test,
)
from frevl.evaluation.metrics import macro_f1


def test_interval_of_two_clusters_by_hand() -> None:
    # Drawing two of {0, 1} gives means 0, 1/2, 1 with shares 1/4, 1/2, 1/4.
    assert bootstrap_interval([0, 1], ["a", "b"], level=0.95) == (0.5, 0.0, 1.0)
    assert bootstrap_interval([0, 1], ["a", "b"], level=0.4) == (0.5, 0.5, 0.5)


def test_clusters_in_codes_give_the_same_interval_without_an_object_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    values, codes = random.random(200), random.integers(0, 30, 200)
    names = [f"{30 - code}.png" for code in codes.tolist()]
    coded = Coded.of(codes, [f"{30 - code}.png" for code in range(31)])
    expected = bootstrap_interval(values, names), bootstrap_statistic(lambda rows: values[rows].max(), names)
    monkeypatch.setattr(Coded, "__iter__", None)
    assert (bootstrap_interval(values, coded), bootstrap_statistic(lambda rows: values[rows].max(), coded)) == expected


def test_clusters_keep_their_size() -> None:
    # One image with one right item, one with three wrong ones: the mixed draw is 1/4 and not 1/2.
    value, low, high = bootstrap_interval([1, 0, 0, 0], ["a", "b", "b", "b"], level=0.4)
    assert (value, low, high) == (0.25, 0.25, 0.25)


def test_interval_equals_counting_all_draws() -> None:
    values, clusters = [1.0, 0.0, 2.0, 5.0, 4.0, 0.5], ["x", "x", "y", "z", "z", "z"]
    members = {c: [v for v, k in zip(values, clusters, strict=True) if k == c] for c in "xyz"}
    means = sorted(
        sum(sum(members[c]) for c in draw) / sum(len(members[c]) for c in draw)
        for draw in itertools.product("xyz", repeat=3)
    )
    # Bounds between two steps of the exact distribution, so that random draws cannot move them over a step.
    for level in (0.9, 0.5, 0.2):
        _, low, high = bootstrap_interval(values, clusters, level=level, resamples=40_000)
        assert low == pytest.approx(np.quantile(means, (1 - level) / 2, method="inverted_cdf"), abs=1e-12)
        assert high == pytest.approx(np.quantile(means, (1 + level) / 2, method="inverted_cdf"), abs=1e-12)


def test_same_seed_same_interval_and_the_block_size_changes_only_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    values, clusters = random.random(211), random.integers(0, 31, 211)
    first = bootstrap_interval(values, clusters, seed=5)
    assert first == bootstrap_interval(values, clusters.tolist(), seed=5)
    assert first == bootstrap_interval(values, [f"image-{c}.jpg" for c in clusters], seed=5)
    assert first != bootstrap_interval(values, clusters, seed=6)
    monkeypatch.setattr(intervals, "DRAWS_IN_MEMORY", 1)
    assert bootstrap_interval(values, clusters, seed=5) == pytest.approx(first, abs=0.01)


@pytest.mark.slow
def test_intervals_cover_the_truth_and_rows_alone_do_not() -> None:
    random = np.random.default_rng(1)
    covered = by_rows = 0
    for trial in range(300):
        sizes = random.integers(1, 9, 61)
        clusters = np.repeat(np.arange(61), sizes)
        chance = np.clip(0.7 + 0.25 * random.standard_normal(61), 0, 1)
        values = random.random(len(clusters)) < chance[clusters]
        truth = TRUE_MEAN
        _, low, high = bootstrap_interval(values, clusters, seed=trial)
        covered += low <= truth <= high
        _, low, high = bootstrap_interval(values, seed=trial)
        by_rows += low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.99
    assert by_rows < covered
    assert by_rows / 300 < 0.90


def _true_mean() -> float:
    """Mean of a normal variable (0.7, 0.25) clipped to [0, 1], by a fine sum."""
    grid = np.linspace(-8, 8, 200_001)
    weight = np.exp(-(grid**2) / 2)
    return float((np.clip(0.7 + 0.25 * grid, 0, 1) * weight).sum() / weight.sum())


TRUE_MEAN = _true_mean()


def test_one_cluster_has_no_interval_and_equal_values_no_width() -> None:
    value, low, high = bootstrap_interval([1, 0, 1, 1], ["a"] * 4)
    assert value == 0.75
    assert math.isnan(low)
    assert math.isnan(high)
    assert bootstrap_interval([1, 1, 1], ["a", "b", "b"]) == (1.0, 1.0, 1.0)
    value, low, high = bootstrap_statistic(lambda items: float(len(items)), ["a"] * 4)
    assert (value, math.isnan(low), math.isnan(high)) == (4.0, True, True)


def test_hits_that_are_all_equal_claim_no_certainty() -> None:
    """The interval is Wilson's for as many items as there are clusters; 30 / (30 + 1.96**2) is 0.8865."""
    clusters = np.arange(60) // 2
    assert hit_interval(np.ones(60), clusters) == pytest.approx((1.0, 0.8865, 1.0), abs=1e-4)
    assert hit_interval(np.zeros(60), clusters) == pytest.approx((0.0, 0.0, 0.1135), abs=1e-4)
    assert hit_record(np.ones(60), clusters) == {
        "n": 60, "accuracy": 100.0, "interval": pytest.approx([88.65, 100.0], abs=0.01)
    }  # fmt: skip
    mixed = np.arange(60) % 3 == 0
    assert hit_interval(mixed, clusters) == bootstrap_interval(mixed, clusters)
    assert np.isnan(hit_interval(np.ones(3), [1, 1, 1]).low)
    assert hit_record(mixed, None) == {"n": 60, "accuracy": pytest.approx(100 / 3), "interval": None}


def test_statistic_gets_whole_clusters() -> None:
    values = np.array([1.0, 0.0, 2.0, 5.0, 4.0, 0.5, 3.0])
    clusters = ["x", "y", "x", "z", "z", "y", "y"]
    seen = []

    def mean(items: np.ndarray) -> float:
        seen.append(np.bincount(items, minlength=7).tolist())
        return float(values[items].mean())

    from_items = bootstrap_statistic(mean, clusters, seed=3)
    assert from_items == pytest.approx(bootstrap_interval(values, clusters, seed=3), abs=1e-12)
    for counts in seen[1:]:
        assert counts[0] == counts[2]
        assert counts[3] == counts[4]
        assert counts[1] == counts[5] == counts[6]
        assert counts[0] + counts[1] + counts[3] == 3


def test_statistic_that_is_not_finite_is_left_out() -> None:
    values = np.array([0.0, 1.0])
    # The draw (0, 0) has no value; 1/2 and 1 remain.
    found = bootstrap_statistic(lambda i: float(values[i].mean() or np.nan), ["a", "b"], level=0.99)
    assert found == (0.5, 0.5, 1.0)
    _, low, _ = bootstrap_statistic(lambda _: math.nan, ["a", "b"])
    assert math.isnan(low)
    # The draw (1, 1) is infinite; 0 and 1/2 remain.
    endless = bootstrap_statistic(lambda i: math.inf if values[i].all() else float(values[i].mean()), ["a", "b"])
    assert endless == (0.5, 0.0, 0.5)


def test_statistic_depends_on_the_seed() -> None:
    values = np.random.default_rng(4).random(53)
    ask = [bootstrap_statistic(lambda i: float(values[i].mean()), range(53), seed=seed) for seed in (1, 1, 2)]
    assert ask[0] == ask[1] != ask[2]


def test_paired_difference_by_hand() -> None:
    assert paired_difference([1, 1, 0], [1, 0, 1], ["a", "b", "c"])[0] == 0.0
    assert paired_difference([1, 1], [0.5, 0.5], ["a", "b"]) == (0.5, 0.5, 0.5)
    value, low, high = paired_difference([1, 1, 1, 0], [0, 0, 0, 1], ["a", "a", "a", "b"], level=0.4)
    assert (value, low, high) == (0.5, 0.5, 0.5)


def test_paired_test_by_hand() -> None:
    # Three images, the same run better on each: of 8 sign patterns 2 are as extreme.
    assert paired_test([1, 1, 1], [0, 0, 0], ["a", "b", "c"]) == 2 / 8
    # Rows of one image stand or fall together: two patterns, both as extreme.
    assert paired_test([1, 1, 1], [0, 0, 0], ["a", "a", "a"]) == 1.0
    # Differences 3, 1, -1 and 0: |sum| >= 3 for 6 of 8 patterns (5, 3, 3 and their mirrors).
    assert paired_test([3, 1, 0, 1], [0, 0, 1, 1], [1, 2, 3, 4]) == 6 / 8
    assert paired_test([1, 0], [1, 0]) == 1.0
    # Images without a difference have no sign to flip, however many they are: counted, not drawn.
    assert paired_test([1, 1, 1] + [0] * 97, [0] * 100) == 2 / 8
    # Drawn, the observed signs count as one of the patterns: p is never 0.
    assert paired_test([1] * 60, [0] * 60, permutations=99) == 1 / 100


def test_drawn_signs_agree_with_counted_ones() -> None:
    random = np.random.default_rng(2)
    a, b, clusters = random.random(40), random.random(40) - 0.12, np.repeat(np.arange(13), 4)[:40]
    exact = paired_test(a, b, clusters, permutations=2**13)
    assert 0.005 < exact < 0.5
    assert paired_test(a, b, clusters, permutations=8191, seed=1) == pytest.approx(exact, abs=0.02)
    assert paired_test(a, b, clusters, permutations=999) == paired_test(a, b, clusters, permutations=999)


def test_p_is_uniform_when_the_runs_are_equal() -> None:
    random = np.random.default_rng(3)
    clusters = np.repeat(np.arange(23), 3)
    small = 0
    for trial in range(400):
        shared = random.standard_normal(23)[clusters]
        small += (
            paired_test(
                shared + random.standard_normal(69), random.standard_normal(69), clusters, permutations=199, seed=trial
            )
            <= 0.05
        )
    assert 0.02 <= small / 400 <= 0.09


def test_bad_input_is_refused() -> None:
    for call, message in (
        (lambda: bootstrap_interval([]), r"found shape \(0,\)"),
        (lambda: bootstrap_interval([[1.0]]), r"found shape \(1, 1\)"),
        (lambda: bootstrap_interval([1.0, np.nan]), "value 1 is nan"),
        (lambda: bootstrap_interval([1.0, 2.0], ["a"]), "one cluster for each of 2 items, found 1"),
        (lambda: bootstrap_interval([1.0, 2.0], level=1.0), "between 0 and 1, found 1.0"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "found 1 and 2"),
        (lambda: paired_test([1.0], [1.0, 2.0]), "found 1 and 2"),
        (lambda: bootstrap_statistic(lambda _: 0.0, []), "found 0"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_an_interval_in_percent_is_unknown_where_there_is_one_cluster() -> None:
    assert Interval(0.5, 0.25, 0.75).percent() == [25.0, 75.0]
    assert bootstrap_interval([0.0, 1.0], ["a", "a"]).percent() is None


@pytest.mark.slow
def test_many_clusters_are_drawn_in_random_groups_with_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    clusters = random.integers(0, 20_000, 30_000)
    values = (random.random(30_000) + random.random(20_000)[clusters] > 1).astype(float)

    def found() -> list[Interval]:
        mean = bootstrap_interval(values, clusters, resamples=400)
        several = bootstrap_statistic(lambda rows: float(np.sqrt(values[rows].mean())), clusters, resamples=400)
        return [mean, several, paired_difference(values, values[::-1], clusters, resamples=400)]

    one_by_one = found()
    monkeypatch.setattr(intervals, "MOST_DRAWN", 2_000)
    for every, grouped in zip(one_by_one, found(), strict=True):
        assert grouped.value == every.value
        assert grouped.high - grouped.low == pytest.approx(every.high - every.low, rel=0.15)
        assert every != grouped  # other draws


def test_the_sums_of_clusters_drawn_together_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "MOST_DRAWN", 10)
    together = intervals.drawn_together(1_005)
    assert together is not None
    assert set(np.bincount(together).tolist()) == {100, 101}
    assert intervals.drawn_together(10) is None
    # Every cluster has one value in each of two cells: rates of 0.25 and 0.75, whatever is drawn.
    sums, counts = np.tile([0.25, 0.75], (1_005, 1)), np.ones((1_005, 2))
    interval = intervals.bootstrap_rates(sums, counts, lambda rates: rates[:, 1] - rates[:, 0])
    assert interval == pytest.approx((0.5, 0.5, 0.5))


def test_statistics_on_numbers_equal_those_on_labels() -> None:
    random = np.random.default_rng(0)
    labels, names = ["a", "b", "c"], ["b", "never predicted", "c", "a"]
    predicted, true = random.integers(0, 3, 300), random.integers(0, 4, 300)
    score = measures.macro_f1_of(predicted, labels, [names[i] for i in true])
    coded = measures.macro_f1_of(predicted, labels, Coded.of(true, names))
    for rows in (np.arange(300), random.integers(0, 300, 300), np.array([7])):
        expected = macro_f1([labels[i] for i in predicted[rows]], [names[i] for i in true[rows]])
        assert score(rows) == coded(rows) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.05])
@pytest.mark.parametrize("copies", [1, 3])
def test_the_calibration_error_without_what_chance_adds(shift, copies):
    """150 images, every one as often as `copies`: true errors of 0 and of 0.05, by 40 draws of each."""
    random = np.random.default_rng(0)
    clusters = [image for image in range(150) for _ in range(copies)]
    plain, debiased, holds = [], [], 0
    for _ in range(40):
        confidence = random.uniform(0.4, 1, 150)
        hits = (random.random(150) < confidence - shift).astype(float)
        gaps = [metrics.calibration_gaps(np.repeat(confidence, copies), np.repeat(hits, copies))]
        both = [measures.calibration_interval(gaps, clusters, debiased=one) for one in (False, True)]
        assert both[0].value == pytest.approx(metrics.expected_calibration_error(confidence, hits), abs=1e-12)
        assert all(0 <= one.low <= one.value <= one.high for one in both)
        assert both[0].high == max(both[0].value, both[1].high)
        plain.append(both[0].value)
        debiased.append(both[1].value)
        holds += both[1].low <= shift <= both[1].high
    assert np.mean(plain) - shift > 0.03  # these rows cannot tell a perfect run from one that errs by five points
    assert abs(np.mean(debiased) - shift) < 0.5 * (np.mean(plain) - shift)
    assert holds >= 34  # 85 %; the quantiles of draws alone hold a true error of 0 never


def test_the_mean_calibration_error_of_two_runs_and_of_a_single_image():
    random = np.random.default_rng(1)
    confidence, names = random.random((2, 60)), [str(number) for number in range(60)]
    hits = (random.random((2, 60)) < confidence).astype(float)
    parts = [measures.calibration_measures(names, *one) for one in zip(confidence, hits, strict=True)]
    for name in ("ece", "ece_debiased"):
        alone = [part[name].interval().value for part in parts]
        joint = measures.mean_measure([part[name] for part in parts]).interval()
        assert joint.value == pytest.approx(np.mean(alone), abs=1e-12 if name == "ece" else 0.02)
        assert joint.low <= joint.value <= joint.high
    lone = measures.calibration_measures(["a", "a"], [0.9, 0.7], [1, 0])["ece_debiased"].interval()
    assert lone.value == pytest.approx(0.4)  # 0.1 and 0.7: nothing is known about chance
    assert np.isnan(lone.low)


def test_always_right_and_always_sure_has_no_calibration_error():
    for debiased in (False, True):
        gaps = [metrics.calibration_gaps(np.ones(9), np.ones(9))]
        assert measures.calibration_interval(gaps, range(9), debiased=debiased) == (0, 0, 0)


@pytest.mark.slow
def test_a_single_cluster_has_no_interval_of_any_kind():
    """Bounds of a share are clipped to it, and the larger of 0 and NaN may be 0."""
    found = measures.macro_f1_measure(["a", "a"], np.array([0, 1]), ["x", "y"], ["x", "x"]).interval()
    assert found.value == pytest.approx(1 / 3)
    assert found.percent() is None


def test_an_interval_of_the_macro_f1_of_many_classes_holds_its_value_and_more_often_the_truth():
    """50 classes of 10 rows, of which 70 % are right: draws miss rows of every class, so their F1 is smaller."""
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(50), 10)
    names, holds = [str(label) for label in range(50)], {"plain": 0, "measure": 0}

    def predicted(targets):
        return np.where(random.random(len(targets)) < 0.7, targets, random.integers(0, 50, len(targets)))

    many = np.repeat(np.arange(50), 2_000)
    right = metrics.mean_of_f1(many, predicted(many))
    for _ in range(30):
        best = predicted(truth)
        given = [names[label] for label in truth]
        plain = bootstrap_statistic(measures.macro_f1_of(best, names, given), range(500), resamples=100)
        found = measures.macro_f1_measure(range(500), best, names, given).interval()
        assert found.value == plain.value
        assert 0 <= found.low <= found.value <= found.high <= 1
        holds["plain"] += plain.low <= right <= plain.high
        holds["measure"] += found.low <= right <= found.high
    assert holds["measure"] >= 26
    assert holds["plain"] < holds["measure"]


def test_too_few_rows_of_most_classes_are_named():
    assert measures.few_each_note(["a"] * 5 + ["b"] * 4) == []  # one of two
    (note,) = measures.few_each_note(["a"] * 5 + ["b"] * 4 + ["c"])
    assert note.startswith("2 of 3 classes have fewer than 5 pairs here, too few for the F1 of a class: ")
    assert measures.few_each_note(["a", None, "b"]) == []  # without a single target each, macro-F1 is not measured
