"""What `frevl.classify` refuses, leaves out by name, and says first."""

import json

import pytest

import frevl
from frevl.cli.tables import classify_sentence
from frevl.errors import InputError, PairsError, UsageError
from named import CLASSES


def test_what_is_refused(named, one_side, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="class names"):
        frevl.classify(named.store, run=run)
    with pytest.raises(UsageError, match="no method 'gausian'"):
        frevl.classify(named.store, named.classes, run=run, method="gausian")
    with pytest.raises(UsageError, match="one '{}'"):
        frevl.classify(named.store, named.classes, run=run, template="a photo")
    with pytest.raises(UsageError, match="cannot be embedded"):
        frevl.classify(named.store, ["ash", "yew"], run=run)
    with pytest.raises(UsageError, match="method names"):
        frevl.classify(named.store, run=run, examples=named.examples, method="names")
    for method in ("means", "cache", "gaussian", "kernel", "probe"):  # names in its place would be a silent surprise
        with pytest.raises(UsageError, match=f"--method {method} needs examples; give them with --examples"):
            frevl.classify(named.store, named.classes, run=run, method=method)
    with pytest.raises(UsageError, match="between 0 and 1"):
        frevl.classify(named.store, named.classes, run=run, unknown=1.0)
    unknown_class = tmp_path / "unknown.jsonl"
    unknown_class.write_text('{"image": "0.png", "target": "oak"}\n')
    with pytest.raises(PairsError, match=r"unknown.jsonl:1: there is no class 'oak'"):
        frevl.classify(named.store, named.classes, run=run, examples=unknown_class)
    missing = tmp_path / "missing.jsonl"
    missing.write_text('{"image": "9999.png", "target": "ash"}\n')
    with pytest.raises(PairsError, match="the store has no image '9999.png'"):
        frevl.classify(named.store, named.classes, run=run, examples=missing)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(PairsError, match=r'such as \{"image": "a.jpg", "target": "dog"\}. It is empty'):
        frevl.classify(named.store, run=run, examples=empty)
    single = tmp_path / "single.jsonl"
    single.write_text('{"image": "0.png", "target": "ash"}\n')
    with pytest.raises(PairsError, match="at least two classes"):
        frevl.classify(named.store, run=run, examples=single)
    single.write_text('{"image": "0.png", "label": "ash"}\n')
    with pytest.raises(PairsError, match="no example has a class; if 'label' is the class, name it with --columns tar"):
        frevl.classify(named.store, run=run, examples=single)
    with pytest.raises(InputError, match="ash"):
        frevl.classify(named.store, ["ash", "birch", "ash"], run=run)
    if one_side.side == "image":
        with pytest.raises(UsageError, match="have no common space with texts"):
            frevl.classify(one_side.store, ["fern", "moss"], run=run)


def test_descriptions_that_imported_vectors_do_not_hold_are_named(named, tmp_path):
    described = {label: [f"{label} in the rain"] if number else [] for number, label in enumerate(CLASSES)}
    notes = frevl.classify(named.store, described, run=tmp_path / "described").results["notes"]
    assert any(
        f"{len(described) - 1} descriptions were left out, because the text vectors" in note
        and f"(the first: '{CLASSES[1]} in the rain')" in note
        for note in notes
    )


def test_names_without_a_space_are_left_out_beside_examples(one_side, tmp_path):
    if one_side.side == "text":
        with pytest.raises(PairsError, match="found only texts"):
            frevl.classify(one_side.store, run=tmp_path / "run", examples=one_side.train_file)
        return
    run = frevl.classify(one_side.store, ["fern", "moss", "reed"], run=tmp_path / "run", examples=one_side.train_file)
    assert any("Class names were not used" in note for note in run.results["notes"])
    assert run.results["development"]["accuracy"] > 90


@pytest.mark.slow
def test_a_class_in_another_case_is_named_where_its_examples_are_missed(named, one_side, tmp_path):
    shouted = tmp_path / "shouted.jsonl"
    shouted.write_text(named.examples.read_text().replace('"ash"', '"ASH"'))
    run = frevl.classify(named.store, named.classes, run=tmp_path / "run", examples=shouted)
    assert any("there is no class 'ASH'. Did you mean 'ash'?" in note for note in run.results["notes"])
    both = tmp_path / "both.jsonl"
    both.write_text(named.examples.read_text().replace('"ash"', '"ASH"', 5))
    run = frevl.classify(named.store, run=tmp_path / "both", examples=both)
    assert run.results["warnings"][0].startswith("Classes that look alike: 2 of 7 differ from another one only in case")
    if one_side.side == "image":  # no space for names, so a class lives by its examples alone
        other = tmp_path / "other.jsonl"
        other.write_text(one_side.train_file.read_text().replace('"moss"', '"MOSS"'))
        with pytest.raises(UsageError, match="'moss' has no example, but examples are of the class 'MOSS'; write both"):
            frevl.classify(one_side.store, ["fern", "moss", "reed"], run=tmp_path / "third", examples=other)
        rows = [json.loads(line) for line in one_side.train_file.read_text().splitlines()]
        listed, yew = [*sorted({row["target"] for row in rows}), "yew"], {**rows[0], "target": "yew"}
        with pytest.raises(UsageError, match=r"no example is left of the class 'yew', because its images also occur w"):
            frevl.classify(one_side.store, listed, run=tmp_path / "fourth", examples=[*rows, yew])


