"""Training on items in a file: the same numbers, in an order of blocks, and nothing left over."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from frevl.errors import TrainingError
from frevl.store.reader import Store
from frevl.training import mapped_items
from frevl.training.mapped_items import deal_all, deal_in_blocks, fit_in_memory, map_items, shuffled_in_blocks
from frevl.training.prepare import prepare
from frevl.training.training import train


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nothing_fits(monkeypatch):
    monkeypatch.setattr("frevl.training.mapped_items._MOST_IN_MEMORY", 0)
    monkeypatch.setattr("frevl.training.mapped_items._AT_ONCE", 37)


def prepared(world, task="classification"):
    pairs = world.train_file if task == "classification" else world.captions_file
    return prepare(world.store, pairs, None, task=task, encoder=None, seed=0, dev_share=0.2, min_answer_count=1)


@pytest.mark.parametrize("task", ["classification", "matching"])
def test_mapped_items_are_those_of_the_store(made_twice, task, request):
    whole = prepared(made_twice, task)
    request.getfixturevalue("nothing_fits")
    mapped = prepared(made_twice, task)
    assert whole.train.pairs.files is None
    assert mapped.train.pairs.files is not None
    for own, other in ((mapped.train.pairs, whole.train.pairs), (mapped.dev.pairs, whole.dev.pairs)):
        for name in ("images", "image_mask", "texts", "text_mask", "image_rows", "text_rows"):
            assert torch.equal(getattr(own, name), getattr(other, name)), name
        own.release()
        assert torch.equal(own.images, other.images), "what was let go is read again"
        for a, b in zip(own.batches(7), other.batches(7), strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_fits")
def test_a_training_from_a_file_leaves_nothing_behind(made, tmp_path):
    runs = [
        train(
            made.store, made.train_file, run=tmp_path / name, task="classification", model="tiny", find_groups=False,
            options={"epochs": 2, "batch_size": 64},
        )
        for name in ("a", "b")
    ]  # fmt: skip
    assert runs[0].results["development"] == runs[1].results["development"]
    assert list((tmp_path / "cache" / "training").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("frevl-ahead")]


def test_other_models_say_the_same_from_a_file(made, tmp_path, monkeypatch):
    found = []
    for number, most in enumerate((1 << 40, 0)):
        monkeypatch.setattr("frevl.training.mapped_items._MOST_IN_MEMORY", most)
        run = train(
            made.store, made.train_file, run=tmp_path / str(number), task="classification", model="linear",
        )  # fmt: skip
        found.append(run.results["development"])
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [1, 7, 1024, 1025, 5000, 70_001])
def test_every_row_is_dealt_once_and_from_few_blocks_at_a_time(count):
    rows = shuffled_in_blocks(count, torch.Generator().manual_seed(0))
    assert torch.equal(rows.sort().values, torch.arange(count))
    assert torch.equal(rows, shuffled_in_blocks(count, torch.Generator().manual_seed(0)))
    if count > 1:
        assert not torch.equal(rows, shuffled_in_blocks(count, torch.Generator().manual_seed(1)))
    group = mapped_items._BLOCK * mapped_items._BLOCKS
    for start in range(0, count, group):
        blocks = torch.unique(rows[start : start + group] // mapped_items._BLOCK)
        assert len(blocks) <= mapped_items._BLOCKS


def test_blocks_come_in_any_order_and_their_rows_are_mixed(monkeypatch):
    monkeypatch.setattr(mapped_items, "_BLOCK", 10)
    monkeypatch.setattr(mapped_items, "_BLOCKS", 5)
    rows = shuffled_in_blocks(1000, torch.Generator().manual_seed(0))
    first = torch.unique(rows[:50] // 10)
    assert len(first) == 5
    assert first.tolist() != list(range(5))
    assert len(torch.unique(rows[:10] // 10)) > 2
    mean = np.mean([rows[start : start + 50].float().mean() for start in range(0, 1000, 50)])
    assert mean == pytest.approx(499.5)


def test_pages_are_read_before_they_are_needed_and_let_go_afterwards(monkeypatch):
    monkeypatch.setattr(mapped_items, "_BLOCK", 10)
    monkeypatch.setattr(mapped_items, "_BLOCKS", 2)
    done = []

    class Pairs:
        def touch(self, rows):
            done.append(set(rows.tolist()))

        def release(self):
            done.append("let go")

    used = []
    for rows in deal_in_blocks(Pairs())(95, 12, torch.Generator().manual_seed(0)):
        read = set().union(*(one for one in done if one != "let go"))
        assert set(rows.tolist()) <= read
        used += rows.tolist()
    assert sorted(used) == list(range(95))
    assert done[-1] == "let go"
    assert max(len(one) for one in done if one != "let go") == 20
    every = list(deal_all(95, 12, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat(every), torch.randperm(95, generator=torch.Generator().manual_seed(0)))


def test_tokens_stay_in_memory(made_tokens, nothing_fits):
    towers = made_tokens.store.select_towers("image")
    assert not all(tower.pooled for tower in towers)
    assert fit_in_memory([(10**9, towers)])


def test_a_mapped_file_is_no_memory_of_the_process_alone(made, tmp_path, monkeypatch):
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path))
    mapped = map_items(made.store, "image", made.store.image_ids[:3], made.store.select_towers("image"))
    mapped.values[1, 0, 0] = 7.0
    mapped.release()  # which throws the pages of a private copy away
    assert mapped.values[1, 0, 0] == 7.0


def test_embeddings_take_an_eighth_of_what_the_process_may_use(made, monkeypatch):
    towers = made.store.select_towers("image")
    size = 1_000 * sum(tower.dim * np.dtype(tower.identity["dtype"]).itemsize for tower in towers)
    for limit, fits in ((8 * size, True), (8 * size - 1, False), (float("inf"), True)):
        monkeypatch.setattr("frevl.training.mapped_items.memory_limit", lambda limit=limit: limit)
        assert fit_in_memory([(1_000, towers)]) is fits


def test_a_full_disk_is_said_in_a_sentence(made, monkeypatch, tmp_path, nothing_fits):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(
        TrainingError, match=r"training: the embeddings of this .* \(No space left on device\); free some space"
    ):
        prepared(made)


@pytest.mark.parametrize("width", [3, 700, 5000])
def test_touching_takes_rows_of_any_width(made, monkeypatch, width):
    values = np.arange(4 * width, dtype=np.float16).reshape(4, 1, width)

    towers = [SimpleNamespace(identity={"dtype": "float16"})]
    monkeypatch.setattr(Store, "read", lambda *_: (values, np.ones((4, 1), bool)))
    mapped = map_items(made.store, "image", list("abcd"), towers)
    mapped.touch(torch.tensor([3, 0, 3]))
    assert torch.equal(mapped.values, torch.from_numpy(values))
