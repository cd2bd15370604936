"""Everything in the documentation is executed, generated, or exists."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrained import save_clip

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "research").rglob("*.md")),
]


def executed(language, document="README.md"):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"<!-- executed by tests/test_docs.py -->\n```{language}\n(.*?)```", text, flags=re.DOTALL)


def arrive(made, folder):
    """Put the files that the examples name into a folder."""
    (folder / "images").symlink_to(made.images)
    sources = {"train": made.train_file, "test": made.test_file, "captions": made.captions_file}
    for name, source in sources.items():
        (folder / f"{name}.jsonl").write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="module")
def newcomer(made, tmp_path_factory):
    """Where the commands and the Python of the README run, one after the other."""
    return arrive(made, tmp_path_factory.mktemp("newcomer"))


def run(command, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_the_readme_work(newcomer):
    blocks = executed("bash")
    assert len(blocks) == 1
    output = run(["bash", "-euc", blocks[0]], newcomer)
    assert "Difference from RUN/linear" in output
    assert (newcomer / "result.json").exists()
    assert len((newcomer / "scores.jsonl").read_text().splitlines()) == 60


@pytest.mark.slow
def test_the_python_of_the_readme_works(newcomer):
    blocks = executed("python")
    assert len(blocks) == 1
    output = run([sys.executable, "-W", "error", "-c", blocks[0]], newcomer)
    assert "(3, 1280)" in output
    assert "(1, 384)" in output


@pytest.mark.slow
def test_the_search_page_works(tmp_path, made, frevl, monkeypatch, capfd):
    from clip_folders import clip_retrieval, unit

    monkeypatch.chdir(arrive(made, tmp_path))
    clip_retrieval(tmp_path / "clip", sizes=(10, 10))
    np.save("vectors.npy", unit(2))
    (tmp_path / "ids.txt").write_text("a.png\nb.png\n")
    pq.write_table(pa.table({"caption": ["a", "b"], "embedding": unit(2).tolist()}), "table.parquet")
    said = []
    for block in executed("bash", "docs/search.md"):
        # In this process, and with the encoder that takes milliseconds where the page has a real one.
        for line in filter(None, block.replace("--encoder packaged", "--encoder toy").splitlines()):
            done = frevl(*shlex.split(line)[1:])
            assert done.code == 0, (line, done.err)
            said.append(done.out)
    assert "recall@10 against exact search 100.0 %" in said[6]
    assert "Imported 20 images and 20 texts" in said[7]
    assert (tmp_path / "sheet.html").exists()
    capfd.readouterr()
    for block in executed("python", "docs/search.md"):
        exec(block, {})  # noqa: S102
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == 4 + 6
    for line in printed[4:]:
        _, _, again, evaluated = line.split()
        assert float(again) == pytest.approx(float(evaluated), abs=1e-9)


GUIDES = ("extract", "train", "evaluate", "score")


def blocks_in_order(document):
    """Every executed block of a page, as (language, text), in the order of the page."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"<!-- executed by tests/test_docs.py -->\n```(bash|python)\n(.*?)```", text, flags=re.DOTALL)


def follow(document, frevl, capfd, clip=""):
    """Do what a page says, in this process and with encoders that take milliseconds; return what was said."""
    said = []
    for language, block in blocks_in_order(document):
        block = block.replace("hf:openai/clip-vit-base-patch32", f"hf:{clip}")
        block = block.replace("--encoder packaged", "--encoder toy").replace('["packaged"]', '["toy"]')
        if language == "python":
            capfd.readouterr()
            exec(block, {})  # noqa: S102
            said.append(capfd.readouterr().out)
            continue
        for line in filter(None, block.replace("\\\n", "").splitlines()):
            done = frevl(*shlex.split(line)[1:])
            assert done.code == 0, (line, done.err)
            said.append(done.out)
    return said


