"""Load published sets from their official files as rows for a pairs file.

A row is an object of `frevl.data.pairs`: ``image`` (path below the benchmark's folder), ``text``, usually ``target``,
and further keys by which results can be sliced. One of them has a fixed meaning: rows with the same ``cluster`` are not
independent, although their images differ; split and resample by it.

A new set needs a row in `BENCHMARKS` and at most one reader in its task's file.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from frevl.data.benchmarks import entailment, reasoning, retrieval, vqa
from frevl.data.benchmarks.files import Folder, LeftOut, Row
from frevl.data.benchmarks.vqa import frequent_answers, keep_vocabulary
from frevl.data.pairs import problem_of
from frevl.errors import InputError, MissingExtraError, UsageError, nearest
from frevl.files import replace_file

__all__ = ["BENCHMARKS", "Benchmark", "Source", "left_out_sentence", "load_benchmark", "write_rows"]

Task = Literal["matching", "classification"]
Reader = Callable[[Folder, Path, str], Iterator[Row | LeftOut]]


@dataclass(frozen=True)
class Benchmark:
    """One split of a published set.

    Attributes:
        name: Name in `BENCHMARKS`.
        split: The requested split.
        task: ``matching`` or ``classification``.
        rows: Objects for a pairs file, in the order of the official file.
        left_out: ``(id, reason)`` for everything that is not in the rows; a missing image is listed once.
        notes: Sentences for the user: row counts that differ from the official ones, missing images.
        files: The official files that were read.
    """

    name: str
    split: str
    task: Task
    rows: list[Row]
    left_out: list[tuple[str, str]]
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Source:
    """The files of one set, and how to read them.

    Attributes:
        task: ``matching`` or ``classification``.
        splits: For each split, its name in file names and the number of rows in the full official set (None if unknown
            to us, and not checked).
        files: File names with their readers; the first file found is read. ``{split}`` is replaced.
        where: Place to get the files, worded to end a sentence.
        exact_images: Whether image names are ambiguous, so that the official path is required.
        rows_of: Row counts of files that contain a different split from the others of the set.
    """

    task: Task
    splits: Mapping[str, tuple[str, int | None]]
    files: tuple[tuple[str, Reader], ...]
    where: str
    exact_images: bool = field(default=False)
    rows_of: Mapping[str, int] = field(default_factory=dict)


_FLICKR_IMAGES = "the images come with the form at shannon.cs.illinois.edu/DenotationGraph"
_KARPATHY = "caption_datasets.zip at cs.stanford.edu/people/karpathy/deepimagesent"

BENCHMARKS: Mapping[str, Source] = {
    "coco": Source(
        "matching",
        {"train": ("train", 566_747), "val": ("val", 25_010), "test": ("test", 25_010)},
        (
            ("dataset_coco.json", retrieval.karpathy),  # the split used in papers, so it comes first
            ("captions_{split}2017.json", retrieval.coco_captions),
            ("captions_{split}2014.json", retrieval.coco_captions),
            ("{split}.jsonl", retrieval.plain_captions),
        ),
        f"{_KARPATHY}, or annotations_trainval2017.zip with the images, at cocodataset.org",
        rows_of={
            "captions_train2017.json": 591_753,
            "captions_val2017.json": 25_014,
            "captions_train2014.json": 414_113,
            "captions_val2014.json": 202_654,
        },
    ),
    "flickr30k": Source(
        "matching",
        {"train": ("train", 145_000), "val": ("val", 5_070), "test": ("test", 5_000), "all": ("all", None)},
        (
            ("dataset_flickr30k.json", retrieval.karpathy),
            ("results_20130124.token", retrieval.token_file),
            ("results.csv", retrieval.caption_table),
            ("captions.txt", retrieval.caption_table),
            ("captions.csv", retrieval.caption_table),
            ("{split}.jsonl", retrieval.plain_captions),
        ),
        f"{_KARPATHY}; {_FLICKR_IMAGES}",
    ),
    "flickr8k": Source(
        "matching",
        {"train": ("train", 30_000), "val": ("val", 5_000), "test": ("test", 5_000), "all": ("all", None)},
        (
            ("dataset_flickr8k.json", retrieval.karpathy),
            ("Flickr8k.token.txt", retrieval.token_file),
            ("captions.txt", retrieval.caption_table),
            ("captions.csv", retrieval.caption_table),
            ("{split}.jsonl", retrieval.plain_captions),
        ),
        f"{_KARPATHY}; Flickr8k_Dataset.zip and Flickr8k_text.zip of its authors (Hodosh et al. 2013)",
    ),
    "vqa-v2": Source(
        "classification",
        {
            "train": ("train2014", 443_757),
            "val": ("val2014", 214_354),
            "test-dev": ("test-dev2015", 107_394),
            "test": ("test2015", 447_793),
        },
        (("v2_OpenEnded_mscoco_{split}_questions.json", vqa.vqa_v2),),
        "visualqa.org/download.html, images at cocodataset.org",
    ),
    "gqa": Source(
        "classification",
        {
            "train": ("train", 943_000),
            "val": ("val", 132_062),
            "testdev": ("testdev", 12_578),
            "test": ("test", 95_336),
        },
        (("{split}_balanced_questions.json", vqa.gqa),),
        "cs.stanford.edu/people/dorarad/gqa/download.html",
    ),
    "daquar": Source(
        "classification",
        {"train": ("train", 6_795), "dev": ("dev", None), "test": ("test", 5_673)},
        (
            ("qa.894.raw.{split}.txt", vqa.daquar),
            ("qa.894.raw.txt", vqa.daquar),
            ("all_qa_pairs.txt", vqa.daquar),
            ("{split}.jsonl", vqa.plain_questions),
        ),
        "the Visual Turing Challenge page of MPI Informatics (d2.mpi-inf.mpg.de), with nyu_depth_images.tar",
    ),
    "easy-vqa": Source(
        "classification",
        {"train": ("train", 38_575), "test": ("test", 9_673)},
        (("questions.json", vqa.easy_vqa),),
        "the package easy-vqa: pip install easy-vqa",
        exact_images=True,
    ),
    "snli-ve": Source(
        "classification",
        {"train": ("train", 529_527), "dev": ("dev", 17_858), "test": ("test", 17_901)},
        (("snli_ve_{split}.jsonl", entailment.snli_ve), ("{split}.jsonl", entailment.plain_entailment)),
        f"github.com/necla-ml/SNLI-VE; {_FLICKR_IMAGES}",
    ),
    "e-snli-ve": Source(
        "classification",
        {"train": ("train", 401_717), "dev": ("dev", 14_339), "test": ("test", 14_740)},
        (("esnlive_{split}.csv", entailment.e_snli_ve),),
        f"github.com/maximek3/e-ViL, folder data; {_FLICKR_IMAGES}",
    ),
    "nlvr": Source(
        "classification",
        {"train": ("train", None), "dev": ("dev", 5_934), "test": ("test", None)},
        (("{split}.json", reasoning.nlvr),),
        "github.com/lil-lab/nlvr, folder nlvr",
    ),
    "sugarcrepe": Source(
        "matching",
        {"test": ("test", None)},
        tuple((f"{part}.json", reasoning.sugarcrepe) for part in reasoning.SUGARCREPE_PARTS),
        "github.com/RAIVNLab/sugar-crepe, folder data; val2017.zip at cocodataset.org",
    ),
    "winoground": Source(
        "matching",
        {"test": ("test", 1_600)},
        (("examples.jsonl", reasoning.winoground),),
        "huggingface.co/datasets/facebook/winoground",
    ),
}

# Names that different authors use for the same split.
_DEVELOPMENT = ("dev", "val", "validation")


def load_benchmark(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    check: bool = False,
    find_images: bool = True,
    min_answer_count: int = 1,
) -> Benchmark:
    """Read one split of a published set from its official files.

    Files and images are found by name, anywhere below the folder.

    Args:
        name: A key of `BENCHMARKS`.
        root: Folder with the official files and the images; only easy-vqa has a default, its package.
        split: A split of the set; ``dev``, ``val`` and ``validation`` are equivalent.
        check: Refuse a set whose number of rows differs from the official one. By default a difference is only noted,
            because people work on subsets.
        find_images: Look for every image and leave out rows whose image is missing. If False, the official path becomes
            the image id, for existing embeddings.
        min_answer_count: For the training split of vqa-v2: answers that are the majority answer of fewer questions are
            not classes, and questions without any other answer are left out. The customary value is 9, which gives
            3,129 classes for the training and validation questions together (Anderson et al. 2018).

    Returns:
        Rows, what was left out, and notes for the user.

    Raises:
        UsageError: No such set or split, or `min_answer_count` is given for a set without a vocabulary.
        MissingExtraError: easy-vqa is not installed.
        InputError: A file or all images are missing, a file is truncated or of another version, or, with `check`, the
            number of rows differs.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"There is no benchmark '{name}'. {nearest(name, BENCHMARKS)}")
    source = BENCHMARKS[name]
    spellings = _DEVELOPMENT if split in _DEVELOPMENT else (split,)
    known = next((spelling for spelling in spellings if spelling in source.splits), None)
    if known is None:
        raise UsageError(f"'{name}' has no split '{split}'. {nearest(split, source.splits)}")
    if min_answer_count > 1 and (name, known) != ("vqa-v2", "train"):
        raise UsageError(
            f"A vocabulary of answers is made from the training questions of vqa-v2, not from '{split}' of "
            f"'{name}': leave out the minimum (--min-answer-count)."
        )
    file_split, expected = source.splits[known]
    folder = Folder(_root(name, root))
    path, reader = _file(name, source, folder, [file_split, *(s for s in spellings if s != file_split)])

    expected = source.rows_of.get(path.name, expected)
    items = list(reader(folder, path, known))
    rows, left_out = _usable(items)
    if not rows:
        reasons = f"no usable row ({left_out[0][0]}: {left_out[0][1]})" if left_out else "no rows"
        raise InputError(f"{path}: the split '{split}' has {reasons}; fetch the file again from {source.where}.")
    notes = []
    if expected is not None and len(items) != expected:
        note = f"{path.name}: the official '{name}' has {expected:,} rows in '{known}', found {len(items):,}."
        if check:
            raise InputError(f"{note} Fetch the files again from {source.where}.")
        notes.append(note)
    if min_answer_count > 1:
        vocabulary = frequent_answers(rows, min_answer_count)
        rows, outside = keep_vocabulary(rows, vocabulary)
        left_out += outside
        notes.append(f"{len(vocabulary):,} answers are the majority answer of at least {min_answer_count} questions.")
        if not rows:
            raise UsageError(f"{path}: {notes[-1]} Lower the minimum (--min-answer-count).")
    read = len(rows)
    if find_images:
        rows, missing = _with_images(rows, folder, exact=source.exact_images)
        if not rows:
            raise InputError(
                f"{folder.root}: none of the {len(missing):,} image(s) of '{name}' is below this folder, for "
                f"example '{missing[0][0]}'; get them from {source.where}."
            )
        if missing:
            notes.append(
                f"{len(missing):,} image(s) missing below {folder.root}, {read - len(rows):,} row(s) left out: "
                + ", ".join(image for image, _ in missing[:3])
                + ("." if len(missing) <= 3 else ", ...")
            )
            left_out += missing
    return Benchmark(name, split, source.task, rows, left_out, tuple(notes), tuple(folder.found))


