"""The fusion, fused for inference, on pooled pairs: blocks of rows that stay in a core's cache (ours).

The result is that of `Fusion.forward` except for float32 rounding. Time is saved on everything except the matrix
products: activations never leave the cache, a block's buffers are reused by the next, norms and GELU process both
modalities together, and every core has its own blocks, so that cores wait for each other once per call instead of once
per operation. This is for inference on CPUs only.

The two modalities of a block of rows lie in one buffer, ``(2, rows, d)``, the image first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from frevl.models.blocks import Block, FeedForward

__all__ = ["SharedItems", "can_share_first_block", "pair_logits", "parallel_rows", "suits"]

_CACHE_BYTES = 2 << 20  # per core
_FEW_ROWS, _MANY_ROWS = 128, 512  # per block: few if its activations then fit the cache; else wide products matter more
_gelu = torch.ops.aten.gelu_


class FusedNetwork(Protocol):
    """The parts of a fusion after `Fusion.for_inference` from which blocks of rows are computed."""

    image_projection: nn.Linear
    text_projection: nn.Linear
    blocks: nn.ModuleList
    head: FeedForward
    product: bool
    difference: bool


def suits(network: FusedNetwork, *inputs: Tensor) -> bool:
    """Return whether this module can compute the inputs: float32 on a CPU, with no gradients and no tracing."""
    weight = network.image_projection.weight
    if torch.is_grad_enabled() and any(one.requires_grad for one in inputs):
        return False
    same = all(one.device.type == "cpu" and one.dtype == weight.dtype == torch.float32 for one in inputs)
    return same and weight.device.type == "cpu" and not torch.compiler.is_compiling()


def pair_logits(network: FusedNetwork, image: Tensor, text: Tensor) -> Tensor:
    """Return the ``(n, outputs)`` logits of pairs.

    Args:
        network: Returned by `Fusion.for_inference`.
        image: ``(n, image_dim)`` float32; must pass `suits`, like ``text``.
        text: ``(n, text_dim)``.
    """
    logits = image.new_empty(len(image), network.head.outer.out_features)

    def work(start: int, stop: int) -> None:
        parts = _Parts(network)
        room = _Room(parts, stop - start)
        for rows in room.blocks(start, stop):
            hidden = room.hidden(rows)
            for side, items in enumerate((image, text)):
                torch.mm(items[rows], parts.projections[side], out=hidden[side])
            hidden.add_(parts.projection_bias)
            _gelu(hidden)
            for block in parts.blocks:
                _block(block, hidden, parts, room)
            _decide(parts, hidden, room, logits[rows])

    parallel_rows(work, len(image))
    return logits


_MOST_SHARED_BYTES = 1 << 30


def can_share_first_block(settings: dict[str, Any], items: int) -> bool:
    """Return whether `SharedItems` for this many items fit in bounded memory; ``settings`` are those of a `Fusion`."""
    floats = 2 * items * (settings["width"] + settings["ffn_width"])
    return bool(settings["layers"] and settings["cross_attention"]) and 4 * floats <= _MOST_SHARED_BYTES


class SharedItems:
    """Scores pairs of few items, doing all work that depends on one item alone only once.

    That is the projection, what the first block reads from the other side (``W_o W_v LN(x)`` depends on the item that
    is read), and, as the norm is linear except for its division, most of the first block's feed-forward part too::

        W LN(x_image + y_text) + b = (W C x_image + W C y_text) / deviation + b,    C y = y - mean(y)

    where ``y_text`` is what the image reads. Only the division, and everything from the GELU onwards, is done per pair.
    """

    def __init__(self, network: FusedNetwork, image: Tensor, text: Tensor) -> None:
        """Do the work on single items.

        Args:
            network: Returned by `Fusion.for_inference`, with at least one block and with cross-attention.
            image: ``(images, width)`` from `Fusion.project_image`.
            text: ``(texts, width)`` from `Fusion.project_text`.
        """
        self._parts = _Parts(network)
        first = self._parts.blocks[0]
        # Both sides of the first block's input are sums of the item's own part and of what it reads from the other.
        self._image, self._text = [image, image], [text, text]
        self._image[1] = _norm(image, self._parts, first) @ first.reads[1] + first.reads_bias[1]
        self._text[0] = _norm(text, self._parts, first) @ first.reads[0] + first.reads_bias[0]
        centred = [_centred(weight) for weight in first.inner]
        self._image_inner = [x @ weight for x, weight in zip(self._image, centred, strict=True)]
        self._text_inner = [x @ weight for x, weight in zip(self._text, centred, strict=True)]

    def logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the ``(n, outputs)`` logits of the pairs of ``(n,)`` image rows and ``(n,)`` text rows."""
        parts = self._parts
        logits = self._image[0].new_empty(len(rows), parts.outputs)

        def work(start: int, stop: int) -> None:
            room = _Room(parts, stop - start)
            for part in room.blocks(start, stop):
                hidden = room.hidden(part)
                self._first_block(rows[part], columns[part], hidden, room)
                for block in parts.blocks[1:]:
                    _block(block, hidden, parts, room)
                _decide(parts, hidden, room, logits[part])

        parallel_rows(work, len(rows))
        return logits

    def _first_block(self, rows: Tensor, columns: Tensor, hidden: Tensor, room: _Room) -> None:
        first, inner = self._parts.blocks[0], room.inner(slice(0, len(rows)))
        for side in (0, 1):
            torch.index_select(self._image[side], 0, rows, out=hidden[side])
            hidden[side].add_(self._text[side].index_select(0, columns))
            torch.index_select(self._image_inner[side], 0, rows, out=inner[side])
            inner[side].add_(self._text_inner[side].index_select(0, columns))
        one_over_deviation = torch.native_layer_norm(hidden, *self._parts.norm, first.epsilon)[2]
        inner.mul_(one_over_deviation)
        _finish_feed_forward(first, hidden, inner)


