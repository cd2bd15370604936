"""Large text tables, Parquet and Arrow files: the same pairs, rejects and messages as row by row, and cached."""

import random

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from frevl.data.packed import tables
from frevl.data.packed.columns import Coded
from frevl.data.pairs import read_pairs
from row_by_row import by_rows, said

HEADS = {
    "image,text": ["i{0}.jpg,caption {0}", '"i{0}.jpg","caption, ""{0}"""', 'i{0}.jpg,"a, {0}"'],
    "image,text,target": ["i{0}.jpg,what {0}?,{1}", '"i{0}.jpg","what, {0}?",answer {1}', "i{0}.jpg,what {0}?,"],
    "filepath;title;kind;text": ["i{0};t;{1};c {0}", 'i{0};"t;""x""";;c'],
    "text\ttarget": ["a text {0}\t{1}", "a text {0}\t"],
}
# What Python's reader and Arrow's, or a glance, might take in different ways; # is the delimiter.
STRANGE = [
    "", " ", "#", "##", "###", "####", '"', '""', '"a', 'a"', 'a"b#c', '"a"b#c', '"a""#b', '"a"""#b', '"a\nb"#c',
    '"a\n\nb"#c#d', '"a\n\n"#"c\n"', 'x#"y', 'x#"y\nz', "x#y#[\"a\", \"b\"]", 'x#y#"[""a"", ""b""]"',
    'x#y#"{""a"": 0.5}"', 'x#y#"{""a"": 2}"',
    "x#y#[]", "x#y#[", "x#y#{", "x#y# [1]", "x#y#NA", "x#y#1.0", "x#y# ", "x#NA#z", " #b#c", "a# #c", "NA#b#c",
    "é#日本#ü", "\u00a0#b#c", "a#\u2003#c",
    "\udcff#b#c", "a#\udcff", "a#b\0#c", "a#b#\\", "a\\#b#c", "a#'b#c'", "a#b#c#d", "a#b", "a", '"a"#"b"#"c"',
    "\ufeffa#b#c", "\ufeff", '\ufeff"a"#b#c', "a\ufeff#\ufeffb#c",
    ' "a"#b#c', '"a" #b#c', "=1#b#c", "a#b#" + "x" * 300,
    '"' + "y\n" * 40 + '"#b#c', "a#b#true", "a#b#null",
]  # fmt: skip


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr("frevl.data.pairs._LARGE", 0)
    monkeypatch.setattr("frevl.data.pairs._LARGE_TABLE", 0)
    monkeypatch.setattr(tables, "_FEW", 1)
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))


