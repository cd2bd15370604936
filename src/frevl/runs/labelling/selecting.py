"""``frevl select``: choose the pairs of an unlabelled pool that are most worth labelling next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from frevl.data.missing_side import one_side_note
from frevl.data.outputs import refuse_inputs
from frevl.data.packed.columns import chosen as chosen_values
from frevl.data.pairs import Pairs, read_pairs
from frevl.errors import InputError, PairsError, Reject, UsageError, counted, rejects_sentence
from frevl.files import write_lines
from frevl.models.classification.heads import statistics_of, unit_features
from frevl.models.inputs import mean_pool
from frevl.runs.labelling.near_copies import near_copy_groups
from frevl.runs.labelling.pool import Pool, rows_kept
from frevl.runs.labelling.strategies import STRATEGIES, Chosen, choose
from frevl.runs.scorer import Scorer
from frevl.runs.search.contact_sheet import page_of, thumbnail, write_page
from frevl.store.towers import Modality
from frevl.store.usable_pairs import usable_pairs

__all__ = ["STRATEGIES", "Selection", "select_pairs", "select_sheet", "write_select_sheet"]

_PAIRS_AT_ONCE = 16_384
_MOST_COMPARED = 131_072  # pairs; wide embeddings of as many take 2 GB meanwhile
_MOST_LINKED = 20_000  # pairs among which near copies are searched
_WIDEST = 1_024  # maximum embedding width; wider ones are projected at random, which preserves distances
_MARGIN, _ROUND = "margin", 6
_BY_MARGIN = ("mixed", _MARGIN)  # strategies by which a pair of a large margin does not win


@dataclass(frozen=True)
class Selection:
    """The chosen pairs, and what was left out.

    Attributes:
        lines: The chosen pairs as in the file, most useful first, each with ``"select"``.
        counts: ``pool``, ``chosen``, ``labelled``, ``in_training``, ``copies`` (of other pairs in the pool),
            ``near_copies`` (by ``margin``: of images that are labelled or in training), ``covered`` (items that cover
            the pool).
        rejects: Lines that could not be used.
        notes: Sentences for the user.
    """

    lines: list[dict[str, Any]]
    counts: dict[str, int]
    rejects: list[Reject]
    notes: list[str]

    def sentence(self) -> str:
        """Describe what was chosen, and what was left out and why."""
        c = self.counts
        kinds = (
            ("labelled", "already labelled", "already labelled"),
            ("in_training", "with an image or text in training", "with images or texts in training"),
            ("copies", "copy of another", "copies of others"),
            (
                "near_copies",
                "near copy of an image that is labelled or in training",
                "near copies of images that are labelled or in training",
            ),
        )
        left_out = [counted(c[name], one, several) for name, one, several in kinds if c[name]]
        parts = [f"Chose {c['chosen']:,} of {c['pool']:,} pairs to label."]
        parts += [f"Left out: {', '.join(left_out)}."] if left_out else []
        return " ".join([*parts, *self.notes, rejects_sentence(self.rejects)]).rstrip()

    def record(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {**self.counts, "notes": self.notes, "rejects": [vars(reject) for reject in self.rejects]}


def select_pairs(
    scorer: Scorer,
    pairs: str | Path | Pairs,
    out: str | Path | None = None,
    *,
    k: int = 100,
    by: str = STRATEGIES[0],
    per_image: int = 1,
    labelled: str | Path | Pairs | Sequence[str | Path | Pairs] = (),
) -> Selection:
    """Choose pairs of a pool to label next.

    Pairs of the pool that have a target, are in `labelled`, or whose image (text, for a run on texts only) was in
    training are left out and count as covered, as does every item of the store that was in training. Of pairs with
    equal content, one is chosen. Of more than 131,072 pairs, ``mixed`` compares only the least certain, and ``cover``
    and ``doubt`` only an even sample; a note says so. For ``margin``, near copies among the 20,000 least certain pairs
    count as one image; the other strategies keep their distance from what is known. The same call on the same data
    gives the same file; ties are broken by pool order.

    Args:
        scorer: The run with its store.
        pairs: The pool; lines without a target.
        out: File to write, one pair per line, most useful first, with ``"select": {"rank", "value", "margin"}`` and the
            run's ``label`` (classification) and ``probability``; written completely or not at all. None writes
            nothing.
        k: Number of pairs to choose.
        by: One of `STRATEGIES`; see `frevl.runs.labelling.strategies.choose`.
        per_image: Maximum number of pairs per image (per text, for a run on texts only).
        labelled: Pairs labelled since the run was trained: files written by an earlier call, with targets added. Lines
            without a target are ignored.

    Raises:
        UsageError: `k` or `per_image` is below 1, the strategy does not exist, or the output is also an input.
        PairsError: The pairs cannot be used, or none is left to choose from.
        InputError: The file cannot be written.
    """
    if k < 1 or per_image < 1:
        raise UsageError(f"{'-k' if k < 1 else '--per-image'} must be at least 1, found {min(k, per_image)}")
    if by not in STRATEGIES:
        choose(by, torch.zeros(0, 1), torch.zeros(0, 1), torch.zeros(0), torch.zeros(0).long(), k=1, per_unit=1)
    files = [labelled] if isinstance(labelled, str | Path | Pairs) else list(labelled)
    paths = [one.source if isinstance(one, Pairs) else one for one in (pairs, *files)]
    refuse_inputs({"--out": out}, {"--pairs": paths, "--run": scorer.run.path, "--store": scorer.store.path})
    notes: list[str] = []
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    alone = one_side_note(read.sides, read.extras)  # check_pairs states what the run reads
    notes += [note for note in read.notes if note not in alone]
    notes += scorer.run.check_pairs(read)
    usable, rejects = usable_pairs(read.only(scorer.run.sides), scorer.store)
    originals = rows_kept(read, rejects)
    notes += usable.notes
    pool = Pool(scorer, usable)
    for file in files:
        pool.add_labelled(file, rejects, notes)
    rows = pool.open_rows()
    if not len(rows):
        raise PairsError(
            f"{usable.places[0]}: no pair is left to choose from: of {len(usable):,}, {pool.counts['labelled']:,} "
            f"are labelled and {pool.counts['in_training']:,} have images or texts in training; give a larger "
            "pool"
        )
    rows, answers = _compared(scorer, usable, rows, by, max(_MOST_COMPARED, 4 * k), notes)
    numbers = pool.contents(rows)
    if by == _MARGIN and "image" in usable.sides:  # the others keep their distance
        least = np.argsort(-answers.unsure.numpy(), kind="stable")[: max(_MOST_LINKED, 4 * k)]
        if len(least) < len(rows):
            notes.append(
                f"Near copies were looked for among the {len(least):,} least certain of {len(rows):,} pairs only."
            )
        close = np.zeros(len(rows), bool)
        numbers[least], close[least] = near_copy_groups(
            scorer, chosen_values(usable.units, rows[least]), numbers[least], pool.covered()
        )
        pool.counts["near_copies"] = int(close.sum())
        if close.all():
            raise PairsError(
                f"{usable.places[0]}: no pair is left to choose from: all {len(rows):,} others are near copies of "
                "images that are labelled or in training; give other images"
            )
        rows, numbers, answers = rows[~close], numbers[~close], answers.select(np.flatnonzero(~close))
    items, covered = _features(scorer, chosen_values(usable.units, rows), pool.covered(), notes)
    chosen = choose(by, items, covered, answers.unsure, torch.from_numpy(numbers), k=k, per_unit=per_image)
    if len(chosen) < k:
        notes.append(f"Fewer than the requested {k:,}: no more are left with at most {per_image:,} per image.")
    lines = [
        {**read.row(int(originals[rows[one.row]])), "select": _selected(rank, one, answers, scorer.run.labels)}
        for rank, one in enumerate(chosen, 1)
    ]
    counts = {"pool": len(usable), "chosen": len(chosen), **pool.counts, "covered": len(covered)}
    if out is not None:
        _write(Path(out), lines)
    return Selection(lines, counts, [*read.rejected, *rejects], list(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Answers:
    """What the run says about ``n`` pairs.

    Attributes:
        unsure: ``(n,)`` float32 in [0, 1]: one minus the margin between the two likeliest answers.
        classes: ``(n,)`` number of the likeliest class; None for a matching run.
        probabilities: ``(n,)`` its probability, or that of a match.
    """

    unsure: Tensor
    classes: NDArray[np.int64] | None
    probabilities: NDArray[np.floating[Any]]

    def select(self, rows: NDArray[np.int64]) -> _Answers:
        classes = None if self.classes is None else self.classes[rows]
        return _Answers(self.unsure[torch.from_numpy(rows)], classes, self.probabilities[rows])


def _compared(
    scorer: Scorer, pairs: Pairs, rows: NDArray[np.int64], by: str, most: int, notes: list[str]
) -> tuple[NDArray[np.int64], _Answers]:
    """Limit a very large pool to what a strategy can compare; return its rows and the run's answers to them."""
    count = len(rows)
    if count > most and by not in _BY_MARGIN:
        rows = rows[np.linspace(0, count - 1, most).round().astype(np.int64)]
        notes.append(f"Only an even sample of {most:,} of the {count:,} pairs was compared by '{by}'.")
    answers = _margins(scorer, pairs, rows)
    if len(rows) > most:
        least = np.sort(np.argsort(-answers.unsure.numpy(), kind="stable")[:most])
        rows, answers = rows[least], answers.select(least)
        if by != _MARGIN:  # which the others could not win
            notes.append(f"Only the {most:,} least certain of the {count:,} pairs were compared by '{by}'.")
    return rows, answers


