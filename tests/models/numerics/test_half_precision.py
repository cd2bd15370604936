"""The fusion with half-precision weights: what is rounded, what is not, and how close the logits stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frevl.models import blocks
from frevl.models.fusion import Fusion
from networks import CASES, inputs, network

PAIRS = 400


def made():
    torch.manual_seed(0)
    fusion = Fusion(image_dim=40, text_dim=24, outputs=3, width=64, layers=4, heads=4, ffn_width=96, head_width=48)
    return fusion.eval(), torch.randn(PAIRS, 40), torch.randn(PAIRS, 24)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_logits_are_float32_and_near_those_of_float32(dtype, most):
    fusion, image, text = made()
    with torch.inference_mode():
        exact = fusion(image, text)
        found = fusion.for_inference().to(dtype)(image, text)
    assert found.dtype == torch.float32, "rounded logits would tie scores that differ"
    assert 0 < (found - exact).abs().max() < most


def test_sums_in_float32_lose_less_than_sums_in_half():
    fusion, image, text = made()
    half = fusion.for_inference().half()
    with torch.inference_mode():
        exact = fusion(image, text)
        kept = (half(image, text) - exact).square().mean()
        half.sums_in_half = True
        rounded = (half(image, text) - exact).square().mean()
    assert kept < 0.7 * rounded


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_masks_work_in_half_precision(case):
    fusion = network().eval()
    given = inputs(case)
    with torch.inference_mode():
        difference = fusion.for_inference().half()(*given) - fusion(*given)
    assert difference.abs().max() < 5e-3


def test_the_gelu_of_a_matrix_product_is_near_the_exact_one(monkeypatch):
    # What an NVIDIA device does in half precision; a processor has the same operation, with the exact GELU.
    linear, x = nn.Linear(12, 7), torch.randn(5, 3, 12)
    exact = F.gelu(linear(x))
    monkeypatch.setattr(blocks, "_in_half", lambda *_: True)
    with torch.no_grad():
        found = blocks.mapped_gelu(linear, x)
    assert found.shape == (5, 3, 7)
    assert (found - exact).abs().max() < 1e-3


@pytest.mark.parametrize("outputs", [1, 8, 9, 13, 16])
def test_padded_outputs_are_those_of_the_map(outputs):
    linear, x = nn.Linear(6, outputs), torch.randn(4, 6)
    weight, bias = blocks.whole_vectors(linear)
    assert weight.shape[0] == len(bias) == (outputs if outputs in (1, 8) else 16)
    torch.testing.assert_close(F.linear(x, weight, bias)[:, :outputs], linear(x))


def test_training_rounds_nothing():
    fusion, image, text = made()
    fusion.train()
    assert fusion(image, text).dtype == torch.float32
    assert blocks.exact_sums(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16, "of a training in bfloat16"
