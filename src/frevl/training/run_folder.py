"""The folder of a training: claimed, resumed after an interruption, or refused; and the file that repeats the run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frevl.data.columns import columns_of
from frevl.data.pairs import Pairs
from frevl.errors import RunError
from frevl.jsonfile import replace_file, write_json
from frevl.runs.run import refuse_other_files
from frevl.store.reader import Store
from frevl.training.options import ModelOptions

_OWN_FILES = (
    "config.toml",
    "settings.json",
    "state.safetensors",
    "log.jsonl",
    "weights.safetensors",
    "seen.safetensors",
    "*.part",
)


def _settings(arguments: dict[str, Any], options: ModelOptions) -> dict[str, Any]:
    """Return the arguments of `train` and the options that a run remembers, in what JSON can hold."""
    left_out = ("store", "run", "progress", "options")
    kept = {name: value for name, value in arguments.items() if name not in left_out}
    kept |= options.record()
    kept["pairs"], kept["dev"] = _name(kept["pairs"]), _name(kept["dev"])
    kept["initialise_from"] = str(kept["initialise_from"]) if kept["initialise_from"] is not None else None
    kept["encoder"] = list(kept["encoder"]) if kept["encoder"] else None
    kept["columns"] = columns_of(kept["columns"]) or None
    return kept


def write_config(folder: Path, store: Store, arguments: Mapping[str, Any], options: ModelOptions, **more: int) -> None:
    """Write ``config.toml``: the command that repeats a run, defaults included, as ``frevl train --config`` reads it.

    Args:
        folder: Of the run.
        store: The store that was trained on.
        arguments: Arguments of `train`; pairs in memory cannot be written, and a comment says so.
        options: Of the model.
        **more: Further flags of the command.

    Raises:
        RunError: It cannot be written.
    """
    comments = [f"frevl train --config {folder}/config.toml --run OTHER trains this run once more."]
    record: dict[str, Any] = {"store": _absolute(store.path)}
    for name, value in {**arguments, **more}.items():
        if name in ("store", "run", "options", "progress"):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, Pairs):
            comments.append(f"The pairs were in memory; write them to a file and give it with --{flag}.")
        elif value is not None:
            record[flag] = _absolute(value) if name in ("pairs", "dev", "initialise_from") else value
    chosen = {name: "none" if value is None else value for name, value in options.record().items()}
    record |= {"encoder": list(record["encoder"])} if "encoder" in record else {}
    record |= {"columns": columns_of(record["columns"])} if "columns" in record else {}
    try:
        text = "".join(f"# {line}\n" for line in comments) + toml_text({**record, "set": chosen} if chosen else record)
        replace_file(folder / "config.toml", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except (OSError, UnicodeEncodeError) as error:
        raise RunError(f"{folder}: the file config.toml cannot be written ({error})") from error


def toml_text(record: Mapping[str, Any]) -> str:
    """Return values, lists and tables (one level) as TOML; what is None is left out.

    The standard library reads TOML and does not write it; these few types are all that a command needs.

    Raises:
        TypeError: A value of another type.
    """
    lines = [_line(name, value) for name, value in record.items() if not isinstance(value, Mapping | None)]
    for name, table in record.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{_key(name)}]"]
            lines += [_line(key, value) for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    return f"{_key(name)} = {_toml(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, str | Path):
        # Quoted as JSON does, which TOML reads too; only the character 127 has to be escaped beside.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    raise TypeError(f"TOML is not written for {type(value).__name__}")


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


def _name(pairs: str | Path | Pairs | None) -> str | None:
    """Return what to remember of pairs: their file, or how many there were."""
    if isinstance(pairs, Pairs):
        return pairs.source or f"{len(pairs)} pairs in memory"
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
