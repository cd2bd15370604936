"""Chance in plain words, slices of numbers, metrics that can be resampled, the choice of encoders."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from frevl.cli.tables import result_table, run_sentence
from frevl.errors import UsageError
from frevl.evaluation.chance import against_majority
from frevl.evaluation.evaluation import evaluate
from frevl.evaluation.intervals import bootstrap_interval, paired_difference
from frevl.evaluation.measures import Measure, mean_measure
from frevl.evaluation.slices import slice_rows, slice_table
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.training.options import Session
from frevl.training.prepare import prepare
from frevl.training.selection.encoder_sets import choose_encoders, encoder_sets, narrow
from frevl.training.training import train
from frevl.training.workers.team import Alone


def test_what_is_not_measurably_better_than_the_majority_is_called_chance():
    images = [f"{i}.png" for i in range(40)]
    always = np.array([1.0, 0] * 20)
    little, much = always.copy(), always.copy()
    little[[1, 3]] = 1  # two more
    little[0] = 0  # one fewer: +1 of 40
    much[1::4] = 1
    found = against_majority(little, always, images, "no")
    gap = paired_difference(little, always, images)
    assert found.is_chance
    assert found.record() == {
        "answer": "no", "score": 52.5, "majority": 50.0, "difference": pytest.approx(2.5),
        "ci95": [pytest.approx(100 * gap.low), pytest.approx(100 * gap.high)], "chance": True,
    }  # fmt: skip
    assert found.sentence == (
        f"Chance: 52.50 % is not measurably better than always answering 'no' (50.00 %): +2.50 points "
        f"[{100 * gap.low:.2f}, {100 * gap.high:.2f}]."
    )
    better = against_majority(much, always, images, "no")
    assert not better.is_chance
    assert better.sentence.startswith("Better than chance: +25.00 points [")
    # The same hits on two images only are not forty independent facts.
    assert against_majority(much, always, ["a", "b"] * 20, "no").record()["chance"] is (
        paired_difference(much, always, ["a", "b"] * 20).low <= 0
    )


def test_one_image_cannot_show_that_something_is_better_than_chance():
    found = against_majority(np.array([1.0, 1]), np.array([0.0, 1]), ["a", "a"], "no")
    assert found.is_chance
    assert found.record()["ci95"] is None
    assert found.sentence == (
        "Chance: pairs of a single image cannot show that 100.00 % is better than always answering 'no' (50.00 %)."
    )


@pytest.mark.slow
def test_evaluation_and_selection_say_chance_where_nothing_can_be_learnt(made, tmp_path):
    pairs, test = made.train, made.test
    rng = np.random.default_rng(0)
    for part in (pairs, test):
        part.targets[:] = [str(rng.choice(["a", "b"], p=[0.7, 0.3])) for _ in part.targets]
    run = train(
        made.store,
        pairs,
        run=tmp_path / "run",
        task="classification",
        model="auto",
        time_limit=3000,
        options={"epochs": 1},
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert record["selection"]["majority"]["chance"] is True
    assert record["selection"]["majority"]["answer"] == "a"
    assert [note for note in record["notes"] if note.startswith("Chance: ")]
    assert "Chance: " in run_sentence(Run.load(tmp_path / "run"))
    text = train(made.store, pairs, run=tmp_path / "text", task="classification", model="linear")
    result = evaluate(Scorer(text, made.store), test)
    assert result.record()["majority"]["chance"] is True
    assert "is not measurably better than always answering 'a'" in result_table(result)
    assert run.results["selection"]["encoders"] == {
        "chosen": ["toy"], "images": ["toy"], "texts": ["toy"], "pairs": 0, "sets": [],
    }  # fmt: skip


def test_evaluation_does_not_say_chance_of_what_can_be_learnt(made, tmp_path):
    run = train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="kernel")
    result = evaluate(Scorer(run, made.store), made.test_file)
    assert result.record()["majority"]["chance"] is False
    assert result.record()["majority"]["answer"] == run.labels[0]
    hits = result.hits - np.array([target == run.labels[0] for target in made.test.targets])
    assert result.record()["majority"]["difference"] == pytest.approx(100 * hits.mean())
    assert "hance" not in " ".join(result.notes)


def test_a_key_of_many_numbers_is_cut_into_ranges():
    extras = [{"size": n, "few": n % 3, "kind": "even" if n % 2 == 0 else "odd", "name": str(n)} for n in range(60)]
    extras[7]["size"] = None
    rows = slice_rows(extras)
    assert {key: list(groups) for key, groups in rows.items()} == {
        "size": ["0 to 15", "16 to 30", "31 to 44", "45 to 59"], "few": ["0", "1", "2"], "kind": ["even", "odd"],
    }  # fmt: skip
    assert [len(group) for group in rows["size"].values()] == [15, 15, 14, 15]
    assert rows["size"]["0 to 15"].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15]
    table = slice_table(rows, "accuracy", np.arange(60) / 60, ["a"] * 30 + ["b"] * 30)
    assert table["few"]["1"]["n"] == 20
    assert table["few"]["1"]["accuracy"] == pytest.approx(100 * 29.5 / 60)
    assert table["size"]["0 to 15"]["ci95"] is None  # one image


def test_equal_numbers_stay_in_one_range():
    extras = [{"count": value} for value in [1] * 50 + list(range(2, 30))]
    assert list(slice_rows(extras)["count"]) == ["1", "2 to 9", "10 to 29"]


def test_the_mean_of_measures_resamples_all_seeds_together():
    clusters = ["a", "a", "b", "c", "d"]
    one, two = np.array([1.0, 0, 1, 0, 1]), np.array([0.0, 0, 1, 1, 1])
    mean = mean_measure([Measure(clusters, one), Measure(clusters, two)]).interval()
    assert mean == bootstrap_interval((one + two) / 2, clusters)
    # The same through a statistic must give the same draws and so the same numbers.
    twin = mean_measure([Measure(clusters, statistic=lambda rows, v=v: float(v[rows].mean())) for v in (one, two)])
    assert twin.interval() == pytest.approx(mean)
    with pytest.raises(UsageError, match="not evaluated on the same items"):
        mean_measure([Measure(clusters, one), Measure(clusters[::-1], two)])
    with pytest.raises(UsageError, match="some measures are means and some are not"):
        mean_measure([Measure(clusters, one), Measure(clusters, statistic=lambda _: 0.0)])
    with pytest.raises(UsageError, match="expected at least one"):
        mean_measure([])
    with pytest.raises(UsageError, match="neither"):
        Measure(clusters).interval()


@pytest.fixture
def prepared(made_twice):
    return prepare(
        made_twice.store, made_twice.train_file, None, task="classification", encoder=None, seed=0, dev_share=0.2,
        min_answer_count=1,
    )  # fmt: skip


def test_every_encoder_alone_and_all_are_compared(made_twice, prepared):
    assert encoder_sets(prepared, ["toy", "toy2"]) == [["toy", "toy2"], ["toy"], ["toy2"]]
    assert encoder_sets(prepared, ["toy"]) == [["toy"]]


def test_narrowing_keeps_the_columns_of_the_encoders(made_twice, prepared):
    store, pairs = made_twice.store, prepared.train.pairs
    for name in ("toy", "toy2"):
        part = narrow(prepared, [name])
        assert [tower.name for tower in part.image_towers] == [t.name for t in store.select_towers("image", [name])]
        again = prepare(
            store, made_twice.train_file, None, task="classification", encoder=[name], seed=0, dev_share=0.2,
            min_answer_count=1,
        )  # fmt: skip
        torch.testing.assert_close(part.train.pairs.images, again.train.pairs.images)
        torch.testing.assert_close(part.dev.pairs.texts, again.dev.pairs.texts)
        assert part.train.pairs.images is part.dev.pairs.images
        assert part.train.pairs.images.shape[2] < pairs.images.shape[2]
    assert narrow(prepared, ["toy", "toy2"]) is prepared
    mixed = narrow(prepared, ["toy2"], ["toy"])
    assert [t.name for t in mixed.image_towers] == [t.name for t in store.select_towers("image", ["toy2"])]
    assert [t.name for t in mixed.text_towers] == [t.name for t in store.select_towers("text", ["toy"])]
    torch.testing.assert_close(mixed.train.pairs.images, narrow(prepared, ["toy2"]).train.pairs.images)
    torch.testing.assert_close(mixed.train.pairs.texts, narrow(prepared, ["toy"]).train.pairs.texts)


def test_an_encoder_that_says_nothing_is_left_out(made_twice, prepared):
    """The image tower of ``toy2`` says the same of all images: ``toy`` alone is as good as both, and smaller."""
    spoilt = prepared.train.pairs.images.clone()
    width = prepared.image_towers[0].dim
    spoilt[..., width:] = 0.25
    for part in (prepared.train, prepared.dev):
        object.__setattr__(part.pairs, "images", spoilt)
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    choice = choose_encoders(prepared, ["toy", "toy2"], 2, session, time_limit=1000)
    assert (choice.encoders, choice.images, choice.texts) == (["toy"], ["toy"], ["toy"])
    assert choice.pairs == len(prepared.train) + len(prepared.dev)
    # Both have one text tower in common, so no other texts can be tried.
    both, one, two = ["toy", "toy2"], ["toy"], ["toy2"]
    assert [(row["images"], row["texts"]) for row in choice.rows] == [(both, both), (one, one), (two, two)]
    behind = [row["behind_best"] for row in choice.rows]
    assert behind[0] == behind[1] == 0
    assert behind[2] > 10
    late = choose_encoders(prepared, ["toy", "toy2"], 2, session, time_limit=0)
    assert [row.get("reason") for row in late.rows] == [None, "no time left", "no time left"]


def test_workers_compare_encoders_by_the_figures_of_the_first(prepared):
    """Where processors are unlike, figures differ in the last bits, and all workers have to continue with one set."""

    class Second(Alone):
        def __init__(self):
            self.told = iter([50.0, 60.0, 70.0])

        def agreed(self, value):
            return {**value, "metric": next(self.told)}

    session = Session(seed=0, time_limit=None, device="cpu", progress=False, team=Second())
    choice = choose_encoders(prepared, ["toy", "toy2"], 2, session, time_limit=1000)
    assert [row["metric"] for row in choice.rows] == [50.0, 60.0, 70.0]
    assert choice.encoders == ["toy2"]


def test_encoders_are_compared_by_classes_where_rare_ones_count(prepared):
    """One class is five times as frequent: an encoder that says nothing is right on most pairs, not on most classes."""
    spoilt = prepared.train.pairs.images.clone()
    spoilt[..., prepared.image_towers[0].dim :] = 0.25
    for part in (prepared.train, prepared.dev):
        object.__setattr__(part.pairs, "images", spoilt)
    rare = (prepared.train.truth.classes[:, 0] == 1).nonzero()[:, 0]
    skewed = replace(
        prepared,
        train=prepared.train.select(
            torch.cat([(prepared.train.truth.classes[:, 0] == 0).nonzero()[:, 0], rare[: len(rare) // 5]])
        ),
        dev_is_spare=False,
    )
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    of_nothing = {}
    for balanced in (False, True):
        rows = choose_encoders(skewed, ["toy", "toy2"], 2, session, time_limit=1000, balanced=balanced).rows
        of_nothing[balanced] = next(row["metric"] for row in rows if row["images"] == ["toy2"])
    assert of_nothing[False] > 70
    assert of_nothing[True] < 65


def test_images_and_texts_may_come_from_different_encoders(made_twice, prepared):
    """``toy`` has images that say something and texts that do not, ``toy2`` the other way round."""
    images = prepared.train.pairs.images.clone()
    images[..., prepared.image_towers[0].dim :] = 0.25
    texts = torch.cat([torch.full_like(prepared.train.pairs.texts, 0.25), prepared.train.pairs.texts], dim=2)
    tower = prepared.text_towers[0]
    own = [replace(tower, name="spoilt", encoders=("toy",)), replace(tower, name="good", encoders=("toy2",))]
    train_part, dev_part = (
        replace(part, pairs=replace(part.pairs, images=images, texts=texts)) for part in (prepared.train, prepared.dev)
    )
    data = replace(prepared, train=train_part, dev=dev_part, text_towers=own)
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    choice = choose_encoders(data, ["toy", "toy2"], 2, session, time_limit=1000)
    assert (choice.encoders, choice.images, choice.texts) == (["toy", "toy2"], ["toy"], ["toy2"])
    both, one, two = ["toy", "toy2"], ["toy"], ["toy2"]
    # Three sets, then other images for the texts of the best one, then other texts for the best images.
    found = [(row["images"], row["texts"]) for row in choice.rows]
    assert found[:3] == [(both, both), (one, one), (two, two)]
    assert (one, two) in found
    assert choice.rows[0]["metric"] > choice.rows[1]["metric"] + 10
    assert choice.rows[0]["metric"] > choice.rows[2]["metric"] + 10


@pytest.mark.slow
def test_auto_records_the_encoders_it_chose_and_the_run_uses_them(made_twice, tmp_path):
    run = train(
        made_twice.store, made_twice.train_file, run=tmp_path / "run", task="classification", model="auto",
        options={"epochs": 1}, time_limit=3000,
    )  # fmt: skip
    sets = run.results["selection"]["encoders"]
    assert [row["encoders"] for row in sets["sets"]][:3] == [["toy", "toy2"], ["toy"], ["toy2"]]
    assert run.encoders == sets["chosen"]
    assert list(run.towers["image"]) == [t.name for t in made_twice.store.select_towers("image", sets["images"])]
    assert list(run.towers["text"]) == [t.name for t in made_twice.store.select_towers("text", sets["texts"])]
    scored = Scorer.open(tmp_path / "run", store=made_twice.store).score([(made_twice.test.images[0], "is it red?")])
    assert scored.shape == (1, 2)