def _margins(scorer: Scorer, pairs: Pairs, rows: NDArray[np.int64]) -> _Answers:
    """Return the run's answers to some pairs, in portions."""
    unsure, classes, probabilities = [], [], []
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        part = rows[start : start + _PAIRS_AT_ONCE]
        both = list(zip(chosen_values(pairs.images, part), chosen_values(pairs.texts, part), strict=True))
        if scorer.run.task == "matching":
            matches = scorer.match_probabilities(both)[1]
            unsure.append(1 - np.abs(2 * matches - 1))
            probabilities.append(matches)
            continue
        ranked = scorer.rank_classes(scorer.score(both), k=2)
        best = ranked.probabilities
        unsure.append(1 - (best[:, 0] - best[:, 1] if best.shape[1] > 1 else best[:, 0]))
        classes.append(ranked.classes[:, 0])
        probabilities.append(best[:, 0])
    return _Answers(
        torch.from_numpy(np.concatenate(unsure)).float(),
        np.concatenate(classes) if classes else None,
        np.concatenate(probabilities),
    )


def _features(scorer: Scorer, units: Sequence[str], covered: list[str], notes: list[str]) -> tuple[Tensor, Tensor]:
    """Return ``(n, d)`` features of the pool and ``(m, d)`` of the covered items, standardised, then of unit length."""
    side: Modality = "image" if "image" in scorer.run.sides else "text"
    towers = [scorer.store.towers[name] for name in scorer.run.towers[side]]
    known = scorer.store.positions(side)
    different = list(dict.fromkeys([*units, *covered]))
    stored = [unit for unit in different if unit in known]
    lacking = [unit for unit in different if unit not in known]
    parts = [
        _narrow(_pooled(*scorer.store.read(side, stored[start : start + _PAIRS_AT_ONCE], towers)))
        for start in range(0, len(stored), _PAIRS_AT_ONCE)
    ]
    parts += [_narrow(_pooled(*scorer.embed_texts(lacking)))] if lacking else []
    rows = {unit: row for row, unit in enumerate([*stored, *lacking])}
    values_of_all = torch.cat(parts)
    features = unit_features(values_of_all, statistics_of(values_of_all))
    if not covered:
        notes.append("No training item of the run is in the store, so the pool is covered only by the chosen pairs.")
    of_pool, of_covered = (features[[rows[unit] for unit in some]] for some in (units, covered))
    return of_pool, of_covered.reshape(-1, features.shape[1])


