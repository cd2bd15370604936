"""Scoring, search and extraction on a simulated card: the number of waits does not grow with the number of batches."""

import numpy as np
import pytest
import torch
from torch import nn

from fake_card import CARD, card
from frevl.devices import is_accelerator
from frevl.encoders.hub.torch_copy import TorchCopy
from frevl.models.fusion import Fusion
from frevl.models.retrieval.two_tower import TwoTower
from frevl.runs import batches
from frevl.runs.batches import EmbeddedPairs, grid_scorer, logits_of, placed, vectors_of
from frevl.runs.search.on_device import VectorsOnDevice

PAIRS = 40


def embedded(tokens):
    """Return 40 pairs of 10 images, with this many tokens, and 7 texts."""
    images, texts = torch.randn(10, tokens, 16).half(), torch.randn(7, 1, 24).half()
    rows = torch.arange(PAIRS)
    masks = (torch.ones(one.shape[:2], dtype=torch.bool) for one in (images, texts))
    return EmbeddedPairs(images, next(masks), texts, next(masks), rows % 10, rows % 7)


@pytest.fixture(scope="module")
def fusion():
    return Fusion(image_dim=16, text_dim=24, outputs=3, width=32, layers=2, heads=2, ffn_width=64, head_width=32)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("there", [True, False])
def test_scores_are_copied_back_once(tokens, there, fusion, monkeypatch):
    with card() as waits:
        if not there:  # gathered on the processor, and copied batch by batch
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
        network, pairs, seen = placed(fusion, CARD), embedded(tokens), []
        for size in (PAIRS, 4):
            before = waits.back, waits.unpinned
            logits = logits_of(network, pairs, size, CARD)
            seen.append((waits.back - before[0], waits.unpinned - before[1]))
    assert (logits.shape, logits.device.type, logits.dtype) == ((PAIRS, 3), "cpu", torch.float32)
    assert waits.products > 0
    assert seen == [(1, 4 if there else 0)] * 2


@pytest.mark.slow
def test_more_scores_than_are_kept_on_a_card_are_copied_in_parts(fusion, monkeypatch):
    monkeypatch.setattr(batches, "_MOST_THERE", 3 * 7)
    with card() as waits:
        network, before = placed(fusion, CARD), waits.back
        logits = logits_of(network, embedded(1), 4, CARD)
    assert (logits.shape, waits.back - before) == ((PAIRS, 3), 5)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_grid_stays_on_the_card(tokens, fusion):
    with card() as waits, torch.inference_mode():
        network, before = placed(fusion, CARD), (waits.back, waits.unpinned)
        scores = grid_scorer(network, embedded(tokens), 4, CARD)(torch.arange(10), torch.arange(10) % 7)
        assert (waits.back, waits.unpinned) == before
    assert scores.device == torch.device(CARD)


def test_vectors_of_items_are_copied_back_once():
    towers = TwoTower(image_dim=16, text_dim=24, hidden=8, width=6)
    items, mask = np.ones((30, 5, 16), np.float16), np.ones((30, 5), bool)
    with card() as waits:
        network, before = placed(towers, CARD), (waits.back, waits.unpinned)
        found = vectors_of(network.image_vectors, items, mask, 4, CARD)
        assert found.shape == (30, 6)
        assert (waits.back, waits.unpinned) == (before[0] + 1, before[1])


def test_a_search_reads_no_number_from_the_card():
    with card() as waits, torch.inference_mode():
        vectors = torch.zeros(5000, 8, dtype=torch.float16, device=CARD)
        rows, products = VectorsOnDevice(vectors).nearest(torch.zeros(70, 8, device=CARD), 10)
        assert (waits.back, waits.unpinned, waits.products) == (0, 0, 3)
    assert (rows.shape, products.shape, products.dtype) == ((70, 10), (70, 10), torch.float32)


def test_an_extraction_begins_runs_without_waiting():
    with card() as waits:
        network, before = TorchCopy(nn.Linear(8, 4), CARD), (waits.back, waits.unpinned)
        runs = [network.start([np.zeros(8, np.float32)] * 3) for _ in range(5)]
        assert (waits.back, waits.unpinned) == before
        assert [run().shape for run in runs] == [(3, 4)] * 5
    assert waits.products == 5


def test_waits_are_counted():
    with card() as waits:
        there = torch.zeros(3, device=CARD)
        assert is_accelerator(there.device)
        for wait in (there.cpu, there.tolist, there.sum().item, lambda: bool(there.any())):
            wait()
        torch.zeros(3).to(CARD)
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.zeros(3)
    assert (waits.back, waits.unpinned) == (4, 1)
