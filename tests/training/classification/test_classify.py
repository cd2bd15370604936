"""`frevl.classify`: from names, examples, or both; what it refuses; and that its result is an ordinary run."""

import json
import os
import shutil

import numpy as np
import pytest

import frevl
from frevl.cli.tables import labelling_sentence
from frevl.data.class_files import read_classes
from frevl.data.pairs import read_pairs
from frevl.errors import RunError, UsageError
from frevl.runs.labelling.label_store import label_store
from frevl.runs.labelling.selecting import select_pairs
from frevl.store.importing.vectors import import_embeddings
from named import CLASSES, make_named


def accuracy(run, named):
    scorer = frevl.Scorer.open(run.path, store=named.store)
    return frevl.evaluate(scorer, named.test).metrics["accuracy"]


@pytest.mark.slow
def test_names_alone_examples_alone_and_both_in_that_order(named, tmp_path):
    by_names = frevl.classify(named.store, named.classes, run=tmp_path / "names")
    by_examples = frevl.classify(named.store, run=tmp_path / "examples", examples=named.examples)
    by_both = frevl.classify(named.store, named.classes, run=tmp_path / "both", examples=named.examples)
    found = [accuracy(run, named) for run in (by_names, by_examples, by_both)]
    chance = 100 / len(CLASSES)
    assert found[0] > 3 * chance
    assert found[1] > 90
    assert found[2] >= max(found) - 2
    assert by_names.results["warnings"], "nothing was held out, so its first sentence says so"
    assert by_both.results["development"]["n"] > 20


def test_one_example_a_class_is_not_chance_and_no_class_is_lost(named, tmp_path):
    alone = frevl.classify(named.store, run=tmp_path / "alone", examples=named.one_each)
    beside = frevl.classify(named.store, named.classes, run=tmp_path / "beside", examples=named.one_each)
    names = frevl.classify(named.store, named.classes, run=tmp_path / "names")
    assert sorted(alone.labels) == sorted(CLASSES)
    assert accuracy(alone, named) > 50
    assert accuracy(beside, named) >= accuracy(names, named)
    assert "Methods were not compared" in alone.results["warnings"][0]
    assert alone.results["development"] == {"n": 0, "accuracy": None, "interval": None}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["names", "means", "cache", "gaussian", "kernel", "probe"])
def test_every_method_can_be_asked_for(method, named, tmp_path):
    run = frevl.classify(named.store, named.classes, run=tmp_path / "run", examples=named.examples, method=method)
    chosen = run.results["selection"]["chosen"]
    assert method in chosen
    assert accuracy(run, named) > 50
    # What is loaded scores as what was fitted, but for the half precision of stored matrices.
    images = [json.loads(line)["image"] for line in named.test.read_text().splitlines()]
    scorer = frevl.Scorer(run, named.store)
    loaded = frevl.Scorer.open(run.path, store=named.store)
    np.testing.assert_allclose(scorer.score(images), loaded.score(images), atol=0.05, rtol=2e-3)


@pytest.mark.slow
def test_a_class_without_a_name_lives_by_its_examples(named, tmp_path):
    rows = [{"class": name, **({"names": []} if name == "elm" else {})} for name in CLASSES]
    classes = tmp_path / "classes.jsonl"
    classes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = frevl.classify(named.store, classes, run=tmp_path / "run", examples=named.examples)
    assert accuracy(run, named) > 90
    # ... and one without examples by its name.
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in named.examples.read_text().splitlines() if "elm" not in line))
    run = frevl.classify(named.store, named.classes, run=tmp_path / "other", examples=few)
    found = frevl.Scorer.open(run.path, store=named.store)
    elms = [json.loads(line)["image"] for line in named.test.read_text().splitlines() if "elm" in line]
    by_names = frevl.classify(named.store, named.classes, run=tmp_path / "names")
    before = frevl.Scorer.open(by_names.path, store=named.store)
    right = [sum(one.label == "elm" for one in scorer.label(elms)) for scorer in (before, found)]
    assert right[1] >= right[0] - 2, "the others' examples must not drown it"
    with pytest.raises(UsageError, match="needs examples of every class"):
        frevl.classify(named.store, named.classes, run=tmp_path / "lost", examples=few, method="gaussian")


def test_examples_in_the_file_of_the_classes(named, tmp_path):
    images = {}
    for line in named.examples.read_text().splitlines():
        row = json.loads(line)
        images.setdefault(row["target"], []).append(row["image"])
    classes = tmp_path / "classes.jsonl"
    classes.write_text("".join(json.dumps({"class": name, "examples": own}) + "\n" for name, own in images.items()))
    run = frevl.classify(named.store, classes, run=tmp_path / "run")
    assert run.results["train_pairs"] == sum(map(len, images.values()))
    assert accuracy(run, named) > 90


