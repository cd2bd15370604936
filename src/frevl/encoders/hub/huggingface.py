"""Encoders of the transformers library, from a model hub or a folder.

``hf:MODEL[@REVISION]``, or ``hf:VISION[@REVISION]+TEXT[@REVISION]`` for the image tower of one model and the text tower
of another. Options come at the end: ``#int8`` for 8-bit weights, ``#torch`` for no export to ONNX, and
``#layers=-1,-4`` for chosen hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from frevl.encoders.hub.checkpoint import Checkpoint, open_checkpoint
from frevl.encoders.hub.image_tower import image_tower
from frevl.encoders.hub.networks import JOINT, load_config
from frevl.encoders.hub.text_tower import text_tower
from frevl.encoders.interface import ImageTower, TextTower
from frevl.errors import EncoderError, UsageError, nearest

__all__ = ["Request", "load_towers", "parse"]

_OPTIONS = ("int8", "torch", "layers=")


@dataclass(frozen=True)
class Request:
    """The models and options that an encoder name requests.

    Attributes:
        models: One or two pairs of a model (id or folder) and its revision (or None).
        choice: ``auto``, ``torch`` or ``int8``.
        layers: Requested hidden states; empty for the network's own output.
    """

    models: tuple[tuple[str, str | None], ...]
    choice: str
    layers: tuple[int, ...]


def parse(name: str) -> Request:
    """Parse a name without its prefix ``hf:``.

    Raises:
        UsageError: The name has no model, more than two, or an unknown option.
    """
    models, *options = [name] if Path(name).is_dir() else name.split("#")
    choice = "auto"
    layers: tuple[int, ...] = ()
    for option in options:
        if option.startswith("layers=") and not layers:
            layers = _layers(name, option.removeprefix("layers="))
        elif option in ("int8", "torch") and choice in ("auto", option):
            choice = option
        else:
            raise UsageError(f"'hf:{name}': there is no option '#{option}' here. {nearest(option, _OPTIONS)}")
    parts = [models] if Path(models).is_dir() else models.split("+")
    if len(parts) > 2 or not all(parts):
        raise UsageError(f"'hf:{name}': expected hf:MODEL or hf:VISION+TEXT, where each part is a hub id or a folder")
    return Request(tuple(_model(part) for part in parts), choice, layers)


def load_towers(name: str, tokens: str) -> tuple[ImageTower | None, TextTower | None]:
    """Load the towers that a name requests; for a single model, every tower it has.

    Args:
        name: Encoder name without its prefix ``hf:``.
        tokens: ``pooled``, or the size of an image grid, which means word tokens for texts.

    Raises:
        UsageError: The name is wrong, or a layer or grid does not exist.
        EncoderError: A model cannot be found, downloaded or loaded, or lacks the requested tower.
        MissingExtraError: A library is missing.
    """
    request = parse(name)
    checkpoints = [open_checkpoint(model, revision) for model, revision in request.models]
    sees, reads = [_sees(one) for one in checkpoints], [_reads(one) for one in checkpoints]
    if len(checkpoints) == 2 and not (sees[0] and reads[1]):
        wrong, modality = (0, "image") if not sees[0] else (1, "text")
        raise EncoderError(
            f"'{checkpoints[wrong].model}' has no {modality} tower; expected hf:VISION+TEXT, in this order"
        )
    if not (sees[0] or reads[-1]):
        raise EncoderError(
            f"'{checkpoints[0].model}' is of the type '{load_config(checkpoints[0]).model_type}', which frevl cannot "
            f"take apart; expected a model of images and texts ({', '.join(JOINT)}), or one of images or texts alone"
        )
    image = image_tower(checkpoints[0], tokens, request.layers, request.choice) if sees[0] else None
    text = text_tower(checkpoints[-1], tokens, request.layers, request.choice) if reads[-1] else None
    return image, text


def _model(part: str) -> tuple[str, str | None]:
    if Path(part).is_dir() or "@" not in part:
        return part, None
    model, _, revision = part.rpartition("@")
    if not model or not revision:
        raise UsageError(f"'{part}': expected MODEL@REVISION, with a branch, tag or commit after the '@'")
    return model, revision


def _layers(name: str, written: str) -> tuple[int, ...]:
    try:
        layers = tuple(int(layer) for layer in written.split(","))
    except ValueError:
        raise UsageError(
            f"'hf:{name}': layers are integers separated by commas, such as -1,-4; found '{written}'"
        ) from None
    if len(set(layers)) < len(layers):
        raise UsageError(f"'hf:{name}': a layer occurs twice in '{written}'")
    return layers


def _sees(checkpoint: Checkpoint) -> bool:
    """Return whether a model has an image tower."""
    config = load_config(checkpoint)
    return config.model_type in JOINT or hasattr(config, "patch_size") or hasattr(config, "num_channels")


def _reads(checkpoint: Checkpoint) -> bool:
    """Return whether a model has a text tower."""
    config = load_config(checkpoint)
    return config.model_type in JOINT or hasattr(config, "vocab_size")
