"""Sums of kernels by hand; held-out scores against solving again without the group."""

import math

import pytest
import torch

from frevl.models.kernel_ridge import KernelFusion, held_out_scores, kernel_matrix, mixed, needs


def test_the_gaussian_kernel_by_hand():
    a, b = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    expected = [[1, math.exp(-1 / 10), math.exp(-25 / 10)], [math.exp(-25 / 10), math.exp(-18 / 10), 1]]
    torch.testing.assert_close(kernel_matrix(a, b, 10.0), torch.tensor(expected))


def test_held_out_scores_equal_solving_again_without_the_group():
    torch.manual_seed(0)
    n, outputs, ridge = 29, 3, 0.7
    points = torch.randn(n, 5)
    kernel = kernel_matrix(points, points, 4.0)
    targets, groups = torch.randn(n, outputs), torch.randint(0, 7, (n,))
    alphas, scores = held_out_scores(kernel, targets, groups, ridge)
    torch.testing.assert_close(alphas, torch.linalg.solve(kernel + ridge * torch.eye(n), targets), atol=1e-4, rtol=1e-4)
    for group in groups.unique():
        inside, outside = groups == group, groups != group
        again = torch.linalg.solve(
            kernel[outside][:, outside] + ridge * torch.eye(int(outside.sum())), targets[outside]
        )
        torch.testing.assert_close(scores[inside], kernel[inside][:, outside] @ again, atol=1e-4, rtol=1e-4)


def test_a_sum_of_kernels_by_hand():
    text, image = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.25, 0.5]])
    torch.testing.assert_close(mixed(text, image, (0.2, 0.3, 0.5)), torch.tensor([[0.2375, 0.6]]))
    torch.testing.assert_close(mixed(text, image, (0.25, 0.0, 0.75)), torch.tensor([[0.21875, 0.625]]))
    assert mixed(text, None, (1.0, 0.0, 0.0)) is text
    assert mixed(None, image, (0.0, 1.0, 0.0)) is image
    with pytest.raises(ValueError, match="a share above 0"):
        mixed(None, None, (0.0, 0.0, 0.0))
    found = [needs(shares) for shares in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0))]
    assert found == [(True, False), (False, True), (True, True), (True, True)]


def by_hand(shares, *, image_root=False):
    """One training pair, one class: the score is the kernel itself."""
    network = KernelFusion(
        image_dim=2, text_dim=2, outputs=1, pairs=1, images=1, texts=1, shares=shares, image_root=image_root
    )
    for scale in (network.image_scale, network.text_scale, network.image_width, network.text_width, network.alphas):
        scale.fill_(1.0)
    network.images.copy_(torch.tensor([[1.0, 0.0]]))
    network.texts.copy_(torch.tensor([[1.0, 0.0]]))
    return network


def test_the_network_scores_by_the_sum():
    image, text = torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 0.0]])  # squared distances 2 and 0
    far = math.exp(-2)
    for shares in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.25, 0.0, 0.75), (0.2, 0.3, 0.5)):
        expected = shares[0] + shares[1] * far + shares[2] * far
        torch.testing.assert_close(by_hand(shares)(image, text), torch.tensor([[expected]]))


def test_roots_keep_the_sign():
    network = by_hand((0.0, 1.0, 0.0), image_root=True)
    image = torch.tensor([[9.0, -16.0]])  # (3, -4) / 5: a cosine of 0.6, a squared distance of 0.8
    torch.testing.assert_close(network(image, torch.ones(1, 2)), torch.tensor([[math.exp(-0.8)]]))


def test_held_out_scores_of_weighted_pairs_equal_solving_again():
    """Weights are penalties of their own: ``(K + ridge / w) alpha = Y`` minimises the weighted squares."""
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(23, 4, generator=generator)
    kernel = kernel_matrix(points, points, 5.0)
    targets = torch.randn(23, 3, generator=generator)
    groups = torch.arange(23) // 2
    weights = torch.rand(23, generator=generator) + 0.2
    alphas, held_out = held_out_scores(kernel, targets, groups, 0.3 / weights)
    slope = kernel @ (weights[:, None] * (kernel @ alphas - targets)) + 0.3 * kernel @ alphas
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=2e-5, rtol=0)
    for group in range(12):
        rest, own = groups != group, groups == group
        solved = torch.linalg.solve(kernel[rest][:, rest] + torch.diag(0.3 / weights[rest]), targets[rest])
        torch.testing.assert_close(held_out[own], kernel[own][:, rest] @ solved, atol=1e-4, rtol=1e-4)
