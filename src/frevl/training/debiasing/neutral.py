"""Texts that differ only in a bias: locating such pairs, and projecting out what they differ in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.errors import InputError, StoreError, UsageError
from frevl.files import read_text
from frevl.models.interface import PairNetwork
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.training.classification.names import space_of_encoder

__all__ = ["Biases", "Neutral", "bias_of", "make_neutral", "neutral_map", "read_biases", "spanned"]

_MOST_UNRELATED = 500  # texts of the store that show how far apart texts are, if the file does not
_MOST_LEFT_OUT = 50  # pairs that are each left out once, to measure the effect of the map made from the others


@dataclass(frozen=True)
class Neutral:
    """A network with neutral texts.

    Attributes:
        network: The new network.
        record: ``before``, ``after`` and ``held_out``: the distance between pairs that should be equal, relative to
            that between different texts (`frevl.training.debiasing.neutral.bias_of`); and counts.
        notes: Notes for the user.
    """

    network: PairNetwork
    record: dict[str, Any]
    notes: list[str]


def make_neutral(run: Run, store: Store, biases: Biases, *, weight: float, differences: bool) -> Neutral:
    """Neutralise the text vectors of a run.

    Args:
        run: The finished run.
        store: The store with its embeddings; missing texts are embedded.
        biases: The differences that should not matter.
        weight: How strongly pairs are made equal.
        differences: As in `frevl.training.debiasing.neutral.spanned`.

    Raises:
        UsageError: The run has no text vectors that a map can transform, or the biases are linearly dependent.
        StoreError: A text cannot be embedded.
    """
    transformable = run.network.transformable_texts
    if transformable is None:
        raise UsageError(
            f"{run.path}: --neutral needs text vectors, as in --model dual and cosine and frevl classify with "
            f"names; the network '{run.network.key}' has none"
            + ("; a run that reranks reads the text again: train --model dual" if run.task == "matching" else "")
        )
    texts = biases.texts
    vectors_of = _vectors_of(run, store)
    try:
        vectors = vectors_of(texts)
    except StoreError as error:
        raise StoreError(
            f"{error} (to debias, every text of the file has to be embedded as the run's texts are)"
        ) from error
    rows = {text: row for row, text in enumerate(texts)}
    biased = [rows[text] for text in biases.biased]
    first, second = ([rows[pair[side]] for pair in biases.pairs] for side in (0, 1))

    def blocks_of(whole: Tensor) -> list[Tensor]:
        return [F.normalize(part.float(), dim=1) for part in torch.split(whole, transformable.text_blocks, dim=1)]

    blocks = blocks_of(vectors)
    # The texts of a single line, and prompts that are projected out, do not show how far apart texts are: the map
    # brings them together, too, and two texts alone would be 100 % apart whatever it does.
    unrelated = blocks if len(biases.same) > 1 else blocks_of(_of_store(store, vectors_of, vectors))

    def maps(pairs: Sequence[int]) -> list[Tensor]:
        one, two = ([side[pair] for pair in pairs] for side in (first, second))
        return [
            neutral_map(part[biased], part[one], part[two], weight=weight, differences=differences) for part in blocks
        ]

    def bias(transforms: Sequence[Tensor] | None, pairs: Sequence[int]) -> float:
        whole, others = (_transformed(parts, transforms) for parts in (blocks, unrelated))
        return bias_of(whole[[first[n] for n in pairs]], whole[[second[n] for n in pairs]], others)

    every = list(range(len(first)))
    found = maps(every)
    record: dict[str, Any] = {"biased": len(biased), "pairs": len(every), "weight": weight}
    notes: list[str] = []
    if every and len(unrelated[0]) < 2:
        notes.append('The effect was not measured: the store has no other texts to compare with; add "same" lines.')
    elif every:
        record |= {"before": bias(None, every), "after": bias(found, every)}
        some = every[:_MOST_LEFT_OUT]
        if len(some) > 1:
            left_out = [bias(maps([other for other in every if other != pair]), [pair]) for pair in some]
            record["held_out"] = float(torch.tensor(left_out).square().mean().sqrt())
        notes.append(_sentence(record))
    else:
        if len(biased) == 1:
            what = "The biased prompt was projected out as a whole, because no other shows what in it is the bias"
        else:
            what = f"{'What differs between ' if differences else ''}{len(biased):,} biased prompts "
            what += f"{'was' if differences else 'were'} projected out"
        notes.append(f'{what}; add "same" lines to measure the effect on texts.')
    return Neutral(transformable.with_text_maps(found), record, notes)


def _transformed(blocks: Sequence[Tensor], transforms: Sequence[Tensor] | None) -> Tensor:
    """Return ``(n, d)`` vectors of texts from their parts, each transformed by its map."""
    if transforms is None:
        return torch.cat(list(blocks), dim=1)
    return torch.cat([F.normalize(part @ one.T, dim=1) for part, one in zip(blocks, transforms, strict=True)], dim=1)


def _of_store(store: Store, vectors_of: Callable[[Sequence[str]], Tensor], own: Tensor) -> Tensor:
    """Return the vectors of texts spread over the store; none if it has none for the run."""
    count = store.count("text")
    rows = np.unique(np.linspace(0, count - 1, min(count, _MOST_UNRELATED)).astype(np.int64)) if count else None
    try:
        return own[:0] if rows is None else vectors_of(store.ids("text", rows))
    except StoreError:
        return own[:0]


def _vectors_of(run: Run, store: Store) -> Callable[[Sequence[str]], Tensor]:
    """Return the function from sentences to the vectors that the run compares with images."""
    if run.task == "matching":
        scorer = Scorer(run, store)
        return lambda texts: torch.from_numpy(scorer.text_vectors(list(texts)))
    space = run.settings.get("space")
    if space:
        of_names = Scorer.open(space, store=store)
        return lambda texts: torch.from_numpy(of_names.text_vectors(list(texts)))
    found = space_of_encoder(store, [store.towers[name] for name in run.towers["image"]])
    if found is None:
        raise UsageError(
            f"{run.path}: the space of its names is not available; give the store with the text towers of its encoder"
        )
    return found.of_texts


def _sentence(record: dict[str, Any]) -> str:
    held = ""
    if "held_out" in record:
        held = f", {100 * record['held_out']:.1f} % for a pair that is left out while the map is made"
    count = f"{record['pairs']:,} pair{'' if record['pairs'] == 1 else 's'}"
    return (
        f"Bias: texts that should be equal ({count}) are {100 * record['before']:.1f} % as far apart as different "
        f"texts before, {100 * record['after']:.1f} % after{held}."
    )


_INDEPENDENT = 1e-4  # relative singular value below which prompts are redundant
_MOST_SHARE = 0.5  # of the directions of a space that may be projected out


def spanned(biased: Tensor, *, differences: bool) -> Tensor:
    """Return an orthonormal basis ``(r, d)`` of the span of biased prompts.

    Args:
        biased: ``(b, d)`` unit vectors.
        differences: Whether to use the differences from their mean, if there are several, instead of the prompts.

    Raises:
        UsageError: The prompts are linearly dependent, or span more than half of the space.
    """
    if not len(biased):
        return biased.new_zeros(0, biased.shape[1]).double()
    vectors = biased.double()
    values = torch.linalg.svdvals(vectors)
    if len(vectors) > vectors.shape[1] or float(values[-1]) <= _INDEPENDENT * float(values[0]):
        raise UsageError(
            f"expected biased prompts that are linearly independent, found that {len(vectors):,} prompts span "
            f"{int((values > _INDEPENDENT * values[0]).sum()):,} directions; leave out prompts with the same meaning"
        )
    if len(vectors) > 1 and differences:
        vectors = vectors - vectors.mean(dim=0)
    rank = len(vectors) - (1 if len(vectors) > 1 and differences else 0)
    if rank > _MOST_SHARE * vectors.shape[1]:
        raise UsageError(
            f"expected biased prompts that leave at least half of the {vectors.shape[1]:,} directions of the space, "
            f"found that they span {rank:,}; without so many directions texts no longer differ, so give fewer prompts"
        )
    basis: Tensor = torch.linalg.svd(vectors, full_matrices=False).Vh[:rank]
    return basis


def neutral_map(biased: Tensor, first: Tensor, second: Tensor, *, weight: float, differences: bool = True) -> Tensor:
    """Return the map ``(d, d)``, applied to text vectors from the left, ``P z``.

    Args:
        biased: ``(b, d)`` unit vectors of biased prompts; with none, nothing is projected out.
        first: ``(s, d)`` unit vectors of texts.
        second: ``(s, d)`` unit vectors of the texts to which each should be equal.
        weight: How strongly pairs are made equal; 0 leaves them as they are.
        differences: As in `spanned`.

    Raises:
        UsageError: As in `spanned`.
    """
    dim = biased.shape[1]
    basis = spanned(biased, differences=differences)
    whole = torch.eye(dim, dtype=torch.double)
    kept = whole - basis.T @ basis
    if not len(first):
        return kept.float()
    apart = (first - second).double()
    moment = weight / len(apart) * apart.T @ apart
    found: Tensor = torch.linalg.solve(whole + moment, kept, left=False).float()
    return found


def bias_of(first: Tensor, second: Tensor, others: Tensor) -> float:
    """Return the distance between texts that should be equal, relative to that between different texts.

    Args:
        first: ``(s, d)`` vectors of texts.
        second: ``(s, d)`` vectors of the texts to which each should be equal.
        others: ``(n, d)`` vectors of different texts.

    Returns:
        The ratio of root mean squared distances between unit vectors: 0 if the pairs are equal, about 1 if they differ
        as much as any two texts. NaN with fewer than two different texts.
    """
    first, second, others = (F.normalize(part.double(), dim=1) for part in (first, second, others))
    within = (first - second).square().sum(dim=1).mean()
    centred = others - others.mean(dim=0)
    between = 2 * centred.square().sum() / max(1, len(others) - 1)
    return float((within / between).sqrt())


_LARGEST = 16 << 20
_FORMS = '{"biased": "a photo of a man"} or {"same": ["a photo of a male doctor", "a photo of a female doctor"]}'


@dataclass(frozen=True)
class Biases:
    """Differences that should not matter.

    Attributes:
        biased: Prompts that name the bias.
        same: Texts that differ only in the bias, two or more in each group.
    """

    biased: list[str]
    same: list[tuple[str, ...]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of texts from the same line of ``same``."""
        return [pair for texts in self.same for pair in combinations(texts, 2)]

    @property
    def texts(self) -> list[str]:
        """All texts, each once."""
        return list(dict.fromkeys([*self.biased, *(text for texts in self.same for text in texts)]))


