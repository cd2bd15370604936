"""The folder of a training: claimed, resumed after an interruption, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frevl.data.pairs import Pairs
from frevl.errors import RunError
from frevl.jsonfile import write_json
from frevl.runs.run import refuse_other_files
from frevl.training.options import ModelOptions

_OWN_FILES = ("settings.json", "state.safetensors", "log.jsonl", "weights.safetensors", "seen.safetensors", "*.part")


def _settings(arguments: dict[str, Any], options: ModelOptions) -> dict[str, Any]:
    """Return the arguments of `train` and the options that a run remembers, in what JSON can hold."""
    left_out = ("store", "run", "progress", "options")
    kept = {name: value for name, value in arguments.items() if name not in left_out}
    kept |= options.record()
    kept["pairs"], kept["dev"] = _name(kept["pairs"]), _name(kept["dev"])
    kept["initialise_from"] = str(kept["initialise_from"]) if kept["initialise_from"] is not None else None
    kept["encoder"] = list(kept["encoder"]) if kept["encoder"] else None
    return kept


def _name(pairs: str | Path | Pairs | None) -> str | None:
    """Return what to remember of pairs: their file, or how many there were."""
    if isinstance(pairs, Pairs):
        return f"{len(pairs)} pairs in memory"
    return None if pairs is None else str(pairs)


def _open_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """Make the run's folder; an interrupted training with the same settings is gone on with."""
    if (folder / "run.json").exists():
        raise RunError(f"{folder}: this folder holds a finished run; choose another --run, or delete it first")
    if (folder / "seeds.json").exists():
        raise RunError(f"{folder}: this folder holds the runs of several seeds; choose another --run, or use --seeds")
    refuse_other_files(folder, _OWN_FILES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.safetensors").exists():
            former = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
            now = json.loads(json.dumps(settings))
            differing = [name for name in now if name != "time_limit" and former.get(name) != now[name]]
            if differing:
                name = differing[0]
                raise RunError(
                    f"{folder}: an interrupted training stands here, and its '{name}' was {former.get(name)!r}, not "
                    f"{now[name]!r}; use the same settings to go on, another --run, or delete the folder"
                )
        write_json(folder / "settings.json", settings)
    except OSError as error:
        raise RunError(f"{folder}: the run cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        raise RunError(f"{folder}: the settings of an interrupted training are damaged; delete the folder") from error
    return folder
