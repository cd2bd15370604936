"""The ablation: its variants, how they differ, the numbers computed another way, reuse, files."""

import inspect
import json
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

import frevl.training.ablation.variants
import frevl.training.seeds
from frevl.data.pairs import Pairs
from frevl.errors import MissingExtraError, PairsError, UsageError
from frevl.evaluation.intervals import paired_difference
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from frevl.training.ablation.report import ablation_markdown, ablation_table, draw_ablation, verdict
from frevl.training.ablation.study import ablate
from frevl.training.ablation.variants import NO_MORE_THAN_CHANCE, VARIANTS, Variant, notes_of, options_of
from frevl.training.options import FusionOptions
from frevl.training.training import train

pytestmark = pytest.mark.slow

SMALL = {"task": "classification", "options": {"layers": 1, "epochs": 2, "batch_size": 64}, "seeds": 2}


@pytest.fixture(scope="module")
def ablation(made, tmp_path_factory):
    """An ablation of a small fusion with two seeds. Read only."""
    folder = tmp_path_factory.mktemp("ablation")
    return folder, ablate(made.store, made.train_file, test=made.test_file, out=folder, **SMALL)


def row_of(ablation, name):
    return next(row for row in ablation[1].rows if row.variant.name == name)


def test_every_variant_of_the_published_kind_is_there(ablation):
    assert [row.variant.name for row in ablation[1].rows] == [
        "full fusion",
        "no cross-attention", "concatenation only", "no product", "no difference",
        "1 layer", "2 layers", "4 layers", "6 layers", "8 layers",
        "no contrastive term", "no regularisation term", "no mixup",
        "standardised inputs, 0.3 dropped", "last epoch, not the best",
        "no label smoothing",
        "linear", "mlp",
    ]  # fmt: skip


def test_a_variant_differs_in_what_it_names_and_in_nothing_else(ablation):
    folder, _ = ablation
    full = Run.load(folder / "runs" / "full-fusion" / "seed1").settings
    changed = {}
    for path in sorted((folder / "runs").iterdir()):
        settings = Run.load(path / "seed1").settings
        changed[path.name] = {name: value for name, value in settings.items() if value != full.get(name)}
    assert changed == {
        "full-fusion": {},
        "no-cross-attention": {"cross_attention": False},
        "concatenation-only": {"product": False, "difference": False},
        "no-product": {"product": False},
        "no-difference": {"difference": False},
        "2-layers": {"layers": 2},
        "4-layers": {"layers": 4},
        "6-layers": {"layers": 6},
        "8-layers": {"layers": 8},
        "no-contrastive-term": {"contrastive_weight": 0.0},
        "no-regularisation-term": {"regularisation_weight": 0.0},
        "no-mixup": {"mixup_share": 0.0},
        "standardised-inputs-0-3-dropped": {"standardise": True, "input_dropout": 0.3},
        "no-label-smoothing": {"label_smoothing": 0.0},
        "last-epoch-not-the-best": {"keep_last": True},
        "linear": {"model": "linear"},
        "mlp": {"model": "mlp", "hidden": 512, "dropout": 0.3},
    }


def test_a_baseline_takes_over_how_the_fusion_is_trained(ablation):
    folder, _ = ablation
    settings = Run.load(folder / "runs" / "mlp" / "seed0").settings
    assert (settings["epochs"], settings["batch_size"], settings["dropout"]) == (2, 64, 0.3)
    given = FusionOptions(dropout=0.4, epochs=3, learning_rate=0.01)
    mlp = options_of(Variant("mlp", "baselines", arguments={"model": "mlp"}), "tiny", given)
    assert mlp.changes() == {"epochs": 3, "learning_rate": 0.01}, "dropout is the fusion's own"


