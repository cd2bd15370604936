"""Mixup against a pencil, a slow implementation, and the Beta distribution."""

import math

import pytest
import torch
from torch import Tensor

from frevl.training.losses import mixup

N, D = 11, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_hot_batch() -> tuple[Tensor, Tensor, Tensor]:
    images, texts = torch.randn(N, 1, D, generator=seeded()), torch.randn(N, 1, D, generator=seeded(1))
    return images, texts, torch.eye(N)  # row i of the targets says which pairs went into pair i, and how much


def test_mixup_mixes_images_texts_and_targets_alike() -> None:
    images, texts, targets = one_hot_batch()
    mixed_images, mixed_texts, shares = mixup(images, texts, targets, alpha=1.0, generator=seeded(4))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(N))
    assert 2 in {int(count) for count in (shares > 0).sum(dim=1)}
    torch.testing.assert_close(mixed_images[:, 0], shares @ images[:, 0])
    torch.testing.assert_close(mixed_texts[:, 0], shares @ texts[:, 0])
    # One share for the batch, every pair used once as itself and once as the other.
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(N))
    moved = shares.diagonal()[shares.diagonal() < 1 - 1e-6]
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixup_equals_its_slow_twin(seed: int) -> None:
    images, texts, targets = one_hot_batch()
    mixed_images, mixed_texts, _ = mixup(images, texts, targets, generator=seeded(seed))
    # The twin repeats the documented draws: uniforms in double until accepted, then the permutation.
    generator = seeded(seed)
    while True:
        u, w = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        if u**5 + w**5 <= 1:
            break
    share, other = u**5 / (u**5 + w**5), torch.randperm(N, generator=generator).tolist()
    for i in range(N):
        for k in range(D):
            expected = share * images[i, 0, k].item() + (1 - share) * images[other[i], 0, k].item()
            assert mixed_images[i, 0, k].item() == pytest.approx(expected, abs=1e-6)
            expected = share * texts[i, 0, k].item() + (1 - share) * texts[other[i], 0, k].item()
            assert mixed_texts[i, 0, k].item() == pytest.approx(expected, abs=1e-6)


def test_mixup_by_hand() -> None:
    images, texts = torch.tensor([[[1.0], [2.0]], [[3.0], [8.0]]]), torch.tensor([[[0.0]], [[10.0]]])
    for seed in range(20):
        mixed_images, mixed_texts, targets = mixup(images, texts, torch.tensor([0.0, 1.0]), generator=seeded(seed))
        other = targets[0].item()  # how much of pair 1 went into pair 0
        expected = torch.tensor([[[1 + 2 * other], [2 + 6 * other]], [[3 - 2 * other], [8 - 6 * other]]])
        torch.testing.assert_close(mixed_images, expected)
        torch.testing.assert_close(mixed_texts, torch.tensor([[[10 * other]], [[10 - 10 * other]]]))
        assert targets[1].item() == pytest.approx(1 - other, abs=1e-6)


def test_mixup_repeats_with_the_generator_and_leaves_the_global_one_alone() -> None:
    images, texts, targets = one_hot_batch()
    before = torch.get_rng_state()
    first, again = (mixup(images, texts, targets, generator=seeded(9)) for _ in range(2))
    other = mixup(images, texts, targets, generator=seeded(10))
    assert torch.equal(first[2], again[2])
    assert not torch.equal(first[2], other[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "variance"), [(0.2, 1 / 5.6), (1.0, 1 / 12)])
def test_mixup_shares_are_beta_distributed(alpha: float, variance: float) -> None:
    generator, draws = seeded(), 4000
    one = torch.zeros(2, 1, 1)
    shares = []
    while len(shares) < draws:
        targets = mixup(one, one, torch.tensor([0.0, 1.0]), alpha=alpha, generator=generator)[2]
        if targets[0] > 0:  # the two pairs were exchanged, so that the share shows
            shares.append(1 - targets[0].item())
    sample = torch.tensor(shares, dtype=torch.float64)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); within four standard errors.
    assert sample.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / draws))
    assert sample.var().item() == pytest.approx(variance, rel=0.05)


def test_mixup_gradient_reaches_both_partners() -> None:
    images, texts, targets = one_hot_batch()
    images.requires_grad_()
    mixed_images, _, _ = mixup(images, texts, targets, generator=seeded(4))
    mixed_images.sum().backward()
    torch.testing.assert_close(images.grad, torch.ones_like(images))
