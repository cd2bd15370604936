"""List columns and frequent values, to offer filters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.rows import Rows
from frevl.deployment.service.explorer.searching.filters import columns_of, is_rounded, kind_of
from frevl.deployment.service.explorer.searching.times import shown_time, zone_of

__all__ = ["columns"]

_LOOKED_AT = 20_000  # images sampled evenly over the store
_SHOWN, _LONGEST = 30, 200


async def columns(explorer: Explorer) -> dict[str, Any]:
    """List the columns and the most frequent values of each."""
    rows = await explorer.rows()
    return await explorer.ask(lambda: explorer.once((rows.key, "columns"), lambda: _columns(rows)))


def _columns(rows: Rows) -> dict[str, Any]:
    store = rows.store
    types = columns_of(store)
    chosen = np.unique(np.linspace(0, max(0, len(rows) - 1), min(len(rows), _LOOKED_AT)).astype(int)).tolist()
    found = store.read_metadata("image", [rows.ids[row] for row in chosen]) if len(types) > 2 and chosen else []
    records = []
    for name, type_ in types.items():
        kind = kind_of(type_)
        counts = Counter(value for one in found if (value := one.get(name)) is not None)
        values = [
            {"value": str(value) if is_rounded(value) else value, "count": count}
            for value, count in counts.most_common(_SHOWN)
            if kind in ("text", "flag", "number") and len(str(value)) <= _LONGEST
        ]
        # Values that are nearly unique to each image do not help in a filter.
        helpful = kind != "other" and name != "id" and len(counts) <= max(1, len(found) // 2)
        times = sorted(filter(None, map(shown_time, counts))) if kind in ("date", "time") else []
        records.append(
            {
                "name": name,
                "type": str(type_),
                "kind": kind,
                "zone": zone_of(type_),
                "first": times[0] if times else None,
                "last": times[-1] if times else None,
                "values": values if helpful else [],
            }
        )
    return {"looked_at": len(found), "pictures": len(rows), "columns": records}
