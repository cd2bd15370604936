"""The candidates of ``--model auto``. A new candidate is a row here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from frevl.data.pairs import Side
from frevl.terminal import STEPS_FILE, Steps
from frevl.training.fitting.fit_model import NEEDS
from frevl.training.fitting.initialisation import Pretrained
from frevl.training.run_folder import Checkpoint

__all__ = ["CANDIDATES", "TRIED", "Candidate", "candidates", "steps_of"]


@dataclass(frozen=True)
class Candidate:
    """A candidate model with its options.

    Attributes:
        name: As it stands in the table.
        model: What `fit_model` fits.
        changes: Options that differ from the defaults of its model.
        begins: It starts with the weights of another run's fusion (``--initialise-from``).
        learns: False: it is that fusion unchanged, without learning anything from the new pairs.
        members: Of an average, what is averaged.
    """

    name: str
    model: str
    changes: dict[str, Any] = field(default_factory=dict)
    begins: bool = False
    learns: bool = True
    members: tuple[Candidate, ...] = ()


_REGULARISED: dict[str, Any] = {  # what held on small real sets (research/experiments/log.md)
    "standardise": True,
    "input_dropout": 0.3,
    "dropout": 0.4,
    "weight_decay": 0.1,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "contrastive_weight": 0.0,
    "regularisation_weight": 0.0,
    "mixup_share": 0.0,
    "layers": 0,
    "epochs": 8,  # with more, the training pairs were memorised
}

# With a last map that knows the classes; more makes it forget (NLVR: 67.2 %, with the rate and epochs above 61.4 %).
_GENTLY: dict[str, Any] = {"learning_rate": 1e-4, "epochs": 3}

# Simplest first: the order that decides between equals.
CANDIDATES = (
    Candidate("majority", "majority"),
    Candidate("text", "text"),
    Candidate("image", "image"),
    Candidate("linear", "linear"),
    Candidate("kernel", "kernel"),  # two numbers are chosen and the rest is solved: simpler than gradient descent
    Candidate("mlp", "mlp"),
    Candidate("tiny", "tiny"),
    Candidate("tiny standardised", "tiny", _REGULARISED),
    Candidate("small regularised", "small", {"dropout": 0.4, "weight_decay": 0.2, "layers": 2}),
)


# What is tried first, so that a short time limit still sees what is cheap or mostly wins.
TRIED = (
    "majority",
    "kernel",
    "zero-shot",
    "fine-tuned",
    "linear",
    "text",
    "mlp",
    "tiny standardised",
    "tiny",
    "small regularised",
    "image",
)


def candidates(start: Pretrained | None, sides: Sequence[Side] = ("image", "text")) -> tuple[Candidate, ...]:
    """Return all candidates, simplest first.

    Args:
        sides: What the pairs have. Of one side alone, what needs the other is left out, and so is ``mlp``, which then
            is the same network as ``image`` or ``text``.
        start: Of ``--initialise-from``: a fusion fine-tuned from it is a candidate too and, where the classes are the
            same, so is the former fusion itself (zero-shot).
    """
    if len(sides) == 1:
        fitting = (one for one in CANDIDATES if NEEDS.get(one.model, tuple(sides)) == tuple(sides))
        return tuple(one for one in fitting if one.model != "mlp")
    if start is None:
        return CANDIDATES
    gently = {} if start.rows is None else _GENTLY
    fine_tuned = Candidate("fine-tuned", start.preset, {**_REGULARISED, **start.shape, **gently}, begins=True)
    if start.rows is None:
        return (*CANDIDATES, fine_tuned)
    zero_shot = Candidate("zero-shot", start.preset, start.shape, begins=True, learns=False)
    place = next(number for number, one in enumerate(CANDIDATES) if one.name == "mlp")
    return (*CANDIDATES[:place], zero_shot, *CANDIDATES[place:], fine_tuned)


# About how long candidates take beside one another, all folds and seeds; others 4. Only the bar goes by it.
_WEIGHTS = {"majority": 0.1, "kernel": 1.0, "zero-shot": 0.5, "linear": 2.0, "small regularised": 12.0}


def steps_of(names: Sequence[str], checkpoint: Checkpoint, limit: float, *, idle: Sequence[str] = ()) -> Steps:
    """Return the steps of a selection; worker 0 saves their progress next to the training states.

    Args:
        names: Of candidates and of what comes before and after them, in the order in which they are gone through.
        checkpoint: Of the training.
        limit: Seconds for all.
        idle: Those that take no time, because they are left out.
    """
    kept = checkpoint.folder if checkpoint.team.leads else None
    weights = {name: 0.0 if name in idle else _WEIGHTS.get(name, 4.0) for name in names}
    return Steps(weights, None if kept is None else kept / STEPS_FILE, limit)