def write(path, lines, end="\n"):
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode("utf-8", "surrogateescape"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("at_once", [40, 1 << 20])
def test_a_strange_line_among_plain_ones_is_read_as_row_by_row(tmp_path, head, at_once, monkeypatch):
    monkeypatch.setattr(tables, "_AT_ONCE", at_once)
    delimiter = next(one for one in ";\t," if one in head)
    base = [line.format(k, k % 3) for k, line in enumerate(HEADS[head] * 2)]
    for number, strange in enumerate(STRANGE):
        path = write(tmp_path / f"{number}.csv", [head, *base, strange.replace("#", delimiter), *base])
        expected = by_rows(path)
        assert said(path) == expected, strange
        assert said(path) == expected, "the second time from what was kept"
    assert len(list(tmp_path.glob(".*.pairs.arrow"))) == len(STRANGE), "none was read row by row"


@pytest.mark.slow
def test_any_mixture_is_read_as_row_by_row(tmp_path, monkeypatch):
    random.seed(1)
    for number in range(60):
        head = random.choice(list(HEADS))
        delimiter = next(one for one in ";\t," if one in head)
        plain = [random.choice(HEADS[head]).format(k, k % 2) for k in range(random.randrange(1, 50))]
        odd = random.choices([one.replace("#", delimiter) for one in STRANGE], k=random.choice([0, 1, 3, 20]))
        lines = [*plain, *odd]
        random.shuffle(lines)
        monkeypatch.setattr(tables, "_AT_ONCE", random.choice([16, 64, 500, 1 << 20]))
        path = write(tmp_path / f"{number}.csv", [head, *lines], random.choice(["\n", "\r\n"]))
        if random.random() < 0.5:
            path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
        assert said(path) == by_rows(path), path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"image,text", b"image,text\n", b"image,text\r\n", b"image,text\ra,b\rc,d\r",
        b"image,text\na,b\rc,d\n",
        b'"image","text"\na,b\n', b'"im\nage",text\na,b\n', b"image,image\na,b\n", b"a,b,c\n1,2,3\n",
        b"\xef\xbb\xbfimage,text\na,b\n",
        "image,text\na,b\n".encode("utf-16"), "image,text\na,b\n".encode("utf-16-le"),
        b"image,text\n\xff,b\na,\xc3\n",
        b"image,text,cat\xe9gorie\na,b,c\nd,e,f\n", b"image,text\n\xef\xbb\xbfa,b\n\xef\xbb\xbfc,d\n",
        b"image|text\na|b\n", b"image\na\nb\n", b"image,target\na,b\nb,\n", b"text\na\n",
        b"image,text,target\na,,x\nb,c,y\n",
        b"image,text\n,\n,\n", b"\0\0\0\0", b"image,text\n" + b"a" * 140_000 + b",b\nc,d\n",
        b'image,text\na,"' + b"b\n" * 80_000,
    ],
)  # fmt: skip
def test_other_forms_of_tables(tmp_path, content):
    for name in ("pairs.csv", "pairs.tsv", "pairs.txt"):
        path = tmp_path / name
        path.write_bytes(content)
        assert said(path) == by_rows(path), name


TABLES = {
    "captions": {"image": ["a", "b", None, " ", "c", "d"], "text": ["x", "y", "z", "w", None, "NA"]},
    "classes": {"image": ["a", "b", "c", "d"], "text": ["x", "y", "z", "é"], "target": [1, None, 3, 1]},
    "truth": {"filepath": ["a", "b"], "title": ["x", "y"], "target": [True, None], "text": ["p", "q"]},
    "words": {"image": ["a", "b", "c"], "text": ["x", "y", "z"], "target": ['a "b"\\', " ", "NA"], "n": [1, None, 3],
              "kind": ["p", None, '"\n'], "deep": [True, None, False]},
    "images": {"image": ["a", "b", None], "target": ["x", "y", "z"]},
    "nothing": {"image": [None, None], "text": [None, None]},
    "floats": {"image": ["a", "b"], "text": ["x", "y"], "target": [1.0, 2.0], "n": [0.5, None]},
    "lists": {"image": ["a"], "text": ["x"], "target": [["p", "q"]]},
    "two sides": {"image": ["a", "b"], "text": ["x", None], "target": ["p", "q"]},
    "numbers": {"image": [1, 2], "text": ["x", "y"]},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_arrow_tables_are_read_as_row_by_row(tmp_path, name, ending):
    path, table = tmp_path / f"pairs.{ending}", pa.table(TABLES[name])
    if ending == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        pyarrow.feather.write_feather(table, path, chunksize=2)
    expected = by_rows(path)
    assert said(path) == expected
    assert said(path) == expected, "the second time from what was kept"


def test_a_damaged_parquet_file_is_what_it_is_row_by_row(tmp_path):
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image": [f"{n}" for n in range(999)], "text": [f"t {n}" for n in range(999)]}), path)
    content = path.read_bytes()
    for damaged in (content[:200], content[:300] + b"\0" * 200 + content[500:], content[:-20], b"PAR1"):
        path.write_bytes(damaged)
        assert said(path) == by_rows(path)


def test_columns_are_codes(tmp_path):
    path = write(tmp_path / "pairs.csv", ["image,text", *(f"{k % 3}.jpg,caption {k}" for k in range(40))])
    pairs = read_pairs(path)
    assert isinstance(pairs.images, Coded)
    assert len(pairs.images.values) == 3
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".pairs.arrow")]
