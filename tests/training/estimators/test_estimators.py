"""Estimators follow scikit-learn's contract and fit the same models as the commands."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import frevl
from frevl.errors import RunError
from frevl.estimators import EmbeddingClassifier, FusionClassifier, FusionMatcher
from frevl.runs.run import Run
from named import CLASSES

# The only checks that cannot hold, and why.
CANNOT_HOLD = {
    "check_sample_weight_equivalence_on_dense_data": "rows are held out at random to choose and calibrate by: a row of "
    "weight 2 is held out once, two equal rows are one group",
}


@pytest.fixture(scope="module")
def arrays(named):
    """Embeddings of examples and of test images, their labels, and the vectors of the names."""
    read = {}
    for part, file in (("examples", named.examples), ("test", named.test)):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        read[part] = (
            named.store.read_images([row["image"] for row in rows]),
            np.array([row["target"] for row in rows]),
        )
    read["names"] = named.store.read_texts([f"a photo of a {name}." for name in CLASSES])
    return read


def paired(count=240, seed=0):
    """Rows of two sides whose label needs both: an exclusive or of two signs."""
    random = np.random.default_rng(seed)
    image, text = random.standard_normal((2, count, 8)).astype(np.float32)
    image[:, 0] += np.where(random.random(count) < 0.5, 3, -3)
    text[:, 0] += np.where(random.random(count) < 0.5, 3, -3)
    return np.hstack([image, text]), ((image[:, 0] > 0) == (text[:, 0] > 0)).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [EmbeddingClassifier(), FusionClassifier(model="linear"), FusionMatcher(model="linear")], ids=repr
)
@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn(estimator):
    found = check_estimator(estimator, expected_failed_checks=CANNOT_HOLD, on_skip=None)
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(CANNOT_HOLD)
    assert {one["status"] for one in found} <= {"passed", "xfail", "skipped"}
    # Only the one that needs an environment variable of another library.
    assert [one["check_name"] for one in found if one["status"] == "skipped"] == ["check_array_api_input"]


@pytest.mark.slow
def test_examples_names_and_both(arrays):
    X, y = arrays["examples"]
    by_examples = EmbeddingClassifier().fit(X, y)
    by_names = EmbeddingClassifier(class_texts=arrays["names"], classes=CLASSES).fit()
    by_both = EmbeddingClassifier(class_texts=arrays["names"], classes=CLASSES).fit(X, y)
    found = [one.score(*arrays["test"]) for one in (by_names, by_examples, by_both)]
    assert found[0] > 0.5
    assert found[1] > 0.9
    assert found[2] >= max(found) - 0.02
    judge = LogisticRegression(max_iter=1000).fit(X, y).score(*arrays["test"])
    assert found[1] >= judge - 0.01
    probabilities = by_both.predict_proba(arrays["test"][0])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_it_fits_what_classify_fits(arrays, named, tmp_path):
    run = frevl.classify(named.store, run=tmp_path / "run", examples=named.examples, find_groups=False)
    estimator = EmbeddingClassifier().fit(*arrays["examples"])
    assert estimator.results_["selection"]["chosen"] == run.results["selection"]["chosen"]
    images = [json.loads(line)["image"] for line in named.test.read_text().splitlines()]
    scorer = frevl.Scorer(run, named.store)
    by_run = scorer.probabilities(scorer.score(images))
    np.testing.assert_allclose(estimator.predict_proba(arrays["test"][0]), by_run, atol=2e-3)


def test_a_name_without_rows_is_a_class(arrays):
    X, y = arrays["examples"]
    some = y != "elm"
    fitted = EmbeddingClassifier(class_texts=arrays["names"], classes=CLASSES).fit(X[some], y[some])
    assert list(fitted.classes_) == sorted(CLASSES)
    assert fitted.predict_proba(X).shape == (len(X), len(CLASSES))
    with pytest.raises(ValueError, match="have no row in y"):
        EmbeddingClassifier(classes=CLASSES).fit(X[some], y[some])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["auto", "tiny", "kernel", "linear"])
def test_the_fusion_learns_what_needs_both_sides(model):
    X, y = paired()
    options = {"epochs": 30, "batch_size": 32, "patience": 30} if model == "tiny" else None
    fitted = FusionClassifier(image_dim=8, model=model, options=options, time_limit=60).fit(
        X, np.array(["no", "yes"])[y]
    )
    other, truth = paired(seed=1)
    assert fitted.score(other, np.array(["no", "yes"])[truth]) > (0.75 if model != "linear" else 0.45)
    assert list(fitted.classes_) == ["no", "yes"]


def test_the_matcher_from_right_pairs_alone_and_from_judged_ones():
    random = np.random.default_rng(0)
    image = random.standard_normal((300, 12)).astype(np.float32)
    text = image @ np.linalg.qr(random.standard_normal((12, 12)))[0].astype(np.float32)
    right, wrong = np.hstack([image, text]), np.hstack([image, np.roll(text, 1, axis=0)])
    captions = FusionMatcher(image_dim=12, model="linear").fit(right[:250])
    judged = FusionMatcher(image_dim=12, model="linear").fit(
        np.vstack([right[:250], wrong[:250]]), np.repeat([True, False], 250)
    )
    for fitted in (captions, judged):
        p = [fitted.predict_proba(rows[250:])[:, 1].mean() for rows in (right, wrong)]
        assert p[0] > p[1] + 0.1
        assert list(fitted.classes_) == [0, 1]
    with pytest.raises(ValueError, match="y: score compares with known answers, found none"):
        cross_val_score(FusionMatcher(image_dim=12, model="linear"), right, cv=2, error_score="raise")
    scored = cross_val_score(captions, right, cv=2, scoring=lambda one, rows: one.predict_proba(rows)[:, 1].mean())
    assert scored == pytest.approx([captions.predict_proba(right)[:, 1].mean()] * 2, abs=0.2)
    assert captions.score(np.vstack([right, wrong]), np.repeat([1, 0], 300)) > 0.6


@pytest.mark.slow
def test_pipelines_searches_and_groups(arrays):
    X, y = arrays["examples"]
    pipeline = make_pipeline(FunctionTransformer(np.copy), EmbeddingClassifier(method="means"))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.85
    groups = np.arange(len(y)) // 2
    assert cross_val_score(EmbeddingClassifier(method="gaussian"), X, y, groups=groups, cv=GroupKFold(3)).mean() > 0.8
    search = GridSearchCV(EmbeddingClassifier(), {"method": ["means", "kernel"]}, cv=2).fit(X, y)
    assert search.best_params_["method"] in ("means", "kernel")
    twin = clone(EmbeddingClassifier(method="probe", random_state=3))
    assert twin.get_params()["method"] == "probe"
    assert twin.set_params(method="means").fit(pd.DataFrame(X), pd.Series(y)).score(pd.DataFrame(X), y) > 0.9


def test_groups_keep_rows_together():
    """Twins under other labels teach nothing about new rows; in one group they are never held out from each other."""
    random = np.random.default_rng(0)
    X = random.standard_normal((60, 16)).repeat(2, axis=0)
    y = random.integers(0, 2, 60).repeat(2)
    fitted = EmbeddingClassifier(method="kernel").fit(X, y)
    assert fitted.results_["development"]["accuracy"] < 75, "equal rows are one group"


@pytest.mark.parametrize("estimator", [EmbeddingClassifier(), FusionClassifier(image_dim=8, model="linear")], ids=repr)
def test_what_is_saved_is_a_run(estimator, tmp_path):
    X, y = paired()
    labels = np.array(["no", "yes"])[y]
    fitted = estimator.fit(X, labels)
    fitted.save(tmp_path / "run")
    again = type(estimator).load(tmp_path / "run")
    np.testing.assert_allclose(again.predict_proba(X), fitted.predict_proba(X), atol=2e-3)
    assert list(again.predict(X[:9])) == list(fitted.predict(X[:9]))
    run = Run.load(tmp_path / "run")
    assert run.task == "classification"
    assert sorted(run.labels) == ["no", "yes"]
    with pytest.raises(RunError, match="finished run"):
        fitted.save(tmp_path / "run")
    with pytest.raises(RunError, match="expected a run that FusionMatcher.save wrote"):
        FusionMatcher.load(tmp_path / "run")


def test_weights_count_rows():
    """Of two clouds with contradictory labels the heavier wins; a row of weight 0 is not there."""
    random = np.random.default_rng(0)
    X = random.standard_normal((80, 6)) + np.array([[2.0] + [0.0] * 5])
    y = np.repeat([0, 1], 40)
    for estimator in (EmbeddingClassifier(method="probe"), FusionClassifier(model="linear")):
        heavy = clone(estimator).fit(X, y, sample_weight=np.where(y == 1, 9.0, 1.0))
        assert heavy.predict_proba(X)[:, 1].mean() > 0.7
    mixed, zero = np.vstack([X, X]), np.r_[np.ones(80), np.zeros(80)]
    labels = np.r_[y, 1 - y]
    alone = EmbeddingClassifier(method="means").fit(X, y)
    beside = EmbeddingClassifier(method="means").fit(mixed, labels, sample_weight=zero)
    np.testing.assert_allclose(alone.predict_proba(X), beside.predict_proba(X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X[:5], y), "inconsistent numbers of samples"),
        (lambda X, y: (np.where(np.arange(len(X))[:, None] == 3, np.nan, X), y), "contains NaN"),
        (lambda X, y: (np.where(np.arange(len(X))[:, None] == 3, 1e300, X.astype(float)), y), "too large"),
        (lambda X, y: (X, np.linspace(0, 1, len(y))), "Unknown label type"),
        (lambda _, y: ([("a.jpg", "a text")] * len(y), y), "could not convert string to float|dtype"),
        (lambda X, y: (X[0], y[:1]), "Expected 2D array"),
    ],
)
def test_messages_that_users_of_scikit_learn_expect(change, message, arrays):
    X, y = arrays["examples"]
    with pytest.raises(ValueError, match=message):
        EmbeddingClassifier().fit(*change(X, y))


def test_further_messages(arrays):
    X, y = arrays["examples"]
    for arguments, message in (
        ({"groups": [1, 2]}, "groups: expected"),
        ({"groups": [None] * len(y)}, "groups: expected the group of every row, found none in"),
        ({"groups": [float("nan"), *range(len(y) - 1)]}, "first in row 0; give such a row a group of its own"),
        ({"groups": np.array(["a", 1] * len(y), object)[: len(y)]}, "groups: expected all numbers or all strings"),
        ({"sample_weight": [1.0]}, "sample_weight.shape"),
        ({"sample_weight": -np.ones(len(y))}, "not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            EmbeddingClassifier().fit(X, y, **arguments)
    with pytest.raises(ValueError, match="class_texts: expected the shape"):
        EmbeddingClassifier(class_texts=np.ones((2, 3))).fit(X, y)
    with pytest.raises(ValueError, match="y: expected labels of classes, found 'hazel'"):
        EmbeddingClassifier(classes=CLASSES[:-1]).fit(X, y)
    with pytest.raises(ValueError, match="method: expected one of"):
        EmbeddingClassifier(method="lda").fit(X, y)
    with pytest.raises(ValueError, match="There is no model 'tyni'"):
        FusionClassifier(model="tyni").fit(X, y)
    with pytest.raises(ValueError, match="features, but EmbeddingClassifier is expecting"):
        EmbeddingClassifier().fit(X, y).predict(X[:, :3])
    with pytest.raises(TypeError, match="[Ss]parse"):
        EmbeddingClassifier().fit(csr_matrix(X), y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (EmbeddingClassifier(time_limit=0), "time_limit: expected seconds above 0, or None, found 0"),
        (EmbeddingClassifier(time_limit="3"), "time_limit: expected seconds above 0, or None, found '3'"),
        (EmbeddingClassifier(name_scale=float("nan")), "name_scale: expected .* above 0, found nan"),
        (EmbeddingClassifier(random_state="x"), "'x' cannot be used to seed"),
        (EmbeddingClassifier(class_texts=np.ones(8)), "class_texts: expected an array of vectors, one a class, found"),
        (EmbeddingClassifier(class_texts=["a cat", "a dog"]), "class_texts: expected .* found could not convert"),
        (EmbeddingClassifier(class_texts=np.full((2, 8), np.nan)), "class_texts: .*, found NaN or infinity"),
        (EmbeddingClassifier(class_texts=np.eye(3, 8)[[0, 1]] * [[0], [1]]), "only zeros in row 0, which have no"),
        (FusionClassifier(image_dim=3.5, model="kernel"), "image_dim: expected 0 to 8, the columns of X, found 3.5"),
        (FusionClassifier(image_dim="4", model="kernel"), "image_dim: expected 0 to 8, the columns of X, found '4'"),
        (FusionClassifier(image_dim=True, model="kernel"), "image_dim: expected 0 to 8, .* found True"),
        (FusionClassifier(dev_share=1), "dev_share: expected a share between 0 and 1, found 1"),
        (FusionClassifier(dev_share="a"), "dev_share: expected a share between 0 and 1, found 'a'"),
        (FusionClassifier(model="kernel", options=3), "options: expected a mapping such as"),
        (FusionClassifier(model="text"), "model='text' needs columns of texts, found none among 8"),
        (FusionMatcher(model="cosine"), "needs image and text in one space, .* common_space=True"),
        (FusionMatcher(image_dim=3, common_space=True), "common_space: expected as many columns of the image as of"),
    ],
)
def test_what_parameters_cannot_be(estimator, message):
    x, y = np.random.default_rng(0).standard_normal((30, 8)), np.arange(30) % 2
    with pytest.raises(ValueError, match=message):
        estimator.fit(x, y)


@pytest.mark.parametrize(
    "labels", [("no match", "match"), ("Mismatch", "Match"), ("unrelated", "related"), ("not_good", "good")]
)
def test_words_whose_order_contradicts_their_meaning_are_refused(labels):
    x, y = np.random.default_rng(0).standard_normal((30, 8)), np.array(labels)[np.arange(30) % 2]
    with pytest.raises(ValueError, match=f"that is '{labels[0]}'; give y == '{labels[1]}' instead"):
        FusionMatcher(model="linear").fit(x, y)
    assert list(FusionMatcher(model="linear").fit(x, y == labels[1]).classes_) == [False, True]


@pytest.mark.parametrize("labels", [("no", "yes"), ("irrelevant", "relevant"), ("bad", "good")])
def test_the_later_word_is_a_match_and_a_warning_says_so_unless_it_is_plain(labels):
    x, y = np.random.default_rng(0).standard_normal((30, 8)), np.array(labels)[np.arange(30) % 2]
    if labels[0] != "bad":  # warnings are errors in tests
        assert FusionMatcher(model="linear").fit(x, y).classes_.tolist() == list(labels)
        return
    with pytest.warns(UserWarning, match="takes 'good' as the label of pairs that belong together"):
        FusionMatcher(model="linear").fit(x, y)


def test_a_classifier_no_better_than_the_most_frequent_class_says_so():
    x, y = np.random.default_rng(0).standard_normal((60, 8)), np.arange(60) % 4 == 0
    said = EmbeddingClassifier(method="means").fit(x, y).results_["warnings"][0]
    assert "not measurably better than always giving their most frequent class (75.00 %)" in said
    x[:, 0] += 6 * y
    assert EmbeddingClassifier(method="means").fit(x, y).results_["warnings"] == []


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_values_whose_squares_are_lost_are_refused(factor):
    x, y = np.random.default_rng(0).standard_normal((30, 8)), np.arange(30) % 2
    fitted = EmbeddingClassifier(method="means").fit(x, y)
    for call in (lambda: EmbeddingClassifier().fit(x * factor, y), lambda: fitted.predict(x * factor)):
        with pytest.raises(ValueError, match=r"largest value lies between 1e-15 and 1e\+15, found .*; bring rows"):
            call()
    for level in (0, 1.5, "a"):
        with pytest.raises(ValueError, match="level: expected the share of sets that contain the right label"):
            fitted.predict_set(x, level=level)
    with pytest.raises(ValueError, match="X: expected a 2D array, found None"):
        FusionMatcher().fit(None)


def test_a_generator_as_random_state_is_left_as_it_was():
    x, y = np.random.default_rng(0).standard_normal((40, 8)), np.arange(40) % 2
    random = np.random.RandomState(3)
    before = random.get_state()[1].tolist()
    first, second = (EmbeddingClassifier(random_state=random).fit(x, y).predict_proba(x) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert random.get_state()[1].tolist() == before


@pytest.mark.parametrize("time_limit", [None, 1e-9])
@pytest.mark.parametrize("model", ["kernel", "auto"])
def test_no_row_counts_twice_where_every_class_has_one(model, time_limit):
    x = np.eye(24) + 0.1 * np.random.default_rng(0).standard_normal((24, 24))
    fitted = FusionClassifier(model=model, time_limit=time_limit).fit(x, np.arange(24))
    assert fitted.network_.settings["pairs"] == 24
    assert fitted.results_["notes"][0].startswith("The development metric is meaningless: nearly every class has just")
    assert fitted.score(x, np.arange(24)) == 1


def test_groups_are_routed_to_fit(monkeypatch):
    x, y = np.random.default_rng(0).standard_normal((60, 8)), np.arange(60) % 2
    seen, fit = [], EmbeddingClassifier.fit

    def noted(self, X, y=None, groups=None, sample_weight=None):
        seen.append(groups)
        return fit(self, X, y, groups, sample_weight)

    monkeypatch.setattr(EmbeddingClassifier, "fit", noted)
    groups = np.arange(60) // 6
    with config_context(enable_metadata_routing=True):
        own = EmbeddingClassifier(method="means").set_fit_request(groups=True)
        asked = make_pipeline(FunctionTransformer(np.copy), own)
        cross_val_score(asked, x, y, params={"groups": groups}, cv=GroupKFold(2), error_score="raise")
    assert sorted(np.concatenate(seen).tolist()) == groups.tolist()


def test_names_alone_are_no_examples():
    with pytest.raises(ValueError, match="method='means' needs examples, X and y; found class_texts alone"):
        EmbeddingClassifier(method="means", class_texts=np.eye(2), classes=["a", "b"]).fit()


@pytest.mark.slow
def test_names_are_loaded_for_another_fit(arrays, tmp_path):
    X, y = arrays["examples"]
    names = np.random.default_rng(0).standard_normal((len(np.unique(y)), X.shape[1]))
    fitted = EmbeddingClassifier(class_texts=names).fit(X, y)
    fitted.save(tmp_path / "run")
    loaded = EmbeddingClassifier.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.classes, fitted.classes_)
    cosines = (loaded.class_texts * names).sum(axis=1) / np.linalg.norm(names, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)  # a run keeps them in half precision
    np.testing.assert_allclose(loaded.fit(X, y).predict_proba(X), fitted.predict_proba(X), atol=2e-3)


def test_the_matcher_begins_at_the_cosine_of_a_common_space():
    random = np.random.default_rng(0)
    image = random.standard_normal((60, 16))
    x = np.concatenate([image, image + 0.3 * random.standard_normal((60, 16))], axis=1)
    fitted = FusionMatcher(model="cosine", common_space=True).fit(x)
    wrong = np.concatenate([x[:, :16], np.roll(x[:, 16:], 1, axis=0)], axis=1)
    assert fitted.predict(x).mean() > 0.9
    assert fitted.predict(wrong).mean() < 0.1


@pytest.mark.slow
def test_neither_store_nor_pictures_are_loaded():
    code = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("lance", "PIL"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from frevl.estimators import EmbeddingClassifier, FusionClassifier, FusionMatcher
X = np.random.default_rng(0).standard_normal((60, 8))
y = np.arange(60) % 2
for estimator in (EmbeddingClassifier(), FusionClassifier(image_dim=4, model="kernel"), FusionMatcher(model="linear")):
    estimator.fit(X, y).predict(X)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_fitting_leaves_the_random_numbers_of_the_user_alone(arrays):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    FusionClassifier(model="image", options={"epochs": 1}).fit(*arrays["examples"])
    assert torch.rand(3).equal(expected)
