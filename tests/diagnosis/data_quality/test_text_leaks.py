"""Near copies of texts and pairs across splits: planted ones are found, ordinary ones are not called a leak."""

import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality.image_leaks import leak_findings
from frevl.diagnosis.data_quality.near_duplicates import (
    NearDuplicates,
    choose_criteria,
    expected_more,
    met_by,
    normal_text,
    one_word_apart,
    words_of,
)
from frevl.diagnosis.data_quality.text_leaks import text_leak_findings
from frevl.diagnosis.splits import Splits, with_wrong_pairs
from frevl.store.reader import Store
from frevl.store.writer import Item, StoreWriter
from handmade import tower
from planted import LETTERS, hash_of, pooled

SUBJECTS = ("a dog", "two men", "the girl in red", "an old woman", "a small boy", "three players", "a brown horse")
ACTS = ("runs over", "jumps off", "stands near", "looks at", "is sitting on", "plays with", "walks slowly along")
THINGS = ("a wooden bench", "the wet grass", "some tall rocks", "a blue car", "the long beach", "a snowy hill")
ENDS = ("in the sun", "while it rains", "", "with a stick", "next to some friends", "at the end of the day", "alone")


def sentence(draw):
    parts = [draw.choice(column) for column in (SUBJECTS, ACTS, THINGS, ENDS)]
    return " ".join([*parts, "behind", draw.choice(SUBJECTS), draw.choice(ENDS)]).strip()


def words_as_vector(text, seed=5):
    """Words at random directions, weighed by their place: another order is another, but close, vector."""
    total = np.zeros(29)
    for place, word in enumerate(words_of(text)):
        known = np.random.default_rng([seed, *word.encode()])
        total += known.normal(size=29) * (1 + 0.02 * (place % 3))
    return total


def world(path, captions):
    """A store of images ``0.png`` ... with random vectors, and of all their captions."""
    rows = np.random.default_rng(1).normal(size=(len(captions), 13))
    texts = list(dict.fromkeys(text for said in captions for text in said))
    with StoreWriter(path) as writer:
        writer.register([tower("eye", dim=13), tower("ear", modality="text", dim=29)])
        names = [f"{number}.png" for number in range(len(captions))]
        writer.append("image", [Item(name, f"{hash_of(name):032x}", 5, 7) for name in names], {"eye": pooled(rows)})
        writer.append(
            "text", [Item(text, f"{hash_of(text):032x}", 5, 7) for text in texts],
            {"ear": pooled([words_as_vector(text) for text in texts])},
        )  # fmt: skip
    return Store.open(path)


def pairs_of(captions, numbers):
    rows = [(f"{number}.png", text) for number in numbers for text in captions[number]]
    places = [f"a.jsonl:{row + 1}" for row in range(len(rows))]
    return Pairs([a for a, _ in rows], [b for _, b in rows], ["x"] * len(rows), [{} for _ in rows], places)


def splits_of(store, captions, *, test):
    numbers = range(len(captions) - test)
    train, asked = pairs_of(captions, numbers), pairs_of(captions, range(len(captions) - test, len(captions)))
    return Splits(store, "classification", train, train.select([0]), asked, None, 0)


def findings_of(splits):
    hashes = splits.store.content_hashes([*splits.train.images, *splits.dev.images, *splits.test.images])
    return {one.name: one for one in text_leak_findings(splits, hashes, {}, set())}


def changed(text, kind, draw):
    """One of the ways in which a text comes back."""
    words = text.split()
    at = draw.randrange(len(words) - 1)
    if kind == "punctuation":
        return text.upper() + " !"
    if kind == "order":
        words[at], words[at + 1] = words[at + 1], words[at]
    elif kind == "word":
        words[at] = "certain"
    else:
        del words[at]
    return " ".join(words)


@pytest.mark.slow
def test_planted_near_copies_are_found_with_stated_precision(tmp_path):
    """60 near copies among 240 test texts: 90 % of what word order, one word and one dropped word changed are found."""
    draw = random.Random(3)
    captions = [[sentence(draw), sentence(draw)] for _ in range(520)]
    planted = {}
    for number, kind in zip(range(400, 480), ("punctuation", "order", "word", "drop") * 20, strict=True):
        original = draw.choice(captions[draw.randrange(400)])
        captions[number][0] = changed(original, kind, draw)
        planted[captions[number][0]] = kind
    splits = splits_of(world(tmp_path / "store", captions), captions, test=120)
    found = findings_of(splits)
    assert "more than is usual in this set" in found["same-text"].claim  # 20 with other case and punctuation
    near = found["near-same-text"]
    assert "more than chance explains" in near.claim
    assert "near copies of a training or development text" in near.claim
    hidden = {text for text, kind in planted.items() if kind != "punctuation"}
    count = int(near.claim.split(" ")[0])
    assert count >= 0.9 * len(hidden)  # recall, if all that is named was planted
    named = {row["test text"] for row in near.table}
    assert len(named) == 20  # the nearest are shown
    assert len(named & hidden) / len(named) >= 0.8
    assert count <= 1.15 * len(hidden)  # so at least 78 % of what is named was planted
    assert "Fisher's exact test" in near.how
    assert "0.5 % of" in near.how


@pytest.mark.slow
def test_null_sets_are_not_accused(tmp_path):
    """On 20 sets without copies at most one is said to hold more near copies, or more same texts, than usual."""
    draw = random.Random(8)
    captions = [[sentence(draw), sentence(draw)] for _ in range(300)]
    store = world(tmp_path / "store", captions)
    alarms = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(300)
        train, test = pairs_of(captions, order[:200]), pairs_of(captions, order[200:])
        found = findings_of(Splits(store, "classification", train, train.select([0]), test, None, seed))
        alarms += [one.claim for one in found.values() if "more than" in one.claim]
    assert len(alarms) <= 1, alarms


