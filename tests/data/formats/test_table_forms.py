"""Tables from the wild: lists, tabs, semicolons, UTF-16, other column names, embedded images."""

import hashlib
import io
import json
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from frevl.data.formats.arrow_rows import pictures_of
from frevl.data.formats.arrow_tables import open_arrow
from frevl.data.pairs import read_pairs
from frevl.errors import PairsError, UsageError

ROWS = [
    {"image": "a.jpg", "text": "is it «red»?", "target": "yes"},
    {"image": "b/ü.jpg", "text": "is it green; or blue, or 茶?", "target": "no"},
    {"image": "c.jpg", "text": 'he said "no"', "target": "maybe\tso"},
]


def written(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return path


def rows_of(pairs):
    return [pairs.row(i) for i in range(len(pairs))]


LISTS = {
    "one object per line": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "on one line": json.dumps,
    "on one line, in UTF-8": lambda rows: json.dumps(rows, ensure_ascii=False),
    "pretty": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "commas first": lambda rows: "[" + "\n,".join(map(json.dumps, rows)) + "]",
    "wrapped": lambda rows: json.dumps({"version": 1, "data": rows}),
    "wrapped and pretty": lambda rows: json.dumps({"annotations": rows, "licence": "none"}, indent=4),
    "columns": lambda rows: json.dumps({key: [row[key] for row in rows] for key in rows[0]}),
    "columns of pandas": lambda rows: json.dumps(
        {key: {str(i): r[key] for i, r in enumerate(rows)} for key in rows[0]}
    ),
    "split of pandas": lambda rows: json.dumps(
        {"columns": list(rows[0]), "index": [0, 1, 2], "data": [list(row.values()) for row in rows]}
    ),
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
}


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.txt"])
def test_json_in_every_form(tmp_path, form, name):
    assert rows_of(read_pairs(written(tmp_path / name, LISTS[form](ROWS)))) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.txt"])
def test_tables_as_text_in_every_form(tmp_path, encoding, delimiter, name):
    import csv

    out = io.StringIO()
    writer = csv.DictWriter(out, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    file = written(tmp_path / name, out.getvalue(), encoding)
    assert rows_of(read_pairs(file)) == ROWS
    assert [place.rpartition(":")[2] for place in read_pairs(file).places] == ["2", "3", "4"]


def test_utf_16_without_a_mark(tmp_path):
    table = "image,text\na.jpg,a dog\n"
    for encoding in ("utf-16-le", "utf-16-be"):
        assert read_pairs(written(tmp_path / "p.csv", table, encoding)).texts == ["a dog"]
    assert read_pairs(written(tmp_path / "p.jsonl", '{"image": "a", "text": "ä"}', "utf-16")).texts == ["ä"]
    with pytest.raises(PairsError, match=r"p\.csv: expected text in UTF-8 or UTF-16, found neither"):
        read_pairs(written(tmp_path / "p.csv", b"\xff\xfea"))


def test_lines_of_a_list_are_places_and_a_bad_entry_is_one_reject(tmp_path):
    entries = [json.dumps(row) for row in ROWS]
    entries[1] = entries[1].replace('"text"', "text")
    file = written(tmp_path / "p.json", "[\n  " + ",\n  ".join([*entries, '["a", "b"]', "3"]) + "\n]\n")
    pairs = read_pairs(file)
    assert rows_of(pairs) == [ROWS[0], ROWS[2]]
    assert pairs.places == [f"{file}:2", f"{file}:4"]
    assert [(reject.id, reject.reason) for reject in pairs.rejected] == [
        (
            f"{file}:3",
            "expected JSON, found malformed JSON at column 29 (Expecting property name enclosed in double quotes)",
        ),
        (f"{file}:5", "expected one JSON object, found list"),
        (f"{file}:6", "expected one JSON object, found int"),
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_that_breaks_off_says_so(tmp_path, indent):
    whole = json.dumps(ROWS, indent=indent) if indent else "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]"
    pairs = read_pairs(written(tmp_path / "p.json", whole[:-12]))
    assert rows_of(pairs) == ROWS[:2]
    assert len(pairs.rejected) == 1
    pairs = read_pairs(written(tmp_path / "p.json", whole.rstrip("]")))
    assert len(pairs) == 3
    assert [reject.reason for reject in pairs.rejected] == [
        "expected the end of the list, found the end of the file: it is truncated"
    ]


def test_a_list_on_one_line_with_a_bad_entry_is_refused_whole(tmp_path):
    file = written(tmp_path / "p.json", json.dumps(ROWS).replace('"yes"', "yes"))
    with pytest.raises(PairsError) as caught:
        read_pairs(file)
    assert str(caught.value) == (
        f"{file}, line 1: expected JSON, found malformed JSON at column 65 (Expecting value), and the list cannot be "
        "read past that point; fix it, or write one object per line"
    )


def test_a_long_list_is_read_piece_by_piece(tmp_path, monkeypatch):
    import frevl.data.formats.json_rows

    many = [{"image": f"{i}.jpg", "text": "ü" * (i % 90) + "x", "n": {"deep": [i]}} for i in range(3000)]
    for indent in (None, 1):
        file = written(tmp_path / "p.json", json.dumps(many, indent=indent, ensure_ascii=bool(indent)))
        with monkeypatch.context() as patch:
            patch.setattr(frevl.data.formats.json_rows, "_LONGEST_LINE", 1000)
            patch.setattr(frevl.data.formats.json_rows, "_HEAD", 500)
            pairs = read_pairs(file)
        assert rows_of(pairs) == many
        lines = [1 if indent is None else 2 + 9 * i for i in range(3000)]
        assert [int(place.rpartition(":")[2]) for place in pairs.places] == lines


def test_an_object_of_several_lists_names_the_remedy(tmp_path):
    coco = {"info": {}, "images": [{"id": 1}], "annotations": [{"caption": "a"}]}
    file = written(tmp_path / "p.json", json.dumps(coco))
    with pytest.raises(PairsError) as caught:
        read_pairs(file)
    assert str(caught.value) == (
        f"{file}: expected one JSON object per line, or a list of objects, found one object with 'info', 'images', "
        "'annotations'; read COCO's files with frevl pairs coco; for others, extract the list of pairs, for "
        "example with: jq -c '.images[]' p.json > pairs.jsonl"
    )


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("image", "text", "target"), ()),
        (("Image", "TEXT ", "Target"), ("Read the column 'Image' as image, 'TEXT ' as text, 'Target' as target.",)),
        (("filepath", "title", "target"), ("Read the column 'filepath' as image, 'title' as text.",)),
        (("image", "question", "answer"), ("Read the column 'question' as text, 'answer' as target.",)),
        (("file_name", "caption", "target"), ("Read the column 'file_name' as image, 'caption' as text.",)),
    ],
)
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet", "arrow", "feather"])
def test_columns_by_other_names(tmp_path, names, note, form):
    rows = [dict(zip(names, row.values(), strict=True)) | {"split": "x"} for row in ROWS]
    file = tmp_path / f"p.{form}"
    write_form(file, rows)
    pairs = read_pairs(file)
    assert rows_of(pairs) == [{**row, "split": "x"} for row in ROWS]
    assert pairs.notes == note


