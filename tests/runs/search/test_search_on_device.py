"""Exact search among vectors on a device, which here is the processor."""

import pytest
import torch

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
