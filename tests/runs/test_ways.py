"""The way from the command line to the maths: files on the call stack, and files through which a value is handed."""

import sys
from contextlib import contextmanager
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


def carries(value, wanted, depth=2):
    """Tell whether an argument is a value, or holds it: in a collection, or as an attribute of an object of ours."""
    if isinstance(value, str | Path | int) and not isinstance(value, bool):
        return str(value) == wanted
    if depth == 0:
        return False
    if isinstance(value, dict):
        return any(carries(one, wanted, depth - 1) for one in list(value.values()))
    if isinstance(value, list | tuple):
        return any(carries(one, wanted, depth - 1) for one in value[:20])
    ours = depth == 2 and type(value).__module__.startswith("frevl") and hasattr(value, "__dict__")
    return ours and any(carries(one, wanted, depth - 1) for one in list(vars(value).values()))


@contextmanager
def followed(wanted):
    """Collect the files with a function that receives a value, in the order in which they receive it first."""
    files = {}

    def watch(frame, event, _):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(SOURCE) or code.co_name == "<module>":
            return
        named = bool(code.co_flags & 4) + bool(code.co_flags & 8)  # *arguments and **arguments
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + named]
        if any(carries(frame.f_locals.get(name), wanted) for name in arguments):
            files.setdefault(code.co_filename[len(SOURCE) + 1 :])

    sys.setprofile(watch)
    try:
        yield files
    finally:
        sys.setprofile(None)


@pytest.mark.slow
def test_a_pairs_file_and_an_encoder_pass_few_files(made, trained, frevl, tmp_path):
    store, pairs = made.store.path, made.test_file
    with followed(str(pairs)) as files:
        done = frevl("score", "--store", store, "--run", trained, "--pairs", pairs, "--out", tmp_path / "o.jsonl")
    assert done.code == 0, done.err
    assert len(files) <= 9, "\n".join(files)
    with followed("toy") as files:
        done = frevl(
            "extract", "--store", tmp_path / "s", "--pairs", pairs, "--images", made.images, "--encoder", "toy"
        )
    assert done.code == 0, done.err
    assert len(files) <= 9, "\n".join(files)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "most"), [("classification", 22), ("matching", 24)])
def test_a_seed_passes_few_files_where_a_model_is_chosen(made, frevl, tmp_path, task, most):
    pairs = made.train_file if task == "classification" else made.captions_file
    few = tmp_path / "few.jsonl"
    few.write_text("".join(pairs.read_text().splitlines(keepends=True)[:80]))
    with followed("918273") as files:
        done = frevl(
            *("train", "--store", made.store.path, "--pairs", few, "--run", tmp_path / "run", "--task", task),
            *("--model", "auto", "--seed", 918273, "--set", "epochs=1", "--quiet"),
        )
    assert done.code == 0, done.err
    assert "training/loop.py" in files or "training/fitting/fit_model.py" in files
    assert len(files) <= most, list(files)
