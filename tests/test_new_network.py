"""A new network is one class and one line in the registry: everything else works with it unchanged."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from frevl.deployment.export.exporting import export
from frevl.errors import UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.models.ensemble import Average
from frevl.models.registry import NETWORKS, build
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.training.options import PairwiseOptions
from served import client_of

LEARN = ("--set", "batch_size=16", "--set", "epochs=40", "--set", "learning_rate=0.005", "--set", "patience=40")


PAGE = Path(__file__).parent.parent / "docs" / "contributing" / "add-a-network.md"


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """The class of the page, imported from a file as a network of the package would be."""
    (code,) = re.findall(
        r"<!-- executed by tests/test_new_network.py -->\n```python\n(.*?)```",
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    file = tmp_path_factory.mktemp("models") / "gated.py"
    file.write_text(code, encoding="utf-8")
    found = importlib.util.spec_from_file_location("gated", file)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.Gated


@pytest.fixture(autouse=True)
def registered(gated, monkeypatch):
    """The one line."""
    monkeypatch.setitem(NETWORKS, gated.key, gated)


def pairs_of(pairs, count=60):
    return list(zip(pairs.images, pairs.texts, strict=True))[:count]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "matching"])
def test_it_trains_evaluates_scores_exports_and_serves(task, gated, made, frevl, tmp_path):
    train_file = made.train_file if task == "classification" else made.captions_file
    test_file = made.test_file if task == "classification" else made.captions_file
    pairs = pairs_of(made.test if task == "classification" else made.captions)
    path = tmp_path / "run"
    shared = ("--store", made.store.path, "--pairs", train_file, "--task", task, "--run", path)
    done = frevl("train", *shared, "--model", "gated", *LEARN)
    assert (done.code, done.err.count("Error")) == (0, 0), done.err

    run = Run.load(path)
    assert (run.model, run.network_name, type(run.network)) == ("gated", "gated", gated)
    assert run.settings["batch_size"] == 16
    assert run.results["fit"]["epochs"] > 1

    scorer = Scorer.open(path, store=made.store)
    result = evaluate(scorer, test_file)
    if task == "classification":
        assert result.metrics["accuracy"] > 90, "twice the majority: it has learned to use both"
        scores = scorer.score(pairs)
        probabilities = scorer.probabilities(scores)
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(pairs)), abs=1e-6)
    else:
        assert result.metrics["t2i_r10"] > 15, "8 would be chance"
        scores, probabilities = scorer.match_probabilities(pairs)
        images, texts = list(dict.fromkeys(i for i, _ in pairs)), list(dict.fromkeys(t for _, t in pairs))
        grid = scorer.grid(images, texts)
        for (image, text), score in zip(pairs, scores, strict=True):
            assert grid[images.index(image), texts.index(text)] == pytest.approx(score, abs=1e-5)
        assert not scorer.has_first_stage
        with pytest.raises(UsageError, match="the run has no first stage"):
            scorer.image_vectors(images)

    out = tmp_path / "scores.jsonl"
    assert frevl("score", "--store", made.store.path, "--run", path, "--pairs", test_file, "--out", out).code == 0
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()][: len(pairs)]
    written = [line["probability"] for line in lines]
    said = probabilities if task == "matching" else probabilities.max(axis=1)
    assert written == pytest.approx(said.tolist(), abs=1e-5)

    exported = export(path, store=made.store.path, pairs=test_file)
    assert exported.parity["largest_difference"] < 1e-5
    with_onnx = Scorer.open(path, store=made.store, backend="onnx")
    np.testing.assert_allclose(with_onnx.score(pairs), scorer.score(pairs), atol=1e-5)

    with client_of(made, tmp_path, names=("run",)) as client:
        (model,) = client.http.get("/v1/models").json()["models"]
        assert (model["name"], model["task"]) == ("run", task)
        asked = [{"image": image, "text": text} for image, text in pairs[:7]]
        verb, answers = ("score", "scores") if task == "matching" else ("answer", "answers")
        served = client.http.post(f"/v1/{verb}", json={"pairs": asked}).json()[answers]
        assert [one["probability"] for one in served] == pytest.approx(said[:7].tolist(), abs=1e-5)


@pytest.mark.slow
def test_it_reads_tokens_and_is_a_member_of_an_average(made_tokens, frevl, tmp_path):
    shared = ("--store", made_tokens.store.path, "--pairs", made_tokens.train_file, "--task", "classification")
    for model in ("gated", "linear"):
        assert frevl("train", *shared, "--model", model, "--run", tmp_path / model).code == 0
    runs = [Run.load(tmp_path / model) for model in ("gated", "linear")]
    both = Average.of([run.network for run in runs], [run.calibration for run in runs], soft=False)
    again = build("average", both.settings)
    again.load_state_dict(both.state_dict())
    assert [type(member).key for member in again.members] == ["gated", "linear"]
    run = runs[0]
    run.network, run.network_name, run.network_settings = both, both.key, both.settings
    run.path = tmp_path / "both"
    run.save()
    exported = export(run.path, store=made_tokens.store.path, pairs=made_tokens.test_file)
    assert exported.parity["largest_difference"] < 1e-5


def test_it_is_listed_among_the_models(frevl, tmp_path):
    done = frevl("models", "--json", tmp_path / "models.json")
    assert "gated" in done.out
    listed = json.loads((tmp_path / "models.json").read_text(encoding="utf-8"))["models"][-1]
    assert listed["model"] == "gated"
    assert listed["tasks"] == ["matching", "classification"]
    assert listed["description"] == "The text decides how much of each image dimension counts"
    assert {option["name"] for option in listed["options"]} == set(PairwiseOptions.__dataclass_fields__)
    shown = frevl("models", "show", "gated")
    assert (shown.code, "batch_size" in shown.out) == (0, True)


def test_a_name_that_no_network_has_is_refused_with_the_nearest(made, frevl, tmp_path):
    done = frevl("train", "--store", made.store.path, "--pairs", made.train_file, "--task", "classification",
                 "--model", "gatd", "--run", tmp_path / "run")  # fmt: skip
    assert done.code == 2
    assert "There is no model 'gatd'. Did you mean 'gated'?" in done.err


def test_what_is_set_once_is_not_changed_by_who_reads_it(gated):
    network = gated(image_dim=3, text_dim=2, outputs=1)
    network.settings["width"] = 99
    assert network.settings["width"] == 32


def test_the_defaults_of_the_interface(gated):
    network = gated(image_dim=3, text_dim=2, outputs=4).eval()
    image, text = torch.randn(5, 3), torch.randn(5, 2)
    expected = network(image, text)
    assert network.for_inference() is network.for_export() is network
    torch.testing.assert_close(network.score_items(network.image_items(image), network.text_items(text)), expected)
    torch.testing.assert_close(network.probability_logits(expected), expected)
    assert (network.item_work, network.rerank_depth, network.no_int8) == ("never", 0, "")
    assert network.first_stage is network.input_statistics() is network.projections() is None
    assert network.shared_scorer((image,), (text,)) is None
