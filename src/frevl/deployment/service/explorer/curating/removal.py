"""Which groups lose lines after all decisions, compared with removing as many lines at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from frevl.deployment.service.explorer.curating.curations import Removal
from frevl.deployment.service.explorer.curating.decisions import Standing
from frevl.deployment.service.explorer.curating.result import CurationResult
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.store.reader import Store

__all__ = ["removed"]

_MOST_LINES = 200_000
"""Maximum number of lines, all held in memory; above it, the comparison by ``frevl curate`` is returned."""


async def removed(explorer: Explorer, name: str | None) -> dict[str, Any]:
    """Return what is removed from each group, after all decisions if that can be computed."""

    def work() -> dict[str, Any]:
        opened = explorer.curations.opened(name)
        standing = opened.standing()
        found = {"version": standing.version, "removed": opened.result.record.get("removed"), "decided": False}
        if not standing.why or all(bool(opened.result.kept[row]) == (not why) for row, why in standing.why.items()):
            return {**found, "decided": bool(standing.why), "why_not": ""}
        if explorer.curations.removal is None or len(opened.result) > _MOST_LINES:
            why_not = f"Decisions are not included: that is computed for up to {_MOST_LINES:,} lines."
            return {**found, "why_not": why_not}
        key, compare = ("removed", opened.stamp, standing.version), explorer.curations.removal
        now = explorer.once(key, lambda: _compared(compare, explorer.service.store, opened.result, standing))
        return {**found, "removed": now, "decided": True, "why_not": ""}

    return await explorer.ask(work)


def _compared(compare: Removal, store: Store, result: CurationResult, standing: Standing) -> dict[str, Any] | None:
    kept = result.kept.copy()
    for row, why in standing.why.items():
        kept[row] = not why
    numbered = list(result.every_line())
    rows, lines = np.array([row for row, _ in numbered], np.int64), [line for _, line in numbered]
    asked = (result.record.get("removed") or {}).get("asked") or {}
    return compare(store, lines, kept[rows], task=result.record["task"], asked=asked)
