"""Write a curation as one HTML file in the layout of a diagnosis: each filter's findings, and the dropped lines."""

from __future__ import annotations

from array import array
from collections import Counter
from heapq import nsmallest
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.report.page import check_page_libraries, render, write_text
from frevl.diagnosis.report.shareable import shareable
from frevl.files import plain

if TYPE_CHECKING:
    from frevl.diagnosis.curation.curate import Curation
    from frevl.diagnosis.curation.removal.report import Removed

__all__ = ["curation_findings", "write_curation_page"]

_CASES = 12  # lines shown per filter, least probable first
_ROWS = 30
_BINS = 10

_HEADINGS = {
    "match": "Does the text describe the image?",
    "duplicate": "Copies",
    "text": "Texts",
    "image": "Pictures",
    "blind": "What the text alone gives away",
    "label": "Labels",
    "removed": "Side effects of the removal",
}
_KEYS = {"duplicate": "duplicate_of"}  # keys of verdicts that are named differently from their filter
_HOW = {
    "match": (
        "A dual encoder with a kernel alignment learned from the lines of other groups, and scored these lines and "
        "drawn wrong ones; the probability is that of a mixture of both kinds (docs/curate.md)."
    ),
    "duplicate": "The same content, or nearer than unrelated images of this set are to each other (docs/curate.md).",
    "text": "Rules on the texts, measured on the set itself (docs/curate.md).",
    "image": "Rules on the images, measured on the set itself (docs/curate.md).",
    "blind": "A text-only model that has not learned from the line's group, as a probability of its label.",
    "label": "Two different models that have not learned from the line's group; labels are compared with wrong ones.",
}
_ADVICE = "Look at the lines below before you trust it; --dropped FILE writes all of them."


def write_curation_page(curation: Curation, path: str | Path, *, images: str | Path | None = None) -> None:
    """Write the page.

    Args:
        curation: The curation to report.
        path: HTML file to write; its folder is created if missing.
        images: Folder of the images, for thumbnails of the dropped lines; None shows only their ids.

    Raises:
        MissingExtraError: Jinja2 or Matplotlib is not installed.
        UsageError: The folder of images does not exist.
        InputError: The file cannot be written.
    """
    check_page_libraries(images)
    findings = curation_findings(curation)
    kept = f"Kept {curation.kept:,} of {len(curation.lines):,} lines."
    record = {
        "verdict": {"sentence": curation.doubts[0] if curation.doubts else kept,
                    "detail": [*curation.doubts[1:], *([kept] if curation.doubts else [])]},
        "findings": [one.record() for one in findings],
        "notes": curation.notes,
        "cases": _cases(curation),
        "provenance": curation.provenance,
    }  # fmt: skip
    headings = {one.section: _HEADINGS.get(one.section, one.section) for one in findings}
    facts = [("Task", curation.task), ("Lines", len(curation.lines)), ("Kept", curation.kept)]
    words = {
        "title": "Curation",
        "kicker": "Curation of a pairs file",
        "cases": "Dropped lines",
        "truth": "Given",
        "answer": "Found",
        "nothing": "Not examined.",
    }
    folder = None if images is None else Path(images)
    write_text(render(shareable(plain(record)), headings, facts, words, images=folder), path)


def curation_findings(curation: Curation) -> list[Finding]:
    """Return one finding per filter: how many lines it drops, and what it found."""
    found, seen = [], {name: _Evidence() for name in curation.filters}
    for line in curation.lines:
        for name, evidence in seen.items():
            evidence.add(name, line["curate"][_KEYS.get(name, name)])
    for name, counts in curation.filters.items():
        table, plot = seen[name].table_and_plot(name)
        n = len(curation.lines)
        share = 100 * counts["dropped"] / max(n, 1)
        claim = (
            f"{counts['dropped']:,} of {n:,} lines are dropped ({share:.1f} %), {counts['dropped_alone']:,} by this "
            "filter alone."
        )
        found.append(Finding(name, name, claim, share, None, _HOW.get(name, ""), _ADVICE, table, plot))
    if curation.removed is not None:
        found.append(_removed(curation.removed))
    return found


