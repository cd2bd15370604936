"""The two-groups model, on scores with known truth."""

import numpy as np
import pytest

from frevl.diagnosis.data_quality.mixture import _isotonic, fit_mixture


def drawn_lines(n, share, distance=3.0, seed=0):
    """Return scores of lines, of drawn wrong lines, and which lines are wrong."""
    random = np.random.default_rng(seed)
    wrong = random.random(n) < share
    return random.standard_normal(n) + distance * ~wrong, random.standard_normal(2 * n), wrong


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_share_of_wrong_lines_and_every_probability_are_right(share):
    given, drawn, _ = drawn_lines(4000, share)
    found = fit_mixture(given, drawn, np.arange(4000), np.arange(8000) // 2)
    assert found.ci95[0] <= share <= found.ci95[1]
    assert found.ci95[1] - found.ci95[0] < 0.1
    assert found.right.min() >= 0
    assert found.right.max() <= 1
    # Bayes' rule with the densities that were drawn from.
    exact = (1 - share) * np.exp(-((given - 3) ** 2) / 2)
    exact = exact / (exact + share * np.exp(-(given**2) / 2))
    assert np.abs(found.right - exact).mean() < 0.02
    assert abs(found.right.mean() - (1 - share)) < 0.03


def test_the_upper_end_holds_where_the_wrong_texts_are_known_to_the_model():
    random = np.random.default_rng(0)
    wrong = random.random(5000) < 0.3
    given = random.standard_normal(5000) + 5.0 * ~wrong + 0.25 * wrong  # their texts score a little higher
    drawn, learnt = random.standard_normal(10_000), random.standard_normal(5000) + 0.4
    groups = np.arange(5000), np.arange(10_000) // 2
    before = fit_mixture(given, drawn, *groups)
    found = fit_mixture(given, drawn, *groups, (learnt, np.arange(5000)))
    assert before.ci95[1] < 0.3 < found.ci95[1] < 0.5
    assert (found.wrong_share, found.ci95[0]) == (before.wrong_share, before.ci95[0])
    assert found.right.tolist() == before.right.tolist()
    none = np.zeros(0), np.zeros(0, np.int64)
    assert fit_mixture(given, drawn, *groups, none).ci95 == before.ci95


def test_a_better_score_is_never_less_probable():
    given, drawn, _ = drawn_lines(300, 0.2)
    found = fit_mixture(given, drawn, np.arange(300), np.arange(600))
    order = np.argsort(given)
    assert (np.diff(found.right[order]) > 0).all()


def test_lines_that_score_like_wrong_ones_are_all_wrong():
    given, drawn, _ = drawn_lines(2000, 1.0)
    found = fit_mixture(given, drawn, np.arange(2000), np.arange(4000))
    assert found.wrong_share > 0.9
    assert (found.right < 0.5).mean() > 0.8


def test_no_wrong_line_among_clear_ones():
    given, drawn, _ = drawn_lines(2000, 0.0, distance=6)
    found = fit_mixture(given, drawn, np.arange(2000), np.arange(4000))
    assert found.wrong_share < 0.002
    assert (found.right > 0.5).all()


def test_lines_of_one_group_widen_the_interval():
    given, drawn, _ = drawn_lines(400, 0.2)
    alone = fit_mixture(given, drawn, np.arange(400), np.arange(800))
    five = fit_mixture(np.repeat(given, 5), drawn, np.repeat(np.arange(400), 5), np.arange(800))
    assert five.wrong_share == pytest.approx(alone.wrong_share)
    assert five.standard_error == pytest.approx(alone.standard_error, rel=0.01)


def test_isotonic_by_hand():
    places, values = _isotonic(np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 0, 1]), np.array([1.0, 1, 1, 1]))
    assert places.tolist() == [1, 2.5, 4]
    assert values.tolist() == [0, 0.5, 1]


def test_no_line_in_the_tail_is_no_proof_that_there_are_none():
    """None of 500 lines below what a fifth of the random ones reach: 3 % of them may be wrong for all that."""
    random = np.random.default_rng(0)
    found = fit_mixture(10 + random.random(500), random.standard_normal(1000), np.arange(500), np.arange(1000) // 2)
    assert found.wrong_share == 0.0
    assert found.ci95[1] >= 3 / 500 / 0.5


def test_few_wrong_lines_are_flagged_although_the_share_may_be_read_too_low():
    """10 of 300 lines are wrong: by the share as it is, some draws have none that is more likely wrong than right."""
    found = {0.0: [], 1.0: []}
    for seed in range(30):
        random = np.random.default_rng(seed)
        wrong, groups = np.arange(300) < 10, np.arange(300)
        given, drawn = np.where(wrong, 0.0, 4.0) + random.standard_normal(300), random.standard_normal(600)
        for added, hits in found.items():
            fitted = fit_mixture(given, drawn, groups, np.arange(600) % 300, errors_added=added)
            hits.append(((fitted.right < 0.5) & wrong).sum())
            assert ((fitted.right < 0.5) & ~wrong).sum() <= 3
    assert np.mean(found[1.0]) > 7 > 6 > np.mean(found[0.0])
