"""The core of a test set: a small part on which runs keep their order, with whole images, and its refusals."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

import frevl
from frevl.cli.main import app
from frevl.diagnosis.curation.core_set.choosing import (
    choose_units,
    discrimination,
    distance_change,
    kendall_tau,
    random_units,
)
from frevl.diagnosis.curation.core_set.core_set import core_set
from frevl.errors import FrevlError, PairsError, UsageError
from planted import plant


def test_kendall_tau_counts_pairs_in_order():
    rising = np.array([1.0, 2, 3, 4])
    assert kendall_tau(rising, rising**3) == pytest.approx(1)
    assert kendall_tau(rising, -rising) == pytest.approx(-1)
    assert kendall_tau(rising, np.array([1.0, 3, 2, 4])) == pytest.approx(4 / 6)
    # With ties the definition: (5 - 0) / sqrt((6 - 0) (6 - 1)).
    assert kendall_tau(rising, np.array([1.0, 2, 2, 4])) == pytest.approx(5 / math.sqrt(30))
    assert kendall_tau(np.array([0.1 + 0.2, 0.4]), np.array([0.3, 0.4])) == pytest.approx(1)
    assert math.isnan(kendall_tau(np.array([0.3, 0.1 + 0.2]), np.array([1.0, 2.0])))  # equal but for rounding


def test_a_change_of_distance_is_the_mean_over_pairs():
    assert distance_change(np.array([0.1, 0.2, 0.4]), np.array([0.5, 0.6, 0.8])) == pytest.approx(0)
    # 0.1 becomes 0.2, 0.3 becomes 0.6, 0.2 becomes 0.4
    assert distance_change(np.array([0.1, 0.2, 0.4]), np.array([0.3, 0.5, 0.9])) == pytest.approx(0.2)


def made(seed, *, units=300, each=3, runs=16, gap=0.2):
    """Runs of rising skill, and lines of every difficulty: hits by the two-parameter model of item responses."""
    random = np.random.default_rng(seed)
    hard = random.normal(0, 1.2, (units, each))
    sharp = np.exp(random.normal(0, 0.5, (units, each)))
    skill = gap * (np.arange(runs) - (runs - 1) / 2)
    hits = random.random((runs, units, each)) < 1 / (1 + np.exp(-sharp * (skill[:, None, None] - hard)))
    order = random.permutation(runs)
    return hits.sum(axis=2)[order].astype(float), np.full(units, float(each))


def tau(sums, counts, units):
    return kendall_tau(sums.sum(axis=1) / counts.sum(), sums[:, units].sum(axis=1) / counts[units].sum())


def test_an_item_that_only_better_runs_have_right_tells_them_apart():
    sums = np.array([[0, 1, 1, 0, 1.0], [0, 0, 1, 1, 1], [0, 0, 1, 0, 0], [0, 1, 1, 1, 1]])
    found = discrimination(sums, np.ones(5))
    assert found[0] == found[2] == 0
    assert found[4] == max(found) > 0.3


def test_a_tenth_keeps_order_and_distance_of_the_runs_that_choose_and_is_as_good_as_random_for_others():
    own, others, chance, moved, moved_by_chance = [], [], [], [], []
    for seed in range(8):
        sums, counts = made(seed)
        units = choose_units(sums[::2], counts, 0.1 * counts.sum(), seed=seed)
        assert len(set(units.tolist())) == len(units) == 30
        own.append(tau(sums[::2], counts, units))
        others.append(tau(sums[1::2], counts, units))
        moved.append(distance_change(sums[::2].mean(axis=1) / 3, sums[::2][:, units].mean(axis=1) / 3))
        for draw in range(20):
            drawn = np.random.default_rng(draw).permutation(len(counts))[:30]
            chance.append(tau(sums[1::2], counts, drawn))
            moved_by_chance.append(distance_change(sums.mean(axis=1) / 3, sums[:, drawn].mean(axis=1) / 3))
    assert np.mean(own) > 0.97 > np.mean(chance)
    assert np.mean(moved) < 0.3 * np.mean(moved_by_chance)
    assert np.mean(others) > np.mean(chance) - 0.01


def test_units_of_different_sizes_never_take_more_lines_than_wanted():
    random = np.random.default_rng(0)
    counts = random.integers(1, 9, 211).astype(float)
    sums = np.round(random.random((5, 211)) * counts)
    for lines in (1, 7, 40, counts.sum()):
        units = choose_units(sums, counts, lines)
        assert counts[units].sum() <= lines
    assert counts[choose_units(sums, counts, 40)].sum() > 32
    assert len(choose_units(sums, np.full(211, 9.0), 5)) == 0


def test_one_unit_with_more_lines_than_wanted_does_not_keep_the_others_out():
    counts = np.array([50.0, *[1.0] * 50])
    for seed in range(200):  # the large one is first in some of the orders
        assert len(random_units(counts, 10, seed=seed)) == 10


def test_what_may_not_be_chosen_still_counts_in_the_scores_to_keep():
    sums, counts = made(1, units=60)
    allowed = np.arange(60) % 2 == 0
    units = choose_units(sums, counts, 30, allowed=allowed)
    assert allowed[units].all()
    assert len(units) == 10
    whole = sums.sum(axis=1) / counts.sum()
    part = choose_units(sums[:, allowed], counts[allowed], 30)
    among = np.flatnonzero(allowed)[part]

    def moved(of):
        return distance_change(whole, sums[:, of].sum(axis=1) / counts[of].sum())

    assert moved(units) < moved(among)
    assert allowed[random_units(counts, 30, allowed=allowed, seed=0)].all()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A test set that needs both sides, and runs that see more or less of it."""
    folder = tmp_path_factory.mktemp("core")
    world = plant(folder / "store", images=400, texts=12)
    names = list(world.images)

    def label(image, text, random):
        return int(image + text > 0) if random.random() > 0.1 else int(random.integers(0, 2))

    for name, images, seed in (("train", names[:150], 0), ("test", names[150:], 1)):
        pairs = world.pairs(images, label, seed=seed, each=4)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pairs.row(row)) + "\n" for row in range(len(pairs))))
    small = folder / "small.jsonl"
    small.write_text("".join((folder / "train.jsonl").read_text().splitlines(keepends=True)[:40]))
    runs = []
    for model, pairs in (
        ("linear", "train"),
        ("kernel", "train"),
        ("image", "train"),
        ("text", "train"),
        ("linear", "small"),
    ):
        runs.append(folder / f"{model} {pairs}")
        frevl.train(folder / "store", folder / f"{pairs}.jsonl", run=runs[-1], task="classification", model=model)
    return folder, runs


