"""MaxSkew and MinSkew: by hand, and resamples of the pool against an explicitly drawn list."""

import numpy as np
import pytest

import frevl as package
from frevl.data.pairs import read_pairs
from frevl.errors import InputError
from frevl.evaluation.fairness.queries import SkewDraws, evaluate_queries, read_queries, share_gaps, skews
from frevl.runs.scorer import Scorer


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


@pytest.mark.parametrize("line", ['{"image": "a.png", "text": "a dog"}', '["a dog", "a cat"]'])
def test_lines_of_pairs_are_no_queries(tmp_path, line):
    path = tmp_path / "queries.txt"
    path.write_text(f"a dog\n\n {line}\n")
    with pytest.raises(InputError, match=r"queries.txt:3: expected a query such as .*, found JSON: '[{\[]\"") as found:
        read_queries(path)
    assert str(found.value).endswith("; give a text file with one query per line")


@pytest.mark.slow
def test_the_interval_of_a_skew_holds_it_where_every_draw_is_farther_from_the_pool(made, tmp_path):
    """Groups by turns are evenly mixed in every search, but in no resample of the pool."""
    run = package.train(made.store, made.captions, run=tmp_path / "run", task="matching", model="dual")
    scorer = Scorer.open(run.path, store=made.store)
    pool = list(dict.fromkeys(made.captions.images))
    order = scorer.image_vectors(pool) @ scorer.text_vectors(["a red square"])[0]
    places = np.argsort(np.argsort(-order, kind="stable"), kind="stable")
    pairs = [
        {"image": image, "text": text, "group": "ab"[places[pool.index(image)] % 2]}
        for image, text in zip(made.captions.images, made.captions.texts, strict=True)
    ]
    found = evaluate_queries(scorer, read_pairs(pairs), ["a red square"], groups="group", k=20)
    assert found["metrics"]["share_gap"] == pytest.approx(0, abs=1e-9)
    for name, value in found["metrics"].items():
        low, high = found["ci95"][name]
        assert low <= value <= high
        assert low < high
