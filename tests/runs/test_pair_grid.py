"""Ranks in both directions, with and without reranking, against slow twins."""

import numpy as np
import pytest

import frevl.evaluation.retrieval_metrics
import frevl.runs.pair_grid
from frevl.evaluation.retrieval_metrics import matches_of, reranked, retrieval_ranks
from frevl.runs.pair_grid import dot_products, full_grid


def slow_ranks(scores, positives):
    ranks = []
    for row, right in zip(scores, positives, strict=True):
        best = max(row[i] for i in right)
        ranks.append(sum(value >= best for i, value in enumerate(row) if i not in right))
    return ranks


def slow_reranked(first, positives, depth, final):
    """Sort with wrong items before right ones on ties, cut, sort the candidates again."""
    ranks = []
    for query, (row, right) in enumerate(zip(first, positives, strict=True)):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i in right))
        head = sorted(order[:depth], key=lambda i: (-final[query][i], i in right))
        ranks.append(next(place for place, i in enumerate(head + order[depth:]) if i in right))
    return ranks


def made(seed, images=11, texts=23):
    random = np.random.default_rng(seed)
    owners = [*range(images), *random.integers(images, size=texts - images)]
    first = random.integers(0, 6, (images, texts)).astype(np.float32)  # few values: many ties
    final = random.integers(0, 6, (images, texts)).astype(np.float32)
    return first, final, *matches_of(owners, range(texts), images, texts)


def test_matches_by_hand():
    of_image, of_text = matches_of([0, 0, 1], [1, 0, 1], 2, 2)
    assert of_image == [{0, 1}, {1}]
    assert of_text == [{0}, {0, 1}]


@pytest.mark.parametrize("block", [7, 16_777_216])
@pytest.mark.parametrize("depth", [1, 5, 11, 40])
def test_ranks_equal_the_slow_twins(monkeypatch, block, depth):
    monkeypatch.setattr(frevl.evaluation.retrieval_metrics, "_BLOCK", block)
    for seed in range(5):
        first, final, of_image, of_text = made(seed)
        plain = retrieval_ranks(first, of_image, of_text)
        assert plain.i2t.tolist() == slow_ranks(first, of_image)
        assert plain.t2i.tolist() == slow_ranks(first.T, of_text)
        # Which of two equal wrong items is the last candidate is not defined.
        first = np.random.default_rng(seed).permutation(first.size).reshape(first.shape).astype(np.float32)
        again = reranked(first, of_image, of_text, depth=depth, score=lambda i, t, final=final: final[i, t])
        assert again.i2t.tolist() == slow_reranked(first, of_image, depth, final)
        assert again.t2i.tolist() == slow_reranked(first.T, of_text, depth, final.T)


def test_a_right_item_that_ties_at_the_edge_of_the_candidates_is_not_one():
    first = np.array([[3.0, 1.0, 3.0]], np.float32)
    final = np.array([[9.0, 0.0, 0.0]], np.float32)
    again = reranked(first, [{0}], [{0}, {0}, {0}], depth=1, score=lambda i, t: final[i, t])
    assert again.i2t.tolist() == [1]


def test_reranking_by_the_first_stage_changes_nothing():
    first, _, of_image, of_text = made(3)
    again = reranked(first, of_image, of_text, depth=4, score=lambda i, t: first[i, t])
    plain = retrieval_ranks(first, of_image, of_text)
    assert again.i2t.tolist() == plain.i2t.tolist()
    assert again.t2i.tolist() == plain.t2i.tolist()


@pytest.mark.parametrize("limit", [1, 67_108_864])
def test_grids_in_memory_and_on_disk_are_equal(monkeypatch, limit):
    monkeypatch.setattr(frevl.runs.pair_grid, "_IN_MEMORY", limit)
    monkeypatch.setattr(frevl.runs.pair_grid, "_PAIRS", 5)
    grid = full_grid(3, 7, lambda rows, columns: (10 * rows + columns).astype(np.float32))
    assert isinstance(grid, np.memmap) == (limit == 1)
    assert grid.tolist() == [[10.0 * row + column for column in range(7)] for row in range(3)]
    vectors = np.eye(3, dtype=np.float32)
    assert dot_products(2 * vectors, vectors).tolist() == (2 * vectors).tolist()
