"""Curate a pairs file: keep the lines worth learning from, with every filter's findings. The store is not changed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.label_doubts import contradiction_note, look_alike_note
from frevl.data.names import list_or_none
from frevl.data.outputs import refuse_inputs
from frevl.data.packed.columns import Coded, chosen, joined, rows_at
from frevl.data.pairs import Pairs, in_memory, read_pairs, with_targets
from frevl.devices import check_device
from frevl.diagnosis.curation.copies.duplicates import graph_bytes, groups_without_a_line
from frevl.diagnosis.curation.filters import FILTERS, chosen_filters
from frevl.diagnosis.curation.interrupted import unfinished
from frevl.diagnosis.curation.keeping import check_shares, reasons_to_drop
from frevl.diagnosis.curation.lines import Found, Lines, write_lines
from frevl.diagnosis.curation.removal.report import Removed, what_is_removed
from frevl.diagnosis.curation.verdicts.judged_lines import JudgedLines
from frevl.diagnosis.curation.verdicts.reasons import Reasons
from frevl.diagnosis.data_quality.near_duplicates import normal_text
from frevl.errors import PairsError, Reject, UsageError, in_bytes, nearest, rejects_sentence
from frevl.machine import memory_limit
from frevl.provenance import provenance
from frevl.store.grouping.contents import content_numbers
from frevl.store.grouping.groups import group_pairs
from frevl.store.ids.rows_of_ids import rows_of_values
from frevl.store.many_nodes.connection import connected
from frevl.store.reader import Store
from frevl.store.usable_pairs import choose_towers, usable_pairs
from frevl.terminal import print_progress
from frevl.training.options import Session
from frevl.training.run_folder import data_identity
from frevl.training.training import TASKS

__all__ = ["Curation", "curate"]

_LEARNING = frozenset({"match", "blind", "label"})  # filters that train on the embeddings of the texts

# Bytes of arrays per line, and further ones of the features by which matches are weighed: a generous estimate from the
# arrays' sizes (docs/scale-measurements.md). Embeddings are extra, and mapped from a file if they are many.
_BYTES_A_LINE, _BYTES_A_MATCH = 500, 700


@dataclass(frozen=True)
class Curation:
    """The kept lines, and why the others were dropped.

    Attributes:
        task: ``matching`` or ``classification``.
        lines: Every usable line in file order: its original object with the key ``curate``, created whenever it is
            read.
        kept: Number of kept lines.
        filters: For each filter, how many lines it flags, how many are dropped because of it alone, and its own
            figures.
        doubts: Reasons to doubt the result, shown before any number.
        notes: Other notes for the user.
        rejects: Lines that could not be checked, with the reason; they are not kept.
        out: Path of the file with the kept lines, or None.
        dropped: Path of the file with the dropped lines, or None.
        provenance: Store fingerprint, seed, versions, command, hardware.
        removed: The groups that lose most and the variety that remains, compared with random removal; None if nothing
            or everything is dropped.
    """

    task: str
    lines: Sequence[dict[str, Any]] = field(repr=False)
    kept: int
    filters: dict[str, dict[str, Any]]
    doubts: list[str]
    notes: list[str]
    rejects: list[Reject] = field(repr=False)
    out: Path | None
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    removed: Removed | None = field(default=None, repr=False)
    dropped: Path | None = None

    def sentence(self) -> str:
        """Describe the result, starting with reasons to doubt it."""
        where = "" if self.out is None else f" into {self.out}"
        parts = [f"Kept {self.kept:,} of {len(self.lines):,} lines{where}."]
        for name, one in self.filters.items():
            parts.append(f"{name}: {one['dropped']:,} dropped ({one['dropped_alone']:,} by this filter alone).")
        if self.removed is not None and self.removed.sentence():
            parts.append(self.removed.sentence())
        return " ".join([*self.doubts, *parts, *self.notes, rejects_sentence(self.rejects)]).rstrip()

    def record(self) -> dict[str, Any]:
        """Return the record that ``--json`` writes: the counts, not the lines."""
        return {
            "task": self.task,
            "lines": len(self.lines),
            "kept": self.kept,
            "filters": self.filters,
            "removed": None if self.removed is None else self.removed.record(),
            "doubts": self.doubts,
            "notes": self.notes,
            "rejects": [vars(reject) for reject in self.rejects],
            "out": None if self.out is None else str(self.out),
            "dropped": None if self.dropped is None else str(self.dropped),
            "provenance": self.provenance,
        }


def curate(
    store: Store | str | Path,
    pairs: str | Path | Pairs,
    out: str | Path | None = None,
    *,
    dropped: str | Path | None = None,
    task: str | None = None,
    drop: Sequence[str] | None = None,
    keep: float | None = None,
    below: float | None = None,
    run: str | Path | None = None,
    images: str | Path | None = None,
    groups: Sequence[str] | None = None,
    encoder: Sequence[str] | None = None,
    image_encoder: Sequence[str] | None = None,
    text_encoder: Sequence[str] | None = None,
    group_by: str | None = None,
    find_groups: bool = True,
    folds: int | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    device: str = "cpu",
    ray: str | None = None,
    progress: bool = False,
) -> Curation:
    """Check every line of a pairs file and keep those worth learning from.

    Every line gets the key ``curate``: ``match``, ``duplicate_of``, ``copies``, ``text``, ``image``, ``blind``,
    ``label`` (null if not checked), ``kept`` and ``why``, the filters that drop it (docs/curate.md). Repeating an
    interrupted call continues with the finished folds.

    Args:
        store: The store, or its path; it is not changed.
        pairs: Lines to check, or a pairs file.
        out: File for the kept lines, in file order, one JSON object per line; None writes none.
        dropped: File for the other lines.
        task: ``matching`` or ``classification``; None means matching if no line has a target other than true and false.
        drop: Filters to apply (`frevl.diagnosis.curation.filters.FILTERS`). None applies all for the task, except
            ``blind``.
        keep: Share of lines to keep, in (0, 1]; those least likely to be correct are dropped.
        below: Drop lines whose probability of being correct is below this, in (0, 1). None: matches below one half.
        run: A run that scores the matches, instead of models trained on the lines.
        images: Folder of the images, for filters that check pixels.
        groups: Keys by which the share of kept lines is compared; None uses every key that forms groups, text length,
            and clusters of images.
        encoder: Encoders to use, as in `frevl.train`.
        image_encoder: Encoders for the images.
        text_encoder: Encoders for the texts.
        group_by: A key of the lines; lines with the same value stay in the same fold.
        find_groups: Detect lines that belong together, as `frevl.train` does.
        folds: Number of cross-validation folds. None means 3 for matches and 5 for labels.
        seed: Random seed.
        time_limit: Total training time limit in seconds; label models get at least ten per fold.
        device: PyTorch device for training.
        ray: Train the folds, and score with ``run``, on the nodes of a Ray cluster: ``local``, ``auto``, or the address
            of its head node. Nodes must see store and run under the same paths.
        progress: Show progress.

    Returns:
        Every line with its findings.

    Raises:
        UsageError: An unknown task, filter or encoder, a number out of range, a file used as both input and output, or
            more lines than fit in memory.
        PairsError: The pairs cannot be used.
        StoreError: There is no store, or embeddings are missing.
        RunError: Another process is curating here, or an interrupted call had other settings.
        MissingExtraError: ``ray`` is given, and Ray is not installed.
        FrevlError: There is no cluster, or a node sees another store or has another version of frevl.
    """
    pairs = in_memory(pairs)
    check_shares(keep, below)
    session = Session(seed=seed, time_limit=time_limit, device=device, progress=progress)
    _check_numbers(folds, session)
    check_device(device)
    opened = store if isinstance(store, Store) else Store.open(store)
    source = pairs.source if isinstance(pairs, Pairs) else pairs
    read_from = {"--pairs": source, "--run": run, "--store": opened.path, "--images": images}
    refuse_inputs({"--out": out, "--dropped": dropped}, read_from)
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    chosen_task = _task(read, task)
    groups = list_or_none(groups, "groups")
    _check_keys(read, groups)
    names = _filters(chosen_task, list_or_none(drop, "drop"), run)
    _check_room(len(read), names)
    notes = list(read.notes)
    encoders = {"encoder": encoder, "image_encoder": image_encoder, "text_encoder": text_encoder}
    usable, rejects = _usable(read, chosen_task, opened, notes)
    _check_texts(usable, opened, names)
    alike = look_alike_note(usable.targets) if chosen_task == "classification" else []
    notes += _contradictions(usable, opened) if chosen_task == "classification" else []
    towers = choose_towers(opened, [usable], notes, encoders)
    if "duplicate" in names:
        _check_room(len(read), names, graph_bytes(usable, towers["image"]))
    (grouped,), found_groups = group_pairs(
        opened, [usable], group_by=group_by, find=find_groups, towers=towers["image"],
        purpose="Kept in one fold",
    )  # fmt: skip
    notes += found_groups
    settings = {
        "task": chosen_task, "drop": names, "run": None if run is None else str(run), **encoders, "group_by": group_by,
        "find_groups": find_groups, "folds": folds, "seed": seed, "device": device, "time_limit": time_limit,
        "data": data_identity(opened, read, None, run),
    }  # fmt: skip
    with unfinished(out, settings) as checkpoint:
        lines = Lines(
            opened, grouped, chosen_task, towers["image"], towers["text"], session, folds,
            None if run is None else Path(run), None if images is None else Path(images), checkpoint, ray,
        )  # fmt: skip
        found = _findings(lines, names)
        notes += dict.fromkeys(lines.notes)
        why = reasons_to_drop(found, len(lines), keep=keep, below=below, notes=notes)
        if "duplicate" in found:
            notes += _vanished(groups_without_a_line(usable.units, found["duplicate"], why.clear))
        judged = JudgedLines(read, rows_at(read.places, usable.places), [one.values for one in found.values()], why)
        write_lines(out, judged.kept(), "--out")
        write_lines(dropped, judged.dropped(), "--dropped")
    kept = int(why.clear.sum())
    return Curation(
        task=chosen_task,
        lines=judged,
        kept=kept,
        filters={name: _counts(name, one, why) for name, one in found.items()},
        doubts=[*_nothing_kept(kept), *alike, *(doubt for one in found.values() for doubt in one.doubts)],
        notes=[*(note for one in found.values() for note in one.notes), *dict.fromkeys(notes)],
        rejects=rejects,
        out=None if out is None else Path(out),
        dropped=None if dropped is None else Path(dropped),
        provenance=provenance(run="", store_fingerprint=opened.fingerprint, seed=seed),
        removed=what_is_removed(opened, usable, why.clear, towers["image"], task=chosen_task, keys=groups, seed=seed),
    )


def _check_numbers(folds: int | None, session: Session) -> None:
    if folds is not None and not 2 <= folds <= 20:
        raise UsageError(f"--folds must be between 2 and 20, found {folds}")
    if session.time_limit is not None and not session.time_limit > 0:
        raise UsageError(f"--time-limit must be a number of seconds above 0, found {session.time_limit}")
    if not 0 <= session.seed < 2**31:
        raise UsageError(f"--seed must be between 0 and 2,147,483,647, found {session.seed}")


def _filters(task: str, drop: list[str] | None, run: str | Path | None) -> list[str]:
    """Return the names of the filters to apply; a run can only score matches."""
    names = chosen_filters(task, drop)
    if run is not None and "match" not in names:
        raise UsageError(f"--run scores matches, but the filters are {', '.join(names)}; add --drop match")
    return names


def _findings(lines: Lines, names: Sequence[str]) -> dict[str, Found]:
    """Apply the filters one after the other; each sees what those before it found."""
    found: dict[str, Found] = {}
    with connected(lines.ray) if lines.ray is not None else nullcontext():  # one connection for all filters
        for name in names:
            print_progress(f"{name}: checking {len(lines):,} lines", enabled=lines.session.progress)
            found[name] = FILTERS[name][0](lines, found)
    return found


def _nothing_kept(kept: int) -> list[str]:
    return [] if kept else ["No line is kept."]


def _contradictions(pairs: Pairs, store: Store) -> list[str]:
    """Return a note on contradicting pairs, however few.

    As in `frevl.diagnosis.data_quality.conflicting_labels.conflict_finding`, copies of an image count as one image, and
    texts that differ only in case or punctuation as one text.
    """
    (units,), names = joined([pairs.images])
    contents = content_numbers(store, names, [pairs])
    one_each = chosen(names, np.unique(contents, return_index=True)[1])
    (written,), texts = joined([pairs.texts])
    (alike,), normal = joined([[normal_text(text) for text in texts]])
    same = replace(pairs, images=Coded.of(contents[units], one_each), texts=Coded.of(alike[written], normal))
    return contradiction_note(same, least=0.0)


def _vanished(groups: int) -> list[str]:
    if not groups:
        return []
    return [
        f"{groups:,} {'group' if groups == 1 else 'groups'} of copies {'has' if groups == 1 else 'have'} no line "
        "left: other filters drop what duplicate would keep."
    ]


def _check_keys(pairs: Pairs, groups: Sequence[str] | None) -> None:
    """Refuse keys that no line has, before any training."""
    known = list(dict.fromkeys([*(key for extra in pairs.extras for key in extra), "target"]))
    for key in groups or ():
        if key not in known:
            raise UsageError(f"--groups {key}: no line has this key. {nearest(key, known)}")


def _check_room(lines: int, names: Sequence[str], graph: int = 0) -> None:
    """Refuse more lines than fit in memory, before hours are spent on them.

    Args:
        lines: Number of lines.
        names: The filters to apply.
        graph: Bytes of the graph that finds near copies.
    """
    per_line = _BYTES_A_LINE + (_BYTES_A_MATCH if "match" in names else 0)
    needed, most = lines * per_line + graph, memory_limit()
    if lines * per_line <= most < needed:
        raise UsageError(
            f"near copies of so many images are found in a graph: with {lines:,} lines it needs over "
            f"{in_bytes(needed)} of memory, and this process may use {in_bytes(most)}; choose other filters "
            "with --drop (all but duplicate), curate parts, or use more memory"
        )
    if needed > most:
        raise UsageError(
            f"curate keeps its findings on every line in memory: {lines:,} lines need over {in_bytes(needed)}, and "
            f"this process may use {in_bytes(most)}; curate parts of at most {int(most / 2 / per_line):,} "
            "lines, each with all lines of its images (copies in different parts are not found), or use more memory"
        )


def _task(pairs: Pairs, task: str | None) -> str:
    if task is None:
        given = [target for target in pairs.targets if target is not None]
        return "matching" if all(target in ("true", "false") for target in given) else "classification"
    if task not in TASKS:
        raise UsageError(f"There is no task '{task}'. {nearest(task, TASKS)}")
    return task


def _usable(read: Pairs, task: str, store: Store, notes: list[str]) -> tuple[Pairs, list[Reject]]:
    """Return the lines that can be checked, and rejects for all others."""
    if task == "matching" and len(read.sides) < 2:
        missing = "text" if read.sides == ("image",) else "image"
        raise PairsError(
            f"{read.places[0]}, field '{missing}': matching expects an image and a text in every line; name the "
            f"column that holds the {missing}s with --columns {missing}=NAME, or check class labels with --task "
            "classification"
        )
    known, unjudged = with_targets(read)
    if task == "classification" and known.targets[0] is None:
        raise PairsError(
            f"{read.places[0]}, field 'target': --task classification expects a target in every line, found none; "
            "add targets, or check captions with --task matching"
        )
    usable, left_out = usable_pairs(known, store)
    notes += usable.notes
    return usable, [*read.rejected, *unjudged, *left_out]


def _check_texts(pairs: Pairs, store: Store, names: Sequence[str]) -> None:
    """Refuse texts without embeddings before the first model is trained, if a filter trains one.

    Raises:
        PairsError: A text is not in the store; names its line.
    """
    if "text" not in pairs.sides or not _LEARNING.intersection(names):
        return
    absent = np.flatnonzero(rows_of_values(store.positions("text"), pairs.texts) < 0)
    if len(absent):
        first = int(absent[0])
        raise PairsError(
            f"{pairs.places[first]}, field 'text': the store has no text '{pairs.texts[first]:.80}' ({len(absent):,} "
            f"of {len(pairs):,} lines have unknown texts); add them with: frevl extract --pairs FILE --store "
            f"{store.path}"
        )


def _counts(name: str, found: Found, why: Reasons) -> dict[str, Any]:
    return {
        "flagged": int(found.flagged.sum()),
        "dropped": int(why.by(name).sum()),
        "dropped_alone": int(why.by_alone(name).sum()),
        **found.figures,
    }
