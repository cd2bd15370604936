"""Classification of images only, and of texts only, from a store that has nothing else."""

import json

import numpy as np
import pytest

from frevl.data.missing_side import mistaken_side
from frevl.data.pairs import read_pairs
from frevl.errors import PairsError, UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.runs.run import Run
from frevl.runs.score_files import score_file
from frevl.runs.scorer import Scorer
from frevl.training.ablation.study import ablate
from frevl.training.training import train
from one_side import make_one_side

NOTE = {
    "image": "No pair has a text: only images are used, and whatever needs a text is skipped.",
    "text": "No pair has an image: only texts are used, and whatever needs an image is skipped.",
}


def trained(world, run, model, **more):
    more = {"dev": world.dev_file, **more}
    return train(world.store, world.train_file, run=run, task="classification", model=model, **more)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["majority", "linear", "kernel", "mlp", "side"])
def test_every_model_of_one_side_trains_evaluates_and_scores(one_side, tmp_path, model):
    run = trained(one_side, tmp_path / "run", one_side.side if model == "side" else model)
    assert run.sides == (one_side.side,)
    assert run.towers[one_side.other] == {}
    assert run.encoders == ["other"]
    assert run.results["notes"].count(NOTE[one_side.side]) == 1
    assert Run.load(tmp_path / "run").towers == run.towers
    scorer = Scorer.open(tmp_path / "run", store=one_side.store)
    result = evaluate(scorer, one_side.dev_file)
    accuracy = result.metrics["accuracy"]
    assert accuracy > 90 if model != "majority" else accuracy < 50
    assert any(f"30 of 30 different {one_side.side}s were in training or development" in one for one in result.notes)
    items = one_side.items[60:]
    pairs = [(item, "") if one_side.side == "image" else ("", item) for item in items]
    scores = scorer.score(pairs)
    assert scores.shape == (30, 3)
    np.testing.assert_array_equal(scorer.score(items), scores)
    assert [one.label for one in scorer.predict(items)] == [run.labels[i] for i in scores.argmax(axis=1)]
    scored, left_out = score_file(scorer, one_side.dev_file, tmp_path / "out.jsonl")
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (scored, left_out) == (30, [])
    assert list(first) == [one_side.side, "target", "label", "probability", "top"]


def test_development_pairs_are_set_aside_by_item(one_side, tmp_path):
    run = trained(one_side, tmp_path / "run", "majority", dev=None)
    assert run.results["development"]["n"] == 6
    assert len(run.train_image_hashes) == 60


def test_the_linear_model_is_logistic_regression_on_that_side(one_side, tmp_path):
    network = trained(one_side, tmp_path / "run", "linear").network
    assert network.linear.weight.shape == (3, 12)


@pytest.mark.slow
def test_auto_compares_what_fits_one_side(one_side, tmp_path):
    selection = trained(one_side, tmp_path / "run", "auto", dev=None).results["selection"]
    single = {row["name"] for row in selection["candidates"] if "+" not in row["name"] and " x " not in row["name"]}
    assert single == {"majority", one_side.side, "linear", "kernel"}


@pytest.mark.slow
def test_what_needs_both_sides_is_refused(one_side, tmp_path):
    side, other = one_side.side, one_side.other
    fitting = f"majority, {side}, linear, kernel, mlp, auto"
    for model in ("tiny", "small", "base"):
        refusal = (
            f"'{model}' needs images and texts, and the pairs are {side}s only; choose one of {fitting}, or name the "
            f"column of the {other}s with --columns {other}=NAME"
        )
        with pytest.raises(UsageError, match=refusal):
            trained(one_side, tmp_path / "run", model)
    with pytest.raises(UsageError, match=f"'{other}' needs {other}s, and the pairs are {side}s only"):
        trained(one_side, tmp_path / "run", other)
    with pytest.raises(PairsError, match=f"train.jsonl:1, field '{other}': matching expects an image and a text in"):
        train(one_side.store, one_side.train_file, run=tmp_path / "run", task="matching", model="dual")
    with pytest.raises(UsageError, match=f"--{other}-encoder: no pair has .*; leave it out"):
        trained(one_side, tmp_path / "encoder", "linear", **{f"{other}_encoder": ["other"]})
    study = {"test": one_side.dev_file, "task": "classification", "out": tmp_path / "out"}
    with pytest.raises(UsageError, match=f"a fusion of images and texts, .* the pairs are {side}s only"):
        ablate(one_side.store, one_side.train_file, **study)
    with pytest.raises(UsageError, match="--initialise-from needs a fusion of images and texts"):
        trained(one_side, tmp_path / "run", "auto", initialise_from=tmp_path / "other")
    assert not (tmp_path / "run").exists()


