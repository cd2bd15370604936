"""Texts with one label: six images per sentence are recognised, questions and class names are not."""

import random

import pytest

from frevl.data.packed.columns import joined
from frevl.store.grouping import groups as repeated_texts


def texts_with_one_label(images, texts, targets):
    """Names instead of numbers, with the label of each."""
    (image_numbers, *_), _ = joined([images])
    (text_numbers, *_), names = joined([texts])
    found = repeated_texts.texts_with_one_label(image_numbers, text_numbers, [targets[:7], targets[7:]])
    return {names[one]: targets[texts.index(names[one])] for one in found.tolist()}


def texts_with_images_of_their_own(images, texts):
    (image_numbers, *_), _ = joined([images])
    (text_numbers, *_), names = joined([texts])
    return {names[one] for one in repeated_texts.texts_with_images_of_their_own(image_numbers, text_numbers).tolist()}


def six_pictures_a_sentence(texts=40, wrong=0):
    rows = [(f"{t}-{i}", f"sentence {t}", "true" if t % 2 else "false") for t in range(texts) for i in range(6)]
    return [(image, text, "true" if row < wrong else target) for row, (image, text, target) in enumerate(rows)]


def found(rows):
    return texts_with_one_label(*map(list, zip(*rows, strict=True)))


def test_six_pictures_a_sentence():
    assert found(six_pictures_a_sentence()) == {f"sentence {t}": "true" if t % 2 else "false" for t in range(40)}


def test_questions_that_are_asked_of_many_pictures_are_no_groups():
    chance = random.Random(0)
    answers = ["red", "green", "blue"]
    assert found([(f"{i}", f"what colour is thing {i % 20}?", chance.choice(answers)) for i in range(400)]) == {}


def test_most_answers_the_same_is_no_pattern():
    chance = random.Random(1)
    assert found([(f"{i}", f"question {i % 60}", "no" if chance.random() < 0.97 else "yes") for i in range(180)]) == {}


@pytest.mark.parametrize("texts", [9, 1])
def test_few_texts_are_no_pattern(texts):
    assert found(six_pictures_a_sentence(texts)) == {}


def test_a_text_that_names_the_class_is_no_group():
    assert found([(f"{i}", f"a photo of a {i % 12}", f"class {i % 12}") for i in range(240)]) == {}


def test_captions_of_one_image_are_not_repeated_texts():
    assert found([(f"{i // 5}", f"caption {i // 5}", "true" if i % 2 else "false") for i in range(300)]) == {}


@pytest.mark.parametrize("target", [None, ["a", "b"], {"a": 0.5}])
def test_only_for_classes(target):
    assert found([(image, text, target) for image, text, _ in six_pictures_a_sentence()]) == {}


def of_its_own(texts=30, images=6):
    return [f"{t}-{i}" for t in range(texts) for i in range(images)], [
        f"sentence {t}" for t in range(texts) for _ in range(images)
    ]


def test_a_set_of_images_for_each_text():
    images, texts = of_its_own()
    assert texts_with_images_of_their_own(images, texts) == set(texts)
    assert texts_with_images_of_their_own([*images, "0-0"], [*texts, "sentence 9"]) == set(texts)


def test_what_is_no_set_of_images_for_each_text():
    images, texts = of_its_own()
    shared = images + [f"{t}-0" for t in range(20)], texts + ["sentence 29"] * 20
    rare = [f"other {row}" for row in range(20)], [f"unique {row}" for row in range(20)]
    assert texts_with_images_of_their_own(*shared) == set()  # a ninth of the images with two questions
    assert (
        texts_with_images_of_their_own(images + rare[0], texts + rare[1]) == set()
    )  # a tenth of the texts stand alone
    assert texts_with_images_of_their_own(*of_its_own(texts=19)) == set()
    assert texts_with_images_of_their_own(*of_its_own(images=3)) == set()
