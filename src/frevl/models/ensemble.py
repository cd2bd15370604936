"""An average of several fitted networks as one network, so that an ensemble is an ordinary run. Pure torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frevl.models.baselines import Linear, Majority, Mlp
from frevl.models.fusion import Fusion
from frevl.models.kernel_ridge import KernelFusion

__all__ = ["Average"]

_MEMBERS: dict[str, type[nn.Module]] = {
    "fusion": Fusion,
    "kernel": KernelFusion,
    "linear": Linear,
    "majority": Majority,
    "mlp": Mlp,
}


class Average(nn.Module):
    """The logarithm of the (weighted) mean of its members' calibrated probabilities."""

    def __init__(self, *, members: list[dict[str, Any]], soft: bool) -> None:
        """Build the members without their weights.

        Args:
            members: For each ``network`` (its kind), ``settings`` (its constructor's arguments), ``scale`` and
                ``offset`` (its calibration), and maybe ``weight``, 1 if absent.
            soft: True where every class is judged by itself: sigmoid instead of softmax.
        """
        super().__init__()
        self.settings: dict[str, Any] = {"members": members, "soft": soft}
        self.soft = soft
        self.calibrations = [(float(one["scale"]), float(one["offset"])) for one in members]
        total = sum(float(one.get("weight", 1)) for one in members)
        self.weights = [float(one.get("weight", 1)) / total for one in members]
        self.members = nn.ModuleList(_MEMBERS[one["network"]](**one["settings"]) for one in members)

    @classmethod
    def of(cls, networks: list[nn.Module], calibrations: list[dict[str, float]], *, soft: bool) -> Average:
        """Average fitted networks.

        Args:
            networks: At least one, none of them an average.
            calibrations: ``scale``, ``offset`` and maybe ``weight`` of each.
            soft: As in the constructor.
        """
        kinds = {kind: name for name, kind in _MEMBERS.items()}
        members = [
            {"network": kinds[type(network)], "settings": network.settings, **calibration}
            for network, calibration in zip(networks, calibrations, strict=True)
        ]
        average = cls(members=members, soft=soft)
        for member, network in zip(average.members, networks, strict=True):
            member.load_state_dict(network.state_dict())
        return average.eval()

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, outputs)`` logits; the shapes are those of `Fusion.forward`."""
        total: Tensor | None = None
        parts = zip(self.members, self.calibrations, self.weights, strict=True)
        for member, (scale, offset), weight in parts:
            logits = member(image, text, image_mask, text_mask) * scale + offset
            probabilities = weight * (logits.sigmoid() if self.soft else logits.softmax(dim=1))
            total = probabilities if total is None else total + probabilities
        if total is None:
            return image.new_zeros(len(image), 0)
        mean = total.clamp(1e-7, 1 - 1e-7)
        return torch.logit(mean) if self.soft else mean.log()