class _Sides(NamedTuple):
    """A block as products ``(rows, inputs) @ (inputs, outputs)``, the image's first; biases are ``(2, 1, outputs)``.

    Without cross-attention ``reads`` is empty.
    """

    reads: list[Tensor]
    reads_bias: Tensor
    inner: list[Tensor]
    inner_bias: Tensor
    outer: list[Tensor]
    outer_bias: Tensor
    epsilon: float


class _Parts:
    """A network's matrices, laid out for the products here; they share the network's memory."""

    def __init__(self, network: FusedNetwork) -> None:
        self.projections = _matrices(network.image_projection, network.text_projection)
        self.projection_bias = _biases(network.image_projection, network.text_projection)
        self.blocks = [_sides(cast("Block", block)) for block in network.blocks]
        self.decision, self.decision_bias = network.head.outer.weight.t(), network.head.outer.bias
        self.product, self.difference = network.product, network.difference
        self.outputs, self.width = network.head.outer.out_features, network.image_projection.out_features
        # One matrix for each part of the fused feature, so that it need not be concatenated.
        self.head = network.head.inner.weight.t().split(self.width)  # type: ignore[no-untyped-call]
        self.head_bias = network.head.inner.bias
        # With scale and shift, PyTorch's norm is vectorised; without them it was measured to be 1.5 times slower.
        self.norm = ([self.width], torch.ones(self.width), torch.zeros(self.width))


def _sides(block: Block) -> _Sides:
    image, text, reads = block.image_ffn, block.text_ffn, []
    reads_bias = torch.zeros(2, 1, 1)
    if block.cross is not None:
        maps = [block.cross.image_reads_text.output_value, block.cross.text_reads_image.output_value]
        fused = [cast("nn.Linear", one) for one in maps]
        reads, reads_bias = _matrices(*fused), _biases(*fused)
    return _Sides(
        reads, reads_bias, _matrices(image.inner, text.inner), _biases(image.inner, text.inner),
        _matrices(image.outer, text.outer), _biases(image.outer, text.outer), block.image_norm.eps,
    )  # fmt: skip


def _matrices(*maps: nn.Linear) -> list[Tensor]:
    return [one.weight.t() for one in maps]


def _biases(*maps: nn.Linear) -> Tensor:
    return torch.stack([one.bias for one in maps])[:, None]


def _centred(weight: Tensor) -> Tensor:
    """Return ``C W`` of a ``(d, outputs)`` matrix: each column minus its mean, computed in float64."""
    exact = weight.double()
    return (exact - exact.mean(dim=0)).to(weight.dtype)


