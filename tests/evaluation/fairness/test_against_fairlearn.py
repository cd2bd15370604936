"""Rates, gaps and equal opportunity equal those of fairlearn on 100 random tables."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from frevl.evaluation.fairness import rates
from frevl.evaluation.fairness.rates import Cells, rates_by_group
from frevl.evaluation.slices import group_rows


@pytest.mark.slow
def test_100_tables_as_fairlearn():
    from fairlearn import metrics as judge  # of the extra `test`

    for seed in range(100):
        compare(seed, judge)


@pytest.mark.slow
def test_groups_of_numbers_are_the_quarters_of_pandas_to_fairlearn():
    import pandas as pd
    from fairlearn import metrics as judge

    for seed in range(30):
        random = np.random.default_rng(seed)
        n = int(random.integers(60, 400))
        numbers = [random.normal(size=n), 1.7e9 + random.permutation(n), 1 + 1e-9 * random.permutation(n)][seed % 3]
        truth, said = random.integers(0, 2, n), random.integers(0, 2, n)
        rows = group_rows([{"number": float(one)} for one in numbers], "number")
        assert sorted(row for own in rows.values() for row in own) == list(range(n))
        names = {row: name for name, own in rows.items() for row in own}
        groups = [names[row] for row in range(n)]
        frame = judge.MetricFrame(
            metrics=accuracy_score,
            y_true=truth,
            y_pred=said,
            sensitive_features=pd.qcut(pd.Series(numbers), 4, labels=False),
        )
        ours = rates_by_group((truth == said).astype(float), groups)
        assert [ours[name] for name in rows] == pytest.approx(frame.by_group.tolist(), abs=1e-12)


def compare(seed, fairlearn):
    random = np.random.default_rng(seed)
    n, number = int(random.integers(40, 200)), int(random.integers(2, 6))
    truth, said = random.integers(0, 2, n), (random.random(n) < random.random()).astype(int)
    codes = random.integers(0, number, n)
    # Every group has an item of each kind: fairlearn's rate of nothing is 0, ours has no value.
    truth[: 2 * number], codes[: 2 * number] = np.arange(2 * number) // number, np.arange(2 * number) % number
    groups = [f"group {code}" for code in codes]
    judge = fairlearn.MetricFrame(
        metrics={"accuracy": accuracy_score, "rate": fairlearn.selection_rate},
        y_true=truth,
        y_pred=said,
        sensitive_features=groups,
    )
    hits = (truth == said).astype(float)
    for name, values in (("accuracy", hits), ("rate", said)):
        assert rates_by_group(values, groups) == pytest.approx(dict(judge.by_group[name]), abs=1e-12)
        cells = Cells(values, codes, [str(row) for row in range(n)], number)
        assert cells.gap().value == pytest.approx(judge.difference(method="between_groups")[name], abs=1e-12)
        assert cells.rates.min() == pytest.approx(judge.group_min()[name], abs=1e-12)
    expected = fairlearn.equal_opportunity_difference(truth, said, sensitive_features=groups)
    assert rates.equal_opportunity_difference(truth, said, groups) == pytest.approx(expected, abs=1e-12)
    of_true = np.where(truth == 1, codes, -1)
    assert Cells(said, of_true, groups, number).gap().value == pytest.approx(expected, abs=1e-12)
