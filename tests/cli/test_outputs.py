"""No output of a command destroys an input, and a file is replaced completely or not at all."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import typer

from frevl.cli.main import app
from frevl.cli.options import written_by
from frevl.data.outputs import refuse_inputs
from frevl.errors import UsageError
from frevl.files import replace_file, write_json
from frevl.runs.score_files import score_file
from frevl.runs.scorer import Scorer
from frevl.training.training import train


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    """A majority run. Read only."""
    return train(
        made.store.path, made.train_file, run=tmp_path_factory.mktemp("run") / "run", task="classification",
        model="majority",
    ).path  # fmt: skip


def commands():
    """Every command of the command line, by the words that call it."""

    def walk(command, words):
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name])
        if not hasattr(command, "commands"):
            yield " ".join(words), command

    return dict(walk(typer.main.get_command(app), []))


# What each command writes and reads. A new option with a path has to be put into one of the two.
WRITTEN = {
    "demo": {"--folder"},
    "extract": {"--write-pairs"},
    "train": {"--run"},
    "classify": {"--run", "--out", "--html"},
    "ablate": {"--out"},
    "evaluate": {"--html"},
    "pairs": {"--out"},
    "import": {"--write-pairs"},
    "score": {"--out"},
    "select": {"--out", "--html"},
    "search": {"--html"},
    "diagnose": {"--html", "--markdown"},
    "curate": {"--out", "--dropped", "--html"},
    "debias": {"--out"},
    "export": {"--onnx", "--vectors"},
    "publish": {"--folder"},
    "bench": {"--out"},
    "store merge": {"--into"},
    "store copy": {"target"},
}
READ = {
    "--calibrate", "--classes", "--curation", "--examples", "--labelled", "--neutral", "--queries", "--space",
    "--config", "--dev", "--diagnosis", "--ids", "--image", "--images", "--onnx", "--pairs", "--report", "--result",
    "--root", "--run", "--initialise-from", "--store", "--test", "--versus", "parts", "source", "store",
}  # fmt: skip


def test_every_path_of_every_command_is_known_to_be_read_or_written():
    seen = {}
    for words, command in commands().items():
        hints = get_type_hints(inspect.unwrap(command.callback))
        for param in command.params:
            if "Path" in str(hints.get(param.name)):
                flag = next((one for one in param.opts if one.startswith("-")), param.name)
                seen.setdefault(words, {})[flag] = param.name in written_by(command)
    for words, flags in seen.items():
        for flag, written in flags.items():
            place = f"frevl {words} {flag}"
            assert flag in READ or flag in WRITTEN.get(words, ()) or flag == "--json", f"{place}: read, or written?"
            assert written == (flag in WRITTEN.get(words, ()) or flag == "--json"), place
    assert {words for words in WRITTEN if not WRITTEN[words] <= set(seen[words])} == set()


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "flag", "value"),
    [
        ("evaluate --store STORE --run RUN --pairs p.jsonl", "--json", "p.jsonl"),
        ("evaluate --store STORE --run RUN --pairs p.jsonl", "--json", "./images/../p.jsonl"),
        ("evaluate --store STORE --run RUN --pairs p.jsonl", "--json", "link.jsonl"),
        ("evaluate --store STORE --run RUN --pairs link.jsonl", "--json", "p.jsonl"),
        ("evaluate --store STORE --run RUN --pairs p.jsonl", "--json", "RUN/run.json"),
        ("evaluate --store STORE --run RUN --pairs p.jsonl", "--json", "RUN/weights.safetensors"),
        ("evaluate --store STORE --run RUN --versus RUN --pairs p.jsonl", "--json", "RUN/settings.json"),
        ("evaluate --store STORE --run RUN --pairs p.jsonl", "--json", "STORE/FILE"),
        ("score --store STORE --run RUN --pairs p.jsonl", "--out", "p.jsonl"),
        ("score --store STORE --run RUN --pairs p.jsonl --out s.jsonl", "--json", "p.jsonl"),
        ("score --store STORE --run RUN --pairs p.jsonl --out s.jsonl", "--json", "s.jsonl"),
        ("select --store STORE --run RUN --pairs p.jsonl", "--out", "p.jsonl"),
        ("select --store STORE --run RUN --pairs q.jsonl --labelled p.jsonl", "--out", "p.jsonl"),
        ("extract --pairs p.jsonl --encoder toy --store STORE", "--json", "p.jsonl"),
        ("extract --pairs q.jsonl --pairs p.jsonl --encoder toy --store STORE", "--json", "p.jsonl"),
        ("extract --images images --encoder toy --store STORE", "--json", "images/0.png"),
        ("train --store STORE --pairs p.jsonl --task classification --run R", "--json", "p.jsonl"),
        ("train --store STORE --pairs q.jsonl --dev p.jsonl --task classification --run R", "--json", "p.jsonl"),
        ("train --store STORE --pairs p.jsonl --initialise-from RUN --task classification", "--run", "RUN"),
        ("train --store STORE --pairs R/log.jsonl --task classification", "--run", "R"),
        ("search --store STORE --run RUN --image images/0.png", "--html", "images/0.png"),
        ("diagnose --store STORE --pairs q.jsonl --test p.jsonl --task classification", "--markdown", "p.jsonl"),
        ("diagnose --store STORE --pairs p.jsonl --test q.jsonl --task classification", "--html", "p.jsonl"),
        ("curate --store STORE --pairs p.jsonl", "--out", "link.jsonl"),
        ("curate --store STORE --pairs p.jsonl --out k.jsonl", "--dropped", "p.jsonl"),
        ("curate --store STORE --pairs p.jsonl --out k.jsonl", "--json", "k.jsonl"),
        ("export --run RUN --store STORE --pairs p.jsonl", "--onnx", "p.jsonl"),
        ("export --run RUN", "--onnx", "RUN/weights.safetensors"),
        ("export --run RUN --store STORE", "--vectors", "RUN/weights.safetensors"),
        ("publish --run RUN --to a/b --result r.json --folder out", "--json", "r.json"),
        ("serve --store STORE --run name=RUN", "--json", "RUN/run.json"),
        ("import v.npy --ids ids.txt --encoder e --of texts --store NEW", "--json", "ids.txt"),
        ("import v.npy --ids ids.txt --encoder e --of texts --store NEW", "--write-pairs", "v.npy"),
        ("store copy s3://bucket/x copy", "--json", "copy"),
        ("store copy s3://bucket/x STORE", "--json", "STORE/FILE"),
        ("store merge images --into STORE", "--json", "STORE/FILE"),
        ("pairs coco --root official --split test", "--out", "official/test.jsonl"),
        ("pairs coco --root official --split test --out p2.jsonl", "--json", "official/dataset_coco.json"),
    ],
)
def test_an_output_that_is_an_input_is_refused_and_nothing_changes(
    made, run, tmp_path, monkeypatch, frevl, words, flag, value
):
    monkeypatch.chdir(tmp_path)
    world(tmp_path, made)
    some = next(path for path in made.store.path.rglob("*") if path.is_file())
    places = {"STORE/FILE": some, "STORE": made.store.path, "RUN": run}
    for name, place in places.items():
        words, value = words.replace(name, str(place)), value.replace(name, str(place))
    before = [snapshot(folder) for folder in (tmp_path, made.store.path, run)]
    said = frevl(*words.split(), flag, value)
    assert said.code == 2, (said.out, said.err)
    assert len(said.err.strip().splitlines()) == 1
    assert f"frevl: {flag} {Path(value)} " in said.err or "both name" in said.err
    assert [snapshot(folder) for folder in (tmp_path, made.store.path, run)] == before


def world(folder, made):
    """Files as users have them."""
    for name in ("p.jsonl", "q.jsonl"):
        (folder / name).write_bytes(made.test_file.read_bytes())
    (folder / "R").mkdir()
    (folder / "R" / "log.jsonl").write_bytes(made.test_file.read_bytes())
    (folder / "link.jsonl").symlink_to("p.jsonl")
    (folder / "r.json").write_text(json.dumps({"n": 1, "metrics": {}}))
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes((made.images / "0.png").read_bytes())
    (folder / "v.npy").write_text("x")
    (folder / "ids.txt").write_text("a\n")
    (folder / "official").mkdir()
    official = {"images": [{"split": "test", "filename": "0.png", "sentences": [{"raw": "a dog"}]}]}
    (folder / "official" / "dataset_coco.json").write_text(json.dumps(official))
    (folder / "official" / "0.png").write_bytes(b"")
    (folder / "official" / "test.jsonl").write_text('{"image": "0.png", "captions": ["a dog"]}\n')


@pytest.mark.slow
def test_a_result_may_be_written_again_beside_what_is_read(made, run, tmp_path, monkeypatch, frevl):
    monkeypatch.chdir(tmp_path)
    world(tmp_path, made)
    (tmp_path / "images" / "p.jsonl").write_bytes(made.test_file.read_bytes())
    for _ in range(2):
        arguments = ["--store", made.store.path, "--run", run, "--pairs", "images/p.jsonl"]
        assert frevl("evaluate", *arguments, "--json", run / "test.json").code == 0
        assert frevl("score", *arguments, "--out", run / "scores.jsonl").code == 0
        assert frevl("extract", "--images", "images", "--encoder", "toy", "--store", "S", "--json",
                     "images/report.json").code == 0  # fmt: skip
    for name in ("test.json", "scores.jsonl"):
        (run / name).unlink()


def test_two_outputs_in_one_file_are_refused():
    with pytest.raises(UsageError, match=r"--out and --json both name a\.json, and one would overwrite the other"):
        refuse_inputs({"--json": Path("a.json"), "--out": Path("b/../a.json")}, {})
    refuse_inputs({"--json": "/dev/null", "--html": "/dev/null", "--out": None}, {"--pairs": "/dev/null"})


def test_a_dash_is_no_file(tmp_path, monkeypatch, frevl, made):
    monkeypatch.chdir(tmp_path)
    said = frevl("store", "info", made.store.path, "--json", "-")
    assert (said.code, said.err) == (
        2,
        "frevl: --json takes a path, and - is none; for standard output, name /dev/stdout\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_summary_does_not_mix_with_lines_written_to_standard_output(run, made):
    command = [sys.executable, "-m", "frevl", "score", "--store", made.store.path, "--run", run]
    done = subprocess.run(
        [*command, "--pairs", made.test_file, "--out", "/dev/stdout"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(made.test)
    assert all("label" in json.loads(line) for line in lines)
    assert f"Scored {len(lines)} pairs into /dev/stdout." in done.stderr


def test_the_sentence_names_both_flags_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text("image,text\na,b\n")
    Path("images").mkdir()
    Path("images/0.png").write_text("")
    with pytest.raises(UsageError) as caught:
        refuse_inputs({"--out": Path("p.csv")}, {"text": "a dog" * 999, "--k": 3, "--pairs": [Path("images/../p.csv")]})
    assert str(caught.value) == (
        "--out p.csv is the same path as --pairs images/../p.csv, and writing would destroy it; give another path "
        "with --out"
    )
    with pytest.raises(UsageError) as caught:
        refuse_inputs({"--json": "images/0.png"}, {"--images": "images"})
    assert str(caught.value) == (
        "--json images/0.png would overwrite a file of --images images; give another path with --json"
    )


def test_python_callers_are_protected_too(made, run, tmp_path):
    scorer = Scorer.open(run, store=made.store)
    pairs = tmp_path / "p.jsonl"
    pairs.write_bytes(made.test_file.read_bytes())
    with pytest.raises(
        UsageError, match=r"out .*p\.jsonl is the same path as pairs .*p\.jsonl, and writing would destroy it"
    ):
        score_file(scorer, pairs, pairs)
    assert pairs.read_bytes() == made.test_file.read_bytes()


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("{}")
    real.chmod(0o640)
    link.symlink_to(real)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"a": 1}
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_failure_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(file, fail)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.slow
def test_a_pipe_is_written_to(made, run, tmp_path):
    arguments = [
        "evaluate",
        "--store",
        made.store.path,
        "--run",
        run,
        "--pairs",
        made.test_file,
        "--json",
        "/dev/stderr",
    ]
    done = subprocess.run([sys.executable, "-m", "frevl", *arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)["task"] == "classification"
