"""The adapted cosine starts at the encoder's cosine and adds directions in which pairs vary together."""

import torch
from torch.nn.functional import normalize

from frevl.models.registry import build
from frevl.models.retrieval.adapted_cosine import AdaptedCosine, fit_adapted_cosine
from frevl.models.retrieval.first_stage import with_alignment
from frevl.models.retrieval.kernel_alignment import fit_alignment
from frevl.models.retrieval.reranker import Reranked, TermWeights
from frevl.models.retrieval.two_tower import Cosine

SPACES = [[0, 7, 0, 7]]


def pairs(count=53, seed=1):
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 7, generator=random)
    images, texts = (shared + 0.5 * torch.randn(count, 7, generator=random) for _ in range(2))
    return images + 1.0, texts - 1.0


def adapted(weight=0.2, scale=50.0):
    return fit_adapted_cosine(Cosine(spaces=SPACES), *pairs(), weight=weight, scale=scale)


def test_without_weight_it_is_the_cosine():
    images, texts = pairs(seed=2)
    plain, same = Cosine(spaces=SPACES, scale=50.0), adapted(weight=0.0)
    torch.testing.assert_close(same(images, texts), plain(images, texts))
    assert torch.equal(same.image_vectors(images), plain.image_vectors(images))


def test_the_logit_is_the_cosine_and_the_weighed_canonical_cosine():
    images, texts = pairs(seed=2)
    network = adapted()
    image, text = normalize(images, dim=1), normalize(texts, dim=1)
    own = (image * text).sum(dim=1)
    centred = normalize(image - network.image_mean, dim=1), normalize(text - network.text_mean, dim=1)
    canonical = normalize(centred[0] @ network.image_map, dim=1) * normalize(centred[1] @ network.text_map, dim=1)
    torch.testing.assert_close(network(images, texts)[:, 0], 50 * (own + 0.2 * canonical.sum(dim=1)))
    torch.testing.assert_close(network.image_vectors(images).norm(dim=1), torch.ones(53))
    torch.testing.assert_close(network.text_vectors(texts).norm(dim=1), torch.ones(53))


def test_canonical_directions_are_those_of_correlation():
    """Without a penalty the maps make images and texts uncorrelated but for the canonical correlations."""
    images, texts = pairs(400)
    network = fit_adapted_cosine(Cosine(spaces=SPACES), images, texts, weight=0.2, scale=1.0, penalty=0.0)
    image = normalize(normalize(images, dim=1) - network.image_mean, dim=1) @ network.image_map
    text = normalize(normalize(texts, dim=1) - network.text_mean, dim=1) @ network.text_map
    found = image.T @ text / len(images)
    strength = found.diagonal()
    torch.testing.assert_close(found, torch.diag(strength), atol=1e-4, rtol=0)
    of_images = image.T @ image / len(images)
    torch.testing.assert_close(of_images.diagonal().square(), strength, atol=1e-3, rtol=1e-2)
    assert (strength[:-1] >= strength[1:] - 1e-5).all()
    assert 0.5 < strength[0] ** 0.5 < 1


def test_it_comes_back_from_its_settings_and_takes_an_alignment():
    network = adapted()
    twin = build(AdaptedCosine.key, network.settings)
    twin.load_state_dict(network.state_dict())
    images, texts = pairs(seed=3)
    assert torch.equal(twin(images, texts), network(images, texts))
    rows = torch.arange(53)
    joined = with_alignment(network, fit_alignment(images, texts, rows, rows, seed=0, rank=5), 4.0)
    parts = joined.image_parts(images)[:, :14], joined.text_parts(texts)[:, :14]
    torch.testing.assert_close(60 * (parts[0] * parts[1]).sum(dim=1), network(images, texts)[:, 0])


def test_texts_that_are_all_the_same_do_no_harm():
    images, texts = pairs()
    network = fit_adapted_cosine(Cosine(spaces=SPACES), images, texts[:1].expand(53, 7), weight=0.1, scale=50.0)
    assert network(images, texts).isfinite().all()


def test_all_pairs_rank_as_pair_by_pair():
    images, texts = pairs(11, seed=5)
    first = adapted()
    weights = TermWeights(image_hubness=-0.5, text_hubness=-0.25)
    banks = first.image_parts(images[:6]), first.text_parts(texts[:5])
    rows, columns = (grid.reshape(-1) for grid in torch.meshgrid(torch.arange(11), torch.arange(7), indexing="ij"))
    for network in (first, Reranked.of(first, *banks, None, weights=weights, depth=5)):
        grid = network.rank_all(network.image_items(images), network.text_items(texts[:7]))
        torch.testing.assert_close(grid.reshape(-1), network(images[rows], texts[columns])[:, 0])
