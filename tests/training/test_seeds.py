"""Several seeds: means and deviations by hand, reuse, interruption, refusals, the command line."""

import inspect
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import frevl.evaluation.seeds
import frevl.training.seeds
from frevl.errors import RunError, UsageError
from frevl.evaluation.evaluation import Result, evaluate
from frevl.evaluation.intervals import bootstrap_interval, paired_difference
from frevl.evaluation.measures import Measure
from frevl.evaluation.seeds import deviation, evaluate_seeds, is_seeds, open_seeds
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.training.options import LinearOptions
from frevl.training.seeds import train_seeds
from frevl.training.training import train

SMALL = {"task": "classification", "model": "tiny", "options": {"layers": 1, "epochs": 2, "batch_size": 64}}


@pytest.fixture(scope="module")
def three(made, tmp_path_factory):
    """Three seeds of a small fusion, and a linear probe. Read only."""
    folder = tmp_path_factory.mktemp("three")
    done = train_seeds(made.store, made.train_file, run=folder / "seeds", seeds=3, seed=5, **SMALL)
    train(made.store, made.train_file, run=folder / "linear", task="classification", model="linear")
    return done


def judged(hits, seed):
    hits, clusters = np.array(hits, float), ["a", "a", "b", "c"]
    # A metric that is not a mean: the seed's number times the largest hit of the draw.
    largest = Measure(clusters, statistic=lambda rows: seed * hits[rows].max() / 10, resamples=50)
    return Result(
        task="classification", n=4, metrics={"accuracy": 100 * hits.mean(), "ece": 10.0 * seed},
        ci95={"accuracy": [0.0, 100.0], "ece": [0.0, 100.0]}, slices={},
        provenance={"run": f"runs/seed{seed}", "seed": seed}, notes=["the same note"],
        hits=hits, clusters=clusters, measures={"accuracy": Measure(clusters, hits), "ece": largest},
        slice_rows={"asked": {"red": [1, 2]}},
    )  # fmt: skip


def test_means_and_deviations_by_hand(monkeypatch):
    answers = {1: judged([1, 1, 0, 0], 1), 2: judged([1, 1, 1, 0], 2), 3: judged([1, 1, 1, 1], 3)}
    monkeypatch.setattr(frevl.evaluation.seeds, "evaluate", lambda scorer, _, **__: answers[scorer])
    result = evaluate_seeds([1, 2, 3], frevl.data.pairs.Pairs([], [], [], [], []))
    assert result.metrics == {"accuracy": 75, "ece": 20}
    assert result.seeds["deviation"] == {"accuracy": 25, "ece": 10}  # 50, 75, 100 and 10, 20, 30
    assert result.seeds["values"] == {"accuracy": [50, 75, 100], "ece": [10, 20, 30]}
    np.testing.assert_allclose(result.hits, [1, 1, 2 / 3, 1 / 3])
    # Three clusters of 2, 1 and 1 items: the bounds of the ratio are those of the averaged hits, not of any seed.
    expected = bootstrap_interval([1, 1, 2 / 3, 1 / 3], ["a", "a", "b", "c"])
    np.testing.assert_allclose(result.ci95["accuracy"], [100 * expected.low, 100 * expected.high])
    assert expected.low == pytest.approx(1 / 3)
    # The draws are the same for all seeds: with "a" in it every seed's largest hit is 1 and the mean is 20 %; without
    # "a" it is 0, 1 or 0 for seed 1, and so on; the lowest draw, all of "c", gives (0 + 0 + 3) / 3 = 10 %.
    # One or two of the 50 draws are all "c": the lower bound lies between 10 and the next, (0 + 2 + 3) / 3 = 16.7 %.
    assert result.ci95["ece"] == pytest.approx([11.5, 20])
    red = result.slices["asked"]["red"]
    expected = bootstrap_interval([1, 2 / 3], ["a", "b"])
    assert red["n"] == 2
    assert red["accuracy"] == pytest.approx(100 * 5 / 6)
    np.testing.assert_allclose(red["ci95"], [100 * expected.low, 100 * expected.high])
    assert result.provenance == {"run": "runs", "seed": [1, 2, 3]}
    assert result.notes == [
        "the same note",
        "Means of 3 seeds. Standard deviation over seeds in points: accuracy 25.00, ece 10.00.",
    ]
    assert set(result.record()) == {
        "task",
        "n",
        "metrics",
        "ci95",
        "slices",
        "provenance",
        "notes",
        "left_out",
        "seeds",
    }


