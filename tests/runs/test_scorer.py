"""One path to a score: the same pair gets the same score in any batch, order, padding, and by any entry point."""

import json
import shutil
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch

import frevl
from frevl.errors import FingerprintError, RunError, StoreError, UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.runs.batches import EmbeddedPairs, logits_of
from frevl.runs.run import Run
from frevl.runs.score_files import score_file
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.store.towers import IMPORTED
from frevl.training.training import train


@pytest.fixture(scope="module")
def answering(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    train(
        made.store,
        made.train_file,
        run=folder,
        task="classification",
        options={"epochs": 4, "batch_size": 32, "layers": 1},
    )
    return folder


@pytest.fixture(scope="module")
def matching(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("matching")
    train(
        made.store,
        made.captions_file,
        run=folder,
        task="matching",
        options={"epochs": 4, "batch_size": 32, "layers": 1},
    )
    return folder


def pairs_of(pairs):
    return list(zip(pairs.images, pairs.texts, strict=True))


@pytest.mark.slow
def test_batch_size_and_order_never_change_a_score(made, answering):
    pairs = pairs_of(made.test)
    whole = Scorer.open(answering, store=made.store).score(pairs)
    assert whole.shape == (len(pairs), 2)
    one_by_one = Scorer.open(answering, store=made.store, batch_size=1).score(pairs)
    np.testing.assert_allclose(one_by_one, whole, atol=1e-5)
    alone = np.concatenate([Scorer.open(answering, store=made.store).score([pair]) for pair in pairs[:5]])
    np.testing.assert_allclose(alone, whole[:5], atol=1e-5)
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = Scorer.open(answering, store=made.store, batch_size=7).score([pairs[i] for i in order])
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-5)


def test_no_part_of_a_network_scores_in_training_mode(made, answering):
    scorer = Scorer.open(answering, store=made.store)
    embedded = scorer._embedded(pairs_of(made.test), {})
    network = scorer.run.network.eval()
    expected = logits_of(network, embedded, 13)
    # A network may share parts with one in training; its own mode says nothing of theirs.
    for part in network.children():
        part.train()
    assert not network.training
    torch.testing.assert_close(logits_of(network, embedded, 13), expected, rtol=0, atol=0)
    assert not any(module.training for module in network.modules())


@pytest.mark.slow
def test_tokens_score_the_same_alone_and_beside_longer_texts(made_tokens, tmp_path):
    train(
        made_tokens.store,
        made_tokens.train_file,
        run=tmp_path / "run",
        task="classification",
        options={"epochs": 1, "layers": 1},
    )
    scorer = Scorer.open(tmp_path / "run", store=made_tokens.store)
    image = made_tokens.train.images[0]
    short, long = "is it red?", "is the square in the middle of this white picture really red or is it not?"
    alone = scorer.score([(image, short)])
    np.testing.assert_allclose(scorer.score([(image, short), (image, long)])[:1], alone, atol=1e-5)


@pytest.mark.slow
def test_the_grid_equals_the_pairs(made, matching):
    scorer = Scorer.open(matching, store=made.store)
    images, texts = made.store.image_ids[:7], list(dict.fromkeys(made.captions.texts))[:5]
    grid = scorer.grid(images, texts)
    assert grid.shape == (7, 5)
    pairs = scorer.score([(image, text) for image in images for text in texts])
    np.testing.assert_allclose(grid.ravel(), pairs, atol=1e-5)


def test_a_text_that_is_not_in_the_store_is_embedded_as_the_store_would_hold_it(made, answering, tmp_path):
    new = "is the square purple?"
    scorer = Scorer.open(answering, store=made.store)
    assert new not in made.store.texts
    image = made.store.image_ids[0]
    mixed = scorer.score([(image, made.train.texts[0]), (image, new), (image, made.train.texts[1])])
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"image": image, "text": new}) + "\n")
    extract(tmp_path / "store", images=made.images, pairs=[rows, made.train_file], encoder=["toy"])
    stored = Scorer.open(answering, store=tmp_path / "store")
    assert new in stored.store.texts
    np.testing.assert_allclose(
        mixed, stored.score([(image, made.train.texts[0]), (image, new), (image, made.train.texts[1])]), atol=1e-6
    )


