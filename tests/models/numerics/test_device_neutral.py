"""No network keeps anything on the processor: on meta tensors, mixed devices would be an error."""

import pytest
import torch

from frevl.models.baselines import Linear, Majority, Mlp
from frevl.models.classification.class_network import ClassNetwork
from frevl.models.classification.without_prior import WithoutPrior
from frevl.models.ensemble import Average
from frevl.models.fusion import Fusion
from frevl.models.kernel_ridge import KernelFusion
from frevl.models.registry import NETWORKS
from frevl.models.retrieval.adapted_cosine import AdaptedCosine
from frevl.models.retrieval.reranker import Reranked, Standardised, TermWeights
from frevl.models.retrieval.two_tower import Cosine, TwoTower

BOTH = {"image_dim": 8, "text_dim": 6}
SIZES = {"width": 8, "heads": 2, "layers": 1}
SPACES = [[0, 6, 0, 6]]


def made():
    """One small network of every kind in the registry."""
    torch.manual_seed(0)
    fusion, linear = Fusion(**BOTH, outputs=3, **SIZES), Linear(**BOTH, outputs=3)
    first = TwoTower(**BOTH, hidden=6, width=4)
    again = Standardised(fusion={**BOTH, "outputs": 1, **SIZES}, input_dropout=0.0)
    weights = TermWeights(fusion=1.0, image_hubness=0.5, text_hubness=0.5)
    with torch.inference_mode():
        banks = first.image_parts(torch.randn(5, 8)), first.text_parts(torch.randn(5, 6))
    return [
        Average([fusion, linear], [{"scale": 1.0, "offset": 0.0}] * 2, soft=False),
        ClassNetwork(image_dim=8, outputs=3), Cosine(spaces=SPACES),
        AdaptedCosine(spaces=SPACES, rank=3, weight=0.5), fusion, linear, Majority(outputs=3),
        KernelFusion(**BOTH, outputs=3, pairs=5, images=4, texts=3), Mlp(**BOTH, outputs=3), first,
        Reranked.of(first, *banks, again, weights=weights, depth=3),
        WithoutPrior(linear, torch.randn(5, 8), torch.ones(5, 1, dtype=torch.bool), kept="text", strength=0.5),
    ]  # fmt: skip


def test_every_kind_of_network_is_here():
    assert {network.key for network in made()} == set(NETWORKS)


@pytest.mark.slow
@pytest.mark.parametrize("network", made(), ids=lambda network: network.key)
@pytest.mark.parametrize("tokens", [False, True], ids=["pooled", "tokens"])
def test_a_network_works_on_the_device_that_it_is_moved_to(network, tokens):
    dims = (8, 0 if isinstance(network, ClassNetwork) else 6)
    shapes = [(4, 5, dim) if tokens and dim else (4, dim) for dim in dims]
    image, text = (torch.zeros(shape, device="meta") for shape in shapes)
    masks = [torch.ones(shape[:2], dtype=torch.bool, device="meta") if len(shape) == 3 else None for shape in shapes]
    with torch.inference_mode():
        twin = network.for_inference().to("meta").eval()
        alone = twin.score_items(twin.image_items(image, masks[0]), twin.text_items(text, masks[1]), *masks)
        found = [twin(image, text, *masks), alone]
        if twin.first_stage is not None:
            found += [twin.first_stage.image_vectors(image, masks[0]), twin.first_stage.text_vectors(text, masks[1])]
    assert {part.device.type for part in found} == {"meta"}
    assert {len(part) for part in found} == {4}
