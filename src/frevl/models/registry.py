"""The closed table of networks that a run may hold."""

from __future__ import annotations

from torch import nn

from frevl.models.baselines import Linear, Majority, Mlp
from frevl.models.ensemble import Average
from frevl.models.fusion import Fusion
from frevl.models.kernel_ridge import KernelFusion
from frevl.models.retrieval.reranker import Reranked
from frevl.models.retrieval.two_tower import Cosine, Dual

__all__ = ["NETWORKS", "name_of"]

NETWORKS: dict[str, type[nn.Module]] = {
    "average": Average,
    "cosine": Cosine,
    "dual": Dual,
    "fusion": Fusion,
    "kernel": KernelFusion,
    "linear": Linear,
    "majority": Majority,
    "mlp": Mlp,
    "reranked": Reranked,
}


def name_of(network: nn.Module) -> str:
    """Return the key of a network's class in `NETWORKS`."""
    return next(name for name, kind in NETWORKS.items() if type(network) is kind)
