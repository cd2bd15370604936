"""Numbered contents in arrays, against dictionaries."""

import numpy as np
import pytest

from frevl.data.packed.columns import Coded, joined, one_column
from frevl.store.grouping import contents
from frevl.store.grouping.contents import among, numbers_of


def hashes(count, different, seed=0):
    random = np.random.default_rng(seed)
    return np.array([f"{number * 7919:032x}" for number in random.integers(different, size=count)], "S32")


def by_dictionary(values):
    numbers = {}
    return [numbers.setdefault(value, len(numbers)) for value in values.tolist()]


@pytest.mark.parametrize(("count", "different"), [(1, 1), (300, 40), (300, 10**6), (0, 1)])
def test_numbers_are_those_of_a_dictionary(count, different):
    values = hashes(count, different)
    assert numbers_of(values).tolist() == by_dictionary(values)


def test_values_with_the_same_mixture_are_told_apart(monkeypatch):
    monkeypatch.setattr(contents, "_MIXING", np.uint64(0))  # only the last eight letters count
    values = np.array([f"{number:024x}{'0' * 8}" for number in (5, 3, 5, 4, 3)], "S32")
    assert numbers_of(values).tolist() == [0, 1, 0, 2, 1]


def test_which_are_among_others():
    own, others = hashes(200, 500), hashes(150, 500, seed=1)
    assert among(own, others).tolist() == [one in set(others.tolist()) for one in own.tolist()]
    assert among(own[:0], others).tolist() == []
    assert among(own, others[:0]).tolist() == [False] * 200


def test_what_mixes_alike_is_compared_whole(monkeypatch):
    monkeypatch.setattr(contents, "_MIXING", np.uint64(0))
    alike = np.array(["1" + "0" * 31, "2" + "0" * 31], "S32")
    assert among(alike, alike[:1]).tolist() == [True, False]


def test_columns_in_codes_are_joined_in_the_order_in_which_values_first_appear():
    first = Coded.of(np.array([3, 1, 3]), ["a", "b", "c", "d", "e"])
    second = first.with_codes(np.array([4, 1, 0], np.int32))
    numbers, names = joined([first, second])
    assert [one.tolist() for one in numbers] == [[0, 1, 0], [2, 1, 3]]
    assert list(names) == ["d", "b", "e", "a"]
    assert joined([list(first), list(second)])[1] == ["d", "b", "e", "a"]
    together = one_column([first, second])
    assert isinstance(together, Coded)
    assert list(together) == one_column([list(first), list(second)]) == ["d", "b", "d", "e", "b", "a"]
