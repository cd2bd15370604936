"""The parts of the fusion network: exact attention, feed-forward, and the bidirectional block.

Shapes: ``n`` pairs, ``N`` tokens, ``width`` the width of the network. Masks are bool and True where a token
exists. Every part can `fuse_for_inference`: become the same function with fewer operations.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from frevl.errors import UsageError

__all__ = [
    "Attention",
    "Block",
    "FeedForward",
    "WithoutTokenAxis",
    "as_tokens",
    "check_pairs",
    "dropped",
    "exact_sums",
    "mapped",
    "mapped_exactly",
    "mapped_gelu",
    "random_bits",
    "summed_in_parts",
    "whole_vectors",
    "zero_masked",
]


class Attention(nn.Module):
    """Multi-head attention, equal to ``nn.MultiheadAttention`` without attention dropout.

    With one key the softmax is always 1, and the output is ``W_o (W_v x + b_v) + b_o``. That exact path is taken
    whenever there is one key. The four maps are separate, so the unused ``query`` and ``key`` then have no gradient at
    all, rather than a zero one, and optimisers skip them.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build four ``(width, width)`` maps; ``heads`` divides ``width``."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.output_value: nn.Linear | None = None  # W_o W_v as one map, in a network fused for inference

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Let every query read the keys.

        Args:
            queries: ``(n, Q, width)``.
            keys: ``(n, K, width)``, also the values.
            key_mask: ``(n, K)`` bool, True where a key exists.

        Returns:
            ``(n, Q, width)``; zero for items without any key.
        """
        some_key = None if key_mask is None else key_mask.any(dim=1)[:, None, None]
        if keys.shape[1] == 1:
            one = (
                mapped(self.output, mapped(self.value, keys))
                if (both := self.output_value) is None
                else mapped(both, keys)
            )
            read = one.expand(-1, queries.shape[1], -1)
        else:
            seen = None
            if key_mask is not None and some_key is not None:
                # A softmax over nothing is NaN: items without any key read all of them, and are zeroed below.
                seen = (key_mask[:, None] | ~some_key)[:, None]
            heads = F.scaled_dot_product_attention(
                self._split(mapped(self.query, queries)),
                self._split(mapped(self.key, keys)),
                self._split(mapped(self.value, keys)),
                attn_mask=seen,
            )
            read = mapped(self.output, heads.transpose(1, 2).flatten(2))
        return read if some_key is None else read * some_key

    def _split(self, x: Tensor) -> Tensor:
        """Reshape ``(n, N, width)`` to ``(n, heads, N, width / heads)``."""
        return x.view(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)

    def fuse_for_inference(self, query_norm: nn.LayerNorm, key_norm: nn.LayerNorm) -> None:
        """Absorb the scale and shift of the norms in front, and multiply out ``W_o W_v``."""
        self.query = _after_norm(query_norm, self.query)
        self.key = _after_norm(key_norm, self.key)
        self.value = _after_norm(key_norm, self.value)
        outer, inner = self.output.weight.double(), self.value.weight.double()
        bias = outer @ self.value.bias.double() + self.output.bias.double()
        self.output_value = _linear(outer @ inner, bias, like=self.output)


class FeedForward(nn.Module):
    """``W_2 dropout(GELU(W_1 x + b_1)) + b_2``: the feed-forward part of a block, and the head."""

    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float, *, exact: bool = False) -> None:
        """Build the two maps ``(hidden, inputs)`` and ``(outputs, hidden)``; ``exact``: see `mapped_exactly`."""
        super().__init__()
        self.inner = nn.Linear(inputs, hidden)
        self.outer = nn.Linear(hidden, outputs)
        self.dropout = dropout
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        hidden = self.hidden(x)
        if self.training and self.dropout > 0:
            hidden = dropped(hidden, self.dropout)
        return mapped_exactly(self.outer, hidden) if self.exact else mapped(self.outer, hidden)

    def hidden(self, x: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to the ``(..., hidden)`` units."""
        return mapped_gelu(self.inner, x)


