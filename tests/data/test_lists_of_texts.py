"""A text that is a list stands for a pair with each of its entries, in every format, however large the file is."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frevl.data import pairs as pairs_module
from frevl.data.pairs import pair_list, read_pairs
from frevl.errors import PairsError

LINES = [
    {"image": "a.png", "text": ["a dog", "a brown dog"], "split": "train"},
    {"image": "b.png", "text": "a cat", "split": "train"},
    {"image": "c.png", "text": ["a fish", " "], "split": "val"},
    {"image": "d.png", "text": []},
    {"image": "e.png", "text": ["a bird", 3]},
]
NOTE = "The text of 2 lines is a list: each of the 4 entries is a pair of its own."


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_entry_is_a_pair_with_a_place_of_its_own(tmp_path):
    path = written(tmp_path / "p.jsonl", LINES)
    pairs = read_pairs(path)
    assert list(zip(pairs.images, pairs.texts, strict=True)) == [
        ("a.png", "a dog"), ("a.png", "a brown dog"), ("b.png", "a cat"), ("c.png", "a fish")
    ]  # fmt: skip
    assert list(pairs.places) == [f"{path}:1 (text 1)", f"{path}:1 (text 2)", f"{path}:2", f"{path}:3 (text 1)"]
    assert list(pairs.extras) == [{"split": "train"}] * 3 + [{"split": "val"}]
    assert {reject.id.removeprefix(str(path)): reject.reason for reject in pairs.rejected} == {
        ":3 (text 2)": "field 'text': expected text, found only blanks",
        ":4": "field 'text': expected a string, found list []",
        ":5": "field 'text': expected a string, found list ['a bird', 3]",
    }
    assert pairs.notes == (NOTE,)


def test_a_list_far_behind_in_a_large_file_is_read_alike(tmp_path, monkeypatch):
    lines = [{"image": f"{row // 5}.png", "text": f"caption {row}"} for row in range(400)]
    path = written(tmp_path / "p.jsonl", [*lines, *LINES])
    small = read_pairs(path)
    monkeypatch.setattr(pairs_module, "_LARGE", 0)
    large = read_pairs(path)
    assert list(large.as_rows()) == list(small.as_rows())
    assert (list(large.places), large.rejected, large.notes) == (list(small.places), small.rejected, small.notes)
    assert len(large) == 404


def test_tables_and_pairs_in_memory(tmp_path):
    captions = [["a dog", "a brown dog"], ["a cat"]]
    table = pa.table({"image": ["a.png", "b.png"], "caption": captions})
    pq.write_table(table, tmp_path / "p.parquet")
    wanted = [("a.png", "a dog"), ("a.png", "a brown dog"), ("b.png", "a cat")]
    for source in (tmp_path / "p.parquet", table, {"image": ["a.png", "b.png"], "text": captions}):
        pairs = read_pairs(source)
        assert list(zip(pairs.images, pairs.texts, strict=True)) == wanted
        assert len(set(pairs.places)) == 3


def test_where_results_keep_their_positions_a_list_is_refused():
    with pytest.raises(PairsError, match=r":1 \(text 1\): expected one text, found a list; give one pair for each"):
        pair_list([{"image": "a.png", "text": ["a dog", "a cat"]}])


@pytest.mark.parametrize("large", [False, True])
def test_lists_that_programs_print_into_tables(tmp_path, monkeypatch, large):
    """Flickr30k's table for Hugging Face has JSON in a column; pandas prints lists as Python, and arrays as NumPy."""
    rows = [f"{row}.png,caption {row}" for row in range(100)]
    rows += [
        'a.png,"[""a dog"", ""it\'s brown""]"',
        'b.png,"[\'a cat\', ""it\'s brown""]"',
        "c.png,\"['a fish' 'a brown fish'\n 'swims']\"",
        'd.png,"[""no"" list"',
        "e.png,['a'] + ['b']",
        "f.png,[a list]",
    ]
    path = tmp_path / "p.csv"
    path.write_text("image,text\n" + "\n".join(rows) + "\n")
    monkeypatch.setattr(pairs_module, "_LARGE", 0 if large else 1 << 24)
    pairs = read_pairs(path)
    assert list(zip(pairs.images, pairs.texts, strict=True))[100:] == [
        ("a.png", "a dog"), ("a.png", "it's brown"), ("b.png", "a cat"), ("b.png", "it's brown"),
        ("c.png", "a fish"), ("c.png", "a brown fish"), ("c.png", "swims"),
        ("d.png", '["no" list'), ("e.png", "['a'] + ['b']"), ("f.png", "[a list]"),
    ]  # fmt: skip
    assert pairs.notes == ("The text of 3 lines is a list: each of the 7 entries is a pair of its own.",)
