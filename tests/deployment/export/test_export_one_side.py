"""The exported file of a run of images only, or texts only, has just that input."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from frevl.data.pairs import read_pairs
from frevl.deployment.export import exporting
from frevl.deployment.export.exporting import export
from frevl.errors import PairsError
from frevl.runs.scorer import Scorer
from frevl.runs.sharing.onnx_backend import metadata_of
from frevl.training.training import train

DOCUMENT = Path(__file__).parents[3] / "docs" / "export.md"


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """Speed is not what these tests look at."""
    monkeypatch.setattr(exporting, "_SPEED_SECONDS", 0.0)
    monkeypatch.setattr(exporting, "_SPEED_BATCHES", (1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["linear", "kernel", "mlp"])
def test_the_file_answers_as_the_run_and_takes_one_input(one_side, tmp_path, model):
    arguments = {"task": "classification", "model": model, "run": tmp_path / "run"}
    train(one_side.store, one_side.train_file, dev=one_side.dev_file, **arguments)
    assert "random embeddings" in export(tmp_path / "run").parity["on"]
    exported = export(tmp_path / "run", store=one_side.store.path, pairs=one_side.dev_file)
    assert (exported.parity["pairs"], exported.parity["on"]) == (30, "real pairs")
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert [(one.name, one.shape) for one in session.get_inputs()] == [(one_side.side, ["batch", 12])]
    assert metadata_of(exported.path)["towers"][one_side.other] == []
    torch, onnx = (
        Scorer.open(tmp_path / "run", store=one_side.store, backend=backend) for backend in ("torch", "onnx")
    )
    np.testing.assert_allclose(onnx.score(one_side.items), torch.score(one_side.items), atol=1e-4)


@pytest.mark.slow
def test_the_program_of_the_documentation_takes_one_file(one_side, tmp_path):
    arguments = {"task": "classification", "model": "linear", "run": tmp_path / "run"}
    train(one_side.store, one_side.train_file, dev=one_side.dev_file, **arguments)
    export(tmp_path / "run")
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    (tmp_path / "answer.py").write_text(code)
    values, _ = one_side.store.read(one_side.side, one_side.items, list(one_side.store.towers.values()))
    np.save(tmp_path / "items.npy", values[:, 0].astype(np.float32))
    command = [sys.executable, "answer.py", tmp_path / "run" / "model.onnx", "items.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = [line.split("\t")[0] for line in done.stdout.splitlines()]
    scorer = Scorer.open(tmp_path / "run", store=one_side.store)
    assert said == [one.label for one in scorer.predict(one_side.items)]


@pytest.mark.slow
def test_pairs_without_what_the_run_reads_are_refused(made, tmp_path):
    train(made.store, made.train, run=tmp_path / "run", task="classification", model="linear")
    pairs = read_pairs(made.test_file).only(("image",))
    with pytest.raises(PairsError, match="expected a text, because .*run was trained on images and texts"):
        export(tmp_path / "run", store=made.store.path, pairs=pairs)
