"""Score a pairs file: write the same pairs with scores, or with labels and probabilities.

Blocks are scored in this process, or on the nodes of a Ray cluster that each open run and store.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from frevl.data.outputs import refuse_inputs
from frevl.data.pairs import Pairs, read_pairs
from frevl.errors import FrevlError, InputError, Reject, UsageError, in_bytes
from frevl.files import plain, replace_file
from frevl.models.hub import weights_digest
from frevl.runs.calibration import ConformalScores, check_level
from frevl.runs.pair_grid import dot_rows
from frevl.runs.prediction_sets import conformal_scores, named_matches, named_sets
from frevl.runs.scorer import Scorer
from frevl.store.many_nodes.connection import connected
from frevl.store.many_nodes.workers import Greeting, Workers
from frevl.store.remote.address import is_remote
from frevl.store.towers import MODALITIES
from frevl.store.usable_pairs import note_unread, usable_pairs

__all__ = ["score_file", "score_grid", "scoring_through"]

B = TypeVar("B")
R = TypeVar("R")


@contextmanager
def scoring_through(
    address: str | None, scorer: Scorer, call: Callable[[Scorer, B], R], *, notes: list[str]
) -> Iterator[Callable[[Iterable[B]], Iterator[R]]]:
    """Score blocks locally or on a cluster.

    Args:
        address: Address of the cluster, see `frevl.store.many_nodes.connection.connected`; None scores locally.
        scorer: The run with its store. Nodes open both under the same paths.
        call: Scores one block. For a cluster it must be picklable: a module-level function, or a `functools.partial` of
            one.
        notes: Receives notes for the user.

    Yields:
        A function from blocks to their results, in the same order.

    Raises:
        MissingExtraError: Ray is not installed.
        FrevlError: There is no cluster, or a node sees another store or run, or has another version of frevl.
    """
    if address is None:
        yield lambda blocks: (call(scorer, block) for block in blocks)
        return
    with connected(address) as ray:
        place = _Place.of(scorer)
        accelerators = 0 if scorer.device == "cpu" else 1
        hired: Workers[B, R] = Workers(ray, partial(_open, place, call), accelerators=accelerators)

        def greeted(greeting: Greeting) -> None:
            if greeting.about != place.content:
                raise FrevlError(
                    f"--ray: the node {greeting.node} sees a different store or run under {place.store} and "
                    f"{place.run} than this process; give paths that are valid on all nodes, and do not write to "
                    "the store meanwhile"
                )

        with hired:
            hired.start(greeted)
            yield hired.in_order
        notes += hired.notes


@dataclass(frozen=True)
class _Place:
    """The locations and identities of run and store."""

    run: str
    store: str
    device: str
    batch_size: int
    content: dict[str, Any]

    @classmethod
    def of(cls, scorer: Scorer) -> _Place:
        run, store = (
            str(path) if is_remote(path) or not os.path.exists(path) else os.path.abspath(path)  # noqa: PTH100, PTH110
            for path in (scorer.run.path, scorer.store.path)
        )
        return cls(run, store, scorer.device, scorer.batch_size, _content(scorer))


def _content(scorer: Scorer) -> dict[str, Any]:
    versions = {modality: scorer.store.version(modality) for modality in MODALITIES}
    return {"store": scorer.store.fingerprint, "versions": versions, "weights": weights_digest(scorer.run.path)}


class _Scoring:
    """Scores blocks on a node."""

    def __init__(self, place: _Place, call: Callable[[Scorer, Any], Any]) -> None:
        self._scorer = Scorer.open(place.run, store=place.store, batch_size=place.batch_size, device=place.device)
        self._call = call
        self.about = _content(self._scorer)

    def __call__(self, block: Any) -> Any:
        return self._call(self._scorer, block)


def _open(place: _Place, call: Callable[[Scorer, Any], Any]) -> _Scoring:
    return _Scoring(place, call)


_MOST_NAMES = 2**31  # bytes of ids or texts in a grid file

_PAIRS_AT_ONCE = 16_384


def score_file(
    scorer: Scorer,
    pairs: str | Path | Pairs,
    out: str | Path,
    notes: list[str] | None = None,
    *,
    sets: float | None = None,
    calibrate: str | Path | Pairs | None = None,
    doubt: bool = False,
    ray: str | None = None,
) -> tuple[int, list[Reject]]:
    """Score every pair of a file and write them with their scores, one JSON object per line.

    Matching adds ``score`` and the calibrated ``probability``; classification adds ``label``, ``probability`` and
    ``top``. A pair with a rejected image keeps its place with ``"score": null`` and ``reject``, the reason.

    Args:
        scorer: The run with its store.
        pairs: Pairs, or a pairs file.
        out: File to write, completely or not at all.
        notes: Receives notes for the user: on texts that the encoder cannot read, on sets that contain every class.
        sets: Add ``"set"``, the labels that cannot be ruled out, likeliest first, so that the right one is among them
            with this frequency, between 0 and 1; matching adds ``"matches"``: true, false, or null for both.
        calibrate: Pairs for calibrating the sets, instead of those held out by the run.
        doubt: Add ``"doubt"``: how unlike the run's training data the pair is (`Scorer.doubt`).
        ray: Score on the nodes of a Ray cluster: ``local``, ``auto``, or the address of its head node. Nodes must see
            run and store under the same paths.

    Returns:
        The number of scored pairs, and what was left out.

    Raises:
        PairsError: The pairs cannot be used.
        InputError: The file cannot be written.
        UsageError: The output is also an input, or the run cannot measure doubt.
    """
    _refuse(scorer, pairs, out)
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    scorer.run.check_pairs(read)
    if doubt:
        scorer.doubt([])  # refuses a run without any
    if sets is not None:
        check_level(sets)
    elif calibrate is not None:
        raise UsageError("--calibrate is for prediction sets; request them with --sets, such as --sets 0.9")
    conformal, doubts = (None, []) if sets is None else conformal_scores(scorer, calibrate)
    usable, left_out = usable_pairs(read.only(scorer.run.sides), scorer.store)
    reasons = {reject.id: reject.reason for reject in left_out}
    out = Path(out)

    lost: list[str] = []
    scoring = partial(_results, conformal=conformal, level=sets, doubt=doubt)

    def blocks() -> Iterator[tuple[range, list[tuple[str, str]]]]:
        scored = 0
        for start in range(0, len(read), _PAIRS_AT_ONCE):
            rows = range(start, min(start + _PAIRS_AT_ONCE, len(read)))
            count = sum(read.places[row] not in reasons for row in rows)
            part = slice(scored, scored + count)  # the usable pairs are in the same order, with the store's ids
            yield rows, list(zip(usable.images[part], usable.texts[part], strict=True))
            scored += count

    def write(path: Path) -> None:
        with (
            path.open("w", encoding="utf-8") as lines,
            scoring_through(ray, scorer, scoring, notes=lost) as through,
        ):
            for (rows, _), answers in zip(blocks(), through(both for _, both in blocks()), strict=True):
                results, part = iter(answers), read.select(rows)
                for place, row in zip(part.places, part.as_rows(), strict=True):
                    reason = reasons.get(place)
                    added = {"score": None, "reject": reason} if reason else next(results)
                    lines.write(json.dumps(plain({**row, **added}), ensure_ascii=False, allow_nan=False) + "\n")

    _write(out, write)
    if notes is not None:
        notes += lost
    if notes is not None and conformal is not None and sets is not None:
        notes += [*doubts, *conformal.notes(sets)]
    if notes is not None and "text" in scorer.run.sides:
        towers = [scorer.store.towers[name] for name in scorer.run.towers["text"]]
        load = None if any(tower.imported for tower in towers) else lambda: scorer.encoders("text")
        note_unread(scorer.store, usable.texts, towers, notes, load)
    return len(usable), [*read.rejected, *left_out]


def score_grid(scorer: Scorer, pairs: str | Path | Pairs, out: str | Path) -> tuple[int, int, list[Reject]]:
    """Score every image of a pairs file with every text, as needed for retrieval metrics.

    Read the file with ``numpy.load``: ``images`` ``(n,)`` and ``texts`` ``(m,)`` are strings in the order of the pairs
    file, ``score`` is ``(n, m)`` float32, and for a run with a first stage ``similarity`` ``(n, m)`` float32 is the dot
    product by which it ranks, and ``depth`` the number of its candidates that ``score`` reorders (0 for none).

    Args:
        scorer: A matching run with its store.
        pairs: Pairs, or a pairs file.
        out: File to write, ``.npz``, completely or not at all.

    Returns:
        The numbers of scored images and texts, and what was left out.

    Raises:
        UsageError: The run does classification, the file has another extension, or the output is also an input.
        PairsError: The pairs cannot be used.
        InputError: The file cannot be written.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise UsageError(f"{out}: a grid of scores is written as .npz, for numpy.load; found '{out.suffix}'")
    _refuse(scorer, pairs, out)
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    scorer.run.check_pairs(read)
    usable, left_out = usable_pairs(read, scorer.store)
    images, texts = list(dict.fromkeys(usable.images)), list(dict.fromkeys(usable.texts))
    grids = {"score": scorer.grid_rows(images, texts)}
    small: dict[str, NDArray[Any]] = {}
    if scorer.has_first_stage:
        small["depth"] = np.array(scorer.rerank_depth)
        grids["similarity"] = dot_rows(scorer.image_vectors(images), scorer.text_vectors(texts))
    _check_room(out, images, texts, len(grids))
    small |= {"images": np.array(images), "texts": np.array(texts)}

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:  # like numpy.savez, but one block of scores at a time
            for name, array in small.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, rows in grids.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {"descr": "<f4", "fortran_order": False, "shape": rows.shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    for block in rows:
                        member.write(np.ascontiguousarray(block, "<f4").data)

    _write(out, write)
    return len(images), len(texts), [*read.rejected, *left_out]


def _check_room(out: Path, images: list[str], texts: list[str], grids: int) -> None:
    """Refuse, before scoring, a file too large for the disk, and names that would fill the memory."""
    widest = {"image": 4 * len(images) * max(map(len, images), default=0)}
    widest["text"] = 4 * len(texts) * max(map(len, texts), default=0)
    kind, size = max(widest.items(), key=lambda one: one[1])
    if size > _MOST_NAMES:
        longest = max(map(len, images if kind == "image" else texts))
        raise InputError(
            f"{out}: numpy stores all strings as wide as the longest {kind}, which has {longest:,} characters, so they "
            f"take {in_bytes(size)}; shorten it, or leave it out"
        )
    needed = 4 * len(images) * len(texts) * grids + sum(widest.values())
    there = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{out}: the scores of {len(images):,} images with {len(texts):,} texts take {in_bytes(needed)}, "
            f"and {there} has {in_bytes(free)} free; free some space, or score fewer (frevl evaluate does not "
            "need such a file)"
        )