def test_the_deviation_has_n_minus_one_below():
    assert deviation([2.0, 4.0]) == pytest.approx(np.sqrt(2))
    assert deviation([3.0]) is None


@pytest.mark.slow
def test_a_seed_among_several_is_the_run_that_it_would_be_alone(made, three, tmp_path):
    alone = train(made.store, made.train_file, run=tmp_path / "alone", seed=6, **SMALL)
    here, there = (load_file(path / "weights.safetensors") for path in (tmp_path / "alone", three.path / "seed6"))
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert three.seeds == [5, 6, 7]
    assert three.runs == ["seed5", "seed6", "seed7"]
    assert three.development[1] == alone.results["development"]["accuracy"]
    assert three.parameters == alone.parameters
    record = json.loads((three.path / "seeds.json").read_text())
    assert record["development"]["accuracy"] == pytest.approx(sum(three.development) / 3)
    assert record["provenance"]["seed"] == [5, 6, 7]
    first, other = (inspect.signature(function).parameters["seed"].default for function in (train_seeds, train))
    assert first == other


@pytest.mark.slow
def test_the_result_is_the_mean_of_the_single_results(made, three):
    single = [evaluate(Scorer.open(three.path / name, store=made.store), made.test) for name in three.runs]
    linear = evaluate(Scorer.open(three.path.parent / "linear", store=made.store), made.test)
    mean = evaluate_seeds(
        open_seeds(three.path, store=made.store), made.test_file,
        versus=open_seeds(three.path.parent / "linear", store=made.store),
    )  # fmt: skip
    assert set(mean.metrics) == set(single[0].metrics)
    for name, value in mean.metrics.items():
        values = [one.metrics[name] for one in single]
        assert value == pytest.approx(sum(values) / 3)
        assert mean.seeds["deviation"][name] == pytest.approx(np.sqrt(sum((v - value) ** 2 for v in values) / 2))
    hits = (single[0].hits + single[1].hits + single[2].hits) / 3
    gap = paired_difference(hits, linear.hits, made.test.clusters)
    assert mean.difference["difference"] == pytest.approx(100 * gap.value)
    assert mean.difference["ci95"] == pytest.approx([100 * gap.low, 100 * gap.high])
    assert mean.difference["versus"].endswith("linear")
    assert mean.provenance["run"] == str(three.path)


def count_trainings(monkeypatch, stop_at=None):
    trained = []

    def counted(*arguments, **settings):
        if len(trained) + 1 == stop_at:
            raise KeyboardInterrupt
        trained.append(settings["seed"])
        return train(*arguments, **settings)

    counted.__signature__ = inspect.signature(train)
    monkeypatch.setattr(frevl.training.seeds, "train", counted)
    return trained


