"""``frevl curate --drop text``: texts that say nothing about their image."""

import json

import numpy as np
import pytest

import frevl
from frevl.diagnosis.curation.checks.texts import boilerplate, file_name, has_words, script_of


@pytest.mark.parametrize("text", ["", "12 34", "...", "---", "3/4 (2)", "_ _", "№ 5"[2:], "🙂🙂"])
def test_texts_without_a_word(text):
    assert not has_words(text)


@pytest.mark.parametrize("text", ["a", "7 dogs", "犬", "собака", "é", "x-ray of 3"])
def test_texts_with_a_word(text):
    assert has_words(text)


@pytest.mark.parametrize(
    "text",
    [
        "IMG_1234.JPG",
        "DSC00042",
        "IMG 20240131 120000",
        "holiday-2019.jpeg",
        "Screenshot 2024-01-31 at 10.11.12",
        "image12",
        "https://example.org/a.png",
        "www.example.org/x",
        "0f8fad5b-d9cb-469f-a165-70867728950e",
        "image (3)",
        "PXL_20231105_101112",
        "20240131_120000",
        "d41d8cd98f00b204e9800998ecf8427e",
        "photo 17.webp",
        "3461437556_cc5e97f3ac.jpg",
        "WhatsApp Image 2024-01-31 at 10.11.12",
    ],
)
def test_names_of_files(text):
    assert file_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "a dog .",
        "image of a dog",
        "Photo 2 of 3: the bride",
        "p",
        "a man in the U.S.A.",
        "two dogs jump. one falls.",
        "dsc",
        "picture 1 shows a cat",
        "scan of a map from 1912",
        "deadbeef",
        "a screenshot",
        "St. Peter's 2019",
        "H2O",
    ],
)
def test_captions_are_no_names_of_files(text):
    assert not file_name(text)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a dog", "LATIN"),
        ("собака on", "CYRILLIC"),
        ("犬がいる", "CJK"),
        ("ｄｏｇ", "LATIN"),
        ("12", None),
        ("كلب", "ARABIC"),
        ("강아지", "HANGUL"),
        ("𝐝𝐨𝐠", "LATIN"),
        ("5ª", "LATIN"),
        ("naïve café", "LATIN"),
    ],
)
def test_scripts(text, script):
    assert script_of(text) == script


def test_a_text_of_pictures_that_are_alike_is_no_boilerplate():
    random = np.random.default_rng(0)
    centres = random.standard_normal((11, 29))
    kinds = random.integers(0, 11, 601)
    vectors = centres[kinds] + 0.7 * random.standard_normal((601, 29)) + 2  # all share a direction
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = [np.flatnonzero(kinds == kind)[:size].tolist() for kind in range(11) for size in (5, 13)]
    mixed = [random.permutation(601)[:size].tolist() for size in (5, 13, 300) for _ in range(20)]
    assert not boilerplate(vectors.astype(np.float16), alike).any()
    assert boilerplate(vectors.astype(np.float16), mixed).mean() > 0.9


def curated(tmp_path, texts, task=None, **extra):
    """Curate lines of toy images of colours, one text each."""
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for number, text in enumerate(texts):
        Image.new("RGB", (70, 70), (number % 256, 80 * (number % 3), 255 - number)).save(images / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": text, **extra})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frevl.extract(tmp_path / "store", images=images, pairs=[pairs], encoder=["toy"])
    return frevl.curate(tmp_path / "store", pairs, tmp_path / "kept.jsonl", drop=["text"], task=task)


def test_every_reason_is_named_and_drops_its_line(tmp_path):
    texts = [f"a thing of colour {chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(60)]
    texts[3], texts[7], texts[11] = "12 34 ...", "IMG_2041.jpg", "рыжая собака"
    for n in range(20, 60, 8):
        texts[n] = "Image  not available" if n % 16 else "\u200bimage not available."
    found = curated(tmp_path, texts)
    said = {n: line["curate"]["text"] for n, line in enumerate(found.lines) if line["curate"]["text"]}
    assert {n: own for n, own in said.items() if n in (3, 7, 11)} == {
        3: ["no words"], 7: ["file name"], 11: ["other script"]
    }  # fmt: skip
    assert {n for n, own in said.items() if own == ["on many different images"]} == set(range(20, 60, 8))
    assert len(said) == 8
    assert found.kept == 52
    assert found.filters["text"]["script"] == "LATIN"
    assert found.filters["text"]["reasons"] == {
        "file name": 1, "no words": 1, "on many different images": 5, "other script": 1
    }  # fmt: skip


def test_a_question_stands_with_many_pictures_by_right(tmp_path):
    found = curated(tmp_path, ["what is it?"] * 30, task="classification", target="a thing")
    assert found.kept == 30


def test_a_caption_on_most_pictures_is_not_judged_and_that_is_said(tmp_path):
    found = curated(tmp_path, ["A  picture"] * 20 + [f"a thing {chr(97 + n)}" for n in range(10)])
    assert found.kept == 30
    assert "'a picture' goes with 20 of 30 distinct images; above half" in found.sentence()


def test_where_every_line_is_a_file_name_all_go_and_that_is_said_first(tmp_path):
    found = curated(tmp_path, [f"IMG_{n}.jpg" for n in range(30)])
    assert found.sentence().startswith("No line is kept.")


def test_a_set_in_two_scripts_has_none_out_of_place(tmp_path):
    found = curated(tmp_path, [f"собака {n}" if n % 3 else f"a dog {n}" for n in range(30)])
    assert found.kept == 30
    assert "several scripts (CYRILLIC 67 %, LATIN 33 %)" in found.sentence()
