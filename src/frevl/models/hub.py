"""Networks and runs on a model hub, through the mixin of ``huggingface_hub``.

A published folder is what the mixin makes of it: ``config.json`` (the network's settings) and ``model.safetensors``. A
run's folder (``run.json``, ``weights.safetensors``) can be published as a whole, and a network is read from either.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from frevl.errors import MissingExtraError, RunError

if TYPE_CHECKING:
    from torch import nn

    from frevl.models.interface import PairNetwork

__all__ = ["PREFIX", "load_network", "push_network", "run_folder", "save_network"]

PREFIX = "hf:"
"""Before the id of a run on the hub, wherever a run's folder is asked for."""

_RUN_FILES = ("run.json", "weights.safetensors", "seen.safetensors")
_FOLDERS = re.compile(r"(?<![\w.:])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")

Network = TypeVar("Network", bound="PairNetwork")


def save_network(
    network: nn.Module, folder: str | Path, settings: Mapping[str, Any], *, card: str | None = None
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``README.md``.

    Args:
        network: Any module.
        folder: Made if it is missing; a card that is there already stays.
        settings: Arguments that build the network.
        card: Text of the card, for example from `model_card`; None writes a short one without results.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        RunError: The folder cannot be written.
    """
    try:
        _published()(network).save_pretrained(folder, config=dict(settings), model_card_kwargs={"text": card})
    except OSError as error:
        raise RunError(f"{folder}: the network cannot be written ({error.strerror or error})") from error


def push_network(
    network: nn.Module, repository: str, settings: Mapping[str, Any], *, card: str | None = None, **options: Any
) -> str:
    """Send a network to the hub.

    Args:
        network: Any module.
        repository: Id on the hub; made if it is missing.
        settings: Arguments that build the network.
        card: As for `save_network`.
        options: For the mixin's ``push_to_hub``: ``private``, ``token``, ``branch``, ...

    Returns:
        The address of the commit.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        RunError: The hub refuses, or cannot be reached.
    """
    published = _published()(network)
    try:
        return str(
            published.push_to_hub(repository, config=dict(settings), model_card_kwargs={"text": card}, **options)
        )
    # The hub's library fails with its own, the HTTP library's or the system's exceptions.
    except Exception as error:
        raise _unsent(repository, error) from None


def load_network(kind: type[Network], model: str | Path, *, revision: str | None = None, **options: Any) -> Network:
    """Build a network from a folder or from the hub.

    Args:
        kind: Class of the network; built with the settings in ``config.json``, or in the ``run.json`` of a run.
        model: Folder, or id on the hub.
        revision: Branch, tag or commit on the hub.
        options: For the hub's download: ``cache_dir``, ``force_download``, ``local_files_only``, ``token``.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        RunError: There is no network of this kind, it is damaged, or the hub cannot be reached.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = _fetched(str(model), revision, ["*.json", "*.safetensors"], **options)
    if not (folder / "config.json").is_file():
        return _read_network(kind, folder)  # a run, or nothing
    network: Network = _published().from_pretrained(str(folder), kind=kind)
    return network


def run_folder(path: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a run; of ``hf:NAME[@REVISION]`` the one in the hub's cache, fetched if it is not there.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        RunError: The hub has no such run, or cannot be reached.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    model, _, named = str(path).removeprefix(PREFIX).partition("@")
    return _fetched(model, revision or named or None, list(_RUN_FILES))


@cache  # the hub's library takes a third of a second to import, so only who needs it pays
def _published() -> Any:
    hub = _library()

    class Published(hub.ModelHubMixin, library_name="frevl", tags=["frevl"]):  # type: ignore[call-arg, misc, name-defined]
        """A network with the hub's verbs; a wrapper, so that the network itself stays a plain module."""

        def __init__(self, network: nn.Module) -> None:
            self.network = network

        def _save_pretrained(self, save_directory: Path) -> None:
            from safetensors.torch import save_file

            weights = {name: value.contiguous() for name, value in self.network.state_dict().items()}
            save_file(weights, save_directory / "model.safetensors", metadata={"format": "pt"})

        @classmethod
        def _from_pretrained(cls, *, model_id: str, kind: type[PairNetwork], **_: Any) -> PairNetwork:
            return _read_network(kind, Path(model_id))

        def generate_model_card(self, text: str | None = None) -> Any:
            return hub.ModelCard(text or _SHORT_CARD)

    return Published


_SHORT_CARD = """---
library_name: frevl
tags:
- frevl
- frozen-embeddings
---

# A FrEVL fusion network

It reads frozen embeddings of an image and a text; which encoders made them, and how good it is, was not recorded here.
"""


def _read_network(kind: type[Network], folder: Path) -> Network:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    whole_run = (folder / "run.json").is_file()
    names = ("run.json", "weights.safetensors") if whole_run else ("config.json", "model.safetensors")
    for name in names:
        if not (folder / name).is_file():
            raise RunError(f"{folder}: expected 'config.json' and 'model.safetensors', or a run; '{name}' is missing")
    try:
        settings = json.loads((folder / names[0]).read_text(encoding="utf-8"))
        if whole_run:
            if settings["network_name"] != kind.key:
                raise RunError(
                    f"{folder}: expected a run of a {kind.key}, found one of a "
                    f"{settings['network_name']}; open it with Scorer.open"
                )
            settings = settings["network_settings"]
        network = kind(**settings)
        network.load_state_dict(load_file(folder / names[1]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{folder}: the network is damaged or of another kind ({_brief(error)})") from error
    return network.eval()


def _fetched(model: str, revision: str | None, patterns: list[str], **options: Any) -> Path:
    hub = _library()
    wanted = {"revision": revision, "allow_patterns": patterns, **options}
    try:
        return Path(hub.snapshot_download(model, **{**wanted, "local_files_only": True}))
    except hub.errors.LocalEntryNotFoundError:
        pass  # not in the cache: below it is fetched
    # A name that cannot be one is refused with ValueError.
    except ValueError as error:
        raise RunError(f"'{model}': expected a folder or an id on the hub, found neither ({_brief(error)})") from None
    try:
        return Path(hub.snapshot_download(model, **wanted))
    # Without network the hub's library fails with its own, the HTTP library's or the system's exceptions.
    except Exception as error:
        named = model if revision is None else f"{model}@{revision}"
        raise RunError(
            f"'{named}' is neither a folder nor in the hub's cache, and cannot be fetched ({_brief(error)}); check the "
            "name and the network, or copy its folder here and name that"
        ) from None


def _library() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise MissingExtraError("huggingface_hub", "hf") from None
    return huggingface_hub


def _unsent(repository: str, error: Exception) -> RunError:
    return RunError(
        f"Nothing was sent to '{repository}' ({_brief(error)}); check the name and the network, and log in with: "
        "hf auth login"
    )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