class _CrossAttention(nn.Module):
    """Each modality attends to the other; both see the other's input to this layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.image_norm = nn.LayerNorm(width)
        self.text_norm = nn.LayerNorm(width)
        self.image_reads_text = Attention(width, heads)
        self.text_reads_image = Attention(width, heads)

    def forward(self, v: Tensor, t: Tensor, v_mask: Tensor | None, t_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        like = self.image_reads_text.value
        v_seen, t_seen = as_weights(like, self.image_norm(v)), as_weights(like, self.text_norm(t))
        return v + self.image_reads_text(v_seen, t_seen, t_mask), t + self.text_reads_image(t_seen, v_seen, v_mask)

    def pooled(self, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        v_seen, t_seen = self.image_norm(v), self.text_norm(t)
        image_reads, text_reads = self.image_reads_text.output_value, self.text_reads_image.output_value
        return v + cast("nn.Linear", image_reads)(t_seen), t + cast("nn.Linear", text_reads)(v_seen)

    def fuse_for_inference(self) -> None:
        self.image_reads_text.fuse_for_inference(self.image_norm, self.text_norm)
        self.text_reads_image.fuse_for_inference(self.text_norm, self.image_norm)
        self.image_norm, self.text_norm = _plain(self.image_norm), _plain(self.text_norm)


class Block(nn.Module):
    """A bidirectional pre-norm block: cross-attention, then one feed-forward part per modality."""

    def __init__(self, width: int, heads: int, ffn_width: int, dropout: float, cross_attention: bool) -> None:
        super().__init__()
        self.cross = _CrossAttention(width, heads) if cross_attention else None
        self.image_norm = nn.LayerNorm(width)
        self.text_norm = nn.LayerNorm(width)
        self.image_ffn = FeedForward(width, ffn_width, width, dropout)
        self.text_ffn = FeedForward(width, ffn_width, width, dropout)

    def forward(self, v: Tensor, t: Tensor, v_mask: Tensor | None, t_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map images ``(n, Nv, width)`` and texts ``(n, Nt, width)`` to the same shapes; masks ``(n, N)``."""
        if self.cross is not None:
            v, t = self.cross(v, t, v_mask, t_mask)
        return v + self.image_ffn(self.image_norm(v)), t + self.text_ffn(self.text_norm(t))

    def pooled(self, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same for ``(n, width)`` inputs of one token each; only after `fuse_for_inference`."""
        if self.cross is not None:
            v, t = self.cross.pooled(v, t)
        return v + self.image_ffn(self.image_norm(v)), t + self.text_ffn(self.text_norm(t))

    def fuse_for_inference(self) -> None:
        """Move every norm's scale and shift into the maps that read it."""
        if self.cross is not None:
            self.cross.fuse_for_inference()
        self.image_ffn.inner = _after_norm(self.image_norm, self.image_ffn.inner)
        self.text_ffn.inner = _after_norm(self.text_norm, self.text_ffn.inner)
        self.image_norm, self.text_norm = _plain(self.image_norm), _plain(self.text_norm)


def mapped(linear: nn.Linear, x: Tensor) -> Tensor:
    """``Wx + b`` of ``(..., inputs)``; in float32 on an NVIDIA device the sums are taken in parts, for scores."""
    if not _in_single(linear, x):
        found: Tensor = linear(x)
        return found
    return summed_in_parts(x.flatten(0, -2), linear.weight, linear.bias).view(*x.shape[:-1], linear.out_features)


def summed_in_parts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x W^T + b`` with 256 inputs at a time, whose sums are added up.

    An NVIDIA device sums a float32 product one input after the other, and every addition rounds the whole sum so far.
    With shorter chains, logits of ``base`` are a third as far from float64 (simulated on a CPU:
    research/experiments/log.md).

    Args:
        x: ``(n, inputs)`` float32.
        weight: ``(outputs, inputs)``.
        bias: ``(outputs,)``.
    """
    total = torch.addmm(bias, x[:, :_CHAIN], weight[:, :_CHAIN].t())
    for first in range(_CHAIN, x.shape[1], _CHAIN):
        part = slice(first, first + _CHAIN)
        total.addmm_(x[:, part], weight[:, part].t())
    return total


def mapped_gelu(linear: nn.Linear, x: Tensor) -> Tensor:
    """``GELU(Wx + b)`` of ``(..., inputs)``.

    In half precision on an NVIDIA device, when no gradient is needed, the matrix product applies bias and GELU to its
    result before writing it, which saves two passes over the widest activations. It uses the tanh form of the GELU,
    whose largest error, 5e-4, is below half a step of float16 where it occurs.
    """
    x = as_weights(linear, x)
    if not _in_half(linear, x):
        return F.gelu(mapped(linear, x))
    flat: Tensor = torch._addmm_activation(linear.bias, x.flatten(0, -2), linear.weight.t(), use_gelu=True)
    return flat.view(*x.shape[:-1], flat.shape[1])


def mapped_exactly(linear: nn.Linear, x: Tensor) -> Tensor:
    """``Wx + b`` of ``(..., inputs)``, in float32 even if ``W`` is in half precision; used for logits.

    The products are summed in float32 anyway; rounding the sums would turn different scores into ties. On an NVIDIA
    device, output sizes that are not a multiple of 8 are padded, because its fast matrix products need whole vectors.
    """
    x = as_weights(linear, x)
    outputs = linear.out_features
    weight, bias = whole_vectors(linear) if x.is_cuda else (linear.weight, linear.bias)
    if _in_single(linear, x):
        return mapped(linear, x)
    if x.dtype not in _HALF or weight.dtype not in _HALF or torch.is_grad_enabled():
        return F.linear(x, weight, bias)[..., :outputs]
    if not x.is_cuda:
        return F.linear(x.float(), weight.float(), bias.float())
    flat = torch.mm(x.flatten(0, -2), weight.t(), out_dtype=torch.float32) + bias.float()
    return flat.view(*x.shape[:-1], flat.shape[1])[..., :outputs]


def whole_vectors(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight and bias, padded with rows of zeros so that more than 8 outputs are a multiple of 8."""
    outputs = linear.out_features
    short = -outputs % _VECTOR if outputs > _VECTOR else 0
    if not short:
        return linear.weight, linear.bias
    return F.pad(linear.weight, (0, 0, 0, short)), F.pad(linear.bias, (0, short))


def as_weights(linear: nn.Linear, x: Tensor) -> Tensor:
    """Cast ``x`` to the number type of a map in half precision; otherwise return it unchanged."""
    return x.to(linear.weight.dtype) if linear.weight.dtype in _HALF else x


def exact_sums(hidden: Tensor) -> Tensor:
    """Cast the blocks' running sum to float32 if scores are computed in half precision; it halves their error."""
    return hidden.float() if hidden.dtype in _HALF and not torch.is_grad_enabled() else hidden


def _in_single(linear: nn.Linear, x: Tensor) -> bool:
    """Return whether scores are computed in float32 on an NVIDIA device, of so many rows that time is no concern."""
    single = x.is_cuda and x.dtype == linear.weight.dtype == torch.float32 and not torch.is_grad_enabled()
    return single and x.numel() >= _MANY_ROWS * x.shape[-1] and linear.in_features > _CHAIN


def _in_half(linear: nn.Linear, x: Tensor) -> bool:
    return x.is_cuda and linear.weight.dtype in _HALF and not torch.is_grad_enabled()


_HALF = (torch.float16, torch.bfloat16)
_CHAIN = 256  # inputs that are summed one after the other
_MANY_ROWS = 1024  # fewer wait for the CPU to start products; theirs are divided over the device, in shorter chains
_VECTOR = 8  # numbers in half precision, 16 bytes


def dropped(x: Tensor, probability: float) -> Tensor:
    """Dropout, as ``F.dropout`` in training but several times faster on a CPU.

    PyTorch draws one number after another on one core. Here, 64 random bits decide for four values. The probability is
    rounded to a multiple of 1/65536, and the values that remain are divided by the rounded probability of keeping them,
    so that the mean does not change.

    Args:
        x: Any shape.
        probability: Probability that a value becomes zero, in [0, 1).

    Returns:
        A tensor of the same shape and the same mean.
    """
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    cut = min(round(probability * 65536), 65535)
    scale = torch.empty_like(x, requires_grad=False)
    torch.ge(random_bits(x), cut - 32768, out=scale)
    return x * scale.mul_(65536 / (65536 - cut))


def random_bits(x: Tensor) -> Tensor:
    """Return 16 random bits for every value of a tensor, as int16 of the same shape."""
    if has_torch_function_unary(x):  # workers that share a batch draw for all of it (`frevl.training.workers`)
        shared: Tensor = handle_torch_function(random_bits, (x,), x)
        return shared
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: x.numel()].view(x.shape)


