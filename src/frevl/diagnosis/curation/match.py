"""The filter ``match``: whether a text describes its image, judged by models that were not trained on the line.

Groups of lines are dealt into folds. For each fold, a ``dual`` and a kernel alignment are trained on the other folds,
and score this fold's lines and up to twice as many wrong ones drawn from it. The features are those used to mine hard
negatives (`frevl.training.retrieval.reranker`), i.e. cosines and hubness, and the text's agreement with the image's
other texts; combined into one score, they give the probability that a line is right
(`frevl.diagnosis.data_quality.mixture`). A text near one of the image's right texts is not drawn as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frevl.data.packed.columns import chosen, joined, ranks
from frevl.diagnosis.curation.evidence import (
    TextsOfImages,
    draw_wrong,
    exchange_images,
    half_wrong,
    judge_images,
    one_score,
    row_blocks,
)
from frevl.diagnosis.curation.folds.each_fold import cut_short, each_fold
from frevl.diagnosis.curation.lines import Found, Lines
from frevl.diagnosis.curation.verdicts.values import Values
from frevl.diagnosis.data_quality.mixture import fit_mixture
from frevl.diagnosis.splits import deal_folds
from frevl.errors import UsageError
from frevl.models.retrieval.first_stage import with_alignment
from frevl.models.retrieval.kernel_alignment import fit_alignment
from frevl.models.retrieval.reranker import hubness
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.score_files import scoring_through
from frevl.runs.scorer import Scorer
from frevl.runs.targets import match_truth, prefixes_of
from frevl.store.grouping.large_arrays import gathered
from frevl.store.usable_pairs import contents_of
from frevl.training.options import Session, TwoTowerOptions
from frevl.training.prepare import embed_pairs
from frevl.training.retrieval.fit import narrow_towers
from frevl.training.retrieval.reranker import bank_of, centred, near_duplicate_bound
from frevl.training.retrieval.two_tower import fit_two_tower_ensemble, pooled_items
from frevl.training.run_folder import Checkpoint

__all__ = ["FEWEST_GROUPS", "FOLDS", "UNLIKELY", "match_filter"]

FEWEST_GROUPS = 100
"""Minimum groups (mostly images) of right lines; with fewer, hardly anything is learned and no line is scored."""

FOLDS = 3
"""Default number of folds."""

UNLIKELY = 0.5
"""A line is flagged below this probability of being right, i.e. if it is more likely wrong."""

_BANK = 2000  # training items used to measure hubness
_ALIGNMENT_WEIGHT = 10.0  # scale of the logits used to measure hubness, as in mining hard negatives
_ALIGNED = 4000  # training images for the alignment
_FEATURES = 6
_PAIRS_AT_ONCE = 16_384
_LEAST_SECONDS = 1.0  # of training per fold, whatever is left of the time limit
# An uninformative model gives 5 % of the lines such scores; below twice that, its scores are not usable.
_CLEAR, _LEAST_CLEAR = 0.95, 0.1


@dataclass(frozen=True)
class _Scores:
    """Scores of given lines and of drawn wrong ones, with the group of each.

    ``given`` is ``(n, features)``, ``drawn`` ``(m, features)``; each column separates right from wrong lines a little,
    and `frevl.diagnosis.curation.evidence` combines them into one score. ``learnt`` ``(k, features)`` are wrong lines
    whose text the model was trained on with another image, and ``exchanged`` those of images given all texts of
    another; both are empty for a run trained elsewhere.
    """

    given: Tensor
    drawn: Tensor
    drawn_groups: Tensor
    learnt: Tensor
    learnt_groups: Tensor
    exchanged: Tensor
    exchanged_images: Tensor


def match_filter(lines: Lines, before: Mapping[str, Found]) -> Found:  # noqa: ARG001 - it is the first
    """Score every line with models not trained on its group.

    Lines with the target false are scored but never flagged or trained on: they are meant to be wrong.

    Raises:
        UsageError: The run is for classification.
        TrainingError: The loss is not finite.
    """
    right = (match_truth(lines.pairs) > 0.5).numpy()
    groups = _groups(lines)
    known = len(torch.unique(groups[torch.from_numpy(right)]))
    images, texts = (
        len(joined([chosen(one, right.nonzero()[0])])[1]) for one in (lines.pairs.images, lines.pairs.texts)
    )
    if known < FEWEST_GROUPS:
        single = known == images
        what = ("image" if single else "group") + ("" if known == 1 else "s")
        return _silent(
            lines,
            f"{f'only {known:,}' if known else 'no'} {what} with right lines, and at least {FEWEST_GROUPS} are needed",
        )
    if texts < 2:
        return _silent(lines, "all lines have the same text, so no text is wrong for any image")
    doubts: list[str] = []
    if lines.run is None:
        found = _out_of_fold(lines, doubts)
        if isinstance(found, str):
            return _silent(lines, found, doubts)
        scores = found
    else:
        scores = _of_run(lines, _embedded(lines), groups, torch.from_numpy(right), doubts)
    return _judged(lines, scores, groups.numpy(), right, doubts)


def _silent(lines: Lines, reason: str, doubts: Sequence[str] = ()) -> Found:
    return Found(
        Values.same(len(lines), {"match": None}),
        np.zeros(len(lines), bool),
        np.full(len(lines), np.nan),
        doubts=(f"Matches were not checked: {reason}.", *doubts),
        figures={"wrong_share": None, "ci95": None},
    )


def _judged(lines: Lines, scores: _Scores, groups: np.ndarray, right: np.ndarray, doubts: list[str]) -> Found:
    table, drawn_table = scores.given.double().numpy(), scores.drawn.double().numpy()
    if not (np.isfinite(table).all() and np.isfinite(drawn_table).all()):
        reason = "the embeddings contain non-finite numbers; find them with frevl store verify"
        return _silent(lines, reason, doubts)
    if len(drawn_table) == 0:
        return _silent(lines, "no text is wrong for any image, as every text is close to a right one", doubts)
    given, drawn, learned = one_score(table, drawn_table, right, scores.learnt.double().numpy())
    clear = float((given[right] > np.quantile(drawn, _CLEAR)).mean())
    if clear < _LEAST_CLEAR:
        return _silent(
            lines,
            f"the model does not distinguish these texts from random ones ({100 * clear:.0f} % of the lines score "
            f"above all but {100 * (1 - _CLEAR):.0f} % of the random ones); it knows too little about such "
            "images and texts, or nearly all lines are wrong",
            doubts,
        )
    found = fit_mixture(
        given[right], drawn, groups[right], scores.drawn_groups.numpy(), (learned, scores.learnt_groups.numpy())
    )
    belief = np.full(len(lines), np.nan)
    belief[right] = found.right
    notes: tuple[str, ...] = ()
    share, (low, high) = found.wrong_share, found.ci95
    whole = judge_images(
        table, drawn_table, right, belief < UNLIKELY, ranks(lines.pairs.images), groups,
        (scores.exchanged.double().numpy(), scores.exchanged_images.numpy()),
    )  # fmt: skip
    if whole is not None:
        belief *= whole.beliefs
        (share, (low, high)), notes = whole.with_lines(found), (whole.sentence(),)
    doubts += half_wrong(share, low, high)
    reported = belief.copy()
    order = np.argsort(given[right], kind="stable")
    reported[~right] = np.interp(given[~right], given[right][order], found.even[order])
    notes += (
        "The number of wrong texts cannot be known from the lines alone: about "
        f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}] describe their image no better than random texts do, "
        "and wrong texts that come close (from a similar image, or with one wrong word) count as right.",
    )
    return Found(
        Values(len(lines), lambda part: [{"match": round(value, 6)} for value in reported[part].tolist()]),
        belief < UNLIKELY,
        belief,
        tuple(doubts),
        notes,
        {"wrong_share": share, "ci95": [low, high], "above_drawn": clear},
    )


def _embedded(lines: Lines) -> EmbeddedPairs:
    return embed_pairs(lines.store, [lines.pairs], narrow_towers(lines.image_towers), lines.text_towers)[0]


def _out_of_fold(lines: Lines, doubts: list[str]) -> _Scores | str:
    """Return the scores, or why there are none; folds cut short by the time limit become a doubt."""
    work = _ScoredFolds(lines)
    for number in range(work.folds):
        if len(torch.unique(work.groups[work.right & (work.fold_of == number)])) < 2:
            return (
                f"fold {number + 1} of {work.folds} has fewer than two groups with right lines, so no wrong ones can "
                "be drawn from it; use fewer --folds"
            )
    given = torch.zeros(len(lines), _FEATURES)
    drawn, drawn_groups, known, known_groups, exchanged, of = [], [], [], [], [], []
    cut = 0
    for fold in each_fold(
        lines, "match", work.folds, work, _ScoredFolds, limit=lines.session.time_limit, least=_LEAST_SECONDS
    ):
        empty = dict.fromkeys(("learnt", "exchanged"), fold.tensors["drawn"][:0])  # earlier versions lack some
        empty |= dict.fromkeys(("learnt_groups", "exchanged_images"), work.groups[:0])
        scores = _Scores(**{**empty, **fold.tensors})
        cut += fold.cut
        if len(scores.drawn) < 2:
            doubts += cut_short(cut, work.folds)
            return f"no text is wrong for any image of fold {fold.number + 1}, as every text is close to a right one"
        # Each fold has its own model, whose scores have their own scale.
        middle, width = scores.drawn.mean(dim=0), scores.drawn.std(dim=0).clamp(min=1e-6)
        given[work.fold_of == fold.number] = (scores.given - middle) / width
        drawn.append((scores.drawn - middle) / width)
        drawn_groups.append(scores.drawn_groups)
        known.append((scores.learnt - middle) / width)
        known_groups.append(scores.learnt_groups)
        exchanged.append((scores.exchanged - middle) / width)
        of.append(scores.exchanged_images)
    doubts += cut_short(cut, work.folds)
    return _Scores(given, *map(torch.cat, (drawn, drawn_groups, known, known_groups, exchanged, of)))


class _ScoredFolds:
    """Scores the lines of one fold after the other; a `frevl.diagnosis.curation.folds.each_fold.FoldWork`."""

    def __init__(self, lines: Lines) -> None:
        self._lines, self._pairs = lines, _embedded(lines)
        pairs, self.folds = self._pairs, lines.folds or FOLDS
        self.right = match_truth(lines.pairs) > 0.5
        self.groups = _groups(lines)
        self.fold_of = torch.from_numpy(deal_folds(lines.pairs.clusters, self.folds, lines.session.seed))
        self._images = pooled_items(pairs.images, pairs.image_mask)
        self._texts = pooled_items(pairs.texts, pairs.text_mask)
        self._near = near_duplicate_bound(self._texts, pairs.image_rows[self.right], pairs.text_rows[self.right])
        self._meaning = centred(self._texts) if math.isfinite(self._near) else None

    def __call__(self, number: int, time_limit: float | None, place: Checkpoint) -> tuple[dict[str, Tensor], bool]:
        session = self._lines.session
        scores, cut = _one_fold(
            replace(session, seed=session.seed + number, time_limit=time_limit, progress=False),
            self._pairs, self._images, self._texts, self.groups, self.right,
            (self.fold_of != number).nonzero()[:, 0], (self.fold_of == number).nonzero()[:, 0],
            self._meaning, self._near, place,
        )  # fmt: skip
        return vars(scores), cut


def _groups(lines: Lines) -> Tensor:
    """Return the number of the group of every line, ``(n,)`` int."""
    return torch.from_numpy(joined([lines.pairs.clusters])[0][0])


def _one_fold(
    session: Session,
    pairs: EmbeddedPairs,
    images: Tensor,
    texts: Tensor,
    groups: Tensor,
    right: Tensor,
    inside: Tensor,
    held: Tensor,
    meaning: Tensor | None,
    near: float,
    place: Checkpoint,
) -> tuple[_Scores, bool]:
    """Train on the right lines of the other folds, and score the held-out lines and wrong ones drawn from them.

    Also return whether the time limit cut the training short.
    """
    seed = session.seed
    trained_on = inside[right[inside]]
    network, report = fit_two_tower_ensemble(
        pairs.select(trained_on), options=TwoTowerOptions(members=1), session=session, checkpoint=place.part("dual"),
    )  # fmt: skip
    seen = pairs.image_rows[trained_on], pairs.text_rows[trained_on]
    network = with_alignment(network, fit_alignment(images, texts, *seen, seed=seed, most=_ALIGNED), _ALIGNMENT_WEIGHT)
    banks = bank_of(network, images, texts, *seen, _BANK, seed)
    image_ids, image_at = torch.unique(pairs.image_rows[held], return_inverse=True)
    source = right[held].nonzero()[:, 0]
    picked = torch.randint(len(trained_on), (len(source),), generator=torch.Generator().manual_seed(seed))
    shown_texts = torch.cat([pairs.text_rows[held], pairs.text_rows[trained_on[picked]]])
    text_ids, text_at = torch.unique(shown_texts, return_inverse=True)
    text_at, other_text = text_at[: len(held)], text_at[len(held) :]
    with torch.inference_mode():
        image_parts = _parts(network.image_parts, images, image_ids)
        text_parts = _parts(network.text_parts, texts, text_ids)
        scales = network.part_scales(_ALIGNMENT_WEIGHT, image_parts.shape[1])
        of_images = hubness(image_parts, banks[1], scales)
        of_texts = hubness(text_parts, banks[0], scales)

        own = TextsOfImages.of(image_at[source], text_at[source], len(image_ids))
        width = network.own_text_vectors(texts[:1].float()).shape[1]

        def features(image: Tensor, text: Tensor, line: Tensor) -> Tensor:
            """Return the features of images and texts, by number, as if each text replaced that of its line."""
            columns = []
            for part in row_blocks(len(image)):
                cosines = image_parts[image[part]] * text_parts[text[part]]
                agreed, has_others = own.agreement(text_parts[:, :width], image[part], text[part], text_at[line[part]])
                columns.append(
                    torch.stack(
                        [
                            cosines[:, :width].sum(dim=1), cosines[:, width:].sum(dim=1), of_images[image[part]],
                            of_texts[text[part]], agreed, has_others,
                        ],
                        dim=1,
                    )
                )  # fmt: skip
            return torch.cat(columns)

        rows, columns = draw_wrong(pairs, meaning, groups, right, held, near, seed)
        other_images, lines_of = exchange_images(image_at, groups[held], source, seed)
        exchanged = features(other_images, text_at[lines_of], lines_of)
        given = features(image_at, text_at, torch.arange(len(held)))
        drawn = features(image_at[rows], text_at[columns], rows)
        wrong = (own.rows[image_at[source]] != other_text[:, None]).all(dim=1)
        source, other_text = source[wrong], other_text[wrong]
        known = features(image_at[source], other_text, source)
    swapped = exchanged, image_ids[other_images]
    scores = _Scores(given, drawn, groups[held[rows]], known, groups[held[source]], *swapped)
    return scores, report.stopped == "time"


def _parts(make: Callable[[Tensor], Tensor], items: Tensor, rows: Tensor) -> Tensor:
    """Return the first stage's parts of some items, ``(r, d)``; those of many are in an unnamed file."""
    found = (make(items[rows[block]].float()).numpy() for block in row_blocks(len(rows)))
    width = make(items[:1].float()).shape[1]
    return torch.from_numpy(gathered(found, (len(rows), width), np.float32))


