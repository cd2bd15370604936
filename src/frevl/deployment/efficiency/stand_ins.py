"""The networks of the paper's comparison, with random weights, which do not affect speed.

Sizes are those of the published configurations. CLIP (Radford et al. 2021) has separate towers. ViLT (Kim et al. 2021)
and the image-text matching head of BLIP (Li et al. 2022) are joint encoders, which read an image and a text together
and so must run for every pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from frevl.encoders.interface import Embeddings
from frevl.errors import library
from frevl.models.interface import PairNetwork
from frevl.runs.run import Run

if TYPE_CHECKING:  # the networks are also timed on machines that cannot write a store
    from frevl.store.reader import Store
    from frevl.store.towers import Modality, Tower
    from frevl.store.writer import Item

__all__ = [
    "CLIPS",
    "JOINT",
    "ClipTowers",
    "Joint",
    "clip_config",
    "drawn_embeddings",
    "drawn_items",
    "drawn_run",
    "drawn_towers",
    "open_clip_towers",
    "open_joint",
    "write_drawn",
]

# (image side, patch, image width, image layers, text width, text layers, width of the common space)
CLIPS: dict[str, tuple[int, int, int, int, int, int, int]] = {
    "CLIP ViT-B/32": (224, 32, 768, 12, 512, 12, 512),
    "CLIP ViT-L/14": (224, 14, 1024, 24, 768, 12, 768),
}
CLIP_TEXT_TOKENS = 77  # its processor pads to this length
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class ClipTowers:
    """A CLIP with separately callable towers.

    Attributes:
        model: The transformers ``CLIPModel``.
        dim: Width of an embedding.
        side: Side of an image in pixels.
        text_tokens: Tokens of a text.
    """

    model: Any
    dim: int
    side: int
    text_tokens: int

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return ``(count, 3, side, side)`` pixels and ``(count, text_tokens)`` ids."""
        vocabulary = self.model.config.text_config.vocab_size
        return torch.randn(count, 3, self.side, self.side), torch.randint(vocabulary, (count, self.text_tokens))

    def images(self, pixels: Tensor) -> Tensor:
        """Embed images: ``(n, dim)`` of unit length."""
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return nn.functional.normalize(self.model.visual_projection(pooled), dim=1)

    def texts(self, ids: Tensor) -> Tensor:
        """Embed texts: ``(n, dim)`` of unit length."""
        pooled = self.model.text_model(input_ids=ids).pooler_output
        return nn.functional.normalize(self.model.text_projection(pooled), dim=1)


@dataclass(frozen=True)
class Joint:
    """A joint encoder.

    Attributes:
        name: Description, with its input sizes.
        network: The transformers model.
        inputs: The network's inputs for a number of pairs.
    """

    name: str
    network: Any
    inputs: Callable[[int], dict[str, Tensor]]

    def score(self, inputs: dict[str, Tensor]) -> object:
        """Score the pairs of `inputs`."""
        return self.network(**inputs)


def clip_config(sizes: tuple[int, int, int, int, int, int, int], **text: int) -> Any:
    """Build a ``CLIPConfig``.

    Args:
        sizes: As in `CLIPS`.
        **text: Further fields of the text configuration.
    """
    side, patch, image_width, image_layers, text_width, text_layers, dim = sizes

    def tower(width: int, layers: int) -> dict[str, int]:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": max(1, width // _HEAD_WIDTH),
            "projection_dim": dim,
        }

    return library("transformers", "hf").CLIPConfig(
        vision_config={**tower(image_width, image_layers), "image_size": side, "patch_size": patch},
        text_config={**tower(text_width, text_layers), **text},
        projection_dim=dim,
    )