@pytest.fixture(scope="module")
def core(world):
    folder, runs = world
    return core_set(
        folder / "store", folder / "test.jsonl", runs, folder / "core.jsonl", pairs=folder / "train.jsonl", keep=0.2
    )


@pytest.mark.slow
def test_the_core_is_written_in_file_order_with_whole_images(world, core):
    folder, _ = world
    test = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (folder / "core.jsonl").read_text().splitlines()]
    assert kept == core.lines == [row for row in test if row["image"] in {line["image"] for line in kept}]
    assert 0.15 * len(test) < len(kept) <= 0.2 * len(test)


@pytest.mark.slow
def test_the_record_holds_every_run_and_pair_with_intervals(world, core):
    folder, runs = world
    record = core.record()
    assert [one["run"] for one in record["runs"]] == [str(run) for run in runs]
    assert len(record["pairs"]) == 10
    for one, run in zip(record["runs"], runs, strict=True):
        scorer = frevl.Scorer.open(run, store=frevl.Store.open(folder / "store"))
        assert one["whole"] == pytest.approx(frevl.evaluate(scorer, folder / "test.jsonl").metrics["accuracy"])
        assert one["core"] == pytest.approx(frevl.evaluate(scorer, folder / "core.jsonl").metrics["accuracy"])
        assert one["core_ci95"][0] <= one["core"] <= one["core_ci95"][1]
    assert record["tau"] >= record["tau_random"]["mean"]
    assert record["distance"] < record["distance_random"]
    assert -1 <= record["tau_left_out"] <= 1
    assert "Chose" in core.sentence()
    json.dumps(record, allow_nan=False)


