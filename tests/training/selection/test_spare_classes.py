"""No split takes all examples of a class away; with one example per class nothing is held out."""

import json

import numpy as np
import pytest
import torch

from frevl.data.pairs import read_pairs
from frevl.evaluation.evaluation import evaluate
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.runs.targets import Answers
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.training.examples import join
from frevl.training.prepare import prepare
from frevl.training.selection.folds import cv_splits
from frevl.training.selection.spare_classes import spare_clusters
from frevl.training.training import train

CLASSES = 20


def answers(classes, weights=None):
    classes = torch.tensor(classes)
    classes = classes[:, None] if classes.dim() == 1 else classes
    return Answers(classes, torch.ones(classes.shape) if weights is None else torch.tensor(weights), soft=False)


def test_what_can_be_spared_by_hand():
    clusters, own = torch.arange(6), answers([0, 0, 1, 1, 1, 2])
    assert spare_clusters(clusters, own, [5, 0, 1, 2, 3, 4]) == [0, 2, 3]
    assert spare_clusters(clusters, own, [5, 0, 1, 2, 3, 4], 2) == [0, 2]
    assert spare_clusters(clusters, own, [4, 0, 5], 2) == [4, 0]  # nothing is in the way
    assert spare_clusters(clusters, own, [5]) == []


