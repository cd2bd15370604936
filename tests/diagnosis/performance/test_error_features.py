"""What errors have in common: planted causes are named, shuffled hits name next to nothing."""

import numpy as np
import pytest

from frevl.diagnosis.performance.error_features import Explained, _benjamini_hochberg, _partial, explain, text_features
from frevl.diagnosis.performance.errors_explained import errors_claim


def world(images=300, each=3, seed=0):
    """Pairs of images with three features; the image has one of them, so pairs of one image are alike."""
    random = np.random.default_rng(seed)
    clusters = [f"{n}.jpg" for n in range(images) for _ in range(each)]
    crowded = np.repeat(random.random(images), each)
    words = random.integers(3, 20, images * each).astype(float)
    features = {"words": words, "rarest word": words + random.normal(0, 3, len(words)), "crowdedness": crowded}
    return features, clusters, random


def test_the_planted_cause_is_named_and_what_only_goes_with_it_is_not():
    features, clusters, random = world(images=600)
    hits = (random.random(len(clusters)) < 0.95 - 0.04 * features["words"]).astype(float)
    found = {one.name: one for one in explain(features, hits, clusters, seed=0)}
    assert found["words"].named
    assert found["words"].correlation < -0.2
    assert found["words"].other < 0
    assert not found["rarest word"].named  # it goes with the number of words and nothing else
    assert not found["crowdedness"].named


@pytest.mark.slow
def test_shuffled_hits_name_a_feature_in_few_of_many_sets():
    """Benjamini-Hochberg keeps false alarms to 5 % of the sets, and the other half's sign halves that again."""
    features, clusters, random = world(images=200)
    alarms = 0
    for _ in range(200):
        skill = np.repeat(random.random(200), 3)  # pairs of one image succeed or fail together
        hits = (random.random(600) < skill).astype(float)
        alarms += any(one.named for one in explain(features, hits, clusters, seed=0))
    assert alarms <= 12  # 6 %; the 99.9 % bound of 2.5 % of 200 is 13


def test_pairs_of_one_image_count_as_one():
    random = np.random.default_rng(1)
    table, hits = random.standard_normal((400, 2)), random.random(400).round()
    alone = _partial(table, 0, hits, np.arange(400), np.ones(400, bool))
    five = _partial(np.repeat(table, 5, axis=0), 0, np.repeat(hits, 5), np.arange(2000) // 5, np.ones(2000, bool))
    assert five[0] == pytest.approx(alone[0])
    assert five[1] == pytest.approx(alone[1], rel=0.02)
    assert alone[1] == pytest.approx(1 / 400**0.5, rel=0.1)  # the standard error of a correlation of zero


def test_equal_constant_and_binary_features():
    features, clusters, random = world(images=120)
    hits = random.random(360).round()
    given = {**features, "again": features["words"], "constant": np.ones(360), "colour": random.random(360).round()}
    names = {one.name for one in explain(given, hits, clusters, seed=0)}
    assert names == {"words", "rarest word", "crowdedness", "colour"}


def test_features_of_texts_by_hand():
    found = text_features(
        ["There isn't a RED car left of two trees", "what is it?", "", "日本"], ["a red car", "a car"]
    )
    assert found["words"].tolist() == [10, 3, 0, 1]
    assert found["number"].tolist() == [1, 0, 0, 0]
    assert found["negation"].tolist() == [1, 0, 0, 0]
    assert found["colour"].tolist() == [1, 0, 0, 0]
    assert found["place"].tolist() == [1, 0, 0, 0]
    assert found["question word"].tolist() == [0, 1, 0, 0]
    assert found["rarest word"].tolist() == pytest.approx([np.log(3), np.log(3), 0, np.log(3)])


def test_benjamini_hochberg_by_hand():
    assert _benjamini_hochberg({"a": 0.01, "b": 0.024, "c": 0.9}) == {"a", "b"}
    assert _benjamini_hochberg({"a": 0.02, "b": 0.04, "c": 0.9}) == set()
    assert _benjamini_hochberg({}) == set()


def test_the_claim_says_no_more_than_its_numbers():
    longer = Explained("words", -0.21, 0.02, 0.0001, -0.2, True)
    crowded = Explained("crowdedness", 0.11, 0.02, 0.001, 0.1, True)
    none = Explained("place", -0.3, 0.2, 0.3, 0.1, False)
    claim, _ = errors_claim("the fusion (tiny)", [longer, crowded, none])
    assert claim == (
        "Of the fusion (tiny), errors come with more words (-0.21); right answers with images like many others "
        "(+0.11) (partial correlation; 3 features examined)."
    )
    claim, advice = errors_claim("linear", [none])
    assert "No feature of the pairs goes measurably" in claim
    assert advice.startswith("Nothing to do")
