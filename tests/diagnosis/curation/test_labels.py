"""Exchanged labels, and texts that give their label away, planted among lines with known truth."""

import json
from collections import Counter

import numpy as np
import pytest

import frevl
from frevl.data.pairs import Pairs
from frevl.diagnosis.curation import word_classifier
from frevl.diagnosis.curation.curate import _contradictions
from frevl.diagnosis.curation.folds import answers
from frevl.diagnosis.curation.word_classifier import by_words
from frevl.diagnosis.data_quality.conflicting_labels import conflict_finding
from frevl.diagnosis.splits import Splits, deal_folds
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.training.examples import set_aside

CLASSES = ("fern", "moss", "reed")
QUESTIONS = ("which plant is it", "what grows here", "name this plant")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """300 images in three clear classes: a tenth of the labels is exchanged, 30 % of the texts name the label."""
    folder = tmp_path_factory.mktemp("planted")
    random = np.random.default_rng(2)
    kinds = random.integers(0, 3, 300)
    order = random.permutation(300)
    wrong, leaks = set(order[:30].tolist()), set(order[30:120].tolist())
    rows = []
    for n, kind in enumerate(kinds.tolist()):
        label = CLASSES[(kind + 1 + n % 2) % 3 if n in wrong else kind]
        text = QUESTIONS[n % 3] + (f" - {label}" if n in leaks else "")
        rows.append({"image": f"{n}.jpg", "text": text, "target": label, "wrong": n in wrong, "leak": n in leaks})
    texts = sorted({row["text"] for row in rows})
    store = folder / "store"
    of_images = np.eye(11)[kinds] + 0.15 * random.standard_normal((300, 11))
    for of, vectors, ids in (
        ("images", of_images, [row["image"] for row in rows]),
        ("texts", random.standard_normal((len(texts), 7)), texts),
    ):
        np.save(folder / f"{of}.npy", vectors.astype(np.float32))
        write(folder / f"{of}.json", [])
        (folder / f"{of}.json").write_text(json.dumps(ids))
        import_embeddings(folder / f"{of}.npy", of=of, ids=folder / f"{of}.json", encoder="drawn", store=store)
    return Store.open(store), write(folder / "lines.jsonl", rows), rows


@pytest.fixture(scope="module")
def found(planted):
    return frevl.curate(*planted[:2], drop=["blind", "label"])


def precision_and_recall(found, name, key):
    flagged = np.array([name in line["curate"]["why"] for line in found.lines])
    truth = np.array([line[key] for line in found.lines])
    return (flagged & truth).sum() / flagged.sum(), (flagged & truth).sum() / truth.sum()


@pytest.mark.slow
def test_exchanged_labels_are_found_and_the_right_one_is_named(planted, found):
    precision, recall = precision_and_recall(found, "label", "wrong")
    assert precision >= 0.9
    assert recall >= 0.8
    for line in found.lines:
        given, likelier, p = line["curate"]["label"]
        assert given == line["target"]
        assert 0 <= p <= 1
        if "label" in line["curate"]["why"]:
            assert likelier != given


def test_texts_that_give_their_label_away_are_found(found):
    precision, recall = precision_and_recall(found, "blind", "leak")
    assert precision >= 0.9
    assert recall >= 0.9
    assert "The text alone (its words) answers" in found.sentence()


@pytest.mark.slow
def test_clean_labels_are_left_alone(planted, tmp_path):
    store, _, rows = planted
    clean = write(tmp_path / "clean.jsonl", [row for row in rows if not row["wrong"]])
    told = frevl.curate(store, clean, drop=["label"])
    assert told.filters["label"]["flagged"] <= 0.02 * 270
    assert told.sentence().startswith("Kept"), "nothing is flagged, so no flag can be a model error"


