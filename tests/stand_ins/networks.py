"""A small fusion network and its inputs, for the tests of the network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.fusion import Fusion, FusionPreset

# Pairwise different, so that no swapped axis can pass.
ITEMS, IMAGE_DIM, TEXT_DIM, OUTPUTS, IMAGE_TOKENS, TEXT_TOKENS = 7, 13, 11, 5, 17, 19
WIDTH, HEADS, FFN_WIDTH, HEAD_WIDTH = 15, 3, 23, 29


def network(**changes: object) -> Fusion:
    """A small network in evaluation mode with every parameter random, norms and biases included."""
    torch.manual_seed(0)
    sizes = {"outputs": OUTPUTS, "width": WIDTH, "heads": HEADS, "ffn_width": FFN_WIDTH, "head_width": HEAD_WIDTH}
    fusion = Fusion(**{"image_dim": IMAGE_DIM, "text_dim": TEXT_DIM, **sizes, **changes})
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return fusion.eval()


def inputs(case: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    image = F.normalize(torch.randn(ITEMS, IMAGE_TOKENS, IMAGE_DIM, generator=generator), dim=2)
    text = F.normalize(torch.randn(ITEMS, TEXT_TOKENS, TEXT_DIM, generator=generator), dim=2)
    image_mask = torch.rand(ITEMS, IMAGE_TOKENS, generator=generator) < 0.6
    text_mask = torch.rand(ITEMS, TEXT_TOKENS, generator=generator) < 0.4
    image_mask[:, 3] = text_mask[:, 0] = True
    return {
        "pooled": (image[:, 0], text[:, 0], None, None),
        "tokens": (image, text, None, None),
        "masked tokens": (image, text, image_mask, text_mask),
        "image tokens, pooled text": (image, text[:, 0], image_mask, None),
        "pooled image, text tokens": (image[:, 0], text, None, text_mask),
    }[case]


CASES = ["pooled", "tokens", "masked tokens", "image tokens, pooled text", "pooled image, text tokens"]

SMALL: FusionPreset = {"width": 24, "layers": 1, "heads": 3, "ffn_width": 29, "head_width": 31}
