"""Image towers of the transformers library: CLIP, SigLIP, SigLIP 2, Chinese-CLIP, DINOv2 and other patch networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from frevl.encoders.hub.checkpoint import Checkpoint, digest_of, slug
from frevl.encoders.hub.networks import JOINT, image_source, load_config, quiet_transformers
from frevl.encoders.interface import Embeddings, keep_layers
from frevl.encoders.onnx_session import Source
from frevl.encoders.runtime import Network, open_runtime
from frevl.errors import EncoderError, ImageError, UsageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["HuggingFaceImageTower", "common_space", "hidden_layers", "image_tower", "refuse_threads"]

# Whatever size the network expects, the decoder never reduces an image: the pixels are those that the model's own
# pipeline would see.
_NEVER_REDUCED = 1 << 20
# The fields that determine the pixels a network sees; a processor's other fields do not.
_PIXEL_FIELDS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_pad", "pad_size", "patch_size", "max_num_patches",
)  # fmt: skip
_MOST_SPECIAL = 16  # class and register tokens before the patches


@dataclass(frozen=True)
class HuggingFaceImageTower:
    """An image network with its own processor.

    Attributes:
        name: The tower's column in a store.
        dim: Width of an embedding.
        identity: Everything that can change an embedding, field by field.
        tokens: ``pooled``, ``7x7``, ``4x4`` or ``2x2``.
        layers: Number of hidden states concatenated; 0 for the network's own output.
        processor: The image processor of the transformers library (its Pillow version).
        network: Runs on ``(n, 3, height, width)`` float32.
        patch: Side of a patch in pixels.
        flexible: True for SigLIP 2 with images of any side lengths ("NaFlex").
        target: The ``target`` to pass to `frevl.encoders.images.read_image`.
    """

    name: str
    dim: int
    identity: dict[str, str]
    tokens: str
    layers: int
    processor: Any
    network: Network
    patch: int
    flexible: bool
    target: int = _NEVER_REDUCED

    @property
    def batch_size(self) -> int:
        """Number of prepared images to pass at once."""
        return self.network.batch_size

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the output of the model's own processor for an image: ``(3, height, width)`` float32.

        For SigLIP 2 with any side lengths: ``(patches + 1, values)``, see `unpack_patches`.

        Raises:
            ImageError: The image is so narrow that its shorter side cannot be scaled to the network's size.
        """
        return prepare(self.processor, image, flexible=self.flexible)

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed prepared images."""
        own = self.tokens == "pooled" and not self.layers
        items = []
        for pixels, tokens in zip(prepared, self.network(prepared), strict=True):
            shape = (1, 1) if own else grid_of(pixels, self.patch, flexible=self.flexible)
            first = 0 if self.flexible else len(tokens) - shape[0] * shape[1]
            patches = tokens[first : first + shape[0] * shape[1]]
            items.append(keep_layers(patches, self.tokens, max(1, self.layers), shape))
        return Embeddings.of(items, self.dim)


def prepare(processor: Any, image: Image.Image, *, flexible: bool) -> np.ndarray:
    """Turn an upright RGB image into a network's input with its processor; see `HuggingFaceImageTower.prepare`."""
    if not flexible and getattr(processor, "do_resize", False):
        refuse_threads(image, int(getattr(processor.size, "shortest_edge", None) or 0))
    made = processor(images=image, return_tensors="np")
    pixels: np.ndarray = made["pixel_values"][0].astype(np.float32, copy=False)
    if not flexible:
        return pixels
    last = np.zeros((1, pixels.shape[1]), np.float32)
    last[0, :2] = made["spatial_shapes"][0]
    return np.concatenate([pixels, last])


def refuse_threads(image: Image.Image, shortest: int) -> None:
    """Refuse an image that would exhaust memory if its shorter side were scaled to ``shortest`` pixels.

    Args:
        image: The image to check.
        shortest: Target length of the shorter side in pixels; 0 if both sides have a fixed target.

    Raises:
        ImageError: The image is too long and narrow.
    """
    from frevl.encoders.images import MAX_PIXELS

    width, height = image.size
    wanted = shortest * shortest * max(width, height) / min(width, height)
    if wanted > MAX_PIXELS:
        raise ImageError(
            f"Cannot read an image from the given bytes: with {width} x {height} pixels it is too long and narrow: at "
            f"{shortest} pixels on its shorter side it would have {wanted:,.0f} pixels."
        )


def grid_of(pixels: np.ndarray, patch: int, *, flexible: bool) -> tuple[int, int]:
    """Return the numbers of rows and columns of patches in a prepared image."""
    if flexible:
        return int(pixels[-1, 0]), int(pixels[-1, 1])
    return pixels.shape[1] // patch, pixels.shape[2] // patch


