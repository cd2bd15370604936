"""Every reader, on a small file in the official format written by the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frevl.data.benchmarks import load as benchmarks
from frevl.data.benchmarks.load import BENCHMARKS, Benchmark, load_benchmark, write_rows
from frevl.data.benchmarks.vqa import keep_vocabulary
from frevl.data.pairs import read_pairs
from frevl.errors import InputError, MissingExtraError, PairsError, UsageError


def put(root: Path, name: str, content: Any) -> Path:
    """Write a file; lists of objects become JSONL when the name says so, other objects JSON."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def images(root: Path, *names: str) -> None:
    for name in names:
        put(root, name, "a reader of names does not look inside")


def simple(found: Benchmark) -> list[tuple[Any, ...]]:
    return [(row["image"], row["text"], row.get("target")) for row in found.rows]


# ------------------------------------------------------------------------------------ captions


def karpathy_image(split: str, name: str, *captions: str, folder: str = "") -> dict[str, Any]:
    image: dict[str, Any] = {"filename": name, "split": split, "imgid": 0, "sentids": [0]}
    if folder:
        image |= {"filepath": folder, "cocoid": 7}
    return image | {"sentences": [{"raw": raw, "tokens": raw.split(), "imgid": 0, "sentid": 1} for raw in captions]}


def coco_file(root: Path, name: str, captions: list[tuple[int, str]]) -> None:
    numbers = dict.fromkeys(number for number, _ in captions) | {8: None}
    document = {
        "info": {"year": 2017},
        "images": [{"id": number, "file_name": f"{number:012}.jpg", "height": 3, "width": 4} for number in numbers],
        "annotations": [{"id": 10 + i, "image_id": n, "caption": text} for i, (n, text) in enumerate(captions)],
    }
    put(root, f"annotations/{name}", document)


def test_coco_s_own_caption_files(tmp_path: Path) -> None:
    coco_file(tmp_path, "captions_train2017.json", [(9, "A dog. "), (5, "A cat."), (9, "Two dogs."), (5, " ")])
    coco_file(tmp_path, "captions_val2017.json", [(7, "A hen.")])
    coco_file(tmp_path, "captions_train2014.json", [(9, "not read where there is a newer file")])
    images(tmp_path, "train2017/000000000009.jpg", "train2017/000000000005.jpg", "val2017/000000000007.jpg")
    train = load_benchmark("coco", tmp_path, "train")
    assert simple(train) == [
        ("train2017/000000000009.jpg", "A dog.", None),
        ("train2017/000000000005.jpg", "A cat.", None),
        ("train2017/000000000009.jpg", "Two dogs.", None),
    ]
    assert train.left_out == [
        ("000000000005.jpg", "a caption is empty"),
        ("000000000008.jpg", "the image has no caption"),
    ]
    assert train.notes[0] == "captions_train2017.json: the official 'coco' has 591,753 rows in 'train', found 5."
    assert simple(load_benchmark("coco", tmp_path, "val")) == [("val2017/000000000007.jpg", "A hen.", None)]
    with pytest.raises(
        InputError, match="'coco' needs dataset_coco.json or captions_test2017.json .* below this folder"
    ):
        load_benchmark("coco", tmp_path, "test")


def test_karpathy_s_split_comes_before_coco_s_own(tmp_path: Path) -> None:
    coco_file(tmp_path, "captions_val2014.json", [(3, "A hen.")])
    put(tmp_path, "dataset_coco.json", {"images": [karpathy_image("val", "3.jpg", "A cow.", folder="val2014")]})
    images(tmp_path, "val2014/3.jpg", "val2014/000000000003.jpg")
    assert simple(load_benchmark("coco", tmp_path, "val")) == [("val2014/3.jpg", "A cow.", None)]


