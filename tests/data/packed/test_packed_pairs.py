"""Large JSON-lines files: the same pairs, rejects and messages as row by row, encoded, and cached next to the file."""

import json
import random

import numpy as np
import pytest

from frevl.data.packed import read as packed_read
from frevl.data.packed.columns import Coded, coded_values
from frevl.data.pairs import read_pairs, split_by_image, with_targets
from row_by_row import by_rows, said

PLAIN = [f'{{"image": "i/{k}.jpg", "text": "caption number {k}"}}' for k in range(7)]
LABELLED = [f'{{"image": "i/{k}.jpg", "text": "what is {k}?", "target": "answer {k % 3}"}}' for k in range(7)]
SLICED = [
    f'{{"image": "{k}", "text": "é \\u00e9 \\ud83d\\ude00 {k}", "target": "{k % 2}", '
    f'"kind": "a\\"b\\n{k}", "n": {k}, "deep": {deep}}}'
    for k, deep in enumerate(["true", "false", "true"])
]
# Lines that are no pairs, or are pairs that are written in an unusual way.
STRANGE = [
    "", "   ", "\t", "{}", "[]", "null", "17", '"text"', "{", '{"image": "a", "text": "b"',
    '{"image": "a", "text": "b"} x',
    '{"image": "a", "text": "b"} {"image": "c", "text": "d"}', '{"image": "a", "text": "b"}{"image": "c", "text": "d"}',
    '{"image": "a", "image": "b", "text": "c"}', '{"image": "a", "text": NaN}', '{"image": "a", "text": "\\ud83d"}',
    '{"image": "a", "text": "\\ud83d\\ude00"}', '{"image": "a", "text": "tab\there"}', '{"image": "a", "text": 5}',
    '{"image": "a", "text": "NA"}', '{"image": "a", "text": " n/a "}', '{"image": "NA", "text": "b"}',
    '{"image": " ", "text": "b"}', '{"image": "a", "text": "\u00a0"}', '{"image": "a", "text": "\\u2003"}',
    '{"image": "a", "text": "\\u0000"}', '{"image": "a", "text": "b", "target": " "}',
    '{"image": "a", "text": "b", "target": []}', '{"image": "a", "text": "b", "target": {"x": 2}}',
    '{"image": "a", "text": "b", "target": {"x": 0.5, "y": 1}}', '{"image": "a", "text": "b", "target": ["x", "y"]}',
    '{"image": "a", "text": "b", "target": 3}', '{"image": "a", "text": "b", "target": 3.0}',
    '{"image": "a", "text": "b", "target": 3.5}', '{"image": "a", "text": "b", "target": true}',
    '{"image": "a", "text": "b", "target": null}', '{"image": "a", "text": "b", "target": "NA"}',
    '{"image": "a", "text": "b", "target": "none"}', '{"image": "a", "text": "b", "n": 5}',
    '{"image": "a", "text": "b", "n": 5.0}', '{"image": "a", "text": "b", "n": 123456789012345678901234567890}',
    '{"image": "a", "text": "b", "kind": null}', '{"image": "a", "text": "b", "deep": {"x": [1, null]}}',
    '{"image": "a", "text": "b", "2020-01-01": "2020-01-01"}', '{"im\\u0061ge": "a", "text": "b"}',
    ' {"image": "a", "text": "b"} ', '{"image": "a", "text": "b"}\r', '\ufeff{"image": "a", "text": "b"}',
    '{"image": "a", "text": "b"} // comment', "{'image': 'a', 'text': 'b'}", '{"image": "a", "text": "ba\\u0064"}',
    '{"image": "a\\\\b\\/c", "text": "\\"quoted\\""}', '{"image": "a", "text": "b", "target": "a\\"b\\\\c"}',
    '{"image": null, "text": null}', '{"Image": "a", "text": "b"}', '{"image": "a", "text": "b", "n": -0}',
    '{"image": "a", "text": "b", "target": "1.0"}', '{"image": "a", "text": "b", "n": ' + "9" * 5000 + "}",
]  # fmt: skip
ONE_SIDED = ['{"image": "a"}', '{"text": "b"}', '{"image": "a", "text": null}', '{"image": "a", "target": "x"}']


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr("frevl.data.pairs._LARGE", 0)
    monkeypatch.setattr("frevl.data.packed.blocks._FEW", 2)
    monkeypatch.setattr("frevl.data.packed.columns._MANY", 3)
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))


def write(path, lines, end="\n"):
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("base", [PLAIN, LABELLED, SLICED], ids=["plain", "labelled", "sliced"])
def test_a_strange_line_among_plain_ones_is_read_as_row_by_row(tmp_path, base):
    for number, strange in enumerate([*STRANGE, *ONE_SIDED]):
        path = write(tmp_path / f"{number}.jsonl", [*base, strange, *base])
        expected = by_rows(path)
        assert said(path) == expected
        assert said(path) == expected, "the second time from what was kept"