@pytest.mark.slow
def test_labels_that_no_model_can_judge_are_counted_and_contradictions_named(planted, tmp_path):
    store, _, rows = planted
    lines = [dict(row) for row in rows if not row["wrong"]]
    lines[0]["target"], lines[1]["target"], lines[2]["target"] = "oak", "elm", ["fern", "moss"]
    told = frevl.curate(store, write(tmp_path / "rare.jsonl", lines), drop=["label"])
    assert (
        "3 lines were not checked: 1 has several answers and 2 have a label with fewer than 5 lines." in told.sentence()
    )
    assert [line["curate"]["label"][1:] for line in told.lines[:3]] == [[None, None]] * 3
    other = [*lines[5:], {**lines[5], "target": "moss" if lines[5]["target"] == "fern" else "fern"}]
    told = frevl.curate(store, write(tmp_path / "contradiction.jsonl", other), drop=["text"])
    assert f"Contradiction: 2 of {len(other):,} pairs have the same image and text" in told.sentence()


def test_texts_that_differ_in_case_or_punctuation_contradict_each_other_as_in_a_diagnosis(planted):
    store, pairs = planted[0], Pairs(
        ["1.jpg", "1.jpg", "2.jpg"], ["Which plant is it?", "which plant is it", "which plant is it"],
        ["fern", "moss", "reed"], [{}] * 3, ["a:1", "a:2", "a:3"],
    )  # fmt: skip
    (note,) = _contradictions(pairs, store)
    assert note.startswith("Contradiction: 2 of 3 pairs")
    same = Splits(store, "classification", pairs, pairs.select([]), pairs.select([]), None, 0)
    assert conflict_finding(same).claim.startswith("2 of 3 pairs contradict another pair")


@pytest.mark.slow
def test_below_and_keep_go_by_the_probability_of_the_label(planted, found):
    store, lines, _ = planted
    kept = frevl.curate(store, lines, drop=["label"], keep=0.9)
    dropped = [line for line in kept.lines if not line["curate"]["kept"]]
    assert len(dropped) == 30
    assert np.mean([line["wrong"] for line in dropped]) > 0.8


@pytest.mark.slow
def test_blind_is_looked_at_only_where_it_is_asked_for(planted):
    told = frevl.curate(*planted[:2], time_limit=60)
    assert "blind" not in told.filters
    assert told.task == "classification"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": "fern"}, "Wrong labels cannot be found: fewer than two classes have 5 lines"),
        ({"target": ["fern", "moss"]}, "Wrong labels cannot be found: fewer than two classes have 5 lines"),
        ({"image": "0.jpg"}, "Wrong labels cannot be found: the lines of these classes belong to fewer than 5 groups"),
    ],
)
def test_what_cannot_be_told_is_said_first_and_nothing_is_dropped(planted, tmp_path, change, reason):
    store, _, rows = planted
    told = frevl.curate(store, write(tmp_path / "x.jsonl", [{**row, **change} for row in rows]), drop=["label"])
    assert told.sentence().startswith(reason)
    assert told.kept == 300


@pytest.mark.slow
def test_labels_that_have_nothing_to_do_with_the_pictures(planted, tmp_path):
    store, _, rows = planted
    random = np.random.default_rng(0)
    drawn = [{**row, "target": str(random.choice(CLASSES)), "text": QUESTIONS[0]} for row in rows]
    told = frevl.curate(store, write(tmp_path / "drawn.jsonl", drawn), drop=["label"])
    assert told.sentence().startswith("Wrong labels cannot be distinguished from model errors")
    assert told.kept == 300


@pytest.mark.slow
def test_images_alone(one_side):
    told = frevl.curate(one_side.store, one_side.train_file, drop=["label", "blind"])
    assert told.filters["label"]["flagged"] <= 1
    assert "the lines have only one side" in told.sentence().lower()


def test_words_by_hand():
    """Two words decide; a fold whose others have one class answers that; texts without a word say nothing."""
    labels, folds = np.array([0, 1] * 6), np.arange(12) // 4
    said = by_words(["a cat", "a dog"] * 6, labels, folds, 2)
    assert (said.argmax(axis=1) == labels).all()
    assert said.sum(axis=1) == pytest.approx(1)
    assert by_words([" ", ""] * 6, labels, folds, 2) == pytest.approx(0.5)
    assert by_words(["a", "b", "c"], np.array([1, 1, 0]), np.array([0, 0, 1]), 2)[:2].tolist() == [[1, 0], [1, 0]]