def test_a_caption_of_no_image_is_left_out(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 3, "file_name": "3.jpg"}],
        "annotations": [{"image_id": 4, "caption": "nowhere"}, {"image_id": 3, "caption": "here"}],
    }
    put(tmp_path, "captions_val2014.json", document)
    images(tmp_path, "3.jpg")
    found = load_benchmark("coco", tmp_path, "val")
    assert simple(found) == [("3.jpg", "here", None)]
    assert found.left_out == [("annotation 0", "its image is not among the images of the file")]
    put(tmp_path, "captions_val2014.json", {"images": [{"id": "3", "file_name": "3.jpg"}], "annotations": []})
    with pytest.raises(InputError, match=r"captions_val2014.json, images\[0\]: expected 'id' to be int, found str"):
        load_benchmark("coco", tmp_path, "val")


def test_coco_trains_on_restval_too(tmp_path: Path) -> None:
    document = [
        karpathy_image("train", "COCO_train2014_1.jpg", "A dog. ", "A cat.", folder="train2014"),
        karpathy_image("restval", "COCO_val2014_2.jpg", "A cow.", folder="val2014"),
        karpathy_image("val", "COCO_val2014_3.jpg", "A hen.", " ", folder="val2014"),
        karpathy_image("test", "COCO_val2014_4.jpg", "A pig.", folder="val2014"),
    ]
    put(tmp_path, "annotations/dataset_coco.json", {"images": document, "dataset": "coco"})
    images(tmp_path, "train2014/COCO_train2014_1.jpg", "val2014/COCO_val2014_2.jpg")
    images(tmp_path, "val2014/COCO_val2014_3.jpg", "val2014/COCO_val2014_4.jpg")
    train = load_benchmark("coco", tmp_path, "train")
    assert simple(train) == [
        ("train2014/COCO_train2014_1.jpg", "A dog.", None),
        ("train2014/COCO_train2014_1.jpg", "A cat.", None),
        ("val2014/COCO_val2014_2.jpg", "A cow.", None),
    ]
    assert (train.name, train.split, train.task) == ("coco", "train", "matching")
    assert train.notes == ("dataset_coco.json: the official 'coco' has 566,747 rows in 'train', found 3.",)
    val = load_benchmark("coco", tmp_path, "dev")
    assert simple(val) == [("val2014/COCO_val2014_3.jpg", "A hen.", None)]
    assert val.left_out == [("val2014/COCO_val2014_3.jpg", "a caption is empty")]
    assert simple(load_benchmark("coco", tmp_path, "test")) == [("val2014/COCO_val2014_4.jpg", "A pig.", None)]


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k"])
def test_flickr_karpathy(tmp_path: Path, name: str) -> None:
    put(
        tmp_path,
        f"dataset_{name}.json",
        {"images": [karpathy_image("val", "1.jpg", "A dog ."), karpathy_image("test", "2.jpg", "A cat .")]},
    )
    images(tmp_path, "Images/1.jpg", "Images/2.jpg")
    assert simple(load_benchmark(name, tmp_path, "val")) == [("Images/1.jpg", "A dog .", None)]


def test_flickr8k_token_file_with_its_lists(tmp_path: Path) -> None:
    put(
        tmp_path,
        "text/Flickr8k.token.txt",
        "11_ab.jpg#0\tA dog , running .\n11_ab.jpg#1\tA dog runs .\n22_cd.jpg#0\tA cat .\n33_ef.jpg.1#0\tA ghost .\n",
    )
    put(tmp_path, "text/Flickr_8k.trainImages.txt", "11_ab.jpg\n")
    put(tmp_path, "text/Flickr_8k.devImages.txt", "22_cd.jpg\n")
    images(tmp_path, "Flicker8k_Dataset/11_ab.jpg", "Flicker8k_Dataset/22_cd.jpg")
    train = load_benchmark("flickr8k", tmp_path, "train")
    assert [text for _, text, _ in simple(train)] == ["A dog , running .", "A dog runs ."]
    assert simple(load_benchmark("flickr8k", tmp_path, "val")) == [("Flicker8k_Dataset/22_cd.jpg", "A cat .", None)]
    everything = load_benchmark("flickr8k", tmp_path, "all")
    assert len(everything.rows) == 3
    assert everything.left_out == [("33_ef.jpg.1", "the image is missing")]
    with pytest.raises(InputError, match=r"the file has no splits; put one of Flickr_8k\.testImages\.txt, test\.txt"):
        load_benchmark("flickr8k", tmp_path, "test")


