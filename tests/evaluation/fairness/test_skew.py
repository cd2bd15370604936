"""MaxSkew and MinSkew: by hand, and resamples of the pool against an explicitly drawn list."""

import numpy as np
import pytest

from frevl.evaluation.fairness.queries import SkewDraws, share_gaps, skews


def test_skew_by_hand():
    top, pool = np.array([[0.75, 0.25]]), np.array([0.5, 0.5])
    assert skews(top, pool, 4).tolist() == [pytest.approx([np.log(1.5), np.log(0.5)])]
    assert share_gaps(top, pool).tolist() == [0.25]
    # Nobody of a group among four counts as half an image: ln(0.125 / 0.5).
    assert skews(np.array([[1.0, 0.0]]), pool, 4)[0, 1] == pytest.approx(np.log(0.25))


def test_shares_of_the_pool_as_it_is():
    order = np.array([[2, 0, 1, 3], [3, 1, 0, 2]])
    draws = SkewDraws(order, np.array([0, 1, 0, -1]), np.arange(4), 2, 2)
    top, pool = draws.shares()
    assert pool.tolist() == [0.5, 0.25]  # the fourth is of a group that is left out, and still in the pool
    assert top.tolist() == [[1.0, 0.0], [0.0, 0.5]]


@pytest.mark.parametrize("places", [31, 62, 4_194_304])
def test_a_draw_is_the_list_of_the_drawn_pictures(monkeypatch, places):
    monkeypatch.setattr("frevl.evaluation.fairness.queries._PLACES", places)  # one query, two, or all at a time
    random = np.random.default_rng(3)
    pictures, queries, k = 31, 5, 7
    scores, groups = random.random((queries, pictures)), random.integers(0, 3, pictures)
    order = np.argsort(-scores, axis=1)
    draws = SkewDraws(order, groups, np.arange(pictures), 3, k)
    weights = np.bincount(random.integers(0, pictures, pictures), minlength=pictures).astype(float)
    top, pool = draws.shares(weights)
    drawn = [picture for picture in range(pictures) for _ in range(int(weights[picture]))]
    for query in range(queries):
        best = sorted(drawn, key=lambda picture: -scores[query, picture])[:k]
        assert top[query] == pytest.approx([np.mean([groups[one] == g for one in best]) for g in range(3)])
    assert pool == pytest.approx([np.mean([groups[one] == g for one in drawn]) for g in range(3)])
    assert all(np.allclose(draws.shares(np.ones(pictures))[part], draws.shares()[part]) for part in (0, 1))
