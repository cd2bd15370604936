"""The network of `frevl classify`, from images to class logits, by names, examples, or both."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.errors import UsageError
from frevl.models.classification.heads import Features, Head, Memory, unit_features
from frevl.models.inputs import ZScore, frozen, mean_pool, stored_in_half
from frevl.models.interface import Build, PairNetwork, Searchable, TransformableTexts

__all__ = ["ClassNetwork", "searchable"]


class ClassNetwork(PairNetwork):
    """A `Head` with everything needed to apply it: statistics of the examples, name vectors, kept examples.

    Token embeddings are mean-pooled. The text of a pair is ignored.
    """

    key = "classes"
    no_int8 = "the kept examples and name vectors are compared by small differences of cosines"

    def __init__(
        self,
        *,
        image_dim: int,
        outputs: int,
        text_dim: int = 0,
        name_dim: int = 0,
        names: float = 0.0,
        examples: int = 0,
        memories: list[dict[str, Any]] | None = None,
        space: PairNetwork | None = None,
        linear: bool = True,
    ) -> None:
        """Allocate room for a head; `take` fills it.

        Args:
            image_dim: Width of an image embedding.
            outputs: Number of classes.
            text_dim: Always 0, because the texts of pairs are ignored.
            name_dim: Width of a name vector; 0 without names.
            names: Scale of the cosines with the name vectors.
            examples: Number of examples kept for the memories.
            memories: ``{"width", "on_unit"}`` of each sum over examples; see
                `frevl.models.classification.heads.Memory`.
            space: The network whose text vectors serve as names: the ``cosine`` of encoders with a common space, or a
                trained first stage.
            linear: Whether the head has weights; without them, a matrix product is saved.

        Raises:
            UsageError: The sizes do not fit together.
        """
        super().__init__()
        memories = memories or []
        if text_dim:
            raise UsageError(f"classes: expected no width of texts, found {text_dim}")
        if memories and not examples:
            raise UsageError(f"classes: {len(memories)} sums over examples need examples, found none")
        self.settings = {
            "image_dim": image_dim,
            "text_dim": 0,
            "outputs": outputs,
            "name_dim": name_dim,
            "names": names,
            "examples": examples,
            "memories": memories,
            "space": None if space is None else {"key": space.key, "settings": space.settings},
            "linear": linear,
        }
        self.mean, self.scale = frozen(image_dim), frozen(image_dim, fill=1.0)
        self.space = space
        self.name_vectors = frozen(outputs, name_dim)
        self.weight, self.bias = frozen(outputs, image_dim), frozen(outputs)
        self.examples = frozen(examples, image_dim)
        self.coefficients = nn.ParameterList(frozen(examples, outputs) for _ in memories)
        stored_in_half(self, inner=False)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], build: Build) -> ClassNetwork:
        """Build the network and, if it has names, the network of their space."""
        settings = dict(settings)
        inner = settings.pop("space", None)
        return cls(**settings, space=None if inner is None else build(inner["key"], inner["settings"]))

    def take(self, head: Head, statistics: ZScore, names: Tensor | None, examples: Tensor) -> None:
        """Fill the network.

        Args:
            head: The head to compute.
            statistics: Mean and standard deviation of the examples, used by `unit_features`.
            names: ``(outputs, name_dim)`` unit vectors of the names.
            examples: ``(examples, image_dim)`` embeddings that the head was fitted on.
        """
        with torch.no_grad():
            self.mean.copy_(statistics.mean)
            self.scale.copy_(statistics.scale)
            if names is not None:
                self.name_vectors.copy_(names)
            self.weight.copy_(head.weight)
            self.bias.copy_(head.bias)
            if head.memories:
                self.examples.copy_(examples)
            for own, memory in zip(self.coefficients, head.memories, strict=True):
                own.copy_(memory.coefficients)

    @property
    def statistics(self) -> ZScore:
        """Mean and standard deviation of the examples."""
        return ZScore(self.mean, self.scale)

    def head(self) -> Head:
        """Return the head, which computes the logits from features."""
        memories = tuple(
            Memory(coefficients, float(one["width"]), bool(one["on_unit"]))
            for coefficients, one in zip(self.coefficients, self._settings["memories"], strict=True)
        )
        return Head(float(self._settings["names"]), self.weight, self.bias, memories, bool(self._settings["linear"]))

    def features(self, image: Tensor, *, with_names: bool = True) -> Features:
        """Return the features of ``(n, image_dim)`` embeddings, without cosines if ``with_names`` is False."""
        cosines = self._cosines(image) if with_names else None
        return Features(F.normalize(image, dim=1), unit_features(image, self.statistics), cosines)

    def _cosines(self, image: Tensor) -> Tensor | None:
        return None if self.space is None else searchable(self.space).image_vectors(image) @ self.name_vectors.T

    @property
    def _transformable_space(self) -> TransformableTexts | None:
        if self.space is None:
            return None
        first: object = self.space.first_stage
        return self.space.transformable_texts if first is self.space else None  # a run that reranks contains it

    @property
    def transformable_texts(self) -> ClassNetwork | None:
        """This network, if its names are vectors of a space that linear maps can transform; otherwise None."""
        return None if self._transformable_space is None else self

    @property
    def text_blocks(self) -> list[int]:
        """Widths of the parts of a name vector."""
        return [] if self._transformable_space is None else self._transformable_space.text_blocks

    def with_text_maps(self, maps: Sequence[Tensor]) -> ClassNetwork:
        """Transform the name vectors part by part; each part keeps its length."""
        twin = deepcopy(self)
        parts = torch.split(self.name_vectors, [len(one) for one in maps], dim=1)
        turned = [
            F.normalize(part @ one.T, dim=1) * part.norm(dim=1, keepdim=True)
            for part, one in zip(parts, maps, strict=True)
        ]
        with torch.no_grad():
            twin.name_vectors.copy_(torch.cat(turned, dim=1))
        return twin.eval()

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, outputs)`` logits; the text is ignored."""
        del text, text_mask
        head, pooled = self.head(), mean_pool(image, image_mask)
        if head.linear or head.memories:
            standard = unit_features(pooled, self.statistics)
            unit = F.normalize(pooled, dim=1) if any(memory.on_unit for memory in head.memories) else standard
            fitted = Features(unit, standard, None)
            logits = head.with_names(0.0).logits(fitted, self._kept if head.memories else None)
            summed = 1
        else:
            logits, summed = head.bias, 0  # which is zero then
        if self.space is None or not head.names:
            return logits if summed else logits.expand(len(pooled), -1)
        # One product that scales and adds: with a matrix of cosines, as much time was spent on memory as on ranking.
        vectors = searchable(self.space).image_vectors(pooled)
        return torch.addmm(logits, vectors, self.name_vectors.T, beta=summed, alpha=head.names)

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the standardised image at unit length, ``{"image": (n, image_dim)}``; see `unit_features`."""
        del text, text_mask
        return {"image": unit_features(mean_pool(image, image_mask), self.statistics)}

    @property
    def _kept(self) -> Features:
        return Features(F.normalize(self.examples, dim=1), unit_features(self.examples, self.statistics), None)


def searchable(network: PairNetwork) -> Searchable:
    """Return the first stage of a network, whose text vectors can serve as class names.

    Raises:
        UsageError: The network has no first stage.
    """
    first_stage = network.first_stage
    if first_stage is None:
        raise UsageError(f"classes: expected a network with a first stage to hold the names, found '{network.key}'")
    return first_stage