def test_flickr8k_caption_table(tmp_path: Path) -> None:
    put(
        tmp_path,
        "captions.txt",
        'image,caption\n1.jpg,A dog .\n1.jpg,"A ""big"" dog , running"\n2.jpg,A cat , two cats\n2.jpg,\n',
    )
    put(tmp_path, "Flickr_8k.testImages.txt", "1.jpg\n2.jpg\n")
    images(tmp_path, "Images/1.jpg", "Images/2.jpg")
    found = load_benchmark("flickr8k", tmp_path, "test")
    assert [text for _, text, _ in simple(found)] == ["A dog .", 'A "big" dog , running', "A cat , two cats"]
    assert found.left_out == [("captions.txt:5", "the caption is missing")]


def test_flickr30k_caption_table_with_its_broken_line(tmp_path: Path) -> None:
    put(
        tmp_path,
        "results.csv",
        "image_name| comment_number| comment\n1.jpg| 0| A dog , black .\n2.jpg| 4   A dog\n1.jpg| 1| Two .\n",
    )
    put(tmp_path, "train.txt", "1\n2\n")
    images(tmp_path, "flickr30k_images/1.jpg", "flickr30k_images/2.jpg")
    found = load_benchmark("flickr30k", tmp_path, "train")
    assert [text for _, text, _ in simple(found)] == ["A dog , black .", "Two ."]
    assert found.left_out == [("results.csv:3", "the caption is missing")]


def test_flickr30k_token_file(tmp_path: Path) -> None:
    put(tmp_path, "results_20130124.token", "1.jpg#0\tA dog .\n")
    images(tmp_path, "1.jpg")
    assert simple(load_benchmark("flickr30k", tmp_path, "all")) == [("1.jpg", "A dog .", None)]
    put(tmp_path, "results_20130124.token", "1.jpg#0\tA dog .\n1.jpg A dog .\n")
    with pytest.raises(InputError, match=r"results_20130124.token:2: expected 'image.jpg#0', a tab and a caption"):
        load_benchmark("flickr30k", tmp_path, "all")


def test_plain_captions(tmp_path: Path) -> None:
    put(tmp_path, "dev.jsonl", [{"image": "1.jpg", "captions": ["A dog .", "", "A cat ."]}])
    images(tmp_path, "images/1.jpg")
    found = load_benchmark("flickr8k", tmp_path, "val")
    assert simple(found) == [("images/1.jpg", "A dog .", None), ("images/1.jpg", "A cat .", None)]


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


# ----------------------------------------------------------------------------------- entailment


def test_snli_ve(tmp_path: Path) -> None:
    lines = [
        {
            "Flickr30K_ID": "11",
            "sentence1": "x",
            "sentence2": "A dog.",
            "gold_label": "neutral",
            "pairID": "11.jpg#0r1n",
        },
        {"Flikr30kID": "22.jpg", "sentence2": "A cat.", "gold_label": "-", "pairID": "22.jpg#0r1e"},
        {"Flickr30kID": "22.jpg", "sentence2": "A cat.", "gold_label": "entailment", "pairID": "22.jpg#0r1e"},
    ]
    put(tmp_path, "snli_ve_dev.jsonl", lines)
    images(tmp_path, "flickr30k-images/11.jpg", "flickr30k-images/22.jpg")
    found = load_benchmark("snli-ve", tmp_path, "val")
    assert simple(found) == [
        ("flickr30k-images/11.jpg", "A dog.", "neutral"),
        ("flickr30k-images/22.jpg", "A cat.", "entailment"),
    ]
    assert found.rows[0]["pair_id"] == "11.jpg#0r1n"
    without = load_benchmark("snli-ve", tmp_path, "dev", find_images=False)
    assert [row["image"] for row in without.rows] == ["11.jpg", "22.jpg"]
    assert found.left_out == [("22.jpg#0r1e", "people did not agree on a label")]
    put(tmp_path, "snli_ve_dev.jsonl", [{**lines[0], "gold_label": "maybe"}])
    with pytest.raises(InputError, match=r"snli_ve_dev.jsonl:1: expected one of the labels entailment, .*'maybe'"):
        load_benchmark("snli-ve", tmp_path, "dev")


