"""``--unlabelled``: pictures without labels tell where the classes lie, if held-out examples say that it helps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from frevl.models.classification.heads import Features, Head
from frevl.models.classification.solvers import solve_unlabelled
from frevl.training.classification.candidates import Candidate
from frevl.training.classification.choose import Choice, fitted_head
from frevl.training.classification.trials import Labelled, calibrated_parts
from frevl.training.selection.measures import standard_error

__all__ = ["FEWEST_A_CLASS", "with_unlabelled"]

FEWEST_A_CLASS = 8
"""Pictures without labels for every class, on average. With two of them ImageNet lost up to 11 points."""


def with_unlabelled(
    choice: Choice, examples: Labelled, dev: Labelled | None, unlabelled: Features, classes: int, *, names: float
) -> Choice:
    """Average the chosen head with Gaussians of classes that pictures without labels were fitted to as well.

    It is taken where it makes held-out examples (or development pictures) likelier and no fewer of them right beyond
    one standard error. Where nothing could be held out (one example a class) it is taken without names, as it gained 6
    to 12 points there on three sets, and not beside names, where it lost (research/experiments/log.md).

    Args:
        choice: Made from labelled pictures alone.
        examples: Those.
        dev: Development pictures, or None.
        unlabelled: Pictures without labels.
        classes: How many there are.
        names: Scale of the cosines with the names; 0 without names.

    Returns:
        The new choice, or the same one with a note that says why.
    """
    count = len(unlabelled.standard)
    if count < FEWEST_A_CLASS * classes:
        return _declined(choice, f"they are {count:,}, fewer than {FEWEST_A_CLASS} for each of {classes:,} classes")
    if not len(examples):
        return _declined(choice, "there are no examples to compare by")

    def both(kept: Labelled, head: Head, features: Features) -> tuple[Tensor, Tensor]:
        """Return the ``(n, classes)`` logits of the chosen head, and of its average with the new one."""
        own = head.logits(features, kept.features)
        other = _head(kept, head, unlabelled, classes)
        return own, (own + other.logits(features, None)) / 2

    head = choice.head
    if not len(choice.held_out[1]):
        if names:
            return _declined(choice, "beside names it has to be compared, and nothing could be held out")
        merged = head.scaled(0.5).plus(_head(examples, head, unlabelled, classes).scaled(0.5))
        return replace(choice, head=merged, method=f"{choice.method} + unlabelled", notes=[*choice.notes, _note(count)])
    parts = []
    for fit_on, predicted in choice.splits or [(torch.arange(len(examples)), None)]:
        kept = examples.select(fit_on)
        features = dev.features if predicted is None and dev is not None else examples.features.select(
            fit_on if predicted is None else predicted
        )  # fmt: skip
        parts.append(both(kept, fitted_head(choice.members, kept, classes, names), features))
    before, after = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    truth = choice.truth
    if truth is None:
        raise ValueError("a choice with held-out pictures knows their labels")
    old, new = (
        calibrated_parts(Candidate(name, None, anchored=True), (logits, torch.zeros_like(logits)), truth, 0.0)
        for name, logits in (("labelled", before), ("unlabelled", after))
    )
    gain = float((old.losses - new.losses).mean())
    fewer = float((old.hits - new.hits).mean())
    if gain <= 0 or fewer > standard_error(old.hits - new.hits, truth.clusters):
        return _declined(choice, f"they made {choice.compared_on} no likelier")
    scale = new.members[0][1][0]
    merged = head.scaled(0.5 * scale).plus(_head(examples, head, unlabelled, classes).scaled(0.5 * scale))
    rows = [*choice.rows, {
        "name": f"{choice.method} + unlabelled", "metric": 100 * float(new.hits.mean()),
        "log_loss": float(new.losses.mean()),
    }]  # fmt: skip
    return replace(
        choice, head=merged, method=f"{choice.method} + unlabelled", rows=rows, held_out=(new.logits, truth.labels),
        notes=[*choice.notes, _note(count)],
    )  # fmt: skip


def _head(kept: Labelled, head: Head, unlabelled: Features, classes: int) -> Head:
    guessed = head.logits(unlabelled, kept.features).softmax(dim=1)
    return solve_unlabelled(kept.features, kept.labels, classes, unlabelled=unlabelled.standard, guessed=guessed)


def _note(count: int) -> str:
    return (
        f"{count:,} pictures of the store were learned from without their labels; a figure on pictures that are among "
        "them holds for these pictures, not for new ones."
    )


def _declined(choice: Choice, why: str) -> Choice:
    return replace(choice, notes=[*choice.notes, f"Pictures without labels were not used: {why}."])