@pytest.mark.slow
def test_finished_seeds_are_used_again_and_more_may_follow(made, tmp_path, monkeypatch):
    arguments = {"run": tmp_path / "run", "task": "classification", "model": "linear"}
    count_trainings(monkeypatch, stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(made.store, made.train_file, seeds=3, **arguments)
    assert is_seeds(tmp_path / "run")
    with pytest.raises(RunError, match="an interrupted training; run the same frevl train --seeds again"):
        list(open_seeds(tmp_path / "run", store=made.store))
    trained = count_trainings(monkeypatch)
    first = train_seeds(made.store, made.train_file, seeds=3, **arguments)
    assert trained == [1, 2]
    assert train_seeds(made.store, made.train, seeds=3, **arguments).record() == first.record()
    assert len(train_seeds(made.store, made.train_file, seeds=4, **arguments).runs) == 4
    assert trained == [1, 2, 3]


def test_finished_seeds_of_other_settings_pairs_or_pictures_are_refused(made, tmp_path, monkeypatch):
    arguments = {"run": tmp_path / "run", "seeds": 1, "task": "classification", "model": "linear"}
    train_seeds(made.store, made.train_file, **arguments)
    train_seeds(made.store, made.train_file, options={"negatives": 3}, **arguments)  # the default, typed
    with pytest.raises(RunError, match="'negatives' was 3, not 4"):
        train_seeds(made.store, made.train_file, options=LinearOptions(negatives=4), **arguments)
    with pytest.raises(RunError, match="its 'pairs' was"):
        train_seeds(made.store, made.train.select(range(9, 180)), **arguments)
    with pytest.raises(RunError, match="its 'dev' was None, not '"):
        train_seeds(made.store, made.train_file, dev=made.test_file, **arguments)
    real = Store.content_column
    changed = lambda self, ids: np.array([b"f" * 32, *real(self, ids)[1:]])  # noqa: E731
    monkeypatch.setattr(Store, "content_column", changed)
    with pytest.raises(RunError, match="its 'pairs' was"):
        train_seeds(made.store, made.train_file, **arguments)


def test_a_folder_of_one_run_is_refused_and_left_alone(made, three):
    linear = three.path.parent / "linear"
    before = sorted(path.name for path in linear.iterdir())
    with pytest.raises(RunError, match="holds a run of one seed"):
        train_seeds(made.store, made.train_file, run=linear, seeds=2, task="classification", model="linear")
    assert sorted(path.name for path in linear.iterdir()) == before
    assert not is_seeds(linear)


def test_a_slip_does_not_block_the_corrected_call(made, tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'classification'"):
        train_seeds(made.store, made.train_file, run=tmp_path / "run", seeds=2, task="clasification")
    with pytest.raises(UsageError, match="expected at least 1 seed, found 0"):
        train_seeds(made.store, made.train_file, run=tmp_path / "run", seeds=0, task="classification")
    done = train_seeds(
        made.store, made.train_file, run=tmp_path / "run", seeds=2, task="classification", model="majority"
    )
    assert [Run.load(done.path / name).provenance["seed"] for name in done.runs] == [0, 1]


def test_damage_is_said(made, tmp_path):
    (tmp_path / "seeds.json").write_text("{}")
    with pytest.raises(RunError, match="'seeds.json' is damaged"):
        list(open_seeds(tmp_path, store=made.store))
    with pytest.raises(UsageError, match="at least one scorer"):
        evaluate_seeds([], made.test)


@pytest.mark.slow
def test_the_command_line_trains_and_judges_several_seeds(made, three, tmp_path, frevl):
    said = frevl("train", "--store", made.store.path, "--pairs", made.train_file, "--task", "classification",
                 "--model", "linear", "--seeds", 2, "--run", tmp_path / "run", "--quiet",
                 "--json", tmp_path / "t.json")  # fmt: skip
    assert said.code == 0, said.err
    assert "with 2 seeds (0, 1)" in said.out
    assert "standard deviation" in said.out
    assert json.loads((tmp_path / "t.json").read_text()) == json.loads((tmp_path / "run" / "seeds.json").read_text())
    said = frevl("evaluate", "--store", made.store.path, "--run", tmp_path / "run", "--pairs", made.test_file,
                 "--versus", three.path.parent / "linear", "--json", tmp_path / "r.json")  # fmt: skip
    assert said.code == 0, said.err
    assert "Means of 2 seeds. Standard deviation over seeds in points: accuracy " in said.out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["seeds"]["n"] == 2
    assert set(result["seeds"]["deviation"]) == set(result["metrics"]) == set(result["ci95"])
    assert result["difference"]["versus"] == str(three.path.parent / "linear")
    assert {"run", "store_fingerprint", "seed", "versions", "command", "hardware"} <= set(result["provenance"])


@pytest.mark.slow
def test_warnings_of_the_runs_come_first_and_name_their_seeds(made, tmp_path, frevl):
    rows = [json.loads(line) for line in made.train_file.read_text().splitlines()]
    random = np.random.default_rng(0).permutation([row["target"] for row in rows]).tolist()
    pairs = tmp_path / "random.jsonl"
    pairs.write_text("".join(json.dumps({**row, "target": one}) + "\n" for row, one in zip(rows, random, strict=True)))
    said = frevl("train", "--store", made.store.path, "--pairs", pairs, "--task", "classification", "--model", "linear",
                 "--seeds", 3, "--run", tmp_path / "run", "--quiet")  # fmt: skip
    assert said.code == 0, said.err
    own = {seed: Run.load(tmp_path / "run" / f"seed{seed}").results["warnings"] for seed in range(3)}
    assert any(one.startswith("Chance: ") for warnings in own.values() for one in warnings)
    lines = said.out.splitlines()
    assert lines[-1].startswith("Trained linear ")
    for seed, warnings in own.items():
        for one in warnings:
            (line,) = (line for line in lines[:-1] if line.endswith(one))
            shared = [str(other) for other in own if one in own[other]]
            assert line == one if len(shared) == 3 else line.startswith(f"Seed {' and seed '.join(shared)}: ")
            assert str(seed) in shared