def _removed(removed: Removed) -> Finding:
    """Return the finding on removals by group, and the remaining variety."""
    table: list[dict[str, Any]] = [
        {
            "group": f"{one.key}: {one.value}",
            "lines": one.lines,
            "kept, %": 100 * one.kept,
            "at random, %": f"{100 * one.low:.1f} to {100 * one.high:.1f}",
            "beyond random": "yes" if one.beyond else "",
        }
        for one in removed.groups[:_ROWS]
    ]
    measures = "; ".join(
        f"{one.name.replace('_', ' ')} {one.before:.1f} before, {one.after:.1f} after, "
        f"{one.low:.1f} to {one.high:.1f} at random"
        for one in removed.variety
    )
    how = (
        "Share of lines kept in every group, compared with removing as many lines at random, image by image "
        f"as the filters did; variety of the images: {measures or 'as before'} (docs/curate.md)."
    )
    advice = "If a group loses more than the others, look at its lines before you train on the rest."
    claim = removed.sentence() or "No group is large enough to be compared."
    return Finding("removed", "removed", claim, 100 * removed.kept, None, how, advice, table, {})


class _Evidence:
    """Counts of a filter's findings."""

    def __init__(self) -> None:
        self.changes: Counter[tuple[str, str]] = Counter()
        self.reasons: Counter[str] = Counter()
        self.originals: Counter[str] = Counter()
        self.numbers = array("d")

    def add(self, name: str, value: Any) -> None:
        if name == "label":
            if value and value[1] is not None and value[0] != value[1]:
                self.changes[(value[0], value[1])] += 1
        elif isinstance(value, float):
            self.numbers.append(value)
        elif isinstance(value, list):
            self.reasons.update(value)
        elif isinstance(value, str):
            self.originals[value] += 1

    def table_and_plot(self, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return a table of the findings, and a plot if they are probabilities."""
        if name == "label":
            changes = self.changes.most_common(_ROWS)
            return [{"given": given, "likelier": other, "lines": n} for (given, other), n in changes], {}
        if len(self.numbers):
            counts, edges = np.histogram(np.asarray(self.numbers), bins=_BINS, range=(0, 1))
            names = [f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in pairwise(edges.tolist())]
            rows = [{"probability": one, "lines": int(count)} for one, count in zip(names, counts, strict=True)]
            heights = [float(count) for count in counts]
            return rows, chart("bars", "probability", "lines", series("lines", names, heights))
        if self.reasons:
            return [{"reason": reason, "lines": n} for reason, n in self.reasons.most_common(_ROWS)], {}
        return [{"copies of": one, "lines": n} for one, n in self.originals.most_common(_ROWS)], {}


def _cases(curation: Curation) -> list[dict[str, Any]]:
    """Return the first lines dropped by each filter, least probable first."""
    cases = []
    for name in curation.filters:
        key = _KEYS.get(name, name)
        gone = (line for line in curation.lines if name in line["curate"]["why"])
        if name in ("match", "label"):
            shown = nsmallest(_CASES, gone, key=lambda line: _probability(line["curate"][key]))
        else:
            shown = list(islice(gone, _CASES))
        for line in shown:
            value = line["curate"][key]
            case = {
                "kind": f"by {name}",
                "image": line.get("image", ""),
                "text": line.get("text", ""),
                "target": line.get("target"),
                "answer": _said(name, value),
            }
            cases.append({**case, "confidence": None})
    return cases


def _probability(value: Any) -> float:
    number = value[2] if isinstance(value, list) else value
    return 1.0 if number is None else float(number)


def _said(name: str, value: Any) -> str:
    if name == "match":
        return "not judged" if value is None else f"a match with {100 * value:.1f} %"
    if name == "label":
        given, likelier, p = value
        if p is None:
            return "not judged"
        own = f"{given}: {100 * p:.1f} %"
        return own if likelier == given else f"{likelier} is likelier ({own})"
    if name == "blind":
        return f"the text alone implies it with {100 * value:.1f} %"
    if name == "duplicate":
        return f"a copy of {value}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
