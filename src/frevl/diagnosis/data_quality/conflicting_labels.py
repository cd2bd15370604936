"""Find pairs whose labels contradict those of other pairs with the same image and text."""

from __future__ import annotations

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality.near_duplicates import normal_text
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.splits import Splits, answers_of
from frevl.store.usable_pairs import content_of_units

__all__ = ["conflict_claim", "conflict_finding"]

_SHOWN = 30


def conflict_finding(splits: Splits) -> Finding:
    """Find pairs with the same image content and text whose targets have nothing in common."""
    parts = [splits.train, splits.dev, splits.test]
    hashes = {unit: content for part in parts for unit, content in content_of_units(splits.store, part).items()}
    groups: dict[tuple[str, str], list[tuple[Pairs, int]]] = {}
    total = 0
    for part in parts:
        for row, (unit, text) in enumerate(zip(part.units, part.texts, strict=True)):
            groups.setdefault((hashes[unit], normal_text(text)), []).append((part, row))
            total += 1
    table, touched = [], 0
    for members in groups.values():
        if len(members) < 2:
            continue
        answers = [answers_of(part.targets[row], splits.task) for part, row in members]
        if set.intersection(*answers):
            continue
        touched += len(members)
        first, row = members[0]
        targets = "; ".join(sorted({", ".join(sorted(one)) for one in answers}))
        table.append({"image": first.images[row], "text": first.texts[row], "pairs": len(members), "targets": targets})
    what = " and ".join(splits.train.sides)
    claim, advice = conflict_claim(touched, total, what)
    return Finding(
        name="conflicting-labels",
        section="data",
        claim=claim,
        value=100 * touched / total,
        ci95=None,
        how=f"Same {_SAME[what]}, no answer in common; all splits together. Percent of pairs.",
        advice=advice,
        table=table[:_SHOWN],
    )


_SAME = {"image and text": "image content and same text", "image": "image content", "text": "text"}


def conflict_claim(touched: int, pairs: int, what: str = "image and text") -> tuple[str, str]:
    """Return claim and advice on pairs that contradict another pair with the same image and text (or single side)."""
    if not touched:
        return f"No two pairs with the same {what} contradict each other.", "Nothing to do."
    return (
        f"{touched:,} of {pairs:,} pairs contradict another pair with the same {what}.",
        "Decide which is right: no answer can be right for both.",
    )
