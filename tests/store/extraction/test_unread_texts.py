"""Texts that the encoder cannot read are counted wherever they are used."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from frevl.encoders.toy import ToyTextTower
from frevl.evaluation.evaluation import evaluate
from frevl.runs.scorer import Scorer
from frevl.runs.search.searching import search
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.store.upkeep.repair import repair
from frevl.store.upkeep.verification import verify
from frevl.training.classification.classify import classify
from frevl.training.training import train

COLOURS = {"สีแดง": (200, 0, 0), "สีเขียว": (0, 200, 0), "สีน้ำเงิน": (0, 0, 200)}
SENTENCE = "of {} texts are mostly unread: the tokenizer of toy-text does not know their letters or words. The first is"


@pytest.fixture(autouse=True)
def thai_is_unread(monkeypatch):
    """The toy tower reads everything; here it is a tokenizer that knows no Thai."""
    monkeypatch.setattr(
        ToyTextTower,
        "unread",
        lambda _, texts: np.array([sum("ก" <= s <= "๛" for s in t) / max(1, len(t)) for t in texts], np.float32),
    )


@pytest.fixture
def world(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for number in range(30):
        name, colour = list(COLOURS.items())[number % 3]
        Image.new("RGB", (8, 8), tuple(part + number for part in colour)).save(images / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": f"{name}ที่{number}"})
        rows.append({"image": f"{number}.png", "text": f"picture number {number}"})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return images, pairs


@pytest.mark.slow
def test_everybody_says_it(world, tmp_path, frevl):
    images, pairs = world
    store = tmp_path / "s"
    report = extract(store, images=images, pairs=[pairs], encoder=["toy"])
    assert report.texts_unread == report.record()["texts_unread"] == 30
    expected = "30 " + SENTENCE.format(60)
    assert expected in report.sentence()
    assert extract(store, images=images, pairs=[pairs], encoder=["toy"]).texts_unread == 30  # also what was there
    assert len(Store.open(store).unread_texts([f"สีแดงที่{3 * n}" for n in range(10)], store_towers(store))) == 10
    run = train(store, pairs, run=tmp_path / "run", task="matching", model="dual", options={"epochs": 1})
    assert any(expected in note for note in run.results["notes"])
    # In a sentence that can be read, most letters of the name's sentence are known, and yet it means little.
    names = ["สีแดง", "red"]
    classes = classify(store, names, run=tmp_path / "classes", space=run.path, template="picture number of a {}")
    assert classes.results["warnings"][0].startswith("1 of 2 names and descriptions are mostly unread: the tokenizer")
    scorer = Scorer.open(tmp_path / "run", store=store)
    assert any(expected in note for note in evaluate(scorer, pairs).notes)
    for text in ("สีแดงที่0", "สีแดงที่ไม่มีใครเห็น"):  # one of the store, one that is embedded now
        assert "The encoder does not know most of the query" in " ".join(search(scorer, text).notes)
    for text in ("picture number 7", "a text that nobody knows"):
        assert "unread" not in " ".join(search(scorer, text).notes)
    assert verify(store) == []


@pytest.mark.slow
def test_scores_say_it_too(world, tmp_path, frevl):
    images, pairs = world
    extract(tmp_path / "s", images=images, pairs=[pairs], encoder=["toy"])
    train(tmp_path / "s", pairs, run=tmp_path / "r", task="matching", model="linear")
    asked = [{"image": "0.png", "text": text} for text in ("a dog", "สีแดงที่0", "ที่ไม่มีใครเห็น", "ein Café")]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    score = ["score", "--store", tmp_path / "s", "--run", tmp_path / "r", "--out", tmp_path / "o.jsonl", "--pairs"]
    done = frevl(*score, tmp_path / "asked.jsonl", "--json", tmp_path / "report.json")
    assert done.code == 0, done.err
    assert "2 " + SENTENCE.format(4) in done.out
    assert json.loads((tmp_path / "report.json").read_text())["notes"][0].startswith("2 of 4 texts are mostly unread")
    (tmp_path / "asked.jsonl").write_text(json.dumps(asked[0]) + "\n")
    assert "unread" not in frevl(*score, tmp_path / "asked.jsonl").out


def store_towers(store):
    return Store.open(store).select_towers("text")


def test_nothing_is_said_where_everything_is_read(world, tmp_path):
    images, pairs = world
    english = tmp_path / "english.jsonl"
    english.write_text("".join(line for line in pairs.read_text().splitlines(keepends=True) if "picture" in line))
    report = extract(tmp_path / "s", images=images, pairs=[english], encoder=["toy"])
    assert (report.texts_unread, report.notes) == (0, [])
    assert not (tmp_path / "s" / "unread.lance").exists()


def test_the_table_comes_back(world, tmp_path):
    images, pairs = world
    store = tmp_path / "s"
    extract(store, images=images, pairs=[pairs], encoder=["toy"])
    shutil.rmtree(store / "commits")
    shutil.rmtree(store / "unread.lance" / "_versions")
    repair(store)
    texts = Store.open(store).texts
    assert len(Store.open(store).unread_texts(texts, store_towers(store))) == 30
    assert verify(store) == []