def test_e_snli_ve(tmp_path: Path) -> None:
    put(
        tmp_path,
        "esnlive_dev.csv",
        ",pairID,Flickr30kID,hypothesis,gold_label,explanation\n"
        '0,11.jpg#0r1c,11.jpg,"A dog, running",contradiction,"Dogs, they ""run"""\n',
    )
    images(tmp_path, "11.jpg")
    found = load_benchmark("e-snli-ve", tmp_path, "dev")
    assert simple(found) == [("11.jpg", "A dog, running", "contradiction")]
    assert found.rows[0]["explanation"] == 'Dogs, they "run"'
    put(tmp_path, "esnlive_dev.csv", "pairID,image\n1,2\n")
    with pytest.raises(
        InputError, match=r"line 1: expected the columns pairID, Flickr30kID, .* found \['pairID', 'image'\]"
    ):
        load_benchmark("e-snli-ve", tmp_path, "dev")
    put(tmp_path, "esnlive_dev.csv", 'pairID,Flickr30kID,hypothesis,gold_label\n1,11.jpg,"A dog')
    with pytest.raises(InputError, match="line 2: malformed CSV"):
        load_benchmark("e-snli-ve", tmp_path, "dev")
    put(tmp_path, "esnlive_dev.csv", "pairID,Flickr30kID,hypothesis,gold_label\n1,11.jpg,A dog\n")
    with pytest.raises(InputError, match=r"esnlive_dev\.csv:2: expected 4 columns, found 3"):
        load_benchmark("e-snli-ve", tmp_path, "dev")


def test_plain_entailment(tmp_path: Path) -> None:
    put(tmp_path, "dev.jsonl", [{"image": "11.jpg", "hypothesis": "A dog.", "label": "neutral"}])
    images(tmp_path, "images/11.jpg")
    assert simple(load_benchmark("snli-ve", tmp_path, "dev")) == [("images/11.jpg", "A dog.", "neutral")]


# ------------------------------------------------------------------------------------ reasoning


def thing(kind: str, size: int, color: str, x: int) -> dict[str, Any]:
    return {"type": kind, "size": size, "color": color, "x_loc": x, "y_loc": 80}


def test_nlvr(tmp_path: Path) -> None:
    tower = [[thing("square", 20, "Yellow", 40)], [thing("square", 20, "Black", 40)] * 2, []]
    loose = [
        [thing("circle", 10, "#0099ff", 3)],
        [thing("square", 20, "Black", 40)],
        [thing("square", 20, "Black", 40)],
    ]
    lines = [
        {
            "sentence": "There is a tower with two blocks at the top.",
            "label": "true",
            "identifier": "1572-0",
            "directory": "2",
            "evals": {"r1": "true"},
            "structured_rep": tower,
        },
        {"sentence": "A blue item.", "label": "False", "identifier": "9-3", "directory": "0", "structured_rep": loose},
    ]
    put(tmp_path, "dev/dev.json", "\n".join(json.dumps(line) for line in lines))
    images(tmp_path, *[f"dev/images/2/dev-1572-0-{k}.png" for k in range(6)])
    images(tmp_path, *[f"dev/images/0/dev-9-3-{k}.png" for k in range(5)])
    found = load_benchmark("nlvr", tmp_path, "dev")
    assert found.rows[0] == {
        "image": "dev/images/2/dev-1572-0-0.png",
        "text": "There is a tower with two blocks at the top.",
        "target": "true",
        "identifier": "1572-0",
        "cluster": "1572",
        "asks_count": True,
        "asks_colour": False,
        "asks_position": True,
        "scene": "towers",
        "objects": 3,
        "colours": 2,
    }
    assert [row["image"][-5] for row in found.rows] == list("01234501234")
    last = found.rows[-1]
    assert (last["target"], last["scene"], last["objects"], last["cluster"]) == ("false", "scattered", 3, "9")
    assert (last["asks_count"], last["asks_colour"], last["asks_position"]) == (False, True, False)
    assert found.left_out == [("images/0/dev-9-3-5.png", "the image is missing")]
    assert len(found.notes) == 2
    assert found.notes[1].startswith("1 image(s) missing below")
    assert found.notes[1].endswith("1 row(s) left out: images/0/dev-9-3-5.png.")