@pytest.mark.slow
def test_any_mixture_is_read_as_row_by_row(tmp_path, monkeypatch):
    random.seed(0)
    for number in range(60):
        few = random.choice([0, 1, 3, 20])
        base = random.choice([PLAIN, LABELLED, SLICED, PLAIN + LABELLED + SLICED])
        odd = random.choice([STRANGE, ONE_SIDED, STRANGE + ONE_SIDED])
        lines = [*random.choices(base, k=random.randrange(2, 60)), *random.choices(odd, k=few)]
        first, *rest = lines
        random.shuffle(rest)
        monkeypatch.setattr(packed_read, "_AT_ONCE", random.choice([64, 500, 1 << 20]))
        path = write(tmp_path / f"{number}.jsonl", [first, *rest], random.choice(["\n", "\r\n"]))
        if random.random() < 0.3:
            path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
        assert said(path) == by_rows(path), path.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("given", [None, "image=path,text=title", "text=caption", "image=nothing"])
def test_other_names_of_columns(tmp_path, given):
    keys = '{{"path": "{0}", "title": "t {0}", "caption": "c {0}", "image": "i{0}", "target": "{0}", "more": 1}}'
    path = write(tmp_path / "pairs.jsonl", [keys.format(k) for k in range(9)])
    assert said(path, columns=given) == by_rows(path, columns=given)
    assert said(path, columns=None) == by_rows(path, columns=None)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n\n", b"[" + b",\n".join(line.encode() for line in PLAIN) + b"]", b'{"image": "a", "text": "b"}',
        b'{\n"image": "a",\n"text": "b"}\n', b"\xff\xfe" + "\n".join(PLAIN).encode("utf-16-le"),
        b"\xef\xbb\xbf" + "\n".join(PLAIN).encode(), "\n".join(PLAIN).encode() + b'\n{"image": "\xff", "text": "b"}\n',
        b"image,text\na,b\n", b'{"image": "a", "text": "' + b"x" * 300 + b'"}\n' + "\n".join(PLAIN).encode(),
        b'{"image": " ", "text": " "}\n' * 5, b"\0" * 64, b"{}\n" * 9, "\n".join(PLAIN).encode() + b"\n\0\n",
    ],
)  # fmt: skip
def test_other_forms_of_files(tmp_path, content, monkeypatch):
    monkeypatch.setattr("frevl.data.formats.json_rows._LONGEST_LINE", 200)
    for name in ("pairs.jsonl", "pairs.txt", "pairs.json"):
        path = tmp_path / name
        path.write_bytes(content)
        assert said(path) == by_rows(path)


def test_columns_are_codes_and_look_like_lists(tmp_path):
    path = write(tmp_path / "pairs.jsonl", LABELLED * 3)
    pairs, listed = read_pairs(path), by_rows(path)
    assert isinstance(pairs.images, Coded)
    assert len(pairs.images.values) == 7
    assert pairs.images.codes.dtype == np.int32
    assert pairs.images == listed[0]
    assert pairs.images[2] == listed[0][2]
    assert pairs.images[-1] == listed[0][-1]
    assert list(pairs.images[3:9:2]) == listed[0][3:9:2]
    assert pairs.texts + listed[0] == [*listed[1], *listed[0]]
    assert listed[0] + pairs.texts == [*listed[0], *listed[1]]
    assert "i/3.jpg" in pairs.images
    assert "i/9.jpg" not in pairs.images
    assert pairs.row(4) == json.loads(LABELLED[4])
    assert pairs.clusters is pairs.images
    some = pairs.select([5, 0, 5])
    assert list(some.images) == ["i/5.jpg", "i/0.jpg", "i/5.jpg"]
    assert list(some.places) == [f"{path}:6", f"{path}:1", f"{path}:6"]
    codes, values = coded_values(some.images)
    assert [values[code] for code in codes] == list(some.images)
    assert sorted(values) == ["i/0.jpg", "i/5.jpg"], "only what is used"
    with pytest.raises(IndexError):
        pairs.images[99]


