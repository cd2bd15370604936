"""``frevl evaluate --groups`` and ``--queries``: against loops over the answers, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from frevl.data.pairs import read_pairs
from frevl.errors import InputError, UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.evaluation.fairness.groups import groups_of
from frevl.evaluation.fairness.queries import evaluate_queries, ranked_pool
from frevl.runs.scorer import Scorer
from frevl.training.training import train

pytestmark = pytest.mark.slow  # two small trainings


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fair")
    train(made.store, made.train_file, run=folder / "asked", task="classification", model="linear")
    options = {"epochs": 2, "hidden": 16, "width": 8, "members": 1}
    train(made.store, made.captions_file, run=folder / "dual", task="matching", model="dual", options=options)
    return folder


def with_key(pairs, file, value):
    """Write pairs with a further key."""
    rows = [pairs.row(row) for row in range(len(pairs))]
    found = [{**one, "side": value(one)} for one in rows]
    found = [{name: one for name, one in row.items() if one is not None} for row in found]
    file.write_text("".join(json.dumps(one) + "\n" for one in found))
    return file


def number(row):
    return int(row["image"].removesuffix(".png"))


def parts(row):
    """Images 0 to 3 are of a small group, 4 and 5 of none, the others of two."""
    at = number(row)
    return "few" if at < 4 else None if at < 6 else "ab"[at % 2]


def test_classes_by_group(made, runs, tmp_path, frevl):
    file = with_key(made.train, tmp_path / "p.jsonl", parts)
    said = frevl("evaluate", "--store", made.store.path, "--run", runs / "asked", "--pairs", file, "--groups", "side",
                 "--json", tmp_path / "r.json", "--html", tmp_path / "new" / "r.html")  # fmt: skip
    assert said.code == 0, said.err
    result = json.loads((tmp_path / "r.json").read_text())
    found, pairs = result["fairness"]["side"], read_pairs(file)
    scorer = Scorer.open(runs / "asked", store=made.store)
    hits = [
        one.label == target
        for one, target in zip(
            scorer.predict(list(zip(pairs.images, pairs.texts, strict=True))), pairs.targets, strict=True
        )
    ]
    sides = [extra.get("side") for extra in pairs.extras]
    rates = {name: 100 * np.mean([hit for hit, side in zip(hits, sides, strict=True) if side == name]) for name in "ab"}
    compared = found["metrics"]["accuracy"]
    assert {name: one["accuracy"] for name, one in compared["groups"].items()} == pytest.approx(rates)
    assert compared["worst"] == min(rates, key=rates.get)
    assert compared["gap"] == pytest.approx(max(rates.values()) - min(rates.values()))
    assert compared["gap_ci95"][0] >= 0
    assert 0 < compared["chance"] <= 1
    # Recall of each answer by group: the largest difference is the equal-opportunity difference.
    recalls = {
        answer: [
            100 * np.mean([h for h, s, t in zip(hits, sides, pairs.targets, strict=True) if s == name and t == answer])
            for name in "ab"
        ]
        for answer in ("yes", "no")
    }
    gaps = {answer: max(two) - min(two) for answer, two in recalls.items()}
    assert found["equal_opportunity"]["classes"] == pytest.approx(gaps)
    assert found["equal_opportunity"]["difference"] == pytest.approx(max(gaps.values()))
    assert found["left_out"] == {"few": 4}
    assert found["pictures"] == {"a": 42, "b": 42}
    assert "Groups of 'side' with fewer than 20 images are left out of the comparison: 'few' (4)." in said.out
    assert "4 pairs have no 'side' and belong to no group." in said.out
    assert "accuracy by side: worst" in said.out


def test_groups_that_are_equal_have_no_worst(made, runs, tmp_path, frevl):
    scorer = Scorer.open(runs / "asked", store=made.store)
    said = scorer.predict(list(zip(made.train.images, made.train.texts, strict=True)))
    right = [row for row, one in enumerate(said) if one.label == made.train.targets[row]]
    file = with_key(made.train.select(right), tmp_path / "p.jsonl", lambda row: "ab"[number(row) % 2])
    out = frevl(
        "evaluate", "--store", made.store.path, "--run", runs / "asked", "--pairs", file, "--groups", "side"
    ).out
    assert "All groups of 'side' have the same accuracy: 100.00 %." in out
    assert "accuracy by side: no group is worst, gap 0.00 points" in out


def test_recall_and_match_rate_by_group(made, runs, tmp_path):
    pairs = read_pairs(with_key(made.captions, tmp_path / "p.jsonl", lambda row: "ab"[number(row) % 2]))
    scorer = Scorer.open(runs / "dual", store=made.store)
    result = evaluate(scorer, pairs, groups="side")
    metrics = result.fairness["side"]["metrics"]
    images, texts = list(dict.fromkeys(pairs.images)), list(dict.fromkeys(pairs.texts))
    grid = scorer.grid(images, texts)
    own = [{texts.index(t) for i, t in zip(pairs.images, pairs.texts, strict=True) if i == image} for image in images]
    ranks = [
        min(np.sum(np.delete(row, list(right - {text})) >= row[text]) - 1 for text in right)
        for row, right in zip(grid, own, strict=True)
    ]
    for name in "ab":
        hits = [rank < 5 for rank, image in zip(ranks, images, strict=True) if "ab"[int(image[:-4]) % 2] == name]
        assert metrics["i2t_r5"]["groups"][name]["i2t_r5"] == pytest.approx(100 * np.mean(hits))
    _, probabilities = scorer.match_probabilities(list(zip(pairs.images, pairs.texts, strict=True)))
    said = [p > 0.5 for p, image in zip(probabilities, pairs.images, strict=True) if int(image[:-4]) % 2 == 0]
    assert metrics["match_rate"]["groups"]["a"]["match_rate"] == pytest.approx(100 * np.mean(said))
    # "a red square" describes images of both groups, so no text belongs to one of them.
    assert "t2i_r1" not in metrics
    assert any("'t2i_r1' by 'side' is left out" in note for note in result.notes)


def test_skew_of_searches(made, runs, tmp_path, frevl):
    pairs = with_key(made.captions, tmp_path / "p.jsonl", lambda row: "ab"[number(row) % 2])
    queries = tmp_path / "q.txt"
    queries.write_text("\na red square\nthe blue thing\na red square\n")
    said = frevl("evaluate", "--store", made.store.path, "--run", runs / "dual", "--pairs", pairs, "--groups", "side",
                 "--queries", queries, "-k", 9, "--json", tmp_path / "r.json",
                 "--html", tmp_path / "r.html")  # fmt: skip
    assert said.code == 0, said.err
    assert "a red square" in (tmp_path / "r.html").read_text()
    record = json.loads((tmp_path / "r.json").read_text())
    assert [one["query"] for one in record["queries"]] == ["a red square", "the blue thing"]
    scorer = Scorer.open(runs / "dual", store=made.store)
    images = list(dict.fromkeys(made.captions.images))
    expected = []
    for query in ("a red square", "the blue thing"):
        best = np.argsort(-scorer.grid(images, [query])[:, 0], kind="stable")[:9]
        share = np.mean([int(images[row][:-4]) % 2 == 0 for row in best])
        expected.append([np.log(share / 0.5), np.log((1 - share) / 0.5)])
    assert record["metrics"]["max_skew"] == pytest.approx(np.mean([max(two) for two in expected]), abs=1e-6)
    assert record["metrics"]["min_skew"] == pytest.approx(np.mean([min(two) for two in expected]), abs=1e-6)
    low, high = record["ci95"]["max_skew"]
    assert low < high
    assert "2 queries, a pool of 120 images, the first 9 hits of each" in said.out


def test_a_shown_group_is_found(made, runs, tmp_path):
    """Red images are the first that "a red square" finds: their skew is above 0."""
    red = {i for i, t in zip(made.captions.images, made.captions.texts, strict=True) if "red" in t}
    pairs = read_pairs(with_key(made.captions, tmp_path / "p.jsonl", lambda r: "red" if r["image"] in red else "other"))
    scorer = Scorer.open(runs / "dual", store=made.store)
    found = evaluate_queries(scorer, pairs, ["a red square"], groups="side", k=10)
    share = 100 * len(red) / 120
    assert found["groups"]["red"]["pool_share"] == pytest.approx(share)
    first = np.argsort(-scorer.grid(list(dict.fromkeys(pairs.images)), ["a red square"])[:, 0], kind="stable")[:10]
    images = list(dict.fromkeys(pairs.images))
    assert found["groups"]["red"]["top_share"] == pytest.approx(10 * sum(images[row] in red for row in first))


@pytest.mark.parametrize("model", ["dual", "asked"])
def test_a_pool_is_ranked_some_queries_at_a_time(made, runs, monkeypatch, model):
    scorer, queries = Scorer.open(runs / "dual", store=made.store), ["a red square", "the blue thing", "a circle"]
    if model == "asked":  # as a run without a first stage is ranked: by the scores of all pairs
        monkeypatch.setattr(Scorer, "has_first_stage", False)
    images = list(dict.fromkeys(made.captions.images))
    whole = ranked_pool(scorer, images, queries, 5)
    expected = np.argsort(-scorer.grid(images, queries).T, axis=1, kind="stable")
    if model == "asked":
        np.testing.assert_array_equal(whole, expected)
    monkeypatch.setattr("frevl.evaluation.fairness.queries._SCORES", 1)
    scores = scorer.grid(images, queries).T
    again = ranked_pool(scorer, images, queries, 5)
    for one, other, row in zip(whole, again, scores, strict=True):  # in other blocks the last digit may differ
        np.testing.assert_allclose(row[one], row[other], atol=1e-4)
    monkeypatch.setattr("frevl.evaluation.fairness.queries._MOST_RANKS", 300)
    with pytest.raises(UsageError, match="3 queries over a pool of 120 images need 1 kB of ranks"):
        ranked_pool(scorer, images, queries, 5)


def test_what_is_refused(made, runs, tmp_path, frevl):
    asked, dual = Scorer.open(runs / "asked", store=made.store), Scorer.open(runs / "dual", store=made.store)
    one = read_pairs(with_key(made.train, tmp_path / "one.jsonl", lambda _: "x"))
    few = read_pairs(with_key(made.train, tmp_path / "few.jsonl", lambda row: "few" if number(row) < 4 else "many"))
    with pytest.raises(UsageError, match=r"--groups side: all pairs with this key are in one group \('x'\)"):
        evaluate(asked, one, groups="side")
    with pytest.raises(
        UsageError, match=r"expected at least two groups of at least 20 images, found 1 among 2 \('few' 4"
    ):
        evaluate(asked, few, groups="side")
    with pytest.raises(UsageError, match="--groups sid: no pair has a name or a number for this key. Did you mean"):
        evaluate(asked, few, groups="sid")
    lists = read_pairs(with_key(made.train, tmp_path / "lists.jsonl", lambda row: [number(row)]))
    with pytest.raises(
        UsageError, match="no pair has a name or a number for this key. Its values are lists, objects or empty."
    ) as told:
        evaluate(asked, lists, groups="side")
    assert "Did you mean 'side'" not in str(told.value)
    two = read_pairs(with_key(made.captions, tmp_path / "two.jsonl", lambda row: "ab"[number(row) % 2]))
    with pytest.raises(UsageError, match="--queries needs a matching run"):
        evaluate_queries(asked, two, ["red"], groups="side")
    with pytest.raises(UsageError, match="-k 120: the pool has 120 images"):
        evaluate_queries(dual, two, ["red"], groups="side", k=120)
    with pytest.raises(UsageError, match="-k must be a whole number of at least 1, found 0"):
        evaluate_queries(dual, two, ["red"], groups="side", k=0)
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(InputError, match="expected one query per line, found an empty file"):
        evaluate_queries(dual, two, tmp_path / "none.txt", groups="side")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="the queries cannot be read"):
        evaluate_queries(dual, two, tmp_path / "bytes.txt", groups="side")
    mixed = read_pairs(with_key(made.captions, tmp_path / "mixed.jsonl", lambda row: row["text"].split()[0]))
    with pytest.raises(UsageError, match="same value in all their pairs, found fewer in 'a' 0"):
        evaluate_queries(dual, mixed, ["red"], groups="side")
    common = ("evaluate", "--store", made.store.path, "--run", runs / "dual", "--pairs", tmp_path / "two.jsonl")
    said = frevl(*common, "-k", 5)
    assert said.code == 2
    assert "-k is the number of hits for --queries" in said.err
    said = frevl(*common, "--queries", tmp_path / "none.txt")
    assert said.code == 2
    assert "--queries needs --groups KEY" in said.err
    said = frevl(*common, "--queries", tmp_path / "none.txt", "--groups", "side", "--sets", 0.9)
    assert said.code == 2
    assert "--sets applies to pairs" in said.err


def test_a_group_of_which_few_images_have_one_value_is_left_out_of_searches(made, runs, tmp_path):
    """Images 0 to 59 are 'b' in one of their captions; only of 0 to 2 all captions say so."""
    dual, seen = Scorer.open(runs / "dual", store=made.store), set()

    def side(row):
        first = row["image"] not in seen
        seen.add(row["image"])
        return "b" if number(row) < 3 or (first and number(row) < 60) else "ac"[number(row) % 2]

    pairs = read_pairs(with_key(made.captions, tmp_path / "mixed.jsonl", side))
    found = evaluate_queries(dual, pairs, ["red"], groups="side", k=5)
    assert set(found["groups"]) == {"a", "c"}
    assert any("'side' of which fewer than 20 images" in note and "'b' (3)" in note for note in found["notes"])


def test_a_key_that_names_items_is_refused(made, runs):
    pairs = read_pairs(made.train_file)
    images = [f"{number}" for number in range(201 * 20)]
    many = replace(
        pairs.select([0] * len(images)),
        images=images,
        extras=[{"side": f"n{number % 201}"} for number in range(201 * 20)],
    )
    with pytest.raises(UsageError, match="--groups side: expected at most 200 groups, found 201"):
        groups_of(many, "side", {})


def test_twenty_copies_of_one_picture_are_one_picture(made):
    pairs = read_pairs(made.train_file)
    images = [f"{number}" for number in range(60)]
    many = replace(
        pairs.select([0] * 60), images=images, extras=[{"side": "abc"[number // 20]} for number in range(60)]
    )
    same = {image: "same" if number < 20 else image for number, image in enumerate(images)}
    found = groups_of(many, "side", same)
    assert (found.pictures, found.left_out) == ({"b": 20, "c": 20}, {"a": 1})


def test_groups_that_look_alike_are_named(made):
    pairs = read_pairs(made.train_file)
    images = [f"{number}" for number in range(60)]
    values = ["women", "Women", "men"]
    many = replace(
        pairs.select([0] * 60), images=images, extras=[{"side": values[number // 20]} for number in range(60)]
    )
    (said,) = groups_of(many, "side", {}).notes()
    assert said.startswith("Groups of 'side' that look alike are compared as different ones: 'Women' and 'women'.")