def test_nlvr_scene_of_squares_is_scattered_if_they_do_not_stand_in_line(tmp_path: Path) -> None:
    squares = [thing("square", 20, "Black", 40), thing("square", 20, "Black", 41)]
    line = {"sentence": "x", "label": "true", "identifier": "1-0", "structured_rep": [squares, [], []]}
    put(tmp_path, "test.json", json.dumps(line))
    found = load_benchmark("nlvr", tmp_path, "test", find_images=False)
    assert found.rows[5]["image"] == "test-1-0-5.png"
    assert found.rows[0]["scene"] == "scattered"
    assert found.notes == ()


def test_sugarcrepe_keeps_choices_together(tmp_path: Path) -> None:
    example = {"filename": "01.jpg", "caption": "A dog on a mat.", "negative_caption": "A mat on a dog."}
    for part in ("replace_obj", "replace_att", "replace_rel", "swap_att", "add_obj", "add_att"):
        put(tmp_path, f"data/{part}.json", {"0": {**example, "filename": "02.jpg"}})
    put(tmp_path, "data/swap_att.json", {"0": example, "1": {**example, "filename": "03.jpg"}})
    images(tmp_path, "val2017/01.jpg", "val2017/02.jpg")
    found = load_benchmark("sugarcrepe", tmp_path, "test")
    swapped = [row for row in found.rows if row["part"] == "swap_att"]
    assert swapped == [
        {
            "image": "val2017/01.jpg",
            "text": text,
            "target": target,
            "group": "swap_att/0",
            "caption": caption,
            "picture": 0,
            "part": "swap_att",
        }
        for caption, (text, target) in enumerate([("A dog on a mat.", "true"), ("A mat on a dog.", "false")])
    ]
    assert len(found.rows) == 2 * 6
    assert found.left_out == [
        ("swap_obj.json", "this part of SugarCrepe is missing"),
        ("03.jpg", "the image is missing"),
    ]


def test_winoground_leaves_out_whole_groups(tmp_path: Path) -> None:
    def example(number: int) -> dict[str, Any]:
        names = {f"image_{i}": f"ex_{number}_img_{i}" for i in range(2)}
        return {"id": number, **names, "caption_0": "a b", "caption_1": "b a", "collapsed_tag": "Object", "tag": "x"}

    put(tmp_path, "examples.jsonl", [example(0), example(1), example(2)])
    images(tmp_path, *[f"images/ex_{n}_img_{i}.png" for n, i in ((0, 0), (0, 1), (1, 1), (2, 0), (2, 1))])
    found = load_benchmark("winoground", tmp_path, "test")
    assert [
        (r["group"], r["caption"], r["picture"], r["target"], r["image"][-5], r["text"]) for r in found.rows[:4]
    ] == [
        ("0", 0, 0, "true", "0", "a b"),
        ("0", 0, 1, "false", "1", "a b"),
        ("0", 1, 0, "false", "0", "b a"),
        ("0", 1, 1, "true", "1", "b a"),
    ]
    assert [row["group"] for row in found.rows] == ["0"] * 4 + ["2"] * 4
    assert found.rows[0]["tag"] == "Object"
    assert found.left_out == [("ex_1_img_0", "the image is missing")]
    assert "1 image(s) missing" in found.notes[1]
    assert "4 row(s) left out" in found.notes[1]


