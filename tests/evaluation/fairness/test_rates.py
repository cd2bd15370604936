"""Rates by group: by hand, and against loops over the definitions."""

import math

import numpy as np
import pytest

from frevl.errors import UsageError
from frevl.evaluation.fairness.rates import Cells, equal_opportunity_difference, rates_by_group


def test_rates_gap_and_opportunity_by_hand():
    groups = ["a", "b", "a", "b", "b"]
    assert rates_by_group([1, 1, 0, 1, 0], groups) == {"a": 0.5, "b": pytest.approx(2 / 3)}
    # True items: a 1 of 1 said to be, b 1 of 2.
    assert equal_opportunity_difference([1, 1, 0, 1, 0], [1, 1, 1, 0, 1], groups) == pytest.approx(0.5)
    cells = Cells([1, 1, 0, 1, 0], [0, 1, 0, 1, 1], ["p", "q", "r", "s", "t"], 2)
    assert cells.gap().value == pytest.approx(1 / 6)
    assert cells.difference(1, 0).value == pytest.approx(1 / 6)


def test_gap_of_three_groups_and_two_classes_is_the_largest_of_a_class():
    rates = np.array([[0.9, 0.2], [0.5, 0.3], [0.7, 0.9]])  # groups, classes
    items = [(g, c) for g in range(3) for c in range(2) for _ in range(10)]
    values = [float(n < 10 * rates[g, c]) for g in range(3) for c in range(2) for n in range(10)]
    cells = Cells(values, [2 * g + c for g, c in items], [str(n) for n in range(60)], 6)
    assert cells.gap((3, 2)).value == pytest.approx(0.7)
    assert cells.rates.reshape(3, 2) == pytest.approx(rates)


def test_items_of_cell_minus_one_and_their_clusters_play_no_part():
    whole = Cells([1, 0, 1, 0], [0, 1, -1, -1], ["p", "q", "r", "s"], 2)
    assert whole.counts.tolist() == [[1, 0], [0, 1]]
    assert whole.rates.tolist() == [1, 0]


def test_interval_draws_clusters_not_rows():
    random = np.random.default_rng(0)
    values = np.repeat(random.integers(0, 2, 60), 5).astype(float)  # five equal rows per image
    cells, pictures = np.repeat(np.arange(60) % 2, 5), np.repeat(np.arange(60), 5).astype(str)
    rows = np.arange(300).astype(str)
    by_picture = Cells(values, cells, pictures.tolist(), 2).difference(0, 1)
    by_row = Cells(values, cells, rows.tolist(), 2).difference(0, 1)
    ratio = (by_picture.high - by_picture.low) / (by_row.high - by_row.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.15)


def test_chance_finds_a_planted_gap_and_none_elsewhere():
    random = np.random.default_rng(1)
    cells, pictures = np.arange(200) % 2, [str(n) for n in range(200)]
    none = Cells((random.random(200) < 0.6).astype(float), cells, pictures, 2).chance()
    planted = Cells((random.random(200) < np.where(cells, 0.8, 0.4)).astype(float), cells, pictures, 2).chance()
    assert planted == 1 / 2001
    assert none > 0.05
    # An image with pairs of both groups has no group of its own to exchange.
    assert Cells([1, 0, 1], [0, 1, 1], ["p", "p", "q"], 2).chance() is None


def test_one_cluster_has_no_interval():
    gap = Cells([1, 0], [0, 1], ["p", "p"], 2).gap()
    assert gap.value == 1
    assert math.isnan(gap.low)


def test_refusals():
    with pytest.raises(UsageError, match="needs items that are true, found none"):
        equal_opportunity_difference([0, 0], [1, 0], ["a", "b"])
    with pytest.raises(UsageError, match="expected one group for each value"):
        rates_by_group([1, 0], ["a"])
    with pytest.raises(UsageError, match="expected one cell and one cluster for each of 2 values, found 1 and 2"):
        Cells([1, 0], [0], ["p", "q"], 2)