def _pooled(values: np.ndarray, mask: np.ndarray) -> Tensor:
    return mean_pool(torch.from_numpy(values).float(), torch.from_numpy(mask))


def _narrow(values: Tensor) -> Tensor:
    """Project very wide embeddings (Johnson and Lindenstrauss 1984); identical in every call."""
    if values.shape[1] <= _WIDEST:
        return values
    generator = torch.Generator().manual_seed(0)
    return F.linear(values, torch.randn(_WIDEST // 2, values.shape[1], generator=generator) / (_WIDEST // 2) ** 0.5)


def _selected(rank: int, one: Chosen, answers: _Answers, labels: Sequence[str]) -> dict[str, Any]:
    margin = round(1 - float(answers.unsure[one.row]), _ROUND)
    said: dict[str, Any] = {} if answers.classes is None else {"label": labels[int(answers.classes[one.row])]}
    said["probability"] = answers.probabilities[one.row].item()
    return {"rank": rank, "value": round(one.value, _ROUND), _MARGIN: margin, **said}


def _write(out: Path, lines: list[dict[str, Any]]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_lines(out, lines)
    except OSError as error:
        raise InputError(f"{out}: the pairs cannot be written ({error.strerror or error})") from error


_SHOWN = 300  # images on the page; with more it opens slowly


def write_select_sheet(path: str | Path, selection: Selection, *, images: Path | None) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        selection: The result of `select_pairs`.
        images: Folder to which image ids are relative; without it the page shows only ids.

    Raises:
        InputError: The file cannot be written.
    """
    write_page(path, select_sheet(selection, images=images))


def select_sheet(selection: Selection, *, images: Path | None) -> str:
    """Return the page, most useful first; all data are escaped."""
    shown = selection.lines[:_SHOWN]
    said = selection.sentence()
    if len(shown) < len(selection.lines):
        said += f" The first {len(shown):,} are shown."
    return page_of(
        f"{counted(len(selection.lines), 'pair')} to label next", said, [_entry(line, images) for line in shown]
    )


def _entry(line: dict[str, Any], images: Path | None) -> str:
    about, image = line["select"], line.get("image")
    picture = "" if image is None else thumbnail(None if images is None else images / image, image)
    name = " - ".join(str(line[side]) for side in ("image", "text") if side in line)
    answer = f"{about['label']} " if "label" in about else "match "
    said = f"{answer}{100 * about['probability']:.1f} %, margin {about['margin']:.3f}"
    return f'<li>{picture}{about["rank"]}. {escape(name)}<br><span class="said">{escape(said)}</span></li>'
