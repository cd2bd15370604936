"""Encoders of the open_clip library: ``openclip:ARCHITECTURE/TAG`` or ``openclip:ARCHITECTURE/FILE``.

The architecture is one of open_clip's, a tag names weights that it knows, a file holds the user's own weights. Options
come at the end: ``#int8`` and ``#torch``, as for `frevl.encoders.hub.huggingface`. Embeddings are pooled only and lie
in the common space of images and texts.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frevl.encoders.hub.checkpoint import digest_of, file_digest
from frevl.encoders.hub.image_tower import refuse_threads
from frevl.encoders.hub.text_tower import pieces_of
from frevl.encoders.interface import Embeddings, ImageTower, TextTower, keep_tokens, readable
from frevl.encoders.onnx_session import Source
from frevl.encoders.runtime import Network, open_runtime
from frevl.encoders.unreadable_texts import Pieces, UnreadTexts
from frevl.errors import EncoderError, UsageError, library, nearest

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["OpenClipImageTower", "OpenClipTextTower", "load_towers"]

_LOOKED_AT = 2000  # characters of a text, more than any of these networks reads
_NEVER_REDUCED = 1 << 20  # as for the transformers library: keeps the pixels that the model's own pipeline would see


@dataclass(frozen=True)
class OpenClipImageTower:
    """The image network of a model with open_clip's own preprocessing.

    Attributes:
        name: The tower's column in a store.
        dim: Width of an embedding.
        identity: Everything that can change an embedding, field by field.
        transform: Turns an image into a tensor.
        network: Runs on ``(n, 3, height, width)`` float32.
        shortest: Target length of the shorter side in pixels; 0 if both sides have a fixed target.
        target: The ``target`` to pass to `frevl.encoders.images.read_image`.
    """

    name: str
    dim: int
    identity: dict[str, str]
    transform: Any
    network: Network
    shortest: int
    target: int = _NEVER_REDUCED

    @property
    def batch_size(self) -> int:
        """Number of prepared images to pass at once."""
        return self.network.batch_size

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the output of open_clip's preprocessing for an image: ``(3, height, width)`` float32.

        Raises:
            ImageError: The image is so narrow that its shorter side cannot be scaled to the network's size.
        """
        refuse_threads(image, self.shortest)
        pixels: np.ndarray = self.transform(image).numpy()
        return pixels

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed prepared images."""
        return Embeddings.of([keep_tokens(output, "pooled") for output in self.network(prepared)], self.dim)


@dataclass(frozen=True)
class OpenClipTextTower:
    """The text network of a model with open_clip's own tokenizer, which pads every text to one length.

    Attributes:
        name: The tower's column in a store.
        dim: Width of an embedding.
        identity: Everything that can change an embedding, field by field.
        tokenizer: Turns texts into ids.
        network: Runs on ``(n, length)`` ids.
    """

    name: str
    dim: int
    identity: dict[str, str]
    tokenizer: Any
    network: Network

    @property
    def batch_size(self) -> int:
        """Number of texts to pass at once."""
        return self.network.batch_size

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts."""
        inputs = list(_ids(self.tokenizer, texts)) if texts else []
        return Embeddings.of([keep_tokens(output, "pooled") for output in self.network(inputs)], self.dim)

    def truncated(self, texts: Sequence[str]) -> int:
        """Count the texts with more pieces than the network can read."""
        if not texts:
            return 0
        padding = _ids(self.tokenizer, [""])
        length = padding.shape[1]
        longer = np.asarray(self.tokenizer([readable(text) for text in texts], context_length=2 * length))
        return int((longer[:, length:] != padding[0, -1]).any(axis=1).sum())

    def unread(self, texts: Sequence[str]) -> np.ndarray:
        """Return the share of each text's letters that the tokenizer does not know, ``(n,)`` float32."""
        return self._unread.shares(texts)

    @cached_property
    def _unread(self) -> UnreadTexts:
        return UnreadTexts(lambda texts: _pieces(self.tokenizer, texts))


