"""Readers of question sets, on small files in the official formats."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_files import images, put, simple

from frevl.data.benchmarks import load as benchmarks
from frevl.data.benchmarks.load import load_benchmark
from frevl.data.benchmarks.vqa import keep_vocabulary
from frevl.errors import InputError, MissingExtraError, UsageError

# --------------------------------------------------------------------------------------- VQA v2


def vqa_files(root: Path, questions: list[int], annotations: list[int]) -> None:
    put(
        root,
        "v2_OpenEnded_mscoco_val2014_questions.json",
        {
            "info": {},
            "data_subtype": "val2014",
            "questions": [{"image_id": 42, "question": f"What {q}?", "question_id": q} for q in questions],
        },
    )
    answers = ["red"] * 2 + ["a Blue"] * 3 + ["white"] * 5
    put(
        root,
        "v2_mscoco_val2014_annotations.json",
        {
            "annotations": [
                {
                    "question_id": q,
                    "image_id": 42,
                    "question_type": "what",
                    "answer_type": "other",
                    "multiple_choice_answer": "white",
                    "answers": [
                        {"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)
                    ],
                }
                for q in annotations
            ]
        },
    )


def test_vqa_v2(tmp_path: Path) -> None:
    vqa_files(tmp_path, [420, 421], [421, 420])
    images(tmp_path, "val2014/COCO_val2014_000000000042.jpg")
    found = load_benchmark("vqa-v2", tmp_path, "val")
    assert found.rows[0] == {
        "image": "val2014/COCO_val2014_000000000042.jpg",
        "text": "What 420?",
        "target": pytest.approx({"red": 0.6, "blue": 0.9, "white": 1.0}),
        "question_id": 420,
        "question_type": "what",
        "answer_type": "other",
        "multiple_choice_answer": "white",
        "answers": ["red"] * 2 + ["a Blue"] * 3 + ["white"] * 5,
    }
    assert [row["question_id"] for row in found.rows] == [420, 421]
    assert found.left_out == []


def test_vqa_v2_question_without_annotation_and_the_other_way_round(tmp_path: Path) -> None:
    vqa_files(tmp_path, [420, 421], [421, 422])
    images(tmp_path, "val2014/COCO_val2014_000000000042.jpg")
    found = load_benchmark("vqa-v2", tmp_path, "val")
    assert [row["question_id"] for row in found.rows] == [421]
    assert found.left_out == [
        ("question 420", "the question has no annotation"),
        ("annotation of question 422", "the annotation has no question"),
    ]


def test_vqa_v2_test_has_no_targets(tmp_path: Path) -> None:
    put(
        tmp_path,
        "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        {"data_subtype": "test-dev2015", "questions": [{"image_id": 1, "question": "What?", "question_id": 10}]},
    )
    images(tmp_path, "test2015/COCO_test2015_000000000001.jpg")
    found = load_benchmark("vqa-v2", tmp_path, "test-dev")
    assert simple(found) == [("test2015/COCO_test2015_000000000001.jpg", "What?", None)]


def test_vqa_v2_without_its_annotations(tmp_path: Path) -> None:
    vqa_files(tmp_path, [420], [420])
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(InputError, match=r"'v2_mscoco_val2014_annotations.json' that belong to .* are missing"):
        load_benchmark("vqa-v2", tmp_path, "val")


def test_answers_outside_the_vocabulary_are_said() -> None:
    rows = [
        {"image": "1", "text": "?", "target": {"red": 0.6, "blue": 1.0}, "question_id": 1},
        {"image": "1", "text": "?", "target": {"puce": 0.3, "mauve": 0.9}, "question_id": 2},
    ]
    kept, left_out = keep_vocabulary(rows, ["blue", "green"])
    assert kept == [{"image": "1", "text": "?", "target": {"blue": 1.0}, "question_id": 1}]
    assert left_out == [("question 2", "outside the vocabulary: 'puce', 'mauve'")]
    assert rows[0]["target"] == {"red": 0.6, "blue": 1.0}


# ------------------------------------------------------------------------ GQA, DAQUAR, easy-VQA


def test_gqa(tmp_path: Path) -> None:
    question = {
        "imageId": "2354786",
        "question": "Is the sky dark?",
        "answer": "yes",
        "fullAnswer": "Yes, the sky is dark.",
        "isBalanced": True,
        "types": {"structural": "verify", "semantic": "global", "detailed": "existAttrC"},
    }
    unseen = {"imageId": "n1", "question": "What is it?", "isBalanced": True}
    put(tmp_path, "questions1.2/val_balanced_questions.json", {"05451384": question})
    put(tmp_path, "questions1.2/test_balanced_questions.json", {"201": unseen})
    images(tmp_path, "images/2354786.jpg", "images/n1.jpg")
    assert load_benchmark("gqa", tmp_path, "val").rows == [
        {
            "image": "images/2354786.jpg",
            "text": "Is the sky dark?",
            "target": "yes",
            "question_id": "05451384",
            "structural": "verify",
            "semantic": "global",
            "detailed": "existAttrC",
        }
    ]
    assert simple(load_benchmark("gqa", tmp_path, "test")) == [("images/n1.jpg", "What is it?", None)]
    put(tmp_path, "questions1.2/val_balanced_questions.json", [question])
    with pytest.raises(InputError, match="expected an object of questions by id, found list"):
        load_benchmark("gqa", tmp_path, "val")


DAQUAR = """what is on the desk in the image3 ?
book, scissor, tape_dispenser
how many chairs are in the image4 ?
3
what color is the image3 in the image5 ?
red
"""


def test_daquar(tmp_path: Path) -> None:
    put(tmp_path, "qa.894.raw.train.txt", DAQUAR)
    images(tmp_path, "nyu_depth_images/image3.png", "nyu_depth_images/image4.png", "nyu_depth_images/image5.jpg")
    found = load_benchmark("daquar", tmp_path, "train")
    assert simple(found) == [
        ("nyu_depth_images/image3.png", "what is on the desk ?", ["book", "scissor", "tape_dispenser"]),
        ("nyu_depth_images/image4.png", "how many chairs are ?", "3"),
        ("nyu_depth_images/image5.jpg", "what color is the image3 ?", "red"),
    ]
    assert found.rows[1]["question"] == "how many chairs are in the image4 ?"
    assert [row["answer_type"] for row in found.rows] == ["set", "single", "single"]
    assert [row["question_type"] for row in found.rows] == ["object", "count", "colour"]
    assert found.rows[1]["answers"] == ["3"]


@pytest.mark.parametrize(
    ("file", "list_name", "entry"),
    [("qa.894.raw.txt", "test.txt", "image4"), ("all_qa_pairs.txt", "test_images_list.txt", "image4.png")],
)
def test_daquar_full_file_with_the_official_lists(tmp_path: Path, file: str, list_name: str, entry: str) -> None:
    put(tmp_path, file, DAQUAR)
    put(tmp_path, list_name, entry + "\n" + entry.replace("4", "3"))
    images(tmp_path, "images/image3.png", "images/image4.png", "images/image5.png")
    found = load_benchmark("daquar", tmp_path, "test")
    # The question about "the image3 in the image5" is about image5, which is not in the list.
    assert simple(found) == [
        ("images/image3.png", "what is on the desk ?", ["book", "scissor", "tape_dispenser"]),
        ("images/image4.png", "how many chairs are ?", "3"),
    ]
    with pytest.raises(InputError, match=r"put the list train\.txt or train_images_list.txt below"):
        load_benchmark("daquar", tmp_path, "train")


def test_daquar_names_and_rooms(tmp_path: Path) -> None:
    """Only the image's own name goes; consecutive numbers are one room, in whatever order; other names have none."""
    asked = [
        ("image11.jpg", "what is in this image11 next to image1 ?", "what is next to image1 ?"),
        ("image9.jpg", "how many beds image9 ?", "how many beds ?"),
        ("image10.jpg", "image10", "image10"),
        ("image13.jpg", "what is left of the tv ?", "what is left of the tv ?"),
        ("hall.jpg", "what is of hall ?", "what is ?"),
    ]
    rows = [{"image": image, "question": question, "answers": ["x"]} for image, question, _ in asked]
    put(tmp_path, "train.jsonl", rows)
    images(tmp_path, *(f"images/{image}" for image, _, _ in asked))
    found = load_benchmark("daquar", tmp_path, "train").rows
    assert [row["text"] for row in found] == [text for _, _, text in asked]
    rooms = [row.get("cluster") for row in found]
    assert rooms == ["from image9", "from image9", "from image9", "from image13", None]


