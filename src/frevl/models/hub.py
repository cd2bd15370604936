"""Save and load networks in files and on a model hub, with the mixin of ``huggingface_hub``.

A published folder is what the mixin writes: ``config.json`` (the network's settings) and ``model.safetensors``. A run's
folder (``run.json``, ``weights.safetensors``) can be published as a whole, and a network can be loaded from either.
Nothing is ever unpickled, and a network is never larger than the weights next to its settings: see `restored`.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from frevl.errors import FrevlError, MissingExtraError, RunError, UsageError
from frevl.files import read_record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frevl.models.interface import PairNetwork

__all__ = [
    "LOCAL_FOLDERS",
    "POSTERIOR_FILE",
    "PREFIX",
    "RUN_FILES",
    "brief",
    "hub_library",
    "load_network",
    "not_finite",
    "not_sent",
    "push_network",
    "restored",
    "run_folder",
    "save_network",
    "weights_digest",
]

PREFIX = "hf:"
"""Prefix of a run's id on the hub, accepted wherever a run's folder is expected."""

RUN_FILES = ("run.json", "weights.safetensors", "seen.safetensors")
"""The files of a published run."""

POSTERIOR_FILE = "posterior.safetensors"
"""Additional file of a run if the posterior of its last layer is known: `frevl.runs.posterior`."""

LOCAL_FOLDERS = re.compile(r"(?<![\w.:])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")
"""Matches folders of this machine in a text, which are not published."""

Network = TypeVar("Network", bound="PairNetwork")


def save_network(
    network: nn.Module, folder: str | Path, settings: Mapping[str, Any], *, card: str | None = None
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``README.md``.

    Args:
        network: Any module.
        folder: Created if missing; an existing card is kept.
        settings: Arguments that build the network; written to ``config.json``.
        card: Text of the model card, for example from `model_card`; None writes a short one without results.

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
    """Upload a network to the hub.

    Args:
        network: Any module.
        repository: Id on the hub; created if missing.
        settings: Arguments that build the network.
        card: As in `save_network`.
        options: Passed to the mixin's ``push_to_hub``: ``private``, ``token``, ``branch``, ...

    Returns:
        The URL of the commit.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        RunError: The hub refuses the upload or cannot be reached.
    """
    published = _published()(network)
    try:
        return str(
            published.push_to_hub(repository, config=dict(settings), model_card_kwargs={"text": card}, **options)
        )
    # The hub's library raises its own exceptions, those of the HTTP library, and those of the system.
    except Exception as error:
        raise not_sent(repository, error) from None


def load_network(kind: type[Network], model: str | Path, *, revision: str | None = None, **options: Any) -> Network:
    """Build a network from a folder or from the hub.

    Args:
        kind: Class of the network, built with the settings in ``config.json``, or in the ``run.json`` of a run.
        model: Folder, or id on the hub.
        revision: Branch, tag or commit on the hub.
        options: Passed to the hub's download: ``cache_dir``, ``force_download``, ``local_files_only``, ``token``.

    Raises:
        MissingExtraError: ``model`` is not a folder, and ``huggingface_hub`` is not installed.
        RunError: No network of this kind was found, it is damaged, or the hub cannot be reached.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = _fetched(str(model), revision, ["*.json", "*.safetensors"], **options)
    return _read_network(kind, folder)  # not with the mixin, which trusts the contents of a folder


def weights_digest(path: str | Path) -> str:
    """Return the SHA-256 of a run's weights in hexadecimal digits, which identify the run whatever else changes.

    Raises:
        RunError: The run is on a hub and cannot be downloaded.
        OSError: The weights cannot be read.
    """
    return hashlib.sha256((run_folder(path) / "weights.safetensors").read_bytes()).hexdigest()


