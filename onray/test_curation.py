"""Folds of a curation trained by the nodes of a cluster: the same verdicts as in one process, whatever dies."""

import json

import numpy as np
import pytest

import frevl
from captioned import make_captioned
from frevl.diagnosis.curation.folds import each_fold
from frevl.errors import FrevlError, MissingExtraError
from frevl.store.many_nodes.workers import Workers
from frevl.store.reader import Store
from frevl.training.training import train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_captioned(tmp_path_factory.mktemp("captioned") / "world")


@pytest.fixture(scope="module")
def classes(world):
    """Three classes that the images show, a few of them labelled wrongly."""
    vectors = np.load(world.folder / "images.npy")
    kinds = (vectors @ np.random.default_rng(0).standard_normal((vectors.shape[1], 3))).argmax(axis=1)
    kinds[::20] = (kinds[::20] + 1) % 3
    lines = [{"image": f"{n}.jpg", "target": "abc"[kind]} for n, kind in enumerate(kinds)]
    file = world.folder / "classes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def verdicts(curation):
    return [line["curate"] for line in curation.lines]


def test_matches_are_the_same_and_either_way_goes_on_with_the_other(nodes, world, tmp_path, monkeypatch):
    asked = {"drop": ["match"], "folds": 3}
    here = frevl.curate(world.store, world.exchanged, tmp_path / "here.jsonl", **asked)
    monkeypatch.chdir(world.folder)
    there = frevl.curate("store", "exchanged.jsonl", tmp_path / "there.jsonl", ray=nodes.address, **asked)
    ours, theirs = ([one["match"] for one in verdicts(found)] for found in (here, there))
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    assert there.filters["match"]["flagged"] == here.filters["match"]["flagged"] > 0
    assert there.notes[-1:] == here.notes[-1:]

    results = Workers.results

    def cut(self, *arguments):
        for one in results(self, *arguments):
            yield one
            raise FrevlError("the power failed")

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "results", cut)
        with pytest.raises(FrevlError, match="power"):
            frevl.curate(world.store, world.exchanged, tmp_path / "cut.jsonl", ray=nodes.address, **asked)
    assert len(list((tmp_path / "cut.jsonl.unfinished").rglob("*fold*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(each_fold, "_on_nodes", None)  # the rest is trained here
        again = frevl.curate(world.store, world.exchanged, tmp_path / "cut.jsonl", **asked)
    np.testing.assert_allclose([one["match"] for one in verdicts(again)], ours, atol=1e-3)


def test_labels_are_the_same_whichever_worker_dies(nodes, world, classes, tmp_path, monkeypatch):
    here = frevl.curate(world.store, classes, tmp_path / "here.jsonl", drop=["label"])
    hand, killed = Workers._hand, []

    def kill_and_hand(self, block, worker, flying):
        if not killed:
            killed.append(self._ray.kill(worker.actor))
        hand(self, block, worker, flying)

    monkeypatch.setattr(Workers, "_hand", kill_and_hand)
    monkeypatch.setattr("frevl.store.many_nodes.workers._SLOW", 1e9)
    there = frevl.curate(world.store, classes, tmp_path / "there.jsonl", drop=["label"], ray=nodes.address)
    assert len(killed) == 1
    assert any("Lost workers: 1 on " in note for note in there.notes)
    assert [one["label"][:2] for one in verdicts(there)] == [one["label"][:2] for one in verdicts(here)]
    assert there.filters["label"]["flagged"] == here.filters["label"]["flagged"] > 0


def test_a_run_scores_on_the_nodes(nodes, world, tmp_path):
    run = tmp_path / "run"
    train(world.store, world.clean, run=run, task="matching", model="dual", options={"epochs": 2, "members": 1})
    asked = {"drop": ["match"], "run": run}
    here = frevl.curate(world.store, world.exchanged, **asked)
    there = frevl.curate(world.store, world.exchanged, ray=nodes.address, **asked)
    assert verdicts(there) == verdicts(here)


def test_what_cannot_be_done_is_said(nodes, world, tmp_path, monkeypatch):
    with pytest.raises(FrevlError, match=r"no cluster answers at '127\.0\.0\.1:1'"):
        frevl.curate(world.store, world.exchanged, ray="127.0.0.1:1")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "version", lambda *_: 99)
        with pytest.raises(FrevlError, match=r"--ray: the node \S+ sees a different store under "):
            frevl.curate(world.store, world.exchanged, ray=nodes.address)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match="ray"):
        frevl.curate(world.store, world.exchanged, ray="local")
