"""``evaluate --forms``: the same answer to all forms of a question about one image."""

import numpy as np
import pytest

import frevl
from frevl.data.pairs import Pairs
from frevl.errors import UsageError
from frevl.evaluation.consistency import agreement, forms_of
from planted import plant


def test_agreement_is_the_share_of_pairs_of_forms_with_one_answer():
    forms = [np.array([0, 1]), np.array([2, 3, 4]), np.array([5, 6]), np.array([7, 8, 9])]
    found = agreement(["a", "a", "a", "a", "b", "a", "b", "a", "b", "c"], forms)
    assert found.tolist() == pytest.approx([1, 1 / 3, 0, 0])


def lines(rows):
    images, texts, questions = zip(*rows, strict=True)
    extras = [{} if question is None else {"question": question} for question in questions]
    return Pairs(list(images), list(texts), ["x"] * len(rows), extras, [str(n) for n in range(len(rows))])


def test_forms_are_lines_of_one_image_and_one_question_with_different_texts():
    pairs = lines([("1", "is it red?", 7), ("2", "is it red?", 7), ("1", "what colour?", 7), ("1", "is it red?", 7),
                   ("1", "how many?", 8), ("1", "and?", None), ("2", "red, is it?", 7)])  # fmt: skip
    assert [rows.tolist() for rows in forms_of(pairs, "question")] == [[0, 2], [1, 6]]
    with pytest.raises(UsageError, match="--forms questions: no pair has this key. .*question"):
        forms_of(pairs, "questions")
    empty = lines([("1", "a", ""), ("1", "b", " "), ("1", "c", float("nan")), ("1", "d", 2), ("1", "e", "2"),
                   ("1", "f", 2.0)])  # fmt: skip
    assert [rows.tolist() for rows in forms_of(empty, "question")] == [[3, 4, 5]]
    with pytest.raises(UsageError, match="found no two such"):
        forms_of(lines([("1", "a", 1), ("1", "b", 2), ("2", "a", 1)]), "question")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = plant(tmp_path_factory.mktemp("forms") / "store", images=120, texts=8)
    names = list(world.images)
    # Two questions; which one a text asks is known, and its answer is the image's sign for both.
    pairs = world.pairs(names, lambda image, *_: image, each=6, extras=lambda _, text: {"question": ord(text[-2]) % 2})
    return world, pairs.select(range(360)), pairs.select(range(360, 720))


@pytest.mark.slow
def test_a_run_that_ignores_the_words_always_agrees(world, tmp_path):
    planted, train, test = world
    run = frevl.train(planted.store, train, run=tmp_path / "run", task="classification", model="image")
    scorer = frevl.Scorer.open(run.path, store=planted.store)
    result = frevl.evaluate(scorer, test, forms="question")
    found = result.record()["consistency"]
    assert found["agreement"] == 100
    assert found["questions"] == len(forms_of(test, "question"))
    assert found["all_right"] == pytest.approx(found["accuracy"], abs=2)
    assert found["ci95"]["all_right"][0] <= found["all_right"] <= found["ci95"]["all_right"][1]
    assert result.notes[0].startswith("Forms of one question ('question'")
    assert "consistency" not in frevl.evaluate(scorer, test).record()


def test_a_run_that_goes_by_the_words_does_not(world, tmp_path):
    planted, _, test = world
    told = planted.pairs(list(planted.images)[:60], lambda _, text, __: text, each=6)
    run = frevl.train(planted.store, told, run=tmp_path / "run", task="classification", model="text")
    scorer = frevl.Scorer.open(run.path, store=planted.store)
    found = frevl.evaluate(scorer, test, forms="question").consistency
    forms = forms_of(test, "question")
    labels = [one.label for one in scorer.predict(list(zip(test.images, test.texts, strict=True)))]
    assert found["agreement"] == pytest.approx(100 * agreement(labels, forms).mean())
    assert found["agreement"] < 90


def test_a_matching_run_gives_no_answers(world, tmp_path):
    planted, train, _ = world
    captions = Pairs(train.images[::6], train.texts[::6], [None] * 60, train.extras[::6], train.places[::6])
    run = frevl.train(planted.store, captions, run=tmp_path / "run", task="matching", model="dual",
                      options={"epochs": 1, "members": 1})  # fmt: skip
    with pytest.raises(UsageError, match="--forms compares answers"):
        frevl.evaluate(frevl.Scorer.open(run.path, store=planted.store), captions, forms="question")