def test_development_pictures_are_compared_on(named, tmp_path):
    run = frevl.classify(named.store, named.classes, run=tmp_path / "run", examples=named.one_each, dev=named.test)
    assert run.results["selection"]["judged_on"] == "120 development images"
    assert not run.results["warnings"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_a_finished_run_is_returned(named, tmp_path, monkeypatch):
    first = frevl.classify(named.store, named.classes, run=tmp_path / "a", examples=named.examples)
    again = frevl.classify(named.store, named.classes, run=tmp_path / "a", examples=named.examples)
    other = frevl.classify(named.store, named.classes, run=tmp_path / "b", examples=named.examples)
    assert again.provenance == first.provenance
    monkeypatch.chdir(named.examples.parent)  # the same files, named otherwise
    classes, examples = (os.path.relpath(path) for path in (named.classes, named.examples))
    again = frevl.classify(named.store, classes, run=tmp_path / "a", examples=examples)
    assert again.provenance == first.provenance
    for name, value in first.network.state_dict().items():
        assert value.equal(other.network.state_dict()[name]), name
    with pytest.raises(RunError, match="finished run"):
        frevl.classify(named.store, named.classes, run=tmp_path / "a", examples=named.one_each)


def test_groups_of_examples_stay_on_one_side(named, tmp_path):
    copies = tmp_path / "copies.jsonl"
    rows = [json.loads(line) for line in named.one_each.read_text().splitlines()]
    copies.write_text("".join(json.dumps({**row, "shoot": row["target"]}) + "\n" for row in rows for _ in range(6)))
    run = frevl.classify(named.store, run=tmp_path / "run", examples=copies, group_by="shoot")
    assert "Methods were not compared" in run.results["warnings"][0], "one group a class: nothing can be held out"


def test_unknown_pictures(named, tmp_path):
    three = tmp_path / "three.txt"
    three.write_text("ash\nbirch\ncedar\n")
    some = tmp_path / "some.jsonl"
    some.write_text("".join(f"{line}\n" for line in named.examples.read_text().splitlines() if any(
        name in line for name in ("ash", "birch", "cedar"))))  # fmt: skip
    run = frevl.classify(named.store, three, run=tmp_path / "run", examples=some, unknown=0.95)
    scorer = frevl.Scorer.open(run.path, store=named.store)
    rows = [json.loads(line) for line in named.test.read_text().splitlines()]
    found = scorer.label([row["image"] for row in rows])
    inside = [one.unknown for row, one in zip(rows, found, strict=True) if row["target"] in run.labels]
    outside = [one.unknown for row, one in zip(rows, found, strict=True) if row["target"] not in run.labels]
    assert np.mean(inside) < 0.15
    assert np.mean(outside) > 0.5
    assert any("Unknown: an image" in note for note in run.results["notes"])
    by_names = frevl.classify(named.store, three, run=tmp_path / "names", unknown=0.9)
    assert any("images of the store" in note for note in by_names.results["notes"])


@pytest.mark.slow
def test_in_the_space_of_a_trained_run(made, tmp_path):
    dual = frevl.train(
        made.store, made.captions, run=tmp_path / "dual", task="matching", model="dual",
        options={"epochs": 20, "members": 1, "hidden": 64, "width": 32},
    )  # fmt: skip
    run = frevl.classify(made.store, ["red", "green", "blue", "yellow"], run=tmp_path / "run", space=dual.path,
                         template="a {} square")  # fmt: skip
    scorer = frevl.Scorer.open(run.path, store=made.store)
    images = list(dict.fromkeys(made.captions.images))
    colours = dict(zip(made.captions.images, (text.split()[1] for text in made.captions.texts), strict=True))
    right = [one.label == colours[image] for image, one in zip(images, scorer.label(images), strict=True)]
    assert np.mean(right) > 0.8
    with pytest.raises(UsageError, match="first stage"):
        frevl.classify(made.store, ["red", "green"], run=tmp_path / "other", space=run.path)


@pytest.mark.slow
def test_what_the_space_has_learned_from_is_not_held_out_to_compare_names(made, tmp_path):
    """A dual is right about the images that it was trained on: compared on these, names alone always win."""
    images = list(dict.fromkeys(made.captions.images))
    colours = dict(zip(made.captions.images, (text.split()[1] for text in made.captions.texts), strict=True))
    learned = set(images[: len(images) // 2])
    captions = [
        {"image": image, "text": text}
        for image, text in zip(made.captions.images, made.captions.texts, strict=True) if image in learned
    ]  # fmt: skip
    dual = frevl.train(
        made.store, captions, run=tmp_path / "dual", task="matching", model="dual",
        options={"epochs": 1, "members": 1, "hidden": 16, "width": 8},
    )  # fmt: skip
    names = sorted(set(colours.values()))

    def results(some, **options):
        examples = [{"image": image, "target": colours[image]} for image in some]
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        return frevl.classify(made.store, names, run=folder, examples=examples, **options).results

    known, others = sorted(learned), [image for image in images if image not in learned]
    alone = results(known, space=dual.path)
    assert alone["selection"]["candidates"] == []
    assert "names alone are right for 17 of 60 examples, which is no better than chance" in alone["warnings"][0]
    assert f"has learned from {len(known)} of the {len(known)} examples" in alone["warnings"][1]
    both = results(known + others, space=dual.path)
    assert both["selection"]["candidates"] != []
    assert 0 < both["development"]["n"] <= len(others)
    none = results(others, space=dual.path)
    assert not any("has learned from" in sentence for sentence in none["notes"])
    by_names = frevl.classify(made.store, names, run=tmp_path / "names", space=dual.path)
    asked = [{"image": image, "target": colours[image]} for image in images]
    leak = f"Leak: {len(known)} of {len(images)} different images were in training or development"
    assert any(note.startswith(leak) for note in frevl.evaluate(frevl.Scorer(by_names, made.store), asked).notes)
    # They have no class yet, so they may still be chosen for labelling; what was an example may not.
    some = frevl.classify(made.store, names, run=tmp_path / "some", space=dual.path, examples=asked[:5])
    pool = read_pairs([{"image": image} for image in images])
    for run, left_out in ((by_names, 0), (some, 5)):
        counts = select_pairs(frevl.Scorer.open(run.path, store=made.store), pool, k=1).counts
        assert counts["in_training"] == counts["covered"] == left_out
    dev = [{"image": image, "target": colours[image]} for image in known]
    assert any(
        f"has learned from {len(dev)} of the {len(dev)} development images" in sentence
        for sentence in results(others, space=dual.path, dev=dev)["notes"]
    )


@pytest.mark.slow
def test_the_run_is_exported_scored_and_published(named, frevl, tmp_path):
    run = tmp_path / "run"
    frevl("classify", "--store", named.store.path, "--classes", named.classes, "--examples", named.examples,
          "--run", run, "--unknown", 0.95, "--quiet")  # fmt: skip
    frevl("export", "--run", run, "--onnx", tmp_path / "model.onnx")
    frevl("score", "--store", named.store.path, "--run", run, "--pairs", named.test, "--out", tmp_path / "torch.jsonl")
    frevl("score", "--store", named.store.path, "--run", run, "--pairs", named.test, "--out", tmp_path / "onnx.jsonl",
          "--backend", "onnx", "--onnx", tmp_path / "model.onnx")  # fmt: skip
    by_torch, by_onnx = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("torch", "onnx")
    )
    assert [row["label"] for row in by_torch] == [row["label"] for row in by_onnx]
    assert all("unknown" in row for row in by_torch)
    frevl("publish", "--run", run, "--to", "somebody/trees", "--folder", tmp_path / "published")
    card = (tmp_path / "published" / "README.md").read_text()
    assert "ash" in card
    assert "It answers 'unknown' for items unlike any of its labels, and for about 5 % of those" in card


def test_pictures_without_labels_help_where_a_class_has_one_example(named, tmp_path):
    alone = frevl.classify(named.store, run=tmp_path / "alone", examples=named.one_each)
    helped = frevl.classify(named.store, run=tmp_path / "helped", examples=named.one_each, unlabelled=True)
    assert helped.results["selection"]["chosen"].endswith("+ unlabelled")
    assert accuracy(helped, named) >= accuracy(alone, named)
    # Whoever evaluates on them is told.
    scorer = frevl.Scorer.open(helped.path, store=named.store)
    assert any(note.startswith("Leak: ") for note in frevl.evaluate(scorer, named.test).notes)


def test_pictures_without_labels_are_declined_where_they_cannot_be_compared(named, tmp_path):
    few = frevl.classify(
        named.store, [*CLASSES], run=tmp_path / "names", examples=named.one_each, unlabelled=True
    )  # beside names, and nothing held out
    assert any("were not used: beside names" in note for note in few.results["notes"])
    none = frevl.classify(named.store, named.classes, run=tmp_path / "none", unlabelled=True)
    assert any("were not used: there are no examples" in note for note in none.results["notes"])


def test_too_few_pictures_without_labels_are_not_used(named, tmp_path):
    rows = [json.loads(line) for file in (named.examples, named.test) for line in file.read_text().splitlines()]
    most = tmp_path / "most.jsonl"
    most.write_text("".join(json.dumps(row) + "\n" for row in rows[: len(rows) - 40]))
    run = frevl.classify(named.store, run=tmp_path / "run", examples=most, unlabelled=True)
    assert any("fewer than 8 for each of 6 classes" in note for note in run.results["notes"])


def test_classes_from_python_in_every_form(named, tmp_path):
    """A generator, and objects, once ended in a traceback when the run's config.toml was written."""
    forms = {
        "generator": lambda: (name for name in CLASSES),
        "objects": lambda: [{"class": name} for name in CLASSES],
        "tuple": lambda: tuple(CLASSES),
        "read": lambda: read_classes(named.classes),
    }
    weights = set()
    for name, form in forms.items():
        run = frevl.classify(named.store, form(), run=tmp_path / name)
        weights.add(run.network.name_vectors.sum().item())
        config = (tmp_path / name / "config.toml").read_text()
        assert ("The classes were in memory" in config) == (name != "read")
    assert len(weights) == 1


def test_a_finished_run_is_not_returned_once_something_behind_it_has_changed(named, tmp_path):
    """The same call continues with an interrupted labelling, so nothing that decides the run may change unseen."""
    examples = tmp_path / "examples.jsonl"
    rows = named.examples.read_text().splitlines()
    examples.write_text("".join(f"{row}\n" for row in rows))
    first = frevl.classify(named.store, run=tmp_path / "run", examples=examples)
    assert frevl.classify(named.store, run=tmp_path / "run", examples=examples).provenance == first.provenance
    examples.write_text("".join(f"{row}\n" for row in rows[:-1]))
    with pytest.raises(RunError, match="finished run"):
        frevl.classify(named.store, run=tmp_path / "run", examples=examples)


def test_a_store_that_grew_gives_another_run_where_its_pictures_were_looked_at(named, tmp_path):
    shutil.copytree(named.store.path, tmp_path / "store")
    call = {"classes": named.classes, "run": tmp_path / "run", "unknown": 0.9}
    frevl.classify(tmp_path / "store", **call)
    np.save(tmp_path / "more.npy", np.eye(24, dtype=np.float32)[:2])
    (tmp_path / "more.json").write_text('["new-a.png", "new-b.png"]')
    import_embeddings(tmp_path / "more.npy", of="images", ids=tmp_path / "more.json", encoder="clip",
                      common_space=True, store=tmp_path / "store")  # fmt: skip
    with pytest.raises(RunError, match="finished run"):
        frevl.classify(tmp_path / "store", **call)


def test_a_space_that_was_trained_again_gives_another_run(made, tmp_path):
    options = {"epochs": 1, "members": 1, "hidden": 16, "width": 8}
    call = {"run": tmp_path / "run", "space": tmp_path / "dual"}
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "dual", ignore_errors=True)
        frevl.train(made.store, made.captions, run=tmp_path / "dual", task="matching", model="dual", options=options,
                    seed=seed)  # fmt: skip
        if seed == 0:
            frevl.classify(made.store, ["red", "green"], **call)
        else:
            with pytest.raises(RunError, match="finished run"):
                frevl.classify(made.store, ["red", "green"], **call)


@pytest.mark.slow
def test_the_written_configuration_repeats_the_run(named, frevl, tmp_path):
    call = ("--store", named.store.path, "--classes", named.classes, "--examples", named.examples)
    chosen = ("--unknown", 0.9, "--template", "a photo of a {}.", "--quiet")
    done = frevl("classify", *call, *chosen, "--run", tmp_path / "run")
    assert done.code == 0, done.err
    again = frevl("classify", "--config", tmp_path / "run" / "config.toml", "--run", tmp_path / "other", "--quiet")
    assert again.code == 0, again.err
    one, other = (json.loads((tmp_path / run / "run.json").read_text()) for run in ("run", "other"))
    assert one["results"]["selection"]["chosen"] == other["results"]["selection"]["chosen"]
    assert one["results"]["unknown"] == other["results"]["unknown"]
    assert one["labels"] == other["labels"]


def test_names_that_mean_little_are_the_first_thing_said(tmp_path):
    """Numbers in place of words, in classes that examples could also teach; and a long label in the summary."""
    own, texts = make_named(tmp_path / "world"), tmp_path / "texts.npy"
    np.save(texts, np.eye(24, dtype=np.float32)[:2])
    (tmp_path / "ids.json").write_text(json.dumps(["0", "7" * 200]))
    import_embeddings(
        texts, of="texts", ids=tmp_path / "ids.json", encoder="clip", common_space=True, store=own.store.path
    )
    store = frevl.Store.open(own.store.path)
    run = frevl.classify(store, ["0", "7" * 200], run=tmp_path / "run")
    assert run.results["warnings"][0].startswith("The names of 2 of 2 classes are only numbers ('0', '777")
    said = labelling_sentence(label_store(frevl.Scorer(run, store), tmp_path / "labels.jsonl"))
    assert "7" * 60 in said
    assert "7" * 61 not in said
