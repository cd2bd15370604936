"""Every metric against numbers worked out by hand, and against an independent slow implementation."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from frevl.errors import FrevlError, UsageError
from frevl.evaluation import metrics
from frevl.evaluation.benchmarks.wups import wordnet_similarity, wups, wups_available

# --------------------------------------------------------------------------------------- labels


def test_correct_counts_a_set_of_answers_as_several_right_answers() -> None:
    hits = metrics.correct(["cat", "dog", "dog", "cow"], ["cat", "cat", ["cat", "dog"], ("cat", "dog")])
    assert hits.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert hits.dtype == np.float64


def test_correct_accepts_arrays_and_accuracy_is_its_mean() -> None:
    assert metrics.correct(np.array([3, 1, 2]), np.array([3, 2, 2])).tolist() == [1.0, 0.0, 1.0]
    assert metrics.accuracy(np.array(["a", "b", "c", "c"]), ["a", "b", "c", "a"]) == 0.75


def test_macro_f1_by_hand() -> None:
    # a: tp 2, fp 1, fn 0 -> 4/5; b: tp 0, fp 0, fn 1 -> 0; c (only predicted): tp 0, fp 1 -> 0; d: tp 1 -> 1.
    predicted, targets = ["a", "a", "a", "d", "c"], ["a", "a", "b", "d", "d"]
    # d: tp 1, fn 1 -> 2/3
    assert metrics.macro_f1(predicted, targets) == pytest.approx((4 / 5 + 0 + 0 + 2 / 3) / 4, abs=1e-15)


def test_macro_f1_equals_a_loop_over_classes() -> None:
    random = np.random.default_rng(0)
    for n, classes in ((1, 1), (7, 3), (101, 5), (211, 17)):
        targets = random.integers(0, classes, n)
        predicted = np.where(random.random(n) < 0.5, targets, random.integers(0, classes + 2, n))
        scores = []
        for c in sorted({*targets.tolist(), *predicted.tolist()}):
            tp = sum(p == c and t == c for p, t in zip(predicted, targets, strict=True))
            fp = sum(p == c and t != c for p, t in zip(predicted, targets, strict=True))
            fn = sum(p != c and t == c for p, t in zip(predicted, targets, strict=True))
            precision, recall = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0
            scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        assert metrics.macro_f1(predicted, targets) == pytest.approx(sum(scores) / len(scores), abs=1e-12)


@pytest.mark.parametrize("metric", [metrics.correct, metrics.accuracy, metrics.macro_f1])
def test_labels_of_other_length_or_none_at_all_are_refused(metric: object) -> None:
    with pytest.raises(UsageError, match="as many predictions as targets, found 2 and 1"):
        metric(["a", "b"], ["a"])  # type: ignore[operator]
    with pytest.raises(UsageError, match="no items"):
        metric([], [])  # type: ignore[operator]


# ---------------------------------------------------------------------------------- calibration


def test_calibration_error_by_hand() -> None:
    # Bin (0.9, 1]: credit 1, confidence 1.9; bin (0.5, 0.6]: credit 1, confidence 0.55. (0.9 + 0.45) / 3
    value = metrics.expected_calibration_error([0.95, 0.95, 0.55], [1, 0, 1], bins=10)
    assert value == pytest.approx(0.45, abs=1e-15)


def test_calibration_bins_are_open_below_and_closed_above() -> None:
    # 0.5 belongs to the lower of two bins: |1 - 0.5| and |0 - 0.6| do not cancel.
    assert metrics.expected_calibration_error([0.5, 0.6], [1, 0], bins=2) == pytest.approx(0.55, abs=1e-15)
    # In one bin they would: |1 - 1.1| / 2.
    assert metrics.expected_calibration_error([0.5, 0.6], [1, 0], bins=1) == pytest.approx(0.05, abs=1e-15)
    assert metrics.expected_calibration_error([0.0, 1.0], [0, 1]) == 0.0


def test_calibration_error_equals_a_loop_over_bins() -> None:
    random = np.random.default_rng(1)
    confidence, hits = random.random(307), (random.random(307) < 0.6).astype(float)
    edges, total = np.linspace(0, 1, 16), 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i in range(307) if low < confidence[i] <= high]
        if inside:
            gap = abs(np.mean([hits[i] for i in inside]) - np.mean([confidence[i] for i in inside]))
            total += len(inside) / 307 * gap
    assert metrics.expected_calibration_error(confidence, hits) == pytest.approx(total, abs=1e-12)


def test_negative_log_likelihood_by_hand() -> None:
    probabilities = [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.7, 0.1], [0.2, 0.7, 0.1]]
    values = metrics.negative_log_likelihood(probabilities, [0, 0, 2, -1])
    assert values == pytest.approx([math.log(2), 0.0, math.log(10), 12 * math.log(10)], abs=1e-12)
    assert metrics.negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx([12 * math.log(10)], abs=1e-9)
    two = metrics.negative_log_likelihood([0.25, 0.25, 0.25], [1, 0, -1])
    assert two == pytest.approx([math.log(4), -math.log(0.75), 12 * math.log(10)], abs=1e-12)


def test_brier_by_hand() -> None:
    values = metrics.brier([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.0, 1.0, 0.0]], [0, -1, 0])
    # 0.25 + 0.0625 + 0.0625; 0.04 + 0.49 + 0.01 + 1 (no class holds the truth); 2
    assert values == pytest.approx([0.375, 1.54, 2.0], abs=1e-12)
    assert metrics.brier([0.8, 0.8, 0.8], [1, 0, -1]) == pytest.approx([0.04, 0.64, 1.0], abs=1e-12)
    assert metrics.brier(np.array([[0.75, 0.25]], np.float32), [0]).tolist() == [0.125]


@pytest.mark.parametrize("metric", [metrics.negative_log_likelihood, metrics.brier])
def test_bad_probabilities_are_refused(metric: object) -> None:
    for probabilities, targets, message in (
        ([[0.5, 0.5]], [2], "class numbers in 0 to 1"),
        ([[0.5, 0.5]], [-2], "class numbers in 0 to 1"),
        ([[0.5, 0.5]], [0.5], "class numbers in 0 to 1"),
        ([[1.5, 0.5]], [0], "must lie in 0 to 1"),
        ([[-0.5, 0.5]], [0], "must lie in 0 to 1"),
        ([[np.nan, 0.5]], [0], "must lie in 0 to 1"),
        ([[[0.5]]], [0], r"found \(1, 1, 1\)"),
        ([0.5, 0.5], [0], "found 2 and 1"),
    ):
        with pytest.raises(UsageError, match=message):
            metric(probabilities, targets)  # type: ignore[operator]


# --------------------------------------------------------------------------------------- recall


def _blocks(scores: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    for start in range(0, len(scores), rows):
        yield scores[start : start + rows]


def _rank_by_sorting(scores: list[float], positives: set[int]) -> int:
    """Place everything in a list, wrong before right where they tie, and walk down to the first right one."""
    value = [-math.inf if math.isnan(s) else s for s in scores]
    order = sorted(range(len(scores)), key=lambda i: (-value[i], i in positives))
    return next(place for place, i in enumerate(order) if i in positives)


def test_rank_by_hand() -> None:
    scores = np.array(
        [
            [9.0, 8.0, 7.0, 6.0],  # right: 2 -> two are better
            [5.0, 5.0, 5.0, 1.0],  # right: 0, tied with two wrong ones -> stands last of the three
            [5.0, 5.0, 4.0, 9.0],  # right: 0 and 1 tie; only candidate 3 is better
            [1.0, np.nan, 0.0, 2.0],  # right: 1 is NaN -> behind everything
            [np.nan, 3.0, 2.0, 1.0],  # a NaN rival never wins
            [0.0, 1.0, 2.0, 3.0],  # best of the two right ones counts
        ]
    )
    positives = [[2], [0], [0, 1], [1], [1], [0, 3]]
    assert metrics.rank_of_best_match([scores], positives).tolist() == [2, 2, 1, 3, 0, 0]


def test_rank_of_equal_scores_is_the_last_place_not_the_first() -> None:
    scores = np.full((3, 7), np.nan)
    scores[0] = 0.25
    scores[1] = -np.inf
    assert metrics.rank_of_best_match([scores], [[3], [3, 3], [3, 4]]).tolist() == [6, 6, 5]


@pytest.mark.parametrize("rows", [1, 2, 13, 29, 1000])
def test_rank_equals_sorting_whatever_the_block(rows: int) -> None:
    random = np.random.default_rng(2)
    scores = random.integers(0, 6, (29, 37)).astype(np.float32)
    scores[random.random(scores.shape) < 0.1] = np.nan
    scores[random.random(scores.shape) < 0.05] = -np.inf
    positives = [random.integers(0, 37, random.integers(1, 6)) for _ in range(29)]
    expected = [_rank_by_sorting(scores[i].tolist(), set(positives[i].tolist())) for i in range(29)]
    assert metrics.rank_of_best_match(_blocks(scores, rows), positives).tolist() == expected
    assert len(set(expected)) > 5


def test_rank_leaves_the_scores_as_they_are_and_takes_half_precision_and_integers() -> None:
    scores = np.array([[1.0, np.nan, 2.0]], np.float16)
    assert metrics.rank_of_best_match([scores], [[0]]).tolist() == [1]
    assert np.isnan(scores[0, 1])
    assert metrics.rank_of_best_match([np.array([[3, 1, 2]])], [{2}]).tolist() == [1]


def test_rank_refuses_what_does_not_fit() -> None:
    block = np.zeros((2, 3))
    for blocks, positives, message in (
        ([block], [[0], []], "Query 1 has no matching candidate"),
        ([block], [[0], [3]], "Query 1: candidate 3 does not exist; there are 3"),
        ([block], [[-1], [0]], "Query 0: candidate -1 does not exist"),
        ([block], [[0]], "expected 1 queries, found at least 2"),
        ([block], [[0], [0], [0]], "expected 3 queries, found 2"),
        ([block, np.zeros((1, 4))], [[0]] * 3, r"at query 2: expected rows with all 3 scores, found shape \(1, 4\)"),
    ):
        with pytest.raises(UsageError, match=message):
            metrics.rank_of_best_match(blocks, positives)


def test_recall_and_median_rank_by_hand() -> None:
    ranks = np.array([0, 0, 1, 4, 5, 9, 10])
    assert [metrics.recall_at(ranks, k) for k in (1, 5, 10)] == [2 / 7, 4 / 7, 6 / 7]
    assert metrics.median_rank(ranks) == 5.0
    assert metrics.median_rank([0, 1]) == 1.5
    with pytest.raises(UsageError, match="no items"):
        metrics.recall_at([], 1)


# --------------------------------------------------------------------------------- choice files


def test_group_scores_by_hand() -> None:
    scores = [
        [[2, 1], [1, 2]],  # everything right
        [[2, 1], [2, 3]],  # text: image 0 ties between its captions; image: right
        [[2, 2], [1, 3]],  # image: caption 0 ties; text: right
        [[1, 2], [2, 1]],  # everything wrong
        [[np.nan, 1], [1, 2]],  # not a number is wrong
        [[2, 2], [1, 2]],  # image 1 ties between its captions, caption 0 between its images
        [[2, 1], [2, 2]],  # image 0 ties, caption 1 ties
    ]
    hits = metrics.group_hits(scores)
    assert hits["text"].tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert hits["image"].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert hits["group"].tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_group_scores_at_chance() -> None:
    hits = metrics.group_hits(np.random.default_rng(3).random((60_000, 2, 2)))
    assert [float(hits[key].mean()) for key in ("text", "image", "group")] == pytest.approx(
        [1 / 4, 1 / 4, 1 / 6], abs=0.01
    )


def test_choice_hits_by_hand() -> None:
    scores = [[2, 1], [1, 2], [1, 1], [np.nan, 0], [1, np.nan], [1, -np.inf]]
    assert metrics.choice_hits(scores).tolist() == [1, 0, 0, 0, 0, 1]
    assert metrics.choice_hits([[3, 1, 2], [3, 1, 4]], [0, 2]).tolist() == [1, 1]
    assert metrics.choice_hits([[3, 3, 2], [3, 1, 4]], [1, 0]).tolist() == [0, 0]


def test_choice_files_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected shape \(n, 2 captions, 2 images\), found \(1, 2, 3\)"):
        metrics.group_hits(np.zeros((1, 2, 3)))
    with pytest.raises(UsageError, match=r"found \(3, 1\)"):
        metrics.choice_hits(np.zeros((3, 1)))
    with pytest.raises(UsageError, match="must lie in 0 to 1"):
        metrics.choice_hits(np.zeros((1, 2)), [2])


# ----------------------------------------------------------------------------------------- WUPS


def _likeness(a: str, b: str) -> float:
    table = {("chair", "stool"): 0.95, ("chair", "table"): 0.8, ("stool", "table"): 0.5}
    return table.get((min(a, b), max(a, b)), 0.0)


def test_wups_by_hand() -> None:
    values = wups(
        [{"chair"}, {"stool"}, {"table"}, {"chair", "table"}, {"chair"}, set(), {"lamp"}],
        [{"chair"}, {"chair"}, {"chair"}, {"chair"}, {"chair", "table"}, {"chair"}, {"chair"}],
        similarity=_likeness,
    )
    # 1; 0.95 above the threshold; 0.8 counts a tenth; one word too many 1 * 0.08; one word missing 0.08; 0; 0
    assert values == pytest.approx([1.0, 0.95, 0.08, 0.08, 0.08, 0.0, 0.0], abs=1e-12)
    plain = wups([{"table"}], [{"chair"}], threshold=0.0, similarity=_likeness)
    assert plain == pytest.approx([0.8], abs=1e-12)


def test_wups_equals_a_loop() -> None:
    random = np.random.default_rng(4)
    words = ["chair", "stool", "table", "lamp"]

    def side(first: set[str], second: set[str]) -> float:
        product = 1.0
        for a in first:
            best = 0.0
            for b in second:
                raw = 1.0 if a == b else _likeness(a, b)
                best = max(best, raw if raw >= 0.9 else raw / 10)
            product *= best
        return product

    for _ in range(200):
        answers, right = (set(random.choice(words, random.integers(1, 4), replace=False).tolist()) for _ in range(2))
        expected = min(side(answers, right), side(right, answers))
        assert wups([answers], [right], similarity=_likeness)[0] == pytest.approx(expected, abs=1e-12)


def test_wups_refuses_strings_and_empty_targets() -> None:
    with pytest.raises(UsageError, match="item 0: expected a set of answers, found one string"):
        wups(["chair"], [["chair"]], similarity=_likeness)
    with pytest.raises(UsageError, match="item 1: the set of right answers is empty"):
        wups([["chair"], ["chair"]], [["chair"], []], similarity=_likeness)
    with pytest.raises(UsageError, match="found 1 for 2"):
        wups([["chair"]], [["chair"], ["chair"]], similarity=_likeness)


def _install_nltk(monkeypatch: pytest.MonkeyPatch, wordnet: object) -> None:
    corpus = ModuleType("nltk.corpus")
    corpus.wordnet = wordnet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_wups_says_when_nltk_or_wordnet_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise LookupError("Resource wordnet not found.")

    _install_nltk(monkeypatch, SimpleNamespace(ensure_loaded=absent))
    assert not wups_available()
    with pytest.raises(FrevlError, match="WUPS needs WordNet through nltk, which is not installed"):
        wups([["chair"]], [["stool"]])
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)  # import nltk.corpus now fails
    assert not wups_available()


def test_wups_takes_the_best_pair_of_senses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sense:
        def __init__(self, values: dict[str, float | None], name: str) -> None:
            self.values, self.name = values, name

        def wup_similarity(self, other: Sense) -> float | None:
            return self.values[other.name]

    senses = {
        "chair": [Sense({"s": None, "t": 0.4}, "seat"), Sense({"s": 0.93, "t": 0.2}, "post")],
        "stool": [Sense({}, "s"), Sense({}, "t")],
    }

    def synsets(word: str, pos: str) -> list[Sense]:
        assert pos == "n"
        return senses.get(word, [])

    _install_nltk(monkeypatch, SimpleNamespace(ensure_loaded=lambda: None, synsets=synsets))
    assert wups_available()
    similarity = wordnet_similarity()
    assert similarity("chair", "stool") == 0.93
    assert similarity("chair", "unheard-of") == 0.0
    assert wups([["chair"]], [["stool"]]).tolist() == [0.93]
