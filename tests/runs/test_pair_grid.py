"""Ranks in both directions, with and without reranking, against slow implementations."""

import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

import frevl.evaluation.retrieval_metrics
import frevl.runs.pair_grid
from frevl.errors import InputError, UsageError
from frevl.evaluation.metrics import rank_of_best_match
from frevl.evaluation.retrieval_metrics import evaluate_retrieval, matches_of, reranked, retrieval_ranks
from frevl.runs.pair_grid import ScoreRows, dot_products, dot_rows, full_grid
from frevl.runs.scorer import Scorer
from frevl.training.training import train


def rows_of(grid, step, across=None):
    """The rows of a grid, made again whenever they are gone through."""
    across = across or grid.shape[1]
    return ScoreRows(grid.shape, step, across, lambda start, end, first, last: grid[start:end, first:last].copy())


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


@pytest.mark.slow
@pytest.mark.parametrize(("step", "across", "block"), [(1, 23, 7), (4, 5, 2_000), (3, 1, 7), (100, 100, 16_777_216)])
@pytest.mark.parametrize("depth", [1, 5, 11, 40])
def test_ranks_equal_the_slow_twins(monkeypatch, step, across, block, depth):
    monkeypatch.setattr(frevl.evaluation.retrieval_metrics, "_BLOCK", block)
    for seed in range(5):
        first, final, of_image, of_text = made(seed)
        plain = retrieval_ranks(rows_of(first, step, across), of_image, of_text)
        assert plain.i2t.tolist() == slow_ranks(first, of_image)
        assert plain.t2i.tolist() == slow_ranks(first.T, of_text)

        def score(i, t, final=final):
            return final[i, t]

        again = reranked(rows_of(first, step, across), of_image, of_text, depth=depth, score=score, before=plain)
        assert again.i2t.tolist() == slow_reranked(first, of_image, depth, final)
        assert again.t2i.tolist() == slow_reranked(first.T, of_text, depth, final.T)


def test_a_right_item_that_ties_at_the_edge_of_the_candidates_is_not_one():
    first = np.array([[3.0, 1.0, 3.0]], np.float32)
    final = np.array([[9.0, 0.0, 0.0]], np.float32)
    again = reranked(ScoreRows.of_array(first), [{0}], [{0}, {0}, {0}], depth=1, score=lambda i, t: final[i, t])
    assert again.i2t.tolist() == [1]


def test_reranking_by_the_first_stage_changes_nothing():
    first, _, of_image, of_text = made(3)
    rows = rows_of(first, 3)
    again = reranked(rows, of_image, of_text, depth=4, score=lambda i, t: first[i, t])
    plain = retrieval_ranks(rows, of_image, of_text)
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


def test_a_score_that_is_no_number_is_the_lowest():
    first, _, of_image, of_text = made(1)
    first[first == 3] = np.nan
    first[4] = np.nan  # so the best right score of an image is the lowest that there is
    first[:, 7] = np.nan
    found = retrieval_ranks(rows_of(first, 2, 6), of_image, of_text)
    assert found.i2t.tolist() == rank_of_best_match([first], of_image).tolist()
    assert found.t2i.tolist() == rank_of_best_match([np.ascontiguousarray(first.T)], of_text).tolist()
    reranked(rows_of(first, 2), of_image, of_text, depth=5, score=lambda i, t: first[i, t])  # ends


def test_an_item_without_a_right_partner_is_refused_before_anything_is_scored():
    rows = ScoreRows((2, 2), 1, 1, lambda *_: pytest.fail("scored"))
    with pytest.raises(UsageError, match="Text 1 has no matching image"):
        retrieval_ranks(rows, [{0}, {0}], [{0, 1}, set()])
    with pytest.raises(UsageError, match="Image 1 has no matching text"):
        retrieval_ranks(rows, [{0, 1}, set()], [{0}, {0}])


