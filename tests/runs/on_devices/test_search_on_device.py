"""Exact search among vectors on a device, which here is the processor."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from frevl.runs.search import on_device
from frevl.runs.search.distances import nearest_rows
from frevl.runs.search.on_device import VectorsOnDevice


@pytest.mark.parametrize("rows", [5, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize("queries", [1, 40])
def test_rows_and_products_are_those_of_a_full_sort(rows, queries):
    random = torch.Generator().manual_seed(rows)
    vectors = torch.randn(rows, 16, generator=random).half()
    asked = torch.randn(queries, 16, generator=random)
    found, products = VectorsOnDevice(vectors).nearest(asked, 10)
    expected = (asked @ vectors.float().t()).sort(dim=1, descending=True)
    assert found.shape == products.shape == (queries, min(10, rows))
    assert torch.equal(found, expected.indices[:, :10])
    torch.testing.assert_close(products, expected.values[:, :10])


def test_the_ten_best_may_all_lie_in_one_group():
    vectors = torch.zeros(4096, 4)
    vectors[2048:2058, 0] = torch.arange(10, 0, -1)
    found, products = VectorsOnDevice(vectors.half()).nearest(torch.eye(4)[:1], 10)
    assert found[0].tolist() == list(range(2048, 2058))
    assert products[0].tolist() == list(range(10, 0, -1))


class Stored:
    """What the search asks of the vectors of a store."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.scorer = SimpleNamespace(device="cpu")

    def __len__(self):
        return sum(len(block) for block in self.blocks)


def test_a_search_on_an_accelerator_finds_what_the_processor_finds(monkeypatch):
    monkeypatch.setattr(on_device, "is_accelerator", lambda _: True)
    random = np.random.default_rng(0)
    blocks = [random.standard_normal((rows, 8)).astype(np.float16) for rows in (700, 900)]
    stored, query = Stored(blocks), random.standard_normal(8).astype(np.float32)
    some, few = random.random(1600) < 0.5, np.arange(1600) < 3
    for allowed in (None, some, few):
        rows, products = on_device.nearest_of(stored, query, 5, allowed=allowed)
        expected = nearest_rows(blocks, query, 5, allowed=allowed)
        assert rows.tolist() == expected[0].tolist()
        np.testing.assert_allclose(products, expected[1], atol=1e-5)
    stored.blocks = [*blocks, (query * 9).astype(np.float16)[None]]
    assert on_device.nearest_of(stored, query, 1)[0].tolist() == [1600], "rows that are added later are found"
    assert len(on_device.nearest_of(Stored([]), query, 3)[0]) == 0


@pytest.mark.parametrize(
    ("place", "name", "lacking"),
    [(torch, "empty", "for 4 vectors"), (VectorsOnDevice, "scores", "to search 4 vectors")],
)
def test_what_does_not_fit_is_searched_by_the_processor(monkeypatch, caplog, place, name, lacking):
    """Neither vectors too large for the device, nor a search too large beside them, ends the command."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(on_device, "is_accelerator", lambda _: True)
    monkeypatch.setattr(place, name, full)
    stored = Stored([np.eye(4, dtype=np.float16)])
    for _ in range(2):
        assert on_device.nearest_of(stored, np.eye(4, dtype=np.float32)[2], 1)[0].tolist() == [2]
    assert caplog.messages == [f"frevl: cpu has no room {lacking}; searching on the CPU."], "said once"
