"""Reasoning: NLVR (true or false), and the choice sets SugarCrepe and Winoground.

Rows have the target ``"true"`` or ``"false"``: whether the text describes the image. The rows of one choice are
adjacent and share ``group``; ``caption`` and ``picture`` number the choices. SugarCrepe has the right and then the
wrong caption, so scores reshape to ``(n, 2)`` for `frevl.evaluation.metrics.choice_hits`. Winoground has caption 0 with
image 0 and 1, then caption 1 with image 0 and 1, so scores reshape to ``(n, 2, 2)`` for
`frevl.evaluation.metrics.group_hits`. A group with a missing image is left out as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frevl.data.benchmarks.files import Folder, LeftOut, Row, json_lines, need, read_json
from frevl.errors import InputError

__all__ = ["SUGARCREPE_PARTS", "nlvr", "sugarcrepe", "winoground"]

# --------------------------------------------------------------------------------------------- NLVR

_NLVR_SPLITS = ("train", "dev", "test")

# Skills that a sentence requires, by whole words in lower case. The rules are ours; a sentence may match several.
_SKILLS = {
    "count": re.compile(
        r"\b(\d+|one|two|three|four|five|six|seven|eight|nine|ten|number|count|exactly|only|single|multiple|many"
        r"|several|odd|even|more|less|fewer|most|at ?least)\b"
    ),
    "colour": re.compile(r"\b(black|blue|yellow|colou?r(s|ed)?|multi-?colou?red)\b"),
    "position": re.compile(
        r"\b(top|bottom|base|on|stacked|above|below|over|under|beneath|underneath|between|middle|center|centre|left|right|side"
        r"|corner|edge|wall|touch(es|ing)?|attached|near(ly)?|close(ly|st)?|next|first|second|third|last)\b"
    ),
}


def nlvr(folder: Folder, path: Path, split: str) -> Iterator[Row | LeftOut]:
    """Read ``<split>/<split>.json`` of NLVR (Suhr et al. 2017): six images per sentence, one row each.

    The six show the same three boxes in different orders, and up to four sentences come from one presentation: these
    rows are not independent. ``cluster`` names the presentation: split and resample by it. Images carry the name of
    their split; a subset cut out of another official split may keep that split's names, if all of them exist.

    Slices from the sentence, by the words in ``_SKILLS``: ``asks_count``, ``asks_colour``, ``asks_position``. Slices
    from the structured representation: ``scene`` (``towers`` if all objects are squares of size 20 with the same x,
    else ``scattered``), ``objects`` (their number in the three boxes), ``colours`` (their number).
    """
    sentences = list(json_lines(path))
    part = _nlvr_part(folder, [line for _, line in sentences], split)
    for place, line in sentences:
        where = f"{path.parent / place}"
        sentence = need(line, "sentence", str, where).strip()
        label = need(line, "label", str, where).lower()
        identifier = need(line, "identifier", str, where)
        if label not in ("true", "false"):
            raise InputError(f"{where}: expected the label 'true' or 'false', found {label!r}.")
        if not sentence:
            yield from (LeftOut(f"{identifier}-{k}", "the sentence is empty") for k in range(6))
            continue
        slices = {f"asks_{skill}": bool(words.search(sentence.lower())) for skill, words in _SKILLS.items()}
        slices |= _scene(need(line, "structured_rep", list, where), where)
        for image in _nlvr_images(line, part):
            yield {
                "image": image,
                "text": sentence,
                "target": label,
                "identifier": identifier,
                "cluster": identifier.partition("-")[0],
                **slices,
            }


def _nlvr_images(line: Row, part: str) -> list[str]:
    inside = f"images/{line['directory']}/" if line.get("directory") else ""
    return [f"{inside}{part}-{line.get('identifier')}-{k}.png" for k in range(6)]


def _nlvr_part(folder: Folder, sentences: list[Row], split: str) -> str:
    """Return the split in the image names; another one only if all images of the file exist."""

    def there(part: str) -> Iterator[bool]:
        return (folder.image(name) is not None for line in sentences for name in _nlvr_images(line, part))

    if any(there(split)):
        return split
    return next((part for part in _NLVR_SPLITS if sentences and all(there(part))), split)


def _scene(boxes: list[Any], place: str) -> Row:
    objects = [shape for box in boxes for shape in (box if isinstance(box, list) else [])]
    keys = [tuple(need(shape, key, (str, int, float), place) for key in ("type", "size", "color")) for shape in objects]
    columns = {shape.get("x_loc") for shape in objects}
    towers = bool(objects) and {key[:2] for key in keys} == {("square", 20)} and len(columns) == 1
    return {
        "scene": "towers" if towers else "scattered",
        "objects": len(objects),
        "colours": len({key[2] for key in keys}),
    }


# ------------------------------------------------------------------------------------- choice files

SUGARCREPE_PARTS = (
    "replace_obj",
    "replace_att",
    "replace_rel",
    "swap_obj",
    "swap_att",
    "add_obj",
    "add_att",
)


def sugarcrepe(folder: Folder, _: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read the seven files of SugarCrepe (Hsieh et al. 2023); ``part`` names the file."""
    for part in SUGARCREPE_PARTS:
        path = folder.find(f"{part}.json")
        if path is None:
            yield LeftOut(f"{part}.json", "this part of SugarCrepe is missing")
            continue
        document = read_json(path)
        if not isinstance(document, dict):
            raise InputError(f"{path}: expected an object of examples by number, found {type(document).__name__}.")
        for number, example in document.items():
            place = f"{path}, example {number}"
            image = need(example, "filename", str, place)
            for caption, key in enumerate(("caption", "negative_caption")):
                yield {
                    "image": image,
                    "text": need(example, key, str, place),
                    "target": "false" if caption else "true",
                    "group": f"{part}/{number}",
                    "caption": caption,
                    "picture": 0,
                    "part": part,
                }


def winoground(_: Folder, path: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read ``examples.jsonl`` of Winoground (Thrush et al. 2022); ``tag`` is its ``collapsed_tag``."""
    seen: set[str] = set()
    for place, example in json_lines(path):
        where = f"{path.parent / place}"
        group = str(need(example, "id", (int, str), where))
        if group in seen:
            yield from (LeftOut(f"{place}, choice {k}", f"the id {group} was used before") for k in range(4))
            continue
        seen.add(group)
        tag = {"tag": example["collapsed_tag"]} if example.get("collapsed_tag") else {}
        for caption in range(2):
            for picture in range(2):
                yield {
                    "image": need(example, f"image_{picture}", str, where),
                    "text": need(example, f"caption_{caption}", str, where),
                    "target": "true" if caption == picture else "false",
                    "group": group,
                    "caption": caption,
                    "picture": picture,
                    "cluster": group,
                    **tag,
                }
