"""The folder of a training: claiming it, continuing after an interruption, its states, and its config file.

During training, the folder contains a hidden folder with the lock and one file for every finished or current part (a
network, a candidate, one fold of a candidate), which is removed when the run is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from frevl.data.packed.columns import chosen, in_order, joined
from frevl.errors import RunError, TrainingError
from frevl.files import replace_file, write_json
from frevl.models.hub import POSTERIOR_FILE, RUN_FILES, weights_digest
from frevl.provenance import toml_text
from frevl.runs.run import UNFINISHED, Run, refuse_other_files
from frevl.training.options import ModelOptions
from frevl.training.workers.team import ALONE, Team
from frevl.version import __version__

if TYPE_CHECKING:  # the loop needs only checkpoints, and must work without code that reads stores or pairs files
    from frevl.data.pairs import Pairs
    from frevl.store.reader import Store

__all__ = [
    "NOWHERE",
    "PLACES",
    "Checkpoint",
    "Clock",
    "claim_run",
    "claim_seeds",
    "content_of",
    "data_identity",
    "run_settings",
    "write_config",
]

_FILES = ("pairs", "test", "dev", "initialise_from", "classes", "examples", "space")  # arguments that name files
# Settings whose content is identified by ``data`` next to them: a path may be relative, or name something else by now.
PLACES = ("pairs", "dev", "run", "initialise_from", "examples", "classes", "space")
_RUN_FILES = ("config.toml", "settings.json", "log.jsonl", *RUN_FILES[1:], POSTERIOR_FILE)
_SEEDS_FILES = ("config.toml", "settings.json", "seeds.json", "seed*")


class Clock:
    """Training time in seconds, including earlier interrupted processes; worker 0's for all workers."""

    def __init__(self, team: Team = ALONE) -> None:
        self._started = time.monotonic()
        self._earlier = 0.0
        self._team = team

    def seconds(self) -> float:
        """Return the elapsed seconds; those of earlier processes count once their states are loaded."""
        return self._team.agreed(time.monotonic() - self._started + self._earlier)

    def add_earlier(self, seconds: float) -> None:
        """Add the seconds of a part finished or started by an earlier process."""
        self._earlier += seconds


