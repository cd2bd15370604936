"""Queries, runs and stores that cannot be searched: one message each."""

import pytest

from frevl.errors import UsageError
from frevl.runs.scorer import Scorer
from frevl.runs.search.searching import index_store, search
from frevl.store.extraction.extract import extract
from frevl.training.training import train

# ---- bad input


BAD = {
    "empty": (["  "], 2, "The query is empty; write what to look for"),
    "nothing": ([], 2, "A search needs a text or an image, found neither"),
    "both": (["a dog", "--image", "3.png"], 2, "A search needs a text or an image, found both"),
    "texts for a text": (["a dog", "--for", "texts"], 2, "to find texts, give an image with --image"),
    "for": (["--image", "3.png", "--for", "videos"], 2, "must be 'images' or 'texts', found 'videos'"),
    "k": (["a dog", "-k", "0"], 2, "The number of results must be a whole number of at least 1, found 0"),
    "no column": (["a dog", "--where", "colour = 'red'"], 2, "(there is no column 'colour'). Columns of the images of"),
    "no condition": (["a dog", "--where", " "], 2, "The condition is empty; write one such as id LIKE 'kitchen/%'"),
    "half": (["a dog", "--where", "bytes >"], 2, "cannot be understood (Expected: an expression, found: EOF). Columns"),
    "kinds": (["a dog", "--where", "bytes = 'many'"], 2, 'cannot be understood ("many" is not of the type Int64)'),
    "function": (["a dog", "--where", "f(bytes) = 1"], 2, "cannot be understood (there is no function 'f')"),
    "quotes": (["a dog", "--where", '"bytes" > 1'], 2, "write bytes without quotes, and texts in single quotes"),
    "two conditions": (["a dog", "--where", "1 = 1; DROP TABLE x"], 2, "must be a single condition, found ';'"),
    "division": (
        ["a dog", "--where", "1 / (bytes - bytes) = 1"],
        2,
        "fails on a row (Divide by zero error). Columns of",
    ),
    "cast": (["a dog", "--where", "CAST(id AS INT) = 1"], 2, "fails on a row (Cast error: Cannot cast string"),
    "no image": (["--image", "nowhere.png"], 2, "nowhere.png: expected an image file, or the id of an image of"),
    "no picture": (["--image", __file__], 1, "Cannot read image"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_queries_get_one_sentence(made, dual, frevl, case):
    arguments, code, words = BAD[case]
    said = frevl("search", "--store", made.store.path, "--run", dual, "--quiet", *arguments)
    assert said.code == code, said
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": 3}, "The query must be a string, found int"),
        ({"text": "a dog", "k": "5"}, "must be a whole number of at least 1, found '5'"),
        ({"text": "a dog", "k": 2.5}, "must be a whole number of at least 1, found 2.5"),
    ],
)
def test_values_of_another_type(made, dual, asked, words):
    with pytest.raises(UsageError, match=words):
        search(Scorer.open(dual, store=made.store), **asked)


def test_a_long_query_is_cut_and_said(made, dual):
    found = search(Scorer.open(dual, store=made.store), "a red square " * 300, k=1)
    assert found.notes == ["The query is longer than the encoder can read and was truncated."]
    assert len(found.hits) == 1


def test_more_results_than_the_store_has(made, dual):
    found = search(Scorer.open(dual, store=made.store), "a red square", k=1000)
    assert len(found.hits) == 120
    assert found.notes == ["Only 120 images can be found, fewer than the requested 1,000."]


@pytest.mark.slow
def test_runs_that_cannot_search(made, tmp_path, frevl):
    train(made.store.path, made.captions_file, run=tmp_path / "m", task="matching", model="linear")
    train(made.store.path, made.train_file, run=tmp_path / "c", task="classification", model="majority")
    for run, words in (
        ("m", "the model 'linear' has no first stage to search with"),
        ("c", "a search needs a matching"),
    ):
        for command in (["search", "a dog"], ["store", "index"]):
            said = frevl(*command, "--store", made.store.path, "--run", tmp_path / run)
            assert said.code == 2
            assert words in said.err


def test_a_run_of_another_store_is_refused(made, dual, frevl, tmp_path, draw):
    extract(tmp_path / "s", images=draw(tmp_path / "i", [1]), pairs=[made.captions_file], encoder=["toy2"])
    said = frevl("search", "--store", tmp_path / "s", "--run", dual, "a dog")
    assert said.code == 1
    assert "the run needs the image tower 'toy-image', the store has" in said.err


def test_a_store_without_images(made, dual, tmp_path):
    extract(tmp_path / "s", pairs=[made.captions_file], encoder=["toy"])
    scorer = Scorer.open(dual, store=tmp_path / "s")
    found = search(scorer, "a red square")
    assert (found.hits, found.notes) == ([], ["No image can be found: there is none."])
    with pytest.raises(UsageError, match="an index needs vectors and at least two queries"):
        index_store(scorer)