def open_clip_towers(name: str, *, device: str = "cpu") -> ClipTowers:
    """Build a CLIP from the table `CLIPS`.

    Args:
        name: Key in the table.
        device: Device of the weights; ``meta`` allocates none, which is enough to count operations.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    config = clip_config(CLIPS[name])
    with torch.device(device):
        model = library("transformers", "hf").CLIPModel(config).eval()
    return ClipTowers(model, config.projection_dim, CLIPS[name][0], CLIP_TEXT_TOKENS)


def _vilt(device: str) -> Joint:
    transformers = library("transformers", "hf")
    with torch.device(device):
        network = transformers.ViltForImageAndTextRetrieval(transformers.ViltConfig()).eval()

    def inputs(pairs: int) -> dict[str, Tensor]:
        # A 4:3 photo with a shorter side of 384 pixels, and the longest text it accepts.
        pixels = torch.randn(pairs, 3, 384, 512, device=device)
        return {"input_ids": torch.ones(pairs, 40, dtype=torch.long, device=device), "pixel_values": pixels}

    return Joint("ViLT-B/32 (384 x 512 pixels, 40 tokens)", network, inputs)


def _blip(device: str) -> Joint:
    transformers = library("transformers", "hf")
    # The configuration of the published image-text matching models: 384 pixels, 12 text layers of 12 heads.
    config = transformers.BlipConfig(
        vision_config={"image_size": 384},
        text_config={"num_attention_heads": 12, "encoder_hidden_size": 768},
    )
    with torch.device(device):
        network = transformers.BlipForImageTextRetrieval(config).eval()

    def inputs(pairs: int) -> dict[str, Tensor]:
        ids = torch.ones(pairs, 35, dtype=torch.long, device=device)
        pixels = torch.randn(pairs, 3, 384, 384, device=device)
        return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}

    return Joint("BLIP-B/16 image-text matching (384 x 384 pixels, 35 tokens)", network, inputs)


JOINT: dict[str, Callable[[str], Joint]] = {"ViLT": _vilt, "BLIP": _blip}


def open_joint(name: str, *, device: str = "cpu") -> Joint:
    """Build a joint encoder from the table `JOINT`; arguments as in `open_clip_towers`."""
    return JOINT[name](device)


def drawn_towers(image_dim: int, text_dim: int, *, tokens: bool = False) -> dict[str, Tower]:
    """Return the identities of two towers of random embeddings, by modality."""
    from frevl.store.towers import Tower

    sizes: dict[Modality, tuple[int, str]] = {
        "image": (image_dim, "7x7" if tokens else "pooled"),
        "text": (text_dim, "words" if tokens else "pooled"),
    }
    return {
        modality: Tower(
            name=f"drawn-{modality}",
            modality=modality,
            encoders=("drawn",),
            identity={"network": "random numbers", "tokens": kind, "dtype": "float16"},
            dim=dim,
            canaries=np.zeros((0, dim), np.float32),
        )
        for modality, (dim, kind) in sizes.items()
    }


def drawn_embeddings(count: int, dim: int, seed: int = 0) -> Embeddings:
    """Return pooled random embeddings of unit length in float16."""
    values = np.random.default_rng(seed).standard_normal((count, 1, dim), np.float32)
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    return Embeddings(values.astype(np.float16), np.ones((count, 1), bool))


def drawn_items(modality: str, count: int, first: int = 0) -> list[Item]:
    """Return items named ``image 0``, ``image 1``, ... or ``text 0``, ..."""
    from frevl.store.writer import Item

    names = [f"{modality} {number}" for number in range(first, first + count)]
    return [Item(name, f"{number:032x}", 1) for number, name in enumerate(names, first)]


def write_drawn(path: Path, towers: dict[str, Tower], *, images: int, texts: int) -> Store:
    """Write a store of pooled random embeddings."""
    from frevl.store.reader import Store
    from frevl.store.writer import StoreWriter

    with StoreWriter(path) as writer:
        writer.register(list(towers.values()))
        for modality, count in (("image", images), ("text", texts)):
            tower = towers[modality]
            embeddings = {tower.name: drawn_embeddings(count, tower.dim)}
            writer.append(tower.modality, drawn_items(modality, count), embeddings)
    return Store.open(path)


def drawn_run(network: PairNetwork, towers: dict[str, Tower], *, model: str, labels: int = 0) -> Run:
    """Return an in-memory run of a network with random weights.

    Args:
        network: A network of this package.
        towers: From `drawn_towers`.
        model: Name of the model.
        labels: Number of classes; 0 for matching.
    """
    return Run(
        path=Path("drawn"),
        model=model,
        task="classification" if labels else "matching",
        network_name=network.key,
        network_settings=network.settings,
        labels=[str(number) for number in range(labels)],
        encoders=["drawn"],
        towers={modality: {tower.name: tower.identity} for modality, tower in towers.items()},
        calibration={"scale": 1.0, "offset": 0.0},
        settings={},
        results={},
        provenance={"seed": 0},
        train_image_hashes=np.zeros(0, np.uint64),
        network=network.eval(),
    )
