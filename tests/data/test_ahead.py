"""Work ahead in threads: in order, bounded, and without losing an error."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from frevl.data.ahead import ahead_of


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_and_few_wait(depth, threads):
    drawn, taken = [], []

    def arguments():
        for number in range(11):
            drawn.append(number)
            assert len(drawn) - len(taken) <= depth + 1
            yield number

    with ThreadPoolExecutor(threads) as pool:
        taken.extend(ahead_of(pool, lambda number: 10 * number, arguments(), depth))
    assert taken == [10 * number for number in range(11)]


def test_the_next_is_worked_on_while_one_is_used():
    begun = threading.Event()

    def call(number):
        if number == 1:
            begun.set()
        return number

    with ThreadPoolExecutor(1) as pool:
        results = ahead_of(pool, call, iter([0, 1, 2]), 1)
        assert next(results) == 0
        assert begun.wait(60)
        assert [*results] == [1, 2]


def test_an_error_comes_out_at_its_place_and_cancels_the_rest():
    done = []

    def call(number):
        if number == 2:
            raise OSError("two")
        done.append(number)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = ahead_of(pool, call, range(100), 1)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(OSError, match="two"):
            next(results)
    assert len(done) < 10