def read_biases(file: str | Path) -> Biases:
    """Read one JSON object per line, ``{"biased": text}`` or ``{"same": [text, text, ...]}``.

    Raises:
        InputError: The file cannot be read, or a line has another form; names the line.
    """
    path = Path(file)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: expected at most 16 MiB of biases, found {path.stat().st_size:,} bytes")
        lines = read_text(path).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"{path}: the biases cannot be read ({reason}); give a file with lines such as {_FORMS}"
        ) from error
    biased: dict[str, None] = {}
    same: list[tuple[str, ...]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{place}: expected a JSON object such as {_FORMS}, found '{line.strip()[:60]}'"
            ) from error
        if not isinstance(row, dict) or len(row) != 1 or next(iter(row)) not in ("biased", "same"):
            raise InputError(f"{place}: expected {_FORMS}, found '{line.strip()[:60]}'")
        if "biased" in row:
            text = _text(row["biased"], place)
            if text in biased:
                raise InputError(f"{place}: the biased prompt '{text:.60}' appears twice; remove one")
            biased[text] = None
            continue
        texts = row["same"]
        if not isinstance(texts, list) or len(texts) < 2:
            raise InputError(
                f"{place}, field 'same': expected a list of at least two texts, found {json.dumps(texts)[:60]}"
            )
        words = tuple(_text(text, place) for text in texts)
        if len(set(words)) < len(words):
            raise InputError(f"{place}, field 'same': expected different texts, found '{words[0]:.60}' twice")
        same.append(words)
    if not biased and not same:
        raise InputError(f"{path}: expected lines such as {_FORMS}, found none")
    return Biases(list(biased), same)


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: expected a text, found {json.dumps(value)[:60]}")
    return value.strip()