def test_every_score_is_computed_once_and_again_only_in_tiles_with_a_right_pair():
    grid = np.random.default_rng(4).random((300, 600), np.float32)
    of_image, of_text = matches_of([row // 2 for row in range(600)], range(600), 300, 600)
    computed = []

    def of(start, end, first, last):
        computed.append((start, first))
        return grid[start:end, first:last]

    found = retrieval_ranks(ScoreRows(grid.shape, 270, 100, of), of_image, of_text)
    assert computed == [(0, a) for a in range(0, 600, 100)] + [(270, 500)] + [
        (b, a) for b in (0, 270) for a in range(0, 600, 100)
    ]
    # 270 rows are more than a byte counts: a low best score has all of them ahead.
    np.testing.assert_array_equal(found.i2t, rank_of_best_match([grid], of_image))
    np.testing.assert_array_equal(found.t2i, rank_of_best_match([np.ascontiguousarray(grid.T)], of_text))
    assert found.t2i.max() > 255


def test_blocks_of_a_grid_have_its_scores_to_the_last_digit(monkeypatch):
    random = np.random.default_rng(2)
    images, texts = (random.standard_normal((n, 37)).astype(np.float32) for n in (613, 701))
    for limit, tile in ((1, 1_048_576), (5_000_000, 1_048_576), (1, 70_000)):
        monkeypatch.setattr(frevl.runs.pair_grid, "_IN_MEMORY", limit)
        monkeypatch.setattr(frevl.runs.pair_grid, "_PRODUCTS", tile)
        rows = dot_rows(images, texts)
        np.testing.assert_array_equal(np.concatenate(list(rows)), dot_products(images, texts))
        of_image, of_text = matches_of(range(613), range(613), 613, 701)
        of_text[613:] = [{0}] * 88
        of_image[0] |= set(range(613, 701))
        grid = dot_products(images, texts)
        found = retrieval_ranks(rows, of_image, of_text)
        np.testing.assert_array_equal(found.i2t, rank_of_best_match([grid], of_image))
        np.testing.assert_array_equal(found.t2i, rank_of_best_match([np.ascontiguousarray(grid.T)], of_text))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "dual"])
def test_an_evaluation_in_blocks_equals_that_of_the_grid(made_twice, tmp_path, monkeypatch, model):
    options = {"layers": 1, "epochs": 1} if model == "tiny" else {"epochs": 1}
    run = train(
        made_twice.store, made_twice.captions, run=tmp_path / "r", task="matching", model=model, options=options,
        dev=made_twice.captions,
    )  # fmt: skip
    scorer = Scorer(run, made_twice.store)
    whole, sentence = evaluate_retrieval(scorer, made_twice.captions)
    monkeypatch.setattr(frevl.runs.pair_grid, "_IN_MEMORY", 1)
    monkeypatch.setattr(frevl.runs.pair_grid, "_empty_grid", None)  # nobody asks for the whole
    again, same = evaluate_retrieval(scorer, made_twice.captions)
    assert (sentence, list(whole)) == (same, list(again))
    for name, measure in whole.items():
        if measure.values is not None:
            np.testing.assert_array_equal(measure.values, again[name].values)


@pytest.mark.slow
def test_ranks_of_many_items_take_little_memory():
    """5,000 x 25,000 scores are 500 MB; the blocks of them are less than a tenth."""
    program = """if True:
        import re
        from pathlib import Path
        import numpy as np
        from frevl.evaluation.retrieval_metrics import matches_of, retrieval_ranks
        from frevl.runs.pair_grid import dot_rows

        def peak():  # of this program alone: ru_maxrss also remembers its parent
            return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

        vectors = np.random.default_rng(0).standard_normal((25_000, 2)).astype(np.float32)
        matches = matches_of(np.arange(25_000) // 5, range(25_000), 5_000, 25_000)
        before = peak()
        ranks = retrieval_ranks(dot_rows(vectors[:5_000], vectors).kept(), *matches)
        assert len(ranks.t2i) == 25_000
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 250


def test_a_grid_for_which_the_disk_has_no_room_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(frevl.runs.pair_grid, "_IN_MEMORY", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(InputError) as raised:
            dot_products(np.zeros((1_000, 1), np.float32), np.zeros((1_000, 1), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert str(raised.value) == (
        f"{tmp_path}: the scores of 1,000 images with 1,000 texts need 4 MB there, which is not available "
        f"({os.strerror(27)}); free some space, set TMPDIR to another folder, or score fewer"
    )
    assert list(tmp_path.iterdir()) == []