def test_empty_texts_and_unknown_images_are_refused(made, answering):
    scorer = Scorer.open(answering, store=made.store)
    with pytest.raises(StoreError, match="is blank"):
        scorer.score([(made.store.image_ids[0], "  ")])
    with pytest.raises(StoreError, match=r"'nowhere.png'\); add them with: frevl extract --images DIR"):
        scorer.score([("nowhere.png", made.train.texts[0])])
    assert scorer.score([]).shape == (0, 2)


def test_predictions_name_classes_with_probabilities(made, answering):
    scorer = Scorer.open(answering, store=made.store)
    pairs = pairs_of(made.test)[:9]
    scores = scorer.score(pairs)
    for prediction, score in zip(scorer.predict(pairs), scores, strict=True):
        assert prediction.label == scorer.run.labels[score.argmax()]
        assert [label for label, _ in prediction.top] == [scorer.run.labels[i] for i in np.argsort(-score)]
        assert sum(p for _, p in prediction.top) == pytest.approx(1, abs=1e-5)
        assert prediction.probability == prediction.top[0][1] >= 0.5


def test_calibration_is_scale_and_offset(made, matching):
    scorer = Scorer.open(matching, store=made.store)
    scorer.run.calibration = {"scale": 2.0, "offset": 1.0}
    np.testing.assert_allclose(
        scorer.probabilities(np.float32([0.0, -0.5, 1.0])), [0.7310586, 0.5, 0.9525741], atol=1e-6
    )


def test_a_task_is_not_used_for_the_other(made, matching, answering):
    with pytest.raises(UsageError, match="expected a classification run, found task 'matching'"):
        Scorer.open(matching, store=made.store).predict([])
    with pytest.raises(UsageError, match="a grid needs a matching run"):
        Scorer.open(answering, store=made.store).grid(["a"], ["b"])


@pytest.mark.slow
def test_a_run_refuses_a_store_with_another_fingerprint(made, made_tokens, answering, tmp_path):
    with pytest.raises(
        FingerprintError, match="the tower 'toy-image' differs .*'tokens' is 'pooled' there and '4x4' here"
    ):
        Scorer.open(answering, store=made_tokens.store)
    extract(tmp_path / "other", images=made.images, encoder=["toy"], dtype="float32")
    with pytest.raises(FingerprintError, match="'dtype' is 'float16' there and 'float32' here"):
        Scorer.open(answering, store=tmp_path / "other")
    extract(tmp_path / "toy2", images=made.images, encoder=["toy2"])
    needs = "needs the image tower 'toy-image', the store has"
    with pytest.raises(FingerprintError, match=f"{needs} .*; extract with: --encoder toy"):
        Scorer.open(answering, store=tmp_path / "toy2")
    run = Run.load(answering)
    vectors = {
        side: {name: {**identity, "weights": IMPORTED} for name, identity in towers.items()}
        for side, towers in run.towers.items()
    }
    with pytest.raises(FingerprintError, match=f"{needs} .*; import its vectors with: --encoder toy"):
        replace(run, towers=vectors).check_store(Store.open(tmp_path / "toy2"))


def test_a_run_survives_saving_and_renaming(made, answering, tmp_path):
    run = Run.load(answering)
    run.path = tmp_path / "any name"
    run.save()
    pairs = pairs_of(made.test)
    again = Scorer.open(tmp_path / "any name", store=made.store)
    assert (again.score(pairs) == Scorer.open(answering, store=made.store).score(pairs)).all()
    assert not [file for file in (tmp_path / "any name").iterdir() if file.suffix in (".pt", ".pkl", ".pth", ".bin")]


