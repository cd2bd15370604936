"""A served run that reranks: scores, both orders of a search, and how the page shows them."""

import pytest

from frevl.errors import UsageError
from frevl.runs.scorer import Scorer
from frevl.runs.search.searching import Searcher
from served import client_of, reranking_run


@pytest.fixture(scope="module")
def runs_with_rerank(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerank")
    reranking_run(made.store, made.captions_file, folder)
    return folder


@pytest.fixture(scope="module")
def served(made, runs_with_rerank):
    with client_of(made, runs_with_rerank, names=("rerank",)) as client:
        yield client


@pytest.fixture(scope="module")
def scorer(made, runs_with_rerank):
    """Of its own: nothing of the service's."""
    return Scorer.open(runs_with_rerank / "rerank", store=made.store)


@pytest.mark.slow
def test_it_says_what_it_is(served, scorer):
    (model,) = served.http.get("/v1/models").json()["models"]
    assert (model["name"], model["task"], model["searches"]) == ("rerank", "matching", True)
    assert scorer.rerank_depth == 20


def test_scores_are_those_of_the_scorer(made, served, scorer):
    pairs = [(image, text) for image in made.store.image_ids[:11] for text in ("a red square", "a new thing, 1")]
    asked = [{"image": image, "text": text} for image, text in pairs]
    said = served.http.post("/v1/score", json={"pairs": asked}).json()["scores"]
    scores, probabilities = scorer.match_probabilities(pairs)
    with pytest.raises(UsageError, match="use match_probabilities"):
        scorer.probabilities(scores)
    assert [one["score"] for one in said] == pytest.approx(scores.tolist(), abs=1e-4)
    assert [one["probability"] for one in said] == pytest.approx(probabilities.tolist(), abs=1e-5)


@pytest.mark.parametrize("k", [1, 13, 29])
def test_a_search_comes_in_both_orders(made, served, scorer, k):
    said = [
        served.http.post("/v1/search", json={"text": "a red square", "k": k, "rerank": rerank}).json()
        for rerank in (True, False)
    ]
    depth = max(k, scorer.rerank_depth)
    whole = Searcher(scorer).search("a red square", k=depth).hits
    by_score = [hit.id for hit in whole[:k]]
    by_similarity = [hit.id for hit in sorted(whole, key=lambda hit: -hit.similarity)[:k]]
    assert k == 1 or by_score != by_similarity
    assert [hit["id"] for hit in said[0]["hits"]] == by_score
    assert [hit["id"] for hit in said[1]["hits"]] == by_similarity
    assert [one["reranked"] for one in said] == [depth, 0]
    # Every hit has both numbers, whatever it is sorted by: the rank is its place in the list.
    for one in said:
        assert [hit["rank"] for hit in one["hits"]] == list(range(1, k + 1))
        expected = scorer.score([(hit["id"], "a red square") for hit in one["hits"]])
        assert [hit["score"] for hit in one["hits"]] == pytest.approx(expected.tolist(), abs=1e-4)
    similarities = [hit["similarity"] for hit in said[1]["hits"]]
    assert similarities == sorted(similarities, reverse=True)
    scores = [hit["score"] for hit in said[0]["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_texts_for_a_picture_are_reranked_too(made, served, scorer):
    image = made.store.image_ids[3]
    said = served.http.post("/v1/search", json={"image": image, "find": "texts", "k": 4}).json()
    assert said["reranked"] > 0
    expected = scorer.score([(image, hit["id"]) for hit in said["hits"]])
    assert [hit["score"] for hit in said["hits"]] == pytest.approx(expected.tolist(), abs=1e-4)
