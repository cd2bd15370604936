"""Labels of a store and scores of a pairs file from a cluster: the bytes that one process writes."""

import json

import numpy as np
import pytest
from PIL import Image

import frevl
from frevl.errors import FrevlError
from frevl.runs import score_files
from frevl.runs.labelling import label_store as labelling
from frevl.runs.scorer import Scorer
from frevl.store.many_nodes.connection import connected
from frevl.store.many_nodes.workers import Workers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, a run that labels its images, and one that reads texts too."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "images").mkdir()
    rows = []
    for k in range(500):
        pixels = np.random.default_rng(k).integers(60 * (k % 4), 60 * (k % 4) + 70, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
        rows.append({"image": f"{k}.png", "text": f"is it {k % 9}?", "target": "abcd"[k % 4]})
    (folder / "images" / "0.png").write_bytes(b"no picture")
    for name, keys in {"pairs": ("image", "text", "target"), "labels": ("image", "target")}.items():
        lines = [json.dumps({key: row[key] for key in keys}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    frevl.extract(folder / "store", images=folder / "images", pairs=folder / "pairs.jsonl", encoder="toy")
    for name in ("pairs", "labels"):
        frevl.train(
            folder / "store", pairs=folder / f"{name}.jsonl", task="classification", model="linear", run=folder / name
        )
    return folder


@pytest.fixture
def cluster(nodes, monkeypatch):
    monkeypatch.setattr(labelling, "_AT_ONCE", 64)
    monkeypatch.setattr(score_files, "_PAIRS_AT_ONCE", 64)
    with connected(nodes.address):
        yield nodes


def test_labels_are_the_same_and_either_way_goes_on_with_the_other(made, cluster, tmp_path, monkeypatch):
    scorer = Scorer.open(made / "labels", store=made / "store")
    here = labelling.label_store(scorer, tmp_path / "here.jsonl")
    there = labelling.label_store(scorer, tmp_path / "there.jsonl", ray=cluster.address)
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert {**there.record(), "out": ""} == {**here.record(), "out": ""}
    assert (there.surest, there.least_sure) == (here.surest, here.least_sure)

    results = Workers._results

    def cut(self, *arguments):
        for count, one in enumerate(results(self, *arguments)):
            if count == 4:
                raise FrevlError("the power failed")
            yield one

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "_results", cut)
        with pytest.raises(FrevlError, match="power"):
            labelling.label_store(scorer, tmp_path / "cut.jsonl", ray=cluster.address)
    assert not (tmp_path / "cut.jsonl").exists()
    assert labelling.label_store(scorer, tmp_path / "cut.jsonl").labelled == 499
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_scores_are_the_same(made, cluster, tmp_path):
    scorer = Scorer.open(made / "pairs", store=made / "store")
    pairs = made / "pairs.jsonl"
    told = []
    for name, address in (("here", None), ("there", cluster.address)):
        notes = []
        told.append((*score_files.score_file(scorer, pairs, tmp_path / name, notes, sets=0.9, ray=address), notes))
    assert told[0] == told[1]
    assert told[0][0] == 499
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_a_node_that_sees_another_store_is_named(made, cluster, tmp_path, monkeypatch):
    scorer = Scorer.open(made / "labels", store=made / "store")
    monkeypatch.setattr(type(scorer.store), "version", lambda *_: 99)
    with pytest.raises(FrevlError, match=r"--ray: the node \S+ sees a different store or run under "):
        labelling.label_store(scorer, tmp_path / "out.jsonl", ray=cluster.address)
