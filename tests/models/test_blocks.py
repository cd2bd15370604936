"""The parts of the network against ``nn.MultiheadAttention`` and against numbers worked out with a pencil."""

import pytest
import torch
from torch import Tensor, nn

from frevl.models.blocks import Attention, Block, FeedForward, dropped

WIDTH, HEADS, ITEMS, QUERIES, KEYS = 15, 3, 7, 11, 13


def attention_and_reference() -> tuple[Attention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    ours, theirs = Attention(WIDTH, HEADS), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    with torch.no_grad():
        # Their biases start at zero and would hide a forgotten one.
        theirs.in_proj_bias.normal_()
        theirs.out_proj.bias.normal_()
        maps = (ours.query, ours.key, ours.value)
        for linear, weight, bias in zip(
            maps, theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True
        ):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        ours.output.load_state_dict(theirs.out_proj.state_dict())
    return ours, theirs


def some_mask(keys: int) -> Tensor:
    mask = torch.rand(ITEMS, keys, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 0] = True
    return mask


@pytest.mark.parametrize("queries", [1, QUERIES])
@pytest.mark.parametrize(("keys", "masked"), [(1, False), (1, True), (2, False), (KEYS, False), (KEYS, True)])
def test_attention_equals_torchs(queries: int, keys: int, masked: bool) -> None:
    ours, theirs = attention_and_reference()
    q, k = torch.randn(ITEMS, queries, WIDTH), torch.randn(ITEMS, keys, WIDTH)
    mask = some_mask(keys) if masked else None
    expected, _ = theirs(q, k, k, key_padding_mask=None if mask is None else ~mask)
    actual = ours(q, k, mask)
    assert actual.shape == (ITEMS, queries, WIDTH)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(dim=-1) @ v


def test_nothing_to_read_gives_zeros_with_a_softmax_that_knows_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's own kernels answer 0 for a row without keys; an exported graph computes 0 / 0.
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", plain_attention)
    ours, _ = attention_and_reference()
    mask = torch.tensor([[False, False], [True, False]])
    read = ours(torch.randn(2, QUERIES, WIDTH), torch.randn(2, 2, WIDTH), mask)
    assert read[0].abs().max() == 0
    assert read[1].abs().min() > 0


@pytest.mark.parametrize("keys", [1, KEYS])
def test_nothing_to_read_gives_zeros_and_leaves_the_neighbours_alone(keys: int) -> None:
    ours, _ = attention_and_reference()
    q, k = torch.randn(ITEMS, QUERIES, WIDTH), torch.randn(ITEMS, keys, WIDTH)
    mask = torch.ones(ITEMS, keys, dtype=torch.bool)
    mask[2] = False
    read = ours(q, k, mask)
    assert read[2].tolist() == torch.zeros(QUERIES, WIDTH).tolist()
    rest = [i for i in range(ITEMS) if i != 2]
    torch.testing.assert_close(read[rest], ours(q[rest], k[rest]), atol=1e-6, rtol=0)
    read.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())


def test_one_key_never_touches_query_and_key_maps() -> None:
    ours, _ = attention_and_reference()
    with torch.no_grad():
        ours.query.weight.fill_(torch.nan)
        ours.key.weight.fill_(torch.nan)
    k = torch.randn(ITEMS, 1, WIDTH)
    expected = (k @ ours.value.weight.T + ours.value.bias) @ ours.output.weight.T + ours.output.bias
    actual = ours(torch.randn(ITEMS, 1, WIDTH), k)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    actual.sum().backward()
    assert ours.query.weight.grad is None
    assert ours.query.bias.grad is None
    assert ours.key.weight.grad is None
    assert ours.key.bias.grad is None
    assert ours.value.weight.grad is not None


def test_one_key_among_masked_ones_is_one_key() -> None:
    ours, _ = attention_and_reference()
    q, k = torch.randn(ITEMS, QUERIES, WIDTH), torch.randn(ITEMS, KEYS, WIDTH)
    mask = torch.zeros(ITEMS, KEYS, dtype=torch.bool)
    mask[:, 5] = True
    torch.testing.assert_close(ours(q, k, mask), ours(q, k[:, 5:6]), atol=1e-5, rtol=0)


