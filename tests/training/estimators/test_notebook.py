"""Arrays as they come in a notebook: odd types, odd labels, rows that tell nothing; nothing is silent or misleading."""

import warnings

import numpy as np
import pandas as pd
import pytest

from frevl.estimators import EmbeddingClassifier, FusionClassifier, FusionMatcher
from frevl.training.estimators.array_classifier import equal_rows

DIM = 7
NAMES = np.array(["ash", "birch", "elm"])


def drawn(each: int = 20) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(0).standard_normal((3 * each, DIM))
    return np.eye(DIM)[:3].repeat(each, axis=0) + 0.15 * noise, NAMES.repeat(each)


def pairs(each: int = 20) -> tuple[np.ndarray, np.ndarray]:
    X, y = drawn(each)
    order = np.random.default_rng(1).permutation(len(X))
    return np.hstack([X, X[order]]), np.where(y == y[order], "same", "other")


@pytest.mark.parametrize("method", ["auto", "kernel", "probe"])
@pytest.mark.parametrize("counts", [(25, 5), (29, 1)])
def test_equal_rows_are_no_surer_than_the_shares_of_their_classes(method, counts):
    """`kernel` gave the frequent class 1.00 where five of six rows had it: its scale is that of one example a class."""
    y = np.array(["a", "b"]).repeat(counts)
    fitted = EmbeddingClassifier(method=method).fit(np.ones((30, DIM)), y)
    found = fitted.predict_proba(np.ones((1, DIM)))[0]
    assert abs(found[0] - counts[0] / 30) < 0.03
    assert "none of the 30 examples can be held out" in fitted.results_["warnings"][0]


def test_equal_rows_of_several_classes_are_counted():
    X, y = drawn()
    X[20:23] = X[0]
    assert EmbeddingClassifier().fit(X, y, groups=np.arange(60)).results_["notes"][-1] == (
        "4 of 60 rows equal rows of other classes, so no classifier can get all of them right."
    )
    assert equal_rows(np.array([[2.0, 1], [0, 1], [2, 1], [0, 2]], np.float32)).tolist() == [0, 1, 0, 2]


def test_a_class_whose_rows_have_no_weight_is_named():
    X, y = drawn()
    fitted = EmbeddingClassifier().fit(X, y, sample_weight=(y != "birch").astype(float))
    assert fitted.classes_.tolist() == ["ash", "elm"]
    assert fitted.results_["warnings"][0] == (
        "1 of 3 classes have only rows of weight 0 and are therefore not among classes_, first 'birch'."
    )


def test_messages_speak_of_rows_and_of_the_labels_given():
    X, y = pairs()
    labels = np.random.default_rng(2).permutation(y)
    said = FusionClassifier(image_dim=DIM, model="linear").fit(X, labels).results_
    assert "always answering 'other'" in said["warnings"][0]
    few = FusionClassifier(image_dim=DIM, model="kernel").fit(X[:3], ["no", "yes", "yes"]).results_["notes"]
    assert any("('yes'): the best epoch" in note and "fit on rows of more groups." in note for note in few)
    assert not any("--" in note for note in [*said["notes"], *few])
    with pytest.raises(ValueError, match="^expected at least two different images .*; fit on rows of more groups$"):
        FusionClassifier(image_dim=DIM).fit(np.ones_like(X), y)
    with pytest.raises(ValueError, match="name all of them with classes="):
        EmbeddingClassifier(class_texts=np.eye(DIM)[:3]).fit(X[:40, :DIM], drawn()[1][:40])


def test_one_class_is_said_and_what_a_matcher_does_without_wrong_pairs():
    X, _ = pairs()
    assert FusionClassifier(image_dim=DIM).fit(X, np.ones(60)).results_["warnings"] == [
        "One class: every row is predicted to be it, with probability 1."
    ]
    assert "leave y out" in FusionMatcher().fit(X, np.ones(60)).results_["warnings"][0]


def test_an_odd_number_of_columns_has_no_first_half():
    X, y = pairs()
    fitted = FusionMatcher(model="linear").fit(X[:, :-1], y == "same")
    assert fitted.results_["warnings"][0].startswith("13 columns have no first half: the first 7 were taken for")
    clear = FusionMatcher(model="linear", image_dim=7).fit(X[:, :-1], y == "same")
    assert not any("no first half" in warning for warning in clear.results_["warnings"])


def test_arrays_that_cannot_be_written_to_are_read():
    X, y = drawn()
    fitted = EmbeddingClassifier().fit(X, y)
    closed = X.astype(np.float32)
    closed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (fitted.predict(closed) == fitted.predict(X)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    [np.array(["2020-01-01", "2020-02-01", "2021-01-01"], "datetime64[D]"), np.array([3, 1, 2], np.int8),
     np.array([2**63, 2**63 + 1, 5], np.uint64), np.array([4.0, 1.0, 2.0], np.float32), np.array(["é", "ß", " é"]),
     np.array(["é", "ß", "x"], object), np.array(["\ud800", "ß", "x"], object)],
)  # fmt: skip
def test_labels_keep_their_type(labels, tmp_path):
    X, _ = drawn()
    fitted = EmbeddingClassifier().fit(X, labels.repeat(20))
    fitted.save(tmp_path / "run")
    loaded = EmbeddingClassifier.load(tmp_path / "run")
    assert loaded.classes_.dtype == fitted.classes_.dtype
    assert loaded.predict(X).tolist() == fitted.predict(X).tolist()


def test_what_is_loaded_is_fitted_like_what_was_saved(tmp_path):
    X, y = pairs()
    frame = pd.DataFrame(X, columns=[f"c{column}" for column in range(X.shape[1])])
    own = FusionClassifier(
        image_dim=np.int64(DIM), model="kernel", options={"smallest_penalty": 0.5},
        random_state=np.random.RandomState(3), time_limit=np.float64(60),
    ).fit(frame, y)  # fmt: skip
    own.save(tmp_path / "run")
    loaded = FusionClassifier.load(tmp_path / "run")
    assert loaded.feature_names_in_.tolist() == frame.columns.tolist()
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame[frame.columns[::-1]])
    assert loaded.get_params() == {**own.get_params(), "random_state": own._seed()}
    np.testing.assert_array_equal(loaded.fit(frame, y).predict_proba(frame), own.predict_proba(frame))


def test_a_matcher_no_better_than_the_most_frequent_answer_says_so():
    X, y = pairs()
    found = FusionMatcher(model="linear", dev_share=0.4).fit(X, np.random.default_rng(2).permutation(y) == "same")
    assert "is not measurably better than always answering 'no match'" in found.results_["warnings"][0]
    told = np.hstack([X, np.where(y == "same", 1.0, -1.0)[:, None]])
    clear = FusionMatcher(model="linear", image_dim=DIM, dev_share=0.4).fit(told, y == "same")
    assert not clear.results_["warnings"]


def test_weights_count_where_wrong_texts_are_drawn_too():
    X, _ = drawn()
    X = np.hstack([X, X + 0.05 * np.random.default_rng(3).standard_normal(X.shape)])
    weights = np.where(np.arange(60) % 2, 3, 1)
    repeated = np.repeat(np.arange(60), weights)
    options = {"model": "linear", "dev_share": 0.3}
    weighted = FusionMatcher(**options).fit(X, sample_weight=weights, groups=np.arange(60))
    twice = FusionMatcher(**options).fit(X[repeated], groups=repeated)
    assert weighted.results_["development"]["n"] == twice.results_["development"]["n"]
    assert FusionMatcher(**options).fit(X, groups=np.arange(60)).results_["development"]["n"] == 36