def left_out_sentence(benchmark: Benchmark) -> str:
    """Return how many rows were left out and why, most frequent reason first; empty if none were."""
    if not benchmark.left_out:
        return ""
    # The reported answers vary ("outside the vocabulary: 'puce'").
    reasons = Counter(reason.partition(": '")[0] for _, reason in benchmark.left_out)
    shown = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(5))
    more = "; and other reasons" if len(reasons) > 5 else ""
    return f"Left out: {len(benchmark.left_out):,} ({shown}{more})."


def write_rows(rows: Iterable[Row], path: str | Path) -> None:
    """Write rows as a JSONL pairs file, completely or not at all.

    Args:
        rows: Objects with at least ``image`` and ``text``.
        path: The file; an existing one is replaced once the new one is complete.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    try:
        replace_file(path, write)
    except OSError as error:
        raise InputError(f"{path}: the pairs cannot be written ({error.strerror or error}).") from error


def _root(name: str, root: str | Path | None) -> Path:
    if root is not None:
        return Path(root)
    if name != "easy-vqa":
        raise UsageError(f"'{name}' is read from files: give the folder that holds them (--root).")
    package = importlib.util.find_spec("easy_vqa")
    if package is None or package.origin is None:
        raise MissingExtraError("easy-vqa", "packaged")
    return Path(package.origin).parent / "data"


def _file(name: str, source: Source, folder: Folder, splits: list[str]) -> tuple[Path, Reader]:
    for pattern, reader in source.files:
        for split in splits:
            path = folder.find(pattern.format(split=split))
            if path is not None:
                return path, reader
    official = [pattern.format(split=splits[0]) for pattern, _ in source.files if pattern != "{split}.jsonl"]
    packed = next(filter(None, (folder.find(name + end) for name in official for end in (".gz", ".zip"))), None)
    if packed is not None:
        raise InputError(f"{packed}: expected the unpacked file, found an archive; unpack it in place.")
    raise InputError(
        f"{folder.root}: '{name}' needs {' or '.join(official)} below this folder, found none; "
        f"get it from {source.where}."
    )


def _usable(items: list[Row | LeftOut]) -> tuple[list[Row], list[tuple[str, str]]]:
    """Leave out rows that a pairs file cannot contain (blank texts, broken characters), with their whole groups."""
    rows: list[Row] = []
    left_out: list[tuple[str, str]] = []
    broken: set[str] = set()
    for item in items:
        if isinstance(item, LeftOut):
            left_out.append((item.id, item.reason))
        elif problem := problem_of(item):
            keys = (key for key in ("question_id", "pair_id", "group", "image") if key in item)
            key = next(keys)
            left_out.append((f"{key} {item[key]}", problem))
            broken |= {item["group"]} if "group" in item else set()
        else:
            rows.append(item)
    whole = [row for row in rows if row.get("group") not in broken]
    left_out += [
        (f"group {row['group']}", "another row of the group is left out") for row in rows if row.get("group") in broken
    ]
    return whole, left_out


def _with_images(rows: list[Row], folder: Folder, *, exact: bool) -> tuple[list[Row], list[tuple[str, str]]]:
    """Fill in the paths of the images that exist; drop the other rows, with their whole groups."""
    places = {image: folder.image(image, exact=exact) for image in {row["image"]: None for row in rows}}
    incomplete = {row["group"] for row in rows if "group" in row and places[row["image"]] is None}
    kept: list[Row] = []
    for row in rows:
        place = places[row["image"]]
        if place is not None and row.get("group") not in incomplete:
            kept.append({**row, "image": place})
    missing = [(image, "the image is missing") for image, place in places.items() if place is None]
    return kept, missing