def image_tower(checkpoint: Checkpoint, tokens: str, layers: Sequence[int], choice: str) -> HuggingFaceImageTower:
    """Load the image tower of a model.

    Args:
        checkpoint: The model.
        tokens: ``pooled``, ``7x7``, ``4x4`` or ``2x2``.
        layers: Hidden states to concatenate, instead of the network's own output.
        choice: ``auto``, ``torch`` or ``int8``; see `frevl.encoders.runtime.open_runtime`.

    Raises:
        EncoderError: The model is damaged, has no image processor or is not a network of patches.
        UsageError: The network does not have the requested layer, or its grid is coarser than requested.
        MissingExtraError: A library is missing.
    """
    config = load_config(checkpoint)
    flexible = config.model_type == "siglip2"
    processor = _load_processor(checkpoint)
    probes = [_example_image(width, height) for width, height in ((61, 47), (47, 61), (1, 1))]
    examples = [np.stack([prepare(processor, probe, flexible=flexible)]) for probe in probes]
    if len({example.shape for example in examples}) > 1:
        raise EncoderError(
            f"'{checkpoint.model}': its image processor gives images of different sizes, which this network cannot "
            "process in one batch; set a crop size in preprocessor_config.json"
        )
    own = tokens == "pooled" and not layers

    def build() -> Source:
        return image_source(checkpoint, config, [np.concatenate(examples)], pooled=own, layers=layers)

    if flexible and choice == "int8":
        raise UsageError(
            f"'{checkpoint.model}' takes images of any side lengths and cannot be exported; leave '#int8' out"
        )
    name = column(checkpoint, "image", layers) + ("-int8" if choice == "int8" else "")
    key = digest_of([checkpoint.weights, checkpoint.configuration, "image", own, list(layers), examples[0].shape[1:]])
    network = open_runtime(column(checkpoint, "image", layers), key, build, "torch" if flexible else choice)
    patch = int(getattr(getattr(config, "vision_config", config), "patch_size", 0) or 0)
    output = _probe(checkpoint, network, examples[0][0])
    if not own:
        _check_grid(checkpoint, tokens, output, grid_of(examples[0][0], patch or 1, flexible=flexible), flexible)
    return HuggingFaceImageTower(
        name=name,
        dim=output.shape[-1],
        identity={
            "tower": name,
            "weights": checkpoint.weights,
            "revision": checkpoint.revision,
            "configuration": checkpoint.configuration,
            "preprocessing": f"RGB, upright, over white; {_describe(processor)}",
            "tokens": tokens,
            "output": "pooled by the network" if own else hidden_layers(layers, "patch tokens"),
            "normalisation": "mean of tokens at unit length",
            **({"precision": "int8 weights"} if choice == "int8" else {}),
            **(common_space(checkpoint, config) if own else {}),
        },
        tokens=tokens,
        layers=len(layers),
        processor=processor,
        network=network,
        patch=patch,
        flexible=flexible,
    )


def column(checkpoint: Checkpoint, modality: str, layers: Sequence[int]) -> str:
    """Name a network by model, modality and layers, so that variants can coexist in a store."""
    chosen = "_" + "_".join(str(layer) for layer in layers) if layers else ""
    return f"{slug(checkpoint.model)}-{modality}{chosen}"


def hidden_layers(layers: Sequence[int], tokens: str) -> str:
    """Describe for an identity which hidden states are kept."""
    if not layers:
        return f"{tokens} of the last hidden state"
    return f"{tokens} of the hidden states {', '.join(map(str, layers))}, each at unit length, the whole too"


def common_space(checkpoint: Checkpoint, config: Any) -> dict[str, str]:
    """Return the fields of an identity that let ``--model cosine`` compare an image with a text.

    CLIP (arXiv 2103.00020) keeps the logarithm of its scale; SigLIP (arXiv 2303.15343) has a bias too.
    """
    if config.model_type not in JOINT:
        return {}
    fields = {"common_space": checkpoint.weights}
    scale, bias = checkpoint.number("logit_scale"), checkpoint.number("logit_bias")
    if scale is not None:
        fields["logit_scale"] = f"{np.exp(scale):.7g}"
    if bias is not None:
        fields["logit_bias"] = f"{bias:.7g}"
    return fields


def _load_processor(checkpoint: Checkpoint) -> Any:
    with quiet_transformers() as transformers:
        try:
            # The torchvision version is an extra dependency and gives slightly different pixels.
            return transformers.AutoImageProcessor.from_pretrained(
                checkpoint.folder, backend="pil", local_files_only=True
            )
        except Exception as error:  # transformers has no specific exception for this
            raise EncoderError(
                f"'{checkpoint.model}': expected an image processor in preprocessor_config.json, found none that "
                f"transformers {transformers.__version__} can load ({' '.join(str(error).split())[:150]})"
            ) from None


def _describe(processor: Any) -> str:
    record = processor.to_dict()
    fields = {name: record[name] for name in _PIXEL_FIELDS if record.get(name) is not None}
    return f"{type(processor).__name__} {json.dumps(fields, sort_keys=True, default=str)}"


def _example_image(width: int, height: int) -> Image.Image:
    """Draw a seeded image of soft blocks."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def _probe(checkpoint: Checkpoint, network: Network, pixels: np.ndarray) -> np.ndarray:
    try:
        return network([pixels])[0]
    except Exception as error:  # each network of the transformers library refuses in its own way
        raise EncoderError(
            f"'{checkpoint.model}': the network cannot process the output of its image processor, shape {pixels.shape} "
            f"({' '.join(str(error).split())[:150]}); correct preprocessor_config.json"
        ) from None


def _check_grid(
    checkpoint: Checkpoint, tokens: str, output: np.ndarray, shape: tuple[int, int], flexible: bool
) -> None:
    special = 0 if flexible else len(output) - shape[0] * shape[1]
    if output.ndim != 2 or not 0 <= special <= _MOST_SPECIAL:
        raise EncoderError(
            f"'{checkpoint.model}' gives an output of shape {output.shape} for {shape[0]} x {shape[1]} patches; "
            "expected one token per patch, which convolutional and window networks do not have. Use it pooled and "
            "without layers"
        )
    wanted = 1 if tokens == "pooled" else int(tokens.split("x")[0])
    if not flexible and min(shape) < wanted:
        raise UsageError(
            f"'{checkpoint.model}' has a grid of {shape[0]}x{shape[1]} patches, which is coarser than {tokens}; "
            f"choose a grid of at most {min(shape)}x{min(shape)}"
        )
