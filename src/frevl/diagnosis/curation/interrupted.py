"""The finished folds of an interrupted curation, kept beside its output so that the same call continues."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frevl.errors import RunError
from frevl.training.run_folder import NOWHERE, Checkpoint, claim_run

__all__ = ["unfinished"]

# The data recorded by an interrupted call, and the message for each that has changed since.
_CHANGED = {
    "frevl": "frevl was updated",
    "store": "the store has changed",
    "pairs": "the file of --pairs (or an image that it names) has changed",
    "former": "the run of --run was trained again",
}


@contextmanager
def unfinished(out: str | Path | None, settings: dict[str, Any]) -> Iterator[Checkpoint]:
    """Keep the filters' state in a folder next to the output until the output is written.

    Args:
        out: Path of the output; None keeps nothing.
        settings: What the call was asked to do; ``data`` identifies its store, lines and run.

    Raises:
        RunError: Another process is curating here, or an interrupted call had other settings or other data.
    """
    if out is None:
        yield NOWHERE
        return
    folder = Path(out).with_name(Path(out).name + ".unfinished")
    _refuse_changed(folder, settings["data"])
    with claim_run(folder, settings, flag="--out") as checkpoint:
        yield checkpoint
    shutil.rmtree(folder, ignore_errors=True)


def _refuse_changed(folder: Path, data: Mapping[str, Any]) -> None:
    """Refuse to continue if the data changed since the interrupted call: its folds do not belong to these lines."""
    try:
        was = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["data"]
        changed = [what for name, what in _CHANGED.items() if name in was and was[name] != data.get(name)]
    except (OSError, ValueError, LookupError, TypeError):
        return  # nothing is saved, or the folder is refused as a whole
    if changed and any(folder.glob("*/*.safetensors")):
        raise RunError(
            f"{folder}: an earlier call on these lines was interrupted, and since then {' and '.join(changed)}, so its "
            f"folds cannot be used: delete {folder} to start over, choose another --out, or undo the change "
            "to continue"
        )