@pytest.mark.parametrize("damage", ["weights", "json", "missing", "field"])
def test_a_damaged_run_is_refused(answering, tmp_path, damage):
    run = Run.load(answering)
    run.path = tmp_path / "run"
    run.save()
    if damage == "weights":
        (run.path / "weights.safetensors").write_bytes(b"\x10" * 50)
    elif damage == "json":
        (run.path / "run.json").write_text('{"format": 1')
    elif damage == "missing":
        (run.path / "weights.safetensors").unlink()
    else:
        record = json.loads((run.path / "run.json").read_text())
        record["network_settings"]["width"] = 128
        (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="the run is damaged .*; train again"):
        Run.load(run.path)


def test_a_missing_run_and_a_newer_one_are_refused(answering, tmp_path):
    with pytest.raises(RunError, match="expected a run .*, found no such folder"):
        Run.load(tmp_path / "nothing")
    run = Run.load(answering)
    run.path = tmp_path / "run"
    run.save()
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(RunError, match="a newer frevl wrote this run"):
        Run.load(run.path)


def test_a_score_is_at_most_four_frames_from_the_network(made, answering, monkeypatch):
    class ReachedError(Exception):
        pass

    def forward(*_):
        raise ReachedError

    scorer = Scorer.open(answering, store=made.store)
    monkeypatch.setattr(frevl.Fusion, "forward", forward)
    with pytest.raises(ReachedError) as reached:
        scorer.score(pairs_of(made.test)[:2])
    frames = [frame for frame in traceback.extract_tb(reached.tb) if "/frevl/" in frame.filename]
    assert len(frames) <= 4


def test_score_files_copy_every_pair_and_keep_the_rejected(made, answering, matching, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "ok.png").write_bytes((made.images / "0.png").read_bytes())
    (images / "broken.png").write_bytes(b"not an image")
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"image": name, "text": "a red square", "note": n} for n, name in enumerate(["ok.png", "broken.png", "ok.png"])
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    extract(tmp_path / "store", images=images, pairs=[pairs], encoder=["toy"])
    for run, keys in ((matching, {"score", "probability"}), (answering, {"label", "probability", "top"})):
        scored, rejected = score_file(
            Scorer.open(run, store=tmp_path / "store"), pairs, tmp_path / "out" / "scores.jsonl"
        )
        written = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
        assert (scored, len(rejected)) == (2, 1)
        assert [{k: row[k] for k in ("image", "text", "note")} for row in written] == rows
        assert set(written[0]) - set(rows[0]) == keys
        # Rows of one batch may differ in their last bits.
        one, same = written[0], {**written[2], "note": 0}
        assert one.keys() == same.keys()
        assert [one[key] for key in ("score", "probability") if key in one] == pytest.approx(
            [same[key] for key in ("score", "probability") if key in one], abs=1e-5
        )
        assert one.get("label") == same.get("label")
        assert written[1]["score"] is None
        assert "rejected" in written[1]["reject"]


def test_evaluation_counts_by_hand(made, answering):
    scorer = Scorer.open(answering, store=made.store)
    test = made.test
    labels = [one.label for one in scorer.predict(pairs_of(test))]
    hits = [label == target for label, target in zip(labels, test.targets, strict=True)]
    result = evaluate(scorer, made.test_file)
    assert result.n == len(hits)
    assert result.metrics["accuracy"] == pytest.approx(100 * np.mean(hits))
    low, high = result.ci95["accuracy"]
    assert low <= result.metrics["accuracy"] <= high
    assert set(result.metrics) == {"accuracy", "ece", "ece_debiased", "brier", "macro_f1"}
    for colour, group in result.slices["asked"].items():
        own = [hit for hit, extra in zip(hits, test.extras, strict=True) if extra["asked"] == colour]
        assert group["n"] == len(own)
        assert group["accuracy"] == pytest.approx(100 * np.mean(own))
    json.dumps(result.record(), allow_nan=False)
    assert set(result.record()) == {
        "task", "n", "metrics", "ci95", "slices", "provenance", "notes", "majority", "left_out",
    }  # fmt: skip
    assert result.record()["left_out"] == []


