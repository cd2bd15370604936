"""An exported run gives the same answers: in this package, with ONNX Runtime alone, in any batch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from frevl.deployment.export import exporting
from frevl.deployment.export.exporting import export
from frevl.deployment.export.onnx_graph import drawn_inputs, exportable, has_input_statistics
from frevl.deployment.export.onnx_graph import traced as graph_of
from frevl.errors import RunError, UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.models.ensemble import Average
from frevl.models.interface import PairNetwork
from frevl.models.retrieval.reranker import Reranked, Standardised, TermWeights
from frevl.models.retrieval.two_tower import TwoTower
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.runs.sharing import onnx_backend as onnxfile
from frevl.runs.sharing.onnx_backend import ExportedNetwork, metadata_of
from frevl.store.towers import fingerprint_of
from frevl.training.training import train

pytestmark = pytest.mark.slow

FUSION = {"epochs": 2, "batch_size": 32, "layers": 1}
# Trained until no answer is close: 8-bit integers move a logit by about 0.01, the two classes are 0.18 apart or more.
SURE = {"epochs": 30, "batch_size": 32, "layers": 1, "patience": 30, "keep_last": True}
DOCUMENT = Path(__file__).parents[3] / "docs" / "export.md"


@pytest.fixture(scope="module", autouse=True)
def short_timing():
    """Speed is not what these tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_SPEED_SECONDS", 0.0)
        patch.setattr(exporting, "_SPEED_BATCHES", (1, 3))
        yield


