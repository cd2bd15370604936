"""The FrEVL network: project two frozen embeddings, let each attend to the other, compare them, classify.

The method is that of arXiv 2508.04469. If the paper does not specify something, we follow its public code or choose
ourselves, and say so ("code", "ours").

Shapes: ``n`` pairs, ``Nv`` image tokens, ``Nt`` text tokens, ``d`` the width of the network. A pooled
embedding is one token. Masks are bool and True where a token exists; the content of a masked-out token, even NaN,
never reaches a score.

Dropout follows the GELU of every feed-forward part and of the head, never on attention weights (ours):
a pooled item is a single key, and dropping its weight would drop the whole other modality. Weights start as
PyTorch initialises them (ours: on a small set, larger initial weights overfitted sooner).

The 68.34 million parameters of ``base`` (``image_dim = text_dim = 768``, 3,129 outputs) are listed below. The
two directions share no weights; with these widths this matches the published budget of 68.4 million:

=================  ==============================================================  ==========  =========
part               what                                                              ours      published
=================  ==============================================================  ==========  =========
projections        2 (768*768 + 768)                                                1,181,184     1.2 M
cross-attention    4 blocks * 2 directions * (attention 4 (768*768 + 768)
                   + feed-forward 2*768*2752 + 2752 + 768 + 2 norms 2*768)         52,768,256    52.8 M
head               3072*2320 + 2320 + 2320*3129 + 3129                             14,391,769    14.4 M
=================  ==============================================================  ==========  =========

On pooled embeddings 13.8 % of ``base`` (the query and key maps) is never used: see ``blocks.Attention``.
"""

from __future__ import annotations

import copy
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.errors import UsageError, nearest
from frevl.models.blocks import (
    Block,
    FeedForward,
    WithoutTokenAxis,
    as_tokens,
    check_pairs,
    exact_sums,
    mapped_gelu,
    zero_masked,
)
from frevl.models.fusion_cpu import SharedItems, can_share_first_block, pair_logits, suits
from frevl.models.inputs import mean_pool
from frevl.models.interface import Items, PairLogits, PairNetwork, Projection

__all__ = ["PRESETS", "Fusion", "FusionPreset"]

_DROPOUT = 0.1


class FusionPreset(TypedDict):
    """The sizes of a fusion network.

    Attributes:
        width: ``d``, the width of every token inside the network.
        layers: Number of bidirectional blocks.
        heads: Attention heads; divides ``width``.
        ffn_width: Hidden width of the feed-forward parts.
        head_width: Hidden width of the head.
    """

    width: int
    layers: int
    heads: int
    ffn_width: int
    head_width: int


PRESETS: dict[str, FusionPreset] = {
    # ours, for CPUs; about 3 M parameters
    "tiny": {"width": 256, "layers": 2, "heads": 8, "ffn_width": 512, "head_width": 256},
    # the paper's component map (h in R^512, fused feature in R^2048); about 27 M
    "small": {"width": 512, "layers": 4, "heads": 8, "ffn_width": 2048, "head_width": 512},
    # the paper's parameter budget; widths ours, see above
    "base": {"width": 768, "layers": 4, "heads": 8, "ffn_width": 2752, "head_width": 2320},
}