def test_parameters_by_hand(ablation):
    count = {row.variant.name: row.runs.parameters for row in ablation[1].rows}
    # The head of tiny reads 256 features a part into 256 units.
    assert count["full fusion"] - count["no product"] == 256 * 256
    assert count["full fusion"] - count["no difference"] == 256 * 256
    assert count["full fusion"] - count["concatenation only"] == 2 * 256 * 256
    # A block: two directions of four 256 x 256 maps, a feed-forward part of 512 units, two norms.
    block = 2 * (4 * (256 * 256 + 256) + 2 * 256 * 512 + 512 + 256 + 2 * 2 * 256)
    assert count["8 layers"] - count["6 layers"] == 2 * block
    assert count["no mixup"] == count["full fusion"]


def test_the_numbers_by_another_road(made, ablation):
    folder, table = ablation
    test = made.test

    def right(name):
        hits = []
        for seed in (0, 1):
            scorer = Scorer.open(folder / "runs" / name / f"seed{seed}", store=made.store)
            said = scorer.predict(list(zip(test.images, test.texts, strict=True)))
            hits.append([one.label == target for one, target in zip(said, test.targets, strict=True)])
        return np.array(hits, float)

    full, linear = right("full-fusion"), right("linear")
    row = row_of(ablation, "linear")
    assert table.metric == "accuracy"
    assert row.result.metrics["accuracy"] == pytest.approx(100 * linear.mean())
    assert row.result.seeds["deviation"]["accuracy"] == pytest.approx(100 * linear.mean(axis=1).std(ddof=1))
    assert row.difference["difference"] == pytest.approx(100 * (linear.mean() - full.mean()))
    gap = paired_difference(linear.mean(axis=0), full.mean(axis=0), test.images)
    assert row.difference["ci95"] == pytest.approx([100 * gap.low, 100 * gap.high])
    spreads = np.array([linear.mean(axis=1).var(ddof=1), full.mean(axis=1).var(ddof=1)])
    assert row.difference["standard_error_over_seeds"] == pytest.approx(100 * np.sqrt(spreads.sum() / 2))
    assert table.rows[0].difference is None
    assert (table.n, table.images) == (len(test), len(set(test.images)))


def test_the_depth_of_the_full_fusion_is_the_full_fusion(ablation):
    same, full = row_of(ablation, "1 layer"), ablation[1].rows[0]
    assert same.runs.path == full.runs.path
    assert same.difference["difference"] == 0
    assert same.difference["ci95"] == [0, 0]
    assert "1 layer," not in verdict(ablation[1])


def test_files_hold_the_table(ablation):
    folder, table = ablation
    record = json.loads((folder / "ablation.json").read_text())
    assert [row["variant"] for row in record["rows"]] == [row.variant.name for row in table.rows]
    assert set(record) == {"model", "task", "metric", "n", "images", "seeds", "rows", "notes", "provenance"}
    assert set(record["rows"][1]) == {
        "variant", "group", "model", "changes", "encoders", "parameters", "metrics", "ci95", "deviation", "values",
        "difference", "train_seconds", "runs",
    }  # fmt: skip
    page = (folder / "ablation.md").read_text().splitlines()
    rows = [line for line in page if line.startswith("| ")]
    assert len(rows) == 1 + 18
    assert {line.count("|") for line in rows} == {9}
    shown = ablation_table(table)
    assert "no cross-attention" in shown
    assert "among 16 comparisons about 0.8 would exclude zero by chance alone" in shown
    drawn = ElementTree.parse(folder / "ablation.svg").getroot()  # noqa: S314
    words = {element.text for element in drawn.iter() if element.text}
    assert {row.variant.name for row in table.rows} <= words