@pytest.fixture(scope="module")
def answering(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    train(made.store, made.train_file, run=folder, task="classification", model="tiny", options=SURE)
    return folder


@pytest.fixture(scope="module")
def exported(made, answering):
    """A classification run with its exported file next to it, compared on real pairs."""
    return export(answering, store=made.store.path, pairs=made.test_file)


@pytest.fixture(scope="module")
def matching(made, tmp_path_factory):
    """A matching run with its exported file: a first stage, hubness and a fusion, with random weights."""
    folder = tmp_path_factory.mktemp("matching")
    run = train(made.store, made.captions_file, run=folder, task="matching", model="linear")
    sizes = {name: run.network.settings[name] for name in ("image_dim", "text_dim")}
    torch.manual_seed(0)
    first = TwoTower(**sizes, hidden=7, width=5, members=2)
    fusion = {**sizes, "outputs": 1, "width": 8, "heads": 2, "layers": 1, "ffn_width": 11, "head_width": 13}
    reader = Standardised(fusion=fusion, input_dropout=0.1)
    torch.nn.init.normal_(reader.fusion.head.outer.weight)  # it starts as zeros
    weights = TermWeights(image_hubness=-0.5, text_hubness=-0.25, fusion=2.0)
    bank = torch.nn.functional.normalize(torch.randn(2, 3, 10), dim=2)
    network = Reranked.of(first, bank[0], bank[1], reader, weights=weights, depth=3)
    folder = renamed(run, network, "reranked")
    done = export(folder)
    assert done.parity["on"] == "pairs of random embeddings with the mean and standard deviation of the training data"
    return folder


class Branching(PairNetwork):
    """Looks at values to decide what to compute: no graph can hold that."""

    key = "branching"

    def forward(self, image, text, image_mask=None, text_mask=None):
        mask = image_mask if image.sum() > 0 else text_mask
        return image[:, :3] if mask is None else text[:, :3]


def pairs_of(pairs):
    return list(zip(pairs.images, pairs.texts, strict=True))


def renamed(run, network, model):
    """Save another network as a run of its own, with everything else of a run."""
    run.network, run.model = network.eval(), model
    run.network_name, run.network_settings = network.key, network.settings
    run.path = run.path.parent / f"{run.path.name}-{model}"
    run.save()
    return run.path


@pytest.fixture
def traced(exported, monkeypatch):
    """Tracing takes seconds; tests of what comes after it start from the graph that was traced before."""
    monkeypatch.setattr(exporting, "traced", lambda *_: onnx.load(exported.path))


def test_the_file_scores_as_the_run_does_in_any_batch(made, answering, exported):
    assert exported.parity["on"] == "real pairs"
    assert exported.parity["pairs"] == len(made.test)
    assert exported.parity["largest_difference"] < 1e-5
    pairs = pairs_of(made.test)
    whole = Scorer.open(answering, store=made.store).score(pairs)
    for size in (1, 7, 1024):
        found = Scorer.open(answering, store=made.store, backend="onnx", batch_size=size).score(pairs)
        assert found.shape == whole.shape
        np.testing.assert_allclose(found, whole, atol=1e-5)


def test_evaluate_and_score_take_the_file(made, answering, exported, frevl, tmp_path):
    common = ("--store", made.store.path, "--run", answering, "--pairs", made.test_file)
    results = {}
    for backend in ("torch", "onnx"):
        done = frevl("evaluate", *common, "--backend", backend, "--json", tmp_path / "r.json")
        assert done.code == 0, done.err
        results[backend] = json.loads((tmp_path / "r.json").read_text())["metrics"]
    assert results["onnx"] == pytest.approx(results["torch"], abs=1e-3)
    moved = tmp_path / "elsewhere.onnx"
    moved.write_bytes(exported.path.read_bytes())
    done = frevl("score", *common, "--out", tmp_path / "s.jsonl", "--backend", "onnx", "--onnx", moved)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    expected = Scorer.open(answering, store=made.store).predict(pairs_of(made.test))
    assert [row["label"] for row in rows] == [one.label for one in expected]
    assert [row["probability"] for row in rows] == pytest.approx([one.probability for one in expected], abs=1e-5)


def test_matching_grids_and_probabilities_are_the_same(made, matching):
    images, texts = made.store.image_ids[:5], list(dict.fromkeys(made.captions.texts))[:3]
    torch_side, onnx_side = (Scorer.open(matching, store=made.store, backend=name) for name in ("torch", "onnx"))
    np.testing.assert_allclose(onnx_side.grid(images, texts), torch_side.grid(images, texts), atol=1e-5)
    probabilities = torch_side.match_probabilities([(images[0], texts[0])])[1]
    network = onnx_side.network
    image, text = made.store.read_images(images[:1]), made.store.read_texts(texts[:1])
    said = network.session.run(["probabilities"], {"image": image, "text": text})[0]
    np.testing.assert_allclose(said[:, 0], probabilities, atol=1e-5)


def test_tokens_have_masks_and_any_length(made_tokens, tmp_path):
    run = tmp_path / "run"
    train(made_tokens.store, made_tokens.train_file, run=run, task="classification", model="tiny", options=FUSION)
    done = export(run)
    assert done.parity["on"] == "pairs of random embeddings of unit length"
    inputs = {one.name: one.shape for one in ExportedNetwork(run / "model.onnx").session.get_inputs()}
    towers = made_tokens.store.towers
    assert inputs == {
        "image": ["batch", "image_tokens", towers["toy-image"].dim],
        "text": ["batch", "text_tokens", towers["toy-text"].dim],
        "image_mask": ["batch", "image_tokens"],
        "text_mask": ["batch", "text_tokens"],
    }
    image = made_tokens.train.images[0]
    long = "is the square in the middle of this white picture really red or is it not?"
    for texts in (["red?"], ["is it red?", long]):  # a single token comes without a mask
        pairs = [(image, text) for text in texts]
        expected = Scorer.open(run, store=made_tokens.store).score(pairs)
        found = Scorer.open(run, store=made_tokens.store, backend="onnx").score(pairs)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_kind_of_network_is_exported(made, answering, tmp_path):
    fusion = Run.load(answering)
    runs = [fusion]
    for model in ("majority", "text", "linear", "kernel"):
        given = {"options": {"epochs": 1}} if model == "text" else {}
        run = train(made.store, made.train_file, run=tmp_path / model, task="classification", model=model, **given)
        runs.append(run)
    # One export for all of them: an average holds each as it would be alone.
    average = Average.of([run.network for run in runs], [run.calibration for run in runs], soft=False)
    done = export(renamed(fusion, average, "auto"), store=made.store.path, pairs=made.test_file)
    assert done.parity["largest_difference"] < 1e-5
    assert done.model == "auto"


def test_random_embeddings_have_the_statistics_of_training(made, answering, tmp_path):
    run = train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="linear")
    assert has_input_statistics(run)
    assert not has_input_statistics(Run.load(answering))
    image, text, image_mask, text_mask = drawn_inputs(run, 5000, text_tokens=3)
    assert image_mask is None
    assert text_mask is None
    stored = made.store.read_images(sorted(set(made.train.images)))
    width = stored.shape[1]
    scale = run.network.scale[:width].where(run.network.scale[:width].isfinite(), 0.0)
    np.testing.assert_allclose(image.mean(0), run.network.mean[:width], atol=5 * scale.max().item() / 5000**0.5)
    np.testing.assert_allclose(image.std(0), scale, rtol=0.1, atol=1e-6)
    assert text.shape[1] == len(run.network.mean) - width - (width if run.network.multiply else 0)
    drawn = drawn_inputs(Run.load(answering), 3, text_tokens=3)[0]
    np.testing.assert_allclose(drawn.norm(dim=1), [1, 1, 1], atol=1e-6)


