"""Pairs files: what is read, what is rejected and with which message, and that nothing else can happen."""

import contextlib
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frevl.data.formats.pair_rows import ENDINGS
from frevl.data.packed.read import read_packed
from frevl.data.pairs import Pairs, read_pairs, split_by_image
from frevl.errors import PairsError


def write(folder, text, name="pairs.jsonl"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def reasons(pairs):
    return [reject.reason for reject in pairs.rejected]


GOOD = '{"image": "a.jpg", "text": "a dog"}'


def test_every_kind_of_target_is_read(tmp_path):
    file = write(
        tmp_path,
        """
        {"image": "a.jpg", "text": "a dog"}
        {"image": "b/c.jpg", "text": " two  dogs? ", "target": "2", "question_type": "count", "id": 7}
        {"image": "a.jpg", "text": "what?", "target": ["dog", "puppy"]}
        {"image": "a.jpg", "text": "what?", "target": {"dog": 1, "cat": 0.3}}
        {"image": "a.jpg", "text": "is it?", "target": true}
        {"image": "a.jpg", "text": "how many?", "target": 3}
        {"image": "a.jpg", "text": "a cat", "target": null}
        """,
    )
    pairs = read_pairs(file)
    assert pairs.images == ["a.jpg", "b/c.jpg", "a.jpg", "a.jpg", "a.jpg", "a.jpg", "a.jpg"]
    assert pairs.texts == ["a dog", " two  dogs? ", "what?", "what?", "is it?", "how many?", "a cat"]
    assert pairs.targets == [None, "2", ["dog", "puppy"], {"dog": 1.0, "cat": 0.3}, "true", "3", None]
    assert pairs.extras == [{}, {"question_type": "count", "id": 7}, {}, {}, {}, {}, {}]
    assert pairs.places == [f"{file}:{line}" for line in range(2, 9)]
    assert pairs.rejected == ()
    assert len(pairs) == 7


def test_a_row_is_what_stood_in_the_file(tmp_path):
    rows = [
        {"image": "a.jpg", "text": "a dog"},
        {"image": "ä.jpg", "text": "wie viele?", "target": {"zwei": 1.0}, "split": "x", "scores": [1, {"b": None}]},
    ]
    pairs = read_pairs(write(tmp_path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)))
    assert [pairs.row(0), pairs.row(1)] == rows
    chosen = pairs.select(np.array([1, 1, 0]))
    assert [chosen.row(i) for i in range(3)] == [rows[1], rows[1], rows[0]]
    assert chosen.places == [pairs.places[1], pairs.places[1], pairs.places[0]]