class _Room:
    """The buffers of one core, overwritten by every block of rows."""

    def __init__(self, parts: _Parts, most: int) -> None:
        self.width = parts.width
        self.ffn_width = max((block.inner[0].shape[1] for block in parts.blocks), default=0)
        head_width = parts.head[0].shape[1]
        floats = 5 * self.width + 2 * self.ffn_width + head_width
        self.rows = min(most, _FEW_ROWS if 4 * floats * _FEW_ROWS <= _CACHE_BYTES else _MANY_ROWS)
        self._hidden = torch.empty(2 * self.rows * self.width)
        self._inner = torch.empty(2 * self.rows * self.ffn_width)
        self.compared = torch.empty(self.rows, self.width)
        self.head = torch.empty(self.rows, head_width)

    def hidden(self, rows: slice) -> Tensor:
        """Return a ``(2, rows, width)`` buffer, the shape of every tensor called ``hidden`` here."""
        return _three(self._hidden, rows.stop - rows.start, self.width)

    def inner(self, rows: slice) -> Tensor:
        """Return a ``(2, rows, ffn_width)`` buffer."""
        return _three(self._inner, rows.stop - rows.start, self.ffn_width)

    def blocks(self, start: int, stop: int) -> list[slice]:
        """Split rows into blocks that fit the buffers."""
        return [slice(first, min(first + self.rows, stop)) for first in range(start, stop, self.rows)]


def _three(buffer: Tensor, rows: int, width: int) -> Tensor:
    return buffer[: 2 * rows * width].view(2, rows, width)


def _norm(x: Tensor, parts: _Parts, block: _Sides) -> Tensor:
    return torch.layer_norm(x, *parts.norm, block.epsilon)


def _block(block: _Sides, hidden: Tensor, parts: _Parts, room: _Room) -> None:
    """Apply `frevl.models.blocks.Block` to ``(2, rows, d)``, in place."""
    if block.reads:
        seen = _norm(hidden, parts, block)
        hidden.add_(block.reads_bias)
        hidden[0].addmm_(seen[1], block.reads[0])
        hidden[1].addmm_(seen[0], block.reads[1])
    seen = _norm(hidden, parts, block)
    inner = room.inner(slice(0, hidden.shape[1]))
    for side in (0, 1):
        torch.mm(seen[side], block.inner[side], out=inner[side])
    _finish_feed_forward(block, hidden, inner)


def _finish_feed_forward(block: _Sides, hidden: Tensor, inner: Tensor) -> None:
    """Compute the feed-forward part from its first bias onwards."""
    _gelu(inner.add_(block.inner_bias))  # two passes are faster than `torch.addmm`, which copies the bias to every row
    hidden.add_(block.outer_bias)
    for side in (0, 1):
        hidden[side].addmm_(inner[side], block.outer[side])


def _decide(parts: _Parts, hidden: Tensor, room: _Room, logits: Tensor) -> None:
    """Build the fused feature and run the head."""
    v, t = hidden
    compared, inner, matrices = room.compared[: len(v)], room.head[: len(v)], iter(parts.head)
    torch.mm(v, next(matrices), out=inner)
    inner.addmm_(t, next(matrices))
    if parts.product:
        inner.addmm_(torch.mul(v, t, out=compared), next(matrices))
    if parts.difference:
        inner.addmm_(torch.sub(v, t, out=compared).abs_(), next(matrices))
    _gelu(inner.add_(parts.head_bias))
    torch.addmm(parts.decision_bias, inner, parts.decision, out=logits)


_LEAST_SHARE = 32  # rows; smaller shares of a call are not worth another core


def parallel_rows(work: Callable[[int, int], None], count: int) -> None:
    """Share rows among as many cores as PyTorch would use.

    Args:
        work: Called with the first row of a share and the row after its last, in inference mode.
        count: Number of rows. If there are few, they stay in the caller's thread, where an operation may use several
            cores.
    """
    cores = min(torch.get_num_threads(), count // _LEAST_SHARE)
    if cores <= 1:
        with torch.inference_mode():
            work(0, count)
        return
    share = -(-count // cores)
    starts = range(0, count, share)

    def alone(start: int) -> None:
        with torch.inference_mode():
            work(start, min(start + share, count))

    list(_workers(torch.get_num_threads()).map(alone, starts))


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Return threads whose operations each stay on one core."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="frevl-core")
    all_here = threading.Barrier(count)

    def settle() -> None:
        all_here.wait()  # otherwise one thread could take two of these calls
        torch.get_num_threads()  # a thread takes the global number at first use, whatever was set before
        torch.set_num_threads(1)

    for done in [pool.submit(settle) for _ in range(count)]:
        done.result()
    # The call sets the number for its own thread, as intended, and for future threads, which is not intended.
    torch.set_num_threads(count)
    return pool


os.register_at_fork(after_in_child=_workers.cache_clear)  # threads do not survive a fork