def test_development_pairs_have_the_same_sides(made, tmp_path):
    alone = made.test.only(("image",))
    with pytest.raises(PairsError, match="expected development pairs with images and texts, as the training pairs"):
        train(made.store, made.train, dev=alone, run=tmp_path / "run", task="classification", model="linear")


@pytest.mark.slow
def test_a_run_of_images_alone_does_not_read_texts_and_one_of_both_needs_them(made, tmp_path):
    alone = made.train.only(("image",))
    train(made.store, alone, run=tmp_path / "alone", task="classification", model="linear")
    train(made.store, made.train, run=tmp_path / "both", task="classification", model="linear")
    scorers = [Scorer.open(tmp_path / name, store=made.store) for name in ("alone", "both")]
    result = evaluate(scorers[0], made.test, versus=scorers[1])
    assert "The run was trained on images only: the texts of the pairs are ignored." in result.notes
    assert result.metrics["accuracy"] == evaluate(scorers[0], made.test.only(("image",))).metrics["accuracy"]
    refusal = (
        "field 'text': expected a text, because .*both was trained on images and texts; found none in any pair. Name "
        "its key with --columns text=NAME, or train a run on images only"
    )
    with pytest.raises(PairsError, match=refusal):
        evaluate(scorers[1], made.test.only(("image",)))
    with pytest.raises(PairsError, match="expected an image, because .*alone was trained on images only; found none"):
        score_file(scorers[0], made.test.only(("text",)), tmp_path / "out.jsonl")


def test_a_column_for_the_text_can_still_be_named(one_side, tmp_path):
    pairs = read_pairs([{"image": "a", "words": "b", "target": "c"}], columns="text=words")
    assert pairs.sides == ("image", "text")


@pytest.mark.slow
def test_auto_compares_the_encoders_of_images_alone(made_twice, tmp_path):
    alone = made_twice.train.only(("image",))
    run = train(made_twice.store, alone, run=tmp_path / "run", task="classification", model="auto", time_limit=20)
    chosen = run.results["selection"]["encoders"]
    assert {tuple(row["images"]) for row in chosen["sets"]} == {("toy", "toy2"), ("toy",), ("toy2",)}
    assert chosen["texts"] == []
    assert all(row["texts"] == [] for row in chosen["sets"])
    assert run.towers["text"] == {}


def test_a_key_that_looks_like_the_missing_side_is_named_first(tmp_path):
    """SNLI-VE calls its texts 'hypothesis': such a file must not pass for images only without a word."""
    world = make_one_side(tmp_path / "images", "image")
    rows = [json.loads(line) for line in world.train_file.read_text().splitlines()]
    renamed = [{**row, "hypothesis": "a plant by the river", "question_type": "what"} for row in rows]
    run = train(world.store, renamed, run=tmp_path / "run", task="classification", model="majority")
    assert run.results["warnings"][0].startswith("No pair has a text, and 'hypothesis' looks like one")
    plain = train(world.store, rows, run=tmp_path / "plain", task="classification", model="majority")
    assert plain.results["warnings"] == []


@pytest.mark.parametrize(
    ("side", "extra", "found"),
    [
        ("image", {"captions": ["a dog on a beach", "a dog"]}, "captions"),
        ("image", {"question_type": "what is", "shot": 3}, ""),
        ("text", {"photo": "kitchen/3.JPG"}, "photo"),
        ("text", {"source": "a book of plants"}, ""),
    ],
)
def test_what_looks_like_a_side(side, extra, found):
    pairs = read_pairs([{side: f"item {n}", "target": "a", **extra} for n in range(4)])
    assert mistaken_side(pairs.sides, pairs.extras) == found
