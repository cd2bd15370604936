"""Given development pairs: candidates are compared on them; if two estimates disagree, the lower one counts."""

import numpy as np
import pytest
import torch

from frevl.cli.tables import run_sentence
from frevl.data.pairs import Pairs
from frevl.store.reader import Store
from frevl.store.writer import StoreWriter
from frevl.training.prepare import prepare
from frevl.training.selection.folds import cv_splits
from frevl.training.selection.measures import gap_between
from frevl.training.training import train
from handmade import item, pooled, tower

SERIES, VARIANTS, DIM = 110, 6, 12


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Images in series of six variants; every series has one label, drawn at random, so nothing can be learned."""
    random = np.random.default_rng(5)
    centres = random.standard_normal((SERIES, DIM))
    variants = unit(np.repeat(centres, VARIANTS, axis=0) + 0.4 * random.standard_normal((SERIES * VARIANTS, DIM)))
    path = tmp_path_factory.mktemp("series") / "store"
    with StoreWriter(path) as writer:
        writer.register([tower(dim=DIM), tower("ear", modality="text", dim=3)])
        names = [f"{number // VARIANTS}-{number % VARIANTS}" for number in range(len(variants))]
        writer.append("image", [item(name) for name in names], {"eye": pooled(*variants)})
        writer.append("text", [item("which?")], {"ear": pooled([1.0, 0.0, 0.0])})
    labels = random.choice(["a", "b", "c", "d"], SERIES)

    def pairs(numbers, **extra):
        rows = [(number, variant) for number in numbers for variant in range(VARIANTS)]
        return Pairs(
            images=[f"{number}-{variant}" for number, variant in rows],
            texts=["which?"] * len(rows),
            targets=[str(labels[number]) for number, _ in rows],
            extras=[{key: str(number) for key in extra} for number, _ in rows],
            places=[f"p.jsonl:{row}" for row in range(len(rows))],
        )

    return Store.open(path), pairs


def auto(series, tmp_path, numbers, dev=None, **options):
    store, pairs = series
    return train(
        store, pairs(numbers), dev=None if dev is None else pairs(dev), run=tmp_path / "run", task="classification",
        model="auto", time_limit=3000, find_groups=False, options={"epochs": 2}, **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("given", [55, 11])  # 330 pairs: candidates are compared on them; 66: the other way round
def test_series_on_both_sides_of_a_split_are_noticed(series, tmp_path, given):
    run = auto(series, tmp_path, range(55), range(55, 55 + given))
    selection = run.results["selection"]
    assert selection["gap"]["beyond_chance"]
    assert selection["judged_on"] == f"{6 * given} given development pairs"
    assert selection["gap"]["checked"] > 70
    first = run_sentence(run).splitlines()[0]
    assert first.startswith("Two estimates differ by more than chance: ")
    figures = {row["name"]: row["metric"] for row in selection["candidates"] if "metric" in row}
    assert figures["kernel"] < 45  # a fourth is chance; cross-validation by image says 90 and more
    assert run.results["development"]["accuracy"] < 50


@pytest.mark.slow
def test_without_given_pairs_the_groups_must_be_named(series, tmp_path):
    store, pairs = series
    run = train(
        store, pairs(range(55), video=True), run=tmp_path / "run", task="classification", model="auto",
        time_limit=3000, options={"epochs": 2},
    )  # fmt: skip
    assert run_sentence(run).startswith("Chance: ")
    assert "pairs with the same 'video' belong together (55 groups)" in run.results["notes"][1]


def test_given_pairs_are_never_fitted_on(series):
    store, pairs = series
    for dev in (range(55, 110), range(55, 60)):
        data = prepare(
            store, pairs(range(55)), pairs(dev), task="classification", encoder=None, seed=0, dev_share=0.1,
            min_answer_count=1,
        )  # fmt: skip
        folds, _, _ = cv_splits(data, 0)
        given = set(range(len(data.train), len(data.train) + len(data.dev)))
        for fold in folds:
            assert not given & {*fold.train.tolist(), *fold.inner.tolist()}
            assert given == set((fold.held_out if len(dev) == 55 else fold.check).tolist())


def test_a_gap_by_hand():
    ones, half = torch.ones(40), torch.tensor([1.0, 0.0] * 20)
    clusters = torch.arange(40)
    gap = gap_between(ones, clusters, half, clusters)
    assert (gap.compared, gap.checked) == (100.0, 50.0)
    assert gap.error == pytest.approx(100 * (0.25 / 40) ** 0.5)
    assert gap.beyond_chance
    assert not gap_between(half, clusters, half, clusters).beyond_chance
    assert not gap_between(ones, clusters // 5, half, clusters // 5).beyond_chance  # eight clusters show nothing


def test_two_samples_of_the_same_kind_seldom_disagree():
    random = torch.Generator().manual_seed(7)
    clusters = torch.arange(300) // 3
    draws = [
        gap_between(*(one for _ in range(2) for one in ((torch.rand(300, generator=random) < 0.7).float(), clusters)))
        for _ in range(200)
    ]
    assert sum(gap.beyond_chance for gap in draws) <= 6
