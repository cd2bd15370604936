"""L-BFGS against known minima, against SciPy's, and on problems without a solution."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize as scipy_minimise

from frevl.models.classification.linear_problem import minimise


def counted(function):
    """Value and gradient of a function by autograd, and how often they were asked for."""
    calls = []

    def evaluate(point):
        calls.append(point)
        point = point.clone().requires_grad_()
        value = function(point)
        return value.item(), torch.autograd.grad(value, point)[0]

    return evaluate, calls


def test_a_parabola_of_curvature_one_takes_one_step():
    evaluate, calls = counted(lambda point: 0.5 * (point - torch.tensor([2.0, -3.0, 5.0])).square().sum())
    found = minimise(evaluate, torch.zeros(3), steps=10, tolerance=1e-6)
    assert found.tolist() == [2, -3, 5]
    assert len(calls) == 2


def test_a_valley_is_found_whatever_its_slopes():
    scales = torch.logspace(-2, 3, 7, dtype=torch.double)
    target = torch.arange(7, dtype=torch.double)
    evaluate, calls = counted(lambda point: (scales * (point - target).square()).sum() + (point - target).exp().sum())
    found = minimise(evaluate, torch.zeros(7, dtype=torch.double), steps=200, tolerance=1e-8)
    expected = scipy_minimise(
        lambda x: float((scales.numpy() * (x - target.numpy()) ** 2).sum() + np.exp(x - target.numpy()).sum()),
        np.zeros(7),
        tol=1e-12,
    )
    np.testing.assert_allclose(found.numpy(), expected.x, atol=1e-4)
    assert len(calls) < 120  # without any preconditioning


def test_in_single_precision_it_ends_at_what_rounding_lets_it_tell():
    random = torch.Generator().manual_seed(0)
    x, target = torch.randn(97, 31, generator=random), torch.randint(5, (97,), generator=random)

    def loss(point):
        logits = 30 * x.to(point.dtype) @ point.view(31, 5)
        return F.cross_entropy(logits, target) + 1e-4 * point.square().sum()

    reached = []
    for dtype in (torch.float32, torch.float64):
        evaluate, calls = counted(loss)
        # No single-precision gradient is ever so flat.
        reached.append(loss(minimise(evaluate, torch.zeros(155, dtype=dtype), steps=150, tolerance=1e-12)).item())
        assert len(calls) < 500
    assert reached[0] == pytest.approx(reached[1], abs=1e-5)


def test_time_ends_it_at_the_best_point_so_far():
    evaluate, calls = counted(lambda point: (point - 3).square().sum() * 100)
    found = minimise(evaluate, torch.zeros(1), steps=50, tolerance=0.0, out_of_time=lambda: len(calls) >= 4)
    assert len(calls) == 4
    assert min(evaluate(point)[0] for point in list(calls)) == evaluate(found)[0]
    assert minimise(evaluate, torch.ones(1), steps=9, tolerance=0.0, out_of_time=lambda: True).tolist() == [1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_leaves_the_start(bad):
    evaluate, _ = counted(lambda point: (point * bad).sum())
    assert minimise(evaluate, torch.zeros(2), steps=5, tolerance=1e-6).tolist() == [0, 0]


@pytest.mark.slow
def test_a_linear_fit_and_its_calibration_do_not_load_the_compiler():
    """Loading it takes longer than the fit."""
    code = (
        "import sys, torch; from frevl.models.baselines import Linear, fit_linear;"
        "from frevl.runs.calibration import fit_calibration; from frevl.runs.targets import encode_answers;"
        "x, y = torch.randn(50, 5), torch.arange(50) % 2; network = Linear(image_dim=5, text_dim=0, outputs=2);"
        "fit_linear(network, x, lambda logits: torch.nn.functional.cross_entropy(logits, y), lambda: 0.0);"
        "fit_calibration(network.linear(x), encode_answers(['ab'[c] for c in y], ['a', 'b']));"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
