"""The way from the command line to the maths: files on the call stack, so that a reader can follow a pair."""

import sys
from pathlib import Path

import pytest

import frevl as package
from frevl.encoders.toy import ToyImageTower, ToyTextTower
from frevl.models.blocks import Block
from frevl.models.fusion import Fusion
from frevl.training.training import train

SOURCE = str(Path(package.__file__).parent)


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    run = tmp_path_factory.mktemp("ways") / "run"
    train(made.store, made.train_file, run=run, task="classification", options={"epochs": 1, "layers": 1})
    return run


def watched(monkeypatch, owner, name, ways):
    """Note the files that lead to every call of a method."""
    method = getattr(owner, name)

    def call(self, *arguments, **named):
        frame, files = sys._getframe(1), []
        while frame is not None:
            if frame.f_code.co_filename.startswith(SOURCE):
                files.append(frame.f_code.co_filename[len(SOURCE) + 1 :])
            frame = frame.f_back
        ways.append(list(dict.fromkeys(reversed(files))))
        return method(self, *arguments, **named)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.slow
def test_score_passes_few_files(made, trained, frevl, tmp_path, monkeypatch):
    ways = []
    watched(monkeypatch, Fusion, "forward", ways)
    watched(monkeypatch, Block, "forward", ways)
    done = frevl(
        "score", "--store", made.store.path, "--run", trained, "--pairs", made.test_file, "--out", tmp_path / "o.jsonl"
    )
    assert done.code == 0, done.err
    scored = [way for way in ways if "runs/score_files.py" in way]
    assert scored
    assert max(map(len, scored)) <= 9, max(scored, key=len)
    assert scored[0][:3] == ["cli/main.py", "cli/options.py", "cli/commands/scoring.py"]


@pytest.mark.slow
def test_extract_passes_few_files(made, frevl, tmp_path, monkeypatch):
    ways = []
    watched(monkeypatch, ToyTextTower, "embed", ways)
    watched(monkeypatch, ToyImageTower, "embed", ways)
    done = frevl(
        "extract", "--store", tmp_path / "store", "--pairs", made.test_file, "--images", made.images, "--encoder", "toy"
    )
    assert done.code == 0, done.err
    assert max(map(len, ways)) <= 8, max(ways, key=len)
