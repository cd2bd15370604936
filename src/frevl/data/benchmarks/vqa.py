"""Questions and answers: VQA v2, GQA, DAQUAR and easy-VQA.

A row is ``{"image", "text": question, "target"}``; the target is a soft target for VQA v2, one answer for GQA
and easy-VQA, one answer or the list of a set for DAQUAR.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from frevl.data.benchmarks.files import Folder, LeftOut, Row, json_lines, lines, need, read_json
from frevl.data.benchmarks.vqa_answers import answer_vocabulary, soft_targets
from frevl.errors import InputError

__all__ = ["daquar", "easy_vqa", "frequent_answers", "gqa", "keep_vocabulary", "plain_questions", "vqa_v2"]

_DAQUAR_IMAGE = re.compile(r"\bimage\d+\b")


def vqa_v2(folder: Folder, path: Path, split: str) -> Iterator[Row | LeftOut]:
    """Read the questions and annotations of VQA v2 (Goyal et al. 2017); a test split has no annotations and no target.

    Rows carry ``question_id``, ``question_type``, ``answer_type``, ``answers`` (all ten, unchanged) and
    ``multiple_choice_answer``, the majority answer, from which the vocabulary is built.
    """
    document = read_json(path)
    subset = need(document, "data_subtype", str, str(path))
    if not subset.startswith(split.partition("-")[0]):
        raise InputError(
            f"{path}: expected the questions of '{split}', found those of '{subset}' (data_subtype); "
            "fetch the file again."
        )
    notes, annotated, twice = _vqa_annotations(folder, path, split, subset)
    yield from twice
    seen: set[int] = set()
    # Questions for test-dev refer to images of test.
    images = "test2015" if subset.startswith("test") else subset
    for number, question in enumerate(need(document, "questions", list, str(path))):
        place = f"{path}, questions[{number}]"
        id_ = need(question, "question_id", int, place)
        row: Row = {
            "image": f"{images}/COCO_{images}_{need(question, 'image_id', int, place):012d}.jpg",
            "text": need(question, "question", str, place),
            "question_id": id_,
        }
        if id_ in seen:
            yield LeftOut(f"question {id_}", "repeats the id of an earlier question")
            continue
        seen.add(id_)
        if annotated is None:
            yield row
            continue
        annotation = annotated.pop(id_, None)
        if annotation is None:
            yield LeftOut(f"question {id_}", "the question has no annotation")
            continue
        if annotation.get("image_id", question["image_id"]) != question["image_id"]:
            yield LeftOut(f"question {id_}", "question and annotation name different images")
            continue
        place = f"{notes}, annotation of question {id_}"
        answers = [need(answer, "answer", str, place) for answer in need(annotation, "answers", list, place)]
        target = soft_targets(answers) if answers else {}
        if not target:
            yield LeftOut(f"question {id_}", "no answer earns any credit")
            continue
        row["target"] = target
        for key in ("question_type", "answer_type", "multiple_choice_answer"):
            row[key] = need(annotation, key, str, place)
        yield {**row, "answers": answers}
    for id_ in annotated or ():
        yield LeftOut(f"annotation of question {id_}", "the annotation has no question")


def _vqa_annotations(
    folder: Folder, questions: Path, split: str, subset: str
) -> tuple[Path, dict[int, Row] | None, list[LeftOut]]:
    """Return the file, its annotations by question (None for a test split), and repeated ones."""
    if split.startswith("test"):
        return questions, None, []
    name = questions.name.replace("OpenEnded_", "").replace("questions", "annotations")
    path = folder.find(name)
    if path is None:
        raise InputError(f"{folder.root}: the annotations '{name}' that belong to '{questions.name}' are missing.")
    document = read_json(path)
    annotations = need(document, "annotations", list, str(path))
    if document.get("data_subtype", subset) != subset:
        raise InputError(
            f"{path}: expected the annotations of '{subset}', as the questions have it, found those of "
            f"'{document['data_subtype']}' (data_subtype); fetch the file again."
        )
    annotated: dict[int, Row] = {}
    twice = []
    for number, annotation in enumerate(annotations):
        id_ = need(annotation, "question_id", int, f"{path}, annotations[{number}]")
        if id_ in annotated:
            twice.append(LeftOut(f"annotation of question {id_}", "repeats the annotation of a question"))
        else:
            annotated[id_] = annotation
    return path, annotated, twice


def frequent_answers(rows: Sequence[Row], minimum: int) -> list[str]:
    """Return the majority answers of enough training questions; see `answer_vocabulary`.

    Args:
        rows: Rows of `vqa_v2` from the training split.
        minimum: Minimum number of questions; the customary value is 9.
    """
    return answer_vocabulary((row["multiple_choice_answer"] for row in rows), minimum)


def keep_vocabulary(rows: Sequence[Row], vocabulary: Collection[str]) -> tuple[list[Row], list[LeftOut]]:
    """Restrict the targets of training rows to answers in the vocabulary.

    Test rows must keep all their answers: those outside the vocabulary count as wrong there.

    Args:
        rows: Rows with a soft target.
        vocabulary: From `frevl.data.benchmarks.vqa_answers.answer_vocabulary` on the training split.

    Returns:
        Rows with at least one answer left, and what was left out, one entry per question.
    """
    known = frozenset(vocabulary)
    kept: list[Row] = []
    left_out: list[LeftOut] = []
    for row in rows:
        target = {answer: weight for answer, weight in row["target"].items() if answer in known}
        if target:
            kept.append({**row, "target": target})
        else:
            named = ", ".join(f"'{answer}'" for answer in list(row["target"])[:3])
            left_out.append(LeftOut(f"question {row.get('question_id')}", f"outside the vocabulary: {named}"))
    return kept, left_out


def gqa(_: Folder, path: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read ``*_balanced_questions.json`` of GQA (Hudson and Manning 2019).

    Rows carry ``question_id`` and the question's ``structural``, ``semantic`` and ``detailed`` type.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object of questions by id, found {type(document).__name__}.")
    for id_, question in document.items():
        place = f"{path}, question {id_}"
        row: Row = {
            "image": need(question, "imageId", str, place),
            "text": need(question, "question", str, place),
            "question_id": id_,
        }
        if "answer" in question:  # the test split has none
            row["target"] = need(question, "answer", str, place)
            types = need(question, "types", dict, place)
            row |= {key: types[key] for key in ("structural", "semantic", "detailed") if types.get(key)}
        yield row


def daquar(folder: Folder, path: Path, split: str) -> Iterator[Row | LeftOut]:
    """Read DAQUAR (Malinowski and Fritz 2014): a question line, its answer line, and so on; questions name their image.

    They are in ``qa.894.raw.<split>.txt``, or in the full file and the official image list of the split. ``text`` is
    the question without its image's name ("in the image3"), which carries no information on the image, but makes equal
    questions differ and, being numbered along NYU Depth's videos, reveals the room; ``question`` is the original.
    ``cluster`` is a run of images with consecutive numbers: usually one room seen repeatedly, so a development split
    must not cut it (research/experiments/log.md). ``answers`` is the set of answers; ``answer_type`` is ``single`` or
    ``set``; ``question_type`` is ``count`` ("how many ..."), ``colour`` ("what color ..." or "what colour ...") or
    ``object``, a rule of ours.
    """
    yield from _with_rooms(_daquar_rows(folder, path, split))


def _daquar_rows(folder: Folder, path: Path, split: str) -> Iterator[Row | LeftOut]:
    wanted = None if split in path.name else _daquar_list(folder, path, split)
    question = ""
    for place, line in lines(path):
        if not question:
            question = line
            continue
        images = _DAQUAR_IMAGE.findall(question)
        if not images or line.endswith("?"):
            raise InputError(
                f"{path.parent / place}: expected a question that names its image ('... in the image3 ?') and then "
                f"its answer, found {question[-40:]!r} and then {line[-40:]!r}; fetch the file again."
            )
        text, question = question, ""
        if wanted is not None and images[-1] not in wanted:
            continue
        answers = [answer.strip() for answer in line.split(",") if answer.strip()]
        if not answers:
            yield LeftOut(place, "the answer is empty")
            continue
        yield _daquar_row(images[-1], text, answers)
    if question:
        raise InputError(f"{path}: the last question has no answer line; the file is truncated, fetch it again.")


def plain_questions(_: Folder, path: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read lines ``{"image", "question", "answers": [...]}`` as rows of `daquar`; not official, for subsets of it."""
    yield from _with_rooms(_plain_rows(path))


