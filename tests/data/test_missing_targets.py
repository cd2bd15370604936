"""A target that is missing while others exist: left out and counted, never a class and never a right pair."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frevl.data.pairs import Pairs, read_pairs, with_targets
from frevl.errors import PairsError
from frevl.evaluation.evaluation import evaluate
from frevl.runs.score_files import score_file
from frevl.runs.scorer import Scorer
from frevl.training.training import train

NO_VALUE = ["", "nan", "NaN", "null", "NULL", "None", "N/A", "n/a", "#N/A", "NA", "<NA>"]


def csv_of(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "target"])
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("word", NO_VALUE)
def test_what_table_software_writes_for_no_value_is_no_class(tmp_path, word):
    pairs = read_pairs(csv_of(tmp_path / "p.csv", [("a", "x", "dog"), ("b", "y", word), ("c", "z", "none")]))
    assert pairs.targets == ["dog", None, "none"]
    labelled, left_out = with_targets(pairs)
    assert labelled.targets == ["dog", "none"]
    assert [(one.kind, one.id, one.reason) for one in left_out] == [
        ("pair", f"{tmp_path / 'p.csv'}:3",
         "field 'target': expected a target, as 2 other pairs of the file have one, found none or a mark of none, "
         "such as 'NA'"),
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["NaN", "null", None])
def test_the_same_in_json_lines_and_parquet(tmp_path, word):
    rows = [{"image": "a", "text": "x", "target": "dog"}, {"image": "b", "text": "y", "target": word}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"image": "c", "text": "z"}])))
    assert read_pairs(tmp_path / "p.jsonl").targets == ["dog", None, None]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet").targets == ["dog", None]


def test_a_word_that_is_meant_can_be_said_as_a_list_of_one(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"image": "a", "text": "x", "target": ["None"]}')
    assert read_pairs(tmp_path / "p.jsonl").targets == [["None"]]


def test_a_text_that_stands_for_no_value_is_a_reject(tmp_path):
    pairs = read_pairs(
        csv_of(tmp_path / "p.csv", [("a", "a dog", "yes"), ("b", "nan", "no"), ("c", "nan bread", "no")])
    )
    assert pairs.texts == ["a dog", "nan bread"]
    assert [one.reason for one in pairs.rejected] == [
        "field 'text': expected text, found 'nan', which marks a missing value"
    ]


def test_a_file_without_any_target_stays_captions(tmp_path):
    pairs = read_pairs(csv_of(tmp_path / "p.csv", [("a", "x", ""), ("b", "y", "nan")]))
    assert with_targets(pairs) == (pairs, [])
    whole = read_pairs(csv_of(tmp_path / "q.csv", [("a", "x", "1"), ("b", "y", "0")]))
    assert with_targets(whole) == (whole, [])


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["1.0", "", "0.0"], ["1", None, "0"]),  # whole numbers next to a gap have become floats
        (["1.0", "2.0"], ["1.0", "2.0"]),  # no gap: they were written so
        (["1.0", "", "1.5"], ["1.0", None, "1.5"]),
        (["1.0", "", "dog"], ["1.0", None, "dog"]),
    ],
)
def test_gaps_do_not_turn_numbers_into_other_classes(tmp_path, given, read):
    rows = [(f"{number}.png", "x", target) for number, target in enumerate(given)]
    assert read_pairs(csv_of(tmp_path / "p.csv", rows)).targets == read
    lines = [{"image": "a", "text": "x", "target": float(t)} for t in given if t and t.endswith(".0")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_pairs(tmp_path / "p.jsonl").targets == [str(int(row["target"])) for row in lines]


@pytest.mark.parametrize("name", [None, "", "nan"])
def test_a_missing_cluster_is_the_image(name):
    pairs = Pairs(["a", "b"], ["x", "y"], [None, None], [{"cluster": name}, {"cluster": "c"}], ["f:1", "f:2"])
    assert pairs.clusters == ["a", "c"]


@pytest.fixture(scope="module")
def labelled(made, tmp_path_factory):
    """Captions with true and false, and as many unlabelled rows. The wrong captions come from other colours."""
    rows = []
    colours = sorted({text.split()[1] for text in made.captions.texts if text.startswith("a ")})
    for image, text in zip(made.captions.images[::2], made.captions.texts[::2], strict=True):
        own = text.split()[1]
        wrong, other = [colour for colour in colours if colour != own][:2]
        rows += [(image, text, "True"), (image, f"a {wrong} square", "False"), (image, f"a {other} square", "")]
    return csv_of(tmp_path_factory.mktemp("labelled") / "m.csv", rows)


@pytest.mark.slow
def test_matching_trains_and_is_evaluated_on_labelled_pairs_alone(made, labelled, tmp_path):
    whole, left_out = with_targets(read_pairs(labelled))
    assert (len(whole), len(left_out)) == (240, 120)
    run = train(made.store, labelled, run=tmp_path / "all", task="matching", model="linear")
    alone = train(made.store, whole, run=tmp_path / "labelled", task="matching", model="linear")
    assert any("Left out: 120 pairs" in note and "expected a target" in note for note in run.results["notes"])
    assert run.results["train_pairs"] == alone.results["train_pairs"]
    result = evaluate(Scorer(run, made.store), labelled)
    assert result.n == 240
    assert len(result.left_out) == 120
    assert result.metrics == evaluate(Scorer(alone, made.store), whole).metrics
    scored, _ = score_file(Scorer(run, made.store), labelled, tmp_path / "s.jsonl")
    assert scored == 360, "a score needs no target"


def test_classification_leaves_them_out_too(made, tmp_path):
    rows = [made.train.row(i) for i in range(80)]
    gaps = [{**row, "target": "nan"} if i % 4 == 0 else row for i, row in enumerate(rows)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gaps))
    run = train(made.store, tmp_path / "p.jsonl", run=tmp_path / "run", task="classification", model="majority")
    assert sorted(run.labels) == ["no", "yes"]
    assert any("Left out: 20 pairs" in note for note in run.results["notes"])
    result = evaluate(Scorer(run, made.store), tmp_path / "p.jsonl")
    assert (result.n, len(result.left_out)) == (60, 20)


def test_only_wrong_pairs_beside_unlabelled_ones_say_what_is_missing(made, labelled, tmp_path):
    pairs = read_pairs(labelled)
    rows = [row for row, target in enumerate(pairs.targets) if target != "True"]
    with pytest.raises(PairsError, match="found only wrong ones; if some pairs have a target, the right ones need"):
        train(made.store, pairs.select(rows), run=tmp_path / "run", task="matching", model="linear")
