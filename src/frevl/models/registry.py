"""The closed table of networks that a run may contain. A new network is a line here."""

from __future__ import annotations

from typing import Any

from frevl.models.baselines import Linear, Majority, Mlp
from frevl.models.classification.class_network import ClassNetwork
from frevl.models.classification.without_prior import WithoutPrior
from frevl.models.ensemble import Average
from frevl.models.fusion import Fusion
from frevl.models.interface import PairNetwork
from frevl.models.kernel_ridge import KernelFusion
from frevl.models.retrieval.adapted_cosine import AdaptedCosine
from frevl.models.retrieval.reranker import Reranked
from frevl.models.retrieval.two_tower import Cosine, TwoTower

__all__ = ["NETWORKS", "build"]

NETWORKS: dict[str, type[PairNetwork]] = {
    kind.key: kind
    for kind in (
        AdaptedCosine,
        Average,
        ClassNetwork,
        Cosine,
        Fusion,
        KernelFusion,
        Linear,
        Majority,
        Mlp,
        Reranked,
        TwoTower,
        WithoutPrior,
    )
}


def build(key: str, settings: dict[str, Any]) -> PairNetwork:
    """Build a network, with fresh weights.

    Args:
        key: `PairNetwork.key` of its class.
        settings: The ``settings`` of the network to rebuild.

    Raises:
        KeyError: There is no such network.
        TypeError: The settings belong to another network.
        UsageError: A setting is out of range.
    """
    return NETWORKS[key].from_settings(settings, build)