def test_one_word_apart_is_what_an_edit_distance_over_words_says():
    """Against a slow twin: at most one insertion, deletion or exchange, or one word taken out and put in elsewhere."""
    draw = random.Random(0)
    texts = [tuple(draw.choice("abcd") for _ in range(draw.randrange(1, 6))) for _ in range(90)]
    for a, b in combinations(texts, 2):
        assert one_word_apart(a, b) == (a != b and slowly_one_apart(a, b)), (a, b)


def slowly_one_apart(a, b):
    shorter, longer = sorted((a, b), key=len)
    if len(longer) - len(shorter) == 1:
        return any(longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer)))
    if len(longer) != len(shorter):
        return False
    return any(a[:i] + a[i + 1 :] == b[:j] + b[j + 1 :] for i in range(len(a)) for j in range(len(b)))


def test_nearest_by_hand():
    texts = ["the dog runs on grass", "a cat sleeps", "grass on runs the dog"]
    known = NearDuplicates(texts, [frozenset("x"), frozenset("y"), frozenset("x")], np.eye(3, dtype=np.float32))
    asked = ["the dog runs on sand", "sleeps a cat", "the dog runs on grass"]
    vectors = np.array([[0.6, 0.8, 0], [0, 0, 1.0], [1.0, 0, 0]], np.float32)
    found = known.nearest(asked, [frozenset("z"), frozenset("z"), frozenset("y")], vectors)
    assert found["one word"][0].tolist() == [5, 3, 0]  # moving "sleeps" makes "a cat sleeps"; equal texts are not near
    assert found["same words"][0].tolist() == [0, 3, 5]
    assert found["same words"][1].tolist() == [0, 1, 2]
    assert found["cosine"][0].tolist() == pytest.approx([0.8, 1.0, 1.0])
    own = known.nearest(asked[:1], [frozenset("x")], vectors[:1])  # texts of the same image do not count
    assert (own["one word"][0][0], own["cosine"][1][0]) == (0, 1)
    criteria = {one.name: one for one in choose_criteria(found)}
    assert (criteria["one word"].least, criteria["one word"].rate) == (6, 0)  # 5 and 3 words are met by two of three
    assert criteria["cosine"].least is None
    assert not met_by(found, list(criteria.values()))["cosine"].any()


def test_fishers_test_by_hand():
    # 2 of 2 against 0 of 2: one of the 6 ways to deal two predictions over four items.
    assert expected_more(2, 2, 0, 2) == pytest.approx(1 / 6)
    assert expected_more(0, 5, 3, 7) == pytest.approx(1)
    # Lady tasting tea: 3 or more of 4 right is 17 of 70.
    assert expected_more(3, 4, 1, 4) == pytest.approx(17 / 70)


def test_pairs_whose_image_and_text_are_nearly_the_same(tmp_path):
    draw = random.Random(4)
    captions = [[sentence(draw), sentence(draw)] for _ in range(180)]
    captions[170] = [normal_text(captions[3][0]).upper(), "something else altogether"]
    captions[171] = [changed(captions[4][0], "order", draw), captions[5][0]]
    splits = splits_of(world(tmp_path / "store", captions), captions, test=20)
    hashes = splits.store.content_hashes([*splits.train.images, *splits.dev.images, *splits.test.images])
    alike = {"170.png": "3.png", "171.png": "4.png"}
    near = {one.name: one for one in text_leak_findings(splits, hashes, alike, set())}["near-same-pair"]
    assert [(row["image"], row["text"]) for row in near.table] == [
        ("170.png", captions[170][0]), ("171.png", captions[171][0])
    ]  # fmt: skip
    assert near.value == pytest.approx(100 * 2 / 40)
    assert near.claim.startswith("2 of 40 further test pairs have both image and text, or a near copy of either")


def test_wrong_pairs_that_were_drawn_are_no_texts_that_return(tmp_path):
    captions = [[f"caption number {LETTERS[k // 26]}{LETTERS[k % 26]} of this set"] for k in range(160)]
    store = world(tmp_path / "store", captions)
    train, dev, test = (pairs_of(captions, numbers) for numbers in (range(100), range(100, 120), range(120, 160)))
    right = [replace(part, targets=["true"] * len(part)) for part in (train, dev, test)]
    splits = Splits(store, "matching", right[0], with_wrong_pairs(right[1], 0), with_wrong_pairs(right[2], 0), None, 0)
    assert findings_of(splits)["same-text"].claim == (
        "0 of 40 different test texts (0.0 %) are in the training or development pairs word for word; a test image "
        "shares 0.0 % of its texts with training images, a training image 0.0 % with other training images."
    )


def test_what_cannot_be_told_is_said(tmp_path):
    captions = [["is it red?"], ["is it big?"], ["is it old?"], ["is it red?"], ["is it new?"]]
    store = world(tmp_path / "store", captions)
    found = findings_of(splits_of(store, captions, test=2))
    assert found["near-same-text"].claim == (
        "Near copies cannot be distinguished from unrelated texts: only 3 training texts have one image."
    )
    assert found["near-same-text"].value is None
    names = [one.name for one in leak_findings(splits_of(store, captions, test=2))]
    assert names == ["same-image", "near-same-image", "same-pair", "same-text", "near-same-text", "near-same-pair"]
    found = findings_of(splits_of(store, [*captions[:4], captions[0]], test=2))
    assert found["near-same-text"].claim.startswith(
        "Every test text is in the training or development pairs word for word"
    )