TARGET = "field 'target': expected a class, a list of answers or an object of answer weights, found "


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("dog", "expected JSON, found malformed JSON at column 1 (Expecting value)"),
        (
            '{"image": "a.jpg", "text": "a dog"',
            "expected JSON, found malformed JSON at column 35 (Expecting ',' delimiter)",
        ),
        ("[1, 2]", "expected one JSON object, found list"),
        ('"text"', "expected one JSON object, found str"),
        ("null", "expected one JSON object, found NoneType"),
        ("{}", "field 'image': expected a string, found nothing"),
        ('{"image": "a.jpg"}', "field 'text': expected a string, found nothing"),
        ('{"image": null, "text": "a"}', "field 'image': expected a string, found nothing"),
        ('{"image": 5, "text": "a"}', "field 'image': expected a string, found int 5"),
        ('{"image": "a.jpg", "text": ["a", 3]}', "field 'text': expected a string, found list ['a', 3]"),
        ('{"image": "a.jpg", "text": ""}', "field 'text': expected text, found only blanks"),
        (
            '{"image": "a.jpg", "text": " \\t\\n\\u2003"}',
            "field 'text': expected text, found only blanks",
        ),
        ('{"image": "a.jpg", "text": "a", "target": 1.5}', TARGET + "float 1.5"),
        ('{"image": "a.jpg", "text": "a", "target": " "}', TARGET + "only blanks"),
        ('{"image": "a.jpg", "text": "a", "target": []}', TARGET + "an empty list"),
        ('{"image": "a.jpg", "text": "a", "target": ["a", 1]}', TARGET + "a list with an entry that is not a text"),
        ('{"image": "a.jpg", "text": "a", "target": {}}', TARGET + "an empty object"),
        (
            '{"image": "a.jpg", "text": "a", "target": {"dog": 1.5}}',
            "field 'target': expected weights from 0 to 1, found 1.5 for 'dog'",
        ),
        (
            '{"image": "a.jpg", "text": "a", "target": {"dog": true}}',
            "field 'target': expected weights from 0 to 1, found True for 'dog'",
        ),
        (
            '{"image": "a.jpg", "text": "a", "price": -Infinity}',
            "expected JSON, found malformed JSON: -Infinity is not a JSON number",
        ),
        (
            '{"image": "a.jpg", "text": "a", "price": 1e999}',
            "expected JSON, found malformed JSON: 1e999 is too large a number",
        ),
        (
            '{"image": "a.jpg", "text": "a", "image": "b.jpg"}',
            "expected JSON, found malformed JSON: the key 'image' appears twice",
        ),
        ('{"image": "a.jpg", "text": "\\ud83d"}', "expected text, found half of a surrogate pair"),
        ('{"image": "a.jpg", "text": "a", "x": [{"\\udc00": 1}]}', "expected text, found half of a surrogate pair"),
        (b'{"image": "a.jpg", "text": "gr\xfcn"}', "expected UTF-8 text, found byte 0xfc"),
        ("[" * 100_000, "the JSON is nested too deep"),
        (
            '{"image": "a.jpg", "text": "a", "n": ' + "9" * 5000 + "}",
            "expected JSON, found malformed JSON: Exceeds the limit (4300 digits) for integer string conversion: "
            "value has 5000 digits",
        ),
    ],
)
def test_a_bad_line_is_kept_aside_with_file_line_and_field(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    file = write(tmp_path, b"\n".join([GOOD.encode(), line, GOOD.encode()]))
    pairs = read_pairs(file)
    assert len(pairs) == 2
    assert [(reject.kind, reject.id, reject.reason) for reject in pairs.rejected] == [("pair", f"{file}:2", reason)]


def test_nan_is_a_missing_value_under_any_key(tmp_path):
    """Tables of pandas written line by line have it in every empty cell."""
    lines = [
        '{"image": "a.jpg", "text": "a", "target": 1.0, "price": NaN, "of": [NaN, 2.5]}',
        '{"image": "b.jpg", "text": "b", "target": NaN, "price": 3.5, "of": []}',
        '{"image": "c.jpg", "text": NaN, "target": NaN, "price": 3.5, "of": []}',
        '{"image": NaN, "text": "d"}',
        '{"image": "e.jpg", "text": "e", "target": {"dog": NaN}}',
    ]
    file = write(tmp_path, "\n".join(lines))
    pairs = read_pairs(file)
    assert (pairs.images, pairs.targets) == (["a.jpg", "b.jpg"], ["1", None])
    assert pairs.extras == [{"price": None, "of": [None, 2.5]}, {"price": 3.5, "of": []}]
    assert [(reject.id, reject.reason) for reject in pairs.rejected] == [
        (f"{file}:3", "field 'text': expected a string, found nothing"),
        (f"{file}:4", "field 'image': expected a string, found nothing"),
        (f"{file}:5", "field 'target': expected weights from 0 to 1, found None for 'dog'"),
    ]
    kept = read_packed(file, {})
    assert list(kept.strings("images")) == pairs.images
    assert list(kept.objects("extras")) == pairs.extras


def test_a_whole_surrogate_pair_is_text(tmp_path):
    pairs = read_pairs(write(tmp_path, '{"image": "a.jpg", "text": "\\ud83d\\ude00"}'))
    assert pairs.texts == ["😀"]


def test_byte_order_mark_windows_lines_and_blank_lines_are_no_data(tmp_path):
    pairs = read_pairs(write(tmp_path, b"\xef\xbb\xbf" + f"{GOOD}\r\n\r\n \n{GOOD}".encode()))
    assert pairs.texts == ["a dog", "a dog"]
    assert [place.rpartition(":")[2] for place in pairs.places] == ["1", "4"]
    assert pairs.rejected == ()


@pytest.mark.slow
def test_a_line_without_end_does_not_fill_memory(tmp_path):
    import tracemalloc

    huge = b'{"image": "a.jpg", "text": "' + b"x" * (48 << 20) + b'"}'
    file = write(tmp_path, GOOD.encode() + b"\n" + huge + b"\n" + GOOD.encode() + b"\n" + huge)
    tracemalloc.start()
    pairs = read_pairs(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) == 2
    assert reasons(pairs) == ["expected at most 4,194,304 bytes per line, found more"] * 2
    assert [reject.id for reject in pairs.rejected] == [f"{file}:2", f"{file}:4"]
    assert peak < 16 << 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NEAR_PAIRS = st.fixed_dictionaries(
    {}, optional={"image": st.just("a.jpg") | JSON, "text": st.text(max_size=5) | JSON, "target": JSON, "extra": JSON}
)


def conserved(file, lines):
    """Every line is a pair or a reject; every pair can be written again."""
    try:
        pairs = read_pairs(file)
    except PairsError:
        return
    assert len(pairs) + len(pairs.rejected) == lines
    for position in range(len(pairs)):
        json.dumps(pairs.row(position), ensure_ascii=False, allow_nan=False).encode()
        assert {"image": pairs.images, "text": pairs.texts}[pairs.sides[0]][position].strip()
        assert bool(pairs.images[position].strip()) == ("image" in pairs.sides)
        assert bool(pairs.texts[position].strip()) == ("text" in pairs.sides)
    for reject in pairs.rejected:
        assert reject.reason
        assert reject.id.startswith(f"{file}:")


@pytest.mark.slow
@settings(max_examples=150)
@given(rows=st.lists(NEAR_PAIRS | JSON, min_size=1, max_size=4))
def test_any_json_is_a_pair_or_a_reject(tmp_path_factory, rows):
    # A file of one object may be a whole table, by columns; a second line makes it lines.
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    write(file.parent, "\n".join([*(json.dumps(row) for row in rows), GOOD]), file.name)
    conserved(file, len(rows) + 1)


@pytest.mark.slow
@settings(max_examples=150)
@given(
    lines=st.lists(
        st.binary(min_size=1, max_size=20).filter(lambda raw: b"\n" not in raw and raw.strip()), min_size=1, max_size=4
    )
)
def test_any_bytes_are_a_pair_or_a_reject(tmp_path_factory, lines):
    file = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    write(file.parent, b"\n".join([*lines, GOOD.encode()]), file.name)
    whole_file_is_blank_mark = lines[0] == b"\xef\xbb\xbf"
    conserved(file, len(lines) + 1 - whole_file_is_blank_mark)


@settings(max_examples=150)
@given(tail=st.binary(max_size=60), broken=st.sampled_from([".csv", ".parquet", ".json"]))
def test_any_file_is_read_or_refused(tmp_path_factory, tail, broken):
    file = tmp_path_factory.getbasetemp() / f"any{broken}"
    write(file.parent, (b"image,text,target\n" if broken == ".csv" else b"") + tail, file.name)
    with contextlib.suppress(PairsError):
        assert len(read_pairs(file)) >= 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "{file}: no such pairs file; check the path"),
        ("pairs.doc", GOOD, f"{{file}}: expected a pairs file ending in {', '.join(ENDINGS)}; found '.doc'"),
        ("pairs", GOOD, f"{{file}}: expected a pairs file ending in {', '.join(ENDINGS)}; found 'pairs'"),
        (
            "pairs.xlsx",
            "PK",
            f"{{file}}: expected a pairs file ending in {', '.join(ENDINGS)}; found '.xlsx'; "
            "save the sheet as CSV (UTF-8)",
        ),
        (
            "empty.jsonl",
            "",
            "{file}: no usable pair found; expected one object per line such as "
            '{{"image": "a.jpg", "text": "a dog"}}. It is empty.',
        ),
        (
            "bad.jsonl",
            "{}\n[]\n",
            "{file}: no usable pair found; expected one object per line such as "
            '{{"image": "a.jpg", "text": "a dog"}}. Left out: 2 pairs ({file}:1: field \'image\': expected a string, '
            "found nothing; {file}:2: expected one JSON object, found list).",
        ),
        (
            "bad.csv",
            "image,text\na.jpg,\n",
            "{file}: no usable pair found; expected one row per pair, with columns as in "
            '{{"image": "a.jpg", "text": "a dog"}}. Left out: 1 pair ({file}:2: field \'text\': expected text, found '
            "only blanks).",
        ),
        (
            "header.csv",
            "picture,text\na,b\n",
            "{file}, line 1: expected the columns 'image' and 'text' (and 'target'), found ['picture', 'text']; "
            "name the columns, as in --columns image=NAME",
        ),
        (
            "twice.csv",
            "image,text,text\na,b,c\n",
            "{file}, line 1: expected each column once, found 'text' twice in ['image', 'text', 'text']",
        ),
        (
            "nothing.csv",
            "",
            "{file}, line 1: expected the columns 'image' and 'text' (and 'target'), found []; name the columns, "
            "as in --columns image=NAME,text=NAME",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(PairsError) as raised:
        read_pairs(file)
    assert str(raised.value) == message.format(file=file)


def test_a_folder_is_no_pairs_file(tmp_path):
    (tmp_path / "pairs.jsonl").mkdir()
    with pytest.raises(PairsError, match="found 'pairs.jsonl', a folder without any"):
        read_pairs(tmp_path / "pairs.jsonl")


def some_pairs(images):
    n = len(images)
    return Pairs(
        list(images), [f"t{i}" for i in range(n)], [None] * n, [{} for _ in range(n)], [f"f:{i}" for i in range(n)]
    )


def test_split_keeps_images_together_and_the_order():
    pairs = some_pairs("abcabcdeaa")
    kept, held = split_by_image(pairs, 0.4, seed=3)
    assert len(set(held.images)) == 2
    assert not set(kept.images) & set(held.images)
    assert sorted(kept.texts + held.texts) == sorted(pairs.texts)
    assert kept.texts == sorted(kept.texts)
    again = split_by_image(pairs, 0.4, seed=3)
    assert again[0].texts == kept.texts
    assert any(split_by_image(pairs, 0.4, seed=seed)[1].images != held.images for seed in range(5))


@pytest.mark.parametrize(("share", "held"), [(0.001, 1), (0.5, 2), (0.999, 2)])
def test_split_leaves_an_image_on_both_sides(share, held):
    parts = split_by_image(some_pairs("abc"), share)
    assert len(set(parts[1].images)) == held


def test_one_image_cannot_be_split():
    with pytest.raises(PairsError, match="f: expected at least two different images .* found 1"):
        split_by_image(some_pairs("aaa"), 0.5)


@pytest.mark.parametrize("field", ["image", "text", "target"])
def test_a_key_that_the_user_names_and_no_line_has_is_refused(tmp_path, field):
    file = tmp_path / "p.jsonl"
    rows = [{"image": f"{n}.png", "text": "a dog", "target": "yes", "breed": "pug"} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = (
        f"{file}: no pair has a value under 'bred', which --columns names as {field}; correct the name, or leave out "
        f"{field}=bred. Did you mean 'breed'? Valid: 'breed'"
    )
    with pytest.raises(PairsError, match=re.escape(message)):
        read_pairs(file, columns=f"{field}=bred")
    assert read_pairs(file, columns=f"{field}=breed").notes[0] == f"Read the column 'breed' as {field}."


def test_a_column_of_labels_may_still_be_empty(tmp_path):
    (tmp_path / "p.csv").write_text("image,text,label\na.png,a dog,\nb.png,a cat,\n")
    assert read_pairs(tmp_path / "p.csv", columns="target=label").targets == [None, None]
