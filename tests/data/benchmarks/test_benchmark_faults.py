"""Official files with faults: nothing is dropped silently, and what is written can be read again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from frevl.data.benchmarks.load import BENCHMARKS, left_out_sentence, load_benchmark
from frevl.data.pairs import problem_of, read_pairs
from frevl.errors import InputError, PairsError, UsageError

BLANK = "field 'text': expected text, found only blanks"
HALF = "expected text, found half of a surrogate pair"


def put(root: Path, name: str, content: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def annotation(question: int, image: int, *answers: str) -> dict[str, Any]:
    return {
        "question_id": question,
        "image_id": image,
        "question_type": "what",
        "answer_type": "other",
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": answer, "answer_id": k} for k, answer in enumerate(answers)],
    }


def vqa(root: Path, questions: list[tuple[int, int, str]], annotations: list[Any], subset: str = "train2014") -> None:
    asked = [{"question_id": id_, "image_id": image, "question": text} for id_, image, text in questions]
    put(root, "v2_OpenEnded_mscoco_train2014_questions.json", {"data_subtype": subset, "questions": asked})
    put(root, "v2_mscoco_train2014_annotations.json", {"annotations": annotations})
    for _, image, _ in questions:
        put(root, f"train2014/COCO_train2014_{image:012d}.jpg", "")


def test_vqa_ids_that_stand_twice_are_said_and_the_first_counts(tmp_path: Path) -> None:
    vqa(
        tmp_path,
        [(10, 1, "What?"), (10, 1, "Which?"), (20, 2, "Who?")],
        [annotation(10, 1, *["net"] * 4), annotation(10, 1, *["zebra"] * 4), annotation(20, 2, *["man"] * 4)],
    )
    found = load_benchmark("vqa-v2", tmp_path)
    assert [(row["text"], row["target"]) for row in found.rows] == [("What?", {"net": 1.0}), ("Who?", {"man": 1.0})]
    assert found.left_out == [
        ("annotation of question 10", "repeats the annotation of a question"),
        ("question 10", "repeats the id of an earlier question"),
    ]


def test_vqa_annotation_of_another_image_is_said(tmp_path: Path) -> None:
    vqa(tmp_path, [(10, 1, "?"), (20, 2, "?")], [annotation(10, 1, "a", "a"), annotation(20, 1, "b", "b")])
    found = load_benchmark("vqa-v2", tmp_path)
    assert [row["question_id"] for row in found.rows] == [10]
    assert found.left_out == [("question 20", "question and annotation name different images")]


def test_vqa_questions_of_another_split_are_refused(tmp_path: Path) -> None:
    vqa(tmp_path, [(10, 1, "?")], [annotation(10, 1, "a", "a")], subset="val2014")
    with pytest.raises(InputError, match="expected the questions of 'train', found those of 'val2014'"):
        load_benchmark("vqa-v2", tmp_path)


def test_vqa_annotations_of_another_split_or_form_are_refused_with_their_file(tmp_path: Path) -> None:
    vqa(tmp_path, [(10, 1, "?")], [annotation(10, 1, "a", "a")])
    name = "v2_mscoco_train2014_annotations.json"
    put(tmp_path, name, {"data_subtype": "val2014", "annotations": [annotation(10, 1, "a", "a")]})
    with pytest.raises(InputError, match=rf"{name}: expected the annotations of 'train2014', .* those of 'val2014'"):
        load_benchmark("vqa-v2", tmp_path)
    put(tmp_path, name, {"annotations": [annotation(10, 1, "a") | {"answers": ["a", "b"]}]})
    with pytest.raises(InputError, match=rf"{name}, annotation of question 10: expected an object with 'answer'"):
        load_benchmark("vqa-v2", tmp_path)


def test_true_is_not_an_image_number(tmp_path: Path) -> None:
    vqa(tmp_path, [(10, True, "?")], [annotation(10, True, "a", "a")])
    with pytest.raises(InputError, match=r"questions\[0\]: expected 'image_id' to be int, found bool"):
        load_benchmark("vqa-v2", tmp_path)


def test_the_vocabulary_of_vqa_counts_majority_answers_of_training_questions(tmp_path: Path) -> None:
    """9 questions say "net", 8 say "Zebra."; an answer that only minorities give is no class, however often."""
    questions, annotations = [], []
    for number in range(19):
        majority = "net" if number < 9 else "Zebra." if number < 17 else "gnu"
        questions.append((number, 1, "What?"))
        annotations.append(annotation(number, 1, *[majority] * 7, *["cat"] * 3 if number != 18 else ["a net"] * 3))
    vqa(tmp_path, questions, annotations)
    found = load_benchmark("vqa-v2", tmp_path, min_answer_count=9)
    assert [row["target"] for row in found.rows] == [{"net": 1.0}] * 9 + [{"net": 0.9}]
    assert [row["question_id"] for row in found.rows] == [*range(9), 18]
    assert found.left_out == [
        *((f"question {number}", "outside the vocabulary: 'zebra', 'cat'") for number in range(9, 17)),
        ("question 17", "outside the vocabulary: 'gnu', 'cat'"),
    ]
    assert left_out_sentence(found) == "Left out: 9 (9 x outside the vocabulary)."
    assert found.notes[-1] == "1 answers are the majority answer of at least 9 questions."
    lower = load_benchmark("vqa-v2", tmp_path, min_answer_count=8)
    assert {answer for row in lower.rows for answer in row["target"]} == {"net", "zebra"}
    assert len(load_benchmark("vqa-v2", tmp_path).rows) == 19
    with pytest.raises(
        UsageError, match=r"0 answers are the majority answer of at least 10 questions.* Lower the minimum"
    ):
        load_benchmark("vqa-v2", tmp_path, min_answer_count=10)


def test_a_vocabulary_is_made_from_training_questions_only(tmp_path: Path, frevl) -> None:
    said = frevl("pairs", "vqa-v2", "--root", tmp_path, "--split", "val", "--out", "x", "--min-answer-count", 9)
    assert said.code == 2
    assert "made from the training questions of vqa-v2, not from 'val' of 'vqa-v2'" in said.err


def test_blank_texts_and_half_letters_are_left_out_with_their_reason(tmp_path: Path, frevl) -> None:
    vqa(
        tmp_path,
        [(1, 1, " "), (2, 1, "What \ud83d?"), (3, 1, "What \U0001f600?")],
        [annotation(number, 1, "a", "a") for number in (1, 2, 3)],
    )
    out, record = tmp_path / "out.jsonl", tmp_path / "out.json"
    said = frevl("pairs", "vqa-v2", "--root", tmp_path, "--out", out, "--json", record)
    assert said.code == 0
    assert f"Wrote 1 pair of vqa-v2 (classification) to {out}. Left out: 2 (1 x {BLANK}; 1 x {HALF})." in said.out
    assert read_pairs(out).texts == ["What \U0001f600?"]
    assert json.loads(record.read_text())["left_out"] == [["question_id 1", BLANK], ["question_id 2", HALF]]


def test_a_choice_with_a_blank_caption_leaves_its_group_out(tmp_path: Path) -> None:
    good = {"filename": "1.jpg", "caption": "A dog.", "negative_caption": "A cat."}
    put(tmp_path, "add_att.json", {"0": good, "1": {**good, "negative_caption": " "}})
    put(tmp_path, "1.jpg", "")
    found = load_benchmark("sugarcrepe", tmp_path, "test")
    assert [row["group"] for row in found.rows] == ["add_att/0"] * 2
    assert found.left_out[-2:] == [
        ("group add_att/1", BLANK),
        ("group add_att/1", "another row of the group is left out"),
    ]


def test_an_image_without_captions_is_said(tmp_path: Path) -> None:
    sentences = [{"raw": "A dog."}]
    listed = [{"filename": "1.jpg", "sentences": []}, {"filename": "2.jpg", "sentences": sentences}]
    put(tmp_path, "k/dataset_flickr8k.json", {"images": [{**image, "split": "test"} for image in listed]})
    put(tmp_path, "p/test.jsonl", '{"image": "1.jpg", "captions": []}\n{"image": "2.jpg", "captions": ["A dog."]}\n')
    for folder in ("k", "p"):
        put(tmp_path, f"{folder}/2.jpg", "")
        found = load_benchmark("flickr8k", tmp_path / folder, "test")
        assert [row["text"] for row in found.rows] == ["A dog."]
        assert found.left_out == [("1.jpg", "the image has no caption")]


def test_a_key_that_stands_twice_is_not_overwritten_in_silence(tmp_path: Path) -> None:
    one = json.dumps({"imageId": "n1", "question": "?"})
    put(tmp_path, "test_balanced_questions.json", f'{{"07": {one}, "07": {one}}}')
    with pytest.raises(InputError, match=r"cannot be read as UTF-8 JSON \(the key '07' appears twice\)"):
        load_benchmark("gqa", tmp_path, "test")
    put(tmp_path, "snli_ve_dev.jsonl", '{"Flickr30K_ID": "1", "Flickr30K_ID": "2"}\n')
    with pytest.raises(PairsError, match="snli_ve_dev.jsonl:1: expected one JSON object"):
        load_benchmark("snli-ve", tmp_path, "dev")


def test_numbers_of_thousands_of_digits_are_malformed_not_a_crash(tmp_path: Path) -> None:
    put(tmp_path, "snli_ve_dev.jsonl", '{"Flickr30K_ID": ' + "9" * 5000 + "}\n")
    with pytest.raises(PairsError, match="snli_ve_dev.jsonl:1: expected one JSON object"):
        load_benchmark("snli-ve", tmp_path, "dev")
    put(tmp_path, "testdev_balanced_questions.json", '{"1": ' + "9" * 5000 + "}")
    with pytest.raises(InputError, match=r"UTF-8 JSON \(Exceeds the limit"):
        load_benchmark("gqa", tmp_path, "testdev")


def test_winoground_ids_that_stand_twice_do_not_mix_two_examples(tmp_path: Path) -> None:
    example = {"id": 7, "caption_0": "a b", "caption_1": "b a", "image_0": "x", "image_1": "y"}
    put(tmp_path, "examples.jsonl", f"{json.dumps(example)}\n{json.dumps(example)}\n")
    for name in ("x.png", "y.png"):
        put(tmp_path, name, "")
    found = load_benchmark("winoground", tmp_path, "test")
    assert len(found.rows) == 4
    assert found.left_out == [(f"examples.jsonl:2, choice {k}", "the id 7 was used before") for k in range(4)]


def test_blank_answers_of_a_set_are_no_answers(tmp_path: Path) -> None:
    lines = [{"image": "1.png", "question": "q", "answers": answers} for answers in ([" bed ", ""], [" "], [2])]
    put(tmp_path, "train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    put(tmp_path, "1.png", "")
    found = load_benchmark("daquar", tmp_path, "train")
    assert [row["target"] for row in found.rows] == ["bed", "2"]
    assert found.left_out == [("train.jsonl:2", "the answer is empty")]


def test_an_archive_is_named_instead_of_missing(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "dataset_coco.json.gz", "wt") as file:
        file.write("{}")
    with pytest.raises(InputError, match=r"dataset_coco.json.gz: expected the unpacked file, found an archive"):
        load_benchmark("coco", tmp_path, "train")


def test_a_split_of_faults_only_names_the_first(tmp_path: Path) -> None:
    put(tmp_path, "snli_ve_dev.jsonl", '{"Flickr30K_ID": "1", "sentence2": "a", "gold_label": "-", "pairID": "p"}\n')
    with pytest.raises(InputError, match=r"has no usable row \(p: people did not agree on a label\)"):
        load_benchmark("snli-ve", tmp_path, "dev")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image": "a", "text": "b"}, ""),
        ({"image": "a", "text": "b", "target": {"c": 1}, "answers": ["\U0001f600"]}, ""),
        ({"image": "a", "text": "\t"}, BLANK),
        ({"image": "a", "text": "b", "answers": ["\ude00"]}, HALF),
        ({"image": "a", "text": "b", "target": ""}, "field 'target': expected a class"),
        ({"text": "b"}, "field 'image': expected a string, found nothing"),
        (["a", "b"], "expected one JSON object, found list"),
    ],
)
def test_problem_of_a_row(row: object, problem: str) -> None:
    assert problem_of(row).startswith(problem)
    assert bool(problem_of(row)) == bool(problem)


def test_a_small_daquar_of_consecutive_images_can_still_be_split(tmp_path: Path) -> None:
    text = "".join(f"what is on the desk in the image{n} ?\nlamp\n" for n in (3, 4, 5))
    put(tmp_path, "qa.894.raw.train.txt", text)
    for n in (3, 4, 5, 9):
        put(tmp_path, f"image{n}.png", "")
    assert all("cluster" not in row for row in load_benchmark("daquar", tmp_path).rows)
    put(tmp_path, "qa.894.raw.train.txt", text + "what is on the desk in the image9 ?\nlamp\n")
    rows = load_benchmark("daquar", tmp_path).rows
    assert [row["cluster"] for row in rows] == ["from image3"] * 3 + ["from image9"]


def nlvr_sentence(number: int) -> dict[str, Any]:
    return {"sentence": "x", "label": "true", "identifier": f"{number}-0", "directory": "3", "structured_rep": []}


def test_nlvr_pictures_may_keep_the_name_of_the_split_they_were_cut_from(tmp_path: Path) -> None:
    put(tmp_path, "test.json", "\n".join(json.dumps(nlvr_sentence(n)) for n in (1, 2)))
    for n in (1, 2):
        for k in range(6):
            put(tmp_path, f"images/3/dev-{n}-0-{k}.png", "")
    rows = load_benchmark("nlvr", tmp_path, "test").rows
    assert [row["image"] for row in rows] == [f"images/3/dev-{n}-0-{k}.png" for n in (1, 2) for k in range(6)]
    # One image of its own split: then the others are missing, not found under another split's name.
    put(tmp_path, "images/3/test-1-0-4.png", "")
    assert [row["image"] for row in load_benchmark("nlvr", tmp_path, "test").rows] == ["images/3/test-1-0-4.png"]


def test_nlvr_pictures_of_another_split_are_taken_only_if_all_are_there(tmp_path: Path) -> None:
    put(tmp_path, "test.json", json.dumps(nlvr_sentence(1)))
    for k in range(5):
        put(tmp_path, f"images/3/dev-1-0-{k}.png", "")
    with pytest.raises(InputError, match=r"none of the 6 image\(s\) of 'nlvr' .* 'images/3/test-1-0-0.png'"):
        load_benchmark("nlvr", tmp_path, "test")


def test_a_development_part_of_daquar_cut_out_by_the_user(tmp_path: Path) -> None:
    put(tmp_path, "dev.jsonl", json.dumps({"image": "image3.jpg", "question": "what ?", "answers": ["lamp"]}))
    put(tmp_path, "image3.jpg", "")
    assert [row["target"] for row in load_benchmark("daquar", tmp_path, "val").rows] == ["lamp"]


def test_the_page_names_every_set_with_its_splits_and_files() -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for name, source in BENCHMARKS.items():
        files = ", ".join(f"`{pattern}`" for pattern, _ in source.files if pattern != "{split}.jsonl")
        assert f"| `{name}` | {source.task} | {', '.join(source.splits)} | {files} |" in rows
    assert sum(len(line.split("|")) == 6 for line in rows) == len(BENCHMARKS)


def test_the_metrics_of_the_page_say_what_it_says(capsys) -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    block = page.split("<!-- executed by tests/data/benchmarks/test_benchmark_faults.py -->\n```python\n")[1].split(
        "```"
    )[0]
    names: dict[str, Any] = {}
    exec(compile(block, "benchmarks.md", "exec"), names)  # noqa: S102 (our own page)
    assert names["right"].tolist() == pytest.approx([0.9, 1.0])
    assert names["ranks"].tolist() == [0, 0]
    assert capsys.readouterr().out.splitlines()[1] == "1.0"
