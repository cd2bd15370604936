"""Classes that look alike, and pairs that contradict each other."""

import json

import pytest

import frevl
from frevl.cli.tables import result_table
from frevl.data.label_doubts import contradiction_note, look_alike_note, unseen_note
from frevl.data.pairs import read_pairs
from frevl.errors import misleading


def test_classes_that_differ_in_case_blanks_or_accents():
    (note,) = look_alike_note(["red", "Red", "red ", "green", None], [["caf\u00e9", "cafe\u0301"], {"blue": 1.0}])
    assert note.startswith(
        "Classes that look alike: 5 of 7 differ from another one only in case, "
        "blanks, accents or invisible characters ("
    )
    assert "'caf\u00e9'" in note
    assert look_alike_note(["red", "green", "1", "01", "1.0"]) == []
    (note,) = look_alike_note(["green", "\u200bgreen", "red"])  # a zero-width blank, as copied from a web page
    assert note.startswith("Classes that look alike: 2 of 3 ")


def test_unseen_answers_that_look_like_a_class():
    spelt, unknown = unseen_note([["Red"], ["red"], ["violet"], []], ["red", "green"])
    assert spelt == (
        "Spelling: the right class of 1 pair differs from one of the run only in case, blanks, accents or invisible "
        "characters ('Red' from 'red'), and no answer counts as right there; write them as in training."
    )
    assert unknown == "1 pair has only classes that were not in training; it counts as wrong."
    (unknown,) = unseen_note(iter([["blue"], ["violet"], ["red"]]), ["red", "green"])
    assert unknown == "Unknown classes: 2 pairs have only classes that were not in training; they count as wrong."
    assert misleading([unknown]) == [unknown]
    (spelt,) = unseen_note([["RED", "red "], ["lila", " green"], ["red", "x"]], ["red", "green"])
    assert spelt.startswith("Spelling: the right classes of 2 pairs differ from those of the run only in case")
    assert unseen_note([["red"], []], ["red"]) == []


def test_pairs_that_contradict_each_other(tmp_path):
    rows = [("a", "q", "x"), ("a", "q", "y"), ("a", "q", "x"), ("b", "q", "x"), ("b", "q", "x"), ("a", "p", "y")]
    (note,) = contradiction_note(read_pairs(rows))
    assert note.startswith(
        "Contradiction: 3 of 6 pairs have the same image and text as another pair, but another class"
    )
    assert "at most 83.33 % of all can be right" in note
    assert contradiction_note(read_pairs(rows[3:])) == []
    assert contradiction_note(read_pairs([(*row[:2], [row[2]]) for row in rows])) == []
    assert contradiction_note(read_pairs([row[:2] for row in rows])) == []
    few = [("a", "q", "x"), ("a", "q", "y"), *((f"c{n}", "q", "x") for n in range(300))]
    assert contradiction_note(read_pairs(few)) == []
    (note,) = contradiction_note(read_pairs(few), least=0)
    assert note.startswith("Contradiction: 2 of 302 pairs")
    assert contradiction_note(read_pairs(few[2:]), least=0) == []


@pytest.mark.slow
def test_training_and_evaluation_say_so(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    names = [f"{n}.png" for n in range(24)]
    for n, name in enumerate(names):
        Image.new("RGB", (8, 8), (n * 10, 200 * (n % 2), 0)).save(tmp_path / "images" / name)
    frevl.extract(tmp_path / "S", images=tmp_path / "images", encoder=["toy"])

    def written(file, labels):
        rows = ({"image": name, "target": labels[n % len(labels)]} for n, name in enumerate(names))
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / file

    odd = frevl.train(
        tmp_path / "S", written("a", ["red", "Green"]).rename(tmp_path / "a.jsonl"), run=tmp_path / "R",
        task="classification", model="linear",
    )  # fmt: skip
    assert not any("look alike" in note for note in odd.results["notes"])
    other = written("b", ["red", "green"]).rename(tmp_path / "b.jsonl")
    result = frevl.evaluate(frevl.Scorer.open(odd.path, store=frevl.Store.open(tmp_path / "S")), other)
    assert any("'green' from 'Green'" in note for note in result.notes)
    leak, spelling, pairs, *_ = result_table(result).split("\n\n")
    assert leak.startswith("Leak: 24 of 24 ")
    assert spelling.startswith("Spelling: the right classes of 12 pairs differ")
    assert pairs == "24 pairs, task classification"
    mixed = written("c", ["red", "Green", "red", "green"]).rename(tmp_path / "c.jsonl")
    run = frevl.train(tmp_path / "S", mixed, run=tmp_path / "R2", task="classification", model="linear")
    assert run.results["notes"][0].startswith("Classes that look alike: 2 of 3")
    kept = frevl.curate(tmp_path / "S", mixed, out=tmp_path / "kept.jsonl", drop=["text"])
    assert kept.sentence().startswith("Classes that look alike: 2 of 3")
