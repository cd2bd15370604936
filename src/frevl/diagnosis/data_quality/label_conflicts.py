"""Labels that contradict each other: the same image and text with answers that have nothing in common."""

from __future__ import annotations

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality.near_duplicates import normal_text
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.splits import Splits, answers_of

__all__ = ["conflict_claim", "conflict_finding"]

_SHOWN = 30


def conflict_finding(splits: Splits) -> Finding:
    """Find pairs with the same image content and text whose targets have nothing in common."""
    parts = [splits.train, splits.dev, splits.test]
    hashes = splits.store.content_hashes([image for part in parts for image in part.images])
    groups: dict[tuple[str, str], list[tuple[Pairs, int]]] = {}
    total = 0
    for part in parts:
        for row, (image, text) in enumerate(zip(part.images, part.texts, strict=True)):
            groups.setdefault((hashes[image], normal_text(text)), []).append((part, row))
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
        said = "; ".join(sorted({", ".join(sorted(one)) for one in answers}))
        table.append({"image": first.images[row], "text": first.texts[row], "pairs": len(members), "targets": said})
    claim, advice = conflict_claim(touched, total)
    return Finding(
        name="conflicting-labels",
        section="data",
        claim=claim,
        value=100 * touched / total,
        ci95=None,
        how="Same image content and same text, no answer in common; all splits together. Percent of pairs.",
        advice=advice,
        table=table[:_SHOWN],
    )


def conflict_claim(touched: int, pairs: int) -> tuple[str, str]:
    """Return claim and advice on pairs that contradict another one of the same image and text."""
    if not touched:
        return "No two pairs of the same image and text contradict each other.", "Nothing to do."
    return (
        f"{touched:,} of {pairs:,} pairs contradict another pair of the same image and text.",
        "Decide which is right: no answer of a model can be right for both.",
    )
