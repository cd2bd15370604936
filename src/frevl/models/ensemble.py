"""The average of several fitted networks as one network, so that an ensemble is an ordinary run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, logit, nn

from frevl.models.inputs import ZScore
from frevl.models.interface import Build, PairNetwork

__all__ = ["Average"]


class Average(PairNetwork):
    """The logarithm of the mean (optionally weighted) of its members' calibrated probabilities."""

    key = "average"

    def __init__(
        self, members: Sequence[PairNetwork], calibrations: Sequence[Mapping[str, float]], *, soft: bool
    ) -> None:
        """Average networks, which become submodules of this one.

        Args:
            members: The networks, at least one.
            calibrations: ``scale`` and ``offset`` of each member, and optionally its ``weight`` (1 if absent).
            soft: True if every class has a probability of its own: sigmoid instead of softmax.
        """
        super().__init__()
        self.settings = {
            "members": [
                {"network": member.key, "settings": member.settings, **calibration}
                for member, calibration in zip(members, calibrations, strict=True)
            ],
            "soft": soft,
        }
        self.soft = soft
        self.calibrations = [(float(one["scale"]), float(one["offset"])) for one in calibrations]
        total = sum(float(one.get("weight", 1)) for one in calibrations)
        self.weights = [float(one.get("weight", 1)) / total for one in calibrations]
        self.members = nn.ModuleList(members)
        self.no_int8 = next((member.no_int8 for member in members if member.no_int8), "")

    @classmethod
    def from_settings(cls, settings: dict[str, Any], build: Build) -> Average:
        """Build the average and its members without their weights."""
        members = [build(one["network"], one["settings"]) for one in settings["members"]]
        calibrations = [
            {name: value for name, value in one.items() if name not in ("network", "settings")}
            for one in settings["members"]
        ]
        return cls(members, calibrations, soft=settings["soft"])

    @classmethod
    def of(cls, networks: Sequence[PairNetwork], calibrations: Sequence[Mapping[str, float]], *, soft: bool) -> Average:
        """Average copies of fitted networks; arguments as in the constructor."""
        return cls([deepcopy(network) for network in networks], calibrations, soft=soft).eval()

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, outputs)`` logits; the shapes are those of `PairNetwork.forward`."""
        total: Tensor | None = None
        for own, weight in zip(self._probabilities(image, text, image_mask, text_mask), self.weights, strict=True):
            total = weight * own if total is None else total + weight * own
        if total is None:
            return image.new_zeros(len(image), 0)
        mean = total.clamp(1e-7, 1 - 1e-7)
        return logit(mean) if self.soft else mean.log()

    def _probabilities(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
    ) -> Iterator[Tensor]:
        """Yield the ``(n, outputs)`` calibrated probabilities of each member."""
        for member, (scale, offset) in zip(self.members, self.calibrations, strict=True):
            logits = member(image, text, image_mask, text_mask) * scale + offset
            yield logits.sigmoid() if self.soft else logits.softmax(dim=1)

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """Return the last-layer inputs of all members, by number and side; None if a member has none."""
        found: dict[str, Tensor] = {}
        for number, member in enumerate(self._members()):
            own = member.last_layer_inputs(image, text, image_mask, text_mask)
            if own is None:
                return None
            found |= {f"{number}.{side}": inputs for side, inputs in own.items()}
        return found or None

    def doubt(
        self,
        left: Mapping[str, Tensor],
        image: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return ``1 - (1 - doubt) (1 - spread)``: what the members leave unknown, and where they disagree (ours).

        ``doubt`` is the mean doubt of the members; ``spread`` is the mean distance (total variation, in [0, 1)) of
        their probabilities from the average: 0 if all agree, 0.5 for two that are certain of different answers.
        """
        pair = image, text, image_mask, text_mask
        probabilities = [own.cpu() for own in self._probabilities(*pair)]
        mean = sum(
            (weight * own for weight, own in zip(self.weights, probabilities, strict=True)),
            torch.zeros_like(probabilities[0]),
        )
        doubt, spread = torch.zeros(len(image)), torch.zeros(len(image))
        for number, (member, own, weight) in enumerate(zip(self._members(), probabilities, self.weights, strict=True)):
            part = {side.partition(".")[2]: one for side, one in left.items() if side.partition(".")[0] == str(number)}
            doubt = doubt + weight * member.doubt(part, *pair)
            # With a probability of its own, every class is a two-way choice: the one that differs most counts.
            distance = (own - mean).abs()
            spread = spread + weight * (distance.amax(dim=1) if self.soft else distance.sum(dim=1) / 2)
        return 1 - (1 - doubt) * (1 - spread)

    def for_export(self) -> nn.Module:
        """Return a copy with every member in the form that can be traced."""
        twin = deepcopy(self)
        twin.members = nn.ModuleList(member.for_export() for member in self._members())
        return twin

    def input_statistics(self) -> tuple[ZScore, ZScore] | None:
        """Return the statistics of the first member that stores them."""
        found = (member.input_statistics() for member in self._members())
        return next((one for one in found if one is not None), None)

    def _members(self) -> Iterator[PairNetwork]:
        return (member for member in self.members if isinstance(member, PairNetwork))