def load_towers(name: str, tokens: str) -> tuple[ImageTower | None, TextTower | None]:
    """Load both towers of a model.

    Args:
        name: ``ARCHITECTURE/TAG`` or ``ARCHITECTURE/FILE``, with options.
        tokens: ``pooled``; other kinds are refused.

    Raises:
        UsageError: Unknown architecture, tag, option or kind of tokens.
        MissingExtraError: open_clip is not installed.
        EncoderError: The weights cannot be downloaded or do not fit the architecture.
    """
    architecture, weights, choice = _parts_of(name)
    if tokens != "pooled":
        raise UsageError(
            f"'openclip:{name}' is pooled only and cannot keep the tokens '{tokens}'; use hf:MODEL for tokens"
        )
    library = _open_clip()
    if architecture not in library.list_models():
        raise UsageError(
            f"open_clip has no architecture '{architecture}'. {_close(architecture, library.list_models())}"
        )
    file, revision = _weights(library, architecture, weights)
    model, transform, tokenizer = _load(library, architecture, weights)
    settings = library.get_model_config(architecture)
    common = _identity_of_both(model, digest := file_digest(file), digest_of(settings), revision, choice)
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", f"openclip-{architecture}-{Path(weights).stem}").strip("-")
    mark = "-int8" if choice == "int8" else ""
    key = [digest, digest_of(settings)]
    pixels = np.stack([transform(_example_image(seed)).numpy() for seed in range(2)])
    image_network = open_runtime(
        f"{stem}-image", digest_of([*key, "image"]), lambda: _source(model, "encode_image", pixels), choice
    )
    ids = _ids(tokenizer, ["a dog on a beach", ""])
    text_network = open_runtime(
        f"{stem}-text", digest_of([*key, "text"]), lambda: _source(model, "encode_text", ids), choice
    )
    preparation = json.dumps(model.visual.preprocess_cfg, sort_keys=True, default=str)
    return (
        OpenClipImageTower(
            name=f"{stem}-image{mark}",
            dim=image_network([pixels[0]])[0].shape[-1],
            identity={
                **common,
                "tower": f"{stem}-image{mark}",
                "preprocessing": f"RGB, upright, over white; open_clip {preparation}",
            },
            transform=transform,
            network=image_network,
            shortest=_shortest(model.visual.preprocess_cfg),
        ),
        OpenClipTextTower(
            name=f"{stem}-text{mark}",
            dim=text_network([ids[0]])[0].shape[-1],
            identity={
                **common,
                "tower": f"{stem}-text{mark}",
                "preprocessing": f"{type(tokenizer).__name__}, padded to {ids.shape[1]}",
            },
            tokenizer=tokenizer,
            network=text_network,
        ),
    )


def _parts_of(name: str) -> tuple[str, str, str]:
    """Return the architecture, the tag or file of the weights, and how they run: ``auto``, ``int8`` or ``torch``."""
    model_name, *options = name.split("#")
    architecture, slash, weights = model_name.partition("/")
    choice = options[0] if options else "auto"
    if not architecture or not slash or not weights:
        raise UsageError(f"'openclip:{name}': expected openclip:ARCHITECTURE/TAG or openclip:ARCHITECTURE/FILE")
    if len(options) > 1 or choice not in ("auto", "int8", "torch"):
        raise UsageError(
            f"'openclip:{name}': there is no option '#{options[-1]}' here. {nearest(choice, ('int8', 'torch'))}"
        )
    return architecture, weights, choice


def _identity_of_both(model: Any, weights: str, settings: str, revision: str, choice: str) -> dict[str, str]:
    """Return what identifies both towers: the digests of weights and settings, the revision, and what they share."""
    common = {
        "weights": weights,
        "revision": revision,
        "configuration": settings,
        "tokens": "pooled",
        "output": "pooled by the network",
        "normalisation": "mean of tokens at unit length",
        **({"precision": "int8 weights"} if choice == "int8" else {}),
        "common_space": weights,
        "logit_scale": f"{float(model.logit_scale.exp()):.7g}",
    }
    if getattr(model, "logit_bias", None) is not None:
        common["logit_bias"] = f"{float(model.logit_bias):.7g}"
    return common