def test_unseen_classes_are_wrong_and_said_and_leaks_are_found(made, answering):
    scorer = Scorer.open(answering, store=made.store)
    test = made.test
    test.targets[0] = "never heard of"
    result = evaluate(scorer, test)
    assert any("1 pair has only classes that were not in training" in note for note in result.notes)
    assert not any("Leak" in note for note in result.notes)
    leaked = evaluate(scorer, made.train)
    count = len(set(made.train.images))
    assert any(f"Leak: {count} of {count} different images were in training" in note for note in leaked.notes)


@pytest.mark.slow
def test_a_difference_between_two_runs_is_paired(made, answering, tmp_path):
    train(made.store, made.train_file, run=tmp_path / "majority", task="classification", model="majority")
    scorer, other = (Scorer.open(run, store=made.store) for run in (answering, tmp_path / "majority"))
    result = evaluate(scorer, made.test_file, versus=other)
    alone = evaluate(other, made.test_file)
    assert result.difference["metric"] == "accuracy"
    assert result.difference["difference"] == pytest.approx(result.metrics["accuracy"] - alone.metrics["accuracy"])
    twin = Scorer.open(shutil.copytree(answering, tmp_path / "twin"), store=made.store)
    same = evaluate(scorer, made.test_file, versus=twin)
    assert (same.difference["difference"], same.difference["ci95"]) == (0.0, [0.0, 0.0])


def test_retrieval_metrics_follow_the_grid(made, matching):
    scorer = Scorer.open(matching, store=made.store)
    result = evaluate(scorer, made.captions_file)
    recalls = [f"{d}_r{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)]
    assert list(result.metrics) == [*recalls, "i2t_median_rank", "t2i_median_rank"]
    images, texts = made.store.image_ids, list(dict.fromkeys(made.captions.texts))
    owners = {}
    for image, text in pairs_of(made.captions):
        owners.setdefault(image, set()).add(text)
    grid = scorer.grid(images, texts)
    found = []
    for image, row in zip(images, grid, strict=True):
        best = max(row[texts.index(text)] for text in owners[image])
        found.append(sum(s >= best for s, t in zip(row, texts, strict=True) if t not in owners[image]) < 1)
    assert result.metrics["i2t_r1"] == pytest.approx(100 * np.mean(found))


def test_soft_targets_are_judged_by_weight(made, tmp_path):
    pairs = made.train
    for i, target in enumerate(pairs.targets):
        pairs.targets[i] = {target: 1.0, "other": 0.3}
    train(made.store, pairs, run=tmp_path / "run", task="classification", model="majority")
    scorer = Scorer.open(tmp_path / "run", store=made.store)
    result = evaluate(scorer, pairs)
    label = scorer.run.labels[int(scorer.score(pairs_of(pairs)[:1]).argmax())]
    expected = np.mean([target.get(label, 0.0) for target in pairs.targets])
    assert result.metrics["vqa_accuracy"] == pytest.approx(100 * expected, abs=1e-4)
    assert next(iter(result.metrics)) == "vqa_accuracy"


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("rows", [[3, 4, 5], [5, 4, 3], [3, 4, 4, 6], [3, 5, 5], [2, 4, 3, 5], [6], [], range(7)])
def test_inputs_are_the_rows_asked_for_and_no_view_of_the_items(rows, kind):
    """Rows that follow each other are not copied before they are converted."""
    values = np.random.default_rng(0).standard_normal((7, 1, 5)).astype(kind)
    pairs = EmbeddedPairs.images_alone(torch.from_numpy(values.copy()), torch.ones(7, 1, dtype=torch.bool))
    rows = torch.tensor(list(rows), dtype=torch.long)
    image, _, mask, _ = pairs.inputs(rows, torch.zeros_like(rows))
    assert mask is None
    assert np.array_equal(image.numpy(), values[rows.numpy(), 0].astype(np.float32))
    image.zero_()
    assert np.array_equal(pairs.images.numpy(), values)
