"""Readers of caption sets, on small files in the official formats."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_files import images, karpathy_image, put, simple

from frevl.data.benchmarks.load import load_benchmark
from frevl.errors import InputError


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