def test_the_metadata_name_what_the_file_is_and_needs(made, answering, exported):
    run = Run.load(answering)
    said = metadata_of(exported.path)
    assert said["format"] == "1"
    assert said["task"] == "classification"
    assert said["model"] == "tiny"
    assert said["precision"] == "float32"
    assert said["labels"] == run.labels
    assert said["calibration"] == {**run.calibration, "of_probabilities": "softmax"}
    assert said["encoders"] == ["toy"]
    (tower,) = said["towers"]["image"]
    assert tower["name"] == "toy-image"
    assert tower["identity"] == run.towers["image"]["toy-image"]
    assert tower["fingerprint"] == made.store.towers["toy-image"].fingerprint == fingerprint_of(tower["identity"])
    assert str(answering) not in json.dumps(said)
    onnx.checker.check_model(onnx.load(exported.path), full_check=True)


@pytest.mark.parametrize("task", ["classification", "matching"])
def test_the_example_of_the_document_needs_only_numpy_and_onnxruntime(
    made, answering, exported, matching, tmp_path, task
):
    (code,) = re.findall(
        r"<!-- executed by tests/deployment/export/test_export.py -->\n```python\n(.*?)```",
        DOCUMENT.read_text(),
        flags=re.DOTALL,
    )
    assert len(code.splitlines()) <= 35
    refuse = "import sys\nfor name in ('torch', 'frevl', 'onnx', 'transformers'):\n    sys.modules[name] = None\n"
    (tmp_path / "answer.py").write_text(refuse + code)
    run = answering if task == "classification" else matching
    pairs = pairs_of(made.test if task == "classification" else made.captions)[:11]
    np.save(tmp_path / "images.npy", made.store.read_images([image for image, _ in pairs]))
    np.save(tmp_path / "texts.npy", made.store.read_texts([text for _, text in pairs]))
    done = subprocess.run(
        [sys.executable, "answer.py", run / "model.onnx", "images.npy", "texts.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "image embeddings come from toy-image, fingerprint" in done.stderr
    scorer = Scorer.open(run, store=made.store)
    lines = done.stdout.splitlines()
    if task == "matching":
        np.testing.assert_allclose([float(line) for line in lines], scorer.match_probabilities(pairs)[1], atol=2e-6)
        return
    for line, expected in zip(lines, scorer.predict(pairs), strict=True):
        label, probability = line.split("\t")
        assert label == expected.label
        assert float(probability) == pytest.approx(expected.probability, abs=2e-6)


def test_int8_is_smaller_judged_and_does_not_depend_on_the_batch(made, answering, exported, traced, tmp_path):
    done = export(answering, tmp_path / "int8.onnx", int8=True, store=made.store.path, pairs=made.test_file)
    assert done.precision == metadata_of(done.path)["precision"] == "int8"
    assert done.bytes < exported.bytes / 3
    assert done.parity["labelled_pairs"] == len(made.test)
    assert done.parity["points"] == pytest.approx(done.parity["int8"] - done.parity["float32"])
    assert 0 < done.parity["largest_difference"] < 0.1
    pairs = pairs_of(made.test)
    open_ = {"store": made.store, "backend": "onnx", "onnx": done.path}
    whole = Scorer.open(answering, **open_).score(pairs)
    np.testing.assert_allclose(Scorer.open(answering, **open_, batch_size=1).score(pairs), whole, atol=1e-5)
    judged = evaluate(Scorer.open(answering, **open_), made.test_file)
    assert judged.metrics["accuracy"] == pytest.approx(done.parity["int8"])


def test_int8_that_costs_too_much_is_refused_and_leaves_nothing(made, answering, traced, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "INT8_POINTS", -101.0)  # now any loss is too much
    with pytest.raises(
        RunError, match=r"int8 costs -?\d+\.\d\d points of accuracy on 60 pairs .* export without --int8"
    ):
        export(answering, tmp_path / "x.onnx", int8=True, store=made.store.path, pairs=made.test_file)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_agree_is_refused_and_the_old_one_stays(answering, exported, tmp_path, monkeypatch):
    (tmp_path / "x.onnx").write_bytes(b"the old one")
    wrong = onnx.load(exported.path)
    bias = next(one for one in wrong.graph.initializer if one.name.endswith("head.outer.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e-3), bias.name))
    monkeypatch.setattr(exporting, "traced", lambda *_: wrong)
    with pytest.raises(RunError, match="does not agree with PyTorch: a logit differs by 0.001 on 256 pairs of random"):
        export(answering, tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    assert (tmp_path / "x.onnx").read_bytes() == b"the old one"


def test_what_cannot_be_done_is_said_in_a_sentence(made, answering, traced, tmp_path, frevl):
    with pytest.raises(UsageError, match="--int8 needs labelled pairs"):
        export(answering, int8=True)
    with pytest.raises(UsageError, match="--store and --pairs must be given together"):
        export(answering, store=made.store.path)
    run = Run.load(answering)
    run.network = Branching()
    with pytest.raises(RunError, match="a network of the kind 'fusion' cannot be exported as one graph"):
        graph_of(exportable(run.network, run.path, int8=False), run)
    kernel = train(made.store, made.train_file, run=tmp_path / "linear", task="classification", model="kernel")
    with pytest.raises(RunError, match="cannot be exported in int8, because the distances of a kernel fusion"):
        export(kernel.path, int8=True, store=made.store.path, pairs=made.test_file)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the export cannot be written"):
        export(answering, tmp_path / "file" / "x.onnx")
    done = frevl("export", "--run", answering, "--int8")
    assert done.code == 2
    assert "--int8 needs labelled pairs" in done.err


def test_a_wrong_file_for_a_run_is_refused(made, answering, matching, exported, tmp_path):
    with pytest.raises(RunError, match=r"expected the weights \w{16} of the run .*, found an export of \w{16}"):
        Scorer.open(matching, store=made.store, backend="onnx", onnx=exported.path)
    with pytest.raises(
        RunError, match="expected the exported file of the run, found none; write it with: frevl export"
    ):
        Scorer.open(answering, store=made.store, backend="onnx", onnx=tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(exported.path.read_bytes()[:5000])
    with pytest.raises(RunError, match="ONNX Runtime cannot read the file"):
        Scorer.open(answering, store=made.store, backend="onnx", onnx=tmp_path / "x.onnx")
    model = onnx.load(exported.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(RunError, match="expected a file that frevl export wrote"):
        Scorer.open(answering, store=made.store, backend="onnx", onnx=tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="There is no backend 'onx'. Did you mean 'onnx'"):
        Scorer.open(answering, store=made.store, backend="onx")
    with pytest.raises(UsageError, match="requires the backend 'onnx'"):
        Scorer.open(answering, store=made.store, onnx=exported.path)


def test_the_command_prints_and_writes_size_comparison_and_speed(answering, traced, frevl, tmp_path):
    done = frevl("export", "--run", answering, "--onnx", tmp_path / "m.onnx", "--json", tmp_path / "m.json")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert record["parity"]["pairs"] == 256
    assert [row["batch"] for row in record["speed"]] == [1, 3]
    assert f"({record['bytes'] / 1e6:.2f} MB)" in done.out.replace("float32, ", "(")
    assert "on 256 pairs of random embeddings of unit length" in done.out
    assert "Batch 3: " in done.out


def test_a_large_batch_is_run_in_parts_and_keeps_its_order(answering, exported, monkeypatch):
    monkeypatch.setattr(onnxfile, "_LEAST_SHARE", 3)
    monkeypatch.setattr(onnxfile, "_MOST_ROWS", 5)
    run = Run.load(answering)
    inputs = drawn_inputs(run, 17, text_tokens=1)
    expected = run.network.eval()(*inputs).detach()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            np.testing.assert_allclose(ExportedNetwork(exported.path)(*inputs), expected, atol=1e-5)
    finally:
        torch.set_num_threads(before)
