"""What a diagnosis refuses before anything is trained."""

import pytest

from frevl.diagnosis.diagnosis import diagnose
from frevl.errors import UsageError

pytestmark = pytest.mark.slow


def test_what_cannot_be_written_is_refused_first(made, tmp_path, frevl):
    arguments = ["--store", made.store.path, "--pairs", made.train_file, "--test", made.test_file, "--task", "matching"]
    said = frevl("diagnose", *arguments, "--images", tmp_path)
    assert (said.code, said.err) == (2, "frevl: --images requires --html; add --html FILE, or leave out --images\n")
    said = frevl("diagnose", *arguments, "--images", tmp_path / "none", "--html", tmp_path / "a.html")
    assert said.code == 2
    assert "--images: expected a folder of images, found none at" in said.err
    said = frevl("diagnose", *arguments[:-1], "ranking")
    assert said.code == 2
    assert "There is no task 'ranking'" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "ranking"}, "There is no task 'ranking'"),
        ({"precision": 1.5}, "--precision must lie between 0 and 1, found 1.5"),
        ({"time_limit": 0}, "--time-limit must be a number of seconds above 0, found 0"),
        ({"models": ["kernle"]}, r"has no model 'kernle'. Did you mean 'kernel'\?"),
        ({"models": ["kernel", "text", "image", "majority"]}, "found none for: baseline"),
        ({"encoder": ["toy9"]}, "has no embeddings by the encoder 'toy9'"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_trained(made, arguments, words):
    with pytest.raises(UsageError, match=words):
        diagnose(made.store, made.train, made.test, **{"task": "classification", "probes": False, **arguments})
    with pytest.raises(UsageError, match="needs a store"):
        diagnose([], made.train, made.test, task="classification")
