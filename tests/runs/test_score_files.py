"""Scores of whole grids as a file, and what the scorer refuses."""

import json

import numpy as np
import pytest

from frevl.data.pairs import read_pairs
from frevl.encoders.registry import load_encoder
from frevl.errors import InputError, StoreError, UsageError
from frevl.evaluation.retrieval_metrics import evaluate_retrieval
from frevl.runs.pair_grid import ScoreRows
from frevl.runs.score_files import score_grid
from frevl.runs.scorer import Scorer
from frevl.training.training import train


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """A ``dual`` and a ``linear`` for matching, a ``majority`` for classification. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    for model, task, pairs in (
        ("dual", "matching", made.captions_file),
        ("linear", "matching", made.captions_file),
        ("majority", "classification", made.train_file),
    ):
        options = {"epochs": 1} if model == "dual" else None
        train(made.store.path, pairs, run=folder / model, task=task, model=model, options=options)
    return folder


@pytest.mark.slow
def test_a_grid_holds_every_pair_once(made, runs, tmp_path, frevl):
    some = made.captions_file.read_text().splitlines()[:6]
    (tmp_path / "p.jsonl").write_text("\n".join([*some, "no JSON"]))
    said = frevl("score", "--store", made.store.path, "--run", runs / "dual", "--pairs", tmp_path / "p.jsonl",
                 "--grid", "--out", tmp_path / "g.npz", "--json", tmp_path / "g.json")  # fmt: skip
    assert said.code == 0, said.err
    assert "Left out: 1 pair (" in said.out
    grid = np.load(tmp_path / "g.npz")
    texts = list(dict.fromkeys(json.loads(line)["text"] for line in some))
    assert grid["images"].tolist() == ["0.png", "1.png", "2.png"]
    assert grid["texts"].tolist() == texts
    scorer = Scorer.open(runs / "dual", store=made.store.path)
    one_by_one = [[scorer.score([(image, text)])[0] for text in texts] for image in ("0.png", "1.png", "2.png")]
    assert grid["score"] == pytest.approx(np.array(one_by_one), abs=1e-4)
    similar = scorer.image_vectors(["0.png", "1.png", "2.png"]) @ scorer.text_vectors(texts).T
    assert grid["similarity"] == pytest.approx(similar, abs=1e-6)
    assert grid["depth"] == 0
    record = json.loads((tmp_path / "g.json").read_text())
    assert (record["images"], record["texts"], len(record["rejects"])) == (3, len(texts), 1)


def test_the_recall_of_a_run_without_first_stage_follows_from_its_grid(made, runs, tmp_path, frevl):
    arguments = ["--store", made.store.path, "--run", runs / "linear", "--pairs", made.captions_file]
    assert frevl("score", *arguments, "--grid", "--out", tmp_path / "g.npz").code == 0
    grid = np.load(tmp_path / "g.npz")
    assert set(grid.files) == {"images", "texts", "score"}
    pairs = read_pairs(made.captions_file)
    right = set(zip(pairs.images, pairs.texts, strict=True))
    hits = 0
    for image, scores in zip(grid["images"], grid["score"], strict=True):
        best = max(score for text, score in zip(grid["texts"], scores, strict=True) if (image, text) in right)
        wrong = [score for text, score in zip(grid["texts"], scores, strict=True) if (image, text) not in right]
        hits += sum(score >= best for score in wrong) < 1
    measured, _ = evaluate_retrieval(Scorer.open(runs / "linear", store=made.store.path), pairs)
    assert hits / len(grid["images"]) == measured["i2t_r1"].interval().value


@pytest.mark.parametrize(
    ("run", "out", "code", "words"),
    [
        ("dual", "g.jsonl", 2, "g.jsonl: a grid of scores is written as .npz, for numpy.load; found '.jsonl'"),
        ("majority", "g.npz", 2, "a grid needs a matching run, found task 'classification'"),
        ("dual", "file/g.npz", 1, "file/g.npz: the scores cannot be written (File exists)"),
    ],
)
def test_grids_that_cannot_be_written(made, runs, tmp_path, monkeypatch, frevl, run, out, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    said = frevl("score", "--store", made.store.path, "--run", runs / run, "--pairs", made.captions_file, "--grid",
                 "--out", out)  # fmt: skip
    assert said.code == code
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.npz*"))


def test_values_of_another_type_are_named(made, runs):
    scorer = Scorer.open(runs / "dual", store=made.store.path)
    encoder = load_encoder("toy")
    for call, words in (
        (lambda: encoder.embed_texts(["a", None]), "embed_texts takes a list of texts and found one of type NoneType"),
        (lambda: encoder.embed_images([3]), "Pillow images, and found one of type int"),
        (lambda: scorer.score([("0.png", 3)]), "A text to score must be a string, found int"),
    ):
        with pytest.raises(UsageError, match=words):
            call()
    with pytest.raises(StoreError, match="1 of 1 image ids are not in the store \\(the first is 'None'\\)"):
        made.store.read_images([None])


def test_a_grid_file_is_written_in_blocks_and_read_as_savez_writes(made, runs, tmp_path, monkeypatch):
    scorer = Scorer.open(runs / "dual", store=made.store)
    score_grid(scorer, made.captions, tmp_path / "whole.npz")
    images, texts = (list(dict.fromkeys(side)) for side in (made.captions.images, made.captions.texts))
    grid = scorer.grid(images, texts)
    monkeypatch.setattr("frevl.runs.pair_grid._PAIRS", 7)
    monkeypatch.setattr("frevl.runs.pair_grid._empty_grid", None)  # nobody asks for the whole
    score_grid(scorer, made.captions, tmp_path / "blocks.npz")
    whole, blocks = (np.load(tmp_path / f"{name}.npz", allow_pickle=False) for name in ("whole", "blocks"))
    assert set(whole.files) == set(blocks.files) == {"images", "texts", "score", "similarity", "depth"}
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], blocks[name])
    np.testing.assert_array_equal(whole["score"], grid)


def test_a_grid_file_without_room_is_refused_before_anything_is_scored(made, runs, tmp_path, monkeypatch):
    scorer = Scorer.open(runs / "dual", store=made.store)
    monkeypatch.setattr(ScoreRows, "__iter__", None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000}))
    with pytest.raises(InputError, match=r"take 12 kB, and .* has 1 kB free; free some space, or score fewer"):
        score_grid(scorer, made.captions, tmp_path / "deeper" / "g.npz")
    monkeypatch.setattr("frevl.runs.score_files._MOST_NAMES", 1_000)
    with pytest.raises(InputError, match=r"as wide as the longest image, which has 7 characters, so they take"):
        score_grid(scorer, made.captions, tmp_path / "g.npz")
    assert list(tmp_path.iterdir()) == []
