"""Kernel regression carried by landmarks."""

import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from frevl.models.classification.heads import Features, Head, Memory
from frevl.models.classification.landmarks import landmark_count, solve_by_landmarks
from frevl.models.classification.solvers import solve_cache, solve_kernel
from frevl.models.kernel_ridge import kernel_matrix

RIDGE, WIDTH = 0.3, 1.7


def drawn(count: int, dim: int = 5, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator), torch.randn(count, outputs, generator=generator)


@pytest.mark.parametrize(
    ("examples", "classes", "count"),
    [(4_096, 10, 0), (4_097, 10, 1_024), (100_000, 10, 1_024), (10_000, 100, 0), (10_001, 100, 3_200),
     (10_001, 128, 4_096), (10_000, 129, 0), (10_001, 129, 4_096)],
)  # fmt: skip
def test_few_examples_and_many_classes_have_no_landmarks(examples, classes, count):
    assert landmark_count(examples, classes) == count


@pytest.mark.parametrize("weighted", [False, True])
def test_with_every_example_as_a_landmark_it_is_kernel_ridge_regression(weighted):
    x, targets = drawn(37)
    weights = 0.5 + torch.arange(37) % 3 if weighted else None
    rows, found = solve_by_landmarks(x, targets, WIDTH, RIDGE, 37, weights)
    judge = KernelRidge(alpha=RIDGE, kernel="rbf", gamma=1 / WIDTH)
    judge.fit(x.numpy(), targets.numpy(), sample_weight=None if weights is None else weights.numpy())
    new = drawn(11)[0] + 0.1
    assert torch.equal(rows, torch.arange(37))
    torch.testing.assert_close(
        kernel_matrix(new, x, WIDTH) @ found, torch.from_numpy(judge.predict(new.numpy())).float(), rtol=0, atol=2e-3
    )


def test_fewer_landmarks_have_the_least_penalised_squares():
    x, targets = drawn(5_003)  # more than one block
    rows, found = solve_by_landmarks(x, targets, WIDTH, RIDGE, 7)
    seen, own = kernel_matrix(x, x[rows], WIDTH).double(), kernel_matrix(x[rows], x[rows], WIDTH).double()
    own.diagonal().add_(1e-3)
    least = torch.linalg.solve(seen.T @ seen + RIDGE * own, seen.T @ targets.double())
    torch.testing.assert_close(found, least.float(), rtol=1e-3, atol=1e-3)


def test_penalties_and_targets_that_share_the_sums_get_what_they_get_alone():
    x, targets = drawn(61)
    shared = [solve_by_landmarks(x, some, WIDTH, ridge, 13)[1] for some, ridge in ((targets, 1.0), (-targets, 0.1))]
    alone = [
        solve_by_landmarks(x.clone(), some, WIDTH, ridge, 13)[1] for some, ridge in ((targets, 1.0), (-targets, 0.1))
    ]
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-4)


def test_a_head_keeps_the_examples_that_it_sums_over():
    x, coefficients = drawn(23)
    features = Features(x, 2 * x, None)
    rows = torch.tensor([2, 3, 19])
    few = Head.zero(3, 5)
    one = Memory(coefficients[:3], WIDTH, False, rows)
    other = Memory(coefficients[3:5], WIDTH, True, torch.tensor([3, 7]))
    for memories, kept in (((one,), [2, 3, 19]), ((one, other), [2, 3, 7, 19])):
        head = Head(few.names, few.weight, few.bias, memories, linear=False)
        compact, places = head.compact(23)
        assert places.tolist() == kept
        assert all(memory.rows is None for memory in compact.memories)
        torch.testing.assert_close(compact.logits(features, features.select(places)), head.logits(features, features))
    whole = solve_cache(features, torch.arange(23) % 3, 3).plus(Head(0.0, few.weight, few.bias, (one,), linear=False))
    assert len(whole.compact(23)[1]) == 23
    torch.testing.assert_close(whole.compact(23)[0].logits(features, features), whole.logits(features, features))


@pytest.mark.slow
def test_the_kernel_of_many_examples_answers_like_that_of_all():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4_600) % 3
    x = torch.nn.functional.normalize(
        torch.eye(12)[labels] + 0.4 * torch.randn(len(labels), 12, generator=generator), dim=1
    )
    features = Features(x, x, None)
    few, exact = (solve_kernel(features, labels, 3, ridge=1.0, landmarks=count) for count in (1_024, 0))
    assert [len(head.memories[0].coefficients) for head in (few, exact)] == [1_024, 4_600]
    found, expected = (head.logits(features, features).argmax(dim=1) for head in (few, exact))
    assert (found == expected).float().mean() > 0.99
