"""A pairs file -> the same pairs with what a run says of them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from frevl.batches import usable_pairs
from frevl.errors import InputError
from frevl.jsonfile import plain
from frevl.pairs import Pairs, read_pairs
from frevl.rejects import Reject
from frevl.scorer import Scorer

__all__ = ["score_file"]

_PAIRS_AT_ONCE = 16_384


def score_file(scorer: Scorer, pairs: str | Path | Pairs, out: str | Path) -> tuple[int, list[Reject]]:
    """Score every pair of a file and write them with their scores, one JSON object a line.

    Matching adds ``score`` and the calibrated ``probability``; classification adds ``label``, ``probability`` and
    ``top``. A pair whose image was rejected keeps its place with ``"score": null`` and ``reject``, the reason.

    Args:
        scorer: The run with its store.
        pairs: Pairs, or a pairs file.
        out: File to write; appears complete or not at all.

    Returns:
        How many pairs were scored, and what was left out.

    Raises:
        PairsError: The pairs cannot be used.
        InputError: The file cannot be written.
    """
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    usable, left_out = usable_pairs(read, scorer.store)
    reasons = {reject.id: reject.reason for reject in left_out}
    out = Path(out)
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as lines:
            for start in range(0, len(read), _PAIRS_AT_ONCE):
                rows = range(start, min(start + _PAIRS_AT_ONCE, len(read)))
                scorable = [row for row in rows if read.places[row] not in reasons]
                said = iter(_said(scorer, [(read.images[row], read.texts[row]) for row in scorable]))
                for row in rows:
                    reason = reasons.get(read.places[row])
                    added = {"score": None, "reject": reason} if reason else next(said)
                    lines.write(
                        json.dumps(plain({**read.row(row), **added}), ensure_ascii=False, allow_nan=False) + "\n"
                    )
        part.replace(out)
    except OSError as error:
        raise InputError(f"{out}: the scores cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # the error of the write is the one to tell
            part.unlink(missing_ok=True)
    return len(usable), [*read.rejected, *left_out]


def _said(scorer: Scorer, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    scores = scorer.score(pairs)
    if scorer.run.task == "matching":
        probabilities = scorer.probabilities(scores)
        return [{"score": float(s), "probability": float(p)} for s, p in zip(scores, probabilities, strict=True)]
    return [
        {"label": one.label, "probability": one.probability, "top": [[label, p] for label, p in one.top]}
        for one in scorer.name_classes(scores)
    ]