def as_tokens(modality: str, x: Tensor, projection: nn.Linear) -> Tensor:
    """Reshape ``(n, D)`` to ``(n, 1, D)``, and return ``(n, N, D)`` unchanged; refuse anything else."""
    if x.dim() not in (2, 3) or x.shape[-1] != projection.in_features or (x.dim() == 3 and x.shape[1] == 0):
        dim = projection.in_features
        raise UsageError(
            f"Fusion expects {modality} embeddings of shape (n, {dim}), or (n, tokens, {dim}) with at least "
            f"one token, but got {tuple(x.shape)}; was the network built for another encoder?"
        )
    return x[:, None] if x.dim() == 2 else x


def check_pairs(image: Tensor, text: Tensor) -> None:
    """Refuse ``(n, ...)`` images with ``(m, ...)`` texts if the numbers differ."""
    if image.shape[0] != text.shape[0]:
        raise UsageError(
            "Fusion scores pairs and needs as many images as texts, "
            f"but got {image.shape[0]} images and {text.shape[0]} texts."
        )


def zero_masked(modality: str, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the masked-out tokens, so that nothing in them can spread, not even NaN."""
    if mask is None:
        return hidden
    if mask.shape != hidden.shape[:2] or mask.dtype != torch.bool:
        raise UsageError(
            f"Fusion expects the {modality} mask as bool of shape {tuple(hidden.shape[:2])}, "
            f"but got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    return hidden.masked_fill(~mask[..., None], 0.0)


def _after_norm(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    """Return the map that does to the plain norm what ``linear`` does to ``norm``: ``(W*g)x + (Ws + b)``."""
    if not norm.elementwise_affine:
        return linear
    weight = linear.weight.double()
    bias = weight @ norm.bias.double() + linear.bias.double()
    return _linear(weight * norm.weight.double(), bias, like=linear)


def _plain(norm: nn.LayerNorm) -> nn.LayerNorm:
    """Return the same norm without scale and shift."""
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def _linear(weight: Tensor, bias: Tensor, *, like: nn.Linear) -> nn.Linear:
    """Return a linear map with these numbers, of another's type and device; draws no random numbers."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    values = {"weight": weight.to(like.weight.dtype), "bias": bias.to(like.weight.dtype)}
    linear.load_state_dict(values, assign=True)
    return linear


class WithoutTokenAxis(nn.Module):
    """A network of these blocks, fused for inference, whose graph has no token axis for pooled pairs.

    In ONNX, linear maps of two axes become ``Gemm``; ``MatMul`` and ``Add`` took 3 % longer.

    Args:
        network: A network returned by `frevl.models.fusion.Fusion.for_inference`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the logits of pairs; shapes and masks are those of `frevl.models.fusion.Fusion.forward`."""
        net = self.network
        logits: Tensor
        if image.dim() == 3 or text.dim() == 3:
            logits = net(image, text, image_mask, text_mask)
            return logits
        v, t = mapped_gelu(net.image_projection, image), mapped_gelu(net.text_projection, text)
        for block in net.blocks:
            v, t = cast("Block", block).pooled(v, t)
        logits = net.head(net.compare(v, t))
        return logits
