"""Publish a run on the Hugging Face hub, with its model card."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frevl.errors import InputError, RunError, UsageError
from frevl.files import read_record, write_json
from frevl.models.hub import LOCAL_FOLDERS, POSTERIOR_FILE, RUN_FILES, brief, hub_library, not_sent
from frevl.runs.run import Run
from frevl.runs.sharing.model_card import model_card
from frevl.runs.sharing.onnx_backend import weights_hash

__all__ = ["push_run", "write_published_run"]

_LONGEST_NAME = 96  # characters of USER/NAME


def push_run(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    results: Sequence[str | Path] = (),
    diagnosis: str | Path | None = None,
) -> str:
    """Upload a whole run to the hub, with its model card.

    Args:
        path: Folder of the run.
        repository: Id on the hub; created if missing.
        private: Whether to make it private if it is new.
        results: JSON files of ``frevl evaluate``, for the card.
        diagnosis: JSON file of ``frevl diagnose``, for the card.

    Returns:
        The URL of the commit.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        InputError: A JSON file cannot be used.
        RunError: There is no run, or the hub refuses the upload.
    """
    hub = hub_library()
    with tempfile.TemporaryDirectory() as scratch:
        write_published_run(path, scratch, name=repository, results=results, diagnosis=diagnosis)
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            return str(
                api.upload_folder(repo_id=repository, folder_path=scratch, commit_message="frevl run").commit_url
            )
        # The hub library raises its own, the HTTP library's or the system's exceptions.
        except Exception as error:
            raise not_sent(repository, error) from None


def write_published_run(
    path: str | Path,
    folder: str | Path,
    *,
    name: str,
    results: Sequence[str | Path] = (),
    diagnosis: str | Path | None = None,
) -> None:
    """Write what `push_run` would upload: the run's files and its model card.

    Paths of this machine are removed from ``run.json``; file names are kept. The hashes of the training images are part
    of a run: anyone who has an image can use them to find out whether it was used for training.

    Args:
        path: Folder of the run.
        folder: Folder to write; created if missing.
        name: Name of the model on the hub.
        results: JSON files of ``frevl evaluate``, for the card.
        diagnosis: JSON file of ``frevl diagnose``, for the card.

    Raises:
        UsageError: The folder is the run's own, or the hub would refuse the name.
        InputError: A JSON file cannot be used, or holds the result of another run.
        RunError: There is no run, or the folder cannot be written.
    """
    path, folder = Path(path), Path(folder)
    _check_name(name)
    if path.resolve() == folder.resolve():
        raise UsageError(f"{folder}: expected a folder other than the run's own")
    if not (path / "run.json").is_file():
        Run.load(path)  # says what it found instead of a run
    evaluated = [_read(file, "frevl evaluate", ("n", "metrics")) for file in results]
    diagnosed = None if diagnosis is None else _read(diagnosis, "frevl diagnose", ("verdict", "findings"))
    for file, result in zip(results, evaluated, strict=True):
        _check_result(file, result, path)
    try:
        record = read_record(path / "run.json")
        for part in ("settings", "provenance"):
            record[part] = _without_folders(record[part])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / POSTERIOR_FILE).unlink(missing_ok=True)  # of a run that was written to this folder before
        for file in (*RUN_FILES[1:], POSTERIOR_FILE):
            if file != POSTERIOR_FILE or (path / file).is_file():
                shutil.copyfile(path / file, folder / file)
        (folder / "README.md").write_text(
            model_card(record, name=name, results=evaluated, diagnosis=diagnosed), encoding="utf-8"
        )
        write_json(folder / "run.json", record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: the run cannot be published to {folder} ({brief(error)})") from error


def _read(file: str | Path, command: str, keys: Sequence[str]) -> dict[str, Any]:
    try:
        record = read_record(Path(file))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: expected the JSON of {command}, and cannot read it ({brief(error)})") from None
    lacking = [key for key in keys if key not in record]
    if lacking:
        raise InputError(f"{file}: expected the JSON of {command}, found no '{lacking[0]}' in it")
    return record


def _check_result(file: str | Path, result: Mapping[str, Any], path: Path) -> None:
    """Refuse the figures of another run; a result of an earlier version does not say which weights it measured."""
    run = Run.load(path)
    given = result.get("provenance")
    measured: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    other = measured.get("weights", own := weights_hash(run)) != own or result.get("task", run.task) != run.task
    if other:
        raise InputError(
            f"{file}: expected a result of the run {path}, found one of {measured.get('run', 'another run')!s:.200}, "
            f"which has other weights; make one with: frevl evaluate --run {path} --store STORE --pairs FILE --json OUT"
        )


def _check_name(name: str) -> None:
    """Refuse a name that the hub refuses, by the rules of ``huggingface_hub.utils.validate_repo_id``."""
    owner, slash, own = name.rpartition("/")
    parts = [owner, own] if slash else [own]
    sound = all(re.fullmatch(r"\w|\w[\w.-]*\w", part, re.ASCII) for part in parts)
    if not sound or len(name) > _LONGEST_NAME or "--" in name or ".." in name or name.endswith(".git"):
        raise UsageError(
            f"--to: expected the name of a repository, USER/NAME of letters, digits, '-', '_' and '.' (not at either "
            f"end, no '--', no '..', not '.git' at the end, at most {_LONGEST_NAME} characters), found '{name:.120}'"
        )


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return LOCAL_FOLDERS.sub("", value) if isinstance(value, str) else value