@pytest.mark.slow
def test_the_start_page_works(tmp_path, frevl, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    said = follow("docs/start.md", frevl, capfd)
    label, accuracy = said[-1].split()
    assert label in ("yes", "no")
    assert float(accuracy) > 95
    assert re.search(r"Difference from RUN/linear: \+[34]\d", said[4])  # the page says that only the fusion learns it
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 200
    made = {path.name for path in tmp_path.iterdir()}
    assert {"images", "train.jsonl", "test.jsonl", "captions.jsonl"} <= made  # the guides start from these


@pytest.mark.slow
def test_the_options_of_a_model_are_shown_as_they_are_printed(frevl, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    guide = (ROOT / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
    shown = guide.partition("$ frevl models show linear\n")[2].partition("```")[0]
    assert frevl("models", "show", "linear").out == shown


@pytest.mark.slow
def test_the_page_on_arrays_works(tmp_path, frevl, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (said,) = follow("docs/guides/arrays.md", frevl, capfd)
    assert float(said.splitlines()[-1]) > 0.9
    assert (tmp_path / "ARRAYS_RUN" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_the_guides_work(guide, tmp_path, made, frevl, monkeypatch, capfd):
    monkeypatch.chdir(arrive(made, tmp_path))
    said = follow(f"docs/guides/{guide}.md", frevl, capfd)
    assert len(said) >= 3
    assert all(said)


@pytest.mark.slow
def test_the_page_about_many_machines_works(tmp_path, made, frevl, monkeypatch, capfd):
    monkeypatch.chdir(arrive(made, tmp_path))
    said = follow("docs/many-machines.md", frevl, capfd)
    assert re.search(r"Merged \d+ images and \d+ texts of 2 parts", said[2])
    assert said[3].startswith("STORE: sound.")
    assert said[4] == "['00000.tar', '00001.tar']\n"
    assert "Wrote 120 pairs to pairs.jsonl." in said[5]


@pytest.mark.slow
def test_the_page_about_trust_works(tmp_path, made, frevl, monkeypatch, capfd):
    monkeypatch.chdir(arrive(made, tmp_path))
    said = follow("docs/trust.md", frevl, capfd)
    assert all(said)
    assert "set" in json_lines("sets.jsonl")[0]
    assert all(0 <= line["doubt"] <= 1 for line in json_lines("doubts.jsonl"))
    assert [line["select"]["rank"] for line in json_lines("next.jsonl")] == list(range(1, 11))


@pytest.mark.slow
def test_the_page_about_curating_works(tmp_path, made, frevl, monkeypatch, capfd):
    monkeypatch.chdir(arrive(made, tmp_path))
    said = follow("docs/curate.md", frevl, capfd)
    lines = len(json_lines("captions.jsonl"))
    assert re.search(rf"Kept \d+ of {lines} lines into kept.jsonl", said[1])
    assert {"match", "label", "kept", "why"} < json_lines("kept.jsonl")[0]["curate"].keys()
    assert "Dropped lines" in (tmp_path / "report.html").read_text()
    assert "'why'" in said[2]


@pytest.mark.slow
def test_the_page_about_fairness_works(tmp_path, made, frevl, monkeypatch, capfd):
    monkeypatch.chdir(arrive(made, tmp_path))
    with (tmp_path / "test.jsonl").open("a") as file:  # the test pairs alone have too few images for groups
        file.write((tmp_path / "train.jsonl").read_text())
    page = (ROOT / "docs" / "fairness.md").read_text(encoding="utf-8")
    (tmp_path / "biases.jsonl").write_text(re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)[0])
    said = follow("docs/fairness.md", frevl, capfd)
    assert "accuracy by gender: worst" in said[4]
    assert "a pool of 120 images, the first 25 hits of each" in said[5]
    assert "prior_accuracy" in said[7]
    assert "Bias: texts that should be equal (1 pair) are" in said[8]


@pytest.mark.slow
def test_the_page_about_classes_works(tmp_path, made, frevl, monkeypatch, capfd):
    monkeypatch.chdir(arrive(made, tmp_path))
    colours = {row["image"]: row["text"].split()[1] for row in json_lines("captions.jsonl") if row["text"][:2] == "a "}
    exec(blocks_in_order("docs/classify.md")[0][1], {})  # noqa: S102
    clip = save_clip(tmp_path / "clip")
    short = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- executed beside docs/classify.md")[2]
    for line in short.split("```")[1].removeprefix("bash").strip().splitlines():
        assert frevl(*shlex.split(line.replace("hf:openai/clip-vit-base-patch32", f"hf:{clip}"))[1:]).code == 0
    said = follow("docs/classify.md", frevl, capfd, clip=clip)
    assert "Classifier of 4 classes from their names and 60 examples" in said[3]
    assert json.loads((tmp_path / "result.json").read_text())["metrics"]["accuracy"] > 90
    assert len(json_lines("labels.jsonl")) == 120
    labels = {row["image"]: row["label"] for row in json_lines("labels.jsonl")}
    assert sum(labels[image] == colour for image, colour in colours.items()) > 110
    assert said[-1].splitlines()[1].split()[:2] == ["0.png", colours["0.png"]]


def json_lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_files_that_exist(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_readme_names_both_commands():
    for number, ending in (("1", "frevl demo"), ("2", "pytest -q")):
        command = run([str(ROOT / "scripts" / "readme_command"), number], ROOT).strip()
        assert command.startswith("pip install -c constraints.txt -e ")
        assert command.endswith(ending)
        assert "\n" not in command


def test_the_glossary_names_every_model_and_the_changelog_the_version():
    import frevl
    from frevl.encoders.registry import ENCODERS
    from frevl.training.fitting.fit_model import MODELS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in [*MODELS, *ENCODERS]:
        assert f"`{name}`" in readme
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert next(version for version in versions if version != "Unreleased") == frevl.__version__
    assert f'version = "{frevl.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_direct_dependencies_are_pinned():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = set(re.findall(r'^    "([A-Za-z0-9_-]+)>=', pyproject, flags=re.MULTILINE))
    named |= {
        name for line in re.findall(r"= \[(.*)\]", pyproject) for name in re.findall(r'"([A-Za-z0-9_-]+)>=', line)
    }
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {name.lower().replace("_", "-") for name in named} <= {name.lower().replace("_", "-") for name in pinned}