# ------------------------------------------------------------------------------------ bad input


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no benchmark 'flickr8'\. Did you mean 'flickr8k'"):
        load_benchmark("flickr8", tmp_path)
    with pytest.raises(UsageError, match=r"'gqa' has no split 'testdevs'\. Did you mean 'testdev'"):
        load_benchmark("gqa", tmp_path, "testdevs")


def test_missing_folder_and_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_benchmark("gqa", tmp_path / "nowhere", "val")
    for name, source in BENCHMARKS.items():
        split = next(iter(source.splits))
        with pytest.raises(InputError) as raised:
            load_benchmark(name, tmp_path, split)
        assert f"'{name}' needs " in str(raised.value)
        assert source.where in str(raised.value)
        assert "{" not in str(raised.value)


def test_no_image_at_all_is_an_error_unless_nobody_looks(tmp_path: Path) -> None:
    put(tmp_path, "dataset_flickr8k.json", {"images": [karpathy_image("test", "1.jpg", "A dog .")]})
    with pytest.raises(
        InputError, match=r"none of the 1 image\(s\) of 'flickr8k' is below .* for example '1.jpg'; get"
    ):
        load_benchmark("flickr8k", tmp_path, "test")
    found = load_benchmark("flickr8k", tmp_path, "test", find_images=False)
    assert simple(found) == [("1.jpg", "A dog .", None)]


def test_count_is_a_note_or_on_wish_an_error(tmp_path: Path) -> None:
    put(tmp_path, "dataset_flickr8k.json", {"images": [karpathy_image("test", "1.jpg", "A dog .")]})
    images(tmp_path, "1.jpg")
    expected = "dataset_flickr8k.json: the official 'flickr8k' has 5,000 rows in 'test', found 1."
    assert load_benchmark("flickr8k", tmp_path, "test").notes == (expected,)
    with pytest.raises(InputError, match=r"has 5,000 rows in 'test', found 1\. Fetch the files again from"):
        load_benchmark("flickr8k", tmp_path, "test", check=True)


def test_a_full_set_has_no_notes(tmp_path: Path) -> None:
    lines = [{"id": n, "image_0": "a", "image_1": "b", "caption_0": "x", "caption_1": "y"} for n in range(400)]
    put(tmp_path, "examples.jsonl", lines)
    images(tmp_path, "a.png", "b.png")
    assert load_benchmark("winoground", tmp_path, "test", check=True).notes == ()


def test_truncated_files_name_the_place(tmp_path: Path) -> None:
    whole = json.dumps({"images": [karpathy_image("test", "1.jpg", "A dog .")]}, indent=1)
    put(tmp_path, "dataset_flickr8k.json", whole[:-20])
    with pytest.raises(InputError, match=r"dataset_flickr8k.json, line \d+, column \d+: the JSON breaks off"):
        load_benchmark("flickr8k", tmp_path, "test")
    put(tmp_path, "snli_ve_dev.jsonl", '{"Flickr30K_ID": "1", "sentence2": "A", "gold_label": "neutral"}\n{"Flickr30')
    with pytest.raises(PairsError, match=r"snli_ve_dev.jsonl:2: expected one JSON object, found '\{\"Flickr30'"):
        load_benchmark("snli-ve", tmp_path, "dev")
    put(tmp_path, "snli_ve_dev.jsonl", "[1]\n")
    with pytest.raises(PairsError, match=r"snli_ve_dev.jsonl:1: expected one JSON object, found list"):
        load_benchmark("snli-ve", tmp_path, "dev")
    (tmp_path / "snli_ve_dev.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        load_benchmark("snli-ve", tmp_path, "dev")


def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path: Path) -> None:
    put(tmp_path, "dataset_flickr8k.json", "\ufeff" + json.dumps({"images": [karpathy_image("test", "1.jpg", "A")]}))
    put(tmp_path, "snli_ve_dev.jsonl", '\ufeff{"Flickr30K_ID": "1", "sentence2": "A", "gold_label": "neutral"}')
    put(tmp_path, "esnlive_dev.csv", "\ufeffpairID,Flickr30kID,hypothesis,gold_label\n1,1.jpg,A,neutral\n")
    images(tmp_path, "1.jpg")
    for name, split in (("flickr8k", "test"), ("snli-ve", "dev"), ("e-snli-ve", "dev")):
        assert [row["text"] for row in load_benchmark(name, tmp_path, split).rows] == ["A"]