class Fusion(PairNetwork):
    """The fusion network (arXiv 2508.04469, section 3.3).

    ``GELU(Wx + b)`` per modality; ``layers`` pre-norm blocks in which both directions read the same block
    input; masked mean over tokens; ``[hv ; ht ; hv*ht ; |hv-ht|]``; a two-layer head.
    """

    key = "fusion"
    item_work, scores_in_half = "grids", True

    def __init__(
        self,
        *,
        image_dim: int,
        text_dim: int,
        outputs: int = 1,
        width: int = 256,
        layers: int = 2,
        heads: int = 8,
        ffn_width: int = 512,
        head_width: int = 256,
        dropout: float = _DROPOUT,
        cross_attention: bool = True,
        interactions: bool = True,
        product: bool = True,
        difference: bool = True,
    ) -> None:
        """Build the network.

        Args:
            image_dim: Width of an image embedding.
            text_dim: Width of a text embedding.
            outputs: Logits per pair: 1 for matching, the number of classes for classification.
            width: ``d``, the width inside the network.
            layers: Number of blocks, 0 allowed.
            heads: Attention heads; must divide ``width``. Has no effect on pooled embeddings.
            ffn_width: Hidden width of the feed-forward parts.
            head_width: Hidden width of the head.
            dropout: Probability in [0, 1) of dropping a hidden unit while training.
            cross_attention: False removes the attention term of every block and keeps its feed-forward part.
            interactions: False is short for ``product=False, difference=False``: plain concatenation.
            product: Whether the fused feature holds ``hv*ht``.
            difference: Whether the fused feature holds ``|hv-ht|``.

        Raises:
            UsageError: A size is out of range, or ``heads`` does not divide ``width``.
        """
        super().__init__()
        product, difference = product and interactions, difference and interactions
        sizes = {
            "image_dim": image_dim,
            "text_dim": text_dim,
            "outputs": outputs,
            "width": width,
            "layers": layers,
            "heads": heads,
            "ffn_width": ffn_width,
            "head_width": head_width,
        }
        for name, size in sizes.items():
            least = 0 if name == "layers" else 1
            if size < least:
                raise UsageError(f"Fusion: {name} must be at least {least}, but is {size}.")
        if width % heads:
            raise UsageError(f"Fusion: heads must divide width, but width is {width} and heads is {heads}.")
        if not 0.0 <= dropout < 1.0:
            raise UsageError(f"Fusion: dropout must be at least 0 and below 1, but is {dropout}.")
        self.settings = {
            **sizes,
            "dropout": dropout,
            "cross_attention": cross_attention,
            "interactions": product or difference,
            "product": product,
            "difference": difference,
        }
        self.product, self.difference = product, difference
        self.is_fused = False
        self.sums_in_half = False  # faster but less accurate; used with weights in half precision
        self.image_projection = nn.Linear(image_dim, width)
        self.text_projection = nn.Linear(text_dim, width)
        self.blocks = nn.ModuleList(Block(width, heads, ffn_width, dropout, cross_attention) for _ in range(layers))
        self.head = FeedForward(width * (2 + product + difference), head_width, outputs, dropout, exact=True)

    @classmethod
    def from_preset(
        cls,
        preset: str,
        *,
        image_dim: int,
        text_dim: int,
        outputs: int,
        layers: int | None = None,
        dropout: float = _DROPOUT,
        cross_attention: bool = True,
        interactions: bool = True,
        product: bool = True,
        difference: bool = True,
    ) -> Fusion:
        """Build a network of a named size.

        Args:
            preset: A key of `PRESETS`.
            image_dim: Width of an image embedding.
            text_dim: Width of a text embedding.
            outputs: Logits per pair.
            layers: Number of blocks; None takes the preset's.
            dropout: Dropout probability in [0, 1); see the constructor, as for the flags below.
            cross_attention: Whether blocks attend.
            interactions: Whether the fused feature holds product and difference.
            product: Whether it holds the product.
            difference: Whether it holds the difference.

        Raises:
            UsageError: The preset does not exist, or a size is out of range.
        """
        if preset not in PRESETS:
            raise UsageError(f"There is no fusion preset '{preset}'. {nearest(preset, PRESETS)}")
        sizes = PRESETS[preset].copy()
        if layers is not None:
            sizes["layers"] = layers
        return cls(
            image_dim=image_dim,
            text_dim=text_dim,
            outputs=outputs,
            **sizes,
            dropout=dropout,
            cross_attention=cross_attention,
            interactions=interactions,
            product=product,
            difference=difference,
        )

    @classmethod
    def from_pretrained(cls, model: str, *, revision: str | None = None, **options: str | bool | None) -> Fusion:
        """Load a published network; for a whole run with its calibration and labels use ``Scorer.open``.

        Args:
            model: A folder (written by `save_pretrained`, or a run), or an id on the model hub.
            revision: Branch, tag or commit on the hub.
            options: Passed to `frevl.models.hub.load_network`.

        Raises:
            MissingExtraError: ``huggingface_hub`` is not installed.
            RunError: No fusion network was found, it is damaged, or the hub cannot be reached.
        """
        from frevl.models.hub import load_network

        return load_network(cls, model, revision=revision, **options)

    def save_pretrained(self, folder: str, *, card: str | None = None) -> None:
        """Write the network to a folder; see `frevl.models.hub.save_network`."""
        from frevl.models.hub import save_network

        save_network(self, folder, self.settings, card=card)

    def push_to_hub(self, repository: str, *, card: str | None = None, **options: str | bool | None) -> str:
        """Upload the network to the model hub and return the commit's URL; see `frevl.models.hub.push_network`."""
        from frevl.models.hub import push_network

        return push_network(self, repository, self.settings, card=card, **options)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of pairs.

        Args:
            image: ``(n, image_dim)`` pooled or ``(n, Nv, image_dim)`` token embeddings.
            text: ``(n, text_dim)`` or ``(n, Nt, text_dim)``; may be pooled even if ``image`` is not.
            image_mask: ``(n, Nv)`` bool, True where a token exists; without it all exist.
            text_mask: ``(n, Nt)`` bool.

        Returns:
            ``(n, outputs)`` logits.

        Raises:
            UsageError: Shapes do not match the network or each other.
        """
        pooled = image.dim() == text.dim() == 2 and image_mask is None and text_mask is None
        if self.is_fused and pooled and suits(self, image, text):
            check_pairs(as_tokens("image", image, self.image_projection), as_tokens("text", text, self.text_projection))
            return pair_logits(self, image, text)
        image_hidden, text_hidden = self.project(image, text)
        logits: Tensor = self.head(self.fuse(image_hidden, text_hidden, image_mask, text_mask))
        return logits

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the hidden units of the head, scaled to unit length: ``{"pair": (n, head_width)}``."""
        fused = self.fuse(*self.project(image, text), image_mask, text_mask)
        return {"pair": F.normalize(self.head.hidden(fused).float(), dim=1)}

    def project(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Project both modalities, to ``(n, Nv, width)`` and ``(n, Nt, width)``."""
        return self.project_image(image), self.project_text(text)

    def project_image(self, image: Tensor) -> Tensor:
        """Return ``GELU(Wx + b)`` of ``(n, image_dim)`` or ``(n, Nv, image_dim)`` as ``(n, Nv, width)``."""
        return mapped_gelu(self.image_projection, as_tokens("image", image, self.image_projection))

    def project_text(self, text: Tensor) -> Tensor:
        """Return ``GELU(Wx + b)`` of ``(n, text_dim)`` or ``(n, Nt, text_dim)`` as ``(n, Nt, width)``."""
        return mapped_gelu(self.text_projection, as_tokens("text", text, self.text_projection))

    def fuse(
        self,
        image_hidden: Tensor,
        text_hidden: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the blocks on projected tokens and return the fused feature.

        Args:
            image_hidden: ``(n, Nv, width)`` from ``project_image``.
            text_hidden: ``(n, Nt, width)`` from ``project_text``.
            image_mask: ``(n, Nv)`` bool, True where a token exists.
            text_mask: ``(n, Nt)`` bool.

        Returns:
            ``(n, 4 * width)``: ``[hv ; ht ; hv*ht ; |hv-ht|]``, where ``hv`` and ``ht`` are the means over the existing
                tokens (zero if there are none). Parts that are switched off are missing: ``(n, 2 * width)`` with
                ``interactions=False``. The first ``2 * width`` columns are always ``hv`` and ``ht``.

        Raises:
            UsageError: The numbers of images and texts differ, or a mask does not fit.
        """
        check_pairs(image_hidden, text_hidden)
        v = zero_masked("image", image_hidden if self.sums_in_half else exact_sums(image_hidden), image_mask)
        t = zero_masked("text", text_hidden if self.sums_in_half else exact_sums(text_hidden), text_mask)
        for block in self.blocks:
            v, t = block(v, t, image_mask, text_mask)
        return self.compare(mean_pool(v, image_mask), mean_pool(t, text_mask))

    def compare(self, hv: Tensor, ht: Tensor) -> Tensor:
        """Return ``[hv ; ht ; hv*ht ; |hv-ht|]`` for ``(n, width)`` inputs, without the parts that are switched off."""
        parts = [hv, ht] + ([hv * ht] if self.product else []) + ([(hv - ht).abs()] if self.difference else [])
        return torch.cat(parts, dim=-1)

    def parameter_counts(self) -> dict[str, int]:
        """Return the number of parameters by part: ``projections``, ``cross_attention`` (whole blocks), ``head``."""
        parts: dict[str, list[nn.Module]] = {
            "projections": [self.image_projection, self.text_projection],
            "cross_attention": [self.blocks],
            "head": [self.head],
        }
        return {
            part: sum(parameter.numel() for module in modules for parameter in module.parameters())
            for part, modules in parts.items()
        }

    def for_inference(self) -> Fusion:
        """Return a frozen copy with the same outputs and less work; this network is not changed.

        ``W_o W_v`` becomes one matrix wherever a modality has one token, the scale and shift of every LayerNorm are
        absorbed by the linear maps that follow it, and consecutive biases are merged. Exact except for float32 rounding
        (computed in float64). On a CPU, pooled pairs are then computed by `frevl.models.fusion_cpu`. The copy is in
        evaluation mode, needs no gradients, and has different weights: save and train the original.
        """
        twin = copy.deepcopy(self).eval()
        for block in twin.blocks.children():
            if isinstance(block, Block):
                block.fuse_for_inference()
        for module in twin.modules():
            if isinstance(module, nn.Linear):
                # The same matrix in the memory layout that products of few rows read: up to a fifth faster, as
                # measured.
                module.weight = nn.Parameter(module.weight.detach().t().contiguous().t())
        twin.is_fused = True
        return twin.requires_grad_(False)

    def for_export(self) -> nn.Module:
        """Return the network fused for inference, without a token axis for pooled pairs."""
        return WithoutTokenAxis(self.for_inference())

    def image_items(self, image: Tensor, image_mask: Tensor | None = None) -> Items:  # noqa: ARG002
        """Return the projected tokens of images."""
        return (self.project_image(image),)

    def text_items(self, text: Tensor, text_mask: Tensor | None = None) -> Items:  # noqa: ARG002
        """Return the projected tokens of texts."""
        return (self.project_text(text),)

    def score_items(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Apply the blocks and the head to projected tokens."""
        (image,), (text,) = images, texts
        logits: Tensor = self.head(self.fuse(image, text, image_mask, text_mask))
        return logits

    def projections(self) -> tuple[Projection, Projection]:
        """Return `project_image` and `project_text`."""
        return self.project_image, self.project_text

    def shared_scorer(self, images: Items, texts: Items) -> PairLogits | None:
        """For pooled items, share the first block too, which is mostly work on single items (`SharedItems`)."""
        (image,), (text,) = images, texts
        pooled = image.shape[1] == text.shape[1] == 1
        if not (self.is_fused and pooled and can_share_first_block(self.settings, len(image) + len(text))):
            return None
        return SharedItems(self, image[:, 0], text[:, 0]).logits if suits(self, image, text) else None
