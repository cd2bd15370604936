"""Folds on the nodes of a cluster, without a cluster: what is sent there, and how time and cores are divided."""

import pickle
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from captioned import captioned  # noqa: F401 - a fixture
from frevl.data.pairs import read_pairs
from frevl.diagnosis.curation.folds import each_fold
from frevl.diagnosis.curation.folds.each_fold import Fold
from frevl.diagnosis.curation.lines import Lines
from frevl.store.many_nodes.workers import Greeting
from frevl.training.options import Session


class Counted:
    """Work that says for which lines, fold and time limit it was called."""

    def __init__(self, lines):
        self.lines = lines

    def __call__(self, number, time_limit, _place):
        limit = -1.0 if time_limit is None else time_limit
        return {"seen": torch.tensor([len(self.lines), number, limit])}, number == 1


class InPlaceOfNodes:
    """Does the blocks here, last one first, after sending the work as a cluster would."""

    count, notes = 2, ["one note"]

    def __init__(self, _ray, make, *, count, processors, accelerators):
        assert (count, processors, accelerators) == (3, 2, 0)
        self.work = pickle.loads(pickle.dumps(make))()  # noqa: S301 - our own bytes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, greeted):
        greeted(Greeting("here", {}, self.work.about))

    def results(self, blocks):
        for block in reversed(list(blocks)):
            yield block, self.work(block)


@pytest.fixture
def lines(captioned):  # noqa: F811
    towers = [
        [tower for tower in captioned.store.towers.values() if tower.modality == one] for one in ("image", "text")
    ]
    session = Session(seed=0, time_limit=60, device="cpu", progress=False)
    return Lines(captioned.store, read_pairs(captioned.clean), "matching", *towers, session)


def each(lines, ray=None):
    given = Lines(**{**vars(lines), "ray": ray, "notes": []})
    return list(each_fold.each_fold(given, "m", 3, Counted(given), Counted, limit=60, least=1.0)), given.notes


def test_nodes_get_the_same_lines_and_their_results_come_in_order(lines, monkeypatch):
    @contextmanager
    def connected(address):
        assert address == "there"
        nodes = [{"Alive": True, "Resources": {"CPU": cores}} for cores in (4, 2)]
        yield SimpleNamespace(nodes=lambda: nodes)

    monkeypatch.setattr(each_fold, "connected", connected)
    monkeypatch.setattr(each_fold, "Workers", InPlaceOfNodes)
    there, notes = each(lines, "there")
    assert notes == ["one note"]
    assert [(one.number, one.cut) for one in there] == [(0, False), (1, True), (2, False)]
    for number, one in enumerate(there):
        rows, fold, limit = one.tensors["seen"].tolist()
        assert (rows, fold) == (len(lines), number)
        assert limit == pytest.approx(30, abs=1)  # three folds on two workers are two rounds


def test_here_every_fold_gets_an_equal_share_of_what_time_is_left(lines):
    here, notes = each(lines)
    assert notes == []
    assert all(isinstance(one, Fold) for one in here)
    assert [one.tensors["seen"][2].item() for one in here] == pytest.approx([20, 30, 60], abs=1)


@pytest.mark.parametrize(
    ("nodes", "workers", "processors"),
    [([8, 8], 3, 4), ([8, 8], 2, 8), ([1, 1, 1, 1], 3, 1), ([32], 5, 6), ([2], 5, 1), ([0, 16], 4, 4), ([], 3, 1)],
)
def test_workers_share_the_cores_so_that_all_find_room(nodes, workers, processors):
    alive = [{"Alive": True, "Resources": {"CPU": count} if count else {}} for count in nodes]
    ray = SimpleNamespace(nodes=lambda: [*alive, {"Alive": False, "Resources": {"CPU": 64}}])
    assert each_fold._processors(ray, workers) == processors