def _open_clip() -> Any:
    try:
        return library("open_clip", "openclip")
    # A torchvision built for another PyTorch fails on import, with RuntimeError or ImportError.
    except (ImportError, RuntimeError) as error:
        raise EncoderError(
            f"open_clip is installed but cannot be imported ({' '.join(str(error).split())[:150]}); install a "
            "torchvision that was built for the installed torch"
        ) from None


def _weights(library: Any, architecture: str, weights: str) -> tuple[Path, str]:
    """Return the weights file and the name of its revision, downloading it if a tag is given."""
    if Path(weights).is_file():
        return Path(weights), "none (a file)"
    tags = library.list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        raise UsageError(
            f"'{weights}' is neither a file nor weights that open_clip knows for '{architecture}'. "
            f"{nearest(weights, tags) if tags else 'It knows none; name a file.'}"
        )
    try:
        file = Path(library.download_pretrained(library.get_pretrained_cfg(architecture, weights)))
    # Without a network, the hub's library raises its own exceptions, those of the HTTP library, and those of the
    # system.
    except Exception as error:
        raise EncoderError(
            f"The weights '{weights}' of open_clip's '{architecture}' are not in the cache and cannot be downloaded "
            f"({type(error).__name__}). Download them on a connected machine and copy the cache folder (HF_HOME) or "
            f"the file here, then use openclip:{architecture}/FILE"
        ) from None
    commit = file.parent.name if file.parent.parent.name == "snapshots" else "no commit"
    return file, f"{weights} ({commit})"


def _load(library: Any, architecture: str, weights: str) -> tuple[Any, Any, Any]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            model, _, transform = library.create_model_and_transforms(architecture, pretrained=weights)
            tokenizer = library.get_tokenizer(architecture)
        # Weights that do not fit cause errors in unpickling, in the names or in the shapes.
        except Exception as error:
            raise EncoderError(
                f"'{weights}' does not hold the weights of open_clip's '{architecture}' "
                f"({' '.join(str(error).split())[:150]})"
            ) from None
    return model.eval().requires_grad_(False), transform, tokenizer


def _source(model: Any, method: str, example: np.ndarray) -> Source:
    import torch

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, items: torch.Tensor) -> torch.Tensor:
            if items.is_floating_point():
                items = items.to(next(self.model.parameters()).dtype)
            pooled: torch.Tensor = getattr(self.model, method)(items)
            return pooled[:, None]

    return Source(Tower().eval(), {0: "batch"}, [example])


def _shortest(preparation: Mapping[str, Any]) -> int:
    size = preparation.get("size", 0)
    if preparation.get("resize_mode", "shortest") != "shortest":
        return 0
    return int(size if isinstance(size, int) else min(size))


def _ids(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    ids: np.ndarray = tokenizer([readable(text) for text in texts]).numpy().astype(np.int64)
    return ids


def _pieces(tokenizer: Any, texts: Sequence[str]) -> list[Pieces]:
    cleaned = [tokenizer.clean_fn(readable(text)[:_LOOKED_AT]) for text in texts]
    if not hasattr(tokenizer, "byte_decoder"):  # a wrapper around a tokenizer of the transformers library
        return pieces_of(tokenizer.tokenizer, cleaned, tokenizer.context_length)
    return [_pieces_of_bytes(tokenizer, text) for text in cleaned]


def _pieces_of_bytes(tokenizer: Any, text: str) -> Pieces:
    """Locate the pieces of CLIP's tokenizer, which are runs of bytes; a character may span several."""
    # The character of every byte, by position and without blanks, as in the pieces.
    letters = [place for place, sign in enumerate(text) for _ in sign.encode() if not sign.isspace()]
    spans, start = [], 0
    for id_ in tokenizer.encode(text):
        end = start + len(tokenizer.decoder[id_].removesuffix("</w>"))
        if start < end <= len(letters):
            spans.append((letters[start], letters[end - 1] + 1, True))
        start = end
    return Pieces(text, spans)


def _close(name: str, valid: Sequence[str]) -> str:
    """Suggest the closest of many names; listing them all would fill the screen."""
    return nearest(name, valid).partition(" Valid: ")[0] + " open_clip.list_models() lists them."


def _example_image(seed: int) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (47, 61, 3), dtype=np.uint8))