def test_the_same_table_gives_the_same_plot(ablation, tmp_path):
    draw_ablation(ablation[1], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (ablation[0] / "ablation.svg").read_bytes()


def test_an_interrupted_ablation_goes_on_and_ends_the_same(made, ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(frevl.training.ablation.variants, "VARIANTS", VARIANTS[:1])
    monkeypatch.setattr(frevl.training.ablation.variants, "DEPTHS", ())
    trained = []

    def counted(*arguments, **settings):
        trained.append((settings["run"].parent.name, settings["run"].name))
        if len(trained) == 4:
            raise KeyboardInterrupt
        return train(*arguments, **settings)

    counted.__signature__ = inspect.signature(train)
    monkeypatch.setattr(frevl.training.seeds, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        ablate(made.store, made.train_file, test=made.test_file, out=tmp_path, **SMALL)
    assert not (tmp_path / "ablation.json").exists()
    done = ablate(made.store, made.train_file, test=made.test_file, out=tmp_path, **SMALL)
    seeds = [
        ("no-cross-attention", "seed1"),
        ("linear", "seed0"),
        ("linear", "seed1"),
        ("mlp", "seed0"),
        ("mlp", "seed1"),
    ]
    assert trained[4:] == seeds
    for row in done.rows:
        assert row.result.metrics == row_of(ablation, row.variant.name).result.metrics


def test_encoders_and_stores_are_compared_on_the_same_pairs(made_twice, tmp_path, monkeypatch):
    for name in ("VARIANTS", "DEPTHS", "BASELINES"):
        monkeypatch.setattr(frevl.training.ablation.variants, name, ())
    world = made_twice
    extract(tmp_path / "second", images=world.images, pairs=[world.train_file, world.test_file], encoder=["toy2"])
    done = ablate(
        [world.store, tmp_path / "second"], world.train_file, test=world.test_file, out=tmp_path / "out", **SMALL
    )
    rows = {row.variant.name: row for row in done.rows}
    assert list(rows) == ["full fusion", "toy only", "toy2 only", "store 2 (second: toy2)"]
    assert rows["full fusion"].runs.encoders == ["toy", "toy2"]
    # Two ways to the same network: one tower of a store of two, and a store of its own.
    assert rows["toy2 only"].result.seeds["values"] == rows["store 2 (second: toy2)"].result.seeds["values"]
    assert len(done.provenance["stores"]) == 2


def test_a_change_without_effect_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setattr(frevl.training.ablation.variants, "VARIANTS", VARIANTS[-1:])
    monkeypatch.setattr(frevl.training.ablation.variants, "DEPTHS", ())
    monkeypatch.setattr(frevl.training.ablation.variants, "BASELINES", ())
    read = made.train
    soft = Pairs(read.images, read.texts, [{target: 0.9} for target in read.targets], read.extras, read.places)
    done = ablate(made.store, soft, test=made.test_file, out=tmp_path, **{**SMALL, "seeds": 1})
    assert "Identical to the full fusion, with every seed and in every metric: no label smoothing." in done.notes
    assert done.rows[1].result.seeds["deviation"]["accuracy"] is None


def test_matching_compares_recall(made, tmp_path, monkeypatch):
    for name in ("VARIANTS", "DEPTHS"):
        monkeypatch.setattr(frevl.training.ablation.variants, name, ())
    arguments = {**SMALL, "task": "matching", "seeds": 1, "options": {"epochs": 1}}
    done = ablate(made.store, made.captions.select(range(120)), test=made.captions.select(range(120, 240)),
                  out=tmp_path, **arguments)  # fmt: skip
    assert done.metric == "i2t_r1"
    assert [row.variant.name for row in done.rows] == ["full fusion", "linear", "mlp"]


def test_a_verdict_by_hand():
    def row(name, gap, bounds, error=0.0):
        difference = {"difference": gap, "ci95": bounds, "standard_error_over_seeds": error}
        return SimpleNamespace(
            variant=SimpleNamespace(name=name), runs=SimpleNamespace(path=name), difference=difference
        )

    full = SimpleNamespace(runs=SimpleNamespace(path="full"), difference=None)
    rows = [full, row("a", -2, [-3, -1], 0.9), row("b", 0, [-1, 1]), row("c", 2, [1, 2], None), row("d", 5, None)]
    rows.append(row("e", -2, [-3, -1], 1.1))  # less than two standard errors over seeds
    said = verdict(SimpleNamespace(rows=rows, seeds=[0, 1]))
    assert said == (
        "Measurably worse than the full fusion: a. Measurably better: c. No measurable difference: b, d, e. "
        "Each interval is at 95 %: among 5 comparisons about 0.2 would exclude zero by chance alone. "
        "Measurable means that the interval excludes zero and the difference exceeds two standard errors over seeds."
    )
    assert "Only one seed: how much of a difference is due" in verdict(SimpleNamespace(rows=rows, seeds=[0]))


def row_by_hand(name, *notes, chance, seeds=1, task="classification"):
    """Return a row with a number of seeds at chance."""
    result = SimpleNamespace(
        notes=[*notes],
        chance=None if task == "matching" else SimpleNamespace(is_chance=chance > 0),
        at_chance=int(chance),
        seeds={"n": seeds, "values": {name: [1] * seeds}, "deviation": {"accuracy": None}},
        metrics={"accuracy": 50.0},
        ci95={"accuracy": None},
    )
    runs = SimpleNamespace(path=name, parameters=1, train_seconds=[1.0])
    return SimpleNamespace(variant=SimpleNamespace(name=name), result=result, runs=runs, difference=None)


@pytest.mark.parametrize("learned", [False, True])
def test_what_puts_the_comparison_in_doubt_comes_first(learned):
    leak, other = "Leak: 1 of 2 different images were in training.", "4 images are nearly the same."
    rows = [row_by_hand("full", other, leak, chance=not learned), row_by_hand("part", chance=True)]
    notes = notes_of(rows)
    chance = (
        f"At chance, not measurably better than always giving the majority answer: {'' if learned else 'full, '}part."
    )
    grave = (
        f"{NO_MORE_THAN_CHANCE}always giving the majority answer: what its parts contribute cannot be told from these "
        "differences. Train it longer, on more pairs, or with other settings (--set)."
    )
    assert notes == [*([] if learned else [grave]), leak, other, chance]
    made = SimpleNamespace(
        rows=rows, notes=notes, seeds=[3], model="tiny", task="classification", n=1, images=2, metric="accuracy"
    )
    for page in (ablation_table(made), ablation_markdown(made).removeprefix("# Ablation\n\n")):
        parts = page.split("\n\n")
        assert parts[: 2 - learned] == notes[: 2 - learned]
        assert parts[2 - learned].startswith("tiny, classification: 1 test pair of 2 images, one seed (3); ")
        assert page.count(leak) == 1
        assert parts.index(other) > parts.index(leak) + 1  # below the table


def test_matching_is_compared_with_random_scores_seed_by_seed():
    rows = [
        row_by_hand(name, chance=chance, seeds=3, task="matching")
        for name, chance in (("full", 0), ("part", 3), ("other", 1), ("third", 0), ("last", 2))
    ]
    assert notes_of(rows) == [
        "At chance, not measurably better than random scores: part.",
        "At chance with some of the 3 seeds: other (1), last (2).",
    ]
    unlearnt = notes_of([row_by_hand("full", chance=3, seeds=3, task="matching"), *rows[1:]])
    assert unlearnt[0].startswith(f"{NO_MORE_THAN_CHANCE}random scores: what its parts contribute cannot be told")
    assert unlearnt[1] == "At chance, not measurably better than random scores: full, part."


def test_what_cannot_work_is_refused_before_anything_is_trained(made, tmp_path, monkeypatch):
    arguments = {"test": made.test_file, "task": "classification", "out": tmp_path / "out"}
    with pytest.raises(UsageError, match="which 'tini' is not. Did you mean 'tiny'"):
        ablate(made.store, made.train_file, model="tini", **arguments)
    with pytest.raises(UsageError, match="needs a store"):
        ablate([], made.train_file, **arguments)
    with pytest.raises(UsageError, match="at least 1 seed, found 0"):
        ablate(made.store, made.train_file, seeds=0, **arguments)
    with pytest.raises(PairsError, match="no such pairs file"):
        ablate(made.store, made.train_file, **{**arguments, "test": tmp_path / "none.jsonl"})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'frevl\[plots\]'"):
        ablate(made.store, made.train_file, **arguments)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def few_variants(monkeypatch):
    """The full fusion and the baselines only."""
    for name in ("VARIANTS", "DEPTHS"):
        monkeypatch.setattr(frevl.training.ablation.variants, name, ())


def test_groups_reach_the_trainings_and_the_intervals(made, tmp_path, frevl, few_variants, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # of a launcher: an ablation trains alone all the same
    grouped = [
        {**pairs.row(row), "shelf": f"shelf {int(pairs.images[row].removesuffix('.png')) // 5}"}
        for pairs in (made.train, made.test)
        for row in range(len(pairs))
    ]
    files = []
    for name, rows in (("train", grouped[: len(made.train)]), ("test", grouped[len(made.train) :])):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = frevl("ablate", "--store", made.store.path, "--pairs", files[0], "--test", files[1], "--task",
                 "classification", "--seeds", 1, "--set", "layers=0", "--set", "epochs=1", "--group-by", "shelf",
                 "--no-groups", "--out", tmp_path / "out", "--json", tmp_path / "a.json", "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    settings = Run.load(tmp_path / "out" / "runs" / "full-fusion" / "seed0").settings
    assert (settings["group_by"], settings["find_groups"]) == ("shelf", False)
    shelves = {row["shelf"] for row in grouped[len(made.train) :]}
    assert 1 < json.loads((tmp_path / "a.json").read_text())["images"] == len(shelves) < len(set(made.test.images))


def test_its_folder_holds_the_file_that_repeats_it(made, tmp_path, frevl, few_variants):
    rows = [made.train.row(number) for number in range(len(made.train))]
    lines = [f'{row["image"]}\t"{row["text"]}"\t{row["target"]}\n' for row in rows]
    (tmp_path / "pairs.tsv").write_text("".join(["picture\ttext\ttarget\n", *lines]), encoding="utf-8")
    done = frevl("ablate", "--store", made.store.path, "--pairs", tmp_path / "pairs.tsv", "--test",
                 tmp_path / "pairs.tsv", "--columns", "image=picture", "--task", "classification", "--seeds", 1,
                 "--seed", 3, "--set", "layers=0", "--set", "epochs=1", "--encoder", "toy", "--no-groups", "--out",
                 tmp_path / "a", "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    file = tomllib.loads((tmp_path / "a" / "config.toml").read_text(encoding="utf-8"))
    assert file["store"] == [str(made.store.path)]
    assert (file["columns"], file["encoder"], file["find-groups"]) == ({"image": "picture"}, ["toy"], False)
    done = frevl("ablate", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b", "--quiet")
    assert done.code == 0, done.err
    tables = [json.loads((tmp_path / name / "ablation.json").read_text())["rows"] for name in ("a", "b")]
    for once, again in zip(*tables, strict=True):
        assert {k: once[k] for k in ("variant", "changes", "metrics", "ci95", "values")} == {
            k: again[k] for k in ("variant", "changes", "metrics", "ci95", "values")
        }
    assert Run.load(tmp_path / "b" / "runs" / "mlp" / "seed3").settings["epochs"] == 1


def test_the_command_line_takes_a_fusion_apart(made, tmp_path, frevl, monkeypatch):
    import frevl.training.ablation.variants as module

    monkeypatch.setattr(module, "VARIANTS", module.VARIANTS[:1])
    monkeypatch.setattr(module, "DEPTHS", ())
    said = frevl("ablate", "--store", made.store.path, "--pairs", made.train_file, "--test", made.test_file, "--task",
                 "classification", "--seeds", 1, "--set", "layers=1", "--set", "epochs=1", "--out", tmp_path / "out",
                 "--json", tmp_path / "a.json")  # fmt: skip
    assert said.code == 0, said.err
    assert "no cross-attention" in said.out
    assert "[2 of 4] no cross-attention" in said.err
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "out" / "ablation.json").read_text())