def test_other_versions_name_the_key_that_is_not_there(tmp_path: Path) -> None:
    put(tmp_path, "dataset_flickr8k.json", {"annotations": [], "info": 1})
    with pytest.raises(
        InputError, match="expected the key 'images', found 'annotations', 'info'; is this another version"
    ):
        load_benchmark("flickr8k", tmp_path, "test")
    put(tmp_path, "dataset_flickr8k.json", {"images": {"a": 1}})
    with pytest.raises(InputError, match="expected 'images' to be list, found dict"):
        load_benchmark("flickr8k", tmp_path, "test")
    put(tmp_path, "dataset_flickr8k.json", {"images": [{"split": "test", "file_name": "x"}]})
    with pytest.raises(InputError, match=r"images\[0\]: expected the key 'filename', found 'split', 'file_name'"):
        load_benchmark("flickr8k", tmp_path, "test")
    put(tmp_path, "dataset_flickr8k.json", {"images": [karpathy_image("train", "1.jpg", "A dog .")]})
    with pytest.raises(InputError, match="the split 'test' has no rows"):
        load_benchmark("flickr8k", tmp_path, "test")


# ------------------------------------------------------------------------------ images and files


def test_images_are_found_wherever_they_lie(tmp_path: Path) -> None:
    names = ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    put(tmp_path, "dataset_flickr8k.json", {"images": [karpathy_image("test", name, "A dog .") for name in names]})
    images(tmp_path, "a/b/1.jpg", "z/1.jpg", "2.png", "c/3.PNG", "c/3.jpg", ".hidden/4.jpg")
    outside = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    images(outside, "5.jpg")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    found = load_benchmark("flickr8k", tmp_path, "test")
    assert [row["image"] for row in found.rows] == ["z/1.jpg", "2.png", "c/3.jpg", "linked/5.jpg"]
    assert found.left_out == [("4.jpg", "the image is missing")]


def test_of_two_images_with_one_name_the_official_path_wins(tmp_path: Path) -> None:
    put(tmp_path, "dataset_coco.json", {"images": [karpathy_image("val", "7.jpg", "A dog.", folder="val2014")]})
    images(tmp_path, "7.jpg", "rival2014/7.jpg", "coco/images/val2014/7.jpg")
    assert simple(load_benchmark("coco", tmp_path, "val"))[0][0] == "coco/images/val2014/7.jpg"


def test_rows_become_a_pairs_file_all_or_nothing(tmp_path: Path) -> None:
    rows = [
        {"image": "ä.jpg", "text": "Ein Hund 犬", "target": {"a": 0.3}, "question_id": 3},
        {"image": "b.jpg", "text": "x", "target": ["a", "b"]},
        {"image": "b.jpg", "text": "y"},
    ]
    path = tmp_path / "out.jsonl"
    write_rows(rows, path)
    assert "犬" in path.read_text(encoding="utf-8")
    pairs = read_pairs(path)
    assert [pairs.row(i) for i in range(3)] == rows

    def broken() -> Any:
        yield rows[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"out.jsonl: the pairs cannot be written \(No space left on device\)"):
        write_rows(broken(), path)
    assert len(read_pairs(path)) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(InputError, match="cannot be written"):
        write_rows(rows, tmp_path / "nowhere" / "out.jsonl")
