"""Stores and runs written by commit 6a8fb0f open, verify, and give the same scores as then."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from frevl.deployment.export.exporting import export
from frevl.deployment.export.onnx_graph import drawn_inputs, exportable
from frevl.evaluation.seeds import evaluate_seeds, open_seeds
from frevl.models.registry import NETWORKS
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify

OLD = Path(__file__).parents[1] / "data" / "commit_6a8fb0f"
RUNS = {one["run"]: one for one in json.loads((OLD / "manifest.json").read_text(encoding="utf-8"))["runs"]}

# On the machine that wrote them all are equal bit for bit. Other processors and numbers of threads add up the same
# products in another order: of scores up to 11 the largest difference was 4.8e-7 there with SSE4.2, AVX2 and two
# threads, 5.2e-6 on a processor with AVX-512, and 1.3e-5 on that one with MKL kept to AVX2.
TOLERANCE = {"atol": 3e-5, "rtol": 1e-6}


def pairs_of(file):
    lines = [json.loads(line) for line in (OLD / file).read_text(encoding="utf-8").splitlines()]
    return [(line["image"], line["text"]) for line in lines]


def found_by(scorer, pairs):
    """Return by name of the score file what the README of the fixture says is in it."""
    if scorer.run.task == "classification":
        scores = scorer.score(pairs)
        return {"score": scores, "probabilities": scorer.probabilities(scores)}
    wrong = [(image, pairs[(row + 2) % len(pairs)][1]) for row, (image, _) in enumerate(pairs)]
    scores, probabilities = scorer.match_probabilities(pairs)
    wrong_scores, wrong_probabilities = scorer.match_probabilities(wrong)
    np.testing.assert_array_equal(scorer.score(pairs), scores)
    images, texts = list(dict.fromkeys(image for image, _ in pairs)), list(dict.fromkeys(text for _, text in pairs))
    found = {
        "score": scores,
        "judge": probabilities,
        "score_wrong": wrong_scores,
        "judge_wrong": wrong_probabilities,
        "grid": scorer.grid(images, texts),
    }
    if scorer.has_first_stage:
        found |= {"image_vectors": scorer.image_vectors(images), "text_vectors": scorer.text_vectors(texts)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_gives_the_same_scores(run):
    record = RUNS[run]
    scorer = Scorer.open(OLD / run, store=OLD / record["store"])
    assert (scorer.run.network.key, scorer.run.parameters) == (record["network"], record["parameters"])
    found = found_by(scorer, pairs_of(record["pairs"]))
    assert set(found) == set(record["scores"])
    for name, score in record["scores"].items():
        expected = np.load(OLD / score["file"])
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, **TOLERANCE, err_msg=name)


def test_every_kind_of_network_is_among_the_old_runs():
    later = {"adapted-cosine", "classes", "without-prior"}  # networks that came after the commit
    assert {record["network"] for record in RUNS.values()} == set(NETWORKS) - later


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_that_is_saved_again_is_the_same_run(run, tmp_path):
    old = Run.load(OLD / run)
    weights, record = old.path / "weights.safetensors", old.path / "run.json"
    old.path = tmp_path
    old.network_settings = old.network.settings
    old.save()
    assert (tmp_path / "weights.safetensors").read_bytes() == weights.read_bytes()
    again, before = (json.loads((path / "run.json").read_text(encoding="utf-8")) for path in (tmp_path, record.parent))
    assert again == before


def test_old_runs_of_seeds_are_evaluated_as_they_were():
    store = Store.open(OLD / "stores" / "pooled")
    found = evaluate_seeds(open_seeds(OLD / "runs-of-seeds" / "linear", store=store), OLD / "pairs.jsonl")
    # What that commit said of these pairs.
    assert found.seeds["values"]["accuracy"] == pytest.approx([63.33333333333333, 65.83333333333333])
    assert found.metrics["brier"] == pytest.approx(41.13232425167722, rel=1e-6)
    assert found.ci95["accuracy"] == pytest.approx([55.00000000000001, 74.16666666666667])
    # It said 64.50 to 77.44: resampled pairs lack classes, and the mean of their macro-F1 lay below the value itself.
    assert found.ci95["macro_f1"] == pytest.approx([64.65025401840539, 77.73596815055164])


@pytest.mark.parametrize("name", ["pooled", "tokens", "common"])
def test_an_old_store_opens_and_verifies(name, tmp_path):
    shutil.copytree(OLD / "stores" / name, tmp_path / name)
    store = Store.open(tmp_path / name)
    pairs = pairs_of("pairs.jsonl") + pairs_of("captions.jsonl")
    assert set(store.image_ids) == {image for image, _ in pairs}
    assert set(store.texts) == {text for _, text in pairs}
    assert verify(tmp_path / name) == []


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_has_the_same_logits_in_the_form_for_export(run):
    loaded = Run.load(OLD / run)
    inputs = drawn_inputs(loaded, 13, text_tokens=5)
    with torch.inference_mode():
        expected = loaded.network(*inputs)
        found = exportable(loaded.network, loaded.path, int8=False)(*inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert bool(loaded.network.no_int8) == any(name.endswith("alphas") for name in loaded.network.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("run", ["runs/matching/cosine-common", "runs/matching/dual"])
def test_an_old_first_stage_is_exported(run, tmp_path):
    record = RUNS[run]
    done = export(OLD / run, tmp_path / "x.onnx", store=OLD / record["store"], pairs=OLD / record["pairs"])
    assert done.parity["largest_difference"] < 1e-5