def test_splits_and_missing_targets_are_those_of_lists(tmp_path, monkeypatch):
    lines = [*LABELLED, PLAIN[3], *LABELLED, '{"image": "z", "text": "y", "cluster": "c"}']
    path = write(tmp_path / "pairs.jsonl", lines)
    packed = read_pairs(path)
    monkeypatch.setattr("frevl.data.pairs._LARGE", 1 << 40)
    listed = read_pairs(path)
    assert isinstance(listed.images, list)
    for seed in range(5):
        for a, b in zip(split_by_image(packed, 0.3, seed=seed), split_by_image(listed, 0.3, seed=seed), strict=True):
            assert (list(a.images), list(a.places)) == (b.images, b.places)
    (kept, rejects), (expected, left_out) = with_targets(packed), with_targets(listed)
    assert rejects == left_out
    assert list(kept.targets) == expected.targets
    assert list(packed.clusters) == listed.clusters


def test_a_file_that_is_written_to_while_it_is_read_is_not_kept(tmp_path, monkeypatch):
    path = write(tmp_path / "pairs.jsonl", PLAIN)
    real = packed_read._read

    def slow(*given):
        with path.open("a", encoding="utf-8") as file:
            file.write(LABELLED[0] + "\n")
        return real(*given)

    monkeypatch.setattr(packed_read, "_read", slow)
    assert len(read_pairs(path)) == 8
    assert kept_files(tmp_path) == []


def test_without_a_home_pairs_are_read_all_the_same(tmp_path, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("frevl.data.packed.cache.user_cache", nobody)
    assert len(read_pairs(write(tmp_path / "pairs.jsonl", PLAIN))) == 7


def kept_files(folder):
    return sorted(path for path in folder.rglob(".*.pairs.arrow*"))


def test_what_is_kept_goes_with_the_content_of_the_file(tmp_path):
    path = write(tmp_path / "pairs.jsonl", PLAIN)
    read_pairs(path)
    (first,) = kept_files(tmp_path)
    assert first.parent == tmp_path
    write(path, [*PLAIN[1:], '{"image": "new", "text": "words"}'])
    assert list(read_pairs(path).images)[-1] == "new"
    (second,) = kept_files(tmp_path)
    assert second != first, "what was kept of the old content is gone"
    read_pairs(path, columns="text=image,image=text")
    assert read_pairs(path, columns="text=image,image=text").images[0] == "caption number 1"


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "other", "codes", "places", "letters", "another code", "lines", "notes"]
)
def test_a_damaged_file_is_not_read(tmp_path, damage, monkeypatch):
    monkeypatch.setattr("frevl.data.packed.columns._MANY", 100)  # numbers in the order of the file
    path = write(tmp_path / "pairs.jsonl", [*PLAIN, '{"image": "a"}'])
    read_pairs(path)
    (kept,) = kept_files(tmp_path)
    content = kept.read_bytes()
    codes = np.arange(7, dtype=np.int32)
    assert codes.tobytes() in content
    places = np.arange(0, 64, 7, dtype=np.int64)[:8]  # of ids of seven letters
    assert places.tobytes() in content
    lines = np.arange(1, 8, dtype=np.int32)
    changed = {
        "cut": content[: len(content) // 2], "empty": b"", "other": b"no arrow" * 100,
        "places": content.replace(places.tobytes(), (places << 33).tobytes()),
        "codes": content.replace(codes.tobytes(), (codes + 3).tobytes()),
        "letters": content.replace(b"caption number 3", b"caption number 9"),
        "another code": content.replace(codes.tobytes(), codes[::-1].tobytes()),
        "lines": content.replace(lines.tobytes(), (lines + 1).tobytes()),
        "notes": content.replace(b'"rejected": [[8,', b'"rejected": [[9,'),
    }[damage]  # fmt: skip
    assert changed != content
    kept.unlink()  # the pairs that were read from it still look at the old one
    kept.write_bytes(changed)
    assert said(path) == by_rows(path)


def test_a_folder_without_permission_leaves_the_users_cache(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    path = write(folder / "pairs.jsonl", PLAIN)
    real = packed_read.kept_columns.__globals__["_written"]

    def refused(made, where, *others):
        return False if where == folder else real(made, where, *others)

    monkeypatch.setitem(packed_read.kept_columns.__globals__, "_written", refused)
    assert len(read_pairs(path)) == 7
    assert [one.parent for one in kept_files(tmp_path)] == [tmp_path / "cache" / "pairs"]
    monkeypatch.setattr(packed_read, "_read", None)  # is not read again
    assert len(read_pairs(path)) == 7


def test_where_nothing_can_be_written_pairs_are_read_all_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "pairs.jsonl", PLAIN)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    assert said(path) == by_rows(path)
    assert kept_files(tmp_path) == [], "nor is half a file left behind"


def test_small_files_are_lists_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("frevl.data.pairs._LARGE", 16 << 20)
    path = write(tmp_path / "pairs.jsonl", PLAIN)
    assert isinstance(read_pairs(path).images, list)
    assert list(tmp_path.iterdir()) == [path]