def write_form(file, rows):
    form = file.suffix[1:]
    if form in ("csv", "tsv"):
        separator = "\t" if form == "tsv" else ","
        cell = lambda v: json.dumps(v, ensure_ascii=False).replace('\\"', '""').replace("\\t", "\t")  # noqa: E731
        quoted = [[cell(value) for value in row.values()] for row in rows]
        written(file, "\n".join(separator.join(cells) for cells in [list(rows[0]), *quoted]))
    elif form == "jsonl":
        written(file, "\n".join(map(json.dumps, rows)))
    elif form == "json":
        written(file, json.dumps(rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif form == "feather":
        pyarrow.feather.write_feather(pa.Table.from_pylist(rows), file)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_columns_that_the_user_names(tmp_path, form):
    rows = [{"image": "wrong", "photo": row["image"], "words": row["text"], "mark": row["target"]} for row in ROWS]
    write_form(tmp_path / f"p.{form}", rows)
    given = "image=photo,text=words,target=mark"
    for columns in (given, given.split(","), dict(part.split("=") for part in given.split(","))):
        assert rows_of(read_pairs(tmp_path / f"p.{form}", columns=columns)) == ROWS


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ("imgae=a", UsageError, "--columns: there is no field 'imgae'. Did you mean 'image'?"),
        ("image", UsageError, "--columns: expected the column of 'image', as in image=NAME, found nothing"),
        ("text=a,text=b", UsageError, "--columns: the field 'text' is given twice; give it once"),
        ("text=titel", PairsError, "line 1: there is no column 'titel' for --columns text=... Did you mean 'title'?"),
    ],
)
def test_columns_that_cannot_be_meant(tmp_path, columns, error, message):
    file = written(tmp_path / "p.csv", "image,title\na,b\n")
    with pytest.raises(error) as caught:
        read_pairs(file, columns=columns)
    assert message in str(caught.value)


