"""Pairs in CSV and Parquet: the same pairs as in JSONL, and no bad row stops the others."""

import json
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frevl.data.packed.read import read_packed
from frevl.data.pairs import read_pairs
from frevl.errors import PairsError


def write(folder, text, name="pairs.jsonl"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def reasons(pairs):
    return [reject.reason for reject in pairs.rejected]


@pytest.mark.slow
@settings(max_examples=100)
@given(row=st.dictionaries(st.sampled_from(["image", "text", "target", "extra"]), st.text(max_size=6), min_size=4))
def test_csv_and_jsonl_say_the_same(tmp_path_factory, row):
    import csv

    folder = tmp_path_factory.getbasetemp()
    row = {
        name: "".join(c for c in text if c not in "\r\0" and not "\ud800" <= c <= "\udfff")
        for name, text in row.items()
    }
    with (folder / "same.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, ["image", "text", "target", "extra"])
        writer.writeheader()
        writer.writerow(row)
    same = {name: text for name, text in row.items() if text or name != "target"}
    if row["target"].lstrip()[:1] in ("[", "{") and row["target"]:
        return  # read as JSON, tested below
    write(folder, json.dumps(same), "same.jsonl")
    try:
        expected = read_pairs(folder / "same.jsonl").row(0)
    except PairsError:
        with pytest.raises(PairsError):
            read_pairs(folder / "same.csv")
    else:
        assert read_pairs(folder / "same.csv").row(0) == expected


def test_csv_with_every_oddity(tmp_path):
    file = write(
        tmp_path,
        b"\xef\xbb\xbf,image,text,target\r\n"
        b'0,a.jpg,"a dog, running",dog\r\n'
        b'1,b.jpg,"two\nlines","[""a"", ""b""]"\r\n'
        b'2,c.jpg,soft,"{""dog"": 0.5}"\r\n'
        b"3,d.jpg,no target,\r\n"
        b"\r\n"
        b"4,e.jpg,too few\r\n"
        b"5,f.jpg,too,many,columns\r\n"
        b"6,g.jpg,gr\xfcn,dog\r\n"
        b'7,h.jpg,"quoted"badly,dog\r\n'
        b"8,i.jpg,broken,[dog\r\n"
        b"9,j.jpg,last,True\r\n"
        b'10,k.jpg,"never closed,dog\r\n'
        b"11,l.jpg,swallowed,dog\r\n",
        "pairs.csv",
    )
    pairs = read_pairs(file)
    assert pairs.images == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "j.jpg"]
    assert pairs.texts == ["a dog, running", "two\nlines", "soft", "no target", "last"]
    assert pairs.targets == ["dog", ["a", "b"], {"dog": 0.5}, None, "True"]
    assert pairs.extras[0] == {"": "0"}
    assert [place.rpartition(":")[2] for place in pairs.places] == ["2", "4", "5", "6", "13"]
    assert [(reject.id.rpartition(":")[2], reject.reason) for reject in pairs.rejected] == [
        ("8", "expected 4 columns, found 3"),
        ("9", "expected 4 columns, found 5"),
        ("10", "expected UTF-8 text, found byte 0xfc"),
        ("11", "malformed CSV: ',' expected after '\"'"),
        ("12", "field 'target': expected JSON, found malformed JSON at column 2 (Expecting value)"),
        ("15", "malformed CSV (from line 14): unexpected end of data"),
    ]


def test_a_huge_csv_field_is_one_reject(tmp_path):
    file = write(tmp_path, "image,text\na.jpg,a\nb.jpg," + "x" * 200_000 + "\nc.jpg,c\n", "pairs.csv")
    pairs = read_pairs(file)
    assert pairs.images == ["a.jpg", "c.jpg"]
    assert reasons(pairs) == ["malformed CSV: field larger than field limit (131072)"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (pa.array(["dog", None, "cat"]), ["dog", None, "cat"]),
        (pa.array(["dog", None, "cat"]).dictionary_encode(), ["dog", None, "cat"]),
        (pa.array(["dog", None, "cat"], pa.large_string()), ["dog", None, "cat"]),
        (pa.array([["dog", "puppy"], None, ["cat"]]), [["dog", "puppy"], None, ["cat"]]),
        (
            pa.array([{"dog": 1.0, "cat": None}, {"dog": 0.5, "cat": 0.25}, None]),
            [{"dog": 1.0}, {"dog": 0.5, "cat": 0.25}, None],
        ),
        (
            pa.array([[("dog", 1.0)], None, [("cat", 0.5), ("dog", 0.5)]], pa.map_(pa.string(), pa.float64())),
            [{"dog": 1.0}, None, {"cat": 0.5, "dog": 0.5}],
        ),
        (pa.array([1, None, 0]), ["1", None, "0"]),
        (pa.array([1.0, float("nan"), 0.0]), ["1", None, "0"]),
        (pa.array([True, None, False]), ["true", None, "false"]),
        (pa.array(["dög".encode(), None, b"cat"], pa.binary()), ["dög", None, "cat"]),
        (pa.array(["dög".encode(), None, b"cat"], pa.large_binary()), ["dög", None, "cat"]),
    ],
)
def test_parquet_targets(tmp_path, target, expected):
    pq.write_table(
        pa.table({"image": ["a", "b", "c"], "text": ["x", "y", "z"], "target": target}), tmp_path / "p.parquet"
    )
    pairs = read_pairs(tmp_path / "p.parquet")
    assert pairs.targets == expected
    assert pairs.places[2] == f"{tmp_path / 'p.parquet'}:3"


