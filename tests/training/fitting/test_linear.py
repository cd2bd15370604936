"""The linear probe in blocks: the same optimum as on all features at once, in the memory of one block."""

import numpy as np
import pytest
import torch

from frevl.models.baselines import Linear, fit_linear
from frevl.models.classification.linear_problem import statistics_in_blocks
from frevl.models.inputs import ZScore
from frevl.runs.batches import EmbeddedPairs, logits_of
from frevl.runs.targets import Answers
from frevl.training.examples import Examples
from frevl.training.fitting.fit_model import fit_model
from frevl.training.fitting.linear_probe import FeatureBlocks, all_features, linear_loss
from frevl.training.options import LinearOptions, Session

N, IMAGE, TEXT, CLASSES = 331, 5, 7, 3


def made(task, seed=0):
    """Return examples whose classes, weights of answers or matches hang on their vectors, with noise."""
    random = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(N, 1, d, generator=random).half() for d in (IMAGE, TEXT))
    mask = torch.ones(N, 1, dtype=torch.bool)
    pairs = EmbeddedPairs(images, mask, texts, mask, torch.arange(N), torch.arange(N).flip(0))
    x = torch.cat([images[:, 0], texts[:, 0].flip(0)], dim=1).float()
    weight = torch.randn(IMAGE + TEXT, CLASSES, generator=torch.Generator().manual_seed(99))
    logits = x @ weight + torch.randn(N, CLASSES, generator=random)
    if task == "matching":
        truth = (logits[:, 0] > 0).float()
    elif task == "soft":
        truth = Answers(torch.arange(CLASSES).repeat(N, 1), logits.sigmoid(), soft=True)
    else:
        truth = Answers(logits.argmax(dim=1, keepdim=True), torch.ones(N, 1), soft=False)
    return Examples(pairs, truth, torch.arange(N))


def fitted(task, options, limit=None):
    session = Session(seed=0, time_limit=limit, device="cpu", progress=False)
    outputs = 1 if task == "matching" else CLASSES
    return fit_model(
        "linear", made(task), made(task, seed=1), outputs, options, session, dev_is_spare=False
    )  # fmt: skip


@pytest.fixture
def tiny_memory(monkeypatch):
    """Let nothing fit, and blocks be of 41 pairs; return the sizes of all that was made of features."""
    sizes = []
    features = Linear.features

    def watched(self, image, *others):
        sizes.append(len(image))
        return features(self, image, *others)

    monkeypatch.setattr(Linear, "features", watched)
    monkeypatch.setattr("frevl.training.fitting.linear_probe._MOST_THERE", 64)
    monkeypatch.setattr("frevl.training.fitting.linear_probe._IN_A_BLOCK", 0)
    monkeypatch.setattr("frevl.training.fitting.linear_probe._FEWEST_ROWS", 41)
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "balanced"), [("matching", False), ("soft", False), ("classes", False), ("classes", True)]
)
def test_blocks_have_the_optimum_of_all_features_at_once(task, balanced, tiny_memory, monkeypatch):
    monkeypatch.setattr("frevl.models.baselines._TOLERANCE", 1e-6)  # or both end somewhere near it
    examples, outputs = made(task), 1 if task == "matching" else CLASSES
    weights = torch.tensor([0.5, 1.0, 3.0]) if balanced else None
    found = []
    for in_blocks in (False, True):
        network = Linear(image_dim=IMAGE, text_dim=TEXT, outputs=outputs)
        if in_blocks:
            features, loss = FeatureBlocks.measured(network, examples, weights), None
        else:
            features, loss = all_features(network, examples), linear_loss(network, examples, weights)
        fit_linear(network, features, loss, lambda: 0.0, penalties=(0.01,))
        found.append(network)
    whole, parts = found
    for own, other in ((parts.mean, whole.mean), (parts.scale, whole.scale)):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)
    for own, other in ((parts.linear.weight, whole.linear.weight), (parts.linear.bias, whole.linear.bias)):
        torch.testing.assert_close(own, other, atol=5e-4, rtol=0)
        assert own.abs().max() > 0.05
    assert tiny_memory.count(41) > 80
    assert max(size for size in tiny_memory if size != N) <= 41


@pytest.mark.slow
def test_what_does_not_fit_is_fitted_in_blocks_and_says_the_same(request):
    whole = fitted("classes", LinearOptions()).network
    sizes = request.getfixturevalue("tiny_memory")
    parts = fitted("classes", LinearOptions()).network
    rows = made("classes", seed=2).pairs
    said = [logits_of(network, rows, 1024).softmax(dim=1) for network in (whole, parts)]
    torch.testing.assert_close(*said, atol=0.01, rtol=0)
    # Development pairs are scored as they are, 1,024 at a time.
    assert max(size for size in sizes if size != N) <= 41


@pytest.mark.slow
def test_a_time_limit_that_suffices_for_blocks_leaves_no_pair_out(tiny_memory):
    free, limited = fitted("classes", LinearOptions()), fitted("classes", LinearOptions(), limit=3000)
    assert limited.notes == free.notes == []
    assert torch.equal(limited.network.linear.weight, free.network.linear.weight)
    assert max(size for size in tiny_memory if size != N) <= 41


def test_too_little_time_for_all_blocks_is_said(tiny_memory, monkeypatch):
    monkeypatch.setattr("frevl.training.fitting.linear_probe._TIMED", 50)
    found = fitted("classes", LinearOptions(), limit=1e-9)
    assert found.notes == [f"linear: fitted on 50 of {N} pairs, as many as the time limit of 1e-09 s allows"]
    assert found.network.linear.weight.abs().max() > 0.01


def test_statistics_in_blocks_are_those_of_all_values():
    """Also of values far from zero, where a sum of squares would lose everything, and of one that never varies."""
    values = 1000 + torch.randn(97, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 0.1, 0])
    found, expected = statistics_in_blocks(iter(values.split(13)), 5), ZScore.of(values.double())
    torch.testing.assert_close(found.mean, expected.mean.float())
    torch.testing.assert_close(found.scale, expected.scale.float(), rtol=1e-4, atol=0)
    assert found.scale[4] == torch.inf
    assert statistics_in_blocks(iter([torch.tensor([[3.0]]), torch.tensor([[5.0]])]), 1) == (
        torch.tensor([4.0]),
        torch.tensor([1.0]),
    )


def test_a_sample_of_blocks_is_spread_over_all_pairs():
    examples = made("classes")
    network = Linear(image_dim=IMAGE, text_dim=TEXT, outputs=CLASSES)
    sample = FeatureBlocks(network, examples, None).sample(3)
    images = examples.pairs.images[[0, N // 2, N - 1], 0].float()
    np.testing.assert_array_equal(sample[:, :IMAGE].numpy(), images.numpy())