@dataclass(frozen=True)
class Checkpoint:
    """The place where one part of a training saves its state.

    Attributes:
        folder: Folder with the files of all parts; None saves nothing.
        name: Name of this part; the names of its subparts start with it.
        clock: Clock of the whole training.
        team: The team; its worker 0 reads and writes for all.
    """

    folder: Path | None
    name: str
    clock: Clock
    team: Team = ALONE

    def part(self, name: str) -> Checkpoint:
        """Return the checkpoint of a subpart."""
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)
        return replace(self, name=f"{self.name}.{plain}" if self.name else plain)

    @property
    def file(self) -> Path | None:
        """The file with the state of this part."""
        return None if self.folder is None else self.folder / f"{self.name}.safetensors"

    def save(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write the state into one file and rename it, so that a process that is killed leaves the previous state.

        Args:
            tensors: Tensors by name.
            record: A JSON-serialisable record; ``seconds`` is the time spent on the part.

        Raises:
            TrainingError: The file cannot be written.
        """
        path = self.file
        if path is None or not self.team.leads:
            return
        kept, metadata = (
            {name: value.cpu().contiguous() for name, value in tensors.items()},
            {"record": json.dumps(record)},
        )
        try:
            replace_file(path, lambda temporary: save_file(kept, temporary, metadata=metadata))
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{path}: the state of the training cannot be written ({error}); free some space, and run the same "
                "command again to continue"
            ) from error

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the state that `save` wrote, and count its seconds; None if there is none.

        Raises:
            TrainingError: The file is damaged.
        """
        return None if self.folder is None else self.team.decided(self._read)

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self.file
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                record = json.loads(file.metadata()["record"])
            tensors = load_file(path)
            self.clock.add_earlier(float(record["seconds"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise self.damaged(error) from error
        return tensors, record

    def damaged(self, error: Exception) -> TrainingError:
        """Return the error for a file from which training cannot continue."""
        return TrainingError(
            f"{self.file}: the state of an interrupted training is damaged ({str(error).splitlines()[0][:120]}); "
            "delete this file to train this part again"
        )

    def discard_parts(self) -> None:
        """Remove the files of the subparts once the file of this part holds their results."""
        for path in self.folder.glob("*.safetensors") if self.folder is not None and self.team.leads else ():
            if path.name.startswith(f"{self.name}.") and path != self.file:
                path.unlink()


NOWHERE = Checkpoint(None, "", Clock())
"""A checkpoint that saves nothing, for a training that will not be continued."""


@contextmanager
def claim_run(
    folder: Path, settings: Mapping[str, Any], *, flag: str = "--run", team: Team = ALONE
) -> Iterator[Checkpoint]:
    """Hold the folder of a run during training, continuing an interrupted one.

    When the block ends without an error, the run is complete and the states are removed.

    Args:
        folder: Folder of the run; created if missing.
        settings: All settings that determine the result, JSON-serialisable; stored in ``settings.json``.
        flag: The option that names the folder, for messages.
        team: The workers; worker 0 holds the folder for all.

    Raises:
        RunError: The folder contains a finished run, other files, or an interrupted training with other settings;
            another process is training in it; it cannot be written; or the workers have different settings.
    """
    team.same(_flat(json.loads(json.dumps(settings))))
    if not team.leads:
        yield Checkpoint(folder / UNFINISHED, "", Clock(team), team)
        return
    _refuse_for_run(folder)
    with _locked(folder, flag) as states:
        _refuse_for_run(folder)  # again: another process may have finished it before this one got the lock
        interrupted = any(states.glob("*.safetensors"))
        _keep_settings(
            folder,
            settings,
            f"an interrupted {'training' if flag == '--run' else 'call'} is in this folder" if interrupted else None,
            ("time_limit", *PLACES),
            flag,
        )
        yield Checkpoint(states, "", Clock(team), team)
        shutil.rmtree(states, ignore_errors=True)


@contextmanager
def claim_seeds(folder: Path, settings: Mapping[str, Any], *, team: Team = ALONE) -> Iterator[None]:
    """Hold the folder of several seeds' runs during training.

    Args:
        folder: As in `claim_run`; finished and interrupted seeds with the same settings are accepted.
        settings: The settings that all seeds have in common.
        team: As in `claim_run`.

    Raises:
        RunError: The folder contains a run of one seed, or seeds of another training; otherwise as in `claim_run`.
    """
    team.same(_flat(dict(settings)))
    if not team.leads:
        yield
        return
    if (folder / "run.json").exists() or any((folder / UNFINISHED).glob("*.safetensors")):
        raise RunError(f"{folder}: this folder holds a run of one seed; choose another folder, or delete it first")
    refuse_other_files(folder, _SEEDS_FILES)
    with _locked(folder) as states:
        trained = any(any(folder.glob(f"seed*/{name}")) for name in ("run.json", f"{UNFINISHED}/*.safetensors"))
        stands = "seeds of another training are in this folder" if trained else None
        _keep_settings(folder, settings, stands, ("initialise_from",))  # its "pairs" and "dev" are hashes
        yield
        shutil.rmtree(states, ignore_errors=True)


def _refuse_for_run(folder: Path) -> None:
    if (folder / "run.json").exists():
        raise RunError(f"{folder}: this folder holds a finished run; choose another folder, or delete it first")
    if (folder / "seeds.json").exists():
        raise RunError(f"{folder}: this folder holds the runs of several seeds; choose another folder, or use --seeds")
    refuse_other_files(folder, _RUN_FILES)


@contextmanager
def _locked(folder: Path, flag: str = "--run") -> Iterator[Path]:
    """Create the folder for the states and acquire its lock, which is released when the process ends."""
    states = folder / UNFINISHED
    lock = FileLock(states / "lock")
    try:
        states.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{folder}: another process is training in this folder; wait for it to finish, or choose another {flag}"
        ) from error
    except OSError as error:
        raise RunError(f"{folder}: the run cannot be written ({error.strerror or error})") from error
    try:
        yield states
    finally:
        if not any(states.glob("*.safetensors")):
            shutil.rmtree(states, ignore_errors=True)  # nothing to continue from
        lock.release()


def _keep_settings(
    folder: Path, settings: Mapping[str, Any], stands: str | None, may_differ: Sequence[str], flag: str = "--run"
) -> None:
    """Record the settings; refuse settings that differ from those of what ``stands`` in the folder."""
    file, now = folder / "settings.json", json.loads(json.dumps(settings))
    try:
        if stands is not None:
            was, given = _flat(json.loads(file.read_text(encoding="utf-8"))), _flat(now)
            for name in {**was, **given}:
                if name not in may_differ and was.get(name) != given.get(name):
                    raise RunError(
                        f"{folder}: {stands}, and its '{name}' was {was.get(name)!r}, not {given.get(name)!r}; use "
                        f"the same settings to continue, choose another {flag}, or delete the folder"
                    )
        write_json(file, now)
    except OSError as error:
        raise RunError(f"{folder}: the run cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        raise RunError(f"{file}: the settings of an interrupted training are damaged; delete {folder}") from error


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{name}.{part}": kept for part, kept in inner.items()} or {name: value}
    return flat


def data_identity(store: Store, pairs: Pairs, dev: Pairs | None, former: str | Path | None = None) -> dict[str, Any]:
    """Return the identity of a training's data: a run is not continued with other data.

    Returns:
        The version of frevl, the fingerprint of the store, hashes of the pairs and of their images, and of the weights
        of a ``former`` run that initialises or evaluates it.

    Raises:
        RunError: The former run does not exist.
    """
    contents = {"pairs": content_of(store, pairs), "dev": None if dev is None else content_of(store, dev)}
    if former is not None:
        contents["former"] = weights_digest(Run.load(former).path)[:16]
    return {"frevl": __version__, "store": store.fingerprint, **contents}


_AT_ONCE = 65_536  # maximum number of images that exist as Python objects at a time


def content_of(store: Store, pairs: Pairs) -> str:
    """Return a hash of pairs and their images, so that a change of either during training is noticed."""
    digest = hashlib.sha256()
    for row in pairs.as_rows():
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    images = joined([pairs.images])[1]
    from frevl.store.ids.rows_of_ids import find_rows  # imports pyarrow, which training on arrays does not need

    rows = find_rows(store.positions("image"), images)
    there = chosen(images, np.flatnonzero(rows >= 0))
    hashes, order = store.content_column(there), in_order(there)
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        for pair in zip(chosen(there, some), hashes[some].astype(str).tolist(), strict=True):
            digest.update(json.dumps(pair).encode())
    return digest.hexdigest()[:16]


def run_settings(arguments: dict[str, Any], options: ModelOptions) -> dict[str, Any]:
    """Return the arguments of `train` and the options to record in a run, as JSON types."""
    from frevl.data.columns import columns_of

    left_out = ("store", "run", "progress", "options", "workers", "ray")  # more workers do not change the result
    kept = {name: value for name, value in arguments.items() if name not in left_out}
    kept |= options.record()
    kept["pairs"], kept["dev"] = _name(kept["pairs"]), _name(kept["dev"])
    kept["initialise_from"] = str(kept["initialise_from"]) if kept["initialise_from"] is not None else None
    for name in ("encoder", "image_encoder", "text_encoder"):
        kept[name] = list(kept[name]) if kept[name] else None
    kept["columns"] = columns_of(kept["columns"]) or None
    return kept


def write_config(
    folder: Path, arguments: Mapping[str, Any], options: ModelOptions, *, command: str = "train", output: str = "run"
) -> None:
    """Write ``config.toml`` for ``--config``: the command that reproduces the folder, including defaults.

    Args:
        folder: Folder of the run, the seeds or the ablation.
        arguments: Arguments of the command by name, possibly including several open stores. A comment replaces pairs
            that were in memory, which cannot be written.
        options: Options of the model.
        command: The command that was given.
        output: Name of the argument for the folder to write.

    Raises:
        RunError: The file cannot be written.
    """
    from frevl.data.class_files import ClassList
    from frevl.data.columns import columns_of
    from frevl.data.pairs import Pairs

    comments = [f"frevl {command} --config {folder}/config.toml --{output} OTHER repeats it with the same settings."]
    record: dict[str, Any] = {}
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if name in (output, "options", "progress", "ray") or value is None:
            continue
        if isinstance(value, Pairs):
            comments.append(f"The pairs were in memory; write them to a file and give it with --{flag}.")
        elif isinstance(value, ClassList) and not value.source:
            comments.append(f"The classes were in memory; write them to a file and give it with --{flag}.")
        elif isinstance(value, ClassList):
            record[flag] = _absolute(value.source)
        elif name == "store":
            several = [_absolute(one.path) for one in (value if isinstance(value, list) else [value])]
            record[flag] = several if isinstance(value, list) else several[0]
        elif name == "columns":
            record[flag] = columns_of(value)
        else:
            is_file = name in _FILES and isinstance(value, str | Path)
            record[flag] = _absolute(value) if is_file else list(value) if name.endswith("encoder") else value
    chosen = {name: "none" if value is None else value for name, value in options.record().items()}
    try:
        text = "".join(f"# {line}\n" for line in comments) + toml_text({**record, "set": chosen} if chosen else record)
        replace_file(folder / "config.toml", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except (OSError, UnicodeEncodeError) as error:
        raise RunError(f"{folder}: the file config.toml cannot be written ({error})") from error


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


def _name(pairs: str | Path | Pairs | None) -> str | None:
    """Return what to record about pairs: their file, or their number."""
    from frevl.data.pairs import Pairs

    if isinstance(pairs, Pairs):
        return pairs.source or f"{len(pairs)} pairs in memory"
    return None if pairs is None else str(pairs)