def test_a_second_answer_and_an_answer_that_is_no_class():
    several = answers([[0, 1], [0, -1], [1, -1], [-1, -1]], [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    # The first pair shows what the others show; the last one shows nothing.
    assert spare_clusters(torch.arange(4), several, [0, 3, 1, 2]) == [0, 3]


def test_a_picture_of_many_questions_is_held_out_though_one_answer_is_rare():
    clusters = torch.tensor([0] * 10 + [1] * 10 + [2])
    own = answers([0] * 9 + [1] + [0] * 10 + [2])
    assert spare_clusters(clusters, own, [0, 2]) == [0]
    mostly_rare = answers([0] * 5 + list(range(3, 8)) + [0] * 10 + [2])
    assert spare_clusters(clusters, mostly_rare, [0, 1, 2]) == [1]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Imported vectors of 20 classes; files with 1, 2 and 5 examples per class, and 6 others to evaluate on."""
    folder = tmp_path_factory.mktemp("few")
    random = np.random.default_rng(3)
    numbers = np.tile(np.arange(CLASSES), 11)
    vectors = random.standard_normal((CLASSES, 24))[numbers] + 0.6 * random.standard_normal((len(numbers), 24))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    ids = [f"{n}.png" for n in range(len(numbers))]
    (folder / "ids.json").write_text(json.dumps(ids))
    import_embeddings(
        folder / "vectors.npy", of="images", ids=folder / "ids.json", encoder="other", store=folder / "store"
    )
    rows = [json.dumps({"image": id_, "target": f"class {n}"}) + "\n" for id_, n in zip(ids, numbers, strict=True)]
    for examples in (1, 2, 5):
        (folder / f"{examples}.jsonl").write_text("".join(rows[: examples * CLASSES]))
    (folder / "mixed.jsonl").write_text("".join(rows[:CLASSES] + rows[CLASSES : 5 * CLASSES : 2]))
    (folder / "others.jsonl").write_text("".join(rows[5 * CLASSES :]))
    means = vectors[:CLASSES]
    right = 100 * ((vectors[5 * CLASSES :] @ means.T).argmax(1) == numbers[5 * CLASSES :]).mean()
    return folder, right


def prepared(few, name, dev=None):
    folder, _ = few
    return prepare(
        Store.open(folder / "store"), folder / name, None if dev is None else folder / dev, task="classification",
        encoder=None, seed=0, dev_share=0.1, min_answer_count=1,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2.jsonl", "5.jsonl", "mixed.jsonl"])
@pytest.mark.parametrize("dev", [None, "others.jsonl"])
def test_no_split_takes_a_class_away(few, name, dev):
    data = prepared(few, name, dev)
    assert len(data.labels) == CLASSES
    assert len(torch.unique(data.train.truth.classes)) == CLASSES
    everything = join(data.train, data.dev)
    for seed in range(3):
        for fold in cv_splits(data, seed)[0]:
            assert len(torch.unique(everything.truth.classes[fold.train])) == CLASSES
            assert len(fold.held_out)
            compared = torch.cat([fold.held_out, fold.check, fold.train])
            assert fold.inner_is_spare == (not torch.isin(fold.inner, compared).any())


@pytest.mark.parametrize("task", ["matching", "classification"])
def test_no_more_than_so_many_pairs_are_set_aside(made, monkeypatch, task):
    """Whole images, the others are learned from, and a note says so; below the limit nothing changes."""
    file = made.captions_file if task == "matching" else made.train_file
    pairs = read_pairs(file)

    def prepared(share):
        return prepare(made.store, pairs, None, task=task, encoder=None, seed=0, dev_share=share, min_answer_count=1)

    usual = prepared(0.25)
    most = len(pairs) // 8
    for module in ("examples", "selection.spare_classes"):
        monkeypatch.setattr(f"frevl.training.{module}.MOST_SET_ASIDE", most)
    capped, same = prepared(0.25), prepared(most / len(pairs))
    right = int(capped.dev.truth.sum()) if task == "matching" else len(capped.dev)
    assert len(capped.train) + right == len(pairs)
    assert 0.5 * most <= right <= 1.5 * most
    assert not torch.isin(capped.dev.clusters, capped.train.clusters).any()
    assert torch.equal(capped.dev.pairs.image_rows, same.dev.pairs.image_rows)
    [note] = set(capped.notes) - set(usual.notes)
    assert note.startswith(
        f"For development {right:,} of {len(pairs):,} pairs were set aside instead of the share of 0.25"
    )
    assert set(same.notes) <= set(usual.notes)


def test_with_one_example_nothing_is_set_aside(few):
    data = prepared(few, "1.jsonl")
    assert data.dev_is_seen
    assert not data.dev_is_spare
    assert len(data.train) == CLASSES
    assert not any("Leak" in note for note in data.notes)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["auto", "kernel", "linear"])
def test_one_example_a_class_is_as_good_as_the_nearest_mean(few, tmp_path, model):
    """Before, `kernel` and `auto` had 0.8 % of 102 classes, and a tenth of the classes was gone."""
    folder, right = few
    run = train(folder / "store", folder / "1.jsonl", run=tmp_path / "run", task="classification", model=model)
    assert len(run.labels) == CLASSES
    assert run.results["notes"][0].startswith("The development metric is meaningless: nearly every class has just one")
    assert run.results["warnings"] == run.results["notes"][:1]
    assert run.calibration == {"scale": 1.0, "offset": 0.0}
    result = evaluate(Scorer.open(tmp_path / "run", store=folder / "store"), folder / "others.jsonl")
    assert result.metrics["accuracy"] >= right - 2
    assert Run.load(tmp_path / "run").labels == run.labels
    if model == "auto":
        selection = run.results["selection"]
        assert selection["chosen"] == "kernel"
        assert "single example" in selection["reason"]
        assert {row["reason"] for row in selection["candidates"]} == {"nothing could be held out for a comparison"}


@pytest.mark.slow
def test_auto_compares_on_given_pairs_though_the_training_pairs_can_spare_none(few, tmp_path):
    folder, right = few
    run = train(
        folder / "store", folder / "1.jsonl", run=tmp_path / "run", task="classification", model="auto",
        dev=folder / "others.jsonl", options={"epochs": 2},
    )  # fmt: skip
    selection = run.results["selection"]
    assert selection["judged_on"] == "120 given development pairs"
    assert selection["checked_on"] == ""
    best = max(row["metric"] for row in selection["candidates"] if "metric" in row)
    assert best >= right - 2


@pytest.mark.slow
def test_early_stopping_needs_no_more_pairs_than_are_useful(few, monkeypatch):
    """Of ten million pairs, a tenth took minutes to evaluate after every epoch, and gigabytes to set aside."""
    data = prepared(few, "5.jsonl", "others.jsonl")
    (fold, *_), _, _ = cv_splits(data, 0)
    assert len(fold.inner) > 3
    monkeypatch.setattr("frevl.training.selection.folds.MOST_SET_ASIDE", 3)
    (fewer, *_), _, _ = cv_splits(data, 0)
    assert len(fewer.inner) == 3
    assert set(fewer.inner.tolist()) <= set(fold.inner.tolist())


def test_a_rare_class_among_many_images_takes_no_tensor_for_each_of_them():
    """Every image was looked up in a dictionary of one tensor each: gigabytes for a million."""
    clusters = torch.arange(200_000)
    own = answers([0] * 199_999 + [1])
    order = np.arange(200_000)[::-1].copy()
    assert spare_clusters(clusters, own, order, 3) == [199_998, 199_997, 199_996]
