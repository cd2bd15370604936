"""The pages on adding an encoder and a benchmark, followed literally."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from frevl.data.benchmarks import load, vqa
from frevl.encoders import registry

PAGES = Path(__file__).parent.parent / "docs" / "contributing"
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


def code_of(page):
    text = (PAGES / page).read_text(encoding="utf-8")
    return re.findall(r"<!-- executed by tests/test_contributing.py -->\n```python\n(.*?)```", text, flags=re.DOTALL)


def save_images(folder, count=30):
    """Save images of one colour each; return the colour of every file."""
    folder.mkdir()
    colours = {f"{number}.png": list(COLOURS)[number % 3] for number in range(count)}
    for number, (name, colour) in enumerate(colours.items()):
        Image.new("RGB", (20 + number, 20), COLOURS[colour]).save(folder / name)
    return colours


@pytest.mark.slow
def test_the_encoder_of_the_page_works(tmp_path, frevl, monkeypatch):
    tower, registered = code_of("add-an-encoder.md")
    module = types.ModuleType("frevl.encoders.histogram")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(tower, vars(module))  # noqa: S102
    names = dict(vars(registry))
    exec(registered, names)  # noqa: S102
    monkeypatch.setitem(registry.ENCODERS, "histogram", names["_histogram"])

    colours = save_images(tmp_path / "images")
    rows = [json.dumps({"image": name, "target": colour}) for name, colour in colours.items()]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(rows), encoding="utf-8")
    store, run = tmp_path / "store", tmp_path / "run"
    for verb in (
        ("extract", "--images", tmp_path / "images", "--pairs", pairs, "--encoder", "histogram", "--store", store),
        ("train", "--store", store, "--pairs", pairs, "--task", "classification", "--model", "linear", "--run", run),
        ("evaluate", "--store", store, "--run", run, "--pairs", pairs, "--json", tmp_path / "result.json"),
    ):
        done = frevl(*verb)
        assert done.code == 0, done.err
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["metrics"]["accuracy"] == 100
    done = frevl("extract", "--images", tmp_path / "images", "--encoder", "histogram", "--tokens",
                 "--store", tmp_path / "tokens")  # fmt: skip
    assert done.code == 2
    assert "'histogram' is pooled only" in done.err


def test_the_benchmark_of_the_page_works(tmp_path, frevl, monkeypatch):
    reader, row = code_of("add-a-benchmark.md")
    names = dict(vars(vqa))
    exec(reader, names)  # noqa: S102
    monkeypatch.setattr(vqa, "my_set", names["my_set"], raising=False)
    monkeypatch.setattr(load, "BENCHMARKS", {**load.BENCHMARKS, **eval(f"{{{row}}}", dict(vars(load)))})  # noqa: S307

    colours = save_images(tmp_path / "images", count=4)
    questions = [
        {"id": number, "image": name, "question": "what colour?", "answer": colour if number else " ", "scene": "s"}
        for number, (name, colour) in enumerate(colours.items())
    ]
    (tmp_path / "my_set_train.json").write_text(json.dumps(questions), encoding="utf-8")
    asked = ("pairs", "my-set", "--root", tmp_path, "--out", tmp_path / "pairs.jsonl", "--split")
    done = frevl(*asked, "train")
    assert done.code == 0, done.err
    assert "Left out: 1 (1 x nobody answered it)." in done.out
    first = json.loads((tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first == {
        "image": "images/1.png", "text": "what colour?", "target": "green", "question_id": 1, "cluster": "s"
    }  # fmt: skip
    done = frevl(*asked, "test")
    assert done.code == 1
    assert done.err.endswith("get it from example.org/my-set, images in images.zip.\n")


@pytest.mark.parametrize("page", ["add-an-encoder.md", "add-a-benchmark.md", "add-a-network.md"])
def test_every_file_that_the_pages_name_exists(page):
    text = (PAGES / page).read_text(encoding="utf-8")
    root = PAGES.parent.parent
    for path in re.findall(r"`((?:src|tests|docs|research|examples)/[\w./-]+)`", text):
        assert (root / path).exists(), path