def test_a_picture_of_two_classes_is_left_out_and_named(named, tmp_path):
    rows = [json.loads(line) for line in named.examples.read_text().splitlines()]
    run = frevl.classify(named.store, run=tmp_path / "run", examples=[*rows, {**rows[0], "target": "elm"}])
    assert run.results["train_pairs"] == len(rows) - 1
    left_out = next(note for note in run.results["notes"] if note.startswith("Left out"))
    assert left_out == (
        "Left out: 2 examples of images that occur with several classes (pairs in memory:1: '0.png' is 'ash' "
        "and 'elm')."
    )
    yew = {**rows[0], "target": "yew"}
    run = frevl.classify(named.store, run=tmp_path / "without", examples=[*rows, yew])
    assert run.labels == sorted({row["target"] for row in rows})
    left_out = next(note for note in run.results["notes"] if note.startswith("Left out"))
    assert left_out.endswith("'0.png' is 'ash' and 'yew'). No example is left of 'yew'.")
    both = [{"image": "0.png", "target": name} for name in ("ash", "elm")]
    with pytest.raises(PairsError, match="every example is of several classes"):
        frevl.classify(named.store, run=tmp_path / "none", examples=both)
    several = frevl.classify(
        named.store, run=tmp_path / "several", examples=[*rows, {"image": "1.png", "target": ["ash", "elm"]}]
    )
    assert any("expected one class, found several classes" in note for note in several.results["notes"])


def test_development_pictures_among_the_examples_are_the_first_thing_said(named, tmp_path):
    run = frevl.classify(named.store, run=tmp_path / "run", examples=named.examples, dev=named.examples)
    assert run.results["warnings"][0].startswith("Leak: 60 of 60 development images")
    assert classify_sentence(run).startswith("Leak: ")


def test_classes_of_the_same_names_are_named(named, tmp_path):
    rows = [
        {"class": "one", "names": ["ash"]}, {"class": "two", "names": ["elm"]}, {"class": "three", "names": ["ash"]},
    ]  # fmt: skip
    classes = tmp_path / "classes.jsonl"
    classes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = frevl.classify(named.store, classes, run=tmp_path / "run")
    assert "1 class is described exactly like another one" in " ".join(run.results["notes"])


def test_flags_that_would_do_nothing_are_refused(named, frevl, tmp_path):
    for flags, message in (
        (["--where", "id LIKE '1%'"], "add --out or --html"),
        (["--images", tmp_path], "add --html"),
    ):
        done = frevl(
            "classify", "--store", named.store.path, "--classes", named.classes, "--run", tmp_path / "run", *flags
        )
        assert done.code == 2
        assert message in done.err
    assert not (tmp_path / "run").exists()
    done = frevl("classify", "--store", named.store.path, "--classes", named.classes, "--run", tmp_path / "run",
                 "--out", tmp_path / "out.jsonl", "--where", "foo > 3", "--quiet")  # fmt: skip
    assert done.code == 2
    assert "there is no column 'foo'" in done.err
    assert not (tmp_path / "run").exists(), "a bad condition is refused before the run is built"
    done = frevl("classify", "--store", named.store.path, "--classes", named.classes, "--run", tmp_path / "run",
                 "--out", tmp_path / "out.jsonl", "--where", "id LIKE 'z%'", "--quiet")  # fmt: skip
    assert "No image was labelled" in done.out


def test_what_was_asked_for_and_not_done_comes_first(named, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(f"{line}\n" for line in named.test.read_text().splitlines()[:10]))
    run = frevl.classify(named.store, run=tmp_path / "run", examples=named.examples, dev=few)
    assert (
        "The 10 development images were not used for the comparison: at least 20 are needed"
        in run.results["warnings"][0]
    )
    assert "held-out examples" in run.results["selection"]["judged_on"]
    short = frevl.classify(named.store, run=tmp_path / "short", examples=named.examples, time_limit=1e-6)
    assert "The time limit left" in short.results["warnings"][0]
