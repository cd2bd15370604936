"""Exact nearest neighbours against a slow implementation, and the index against exact search."""

import numpy as np
import pytest

import frevl.runs.search.distances
from frevl.runs.search.distances import nearest_rows


def test_by_hand():
    rows = np.array([[1, 0], [0, 1], [0.5, 0.5], [0, 1], [-1, 0]], np.float16)
    found, similarities = nearest_rows([rows[:2], rows[2:]], np.array([0.25, 1.0], np.float32), 4)
    assert found.tolist() == [1, 3, 2, 0]
    assert similarities.tolist() == [1.0, 1.0, 0.625, 0.25]


def slow(rows, query, k, allowed):
    """Compare one by one in float64; the best first, ties by number."""
    scored = [
        (-sum(float(a) * float(b) for a, b in zip(row, query, strict=True)), number)
        for number, row in enumerate(rows)
        if allowed is None or allowed[number]
    ]
    return [number for _, number in sorted(scored)[:k]]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("share", [None, 0.9, 0.05, 0.0])
def test_against_one_by_one(monkeypatch, threads, share):
    monkeypatch.setattr(frevl.runs.search.distances, "_PIECE_ROWS", 89)
    monkeypatch.setattr(frevl.runs.search.distances, "_MORE", 5)
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((499, 13))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    allowed = None if share is None else rng.random(499) < share
    blocks = [rows[:211], rows[211:223], rows[223:]]
    for k in (1, 7, 97, 1000):
        query = rng.standard_normal(13).astype(np.float32)
        query /= np.linalg.norm(query)
        found, similarities = nearest_rows(blocks, query, k, allowed=allowed, threads=threads)
        assert found.tolist() == slow(rows, query, k, allowed)
        assert np.allclose(similarities, rows[found].astype(np.float64) @ query, atol=1e-6)


def test_the_query_is_not_rounded_where_it_matters():
    # Rounded to float16 both rows would be equally near.
    query = np.array([0.70700, 0.70721], np.float32)
    rows = np.array([[1, 0], [0, 1]], np.float16)
    assert query[0].astype(np.float16) == query[1].astype(np.float16)
    assert nearest_rows([rows], query, 1)[0].tolist() == [1]


def test_nothing_to_find():
    rows, similarities = nearest_rows([], np.ones(3, np.float32), 5)
    assert (len(rows), len(similarities)) == (0, 0)
