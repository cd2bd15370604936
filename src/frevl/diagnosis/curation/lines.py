"""The input of a filter, the lines of a file, and its output, one verdict per line.

A filter is a function from `Lines` and the earlier filters' findings to `Found`. A new one is a row of
`frevl.diagnosis.curation.filters.FILTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl import files
from frevl.data.pairs import Pairs
from frevl.errors import InputError
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.training.options import Session
from frevl.training.run_folder import NOWHERE, Checkpoint

__all__ = ["NOT_LOOKED_AT", "Filter", "Found", "Lines", "write_lines"]

NOT_LOOKED_AT: dict[str, Any] = {
    "match": None,
    "duplicate_of": None,
    "copies": None,
    "text": None,
    "image": None,
    "blind": None,
    "label": None,
}
"""The fields that filters set in a line's key ``curate``, in order; null means not checked."""


@dataclass(frozen=True)
class Lines:
    """The usable lines of a pairs file.

    Attributes:
        store: The store with their embeddings.
        pairs: The lines in file order, with the ids of the store; their ``clusters`` are the groups of
            `frevl.store.grouping.groups.group_pairs`, which stay in the same fold.
        task: ``matching`` or ``classification``.
        image_towers: Image towers available for every line.
        text_towers: Text towers available for every line.
        session: Seed, total time limit for all filters, device and progress.
        folds: Number of folds; None leaves it to the filter.
        run: A run trained elsewhere that scores the lines instead of cross-validated models, or None.
        images: Folder of the images, if given; only then may a filter check pixels.
        checkpoint: Saves a filter's progress, so that a killed call can continue.
        ray: Address of the Ray cluster on which models are trained and runs score, as for
            `frevl.store.many_nodes.connection.connected`; None trains in this process.
        notes: Receives notes on how the work went.
    """

    store: Store
    pairs: Pairs
    task: str
    image_towers: list[Tower]
    text_towers: list[Tower]
    session: Session
    folds: int | None = None
    run: Path | None = None
    images: Path | None = None
    checkpoint: Checkpoint = NOWHERE
    ray: str | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Found:
    """A filter's findings for all lines.

    Attributes:
        values: One mapping per line, with keys of `NOT_LOOKED_AT`: `frevl.diagnosis.curation.verdicts.values.Values`,
            which takes no memory per line, or a list.
        flagged: ``(n,)`` bool, the lines to drop with ``--drop`` and this filter.
        belief: ``(n,)`` float in [0, 1], probability that the line is correct, NaN if unknown; None for a filter
            without probabilities. Used by ``--keep`` and ``--below``.
        doubts: Reasons to doubt the result, shown before any number.
        notes: Further sentences for the user.
        figures: Numbers for the JSON, by name.
    """

    values: Sequence[Mapping[str, Any]]
    flagged: NDArray[np.bool_]
    belief: NDArray[np.float64] | None = None
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


Filter = Callable[[Lines, Mapping[str, Found]], Found]
"""Maps the lines and the earlier filters' findings (by name) to its own findings."""


def write_lines(path: str | Path | None, lines: Iterable[dict[str, Any]], flag: str) -> None:
    """Write lines as JSON, one object per line; the file is written completely or not at all.

    Args:
        path: File to write; None writes nothing.
        lines: The objects to write.
        flag: The option that names the file, such as ``--out``.

    Raises:
        InputError: The file cannot be written.
    """
    if path is None:
        return
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_lines(file, lines)
    except OSError as error:
        raise InputError(f"{flag} {file}: the lines cannot be written ({error.strerror or error})") from error