def test_a_target_that_is_no_text_is_refused_without_a_hint_at_names_that_are_right(tmp_path):
    pq.write_table(pa.table({"image": ["a"], "target": pa.array([b"\xff\xfe"])}), tmp_path / "p.parquet")
    with pytest.raises(PairsError, match="field 'target': expected a class.*found bytes") as caught:
        read_pairs(tmp_path / "p.parquet")
    assert "--columns" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        ({"filename": ["a.jpg"], "label": ["dog"]}, "image=filename,target=label"),
        ({"Caption": ["a dog"], "Class": ["dog"]}, "text=Caption,target=Class"),
        ({"image": [{"bytes": b"\x89PNG", "path": "a.png"}], "label": [1]}, "target=label"),
    ],
)
def test_a_missing_side_beside_a_label_may_be_no_fault(tmp_path, columns, remedy):
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(PairsError, match=f"with a class each, --columns {remedy}"):
        read_pairs(tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet", columns=remedy).targets == ["1" if "image" in columns else "dog"]


def test_parquet_extras_can_be_written_as_json(tmp_path):
    table = pa.table(
        {
            "image": ["a"],
            "text": ["x"],
            "when": [datetime(2025, 8, 4, 12, 30)],
            "raw": [b"\xffab"],
            "inner": [{"list": [float("nan"), 2.0]}],
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    pairs = read_pairs(tmp_path / "p.parquet")
    assert pairs.notes == ("The column 'raw' holds bytes and is not part of the pairs.",)
    assert pairs.row(0) == {
        "image": "a",
        "text": "x",
        "when": "2025-08-04 12:30:00",
        "inner": {"list": [None, 2.0]},
    }


def test_parquet_rows_with_wrong_types_are_rejects(tmp_path):
    table = pa.table({"image": ["a", None, "c"], "text": [b"bytes", b"x", b"y"]})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(PairsError, match="field 'text': expected a string, found bytes b'bytes'"):
        read_pairs(tmp_path / "p.parquet")
    pq.write_table(pa.table({"image": ["a", None, "c"], "text": ["x", "x", " "]}), tmp_path / "p.parquet")
    pairs = read_pairs(tmp_path / "p.parquet")
    assert reasons(pairs) == [
        "field 'image': expected a string, found nothing",
        "field 'text': expected text, found only blanks",
    ]


@pytest.mark.parametrize(
    ("ids", "images", "found"),
    [
        (pa.array([5, None, 2**53 + 1]), ["5", "9007199254740993"], ["nothing"]),
        (pa.array([5, 0, 2**64 - 1], pa.uint64()), ["5", "0", "18446744073709551615"], []),
        (pa.array([5, 7, 5], pa.int32()).dictionary_encode(), ["5", "7", "5"], []),
        # pandas makes floats of whole numbers where one is missing
        (pa.array([5.0, float("nan"), 7.0]), ["5", "7"], ["nothing"]),
        (pa.array([5.0, 7.5, 8.0]), ["5", "8"], ["float 7.5"]),
    ],
)
def test_numbers_are_names_of_images_as_in_csv(tmp_path, ids, images, found):
    table = pa.table({"image_id": ids, "text": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "p.parquet")
    for source in (tmp_path / "p.parquet", table):
        pairs = read_pairs(source)
        assert pairs.images == images
        assert reasons(pairs) == [f"field 'image': expected a string, found {one}" for one in found]
    kept = read_packed(tmp_path / "p.parquet", {})
    assert kept is None or list(kept.strings("images")) == images
    assert (kept is None) == pa.types.is_floating(ids.type)


def test_a_table_of_other_columns_is_told_about_columns(tmp_path):
    pq.write_table(pa.table({"image": [True, False], "text": ["x", "y"]}), tmp_path / "p.parquet")
    with pytest.raises(PairsError, match="expected one row per pair, with columns as in .*found bool True") as caught:
        read_pairs(tmp_path / "p.parquet")
    assert "per line" not in str(caught.value)


def test_a_cut_parquet_file_is_refused(tmp_path):
    file = tmp_path / "p.parquet"
    rows = [f"{number} {np.random.default_rng(number).random()}" for number in range(3000)]
    pq.write_table(pa.table({"image": rows, "text": rows}), file, compression="snappy", use_dictionary=False)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes(9000) + whole[9200:]):
        file.write_bytes(damaged)
        with pytest.raises(PairsError, match="p.parquet") as raised:
            read_pairs(file)
        assert "\n" not in str(raised.value)
