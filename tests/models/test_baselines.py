"""Baselines against independent implementations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from frevl.models.baselines import Linear, Majority, Mlp, fit_linear
from frevl.training.losses import soft_target_loss


@pytest.mark.slow
@pytest.mark.parametrize(("n", "widths"), [(211, (3, 4)), (31, (29, 41))])
def test_linear_equals_scikit_learn(n, widths):
    """With the default number of steps, few and many features, some of them nearly the same and classes unequal."""
    rng = np.random.default_rng(0)
    features, classes = sum(widths), 3
    x = rng.normal(size=(n, features)).astype(np.float32)
    x[:, 1] = x[:, 0] + 0.01 * x[:, 1]
    y = (x @ rng.normal(size=(features, classes)) + [0, 1, 4] + rng.normal(size=(n, classes))).argmax(axis=1)
    network = Linear(image_dim=widths[0], text_dim=widths[1], outputs=classes)
    target = torch.from_numpy(y)
    for penalty in (0.1, 0.0005):
        best = fit_linear(
            network,
            torch.from_numpy(x),
            lambda logits: torch.nn.functional.cross_entropy(logits, target),
            lambda: 0.0,
            penalties=(penalty,),
        )
        twin = LogisticRegression(C=1 / (penalty * n), tol=1e-7, max_iter=5000).fit(x, y)
        assert best == penalty
        expected = twin.predict_proba(x)
        image, text = torch.from_numpy(x[:, : widths[0]]), torch.from_numpy(x[:, widths[0] :])
        np.testing.assert_allclose(network(image, text).softmax(dim=1).detach().numpy(), expected, atol=5e-4)


def test_a_wide_linear_fit_without_principal_directions_has_the_same_optimum(monkeypatch):
    torch.manual_seed(4)
    x, target = torch.randn(67, 11), torch.randint(2, (67, 5)).float()
    found = []
    for widest in (5, 11):
        monkeypatch.setattr("frevl.models.classification.linear_problem._WIDEST", widest)
        network = Linear(image_dim=5, text_dim=6, outputs=5)
        fit_linear(network, x, lambda logits: soft_target_loss(logits, target), lambda: 0.0, penalties=(0.01,))
        found.append(network.linear(x).detach())
    torch.testing.assert_close(*found, atol=2e-3, rtol=0)


def test_a_fit_without_time_ends_after_its_first_ten_steps():
    torch.manual_seed(4)
    x, target = torch.randn(67, 11), torch.randint(5, (67,))
    losses = []

    def loss(logits):
        losses.append(torch.nn.functional.cross_entropy(logits, target))
        return losses[-1]

    counts = {}
    for limit in (None, 0.0):
        losses.clear()
        network = Linear(image_dim=5, text_dim=6, outputs=5)
        fit_linear(network, x, loss, lambda: 0.0, penalties=(1e-6, 1e-7), time_limit=limit)
        counts[limit] = len(losses)
        assert losses[-1] < 0.9 * losses[0]  # what it has learned by then stays
    assert counts[0.0] <= 20 < counts[None]


def test_a_fit_without_time_keeps_the_best_weights_it_has_passed(monkeypatch):
    """Whatever the line search tries last; and it does without the principal directions, which would take longest."""
    torch.manual_seed(4)
    x, target = torch.randn(67, 11), torch.randint(5, (67,))
    monkeypatch.setattr(torch.linalg, "eigh", None)
    losses = []

    def loss(logits):
        losses.append(torch.nn.functional.cross_entropy(logits, target))
        return losses[-1]

    network = Linear(image_dim=5, text_dim=6, outputs=5)
    fit_linear(network, x, loss, lambda: 0.0, penalties=(1e-9, 1e-10), time_limit=0.0)
    assert len(losses) == 11  # of the curvature, and ten looks at all pairs
    reached = torch.nn.functional.cross_entropy(network.linear(x), target)
    assert reached.item() == pytest.approx(min(losses).item(), rel=1e-5)
    assert reached < losses[0]


def test_the_penalty_with_the_best_development_metric_is_kept():
    torch.manual_seed(0)
    network = Linear(image_dim=2, text_dim=3, outputs=2)
    x = torch.randn(50, 5)
    target = (x[:, 0] > 0).long()
    metrics = iter([0.5, 0.9, 0.7, 0.6, 1.0])
    seen = []

    def development():
        seen.append(network.linear.weight.detach().clone())
        return next(metrics)

    penalties = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    best = fit_linear(network, x, lambda logits: F.cross_entropy(logits, target), development, penalties=penalties)
    assert best == 1e-2
    assert len(seen) == 4, "two falls in a row end the path"
    chosen = network.linear.weight.detach().clone()
    torch.testing.assert_close(chosen, seen[1], atol=0.01, rtol=0)  # compared by rough fits, then fitted to its optimum
    alone = Linear(image_dim=2, text_dim=3, outputs=2)
    fit_linear(alone, x, lambda logits: F.cross_entropy(logits, target), lambda: 0.0, penalties=(1e-2,))
    torch.testing.assert_close(chosen, alone.linear.weight.detach(), atol=1e-3, rtol=0)


def test_linear_multiplies_where_the_widths_agree():
    network = Linear(image_dim=2, text_dim=2, outputs=1)
    features = network.features(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]]))
    assert features.tolist() == [[1, 2, 3, 5, 3, 10]]
    assert Linear(image_dim=2, text_dim=3, outputs=1).linear.in_features == 5


def test_linear_pools_tokens_by_their_mean():
    network = Linear(image_dim=1, text_dim=2, outputs=1)
    image = torch.tensor([[[2.0], [4.0], [99.0]]])
    features = network.features(image, torch.tensor([[7.0, 8.0]]), torch.tensor([[True, True, False]]))
    assert features.tolist() == [[3, 7, 8]]


def test_majority_ignores_its_input():
    network = Majority(outputs=3)
    network.logits.copy_(torch.tensor([0.1, 0.7, 0.2]))
    assert network(torch.randn(2, 5), torch.randn(2, 4)).tolist() == [network.logits.tolist()] * 2


def test_a_blind_mlp_sees_one_modality_only():
    image, text = torch.randn(5, 3), torch.randn(5, 7)
    for use_image, use_text in ((True, False), (False, True)):
        network = Mlp(image_dim=3, text_dim=7, outputs=2, use_image=use_image, use_text=use_text).eval()
        same = network(image, torch.randn(5, 7)) if use_image else network(torch.randn(5, 3), text)
        other = network(torch.randn(5, 3), text) if use_image else network(image, torch.randn(5, 7))
        torch.testing.assert_close(network(image, text), same)
        assert not torch.allclose(network(image, text), other)


def test_every_baseline_is_rebuilt_from_its_settings():
    for network in (
        Majority(outputs=3),
        Linear(image_dim=2, text_dim=3, outputs=5),
        Mlp(image_dim=2, text_dim=3, outputs=5),
    ):
        twin = type(network)(**network.settings)
        twin.load_state_dict(network.state_dict())
