"""Cohen's kappa against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from frevl.evaluation.metrics import cohens_kappa, observed_agreement


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("items", [1, 5, 211])
def test_kappa_is_scikit_learns(classes, items):
    rng = np.random.default_rng(classes * 1000 + items)
    for noise in (0.0, 0.3, 1.0):
        first = rng.integers(0, classes, items)
        second = np.where(rng.random(items) < noise, rng.integers(0, classes, items), first)
        one, other = [f"c{c}" for c in first], [f"c{c}" for c in second]
        if len({*one, *other}) == 1:
            assert cohens_kappa(one, other) is None
        else:
            assert cohens_kappa(one, other) == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
        assert observed_agreement(one, other) == pytest.approx(np.mean(first == second))


def test_kappa_by_hand():
    # Both say yes to half of the items, and agree on three of four: expected 1/2, observed 3/4.
    assert cohens_kappa(["y", "y", "n", "n"], ["y", "n", "n", "y"]) == 0.0
    assert cohens_kappa(["y", "n"], ["n", "y"]) == -1.0
    assert cohens_kappa(["y", "y"], ["y", "y"]) is None


def test_names_that_differ_in_a_blank_or_a_zero_are_different_classes():
    assert observed_agreement(["a", "a\0"], ["a\0", "a"]) == 0.0


@pytest.mark.parametrize(("first", "second"), [([], []), (["a"], [])])
def test_nothing_to_compare(first, second):
    with pytest.raises(ValueError, match="expected the same items"):
        cohens_kappa(first, second)
