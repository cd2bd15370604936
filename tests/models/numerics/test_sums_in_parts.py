"""Scores in float32 on an NVIDIA device: long sums are taken in parts, so that they round less."""

import pytest
import torch
from torch import nn

from fake_card import CARD, card
from frevl.models import blocks
from frevl.models.fusion import Fusion

SIZES = {"image_dim": 300, "text_dim": 260, "outputs": 9, "width": 264, "layers": 2, "heads": 4, "ffn_width": 520}


@pytest.mark.parametrize("inputs", [1, 255, 256, 257, 1030])
def test_parts_add_up_to_the_whole(inputs):
    torch.manual_seed(0)
    linear, x = nn.Linear(inputs, 7).double(), torch.randn(5, inputs, dtype=torch.double)
    torch.testing.assert_close(blocks.summed_in_parts(x, linear.weight, linear.bias), linear(x))


@pytest.mark.parametrize("folded", [False, True])
def test_a_fusion_in_parts_gives_the_same_logits(folded, monkeypatch):
    torch.manual_seed(0)
    network = Fusion(**SIZES, head_width=300).eval()
    network = network.for_inference() if folded else network
    image, text = torch.randn(6, 3, 300), torch.randn(6, 1, 260)
    with torch.inference_mode():
        expected = network(image, text)
        called, whole = [], blocks.summed_in_parts
        monkeypatch.setattr(blocks, "summed_in_parts", lambda *parts: called.append(1) or whole(*parts))
        monkeypatch.setattr(blocks, "_in_single", lambda *_: True)
        found = network(image, text)
    # Projections, a block's three maps for the images' one key, four for the texts', two feed-forward parts; the head.
    assert len(called) == 2 + 2 * ((1 if folded else 2) + 4 + 4) + 2
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_one_chain_of_roundings_is_farther_from_the_truth_than_chains_of_256():
    torch.manual_seed(0)
    products = torch.randn(200, 3072) * torch.randn(3072)
    truth = products.double().sum(dim=1)
    chain = sum(products.unbind(1))  # one addition after another
    parts = sum(sum(part.unbind(1)) for part in products.split(256, dim=1))
    errors = [(found - truth).square().mean().sqrt() for found in (chain, parts)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(("rows", "dtype", "parts"), [(1023, "float32", 1), (1024, "float32", 2), (1024, "float16", 1)])
def test_only_long_sums_of_many_rows_in_float32_on_a_card_are_divided(rows, dtype, parts):
    with card() as waits, torch.inference_mode():
        linear = nn.Linear(300, 8).to(CARD, getattr(torch, dtype))
        x = torch.zeros(rows, 300, device=CARD, dtype=linear.weight.dtype)
        seen = []
        for call in (blocks.mapped, blocks.mapped_exactly, blocks.mapped_gelu):
            before = waits.divided
            assert call(linear, x).shape == (rows, 8)
            seen.append(waits.divided - before)
    assert seen == [parts if parts > 1 else 0] * 3