def _plain_rows(path: Path) -> Iterator[Row | LeftOut]:
    for place, line in json_lines(path):
        where = f"{path.parent / place}"
        image, question = (need(line, key, str, where) for key in ("image", "question"))
        answers = [text for answer in need(line, "answers", list, where) if (text := str(answer).strip())]
        yield _daquar_row(image, question, answers) if answers else LeftOut(place, "the answer is empty")


def _daquar_row(image: str, question: str, answers: list[str]) -> Row:
    kind = "object"
    if question.startswith("how many"):
        kind = "count"
    elif question.startswith(("what color", "what colour")):
        kind = "colour"
    return {
        "image": image,
        "text": _without_name(question, Path(image).stem),
        "question": question,
        "target": answers if len(answers) > 1 else answers[0],
        "answers": answers,
        "answer_type": "set" if len(answers) > 1 else "single",
        "question_type": kind,
    }


def _without_name(question: str, image: str) -> str:
    """Remove the image's name from its question, with the words that introduce it."""
    name = rf"\b{re.escape(image)}\b"
    text = re.sub(rf"\s*\b(?:in|of|on|from|at)\s+(?:(?:the|this)\s+)?{name}", "", question)
    return re.sub(r"\s+", " ", re.sub(name, "", text)).strip() or question


