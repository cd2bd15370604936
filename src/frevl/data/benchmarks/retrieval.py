"""Captions: Karpathy's split files, COCO's own, caption tables, the original token files, and plain JSONL.

A row is ``{"image", "text"}`` without target: a positive pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from frevl.data.benchmarks.files import Folder, LeftOut, Row, csv_rows, json_lines, lines, need, read_json
from frevl.errors import InputError

__all__ = ["caption_table", "coco_captions", "karpathy", "plain_captions", "token_file"]

# It is standard to also train on COCO's "restval": images of the 2014 validation set outside val and test.
_KARPATHY_PARTS = {"train": ("train", "restval")}

# Lists of the images in each split, by the authors of Flickr8k and Flickr30k Entities.
_LISTS = {
    "train": ("Flickr_8k.trainImages.txt", "train.txt"),
    "val": ("Flickr_8k.devImages.txt", "val.txt", "dev.txt"),
    "test": ("Flickr_8k.testImages.txt", "test.txt"),
}


def karpathy(_: Folder, path: Path, split: str) -> Iterator[Row | LeftOut]:
    """Read ``dataset_coco.json``, ``dataset_flickr30k.json`` or ``dataset_flickr8k.json`` (Karpathy, Fei-Fei 2015)."""
    parts = _KARPATHY_PARTS.get(split, (split,))
    for number, image in enumerate(need(read_json(path), "images", list, str(path))):
        place = f"{path}, images[{number}]"
        part = need(image, "split", str, place)
        if part not in parts and split != "all":
            continue
        name = need(image, "filename", str, place)
        if image.get("filepath"):
            name = f"{image['filepath']}/{name}"
        sentences = need(image, "sentences", list, place)
        if not sentences:
            yield LeftOut(name, "the image has no caption")
        for sentence in sentences:
            text = need(sentence, "raw", str, f"{place}, sentences").strip()
            yield {"image": name, "text": text} if text else LeftOut(name, "a caption is empty")


def coco_captions(_: Folder, path: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read COCO's own ``captions_train2017.json`` and the like (Chen et al. 2015): captions refer to images by id."""
    content = read_json(path)
    names: dict[int, str] = {}
    for number, image in enumerate(need(content, "images", list, str(path))):
        place = f"{path}, images[{number}]"
        names[need(image, "id", int, place)] = need(image, "file_name", str, place)
    described: set[int] = set()
    for number, one in enumerate(need(content, "annotations", list, str(path))):
        place = f"{path}, annotations[{number}]"
        image_id = need(one, "image_id", int, place)
        if image_id not in names:
            yield LeftOut(f"annotation {number}", "its image is not among the images of the file")
            continue
        described.add(image_id)
        text = need(one, "caption", str, place).strip()
        yield {"image": names[image_id], "text": text} if text else LeftOut(names[image_id], "a caption is empty")
    yield from (LeftOut(name, "the image has no caption") for id_, name in names.items() if id_ not in described)


def caption_table(folder: Folder, path: Path, split: str) -> Iterator[Row | LeftOut]:
    """Read tables of ``image,caption`` (Flickr8k) or ``image_name| comment_number| comment`` (Flickr30k)."""
    keep = _image_list(folder, path, split)
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        delimiter = "|" if "|" in file.readline() else ","
    table = csv_rows(path, delimiter)
    header = [cell.strip().lower() for cell in next(table, ("", []))[1]]
    columns = next(
        (pair for pair in (("image", "caption"), ("image_name", "comment")) if set(pair) <= set(header)), None
    )
    if columns is None:
        raise InputError(f"{path}, line 1: expected the columns 'image' and 'caption', found {header}.")
    of_image, of_text = (header.index(column) for column in columns)
    for place, cells in table:
        image = cells[of_image].strip() if of_image < len(cells) else ""
        # A caption with an unquoted comma continues in the following cells.
        last = len(cells) if of_text == len(header) - 1 else of_text + 1
        text = delimiter.join(cells[of_text:last]).strip()
        if keep(image):
            yield {"image": image, "text": text} if text else LeftOut(place, "the caption is missing")


def token_file(folder: Folder, path: Path, split: str) -> Iterator[Row | LeftOut]:
    r"""Read lines ``image.jpg#0\tcaption`` (``Flickr8k.token.txt``, ``results_20130124.token``)."""
    keep = _image_list(folder, path, split)
    for place, line in lines(path):
        key, tab, text = line.partition("\t")
        name, sign, _ = key.rpartition("#")
        if not tab or not sign:
            raise InputError(
                f"{path.parent / place}: expected 'image.jpg#0', a tab and a caption, found {line[:60]!r}."
            )
        if keep(name):
            yield {"image": name, "text": text.strip()} if text.strip() else LeftOut(place, "the caption is missing")


def plain_captions(_: Folder, path: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read lines ``{"image", "captions": [...]}``, one per image; not official, for subsets of the official sets."""
    for place, line in json_lines(path):
        where = f"{path.parent / place}"
        image = need(line, "image", str, where)
        captions = need(line, "captions", list, where)
        if not captions:
            yield LeftOut(image, "the image has no caption")
        for caption in captions:
            text = str(caption).strip()
            yield {"image": image, "text": text} if text else LeftOut(image, "a caption is empty")


def _image_list(folder: Folder, path: Path, split: str) -> Callable[[str], bool]:
    if split == "all":
        return lambda _: True
    found = next(filter(None, map(folder.find, _LISTS[split])), None)
    if found is None:
        raise InputError(
            f"{path}: the file has no splits; put one of {', '.join(_LISTS[split])} (one image name per line) "
            f"below {folder.root}, or ask for the split 'all'."
        )
    names = {Path(line).stem for _, line in lines(found)}
    return lambda name: Path(name).stem in names
