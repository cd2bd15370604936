"""What must never change a score: fusing for inference, masks, padding, batch size, order."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.fusion import Fusion
from networks import (
    CASES,
    IMAGE_DIM,
    IMAGE_TOKENS,
    ITEMS,
    OUTPUTS,
    TEXT_DIM,
    inputs,
    network,
)

# --- fusing for inference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cross_attention", [True, False])
def test_fused_gives_the_same_logits(case: str, cross_attention: bool) -> None:
    fusion = network(cross_attention=cross_attention)
    logits = fusion(*inputs(case))
    torch.testing.assert_close(fusion.for_inference()(*inputs(case)), logits, atol=1e-5, rtol=0)


def test_fused_tiny_preset_gives_the_same_logits_as_training_mode_maths() -> None:
    torch.manual_seed(0)
    fusion = Fusion.from_preset("tiny", image_dim=768, text_dim=512, outputs=101, dropout=0.0).train()
    image, text = F.normalize(torch.randn(31, 768), dim=1), F.normalize(torch.randn(31, 512), dim=1)
    torch.testing.assert_close(fusion.for_inference()(image, text), fusion(image, text), atol=1e-5, rtol=0)


def test_fused_uses_one_matrix_and_no_affine_norm() -> None:
    fusion = network()
    twin = fusion.for_inference()
    names = dict(twin.named_parameters())
    assert not any("norm" in name for name in names)
    with torch.no_grad():
        for name, parameter in names.items():
            if re.search(r"\.(query|key|value|output)\.", name):
                parameter.fill_(torch.nan)
    assert twin(*inputs("pooled")).isfinite().all()
    assert twin(*inputs("tokens")).isnan().all()


def test_fusing_leaves_the_original_alone_and_the_twin_frozen() -> None:
    fusion = network().train()
    before = {name: value.clone() for name, value in fusion.state_dict().items()}
    random_state = torch.get_rng_state()
    twin = fusion.for_inference()
    assert torch.equal(random_state, torch.get_rng_state())
    assert not twin.training
    assert fusion.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    after = fusion.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in fusion.parameters())


def test_fusing_twice_changes_nothing_more() -> None:
    twin = network().for_inference()
    assert torch.equal(twin.for_inference()(*inputs("pooled")), twin(*inputs("pooled")))


# --- what must never change a score ----------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("fused", [False, True])
def test_what_stands_in_masked_tokens_never_changes_a_score(garbage: float, fused: bool) -> None:
    fusion = network().for_inference() if fused else network()
    image, text, image_mask, text_mask = inputs("masked tokens")
    expected = fusion(image, text, image_mask, text_mask)
    image = image.masked_fill(~image_mask[..., None], garbage)
    text = text.masked_fill(~text_mask[..., None], garbage)
    assert torch.equal(fusion(image, text, image_mask, text_mask), expected)


def test_garbage_in_masked_tokens_never_reaches_a_gradient() -> None:
    fusion = network()
    image, text, image_mask, text_mask = inputs("masked tokens")
    image = image.masked_fill(~image_mask[..., None], 1e30)
    fusion(image, text, image_mask, text_mask).sum().backward()
    clean = gradients_of(network(), inputs("masked tokens")[0].masked_fill(~image_mask[..., None], 0.0))
    for name, parameter in fusion.named_parameters():
        torch.testing.assert_close(parameter.grad, clean[name], msg=name)


def gradients_of(fusion: Fusion, image: Tensor) -> dict[str, Tensor | None]:
    _, text, image_mask, text_mask = inputs("masked tokens")
    fusion(image, text, image_mask, text_mask).sum().backward()
    return {name: parameter.grad for name, parameter in fusion.named_parameters()}


@pytest.mark.parametrize("fused", [False, True])
def test_padding_never_changes_a_score(fused: bool) -> None:
    fusion = network().for_inference() if fused else network()
    image, text, image_mask, text_mask = inputs("masked tokens")
    expected = fusion(image, text, image_mask, text_mask)
    padded = fusion(
        F.pad(image, (0, 0, 0, 6)), F.pad(text, (0, 0, 2, 9)), F.pad(image_mask, (0, 6)), F.pad(text_mask, (2, 9))
    )
    torch.testing.assert_close(padded, expected, atol=1e-6, rtol=1e-6)


def test_a_pooled_embedding_is_one_token_and_may_be_padded() -> None:
    fusion = network()
    image, text, _, _ = inputs("pooled")
    expected = fusion(image, text)
    assert torch.equal(fusion(image[:, None], text[:, None]), expected)
    one = torch.tensor([[True, False, False]]).expand(ITEMS, 3)
    padded = fusion(F.pad(image[:, None], (0, 0, 0, 2)), F.pad(text[:, None], (0, 0, 0, 2)), one, one)
    torch.testing.assert_close(padded, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fused", [False, True])
def test_batch_size_and_order_never_change_a_score(case: str, fused: bool) -> None:
    fusion = network().for_inference() if fused else network()
    given = inputs(case)
    expected = fusion(*given)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    shuffled = fusion(*(None if x is None else x[order] for x in given))
    torch.testing.assert_close(shuffled, expected[order], atol=1e-6, rtol=1e-6)
    for size in (1, 2, 5):
        parts = [
            fusion(*(None if x is None else x[start : start + size] for x in given)) for start in range(0, ITEMS, size)
        ]
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-6, rtol=1e-6)


def test_masks_do_change_scores_where_they_should() -> None:
    fusion = network()
    image, text, image_mask, text_mask = inputs("masked tokens")
    masked = fusion(image, text, image_mask, text_mask)
    assert ((masked - fusion(image, text)).abs().amax(dim=1) > 1e-3).all()
    assert ((masked - fusion(image, text, image_mask)).abs().amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("case", ["pooled", "tokens"])
def test_an_item_without_any_token_is_finite_and_leaves_the_others_alone(case: str) -> None:
    fusion = network()
    image, text, _, _ = inputs(case)
    expected = fusion(image, text)
    mask = torch.ones(ITEMS, 1 if image.dim() == 2 else IMAGE_TOKENS, dtype=torch.bool)
    mask[2] = False
    logits = fusion(image, text, mask)
    rest = [i for i in range(ITEMS) if i != 2]
    torch.testing.assert_close(logits[rest], expected[rest], atol=1e-6, rtol=1e-6)
    # Without an image nothing is read from it, so that only the text and the parameters decide.
    image = image.clone()
    image[2] = image[1]
    assert torch.equal(fusion(image, text, mask)[2], logits[2])
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


def test_projecting_once_and_fusing_a_grid_gives_the_scores_of_the_pairs() -> None:
    fusion = network()
    image, text, image_mask, text_mask = inputs("masked tokens")
    v, t = fusion.project_image(image), fusion.project_text(text)
    for i in range(ITEMS):
        row = fusion.head(fusion.fuse(v[i].expand_as(v), t, image_mask[i].expand_as(image_mask), text_mask))
        pairs = fusion(image[i].expand_as(image), text, image_mask[i].expand_as(image_mask), text_mask)
        torch.testing.assert_close(row, pairs, atol=1e-6, rtol=1e-6)


def test_an_empty_batch_has_no_scores() -> None:
    fusion = network()
    assert fusion(torch.empty(0, IMAGE_DIM), torch.empty(0, TEXT_DIM)).shape == (0, OUTPUTS)
    assert fusion(torch.empty(0, 2, IMAGE_DIM), torch.empty(0, 3, TEXT_DIM)).shape == (0, OUTPUTS)
