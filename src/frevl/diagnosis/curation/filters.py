"""The filters of ``frevl curate``, in the order in which they run."""

from __future__ import annotations

from frevl.diagnosis.curation.checks.pictures import image_filter
from frevl.diagnosis.curation.checks.texts import text_filter
from frevl.diagnosis.curation.copies.duplicates import duplicate_filter
from frevl.diagnosis.curation.labels import blind_filter, label_filter
from frevl.diagnosis.curation.lines import Filter
from frevl.diagnosis.curation.match import match_filter
from frevl.errors import UsageError, nearest

__all__ = ["FILTERS", "chosen_filters"]

FILTERS: dict[str, tuple[Filter, tuple[str, ...]]] = {
    "match": (match_filter, ("matching",)),
    "text": (text_filter, ("matching", "classification")),
    "image": (image_filter, ("matching", "classification")),
    "blind": (blind_filter, ("classification",)),
    "label": (label_filter, ("classification",)),
    "duplicate": (duplicate_filter, ("matching", "classification")),
}
"""The filters, and the tasks that each is for. A filter that uses the findings of others comes after them: of several
copies, one whose lines stay is kept, preferably the one that matches best."""

# A question that can be answered from the text alone is not an error, so this filter runs only on request.
_ON_REQUEST = ("blind",)


def chosen_filters(task: str, drop: list[str] | None) -> list[str]:
    """Return the names of the filters to run, in table order.

    Args:
        task: ``matching`` or ``classification``.
        drop: The requested filters; None means all for the task, except ``blind``.

    Raises:
        UsageError: No such filter exists, or it is for another task.
    """
    if drop is None:
        return [name for name, (_, tasks) in FILTERS.items() if task in tasks and name not in _ON_REQUEST]
    for name in drop:
        if name not in FILTERS:
            raise UsageError(f"--drop: there is no filter '{name}'. {nearest(name, FILTERS)}")
        if task not in FILTERS[name][1]:
            fitting = ", ".join(one for one, (_, tasks) in FILTERS.items() if task in tasks)
            raise UsageError(
                f"--drop {name} is for --task {' or '.join(FILTERS[name][1])}, found --task {task}; choose from "
                f"{fitting}"
            )
    return [name for name in FILTERS if name in drop]
