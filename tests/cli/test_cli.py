"""The command line: flags, exit codes, files."""

import inspect
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer.main
from typer.testing import CliRunner

from frevl.cli.demo import demo
from frevl.cli.main import app
from frevl.store.extraction.extract import extract
from frevl.training.ablation.study import ablate
from frevl.training.training import train


def run(*arguments):
    """Run the program as a user does, in a process of its own."""
    return subprocess.run([sys.executable, "-m", "frevl", *map(str, arguments)], capture_output=True, text=True)


def options_of(command):
    found = typer.main.get_command(app).commands[command].params
    return {parameter.name: parameter for parameter in found}


@pytest.mark.parametrize(
    ("command", "function", "only_there", "only_here"),
    [
        # --seeds belongs to train_seeds, which hands everything else on to train; --choose-by is an option of auto.
        ("train", train, {"progress", "options"}, {"quiet", "json", "seeds", "settings", "choose_by"}),
        ("ablate", ablate, {"progress", "options"}, {"quiet", "json", "settings"}),
        ("extract", extract, {"progress"}, {"quiet", "json", "grid"}),
        ("demo", demo, {"progress", "say"}, {"quiet", "json", "by_classes"}),
    ],
)
def test_flags_are_the_signature_and_hold_no_default_of_their_own(command, function, only_there, only_here):
    options = {name: one for name, one in options_of(command).items() if name != "config"}  # every command has it
    signature = inspect.signature(function).parameters
    assert set(options) - only_here == set(signature) - only_there
    for name, option in options.items():
        if name in only_here or name == "tokens":
            continue
        assert option.default is None, f"--{name} has a default of its own"
        default = signature[name].default
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            assert option.show_default == str(default), f"--{name}: help and signature differ"


