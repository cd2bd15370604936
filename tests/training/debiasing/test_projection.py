"""The closed form: by hand, against a numerical minimum, and what it refuses."""

import pytest
import torch

from frevl.errors import UsageError
from frevl.training.debiasing.neutral import bias_of, neutral_map, spanned


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def test_by_hand():
    none = torch.zeros(0, 4)
    # A pair differs along the first axis by 2: 1 / (1 + 0.5 * 4) of it stays.
    first, second = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0, 0.0]])
    found = neutral_map(none, first, second, weight=0.5)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1 / 3, 1.0, 1.0, 1.0])))
    # Two prompts: only their difference goes; as in the paper, both directions.
    biased = unit([1.0, 1.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0])
    found = neutral_map(biased, none, none, weight=1.0)
    torch.testing.assert_close(found, torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0])), atol=1e-6, rtol=0)
    found = neutral_map(biased, none, none, weight=1.0, differences=False)
    torch.testing.assert_close(found, torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0])), atol=1e-6, rtol=0)
    # One prompt alone goes itself.
    found = neutral_map(unit([0.0, 2.0, 0.0, 0.0]), none, none, weight=1.0)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])), atol=1e-6, rtol=0)


def test_it_is_the_minimum_of_what_the_page_says_and_the_formula_of_the_paper():
    random = torch.Generator().manual_seed(0)
    dim, pairs, weight = 7, 5, 3.0
    first, second = (torch.nn.functional.normalize(torch.randn(pairs, dim, generator=random), dim=1) for _ in range(2))
    biased = torch.nn.functional.normalize(torch.randn(3, dim, generator=random), dim=1)
    free = torch.eye(dim, dtype=torch.double).requires_grad_()
    apart = (first - second).double()
    optimiser = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = (free - torch.eye(dim)).square().sum() + weight / pairs * (apart @ free.T).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    basis = torch.linalg.qr(biased.double().T).Q
    expected = (torch.eye(dim, dtype=torch.double) - basis @ basis.T) @ free.detach()
    found = neutral_map(biased, first, second, weight=weight, differences=False)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_pairs_come_together_and_the_rest_stays():
    random = torch.Generator().manual_seed(1)
    meaning, gender = torch.randn(40, 31, generator=random), torch.randn(31, generator=random)
    first, second = (torch.nn.functional.normalize(meaning + sign * gender, dim=1) for sign in (0.7, -0.7))
    turn = neutral_map(torch.zeros(0, 31), first[:20], second[:20], weight=1000.0)
    others = torch.nn.functional.normalize(meaning, dim=1)
    before = bias_of(first[20:], second[20:], others)
    after = bias_of(first[20:] @ turn.T, second[20:] @ turn.T, others @ turn.T)  # pairs that the map has not seen
    assert after < 0.25 * before
    assert bias_of(first, first, others) == 0


def test_refusals():
    with pytest.raises(UsageError, match="linearly independent, found that 3 prompts span 2 directions"):
        spanned(
            unit([1.0, 0, 0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0, 0, 0], [1.0, 1.0, 0, 0, 0, 0, 0, 0]), differences=True
        )
    with pytest.raises(
        UsageError, match="leave at least half of the 5 directions of the space, found that they span 4"
    ):
        spanned(torch.eye(5), differences=True)
    with pytest.raises(UsageError, match="linearly independent, found that 3 prompts span 2"):
        spanned(unit([1.0, 0.0], [0.0, 1.0], [1.0, 2.0]), differences=False)