def run_folder(path: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a run; for ``hf:NAME[@REVISION]`` the one in the hub's cache, downloaded if missing.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        RunError: The hub has no such run, or cannot be reached.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    model, _, named = str(path).removeprefix(PREFIX).partition("@")
    return _fetched(model, revision or named or None, [*RUN_FILES, POSTERIOR_FILE])


def restored(make: Callable[[], Network], weights: Path) -> Network:
    """Build a network and load its weights, without trusting its settings.

    It is built twice: first without allocating its numbers, to check that it needs no more tensors and numbers than the
    file holds. Thus settings with a million layers are refused before anything is allocated.

    Args:
        make: Builds the network, with any weights.
        weights: The safetensors file of its weights.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: Settings and weights do not belong together, or a weight is not finite.
        OSError: The weights file cannot be read.
        SafetensorError: The weights file is damaged.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(weights, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118  (it is no mapping)
    try:
        with torch.device("meta"), _no_larger_than(len(shapes), sum(math.prod(shape) for shape in shapes)):
            make()
        network = make()
        state = load_file(weights)
        network.load_state_dict(state)
    except (FrevlError, ValueError, OSError):
        raise
    # Settings from a stranger can make a constructor fail in any way.
    except Exception as error:
        raise ValueError(f"the settings do not fit the weights ({brief(error)})") from error
    problem = not_finite(state)
    if problem:
        raise ValueError(problem)
    return network.eval()


def not_finite(state: Mapping[str, Tensor]) -> str:
    """Return a sentence naming the weight that is not finite; an empty string if all are finite.

    Args:
        state: Weights by name. The deviations of `ZScore` (``scale``, ``..._scale``) are infinite where an input is
            constant; nothing else may be.
    """
    import torch

    for name, value in state.items():
        # The sum of finite numbers may overflow, but a sum with a non-finite number is never finite.
        if not value.is_floating_point() or torch.isfinite(value.sum()):
            continue
        deviation = value.dim() == 1 and name.rpartition(".")[2].endswith("scale")
        bad = int((value.isnan() | (value == -torch.inf) if deviation else ~torch.isfinite(value)).sum())
        if bad:
            return f"{bad:,} of {value.numel():,} numbers in the weight '{name}' are not finite"
    return ""


@contextmanager
def _no_larger_than(tensors: int, numbers: int) -> Iterator[None]:
    """Abort the construction of modules in this thread that have more parameters than that."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread, seen = threading.get_ident(), [0, 0]

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter) -> None:
        if threading.get_ident() != thread:
            return
        seen[0] += 1
        seen[1] += parameter.numel()
        if seen[0] > tensors or seen[1] > numbers:
            raise ValueError(
                f"the settings ask for more than the {tensors:,} tensors with {numbers:,} numbers that the weights have"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@cache  # the hub's library takes a third of a second to import, so it is imported only when needed
def _published() -> Any:
    hub = hub_library()

    class Published(hub.ModelHubMixin, library_name="frevl", tags=["frevl"]):  # type: ignore[call-arg, misc, name-defined]
        """A network with the hub's methods; a wrapper, so that the network itself remains a plain module."""

        def __init__(self, network: nn.Module) -> None:
            self.network = network

        def _save_pretrained(self, save_directory: Path) -> None:
            from safetensors.torch import save_file

            weights = {name: value.contiguous() for name, value in self.network.state_dict().items()}
            problem = not_finite(weights)
            if problem:
                raise RunError(f"{save_directory}: the network is not written, because {problem}")
            save_file(weights, save_directory / "model.safetensors", metadata={"format": "pt"})

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

This network reads frozen embeddings of an image and a text. Its encoders and its quality were not recorded here.
"""


def _read_network(kind: type[Network], folder: Path) -> Network:
    from safetensors import SafetensorError

    whole_run = (folder / "run.json").is_file()
    names = ("run.json", "weights.safetensors") if whole_run else ("config.json", "model.safetensors")
    for name in names:
        if not (folder / name).is_file():
            raise RunError(f"{folder}: expected 'config.json' and 'model.safetensors', or a run; '{name}' is missing")
    try:
        settings = read_record(folder / names[0])
        if whole_run:
            if settings["network_name"] != kind.key:
                raise RunError(
                    f"{folder}: expected a run of a {kind.key}, found one of a "
                    f"{str(settings['network_name'])[:80]}; open it with Scorer.open"
                )
            settings = settings["network_settings"]
        return restored(lambda: kind(**settings), folder / names[1])
    except (OSError, ValueError, KeyError, TypeError, UsageError, SafetensorError) as error:
        raise RunError(f"{folder}: the network is damaged or of another kind ({brief(error)})") from error


def _fetched(model: str, revision: str | None, patterns: list[str], **options: Any) -> Path:
    hub = hub_library()
    wanted = {"revision": revision, "allow_patterns": patterns, **options}
    try:
        return Path(hub.snapshot_download(model, **{**wanted, "local_files_only": True}))
    except hub.errors.LocalEntryNotFoundError:
        pass  # not in the cache: downloaded below
    # An invalid name is refused with ValueError.
    except ValueError as error:
        raise RunError(f"'{model}': expected a folder or an id on the hub, found neither ({brief(error)})") from None
    try:
        return Path(hub.snapshot_download(model, **wanted))
    # Without a network, the hub's library raises its own exceptions, those of the HTTP library, and those of the
    # system.
    except Exception as error:
        named = model if revision is None else f"{model}@{revision}"
        raise RunError(
            f"'{named}' is neither a folder nor in the hub's cache, and cannot be fetched ({brief(error)}); check the "
            "name and the network, or copy its folder here and name that"
        ) from None


def hub_library() -> Any:
    """Import ``huggingface_hub``, or raise `MissingExtraError`."""
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise MissingExtraError("huggingface_hub", "hf") from None
    return huggingface_hub


def not_sent(repository: str, error: Exception) -> RunError:
    """Return the error to raise after a failed upload."""
    return RunError(
        f"Nothing was sent to '{repository}' ({brief(error)}); check the name and the network, and log in with: "
        "hf auth login"
    )


def brief(error: Exception) -> str:
    """Return the kind of an error and the start of its message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
