"""Files that name classes: the three formats, what is refused, and the sentences made from them."""

import json

import pytest

from frevl.data.class_files import check_templates, doubtful_names, read_classes, sentences_of
from frevl.errors import InputError, UsageError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_name_a_line_with_blank_lines_and_a_byte_order_mark(tmp_path):
    classes = read_classes(write(tmp_path / "c.txt", "\ufefftench\n\n  great white shark \nŌkami\n"))
    assert classes.labels == ["tench", "great white shark", "Ōkami"]
    assert [entry.place for entry in classes.entries][1] == f"{tmp_path / 'c.txt'}:3"


def test_objects_with_names_descriptions_and_examples(tmp_path):
    rows = [
        {"class": "tench", "names": ["tench", "Tinca tinca"], "descriptions": ["a fish with red eyes"], "kind": "fish"},
        {"class": "n0144", "names": [], "examples": ["a.jpg", "b.jpg"]},
        {"class": "cock"},
    ]
    classes = read_classes(write(tmp_path / "c.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    tench, nameless, cock = classes.entries
    assert sentences_of(tench, ["a photo of a {}.", "{}!"]) == [
        "a photo of a tench.", "a photo of a Tinca tinca.", "tench!", "Tinca tinca!",
        "tench, which is a fish with red eyes",
    ]  # fmt: skip
    assert sentences_of(nameless, ["{}"]) == []
    assert nameless.examples == ("a.jpg", "b.jpg")
    assert sentences_of(cock, ["{}"]) == ["cock"]


def test_published_descriptions(tmp_path):
    """As CuPL publishes them, whole sentences; and as classification by description does, features."""
    texts = {"hen": ["A hen is a female chicken.", "feathers", "can be brown"], "cock": "a red comb"}
    classes = read_classes(write(tmp_path / "c.json", json.dumps(texts)))
    assert sentences_of(classes.entries[0], ["{}"]) == [
        "hen", "A hen is a female chicken.", "hen, which has feathers", "hen, which can be brown",
    ]  # fmt: skip
    assert sentences_of(classes.entries[1], ["{}"]) == ["cock", "cock, which is a red comb"]
    assert read_classes(texts).labels == classes.labels
    assert read_classes(["hen", "cock"]).labels == ["hen", "cock"]


def test_single_bad_lines_are_kept_aside(tmp_path):
    lines = ['{"class": "hen"}', "{broken", '{"class": ""}', '{"class": "cock", "colour": "red"}',
             '{"class": "duck", "names": "duck"}', '{"class": "goose"}']  # fmt: skip
    classes = read_classes(write(tmp_path / "c.jsonl", "\n".join(lines)))
    assert classes.labels == ["hen", "goose"]
    assert [reject.id.rpartition(":")[2] for reject in classes.rejected] == ["2", "3", "4", "5"]
    assert "there is no field 'colour'" in classes.rejected[2].reason


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "hen\ncock\nhen\n", r"c.txt:3: the class 'hen' already appears in .*c.txt:1"),
        ("c.txt", "hen\n\n", "at least two classes, found 1"),
        ("c.txt", "", "at least two classes, found 0"),
        ("c.txt", "hen, cock, duck\n", "at least two classes, found 1, 'hen, cock, duck'; write one name per line"),
        ("c.txt", "0\then\n1\tcock\n", r"c.txt:1: expected a name, found columns separated by tabs \('0\\then'\)"),
        ("c.txt", "\u200b\nhen\n", "c.txt:1: expected a name, found only spaces or invisible characters"),
        ("c.jsonl", '{"class": "\u200b"}\n{"class": "hen"}', "field 'class': expected a name"),
        ("c.json", '{"\u200b": ["a hen"], "cock": []}', "expected the name of a class"),
        ("c.json", "[1, 2]", "expected a JSON object"),
        ("c.json", "{", "broken JSON"),
        ("c.json", '{"hen": [1], "cock": []}', "class 'hen': expected a list of texts, found 1"),
        ("c.csv", "hen\ncock\n", "found the suffix '.csv'"),
    ],
)
def test_what_is_refused(name, text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_classes(write(tmp_path / name, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"absent.txt: the classes cannot be read \(No such file"):
        read_classes(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\nth\xe9\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_classes(tmp_path / "latin.txt")


def test_templates_need_one_place_for_the_name():
    check_templates(["a photo of a {}."])
    for wrong in ("a photo", "{} and {}"):
        with pytest.raises(UsageError, match="one '{}'"):
            check_templates([wrong])


def test_a_class_that_stands_twice_in_an_object_is_refused(tmp_path):
    """Python's reader takes the last one, so the texts of the first were lost without a word."""
    path = write(tmp_path / "c.json", '{"tench": ["a fish"], "cock": ["a bird"], "tench": ["a green fish"]}')
    with pytest.raises(InputError, match=r"c.json: the class 'tench' appears twice"):
        read_classes(path)


def test_an_index_is_not_a_name(tmp_path):
    """Its texts were taken for features of the number: "0, which has tench"."""
    long = "a freshwater fish with small scales"
    classes = read_classes(write(tmp_path / "c.json", json.dumps({"0": ["tench"], "1": ["a hen", long], "2": []})))
    assert [sentences_of(entry, ["a {}"]) for entry in classes.entries] == [["a tench"], ["a a hen", long], ["a 2"]]
    (note,) = doubtful_names(classes)
    assert note.startswith("The names of 1 of 3 classes are only numbers ('2'), which describe an image only if")


def test_names_that_are_probably_not_meant_are_named(tmp_path):
    (numbers,) = doubtful_names(read_classes(["0", "1", "2", "10.5"]))
    assert numbers.startswith("The names of 4 of 4 classes are only numbers ('0', '1', '2' and others), which describe")
    assert doubtful_names(read_classes(["hen 1", "boeing 737", "c4"])) == []
    unnamed = read_classes(write(tmp_path / "c.jsonl", '{"class": "1", "names": []}\n{"class": "2", "names": ["hen"]}'))
    assert doubtful_names(unnamed) == []
    (comment,) = doubtful_names(read_classes(write(tmp_path / "c.txt", "# birds\nhen\ncock\n")))
    assert "c.txt:1: '# birds' is taken for a class, as there are no comments in this file" in comment


def test_names_in_any_script_and_with_braces(tmp_path):
    names = ["猫", "кошка", "قطة", "a\u2028b", "{}{x}"]
    classes = read_classes(write(tmp_path / "c.txt", "\n".join(names)))
    assert classes.labels == names
    assert sentences_of(classes.entries[-1], ["the {} of {y}"]) == ["the {}{x} of {y}"]
