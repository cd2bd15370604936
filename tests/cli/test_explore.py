"""`frevl explore`: what cannot be opened ends in one message; what can is passed to the service."""

import pytest

from frevl.deployment.service import start as frevl_start


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--store", "NONE"], 1, "expected a store"),
        (["--store", "STORE", "--encoder", "nope"], 2, "no embeddings by the encoder 'nope'. Valid: 'toy'"),
        (["--store", "STORE", "--images", "NONE"], 2, "no such folder; expected the folder of the images"),
        (["--store", "STORE", "--run", "NONE"], 1, "expected a run"),
    ],
)
def test_what_cannot_be_opened_gets_a_sentence(made, tmp_path, frevl, words, code, sentence):
    places = {"STORE": made.store.path, "NONE": tmp_path / "none"}
    said = frevl("explore", "--port", "0", *(str(places.get(word, word)) for word in words))
    assert said.code == code
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("flags", "labels"), [([], True), (["--labels"], True), (["--no-labels"], False)])
def test_labels_are_taken_unless_that_is_switched_off(made, frevl, monkeypatch, flags, labels):
    given = {}
    monkeypatch.setattr(
        frevl_start, "serve", lambda store, runs, **options: given.update(options, store=store, runs=runs)
    )
    assert frevl("explore", "--store", str(made.store.path), *flags).code == 0
    assert (given["labels"], given["explore"], given["runs"]) == (labels, True, {})
