"""Visual entailment: SNLI-VE and e-SNLI-VE.

A row is ``{"image", "text": hypothesis, "target": "entailment", "neutral" or "contradiction"}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from frevl.data.benchmarks.files import Folder, LeftOut, Row, csv_rows, json_lines, need
from frevl.errors import InputError

__all__ = ["LABELS", "e_snli_ve", "plain_entailment", "snli_ve"]

LABELS = ("entailment", "neutral", "contradiction")


def snli_ve(_: Folder, path: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read ``snli_ve_<split>.jsonl`` (Xie et al. 2019); rows carry ``pair_id``."""
    for place, line in json_lines(path):
        # The authors' generator spells the key in three ways, one of them misspelt.
        key = next((name for name in ("Flickr30K_ID", "Flickr30kID", "Flikr30kID") if name in line), "Flickr30K_ID")
        where = f"{path.parent / place}"
        yield _row(
            where,
            str(need(line, key, (str, int), where)),
            need(line, "sentence2", str, where),
            need(line, "gold_label", str, where),
            str(line.get("pairID", place)),
        )


def e_snli_ve(_: Folder, path: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read ``esnlive_<split>.csv`` of e-ViL (Kayser et al. 2021); rows carry ``pair_id`` and ``explanation``."""
    table = csv_rows(path)
    header = next(table, ("", []))[1]
    columns = ("pairID", "Flickr30kID", "hypothesis", "gold_label")
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{path}, line 1: expected the columns {', '.join(columns)}, found {header}.")
    for place, cells in table:
        if len(cells) != len(header):
            raise InputError(
                f"{path.parent / place}: expected {len(header)} columns, found {len(cells)}; fetch the file again."
            )
        values = dict(zip(header, cells, strict=True))
        row = _row(
            f"{path.parent / place}",
            values["Flickr30kID"],
            values["hypothesis"],
            values["gold_label"],
            values["pairID"],
        )
        if isinstance(row, dict) and values.get("explanation"):
            row["explanation"] = values["explanation"]
        yield row


def plain_entailment(_: Folder, path: Path, __: str) -> Iterator[Row | LeftOut]:
    """Read lines ``{"image", "hypothesis", "label"}``; not official, for subsets of the official sets."""
    for place, line in json_lines(path):
        where = f"{path.parent / place}"
        image, text, label = (need(line, key, str, where) for key in ("image", "hypothesis", "label"))
        yield _row(where, image, text, label, place)


def _row(place: str, image: str, text: str, label: str, pair_id: str) -> Row | LeftOut:
    if label == "-":
        return LeftOut(pair_id, "people did not agree on a label")
    if label not in LABELS:
        raise InputError(f"{place}: expected one of the labels {', '.join(LABELS)}, found {label!r}.")
    if not text.strip():
        return LeftOut(pair_id, "the hypothesis is empty")
    return {
        "image": image if image.endswith(".jpg") else image + ".jpg",
        "text": text.strip(),
        "target": label,
        "pair_id": pair_id,
    }