def test_daquar_out_of_step(tmp_path: Path) -> None:
    put(tmp_path, "qa.894.raw.train.txt", "red\n" + DAQUAR)
    with pytest.raises(InputError, match=r"txt:2: .* found 'red' and then 'what is on the desk in the image3 \?'"):
        load_benchmark("daquar", tmp_path, "train")
    put(tmp_path, "qa.894.raw.train.txt", DAQUAR.replace("\n3\n", "\n"))
    with pytest.raises(InputError, match=r"train.txt:4: .* in the image4 \?' and then 'what color"):
        load_benchmark("daquar", tmp_path, "train")
    put(tmp_path, "qa.894.raw.train.txt", DAQUAR + "what is in the image5 ?\n")
    with pytest.raises(InputError, match="the last question has no answer line; the file is truncated"):
        load_benchmark("daquar", tmp_path, "train")


def test_plain_questions(tmp_path: Path) -> None:
    put(
        tmp_path,
        "train.jsonl",
        [
            {"image": "image3.jpg", "question": "how many ?", "answers": ["2"]},
            {"image": "image3.jpg", "question": "what ?", "answers": ["a", "b"]},
            {"image": "image3.jpg", "question": "what ?", "answers": []},
        ],
    )
    images(tmp_path, "images/image3.jpg")
    found = load_benchmark("daquar", tmp_path, "train")
    assert [row["target"] for row in found.rows] == ["2", ["a", "b"]]
    assert found.left_out == [("train.jsonl:3", "the answer is empty")]


