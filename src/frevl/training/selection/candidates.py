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
        name: Name of the candidate in the table.
        model: Name of the model for `fit_model`.
        changes: Options that differ from the model's defaults.
        begins: Whether it is initialised from another run's fusion (``--initialise-from``).
        learns: False for that fusion used unchanged, without training on the new pairs.
        members: For an average, the candidates that are averaged.
    """

    name: str
    model: str
    changes: dict[str, Any] = field(default_factory=dict)
    begins: bool = False
    learns: bool = True
    members: tuple[Candidate, ...] = ()


_REGULARISED: dict[str, Any] = {  # good on small real data sets (research/experiments/log.md)
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
    "epochs": 8,  # with more epochs, the training pairs were memorised
}

# For a last layer already trained on these classes: a higher rate and more epochs make it forget (NLVR: 67.2 % with
# these, 61.4 % with those above).
_GENTLY: dict[str, Any] = {"learning_rate": 1e-4, "epochs": 3}

# In order of complexity, simplest first; ties go to the simpler one.
CANDIDATES = (
    Candidate("majority", "majority"),
    Candidate("text", "text"),
    Candidate("image", "image"),
    Candidate("linear", "linear"),
    Candidate("kernel", "kernel"),  # selects two numbers and solves the rest: simpler than gradient descent
    Candidate("mlp", "mlp"),
    Candidate("tiny", "tiny"),
    Candidate("tiny standardised", "tiny", _REGULARISED),
    Candidate("small regularised", "small", {"dropout": 0.4, "weight_decay": 0.2, "layers": 2}),
)


# Tried first, so that even a short time limit covers what is cheap or often wins.
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
        sides: Sides of the pairs. With one side alone, models that need the other are left out, and so is ``mlp``,
            which is then the same network as ``image`` or ``text``.
        start: The fusion of ``--initialise-from``: a fusion fine-tuned from it becomes a candidate. If the classes are
            the same, the original fusion, unchanged (zero-shot), becomes a candidate as well.
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


# Approximate relative times of candidates, all folds and seeds; 4 for others. Only the progress bar uses them.
_WEIGHTS = {"majority": 0.1, "kernel": 1.0, "zero-shot": 0.5, "linear": 2.0, "small regularised": 12.0}


def steps_of(names: Sequence[str], checkpoint: Checkpoint, limit: float, *, idle: Sequence[str] = ()) -> Steps:
    """Return the steps of a selection; worker 0 saves their progress next to the training states.

    Args:
        names: Names of the candidates and of the steps before and after them, in order of execution.
        checkpoint: Checkpoint of the training.
        limit: Total seconds.
        idle: Names of steps that take no time because they are skipped.
    """
    kept = checkpoint.folder if checkpoint.team.leads else None
    weights = {name: 0.0 if name in idle else _WEIGHTS.get(name, 4.0) for name in names}
    return Steps(weights, None if kept is None else kept / STEPS_FILE, limit)
