"""Every text file that a person writes may come from Windows: a byte order mark, other line ends, UTF-16."""

import io
import tarfile
import tomllib

import pytest

from frevl.data.class_files import read_classes
from frevl.data.pairs import read_pairs
from frevl.errors import FrevlError
from frevl.evaluation.fairness.queries import read_queries
from frevl.files import read_text
from frevl.store.importing.formats import read_ids
from frevl.store.pictures.files import Choice
from frevl.store.pictures.tar_members import find_tars
from frevl.training.debiasing.neutral import read_biases

WRITTEN = {
    "plain": lambda text: text.encode(),
    "mark and line ends": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "UTF-16": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "UTF-16, the other order": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
}

READ = {
    "classes.txt": ("é\nb\n", lambda path: read_classes(path).labels, ["é", "b"]),
    "classes.jsonl": (
        '{"class": "é"}\n{"class": "b"}\n',
        lambda path: (read_classes(path).labels, read_classes(path).rejected),
        (["é", "b"], ()),
    ),
    "classes.json": ('{"é": ["an é"],\n "b": []}\n', lambda path: read_classes(path).labels, ["é", "b"]),
    "queries.txt": ("an é\n\na b\n", read_queries, ["an é", "a b"]),
    "biases.jsonl": (
        '{"biased": "an é"}\n{"same": ["a b", "a c"]}\n',
        lambda path: read_biases(path).texts,
        ["an é", "a b", "a c"],
    ),
    "ids.txt": ("é\nb\n", lambda path: read_ids(path, id_column=None, usual=())["id"].to_pylist(), ["é", "b"]),
    "ids.csv": (
        "width,id\n3,é\n4,b\n",
        lambda path: read_ids(path, id_column=None, usual=("id",)).to_pylist(),
        [{"width": "3", "id": "é"}, {"width": "4", "id": "b"}],
    ),
    "pairs.jsonl": (
        '{"image": "é", "text": "x"}\n{"image": "b", "text": "y"}\n',
        lambda path: list(read_pairs(path).images),
        ["é", "b"],
    ),
    "pairs.csv": ("image,text\né,x\nb,y\n", lambda path: list(read_pairs(path).images), ["é", "b"]),
    "pairs.tsv": ("image\ttext\né\tx\nb\ty\n", lambda path: list(read_pairs(path).images), ["é", "b"]),
    "run.toml": ('[set]\nname = "é"\n', lambda path: tomllib.loads(read_text(path)), {"set": {"name": "é"}}),
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("name", READ)
def test_what_windows_writes_is_read_alike(tmp_path, name, form):
    text, read, expected = READ[name]
    (tmp_path / name).write_bytes(WRITTEN[form](text))
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize("form", WRITTEN)
def test_a_list_of_tars(tmp_path, form):
    with tarfile.open(tmp_path / "é.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("1.txt"), io.BytesIO())
    (tmp_path / "list.txt").write_bytes(WRITTEN[form]("# all\né.tar\n"))
    assert [tar.name for tar in find_tars(tmp_path / "list.txt", leave_out=tmp_path / "s", choice=Choice())] == [
        "é.tar"
    ]


@pytest.mark.parametrize("form", WRITTEN)
def test_options_in_a_file(tmp_path, form, frevl):
    (tmp_path / "run.toml").write_bytes(WRITTEN[form]('store = "nowhere"\njsn = 1\n'))
    done = frevl("store", "info", "--config", tmp_path / "run.toml")
    assert done.code == 2
    assert "'jsn' is not an option of frevl store info" in done.err


@pytest.mark.parametrize("name", ["classes.txt", "queries.txt", "biases.jsonl"])
def test_another_encoding_is_refused_with_the_file(tmp_path, name):
    (tmp_path / name).write_bytes('{"biased": "é"}\nb\n'.encode("latin-1"))
    with pytest.raises(FrevlError, match=rf"{name}: .*UTF-8"):
        READ[name][1](tmp_path / name)


def test_separators_of_other_scripts_are_part_of_a_line(tmp_path):
    (tmp_path / "q.txt").write_text("a\u2028b\nc\x0cd\n")
    assert read_queries(tmp_path / "q.txt") == ["a\u2028b", "c\x0cd"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a.png\nb.png\n", ["a.png", "b.png"]),  # no header: one id per line
        ("id\na.png\nb.png\n", ["a.png", "b.png"]),
        ('size;id\n1;"a;1.png"\n2;b.png\n', ["a;1.png", "b.png"]),
        ("id,size\n007,1\n", ["007"]),  # not the number 7
        ("", []),
    ],
)
def test_ids_in_a_text_table(tmp_path, text, ids):
    (tmp_path / "ids.csv").write_text(text)
    assert read_ids(tmp_path / "ids.csv", id_column=None, usual=("id",))["id"].to_pylist() == ids


def test_a_text_table_of_ids_that_cannot_be_meant(tmp_path):
    (tmp_path / "ids.csv").write_text("id,size\na.png,1\nb.png\n")
    with pytest.raises(FrevlError, match=r"ids.csv, line 3: expected 2 columns, found 1"):
        read_ids(tmp_path / "ids.csv", id_column=None, usual=("id",))
    (tmp_path / "ids.csv").write_text("name,size\na.png,1\n")
    with pytest.raises(FrevlError, match="name the column to use with --id-column; there are: name, size"):
        read_ids(tmp_path / "ids.csv", id_column=None, usual=("id",))
    # `frevl store remove` has no such flag.
    with pytest.raises(FrevlError, match="expected a column of ids named 'id', found name, size"):
        read_ids(tmp_path / "ids.csv", id_column=None, usual=("id",), flag="")
