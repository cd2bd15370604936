"""The contrastive term of FrEVL's loss: InfoNCE in which rows that share an image or a text are never negatives.

Its matrix of similarities grows with the square of the batch, so everything else about it is kept small: the few
positives are a list, found on the CPU, and the gradient is written in closed form (ours). On an H200, passes over that
matrix took 10.6 ms of a batch of 8,192 before, 2.5 now (docs/accelerator.md).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from frevl.errors import UsageError

__all__ = ["Positives", "contrastive_loss"]


class Positives(NamedTuple):
    """The positives of a batch of ``n`` rows: all pairs of rows that share an image or a text, each row with itself.

    Attributes:
        places: ``(p,)`` int64, ``row * n + column``.
        shares: ``(2, p)`` float32: the weight of a positive among those of its row, and among those of its column. Both
            are 0 for padding.
    """

    places: Tensor
    shares: Tensor

    @classmethod
    def of(
        cls, image_ids: Tensor, text_ids: Tensor, matching: Tensor | None = None, *, padded: bool = False
    ) -> Positives:
        """Find the positives.

        Args:
            image_ids: ``(m,)`` integers, equal for rows with the same image.
            text_ids: ``(m,)`` integers, equal for rows with the same text.
            matching: ``(n,)`` int64, the rows whose image and text belong together; None for all. Other rows are left
                out altogether, even as negatives: their texts and images usually occur in matching rows as well.
            padded: Pad the list to one of few lengths, so that steps recorded for one batch fit others.
        """
        if matching is not None:
            image_ids, text_ids = image_ids[matching], text_ids[matching]
        n = len(image_ids)
        # In numpy: PyTorch would wake all its threads for each of these small steps.
        by_image, by_text = (_places_of_equals(ids.cpu().numpy()) for ids in (image_ids, text_ids))
        if len(by_text) == n:  # every row has a text of its own, and each row is among the equals of its image
            places = by_image
        elif len(by_image) == n:
            places = by_text
        elif _SPARSE * (len(by_image) + len(by_text)) < n * n:
            places = np.union1d(by_image, by_text)
        else:  # sorting them would take longer than looking at all pairs
            flags = np.zeros(n * n, dtype=np.bool_)
            flags[by_image] = flags[by_text] = True
            places = np.flatnonzero(flags)
        rows = np.stack([places // max(n, 1), places % max(n, 1)])
        shares = (1.0 / np.bincount(rows[0], minlength=n)).astype(np.float32)[rows]
        if padded and n:
            short = n + _length_above(len(places) - n) - len(places)
            places, shares = np.pad(places, (0, short)), np.pad(shares, ((0, 0), (0, short)))
        return cls(torch.from_numpy(places), torch.from_numpy(shares))


_SPARSE = 64  # pairs of rows for each positive


def _places_of_equals(ids: NDArray[Any]) -> NDArray[np.int64]:
    """Return ``row * n + column`` of all pairs of rows with equal ids, rows with themselves included."""
    n, order = len(ids), np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=ids[order[:1]] - 1))
    if len(starts) == n:
        return np.arange(n) * (n + 1)
    counts = np.diff(starts, append=n)
    partners = np.repeat(counts, counts)  # of each row in the order: how many rows are equal to it
    first = np.repeat(starts, counts) - np.cumsum(partners) + partners
    places: NDArray[np.int64] = np.repeat(order, partners) * n
    places += order[np.repeat(first, partners) + np.arange(len(places))]
    return places


def _length_above(count: int) -> int:
    """Return 64, 128, 256, ...: the first that is not below ``count``."""
    return max(64, 1 << max(count - 1, 0).bit_length())


def contrastive_loss(image_hidden: Tensor, text_hidden: Tensor, positives: Positives, *, temperature: float) -> Tensor:
    """Return the symmetric InfoNCE in which rows that share an image or a text are never negatives.

    With ``s[i, j]`` the cosine of image ``i`` and text ``j`` divided by the temperature, ``P(i)`` the rows that share
    an image or a text with row ``i`` (itself included) and ``N(i)`` all others::

        image to text, row i:  mean over p in P(i) of  -log( exp s[i,p] / (exp s[i,p] + sum over N(i) of exp s[i,j]) )

    likewise from text to image, and the mean of both over all rows. Without shared ids this is the InfoNCE of CLIP. The
    denominator of a positive leaves out the other positives (ours). So no positive is ever pushed away, as it would be
    in a softmax over all of them, and each must beat the negatives on its own, which the logarithm of their summed
    probability would not require. This waits for no device.

    Args:
        image_hidden: ``(n, d)`` image features; normalised here.
        text_hidden: ``(n, d)`` text features; normalised here.
        positives: The positives of these rows.
        temperature: Positive.

    Returns:
        A scalar of at least 0. It is exactly 0, with a gradient of 0, if there is no row, or none has a negative (a
        batch of one pair, or of one image).

    Raises:
        UsageError: Shapes do not match, or the temperature is not positive.
    """
    if image_hidden.dim() != 2 or text_hidden.shape != image_hidden.shape:
        raise UsageError(
            "contrastive_loss expects images and texts (n, d), but got "
            f"{tuple(image_hidden.shape)} and {tuple(text_hidden.shape)}."
        )
    if temperature <= 0:
        raise UsageError(f"contrastive_loss: temperature must be positive, but is {temperature}.")
    # The larger floor for the norm keeps the gradient of an all-zero vector (an item without tokens) small.
    v, t = F.normalize(image_hidden, dim=1, eps=1e-6), F.normalize(text_hidden, dim=1, eps=1e-6)
    similarity = (v / temperature) @ t.T
    if not len(similarity):
        return similarity.sum() + 0.0 * (v.sum() + t.sum())
    return cast("Tensor", _Contrast.apply(similarity, *positives))  # type: ignore[no-untyped-call]


class _Contrast(torch.autograd.Function):
    """The loss of ``(n, n)`` similarities, with the gradient computed beside it.

    With ``l(i) = log sum over N(i) of exp s[i,j]``, a positive of row ``i`` costs ``softplus(l(i) - s[i,p])``, which
    neither overflows nor cancels. Its derivative is ``-sigmoid(l(i) - s[i,p])``, and that of ``l(i)`` is the softmax
    over the negatives. Columns likewise.
    """

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, places: Tensor, shares: Tensor) -> Tensor:
        n, dtype = similarity.shape[0], similarity.dtype
        exact = torch.promote_types(dtype, torch.float32)
        # Finite instead of -inf, so that a row without negatives has a gradient of 0 instead of NaN.
        least = torch.finfo(dtype).min / 4
        flat, shares = similarity.flatten(), shares.to(exact) * (0.5 / n)
        right, negatives = flat[places].to(exact), flat.scatter(0, places, least).view(n, n)
        loss, gradient, pulled = right.new_zeros(()), None, torch.zeros_like(right)
        for dim, at, share in ((1, places // n, shares[0]), (0, places % n, shares[1])):
            # A softmax in steps: PyTorch's own over columns is slow on an accelerator. In place, and with a dtype for
            # the sum, because autocast would otherwise choose float32, twice the memory to pass over.
            most = negatives.amax(dim, keepdim=True)
            softmax = (negatives - most).exp_()
            total = softmax.sum(dim, dtype=exact)
            margin = (most.flatten().to(exact) + total.log())[at] - right
            loss = loss + (share * F.softplus(margin)).sum()
            pull = share * torch.sigmoid(margin)
            pulled = pulled + pull
            pushed = (right.new_zeros(n).index_add_(0, at, pull) / total).to(dtype)
            softmax.mul_(pushed[:, None] if dim == 1 else pushed)
            gradient = softmax if gradient is None else gradient.add_(softmax)
        gradient = cast("Tensor", gradient)
        ctx.save_for_backward(gradient.flatten().scatter_add_(0, places, -pulled.to(dtype)).view(n, n))
        return loss

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * above[0].to(gradient.dtype), None, None
