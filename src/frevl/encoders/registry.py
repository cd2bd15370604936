"""The closed table of frozen encoders, and loading one by name.

An encoder is an image tower, a text tower, or one of each. A tower is the unit of identity: it corresponds to one
column of a store and has one fingerprint, so that two encoders with the same text tower embed texts once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from frevl.encoders.interface import TOKENS, Encoder, ImageTower, TextTower
from frevl.errors import UsageError, nearest

__all__ = ["ENCODERS", "KNOWN", "PREFIXES", "KnownEncoder", "load_encoder", "with_layers"]


# Imported inside the functions: towers need libraries that are optional or slow to import.
def _packaged(image: str, tokens: str) -> tuple[ImageTower, TextTower]:
    from frevl.encoders.packaged import image_tower, text_tower

    return image_tower(image, tokens), text_tower("minilm-l6", tokens)


def _pooled_only(name: str, tokens: str) -> None:
    if tokens != "pooled":
        raise UsageError(
            f"The encoder '{name}' is pooled only and cannot keep the tokens '{tokens}'; for tokens use "
            "'packaged', 'packaged-lite1' or 'packaged-lite2'."
        )


def _packaged_colour(tokens: str) -> tuple[ImageTower, TextTower]:
    _pooled_only("packaged-colour", tokens)
    from frevl.encoders.packaged import colour_image_tower, text_tower

    return colour_image_tower(), text_tower("minilm-l6", tokens)


def _packaged_deep(tokens: str) -> tuple[ImageTower, TextTower]:
    _pooled_only("packaged-deep", tokens)
    from frevl.encoders.packaged import deep_image_tower, deep_text_tower

    return deep_image_tower(), deep_text_tower()


def _toy(image: str, tokens: str) -> tuple[ImageTower, TextTower]:
    from frevl.encoders.toy import image_tower, text_tower

    return image_tower(image, tokens), text_tower("toy-text", tokens)


ENCODERS: dict[str, Callable[[str], tuple[ImageTower | None, TextTower | None]]] = {
    "packaged": partial(_packaged, "efficientnet-lite0"),
    "packaged-lite1": partial(_packaged, "efficientnet-lite1"),
    "packaged-lite2": partial(_packaged, "efficientnet-lite2"),
    "packaged-deep": _packaged_deep,
    "packaged-colour": _packaged_colour,
    "toy": partial(_toy, "toy-image"),
    "toy2": partial(_toy, "toy2-image"),
}
"""Every encoder by name: a function from a kind of tokens to the two towers."""


def _huggingface(model: str, tokens: str) -> tuple[ImageTower | None, TextTower | None]:
    from frevl.encoders.hub.huggingface import load_towers

    return load_towers(model, tokens)


def _openclip(model: str, tokens: str) -> tuple[ImageTower | None, TextTower | None]:
    from frevl.encoders.hub.openclip import load_towers

    return load_towers(model, tokens)


PREFIXES: dict[str, Callable[[str, str], tuple[ImageTower | None, TextTower | None]]] = {
    "hf:": _huggingface,
    "openclip:": _openclip,
}
"""The two open-ended entries: a prefix, and a function from the rest of the name and a kind of tokens to the towers."""


def with_layers(name: str, layers: Sequence[int]) -> str:
    """Add chosen hidden layers to an encoder's name, so that the name contains all that loading needs.

    Args:
        name: Name of an encoder, as for `load_encoder`.
        layers: 0 for the embedding layer, -1 for the last hidden state; if empty, the name is returned unchanged.

    Raises:
        UsageError: The encoder has no layers to choose from; only ``hf:`` encoders do.
    """
    if not layers:
        return name
    if not name.startswith("hf:"):
        raise UsageError(f"--layers works with encoders from a model hub (hf:MODEL), not with '{name}'; leave it out")
    return f"{name}#layers={','.join(map(str, layers))}"


def load_encoder(name: str, *, tokens: str = "pooled") -> Encoder:
    """Load an encoder by name.

    The first use of a packaged encoder takes a few seconds, because the network is exported to the user's cache folder.

    Args:
        name: One of `ENCODERS`, ``hf:MODEL`` (see `frevl.encoders.hub.huggingface`) or
            ``openclip:ARCHITECTURE/WEIGHTS`` (see `frevl.encoders.hub.openclip`).
        tokens: One of `TOKENS`. ``"7x7"``, ``"4x4"`` and ``"2x2"`` keep a grid of image tokens and the word
            tokens of texts; ``"pooled"`` keeps their mean. ``packaged-deep`` and
            ``packaged-colour`` are pooled only.

    Returns:
        The encoder, ready to embed.

    Raises:
        UsageError: Unknown name or kind of tokens, or tokens that the encoder does not support.
        MissingExtraError: The encoder's libraries are not installed.
        EncoderError: The encoder is damaged or cannot be downloaded, or its cache folder cannot be used.
    """
    if not isinstance(name, str):
        raise UsageError(f"The name of an encoder is a string such as 'packaged', found {type(name).__name__}")
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    if prefix is None and name not in ENCODERS:
        hint = f" A model on a hub is written 'hf:{name}'." if "/" in name else ""
        raise UsageError(f"There is no encoder '{name}'. {nearest(name, ENCODERS)}{hint}")
    if not isinstance(tokens, str) or tokens not in TOKENS:
        raise UsageError(f"There is no kind of tokens '{tokens}'. {nearest(tokens, TOKENS)}")
    image, text = ENCODERS[name](tokens) if prefix is None else PREFIXES[prefix](name.removeprefix(prefix), tokens)
    return Encoder(name, image, text)


@dataclass(frozen=True)
class KnownEncoder:
    """One line of the list of known encoders.

    Attributes:
        name: Name to pass to `frevl.load_encoder`.
        image_dim: Width of an image embedding; None without an image tower.
        text_dim: Width of a text embedding; None without a text tower.
        millions: Number of parameters of all its towers, in millions.
        licence: Licence of the weights.
        common_space: Whether images and texts share a space, so that their cosine is meaningful.
        note: A short description.
        languages: Languages on which its text tower was trained; None without a text tower.
    """

    name: str
    image_dim: int | None
    text_dim: int | None
    millions: int
    licence: str
    common_space: bool
    note: str
    languages: str | None = "English"


KNOWN = (
    KnownEncoder("packaged", 1280, 384, 26, "Apache-2.0", False, "EfficientNet-Lite0 and MiniLM-L6, no download"),
    KnownEncoder("packaged-lite1", 1280, 384, 27, "Apache-2.0", False, "EfficientNet-Lite1 and MiniLM-L6"),
    KnownEncoder("packaged-lite2", 1280, 384, 28, "Apache-2.0", False, "EfficientNet-Lite2 and MiniLM-L6"),
    KnownEncoder("packaged-deep", 12064, 2688, 26, "Apache-2.0", False, "several depths of packaged; pooled only"),
    KnownEncoder("packaged-colour", 1696, 384, 26, "Apache-2.0", False, "first layers, colours; add to packaged"),
    KnownEncoder("hf:openai/clip-vit-base-patch32", 512, 512, 151, "MIT (code)", True, "CLIP ViT-B/32"),
    KnownEncoder("hf:openai/clip-vit-base-patch16", 512, 512, 150, "MIT (code)", True, "CLIP ViT-B/16"),
    KnownEncoder("hf:openai/clip-vit-large-patch14", 768, 768, 428, "MIT (code)", True, "CLIP ViT-L/14"),
    KnownEncoder("hf:google/siglip-base-patch16-224", 768, 768, 203, "Apache-2.0", True, "SigLIP B/16"),
    KnownEncoder("hf:google/siglip2-base-patch16-224", 768, 768, 375, "Apache-2.0", True, "SigLIP 2 B/16", "over 100"),
    KnownEncoder("hf:facebook/dinov2-small", 384, None, 22, "Apache-2.0", False, "DINOv2 S/14, images only", None),
    KnownEncoder("hf:facebook/dinov2-base", 768, None, 87, "Apache-2.0", False, "DINOv2 B/14, images only", None),
    KnownEncoder("hf:facebook/dinov2-large", 1024, None, 304, "Apache-2.0", False, "DINOv2 L/14, images only", None),
    KnownEncoder("hf:sentence-transformers/all-MiniLM-L6-v2", None, 384, 23, "Apache-2.0", False, "texts only"),
    KnownEncoder("hf:sentence-transformers/all-mpnet-base-v2", None, 768, 109, "Apache-2.0", False, "texts only"),
    KnownEncoder("hf:BAAI/bge-small-en-v1.5", None, 384, 33, "MIT", False, "texts only"),
    KnownEncoder("hf:BAAI/bge-base-en-v1.5", None, 768, 109, "MIT", False, "texts only"),
    KnownEncoder("toy", 64, 48, 0, "MIT", False, "no weights; for tests", "any"),
)
"""Encoders known to work well."""
