"""An average of several fitted networks as one network, so that an ensemble is an ordinary run. Pure torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, logit, nn

from frevl.models.inputs import ZScore
from frevl.models.interface import Build, PairNetwork

__all__ = ["Average"]


class Average(PairNetwork):
    """The logarithm of the (weighted) mean of its members' calibrated probabilities."""

    key = "average"

    def __init__(
        self, members: Sequence[PairNetwork], calibrations: Sequence[Mapping[str, float]], *, soft: bool
    ) -> None:
        """Average networks, which become parts of this one.

        Args:
            members: At least one.
            calibrations: ``scale`` and ``offset`` of each, and maybe ``weight``, 1 if absent.
            soft: True where every class has a probability of its own: sigmoid instead of softmax.
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
        """Build the members without their weights, and average them."""
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
        parts = zip(self.members, self.calibrations, self.weights, strict=True)
        for member, (scale, offset), weight in parts:
            logits = member(image, text, image_mask, text_mask) * scale + offset
            probabilities = weight * (logits.sigmoid() if self.soft else logits.softmax(dim=1))
            total = probabilities if total is None else total + probabilities
        if total is None:
            return image.new_zeros(len(image), 0)
        mean = total.clamp(1e-7, 1 - 1e-7)
        return logit(mean) if self.soft else mean.log()

    def for_export(self) -> nn.Module:
        """A copy with every member in the form that can be traced."""
        twin = deepcopy(self)
        twin.members = nn.ModuleList(member.for_export() for member in self._members())
        return twin

    def input_statistics(self) -> tuple[ZScore, ZScore] | None:
        """Those of the first member that remembers them."""
        found = (member.input_statistics() for member in self._members())
        return next((one for one in found if one is not None), None)

    def _members(self) -> Iterator[PairNetwork]:
        return (member for member in self.members if isinstance(member, PairNetwork))