def test_the_more_classes_the_fewer_words_are_weighed(monkeypatch):
    """The optimiser holds twenty numbers per word and class: a thousand classes of 50,000 words would take 8 GB."""
    texts, labels, folds = ["red cat", "red dog"] * 6, np.array([0, 1] * 6), np.array([0, 0, 1, 1] * 3)
    enough = by_words(texts, labels, folds, 2)
    assert word_classifier.words_weighed(2) == 50_000
    assert word_classifier.words_weighed(1_000) == 4_000
    monkeypatch.setattr(word_classifier, "_MOST_WEIGHTS", 2 * 1)
    assert by_words(texts, labels, folds, 2) == pytest.approx(0.5, abs=0.01), "the commonest word tells nothing"
    assert enough[np.arange(12), labels].min() > 0.8


@pytest.mark.slow
def test_a_class_that_the_models_have_not_learnt_is_not_judged(planted, tmp_path):
    """All lines of one label are one group, so in one fold: what judges them has never seen the label."""
    store, _, rows = planted
    alone = {row["image"] for row in [row for row in rows if row["target"] == "fern"][:12]}
    changed = [
        {**row, "target": "rush", "site": "one"} if row["image"] in alone else {**row, "site": row["image"]}
        for row in rows
    ]
    told = frevl.curate(
        store, write(tmp_path / "x.jsonl", changed), drop=["label", "blind"], group_by="site", find_groups=False
    )
    verdicts = [line["curate"] for line in told.lines if line["target"] == "rush"]
    assert len(verdicts) == 12
    assert all(one["label"] == ["rush", None, None] and one["blind"] is None and one["kept"] for one in verdicts)
    assert "12 lines with the label 'rush' cannot be checked" in told.sentence()
    assert told.filters["label"]["looked_at"] == 288
    assert told.filters["label"]["flagged"] > 15


def test_a_class_whose_two_groups_are_both_set_aside_is_not_judged():
    """An image with many questions may be set aside with the last line of a rare answer; with this seed both are."""
    rows = [(f"{n}.jpg", "rare" if n in (3, 7) and not line else str(line % 4)) for n in range(20) for line in range(6)]
    learnt = Pairs([image for image, _ in rows], ["what"] * 120, [said for _, said in rows], [{}] * 120, [""] * 120)
    kept, aside, _ = set_aside(learnt, 0.1, task="classification", min_answer_count=1, seed=43)
    assert "rare" not in kept.targets
    assert aside.targets.count("rare") == 2
    assert answers._learned_classes(learnt, ["rare", "0"], 43).tolist() == [False, True]
    assert answers._learned_classes(learnt, ["rare", "0"], 0).tolist() == [True, True]


def test_folds_keep_groups_whole_and_have_as_many():
    names = ["b", "a", "c", "a", "e", "d"]
    dealt = deal_folds(names, 2, 5)
    assert dealt[1] == dealt[3]
    assert sorted(Counter(dict(zip(names, dealt.tolist(), strict=True)).values()).values()) == [2, 3]


def test_a_fold_that_leaves_one_class_is_told_and_nothing_is_dropped(planted, tmp_path):
    store, _, rows = planted
    two = [
        {**row, "site": "one"} if row["target"] == "moss" else {**row, "site": row["image"], "target": "fern"}
        for row in rows
    ]
    path = write(tmp_path / "x.jsonl", two)
    told = frevl.curate(store, path, drop=["label", "blind"], group_by="site", find_groups=False)
    assert told.kept == 300
    said = told.sentence()
    assert "Wrong labels cannot be found: too little remains without a fold" in said
    assert "What the text alone answers is unknown: too little remains without a fold" in said


@pytest.mark.slow
def test_folds_that_the_time_limit_cut_short_are_told_first(planted, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # of a launcher: the folds are trained here all the same
    monkeypatch.setattr("frevl.diagnosis.curation.folds.answers._LEAST_SECONDS", 1e-9)
    told = frevl.curate(*planted[:2], drop=["label"], time_limit=1e-9)
    assert told.sentence().startswith("5 of 5 folds were cut short by --time-limit: their lines were checked by models")