@pytest.mark.slow
def test_test_images_that_stand_in_the_training_pairs_are_not_chosen(world, tmp_path):
    folder, runs = world
    rows = (folder / "test.jsonl").read_text().splitlines(keepends=True)
    leaked = tmp_path / "leaked.jsonl"
    leaked.write_text("".join(rows[:600]))
    core = core_set(folder / "store", folder / "test.jsonl", runs, pairs=leaked, keep=0.1)
    seen = {json.loads(row)["image"] for row in rows[:600]}
    assert not seen & {line["image"] for line in core.lines}
    assert "600 test lines have images that are also in --pairs" in core.sentence()
    with pytest.raises(PairsError, match="every test image is in it"):
        core_set(folder / "store", folder / "test.jsonl", runs, pairs=folder / "test.jsonl")


@pytest.mark.slow
def test_equal_runs_count_once_and_fewer_than_four_are_refused(world):
    folder, runs = world
    core = core_set(folder / "store", folder / "test.jsonl", [*runs, runs[0]])
    assert core.sentence().startswith("1 of 6 runs agree on every line and count once:")
    assert len(core.runs) == 5
    with pytest.raises(UsageError, match="expected at least 4 different runs, found 3; 1 of 4 runs agree"):
        core_set(folder / "store", folder / "test.jsonl", [*runs[:3], runs[0]])


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 1, -0.1, 1.5, math.nan, 0.001])
def test_a_share_that_means_nothing_is_refused(world, keep):
    folder, runs = world
    with pytest.raises(UsageError, match="--keep"):
        core_set(folder / "store", folder / "test.jsonl", runs, keep=keep)


@pytest.mark.slow
def test_the_command_keeps_a_core_and_refuses_what_does_nothing_beside_it(world, tmp_path):
    folder, runs = world
    call = ["curate", "--store", folder / "store", "--test", folder / "test.jsonl", "--pairs", folder / "train.jsonl",
            *[part for run in runs for part in ("--run", run)], "--out", tmp_path / "core.jsonl", "--json",
            tmp_path / "core.json", "--quiet"]  # fmt: skip
    told = CliRunner().invoke(app, list(map(str, call)))
    assert told.exit_code == 0, told.output
    record = json.loads((tmp_path / "core.json").read_text())
    assert record["lines"] == len((tmp_path / "core.jsonl").read_text().splitlines()) <= 100
    wrong = CliRunner().invoke(app, [*map(str, call), "--drop", "text"]).exception
    assert isinstance(wrong, UsageError)
    assert str(wrong).startswith("--drop has no effect with --test")
    without = [str(part) for part in call if part not in ("--test", folder / "test.jsonl")]
    assert "expected one run to score the matches" in str(CliRunner().invoke(app, without).exception)


def test_a_matching_run_is_refused(world, tmp_path):
    folder, runs = world
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    captions = tmp_path / "captions.jsonl"
    captions.write_text(
        "".join(json.dumps({"image": row["image"], "text": row["text"]}) + "\n" for row in rows[:200:4])
    )
    run = frevl.train(folder / "store", captions, run=tmp_path / "dual", task="matching", model="dual",
                      options={"epochs": 1, "members": 1})  # fmt: skip
    with pytest.raises(UsageError, match="found a run for 'matching'"):
        core_set(folder / "store", folder / "test.jsonl", [run.path, *runs])
    with pytest.raises(FrevlError):
        core_set(folder / "store", folder / "test.jsonl", [tmp_path / "none", *runs])
