"""What a filter is given, the lines of a file, and what it returns: one verdict a line.

A filter is a function from `Lines`, and from what the filters before it found, to `Found`. A new one is a row of
`frevl.diagnosis.curation.filters.FILTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
"""The judged part of the key ``curate`` of a line, in its order; null is what no filter has looked at."""


@dataclass(frozen=True)
class Lines:
    """The usable lines of a pairs file.

    Attributes:
        store: Has their embeddings.
        pairs: The lines in file order, with the ids of the store; their ``clusters`` are the groups of
            `frevl.store.grouping.groups.group_pairs`, which stay in one fold.
        task: ``matching`` or ``classification``.
        image_towers: Image towers that every line has.
        text_towers: Text towers that every line has.
        session: Seed, time limit of all filters together, device and progress.
        folds: In how many parts the groups are dealt; None leaves it to the filter.
        run: A run that was trained elsewhere and judges the lines instead of models of ours, or None.
        images: Folder of the pictures, where the user gave one: only then may a filter look at pixels.
        checkpoint: Where a filter keeps what is done, so that a killed call goes on with it.
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

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Found:
    """A filter's finding for every line.

    Attributes:
        values: One mapping a line, with keys of `NOT_LOOKED_AT`.
        flagged: ``(n,)`` bool, the lines that ``--drop`` with this filter removes.
        belief: ``(n,)`` float in [0, 1], how probable it is that the line is right, NaN where that is not known; None
            of a filter that does not say. ``--keep`` and ``--below`` go by it.
        doubts: Sentences that say what may be wrong with the result; they come before every number.
        notes: Further sentences for the user.
        figures: Numbers for the JSON, by name.
    """

    values: list[dict[str, Any]]
    flagged: NDArray[np.bool_]
    belief: NDArray[np.float64] | None = None
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


Filter = Callable[[Lines, Mapping[str, Found]], Found]
"""From the lines, and what the filters before it in the table have found (by name), to what it says."""


def write_lines(path: str | Path | None, lines: list[dict[str, Any]], flag: str) -> None:
    """Write lines as JSON, one object each; the file is there whole or not at all.

    Args:
        path: The file; None writes none.
        lines: Objects.
        flag: What the user knows the file by, such as ``--out``.

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
