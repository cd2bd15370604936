"""Texts that are to be equal, made equal in a run: the maps of its vectors of texts, and the bias before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.errors import StoreError, UsageError
from frevl.models.interface import PairNetwork
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.training.classification.names import space_of_encoder
from frevl.training.debiasing.biases import Biases
from frevl.training.debiasing.projection import bias_of, neutral_map

__all__ = ["Neutral", "make_neutral"]

_MOST_LEFT_OUT = 50  # pairs that are each left out once to measure what the others do for them


@dataclass(frozen=True)
class Neutral:
    """A network with neutral texts.

    Attributes:
        network: The new one.
        record: ``before``, ``after`` and ``held_out``: how far apart the pairs are that should be equal, as a share of
            how far apart different texts are (`frevl.training.debiasing.projection.bias_of`); counts.
        notes: Sentences for the user.
    """

    network: PairNetwork
    record: dict[str, Any]
    notes: list[str]


def make_neutral(run: Run, store: Store, biases: Biases, *, weight: float, differences: bool) -> Neutral:
    """Turn the vectors of texts of a run.

    Args:
        run: The finished run.
        store: Of its embeddings; texts that it lacks are embedded.
        biases: What should not matter.
        weight: How strongly pairs are made equal.
        differences: As in `frevl.training.debiasing.projection.spanned`.

    Raises:
        UsageError: The run has no vectors of texts that a map can turn, or the biases are dependent.
        StoreError: A text cannot be embedded.
    """
    turnable = run.network.turnable_texts
    if turnable is None:
        raise UsageError(
            f"{run.path}: --neutral turns vectors of texts: of --model dual and cosine, and of frevl classify with "
            f"names; the network '{run.network.key}' has none"
            + ("; a run that reranks reads the text again: train --model dual" if run.task == "matching" else "")
        )
    texts = biases.texts
    try:
        vectors = _vectors_of(run, store)(texts)
    except StoreError as error:
        raise StoreError(
            f"{error} (to debias, every text of the file has to be embedded as the run's texts are)"
        ) from error
    rows = {text: row for row, text in enumerate(texts)}
    biased = [rows[text] for text in biases.biased]
    first, second = ([rows[pair[side]] for pair in biases.pairs] for side in (0, 1))
    blocks = [F.normalize(part.float(), dim=1) for part in torch.split(vectors, turnable.text_blocks, dim=1)]

    def maps(pairs: Sequence[int]) -> list[Tensor]:
        one, two = ([side[pair] for pair in pairs] for side in (first, second))
        return [
            neutral_map(part[biased], part[one], part[two], weight=weight, differences=differences) for part in blocks
        ]

    def bias(turns: Sequence[Tensor] | None, pairs: Sequence[int]) -> float:
        turned = blocks if turns is None else [F.normalize(p @ m.T, dim=1) for p, m in zip(blocks, turns, strict=True)]
        whole = torch.cat(turned, dim=1)
        return bias_of(whole[[first[n] for n in pairs]], whole[[second[n] for n in pairs]], whole)

    every = list(range(len(first)))
    found = maps(every)
    record: dict[str, Any] = {"biased": len(biased), "pairs": len(every), "weight": weight}
    notes: list[str] = []
    if every:
        record |= {"before": bias(None, every), "after": bias(found, every)}
        some = every[:_MOST_LEFT_OUT]
        if len(some) > 1:
            left_out = [bias(maps([other for other in every if other != pair]), [pair]) for pair in some]
            record["held_out"] = float(torch.tensor(left_out).square().mean().sqrt())
        notes.append(_sentence(record))
    else:
        notes.append(
            f'{len(biased):,} biased prompts were projected out; give lines of "same" to see what it does to texts.'
        )
    return Neutral(turnable.with_text_maps(found), record, notes)


def _vectors_of(run: Run, store: Store) -> Callable[[Sequence[str]], Tensor]:
    """Return what turns sentences into the vectors that the run compares with pictures."""
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
            f"{run.path}: the space of its names is not at hand; give the store with the text towers of its encoder"
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
