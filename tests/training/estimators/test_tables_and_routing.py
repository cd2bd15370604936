"""Estimators take tables of other libraries, and scikit-learn brings them the groups and weights of their own rows."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn import config_context
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from frevl.estimators import EmbeddingClassifier, FusionClassifier

N, DIM = 60, 5
ESTIMATORS = [EmbeddingClassifier(method="means"), FusionClassifier(model="linear")]


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    y = np.arange(N) % 3
    x = (2 * np.eye(DIM)[y] + random.standard_normal((N, DIM))).astype(np.float32)
    return x, y, np.arange(N) // 2, random.integers(1, 4, N).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("kind", ["pandas", "pandas on Arrow", "Arrow"])
def test_tables_and_columns_are_arrays(estimator, kind, rows):
    """Arrow's tables offer columns by the interchange protocol, as polars does."""
    x, y, groups, weights = rows
    labels = np.array(["cat", "dog", "é"])[y]
    names = [f"d{number}" for number in range(DIM)]
    if kind == "Arrow":
        table = pa.table({name: x[:, number] for number, name in enumerate(names)})
        given = [pa.array(one) for one in (labels, groups, weights)]
    else:
        table = pd.DataFrame(x, columns=names)
        given = [pd.Series(one) for one in (labels, groups, weights)]
        if kind == "pandas on Arrow":
            table, given = (
                table.astype("float32[pyarrow]"),
                [one.convert_dtypes(dtype_backend="pyarrow") for one in given],
            )
    found = estimator.fit(table, given[0], groups=given[1], sample_weight=given[2])
    assert found.feature_names_in_.tolist() == names
    of_table = found.predict_proba(table)
    assert set(found.predict(table)) == {"cat", "dog", "é"}
    of_arrays = estimator.fit(x, labels, groups=groups, sample_weight=weights).predict_proba(x)
    assert np.array_equal(of_table, of_arrays)


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize(
    ("column", "name"),
    [(lambda x: pd.DataFrame({"embedding": list(x)}), "DataFrame"), (lambda x: pa.table({"e": list(x)}), "Table"),
     (lambda x: [*x.tolist()[:-1], [1.0]], "list")],
    ids=["pandas", "Arrow", "lists"],
)  # fmt: skip
def test_a_column_of_whole_embeddings_is_no_row_of_numbers(estimator, column, name, rows):
    x, y, *_ = rows
    expected = rf"X: expected a number in every cell, and as many in every row, found {name} .*np\.stack"
    with pytest.raises(ValueError, match=expected):
        estimator.fit(column(x), y)
    estimator.fit(x, y)
    with pytest.raises(ValueError, match=expected):
        estimator.predict(column(x))


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT, np.datetime64("NaT")], ids=repr)
@pytest.mark.parametrize("name", ["y", "groups"])
def test_missing_labels_and_groups_are_counted(missing, name, rows):
    x, y, *_ = rows
    words = pd.Series(np.array(["a", "b", "c"])[y], dtype=object)
    with_gaps = words.copy()
    with_gaps.iloc[[7, 9]] = [missing, missing]
    given = {"y": words, "groups": words, name: with_gaps}
    what = "label" if name == "y" else "group"
    with pytest.raises(
        ValueError, match=f"{name}: expected the {what} of every row, found none in 2 of 60, first in row 7"
    ):
        ESTIMATORS[0].fit(x, given["y"], groups=given["groups"])


def test_a_column_of_strings_with_gaps_is_refused_too(rows):
    x, y, *_ = rows
    words = pd.Series(np.array(["a", "b", "c"])[y], dtype="string")
    words.iloc[3] = pd.NA
    with pytest.raises(ValueError, match="y: expected the label of every row, found none in 1 of 60, first in row 3"):
        ESTIMATORS[1].fit(x, words)


def _asked(estimator):
    return estimator.set_fit_request(groups=True, sample_weight=True).set_score_request(sample_weight=True)


def _logistic():
    return LogisticRegression().set_fit_request(sample_weight=True)


ROADS = {
    "pipeline": lambda own, x, y, given: make_pipeline(FunctionTransformer(), own).fit(x, y, **given),
    "cross_validate": lambda own, x, y, given: cross_validate(own, x, y, cv=GroupKFold(3), params=given),
    "in a pipeline": lambda own, x, y, given: cross_validate(
        make_pipeline(FunctionTransformer(), own), x, y, cv=GroupKFold(3), params=given
    ),
    "GridSearchCV": lambda own, x, y, given: GridSearchCV(own, {"random_state": [0, 1]}, cv=GroupKFold(3)).fit(
        x, y, **given
    ),
    "calibrated": lambda own, x, y, given: CalibratedClassifierCV(own, cv=GroupKFold(3)).fit(x, y, **given),
    "vote": lambda own, x, y, given: VotingClassifier([("own", own), ("other", _logistic())]).fit(x, y, **given),
    # Stacking hands all that it gets to its last estimator, so that must take groups too.
    "stack": lambda own, x, y, given: StackingClassifier(
        [("own", own), ("other", _logistic())], final_estimator=_asked(EmbeddingClassifier(method="means")), cv=3
    ).fit(x, y, **given),
}


@pytest.mark.slow
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_every_road_brings_each_row_its_own_group_and_weight(estimator, road, rows, monkeypatch):
    x, y, groups, weights = rows
    arrived = []
    fit = type(estimator).fit

    def watched(self, X, y, groups=None, sample_weight=None):
        if X.shape[1] == DIM:  # the last estimator of a stack gets probabilities
            arrived.append((X, groups, sample_weight))
        return fit(self, X, y, groups, sample_weight)

    with config_context(enable_metadata_routing=True):
        own = _asked(estimator)
        monkeypatch.setattr(type(own), "fit", watched)
        ROADS[road](own, x, y, {"groups": groups, "sample_weight": weights})
    assert arrived
    of_rows = {row.tobytes(): number for number, row in enumerate(x)}
    for some, its_groups, its_weights in arrived:
        numbers = [of_rows[row.tobytes()] for row in np.asarray(some)]
        assert np.array_equal(its_groups, groups[numbers])
        assert np.array_equal(its_weights, weights[numbers])