def _of_run(lines: Lines, pairs: EmbeddedPairs, groups: Tensor, right: Tensor, doubts: list[str]) -> _Scores:
    """Score with a run trained elsewhere, after checking its training data."""
    run = lines.run
    if run is None:
        raise UsageError("--run: expected the folder of a matching run")
    scorer = Scorer.open(run, store=lines.store, device=lines.session.device)
    if scorer.run.task != "matching":
        raise UsageError(f"--run {run}: expected a run of --task matching, found one of --task {scorer.run.task}")
    contents = prefixes_of(contents_of(lines.store, lines.pairs)[1])
    seen = int(np.isin(contents, scorer.run.train_image_hashes).sum())
    if seen:
        doubts.append(
            f"{run} was trained on {seen:,} of the {len(contents):,} images of these lines: a model accepts wrong "
            "texts that it was trained on. Leave out --run to score every line with models not trained on it."
        )
    texts = pooled_items(pairs.texts, pairs.text_mask)
    near = near_duplicate_bound(texts, pairs.image_rows[right], pairs.text_rows[right])
    meaning = centred(texts) if math.isfinite(near) else None
    everything = torch.arange(len(pairs))
    rows, columns = draw_wrong(pairs, meaning, groups, right, everything, near, lines.session.seed)
    of_images, of_texts = torch.cat([everything, rows]).numpy(), torch.cat([everything, columns]).numpy()
    parts = (slice(start, start + _PAIRS_AT_ONCE) for start in range(0, len(of_images), _PAIRS_AT_ONCE))
    images, words = lines.pairs.images, lines.pairs.texts
    blocks = (list(zip(chosen(images, of_images[part]), chosen(words, of_texts[part]), strict=True)) for part in parts)
    with scoring_through(lines.ray, scorer, _scored, notes=lines.notes) as through:
        scores = torch.from_numpy(np.concatenate(list(through(blocks))))[:, None]
    given, drawn = scores[: len(lines)], scores[len(lines) :]
    none = drawn[:0], groups[:0]
    return _Scores(given, drawn, groups[rows], *none, *none)


def _scored(scorer: Scorer, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
    return scorer.score(pairs)