def _refuse(scorer: Scorer, pairs: str | Path | Pairs, out: str | Path) -> None:
    file = pairs.source if isinstance(pairs, Pairs) else pairs
    refuse_inputs({"out": out}, {"pairs": file, "run": scorer.run.path, "store": scorer.store.path})


def _write(out: Path, write: Callable[[Path], None]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, write)
    except OSError as error:
        raise InputError(f"{out}: the scores cannot be written ({error.strerror or error})") from error


def _results(
    scorer: Scorer,
    pairs: list[tuple[str, str]],
    *,
    conformal: ConformalScores | None,
    level: float | None,
    doubt: bool,
) -> list[dict[str, Any]]:
    results = _answers(scorer, pairs, conformal, level)
    if doubt:
        for result, one in zip(results, scorer.doubt(pairs).tolist(), strict=True):
            result["doubt"] = one
    return results


def _answers(
    scorer: Scorer, pairs: list[tuple[str, str]], conformal: ConformalScores | None, level: float | None
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]]
    if scorer.run.task == "matching":
        scores, matching = scorer.match_probabilities(pairs)
        results = [{"score": float(s), "probability": float(p)} for s, p in zip(scores, matching, strict=True)]
        if conformal is not None and level is not None:
            for result, matches in zip(results, named_matches(conformal, matching, level), strict=True):
                result["matches"] = matches
        return results
    has_unknown = bool(scorer.run.results.get("unknown"))
    raw = scorer.score(pairs)
    results = [
        {
            "label": one.label,
            "probability": one.probability,
            "top": [[label, p] for label, p in one.top],
            **({"unknown": one.unknown} if has_unknown else {}),
        }
        for one in scorer.name_classes(raw)
    ]
    if conformal is not None and level is not None:
        named = named_sets(conformal, scorer.probabilities(raw), level, scorer.run.labels)
        for result, labels in zip(results, named, strict=True):
            result["set"] = labels
    return results
