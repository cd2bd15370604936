"""The models that can be trained, and the options of each, as tables and as JSON."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import fields
from typing import Any

from frevl.errors import UsageError, nearest
from frevl.terminal import table
from frevl.training.options import ModelOptions, RerankerOptions, options_for, type_of, values_of

__all__ = ["MODELS", "model_record", "model_table", "models_records", "models_table"]

_BOTH, _MATCHING, _CLASSIFICATION = "both", "matching", "classification"
# What each model is and which tasks it can do, in the order in which to try them.
MODELS = {
    "auto": (_BOTH, "compares the others on held-out images and takes the simplest of the best"),
    "majority": (_BOTH, "always the most frequent answer"),
    "text": (_BOTH, "a network with one hidden layer that sees only the text"),
    "image": (_BOTH, "a network with one hidden layer that sees only the image"),
    "cosine": (_MATCHING, "cosine similarity in the encoder's own common space; no training"),
    "linear": (_BOTH, "logistic regression on the concatenated embeddings"),
    "kernel": (_CLASSIFICATION, "kernel ridge regression, exact for up to 20,000 pairs"),
    "mlp": (_BOTH, "a network with one hidden layer on the concatenated embeddings"),
    "dual": (_MATCHING, "a two-tower network that learns a common space from your captions, for search"),
    "tiny": (_BOTH, "the FrEVL fusion with about 3 million parameters"),
    "small": (_BOTH, "the FrEVL fusion with about 27 million parameters"),
    "base": (_BOTH, "the FrEVL fusion with about 68 million parameters"),
}


def _all_models() -> dict[str, tuple[str, str]]:
    """Return `MODELS` and any other registered networks, described by the first line of their docstring."""
    from frevl.models.registry import NETWORKS  # imports PyTorch
    from frevl.training.fitting.fit_model import trainable

    further = [name for name in trainable() if name not in MODELS]
    return {
        **MODELS,
        **{name: (_BOTH, (NETWORKS[name].__doc__ or "").partition("\n")[0].rstrip(".")) for name in further},
    }


_NARROWEST, _WIDEST = 60, 120  # columns


def models_table() -> str:
    """Return the table of all models, wrapped to the terminal's width."""
    rows = [
        [name, tasks, str(len(fields(options_for(name)))), sentence]
        for name, (tasks, sentence) in _all_models().items()
    ]
    return _wrapped(["model", "task", "options", "what it is"], rows, left={0, 1, 3})


def models_records() -> list[dict[str, Any]]:
    """Return the record of every model, as `frevl models --json` writes it."""
    return [_record(name, *what) for name, what in _all_models().items()]


def model_table(name: str) -> str:
    """Return a description of one model and the table of its options.

    Raises:
        UsageError: There is no such model.
    """
    tasks, sentence = _known(name)
    parts = [
        f"{name}: {sentence} ({'matching and classification' if tasks == _BOTH else tasks})",
        _options_table(options_for(name)),
    ]
    if options_for(name, "dual") is RerankerOptions:
        parts.append(
            "With --first-stage (matching) it reranks the first stage's candidates and has these options instead:"
        )
        parts.append(_options_table(RerankerOptions))
    return "\n\n".join(parts)


def model_record(name: str) -> dict[str, Any]:
    """Return the record that `frevl models show NAME --json` writes; errors as in `model_table`."""
    return _record(name, *_known(name))


def _known(name: str) -> tuple[str, str]:
    known = MODELS if name in MODELS else _all_models()
    if name not in known:
        raise UsageError(f"There is no model '{name}'. {nearest(name, known)}")
    return known[name]


def _options_table(kind: type[ModelOptions]) -> str:
    """Return one row per option, with the meaning wrapped to the terminal's width."""
    if not fields(kind):
        return "This model has no options."
    header = ["option", "default", "values", "meaning"]
    rows = [[one.name, _shown(one.default), values_of(kind, one.name), one.metadata["help"]] for one in fields(kind)]
    return _wrapped(header, rows, left={0, 2, 3})


def _wrapped(header: list[str], rows: list[list[str]], *, left: set[int]) -> str:
    """Return a table whose last column is wrapped to the terminal's width."""
    *before, last = range(len(header))
    taken = sum(max(len(row[column]) for row in [header, *rows]) + 2 for column in before)
    width = min(max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST), _WIDEST)
    lines = []
    for row in rows:
        first, *more = textwrap.wrap(row[last], max(width - taken, 20))
        lines += [[*row[:last], first], *([*[""] * last, line] for line in more)]
    return table(header, lines, left=left)


def _record(name: str, tasks: str, sentence: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "model": name,
        "tasks": [_MATCHING, _CLASSIFICATION] if tasks == _BOTH else [tasks],
        "description": sentence,
        "options": _options_record(options_for(name)),
    }
    if options_for(name, "dual") is RerankerOptions:
        record["options_with_first_stage"] = _options_record(RerankerOptions)
    return record


def _options_record(kind: type[ModelOptions]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "default": one.default,
            "type": type_of(kind, one.name).__name__,
            "values": values_of(kind, one.name),
            "help": one.metadata["help"],
        }
        for one in fields(kind)
    ]


def _shown(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
