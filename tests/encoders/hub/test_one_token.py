"""The last layer of a CLIP image tower for its class token only, against the library's full layer."""

import pytest
import torch

from frevl.deployment.efficiency.profiles import counted_flops
from frevl.deployment.efficiency.stand_ins import clip_config
from frevl.encoders.hub.checkpoint import open_checkpoint
from frevl.encoders.hub.networks import image_source, load_config
from frevl.encoders.hub.one_token import LastLayerOfFirstToken


@pytest.fixture(scope="module")
def tower():
    """Two layers of width 128, 2 heads, 16 patches, every parameter random."""
    from transformers import CLIPVisionModelWithProjection

    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(clip_config((32, 8, 128, 2, 64, 1, 24)).vision_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_the_first_token_is_that_of_the_whole_layer(tower):
    layer = tower.vision_model.encoder.layers[-1]
    for tokens in (1, 2, 17):
        x = torch.randn(3, tokens, 128)
        with torch.inference_mode():
            whole, first = layer(x, None), LastLayerOfFirstToken(layer)(x, None)
        assert first.shape == (3, 1, 128)
        torch.testing.assert_close(first, whole[:, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", ["pooled", "tokens", "layers"])
def test_only_a_pooled_tower_takes_the_short_cut(tower, tmp_path, choice):
    tower.save_pretrained(tmp_path / "clip")
    checkpoint = open_checkpoint(str(tmp_path / "clip"))
    layers = (-1,) if choice == "layers" else ()
    source = image_source(checkpoint, load_config(checkpoint), [], pooled=choice == "pooled", layers=layers)
    pixels = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        output = tower.vision_model(pixel_values=pixels)
        found = source.network(pixels)
    expected = output.pooler_output[:, None] if choice == "pooled" else output.last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    saved = counted_flops(tower.vision_model, pixels) - counted_flops(source.network, pixels)
    # Per image 16 of 17 tokens less in two maps of 128 x 128, two products of attention, and two maps of 128 x 512.
    one = 2 * (2 * 128 * 128 + 2 * 17 * 128 + 2 * 128 * 512)
    assert saved == (5 * 16 * one if choice == "pooled" else 0)
