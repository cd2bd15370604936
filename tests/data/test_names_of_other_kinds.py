"""A name that is not a string (a slip in Python: True, None, a list) gets a message, never an internal error."""

import pytest

import frevl
from frevl.data.pairs import read_pairs
from frevl.errors import FrevlError, UsageError
from frevl.estimators import FusionClassifier


@pytest.mark.parametrize("wrong", [True, None, 3, ["toy"], {"toy": 1}])
@pytest.mark.parametrize(
    "call",
    [
        lambda wrong: frevl.load_encoder(wrong),
        lambda wrong: frevl.load_encoder("toy", tokens=wrong),
        lambda wrong: frevl.train("STORE", "pairs.jsonl", run="RUN", task=wrong),
        lambda wrong: frevl.train("STORE", "pairs.jsonl", run="RUN", task="classification", model=wrong),
        lambda wrong: frevl.classify("STORE", run="RUN", method=wrong),
        lambda wrong: frevl.Scorer.open("RUN", store="STORE", backend=wrong),
    ],
    ids=["encoder", "tokens", "task", "model", "method", "backend"],
)
def test_a_name_that_is_no_text_gets_a_sentence(call, wrong):
    with pytest.raises(UsageError, match="There is no|The name of an encoder"):
        call(wrong)


def test_an_estimator_says_it_as_scikit_learn_does():
    with pytest.raises(ValueError, match="There is no model 'None'"):
        FusionClassifier(model=None).fit([[0.0, 1.0], [1.0, 0.0]], [0, 1])


def test_what_a_message_quotes_stays_on_its_line():
    """Found by fuzzing: the keys of a stranger's file were quoted with their line breaks."""
    with pytest.raises(FrevlError) as caught:
        read_pairs([{"a\n\x1b[2Jb": 1}])
    assert str(caught.value).isprintable()
    assert r"a\n\x1b[2Jb" in str(caught.value)