@pytest.mark.slow
def test_the_contract_from_files_to_scores(made, tmp_path):
    store, runs = tmp_path / "store", tmp_path / "runs"
    done = run("extract", "--images", made.images, "--pairs", made.train_file, "--pairs", made.test_file,
               "--encoder", "toy", "--store", store, "--json", tmp_path / "extract.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "extract.json").read_text())["images"] == 120
    done = run("train", "--store", store, "--pairs", made.train_file, "--dev", made.test_file,
               "--task", "classification", "--model", "linear", "--run", runs / "linear",
               "--seed", 1, "--time-limit", 600, "--json", tmp_path / "t.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "t.json").read_text())["provenance"]["seed"] == 1
    done = run(
        "evaluate", "--store", store, "--run", runs / "linear", "--pairs", made.test_file, "--json", tmp_path / "r.json"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert {"task", "n", "metrics", "ci95", "slices", "provenance"} <= set(result)
    assert {"run", "store_fingerprint", "seed", "versions", "command", "hardware"} <= set(result["provenance"])
    done = run(
        "score", "--store", store, "--run", runs / "linear", "--pairs", made.test_file, "--out", tmp_path / "s.jsonl"
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert len(rows) == len(made.test)
    assert {"image", "text", "target", "asked", "label", "probability", "top"} == set(rows[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian"),
        (["train", "--time-limmit", "1"], "--time-limit"),
        (["train", "--initialize-from", "r"], "--initialise-from"),
        (["train", "--start-from", "r"], "--initialise-from"),
        (["train"], "--store"),
        (["extract", "--store", "s"], "Nothing to embed: give a folder with --images"),
        (["extract", "--store", "s", "--images", ".", "--encoder", "packagd"], "Did you mean 'packaged'"),
        (["extract", "--store", "s", "--images", ".", "--grid", "4x4"], "--grid requires --tokens"),
        (["extract", "--store", "s", "--images", ".", "--tokens", "--grid", "9x9"], "'9x9'"),
        (["train", "--store", "s", "--pairs", "p", "--run", "r", "--task", "matchin"], "Did you mean 'matching'"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_is_right(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.returncode == 2
    assert message in re.sub(r"\s+", " ", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--store", "nowhere", "--run", "r", "--pairs", "p.jsonl"], "nowhere: expected a store"),
        (
            ["train", "--store", "nowhere", "--pairs", "p", "--run", "r", "--task", "matching"],
            "nowhere: expected a store",
        ),
        (["store", "info", "nowhere"], "nowhere: expected a store"),
        (
            ["extract", "--store", "s", "--images", "nowhere", "--encoder", "toy"],
            "nowhere: expected a folder of images",
        ),
        (["extract", "--store", "s", "--pairs", "p.jsonl", "--encoder", "toy"], "p.jsonl: no such pairs file"),
    ],
)
def test_a_known_failure_exits_with_1_and_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("frevl: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_json_that_cannot_be_written_is_a_known_failure(made, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("store", "info", made.store.path, "--json", tmp_path / "file" / "x.json")
    assert done.returncode == 1
    assert "the JSON cannot be written" in done.stderr


@pytest.mark.slow
def test_store_info_and_verify(made_twice, tmp_path):
    runner = CliRunner()
    shown = runner.invoke(app, ["store", "info", str(made_twice.store.path), "--json", str(tmp_path / "info.json")])
    assert shown.exit_code == 0
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["images"] == 40
    assert [tower["name"] for tower in info["towers"]] == ["toy-image", "toy-text", "toy2-image"]
    assert "toy2-image" in shown.output
    verified = runner.invoke(app, ["store", "verify", str(made_twice.store.path)])
    assert verified.exit_code == 0
    assert "sound" in verified.output


@pytest.mark.slow
def test_pairs_of_a_published_set_are_written_as_a_pairs_file(tmp_path):
    done = run(
        "pairs", "easy-vqa", "--split", "test", "--out", tmp_path / "test.jsonl", "--json", tmp_path / "pairs.json"
    )
    assert done.returncode == 0, done.stderr
    assert "9,673 pairs of easy-vqa (classification)" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 9673
    assert {"image", "text", "target"} <= set(rows[0])
    assert json.loads((tmp_path / "pairs.json").read_text())["rows"] == 9673


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["esy-vqa"], 2, "Did you mean 'easy-vqa'"),
        (["easy-vqa", "--split", "tset"], 2, "Did you mean 'test'"),
        (["vqa-v2"], 2, "give the folder"),
        (["nlvr", "--root", "."], 1, "needs train.json"),
    ],
)
def test_pairs_says_what_is_missing(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("pairs", *arguments, "--out", "x.jsonl")
    assert done.returncode == code
    assert message in done.stderr
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.slow
def test_choose_by_is_an_option_of_auto(made, frevl, tmp_path):
    call = ("train", "--store", made.store.path, "--pairs", made.train_file, "--task", "classification", "--quiet")
    done = frevl(*call, "--run", tmp_path / "run", "--model", "auto", "--choose-by", "macro_f1", "--time-limit", 5)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"]["selection"]["choose_by"] == "macro_f1"
    refused = frevl(*call, "--run", tmp_path / "other", "--choose-by", "macro_f1")
    assert refused.code == 2
    assert "choose_by" in refused.err
    twice = frevl(*call, "--run", tmp_path / "other", "--model", "auto", "--choose-by", "nll", "--set", "choose_by=nll")
    assert "give one of them" in twice.err


@pytest.mark.parametrize(
    ("allocate", "words"),
    [
        (lambda: np.empty(1 << 56), "Unable to allocate 512. PiB for an array"),
        (lambda: torch.empty(1 << 56), "can't allocate memory: you tried to allocate 288230376151711744 bytes"),
        (lambda: bytearray(1 << 60), "no size is known"),
        (lambda: (_ for _ in ()).throw(RuntimeError("std::bad_alloc")), "no size is known"),  # where PyTorch sorts
    ],
)
def test_memory_that_does_not_suffice_is_one_sentence(frevl, made, monkeypatch, allocate, words):
    monkeypatch.setattr("frevl.store.reader.Store.open", lambda *_: allocate())
    said = frevl("store", "info", made.store.path)
    assert said.code == 1
    assert said.err.startswith(f"frevl: out of memory ({words}")
    assert said.err.endswith(
        "); committed work is kept; give this process more memory, close others, or use fewer pairs "
        "or smaller embeddings\n"
    )
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("said_by_torch", "words"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total of 79 GiB.", "tried to allocate 2.50 GiB"),
        ("CUDA error: out of memory", "no size is known"),
    ],
)
def test_a_device_whose_memory_does_not_suffice_is_one_sentence(frevl, made, monkeypatch, said_by_torch, words):
    def full(*_):
        raise torch.OutOfMemoryError(said_by_torch)

    monkeypatch.setattr("frevl.store.reader.Store.open", full)
    said = frevl("store", "info", made.store.path)
    assert (said.code, said.err) == (
        1,
        f"frevl: --device: out of memory ({words}), though batches were made smaller where that helps; committed work "
        "is kept; stop other programs on the device, use a smaller model, or leave out --device\n",
    )
