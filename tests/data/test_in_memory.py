"""Pairs in memory, and typical mistakes in Python: they work, or one message says what was expected."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import frevl
from frevl.data.names import as_list
from frevl.data.pairs import Pairs, pair_list, read_pairs
from frevl.errors import PairsError, UsageError
from frevl.runs.score_files import score_file

ROWS = [
    {"image": "a.jpg", "text": "is it red?", "target": "yes", "n": 1},
    {"image": "b.jpg", "text": "is it 茶?", "target": "no", "n": 2},
    {"image": "c.jpg", "text": "what?", "target": None, "n": 3},
]
PLAIN = [{key: value for key, value in row.items() if value is not None} for row in ROWS]

FORMS = {
    "rows": lambda: ROWS,
    "a tuple of rows": lambda: tuple(ROWS),
    "a generator of rows": lambda: (row for row in ROWS),
    "columns": lambda: {key: [row[key] for row in ROWS] for key in ROWS[0]},
    "columns of arrays": lambda: {key: np.array([row[key] for row in ROWS], object) for key in ROWS[0]},
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas with an index": lambda: pd.DataFrame(ROWS).set_index(pd.Index([7, 5, 3])),
    "pandas with categories": lambda: pd.DataFrame(ROWS).astype({"target": "category"}),
    "a dictionary of series": lambda: dict(pd.DataFrame(ROWS).items()),
    "an Arrow table": lambda: pa.Table.from_pylist(ROWS),
    "an Arrow batch": lambda: pa.RecordBatch.from_pylist(ROWS),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pairs(form):
    pairs = read_pairs(FORMS[form]())
    assert [pairs.row(i) for i in range(len(pairs))] == PLAIN
    assert pairs.places == [f"pairs in memory:{n}" for n in (1, 2, 3)]
    assert pairs.source is None


def test_pairs_stay_what_they_are():
    pairs = Pairs(["a"], ["b"], [None], [{}], ["f:1"])
    assert read_pairs(pairs) is pairs


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ([("a", "b"), ("c", "d")], [("a", "b", None), ("c", "d", None)]),
        ([["a", "b", "yes"], ["c", "d", None]], [("a", "b", "yes"), ("c", "d", None)]),
        (np.array([["a", "b"], ["c", "d"]]), [("a", "b", None), ("c", "d", None)]),
        (np.array([["a", "b", 1], ["c", "d", 0]], object), [("a", "b", "1"), ("c", "d", "0")]),
        (("a", "b"), [("a", "b", None)]),
        (["a", "b", "yes"], [("a", "b", "yes")]),
        (np.array(["a", "b"]), [("a", "b", None)]),
        ({"image": "a", "text": "b"}, [("a", "b", None)]),
        ({"image": "a", "text": "b", "target": ["x", "y"]}, [("a", "b", ["x", "y"])]),
        (zip(["a", "c"], ["b", "d"], [True, False], strict=True), [("a", "b", "true"), ("c", "d", "false")]),
        (pd.DataFrame({"filepath": ["a"], "title": ["b"]}), [("a", "b", None)]),
        (pd.DataFrame({"image": ["a", "c"], "text": ["b", "d"], "target": [1.0, float("nan")]}),
         [("a", "b", "1"), ("c", "d", None)]),
        (pd.DataFrame({"image": ["a", "c"], "text": ["b", "d"], "target": ["x", ["y", "z"]]}),
         [("a", "b", "x"), ("c", "d", ["y", "z"])]),
    ],
)  # fmt: skip
def test_pairs_as_people_write_them(given, rows):
    pairs = read_pairs(given)
    assert list(zip(pairs.images, pairs.texts, pairs.targets, strict=True)) == rows


@pytest.mark.parametrize("given", [3, None, 2.5, b"bytes", object()])
def test_what_is_no_pairs_is_said(given):
    with pytest.raises(UsageError, match=r"pairs: expected a pairs file, a table \(pandas.* found "):
        read_pairs(given)


def test_a_dataset_of_several_splits_is_not_guessed(monkeypatch):
    kind = type("DatasetDict", (dict,), {"__module__": "datasets.dataset_dict"})
    with pytest.raises(UsageError, match=r"a dataset with several splits; choose one of \['test', 'train'\]"):
        read_pairs(kind(train=1, test=2))


def test_rows_that_are_no_pairs_are_counted_as_in_a_file():
    pairs = read_pairs([{"image": "a", "text": "b"}, {"image": "a"}, 3, {"image": 5, "text": "b"}])
    assert len(pairs) == 1
    assert [(one.id, one.reason) for one in pairs.rejected] == [
        ("pairs in memory:2", "field 'text': expected a string, found nothing"),
        ("pairs in memory:3", "expected one JSON object, found int"),
        ("pairs in memory:4", "field 'image': expected a string, found int 5"),
    ]
    with pytest.raises(PairsError, match=r"memory: no usable pair found; expected pairs such as \{.*found 'NA'"):
        read_pairs([{"image": "a", "text": "NA"}])
    with pytest.raises(
        PairsError, match=r"pairs in memory:1: expected the columns 'image' and 'text' .* found \['x'\]"
    ):
        read_pairs([{"x": 1}])


def test_columns_of_a_frame_can_be_named():
    frame = pd.DataFrame({"file": ["a"], "image": ["?"], "words": ["b"]})
    pairs = read_pairs(frame, columns={"image": "file", "text": "words"})
    assert pairs.row(0) == {"image": "a", "text": "b"}


def test_lists_of_one():
    assert as_list("toy", "encoder") == ["toy"]
    assert as_list((n for n in "ab"), "x") == ["a", "b"]
    assert as_list(np.array(["a", "b"]), "x") == ["a", "b"]
    with pytest.raises(UsageError, match="x: expected a list, such as .* found int 3"):
        as_list(3, "x")


def test_pairs_to_score():
    assert pair_list([("a", "b")]) == [("a", "b")]
    assert pair_list([]) == pair_list(iter(())) == pair_list(()) == []
    assert (
        pair_list(("a", "b"))
        == pair_list([["a", "b"]])
        == pair_list(pd.DataFrame([("a", "b")], columns=["image", "text"]))
    )
    for wrong in ([("a", "b", "c", "d")], [("a",)], [3]):
        with pytest.raises(PairsError):
            pair_list(wrong)
    with pytest.raises(
        UsageError, match=r"expected pairs such as \[\(image id, text\)\], found 'p.jsonl'; use read_pairs"
    ):
        pair_list("p.jsonl")


@pytest.fixture(scope="module")
def world(made, tmp_path_factory):
    """A store, a run of classification and one of matching, and pairs in memory. Read only."""
    folder = tmp_path_factory.mktemp("memory")
    rows = [made.train.row(i) for i in range(60)]
    frame = pd.DataFrame(rows)
    frevl.extract(folder / "S", images=made.images, pairs=frame, encoder="toy")
    frevl.train(folder / "S", frame, run=folder / "R", task="classification", model="linear", encoder="toy")
    frevl.train(folder / "S", rows, dev=frame, run=folder / "again", task="classification", model="linear")
    captions = [{"image": row["image"], "text": row["text"]} for row in rows]
    frevl.train(folder / "S", (row for row in captions), run=folder / "M", task="matching", model="linear")
    return SimpleNamespace(
        folder=folder, rows=rows, frame=frame, scorer=frevl.Scorer.open(folder / "R", store=folder / "S")
    )


@pytest.mark.slow
def test_a_frame_goes_all_the_way(made, world, tmp_path):
    expected = frevl.evaluate(world.scorer, read_pairs(world.rows))
    for pairs in (world.frame, world.rows, (row for row in world.rows), pa.Table.from_pylist(world.rows)):
        result = frevl.evaluate(world.scorer, pairs)
        assert result.metrics == expected.metrics
    assert json.loads((world.folder / "R" / "run.json").read_text())["settings"]["pairs"] == "60 pairs in memory"
    assert score_file(world.scorer, world.frame, tmp_path / "s.jsonl")[0] == 60


def test_the_scorer_takes_pairs_in_every_form(world):
    pairs = [(row["image"], row["text"]) for row in world.rows[:3]]
    expected = world.scorer.score(pairs)
    for given in (tuple(pairs), iter(pairs), np.array(pairs), [list(pair) for pair in pairs], world.frame[:3],
                  world.rows[:3], read_pairs(world.rows[:3])):  # fmt: skip
        np.testing.assert_array_equal(world.scorer.score(given), expected)
    assert [one.label for one in world.scorer.predict(pair for pair in pairs)] == [
        one.label for one in world.scorer.predict(pairs)
    ]
    assert len(world.scorer.predict(pairs[0])) == 1
    assert world.scorer.score([]).shape == (0, 2)


def test_the_grid_and_the_store_take_one_name_and_generators(world):
    matching = frevl.Scorer.open(world.folder / "M", store=world.folder / "S")
    image, text = world.rows[0]["image"], world.rows[0]["text"]
    assert matching.grid(image, text).shape == (1, 1)
    assert matching.grid((one for one in [image, image]), iter([text])).shape == (2, 1)
    store = matching.store
    assert store.read_images(image).shape[0] == 1
    assert store.read_texts(one for one in [text, text]).shape[0] == 2
    np.testing.assert_array_equal(store.read_images([image], encoders="toy"), store.read_images([image]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: frevl.extract(w.folder / "S", images=["a", "b"], encoder="toy"),
         "images: expected the path of one folder, found list"),
        (lambda w: frevl.extract(w.folder / "S", pairs=3, encoder="toy"), "pairs: expected a pairs file, a table"),
        (lambda w: frevl.evaluate("RUN", w.rows), "expected a scorer, found 'RUN'; open it with Scorer.open("),
        (lambda w: w.scorer.score("p.jsonl"), "expected pairs such as [(image id, text)], found 'p.jsonl'"),
        (lambda w: w.scorer.score(7), "pairs: expected a pairs file, a table"),
        (lambda w: w.scorer.store.read_images(7), "image ids: expected a list, such as ['a', 'b'], found int 7"),
        (lambda w: w.scorer.store.read_images(["0.png"], encoders="tyo"), "by the encoder 'tyo'. Did you mean 'toy'?"),
        (lambda w: frevl.train(w.folder / "S", 5, run=w.folder / "x", task="classification"), "found int"),
        (lambda w: frevl.train(w.folder / "S", w.rows, run=w.folder / "x", task="classification", encoder="tyo"),
         "no embeddings by the encoder 'tyo'. Did you mean 'toy'?"),
    ],
)  # fmt: skip
def test_slips_are_one_sentence(world, call, message):
    with pytest.raises(UsageError) as caught:
        call(world)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_pairs_file_and_one_encoder_without_a_list(made, tmp_path):
    report = frevl.extract(tmp_path / "S", images=made.images, pairs=str(made.train_file), encoder="toy")
    assert (report.images, report.rejects) == (120, [])
    more = pd.DataFrame([("0.png", "new")], columns=["image", "text"])
    several = frevl.extract(tmp_path / "S", pairs=[made.train_file, more], encoder="toy")
    assert several.texts == 1