def _with_rooms(found: Iterable[Row | LeftOut]) -> Iterator[Row | LeftOut]:
    """Give the rows of images with consecutive numbers one ``cluster``; rows whose image has no number get none."""
    rows = list(found)
    number = {
        row["image"]: int(named[1])
        for row in rows
        if not isinstance(row, LeftOut) and (named := re.fullmatch(r"image(\d+)", Path(row["image"]).stem))
    }
    first: dict[int, int] = {}
    for n in sorted(set(number.values())):
        first[n] = first.get(n - 1, n)
    if len(set(first.values())) == 1:  # a small subset numbered consecutively: nothing could be set aside from it
        number = {}
    for row in rows:
        if isinstance(row, LeftOut) or row["image"] not in number:
            yield row
        else:
            yield {**row, "cluster": f"from image{first[number[row['image']]]}"}


def _daquar_list(folder: Folder, path: Path, split: str) -> set[str]:
    names = (f"{split}.txt", f"{split}_images_list.txt")
    found = next(filter(None, map(folder.find, names)), None)
    if found is None:
        raise InputError(f"{path}: the file has no splits; put the list {' or '.join(names)} below {folder.root}.")
    return {Path(line).stem for _, line in lines(found)}


def easy_vqa(folder: Folder, path: Path, split: str) -> Iterator[Row | LeftOut]:
    """Read ``questions.json`` of the package easy-vqa: a list of ``[question, answer, image number]``."""
    path = folder.root / split / "questions.json"
    if not path.is_file():
        raise InputError(f"{path}: the questions of this split are missing.")
    document = read_json(path)
    if not isinstance(document, list):
        raise InputError(f"{path}: expected a list of questions, found {type(document).__name__}.")
    for number, entry in enumerate(document):
        if not (isinstance(entry, list) and [type(value) for value in entry] == [str, str, int]):
            raise InputError(f"{path}, entry {number}: expected [question, answer, image number], found {entry!r:.60}.")
        yield {"image": f"{split}/images/{entry[2]}.png", "text": entry[0], "target": entry[1]}