def test_attention_by_hand() -> None:
    attention = Attention(width=1, heads=1)
    with torch.no_grad():
        for linear, weight in zip(
            (attention.query, attention.key, attention.value, attention.output), (1.0, 1.0, 2.0, 3.0), strict=True
        ):
            linear.weight.fill_(weight)
            linear.bias.zero_()
    # Keys 0 and ln 3 read by a query of 1: softmax weights 1/4 and 3/4, so 3 * 2 * (3/4 * ln 3).
    keys = torch.tensor([[[0.0], [1.0986123]]])
    assert attention(torch.ones(1, 1, 1), keys).item() == pytest.approx(4.9437553)
    # One key: 3 * 2 * 5, whatever the query says.
    assert attention(torch.full((1, 1, 1), 99.0), torch.tensor([[[5.0]]])).item() == 30.0


def test_feed_forward_by_hand() -> None:
    part = FeedForward(inputs=2, hidden=2, outputs=2, dropout=0.0)
    with torch.no_grad():
        part.inner.weight.copy_(torch.eye(2))
        part.inner.bias.copy_(torch.tensor([0.0, -1.0]))
        part.outer.weight.copy_(torch.tensor([[1.0, 0.0], [10.0, 1.0]]))
        part.outer.bias.copy_(torch.tensor([0.0, 100.0]))
    # GELU is x times the normal distribution function, exact: GELU(1) = 0.8413447, GELU(-1) = -0.1586553.
    expected = torch.tensor([0.8413447, 8.413447 - 0.1586553 + 100.0])
    torch.testing.assert_close(part(torch.tensor([1.0, 0.0])), expected)


def test_block_by_hand_both_directions_read_the_block_input() -> None:
    block = Block(width=2, heads=1, ffn_width=3, dropout=0.0, cross_attention=True)
    with torch.no_grad():
        for attention in (block.cross.image_reads_text, block.cross.text_reads_image):
            for linear in (attention.value, attention.output):
                linear.weight.copy_(torch.eye(2))
                linear.bias.zero_()
        for part in (block.image_ffn, block.text_ffn):
            part.outer.weight.zero_()
        block.image_ffn.outer.bias.copy_(torch.tensor([10.0, 20.0]))
        block.text_ffn.outer.bias.copy_(torch.tensor([30.0, 40.0]))
    # LN(3, 1) = (1, -1) and LN(0, 4) = (-1, 1), so v' = (2, 2) and t' = (1, 3): had the text read the new
    # image (2, 2), whose norm is (0, 0), it would have stayed (0, 4).
    v, t = block(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[0.0, 4.0]]]), None, None)
    torch.testing.assert_close(v, torch.tensor([[[12.0, 22.0]]]), atol=2e-5, rtol=0)
    torch.testing.assert_close(t, torch.tensor([[[31.0, 43.0]]]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1013])
def test_dropped_keeps_or_zeroes_and_rescales(size: int) -> None:
    torch.manual_seed(3)
    x = torch.arange(1.0, size + 1)
    out = dropped(x, 0.75)
    assert out.shape == x.shape
    assert set((out / x).tolist()) <= {0.0, 4.0}


def test_dropped_frequency_mean_and_repetition() -> None:
    x = torch.ones(211, 499)
    torch.manual_seed(5)
    out = dropped(x, 0.1)
    # 105,289 values: three standard deviations of the share are 0.0028.
    assert (out == 0).double().mean().item() == pytest.approx(0.1, abs=0.0028)
    assert out.double().mean().item() == pytest.approx(1.0, abs=0.0032)
    # Neighbours of one 64-bit draw must be independent: 0.01 of pairs are both zero (3 sd: 0.0014).
    both = ((out.flatten()[:-1] == 0) & (out.flatten()[1:] == 0)).double().mean().item()
    assert both == pytest.approx(0.01, abs=0.0014)
    assert not torch.equal(out, dropped(x, 0.1))
    torch.manual_seed(5)
    assert torch.equal(out, dropped(x, 0.1))


def test_dropped_extremes_and_gradient() -> None:
    x = torch.full((17, 19), 2.0, requires_grad=True)
    assert torch.equal(dropped(x, 0.0), x)
    out = dropped(x, 0.5)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach() / 2.0)
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}
    assert dropped(x, 0.9999999).isfinite().all()


def test_feed_forward_drops_only_in_training() -> None:
    torch.manual_seed(0)
    part, x = FeedForward(5, 997, 3, dropout=0.5), torch.randn(7, 5)
    assert not torch.equal(part(x), part(x))
    part.eval()
    assert torch.equal(part(x), part(x))


def test_fusing_draws_no_random_numbers() -> None:
    block = Block(6, 2, 7, dropout=0.0, cross_attention=True)
    before = torch.get_rng_state()
    block.fuse_for_inference()
    assert torch.equal(before, torch.get_rng_state())
