"""Encoded pairs and listed pairs are prepared alike: the same splits, groups, classes and notes."""

import json

import numpy as np
import pytest
import torch

from frevl.data import pairs as pairs_module
from frevl.data.packed.columns import Coded, WithCluster
from frevl.data.pairs import read_pairs
from frevl.evaluation.evaluation import evaluate
from frevl.runs.scorer import Scorer
from frevl.store.grouping.groups import Forest, group_pairs, joined_nodes
from frevl.training.prepare import prepare
from frevl.training.training import train


@pytest.fixture
def both(tmp_path, monkeypatch):
    """Return what a function says of a file of these rows, read as lists and as codes."""

    def run(rows, function):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found = []
        for least in (1 << 40, 0):
            monkeypatch.setattr("frevl.data.pairs._LARGE", least)
            found.append(function(path))
        assert isinstance(read_pairs(path).images, Coded)
        return found

    return run


def rows_of(world, kind):
    file = world.captions_file if kind == "captions" else world.train_file
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if kind == "scenes":
        rows = [{**row, "scene": f"s{int(row['image'].split('.')[0]) % 40}"} for row in rows]
    if kind == "clusters":
        rows = [{**row, "cluster": f"c{number % 50}"} if number % 3 else row for number, row in enumerate(rows)]
    if kind == "soft":
        rows = [{**row, "target": {row["target"]: 0.9, "maybe": 0.3}} for row in rows]
    if kind == "gaps":
        rows = [{key: value for key, value in row.items() if key != "target" or number % 5}
                for number, row in enumerate(rows)]  # fmt: skip
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["captions", "plain", "scenes", "clusters", "soft", "gaps"])
def test_training_is_prepared_alike(made, both, kind):
    task = "matching" if kind == "captions" else "classification"

    def prepared(path):
        return prepare(
            made.store, path, None, task=task, encoder=None, seed=3, dev_share=0.2, min_answer_count=1,
        )  # fmt: skip

    listed, coded = both(rows_of(made, kind), prepared)
    assert (coded.labels, coded.notes, coded.doubts) == (listed.labels, listed.notes, listed.doubts)
    assert np.array_equal(coded.image_hashes, listed.image_hashes)
    for own, other in ((coded.train, listed.train), (coded.dev, listed.dev)):
        for name in ("images", "texts", "image_rows", "text_rows"):
            assert torch.equal(getattr(own.pairs, name), getattr(other.pairs, name)), name
        assert torch.equal(own.clusters, other.clusters)
        if task == "matching":
            assert torch.equal(own.truth, other.truth)
        else:
            assert torch.equal(own.truth.classes, other.truth.classes)
            assert torch.equal(own.truth.weights, other.truth.weights)


def test_groups_are_the_same_and_are_not_written_into_every_pair(made, both):
    def grouped(path):
        parts, notes = group_pairs(made.store, [read_pairs(path), read_pairs(made.test_file)], group_by="scene")
        return parts, notes

    (listed, said), (coded, notes) = both(rows_of(made, "scenes"), grouped)
    assert notes == said
    assert isinstance(coded[0].extras, WithCluster)
    assert list(coded[0].clusters) == list(listed[0].clusters)
    assert list(coded[0].extras) == list(listed[0].extras)
    assert coded[0].extras[5] == listed[0].extras[5]
    assert list(coded[0].select([7, 2]).extras) == [listed[0].extras[7], listed[0].extras[2]]
    assert list(coded[0].extras[3:6]) == list(listed[0].extras[3:6])


@pytest.mark.slow
def test_a_run_says_the_same(made, both, tmp_path):
    def result(path):
        run = train(made.store, path, run=tmp_path / str(pairs_module._LARGE), task="classification", model="linear")
        return run.results["development"], evaluate(Scorer.open(run.path, store=made.store), path).metrics

    listed, coded = both(rows_of(made, "plain"), result)
    assert coded == listed


def test_nodes_are_joined_as_by_union_find():
    random = np.random.default_rng(0)
    for n, links in ((1, 0), (7, 3), (50, 30), (50, 200), (400, 399)):
        one, other = random.integers(0, n, (2, links))
        if links == n - 1:
            one, other = np.arange(links), np.arange(1, n)  # a chain
        roots, forest = joined_nodes(np.arange(n), one, other), Forest()
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            forest.join(a, b)
        trees = {}
        for node in range(n):
            trees.setdefault(forest.root(node), []).append(node)
        for nodes in trees.values():
            assert set(roots[nodes]) == {min(nodes)}
