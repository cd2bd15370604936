"""Networks of the transformers library as modules with one input and one output, ready to run or to export.

Every network returns ``(n, tokens, width)``: its own pooled embedding as one token, its last hidden state, or chosen
hidden states, concatenated.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from frevl.encoders.hub.checkpoint import Checkpoint
from frevl.encoders.onnx_session import Source
from frevl.errors import EncoderError, UsageError, library

if TYPE_CHECKING:
    import torch

__all__ = ["JOINT", "image_source", "load_config", "quiet_transformers", "text_source"]

JOINT = ("clip", "siglip", "siglip2", "chinese_clip")
"""Model types with an image and a text tower in one common space."""
_POOLED_BY_CLASS_TOKEN = ("clip", "clip_vision_model")


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """Import the transformers library with its loading messages silenced; frevl checks what matters itself."""
    transformers = library("transformers", "hf")
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def load_config(checkpoint: Checkpoint) -> Any:
    """Load the configuration of a model.

    Raises:
        EncoderError: transformers does not know the model, or the model requires its own code.
    """
    if checkpoint.settings("config.json").get("auto_map"):
        raise EncoderError(
            f"'{checkpoint.model}' needs code that comes with the model, and frevl runs no code from a hub; "
            "use a model that is part of the transformers library"
        )
    with quiet_transformers() as transformers:
        try:
            return transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        # transformers has no specific exception: unknown types raise KeyError or ValueError, damage raises anything.
        except Exception as error:
            raise EncoderError(
                f"'{checkpoint.model}' is not a model that transformers {transformers.__version__} knows "
                f"({_brief(error)}); upgrade transformers, or use another model"
            ) from None


def image_source(
    checkpoint: Checkpoint, config: Any, examples: Sequence[np.ndarray], *, pooled: bool, layers: Sequence[int]
) -> Source:
    """Load an image network that maps ``(n, 3, height, width)`` float32 to ``(n, tokens, width)``.

    The input of SigLIP 2 with any side lengths ("NaFlex") is ``(n, patches + 1, values)``: see `unpack_patches`.

    Args:
        checkpoint: The model.
        config: Configuration of the network.
        examples: Batches of prepared images, used to check an exported network.
        pooled: Return the pooled embedding: for a joint model the one in its common space, for others their own pooling
            if it has no weights (DINOv2: the class token), else the first token of the last hidden state.
        layers: Hidden states to return instead, concatenated; 0 is the embedding layer, -1 the last one.

    Raises:
        EncoderError: The weights do not fit the network.
    """
    import torch

    joint = config.model_type in JOINT
    model = _load(checkpoint, config)
    flexible = config.model_type == "siglip2"
    if joint:
        model.text_model = None
    if pooled and not layers and config.model_type in _POOLED_BY_CLASS_TOKEN:
        from frevl.encoders.hub.one_token import LastLayerOfFirstToken  # needs torch

        network = getattr(model, "vision_model", model)
        network.encoder.layers[-1] = LastLayerOfFirstToken(network.encoder.layers[-1])
    trained_pooler = any(name.startswith("pooler.") for name, _ in model.named_parameters())

    class Image(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            dtype = next(self.model.parameters()).dtype
            inputs = unpack_patches(pixels, dtype) if flexible else {"pixel_values": pixels.to(dtype)}
            network = getattr(self.model, "vision_model", self.model)  # of this module, which may be a copy
            if layers:
                return _chosen(network(**inputs, output_hidden_states=True).hidden_states, layers)
            if pooled and joint:
                return _token(self.model.get_image_features(**inputs).pooler_output)
            output = network(**inputs)
            if not pooled:
                return cast("torch.Tensor", output.last_hidden_state)
            own = None if trained_pooler else getattr(output, "pooler_output", None)
            return _token(output.last_hidden_state[:, 0] if own is None else own)

    _check_layers(checkpoint, getattr(config, "vision_config", config), layers)
    return Source(Image().eval(), {0: "batch"}, examples)


def text_source(
    checkpoint: Checkpoint,
    config: Any,
    examples: Sequence[np.ndarray],
    *,
    pooled: bool,
    layers: Sequence[int],
    padded: bool,
    masked: bool,
) -> Source:
    """Load a text network that maps ids to ``(n, tokens, width)``.

    Args:
        checkpoint: The model.
        config: Configuration of the network.
        examples: Batches of ids, used to check an exported network.
        pooled: Return a joint model's embedding in the common space; other models do no pooling here, because pooling
            their tokens is the tower's task.
        layers: Hidden states to return instead, concatenated.
        padded: Whether the input is ``(n, 2, length)`` int64, ids and their mask (1 where not padding), instead of
            ``(n, length)`` ids without padding.
        masked: Whether a padded network uses the mask.

    Raises:
        EncoderError: The weights do not fit the network, or it is not an encoder.
    """
    import torch

    joint = config.model_type in JOINT
    if getattr(config, "is_encoder_decoder", False):
        raise EncoderError(f"'{checkpoint.model}' is an encoder with a decoder; use a model that only encodes texts")
    model = _load(checkpoint, config)
    if joint:
        model.vision_model = None

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            network = getattr(self.model, "text_model", self.model)  # of this module, which may be a copy
            inputs = {"input_ids": ids}
            if padded:
                inputs = {"input_ids": ids[:, 0]} | ({"attention_mask": ids[:, 1]} if masked else {})
            if layers:
                return _chosen(network(**inputs, output_hidden_states=True).hidden_states, layers)
            if pooled and joint:
                return _token(self.model.get_text_features(**inputs).pooler_output)
            return cast("torch.Tensor", network(**inputs).last_hidden_state)

    _check_layers(checkpoint, getattr(config, "text_config", config), layers)
    # A padded input has one length, and its second axis always holds ids and mask.
    return Source(Text().eval(), {0: "batch"} if padded else {0: "batch", 1: "pieces"}, examples)


def unpack_patches(packed: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Unpack the array into which the tower of SigLIP 2 packs an image.

    Args:
        packed: ``(n, patches + 1, values)``: patches row by row, padded; the last row starts with the numbers of rows
            and columns of patches.
        dtype: Number type of the network.
    """
    import torch

    shapes = packed[:, -1, :2].long()
    places = torch.arange(packed.shape[1] - 1, device=packed.device)
    mask = (places < shapes.prod(dim=1, keepdim=True)).long()
    return {"pixel_values": packed[:, :-1].to(dtype), "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _load(checkpoint: Checkpoint, config: Any) -> Any:
    import torch

    with quiet_transformers() as transformers:
        try:
            model, found = transformers.AutoModel.from_pretrained(
                checkpoint.folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # safetensors, torch and transformers have no common exception for invalid weights
            raise EncoderError(
                f"'{checkpoint.model}': the weights cannot be loaded ({_brief(error)}); download the model again"
            ) from None
    # A pooler is often missing from a checkpoint; no pooler with weights is used here.
    lacking = sorted(name for name in found["missing_keys"] if "pooler." not in name)
    if lacking or found["mismatched_keys"]:
        wrong = lacking[0] if lacking else str(next(iter(found["mismatched_keys"])))
        raise EncoderError(
            f"'{checkpoint.model}': the weights do not fit its configuration: '{wrong}' is missing or has another "
            "shape; download the model again"
        )
    return model.eval().requires_grad_(False)


def _chosen(states: Sequence[torch.Tensor], layers: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.cat([states[layer] for layer in layers], dim=-1)


def _token(pooled: torch.Tensor) -> torch.Tensor:
    return pooled.flatten(1)[:, None]  # convolutional networks pool to (n, width, 1, 1)


def _check_layers(checkpoint: Checkpoint, config: Any, layers: Sequence[int]) -> None:
    count = int(getattr(config, "num_hidden_layers", 0))
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise UsageError(
                f"'{checkpoint.model}' has {count} layers, so its hidden states are 0 (the embedding layer) to "
                f"{count}, or -1 to -{count + 1} from the end; found {layer}"
            )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