def test_two_columns_that_could_be_the_text_are_not_guessed(tmp_path):
    file = written(tmp_path / "p.csv", "image,title,description\na,b,c\n")
    with pytest.raises(PairsError) as caught:
        read_pairs(file)
    assert str(caught.value) == (
        f"{file}, line 1: no column is named 'text', and several could be meant; choose one, as in --columns "
        "text=title (found ['image', 'title', 'description'])"
    )
    assert read_pairs(file, columns="text=description").texts == ["c"]


def test_an_answer_beside_a_text_is_no_target(tmp_path):
    """Only a question has an answer; everywhere else the key may mean anything."""
    pairs = read_pairs(written(tmp_path / "p.csv", "image,text,answer,label\na,b,c,d\n"))
    assert pairs.row(0) == {"image": "a", "text": "b", "answer": "c", "label": "d"}


# ---- images inside a table


def jpeg(number):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


def hashed(number):
    return "sha256-" + hashlib.sha256(jpeg(number)).hexdigest()[:32]


def picture_table(**columns):
    return pa.table({"text": ["a?", "b?", "c?"], **columns})


HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "ids", "pictures"),
    [
        # Hugging Face: named images; the same name twice for the same image; one name for all; no names.
        (picture_table(image=pa.array([{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(3)], HF)),
         ["0.jpg", "1.jpg", "2.jpg"], [0, 1, 2]),
        (picture_table(image=pa.array([{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in (0, 1, 0)], HF)),
         ["0.jpg", "1.jpg", "0.jpg"], [0, 1]),
        (picture_table(image=pa.array([{"bytes": jpeg(i), "path": "image.jpg"} for i in range(3)], HF)),
         [hashed(0), hashed(1), hashed(2)], [0, 1, 2]),
        (picture_table(image=pa.array([{"bytes": jpeg(i), "path": None} for i in (0, 1, 0)], HF)),
         [hashed(0), hashed(1), hashed(0)], [0, 1]),
        (picture_table(image=pa.array([{"bytes": None, "path": f"{i}.jpg"} for i in range(3)], HF)),
         ["0.jpg", "1.jpg", "2.jpg"], []),
        # img2dataset: bytes next to a key; bytes alone; a path as the id.
        (picture_table(jpg=[jpeg(0), jpeg(1), jpeg(2)], key=["00", "01", "02"]), ["00", "01", "02"], [0, 1, 2]),
        (picture_table(image=[jpeg(0), jpeg(1), jpeg(1)]), [hashed(0), hashed(1), hashed(1)], [0, 1]),
        (picture_table(image=["x", "y", "z"], thumb=[jpeg(0), jpeg(1), jpeg(2)]), ["x", "y", "z"], [0, 1, 2]),
        (picture_table(image=pa.array([{"bytes": jpeg(i)} for i in range(3)]), image_id=[7, 8, 9]),
         [hashed(0), hashed(1), hashed(2)], [0, 1, 2]),
        # Names that a program wrote as bytes, and bytes that are no images.
        (picture_table(image=[b"a.jpg", "ü.jpg".encode(), b"c.jpg"]), ["a.jpg", "ü.jpg", "c.jpg"], None),
        (picture_table(image=["x", "y", "z"], blob=[b"\x00\x01", b"\xff", b"\x02"]), ["x", "y", "z"], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["parquet", "arrow", "feather"])
def test_pictures_in_tables_are_named_and_never_copied(tmp_path, table, ids, pictures, form):
    file = tmp_path / f"p.{form}"
    if form == "parquet":
        pq.write_table(table, file)
    else:
        kind = pa.ipc.new_stream if form == "arrow" else pa.ipc.new_file
        with pa.OSFile(str(file), "wb") as sink, kind(sink, table.schema) as stream:
            stream.write_table(table)
    pairs = read_pairs(file)
    assert pairs.images == ids
    assert not any(isinstance(value, bytes) or "\\x" in str(value) for row in rows_of(pairs) for value in row.values())
    found = pictures_of(open_arrow(file), {})
    assert (None if found is None else [content for _, content in found]) == (
        None if pictures is None else [jpeg(number) for number in pictures]
    )
    if pictures:
        assert dict(pictures_of(open_arrow(file), {})) == {
            id_: jpeg(number) for id_, number in zip(dict.fromkeys(ids), pictures, strict=True)
        }


def test_pictures_are_named_by_a_column_of_numbers_that_the_user_names(tmp_path):
    table = picture_table(image=pa.array([{"bytes": jpeg(i)} for i in range(3)]), image_id=[7, 8, 9])
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet", columns="image=image_id").images == ["7", "8", "9"]
    found = pictures_of(open_arrow(tmp_path / "p.parquet"), {"image": "image_id"})
    assert dict(found) == {"7": jpeg(0), "8": jpeg(1), "9": jpeg(2)}


def test_two_pictures_of_one_name_are_not_mixed_up(tmp_path):
    pq.write_table(picture_table(image=["x", "y", "x"], jpg=[jpeg(0), jpeg(1), jpeg(2)]), tmp_path / "p.parquet")
    with pytest.raises(
        PairsError, match=r"p\.parquet, row 3: another image in the file is also named 'x'; give a column"
    ):
        list(pictures_of(open_arrow(tmp_path / "p.parquet"), {}))


def test_vectors_are_no_keys_of_a_pair_and_short_lists_are(tmp_path):
    table = picture_table(
        image=["x", "y", "z"], embedding=[[0.5] * 65] * 3, box=[[0.0, 1.0]] * 3, answers=[["a"] * 10] * 3
    )
    pq.write_table(table, tmp_path / "p.parquet")
    pairs = read_pairs(tmp_path / "p.parquet")
    assert set(pairs.extras[0]) == {"box", "answers"}
    assert pairs.notes == ("The column 'embedding' holds vectors and is not part of the pairs.",)


@pytest.mark.slow
def test_only_the_columns_that_are_used_are_read(tmp_path):
    """120 MB of images in a table: reading its pairs takes a fraction of that in memory."""
    rng = random.Random(1)
    n = 1200
    table = pa.table({"image": [f"{i % 40}.png" for i in range(n)], "text": ["a square?"] * n,
                      "jpg": [rng.randbytes(100_000) for _ in range(n)]})  # fmt: skip
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=100)
    code = (
        "import resource, sys; from frevl.data.pairs import read_pairs; import pyarrow.parquet;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; pairs = read_pairs(sys.argv[1]);"
        "print(len(pairs), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "p.parquet"], capture_output=True, text=True, check=True
    )
    pairs, kilobytes = map(int, done.stdout.split())
    assert pairs == n
    assert kilobytes < 40_000


def test_json_with_other_keys_names_the_remedy(tmp_path):
    file = written(tmp_path / "p.jsonl", '{"photo": "a.jpg", "words": "a dog"}\n')
    with pytest.raises(PairsError) as caught:
        read_pairs(file)
    assert str(caught.value).endswith(
        "found nothing). The last one has the keys 'photo', 'words': name them, as in --columns image=NAME,text=NAME."
    )


@pytest.mark.slow
def test_every_command_that_reads_pairs_takes_their_columns(made, tmp_path, frevl):
    rows = [made.train.row(i) for i in range(60)]
    other = [{"file": row["image"], "words": row["text"], "mark": row["target"], "asked": row["asked"]} for row in rows]
    write_form(tmp_path / "p.tsv", other)
    columns = ["--pairs", tmp_path / "p.tsv", "--columns", "text=words,target=mark"]
    where = ["--store", tmp_path / "store"]
    said = frevl(
        "extract", *where, "--images", made.images, *columns, "--encoder", "toy", "--json", tmp_path / "e.json"
    )
    assert said.code == 0, said.err
    assert "Read the column 'file' as image, 'words' as text, 'mark' as target." in said.out
    run = [*where, "--run", tmp_path / "run"]
    said = frevl(
        "train", *run, *columns, "--dev", tmp_path / "p.tsv", "--task", "classification", "--model", "majority"
    )
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["pairs"] == str(tmp_path / "p.tsv")
    said = frevl("evaluate", *run, *columns, "--json", tmp_path / "r.json")
    assert said.code == 0, said.err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["n"] == 60
    assert "asked" in result["slices"]
    assert result["notes"][0] == "Read the column 'file' as image, 'words' as text, 'mark' as target."
    assert frevl("score", *run, *columns, "--out", tmp_path / "s.jsonl").code == 0
    scored = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in rows[0]} for row in scored] == rows
    said = frevl("score", *run, *columns, "--out", tmp_path / "p.tsv")
    assert said.code == 2, "an input is an input, whoever reads it"
    said = frevl("evaluate", *run, "--pairs", tmp_path / "p.tsv")
    assert said.code == 1
    assert "name the columns, as in --columns text=NAME" in said.err
    for command in ("diagnose", "ablate", "export"):
        assert "--columns" in frevl(command, "--help").out