def test_easy_vqa_takes_the_picture_of_its_own_split(tmp_path: Path) -> None:
    put(tmp_path, "train/questions.json", [["is it blue?", "yes", 0], ["what shape?", "circle", 5]])
    put(tmp_path, "test/questions.json", [["is it red?", "no", 0]])
    images(tmp_path, "train/images/0.png", "test/images/0.png", "test/images/5.png")
    found = load_benchmark("easy-vqa", tmp_path, "train")
    assert simple(found) == [("train/images/0.png", "is it blue?", "yes")]
    assert found.left_out == [("train/images/5.png", "the image is missing")]
    assert simple(load_benchmark("easy-vqa", tmp_path, "test")) == [("test/images/0.png", "is it red?", "no")]
    put(tmp_path, "test/questions.json", [["is it red?", "no"]])
    with pytest.raises(InputError, match=r"entry 0: expected \[question, answer, image number\]"):
        load_benchmark("easy-vqa", tmp_path, "test")


def test_easy_vqa_is_found_in_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "easy_vqa/data/test/images/0.png")
    put(tmp_path, "easy_vqa/data/test/questions.json", [["is it red?", "no", 0]])
    put(tmp_path, "easy_vqa/__init__.py", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert simple(load_benchmark("easy-vqa", split="test")) == [("test/images/0.png", "is it red?", "no")]
    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"frevl\[packaged\]"):
        load_benchmark("easy-vqa", split="test")
    with pytest.raises(UsageError, match="'gqa' is read from files: give the folder"):
        load_benchmark("gqa", split="val")
