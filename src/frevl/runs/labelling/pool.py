"""The pool of ``frevl select`` as arrays: which pairs need no label, without a Python object for each."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import text_content
from frevl.data.packed.columns import chosen, is_given, joined
from frevl.data.pairs import Pairs, read_pairs
from frevl.errors import PairsError, Reject
from frevl.runs.scorer import Scorer
from frevl.runs.targets import row_prefixes
from frevl.store.grouping.contents import numbers_of
from frevl.store.towers import Modality
from frevl.store.usable_pairs import contents_of, usable_pairs

__all__ = ["Pool", "rows_kept"]

_MOST_SEEN = 20_000  # training items used for coverage; these represent any further ones well enough
_TEXTS_AT_ONCE = 65_536


@dataclass(frozen=True)
class _Keys:
    """What makes a pair another one: the content of its unit, and its text.

    Attributes:
        units: ``(n,)`` number of each pair's unit.
        contents: ``(units,)`` bytes, a hash of the content of each.
        words: ``(n,)`` number of each pair's text.
        texts: ``(texts,)`` bytes, a hash of each.
    """

    units: NDArray[np.int64]
    contents: np.ndarray
    words: NDArray[np.int64]
    texts: np.ndarray

    @classmethod
    def of(cls, scorer: Scorer, pairs: Pairs) -> _Keys:
        contents = contents_of(scorer.store, pairs)[1]
        (words,), texts = joined([pairs.texts])
        hashes = np.zeros(len(texts), "S32")
        for row, text in enumerate(texts):
            hashes[row] = hashlib.sha256(text_content(text).encode()).hexdigest()[:32].encode()
        return cls(joined([pairs.units])[0][0], contents, words, hashes)


class Pool:
    """The pool, and which of its pairs do not need a label.

    Attributes:
        pairs: The pool.
        counts: How many pairs were left out, by reason, after `open_rows`.
    """

    def __init__(self, scorer: Scorer, pairs: Pairs) -> None:
        self._scorer, self.pairs = scorer, pairs
        # Items used only to train the names' space have no class yet, so they may be labelled.
        self._seen = np.setdiff1d(scorer.run.train_image_hashes, scorer.run.space_image_hashes)
        self._keys = [_Keys.of(scorer, pairs)]
        self._labelled = [is_given(pairs.targets)]
        self._labelled_units = [chosen(pairs.units, np.flatnonzero(self._labelled[0]))]
        self.counts = {"labelled": 0, "in_training": 0, "copies": 0, "near_copies": 0}

    def contents(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return ``(n,)`` a number for the content of each of some pairs' units; copies have the same."""
        own = self._keys[0]
        return numbers_of(own.contents)[own.units[rows]]

    def add_labelled(self, file: str | Path | Pairs, rejects: list[Reject], notes: list[str]) -> None:
        """Mark the pairs of a file that have a target as labelled."""
        read = file if isinstance(file, Pairs) else read_pairs(file)
        notes += self._scorer.run.check_pairs(read)
        usable, left_out = usable_pairs(read.only(self._scorer.run.sides), self._scorer.store)
        rejects += [*read.rejected, *left_out]
        labelled = np.flatnonzero(is_given(usable.targets))
        if not len(labelled):
            raise PairsError(
                f"{usable.places[0]}, field 'target': expected a label, found none in any pair of --labelled; give "
                "the file once its pairs are labelled"
            )
        some = usable.select(labelled)
        self._keys.append(_Keys.of(self._scorer, some))
        self._labelled.append(np.ones(len(some), bool))
        self._labelled_units.append(some.units)

    def open_rows(self) -> NDArray[np.int64]:
        """Return the rows of eligible pairs, ascending, and count the others."""
        contents, texts = (
            np.split(numbers_of(np.concatenate(hashes)), np.cumsum([len(one) for one in hashes])[:-1])
            for hashes in ([one.contents for one in self._keys], [one.texts for one in self._keys])
        )
        wide = 1 + max(int(numbers.max(initial=0)) for numbers in texts)
        keys = [
            of_units[one.units] * wide + of_texts[one.words]
            for one, of_units, of_texts in zip(self._keys, contents, texts, strict=True)
        ]
        known = np.unique(np.concatenate([own[labelled] for own, labelled in zip(keys, self._labelled, strict=True)]))
        mine = keys[0]
        labelled = _among(mine, known)
        seen = np.isin(row_prefixes(self._keys[0].contents), self._seen)[self._keys[0].units] & ~labelled
        rest = np.flatnonzero(~labelled & ~seen)
        rows = np.sort(rest[np.unique(mine[rest], return_index=True)[1]])
        self.counts |= {
            "labelled": int(labelled.sum()), "in_training": int(seen.sum()), "copies": len(rest) - len(rows),
        }  # fmt: skip
        return rows

    def covered(self) -> list[str]:
        """Return an even sample of the store's training items, and all labelled items."""
        modality: Modality = "image" if "image" in self.pairs.sides else "text"
        seen = self._seen_images() if modality == "image" else self._seen_texts()
        sample = self._scorer.store.ids(modality, seen[:: -(-len(seen) // _MOST_SEEN) or 1])
        return list(dict.fromkeys([*sample, *(unit for units in self._labelled_units for unit in units)]))

    def _seen_images(self) -> NDArray[np.int64]:
        contents = row_prefixes(self._scorer.store.states("image")["content_hash"])
        return np.flatnonzero(np.isin(contents, self._seen))

    def _seen_texts(self) -> NDArray[np.int64]:
        store, found = self._scorer.store, [np.zeros(0, np.int64)]
        count = len(store.states("text")["content_hash"])
        for start in range(0, count, _TEXTS_AT_ONCE):
            rows = np.arange(start, min(start + _TEXTS_AT_ONCE, count))
            ids = store.ids("text", rows)
            blank = [""] * len(ids)
            hashes = contents_of(store, Pairs(blank, ids, [None] * len(ids), [], blank))[1]
            found.append(rows[np.isin(row_prefixes(hashes), self._seen)])
        return np.concatenate(found)


def _among(values: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return ``(n,)`` bool: which values are among ascending known ones."""
    if not len(known):
        return np.zeros(len(values), bool)
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return found


def rows_kept(pairs: Pairs, left_out: Collection[Reject]) -> NDArray[np.int64]:
    """Return the rows of some pairs that are not among the rejects of `usable_pairs`, ascending."""
    if not left_out:
        return np.arange(len(pairs))
    gone = {reject.id for reject in left_out}
    return np.flatnonzero([place not in gone for place in pairs.places])
