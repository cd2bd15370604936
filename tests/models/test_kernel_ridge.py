"""Kernel fusion: by hand, and against solving again without the image."""

import math

import pytest
import torch

from frevl.errors import TrainingError
from frevl.models.kernel_ridge import MOST_PAIRS, KernelFusion, fit_kernel, held_out_scores, kernel_matrix


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


def problem(blind=False):
    """Pairs whose class is the product of two signs (or the sign of the text alone)."""
    random = torch.Generator().manual_seed(3)
    images, texts = torch.randn(60, 5, generator=random), torch.randn(11, 7, generator=random)
    image_rows = torch.arange(60).repeat_interleave(4)
    text_rows = torch.randint(0, 11, (240,), generator=random)
    sign = texts[text_rows, 0] * (1.0 if blind else images[image_rows, 0])
    weights = torch.nn.functional.one_hot((sign > 0).long(), 2).float()
    return images, texts, image_rows, text_rows, weights


def solved(blind=False):
    images, texts, image_rows, text_rows, weights = problem(blind)
    network = KernelFusion(image_dim=5, text_dim=7, outputs=2, pairs=240, images=60, texts=11)
    return network, fit_kernel(network, images, texts, image_rows, text_rows, weights, image_rows)


def test_it_learns_what_needs_both_modalities():
    network, fit = solved()
    images, texts, image_rows, text_rows, weights = problem()
    assert fit.metric > 0.8
    assert fit.text_only_share < 1
    scores = network(images[image_rows], texts[text_rows])
    assert (scores.argmax(dim=1) == weights.argmax(dim=1)).float().mean() > 0.95
    new = torch.randn(400, 5, generator=torch.Generator().manual_seed(9))
    rows = torch.arange(400) % 11
    right = (new[:, 0] * texts[rows, 0] > 0).long()
    assert (network(new, texts[rows]).argmax(dim=1) == right).float().mean() > 0.75


def test_it_does_not_look_at_an_image_that_says_nothing():
    network, fit = solved(blind=True)
    assert fit.text_only_share == 1.0
    _, texts, _, text_rows, _ = problem(blind=True)
    a, b = (network(torch.randn(240, 5), texts[text_rows]) for _ in range(2))
    torch.testing.assert_close(a, b)


def test_the_held_out_scores_are_those_of_the_kept_solution():
    network, fit = solved()
    images, texts, image_rows, text_rows, weights = problem()
    rows = image_rows == 7
    other = ~rows
    twin = KernelFusion(image_dim=5, text_dim=7, outputs=2, pairs=int(other.sum()), images=60, texts=11)
    empty = torch.zeros(int(other.sum()), 2)
    changed = {"image_rows": image_rows[other], "text_rows": text_rows[other], "alphas": empty}
    twin.load_state_dict({**network.state_dict(), **changed})
    v, t = network.images, network.texts
    kernel = kernel_matrix(t, t, network.text_width)[text_rows][:, text_rows] * (
        fit.text_only_share
        + (1 - fit.text_only_share) * kernel_matrix(v, v, network.image_width)[image_rows][:, image_rows]
    )
    centred = weights - network.mean
    alphas = torch.linalg.solve(kernel[other][:, other] + fit.ridge * torch.eye(int(other.sum())), centred[other])
    twin.alphas.copy_(alphas)
    torch.testing.assert_close(
        twin(images[image_rows[rows]], texts[text_rows[rows]]), fit.held_out[rows], atol=1e-4, rtol=1e-4
    )


def test_constant_dimensions_do_no_harm_and_tokens_are_pooled():
    images, texts, image_rows, text_rows, weights = problem()
    images[:, 2] = 0.25
    network = KernelFusion(image_dim=5, text_dim=7, outputs=2, pairs=240, images=60, texts=11)
    assert math.isfinite(fit_kernel(network, images, texts, image_rows, text_rows, weights, image_rows).metric)
    image = torch.stack([images[:3] - 1, images[:3] + 1, images[:3] * 0 + 77], dim=1)
    mask = torch.tensor([[True, True, False]] * 3)
    torch.testing.assert_close(network(image, texts[:3], mask), network(images[:3], texts[:3]), atol=1e-5, rtol=1e-5)


def test_too_many_pairs_are_refused():
    network = KernelFusion(image_dim=1, text_dim=1, outputs=1, pairs=1, images=1, texts=1)
    rows = torch.zeros(MOST_PAIRS + 1, dtype=torch.long)
    with pytest.raises(TrainingError, match="at most 20,000 training pairs, found 20,001"):
        fit_kernel(network, torch.zeros(1, 1), torch.zeros(1, 1), rows, rows, torch.zeros(1, 1), rows)


def test_near_copies_of_one_cluster_do_not_vouch_for_each_other():
    """Every picture stands there twice with one random label: only leaving both out tells that nothing is known."""
    random = torch.Generator().manual_seed(5)
    once = torch.randn(40, 5, generator=random)
    images = torch.cat([once, once + 1e-3])
    rows, texts = torch.arange(80), torch.zeros(80, dtype=torch.long)
    label = torch.randint(0, 2, (40,), generator=random).repeat(2)
    weights = torch.nn.functional.one_hot(label, 2).float()
    found = []
    for clusters in (rows, rows % 40):
        network = KernelFusion(image_dim=5, text_dim=3, outputs=2, pairs=80, images=80, texts=1)
        found.append(fit_kernel(network, images, torch.ones(1, 3), rows, texts, weights, clusters).metric)
    assert found[0] > 0.75
    assert found[1] < 0.65
