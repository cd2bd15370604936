"""Blocks of work over the workers of a cluster: each is done once, whatever dies, fails or dawdles."""

import pytest

from frevl.errors import FrevlError, PairsError, UsageError
from frevl.store.many_nodes.connection import connected
from frevl.store.many_nodes.workers import Workers
from work import squares


@pytest.fixture
def ray(nodes):
    with connected(nodes.address) as module:
        yield module


def done(ray, faults, numbers=range(1, 12), **options):
    with Workers(ray, squares(faults), **{"count": 2, **options}) as workers:
        greeted = []
        workers.start(greeted.append)
        assert 1 <= len(greeted) <= workers.count  # the last may come later on a busy machine
        results = sorted(workers.results(numbers))
        assert {one.about for one in greeted} == {"squares"}
    return results, workers.notes


@pytest.fixture
def no_second_try(monkeypatch):
    """Leave a block with who has it: else it may be done before anybody knows that its worker is dead."""
    monkeypatch.setattr("frevl.store.many_nodes.workers._SLOW", 1e9)


SQUARES = [(number, number * number) for number in range(1, 12)]


def test_all_blocks_are_done_once(ray, tmp_path):
    assert done(ray, tmp_path, count=None) == (SQUARES, [])
    assert done(ray, tmp_path, count=1) == (SQUARES, [])
    assert done(ray, tmp_path, numbers=[]) == ([], [])


def test_a_worker_that_is_killed_is_replaced(ray, tmp_path, no_second_try):
    (tmp_path / "kill-3").touch()
    results, (note,) = done(ray, tmp_path)
    assert results == SQUARES
    assert note.startswith("Lost workers: 1 on ")


def test_a_worker_that_is_killed_while_it_loads_is_named(ray, tmp_path):
    (tmp_path / "kill-loading").touch()
    results, (note,) = done(ray, tmp_path)
    assert results == SQUARES
    assert note.startswith("Lost workers: 1 while loading (")


def test_the_only_worker_may_die(ray, tmp_path):
    (tmp_path / "kill-3").touch()
    (tmp_path / "kill-11").touch()
    assert done(ray, tmp_path, count=1)[0] == SQUARES


def test_a_worker_whose_disk_is_full_is_replaced(ray, tmp_path, no_second_try):
    (tmp_path / "full-5").touch()
    results, (note,) = done(ray, tmp_path)
    assert results == SQUARES
    assert "No space left on device" in note


def test_what_a_slow_worker_holds_is_begun_by_another(ray, tmp_path):
    (tmp_path / "slow-11").touch()
    assert done(ray, tmp_path)[0] == SQUARES


def test_an_error_of_the_work_ends_it(ray, tmp_path):
    (tmp_path / "wrong-4").touch()
    with pytest.raises(PairsError, match="line 4: wrong"):
        done(ray, tmp_path)


def test_a_block_that_kills_every_worker_is_named(ray, tmp_path, monkeypatch):
    monkeypatch.setattr("frevl.store.many_nodes.workers._MOST_DEATHS", 3)
    (tmp_path / "poison-4").touch()
    with pytest.raises(FrevlError, match="3 workers were lost with the same block, 4 "):
        done(ray, tmp_path)


@pytest.mark.parametrize("address", ["", "ray://127.0.0.1:10001"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="--ray takes the address of a cluster's head"), connected(address):
        pass
