"""The methods of classification against independent implementations, and the parts of a head."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression

from frevl.models.classification.class_network import ClassNetwork
from frevl.models.classification.heads import Features, Head, statistics_of, unit_features
from frevl.models.classification.probe import solve_probe
from frevl.models.classification.solvers import (
    CACHE_SHARPNESS,
    solve_cache,
    solve_gaussian,
    solve_kernel,
    solve_means,
)
from frevl.models.registry import build

CLASSES, DIM = 4, 12


def drawn(count=60, *, names=False, seed=3):
    """Draw a cloud a class, unevenly filled."""
    random = np.random.default_rng(seed)
    labels = torch.from_numpy(np.sort(random.integers(0, CLASSES, count)))
    labels[:CLASSES] = torch.arange(CLASSES)
    vectors = torch.eye(DIM)[labels] + 0.6 * torch.from_numpy(random.standard_normal((count, DIM))).float()
    statistics = statistics_of(vectors)
    cosines = torch.from_numpy(random.uniform(-0.2, 0.4, (count, CLASSES))).float() if names else None
    return Features(F.normalize(vectors, dim=1), unit_features(vectors, statistics), cosines), labels, vectors


def test_means_are_cosines_with_the_mean_of_each_class():
    features, labels, _ = drawn()
    x = features.standard
    means = torch.stack([x[labels == label].mean(dim=0) for label in range(CLASSES)])
    expected = F.cosine_similarity(x[:, None], means[None], dim=2)
    torch.testing.assert_close(solve_means(features, labels, CLASSES).logits(features, None), expected)


@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 0.9])
def test_gaussian_is_linear_discriminant_analysis(shrinkage):
    features, labels, _ = drawn()
    x = features.standard.double()
    lda = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / CLASSES] * CLASSES, covariance_estimator=_Shrunk(
        shrinkage, x.numpy(), labels.numpy())).fit(x.numpy(), labels.numpy())  # fmt: skip
    found = solve_gaussian(features, labels, CLASSES, shrinkage=shrinkage).logits(features, None)
    level = _Shrunk(shrinkage, x.numpy(), labels.numpy()).level
    expected = torch.from_numpy(lda.decision_function(x.numpy())).float() * level
    # Up to a constant of every row, which softmax does not see.
    torch.testing.assert_close(found - found.mean(dim=1, keepdim=True), expected - expected.mean(dim=1, keepdim=True),
                               rtol=1e-3, atol=1e-4)  # fmt: skip


class _Shrunk:
    """The covariance within classes, shrunk, computed apart; scikit-learn asks for it by class, and gets the whole."""

    def __init__(self, shrinkage, x, labels):
        means = np.stack([x[labels == label].mean(axis=0) for label in range(CLASSES)])
        inside = x - means[labels]
        spread = inside.T @ inside / (len(x) - CLASSES)
        self.level = np.trace(spread) / x.shape[1]
        self.covariance_ = (1 - shrinkage) * spread + shrinkage * self.level * np.eye(x.shape[1])

    def fit(self, _):
        return self

    def get_params(self, deep=True):  # noqa: ARG002
        return {}


def test_kernel_is_kernel_ridge_regression():
    features, labels, _ = drawn()
    x = features.standard
    head = solve_kernel(features, labels, CLASSES, ridge=0.3)
    truth = F.one_hot(labels, CLASSES).double().numpy() - 1 / CLASSES
    judge = KernelRidge(alpha=0.3, kernel="rbf", gamma=1 / head.memories[0].width).fit(x.double().numpy(), truth)
    expected = torch.from_numpy(judge.predict(x.double().numpy())).float()
    torch.testing.assert_close(head.logits(features, features), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
# Fewer than features; turned, as there are few a class; as they are; so many that a part tells the curvature.
@pytest.mark.parametrize("count", [8, 40, 60, 400])
def test_probe_is_logistic_regression(count, weighted):
    features, labels, _ = drawn(count)
    weights = 0.5 + torch.arange(count) % 3 if weighted else None
    head = solve_probe(features, labels, CLASSES, penalty=0.5, steps=200, enough=0.0, weights=weights)
    ones = torch.cat([features.standard, torch.ones(len(labels), 1)], dim=1).numpy()
    judge = LogisticRegression(C=1 / 0.5, fit_intercept=False, tol=1e-8, max_iter=2000)
    judge.fit(ones, labels.numpy(), sample_weight=None if weights is None else weights.numpy())
    expected = torch.from_numpy(judge.decision_function(ones)).float()
    torch.testing.assert_close(head.logits(features, None), expected, rtol=1e-2, atol=1e-2)


def test_what_penalties_share_of_the_same_features_changes_no_result():
    features, labels, _ = drawn(40)

    def solved(features, strength):
        return [
            solve_probe(features, labels, CLASSES, penalty=strength).logits(features, None),
            solve_kernel(features, labels, CLASSES, ridge=strength).logits(features, features),
        ]

    shared = [solved(features, strength) for strength in (1.0, 0.1, 1.0)]
    for strength, found in zip((1.0, 0.1, 1.0), shared, strict=True):
        alone = solved(Features(*(None if part is None else part.clone() for part in features)), strength)
        torch.testing.assert_close(found, alone, rtol=0, atol=0)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("count", [60, 400])
def test_probe_ends_near_the_least_loss_and_nearer_than_scikit_learn_does(count, penalty):
    features, labels, _ = drawn(count)
    ones = torch.cat([features.standard, torch.ones(len(labels), 1)], dim=1)

    def loss(weight):
        fit = F.cross_entropy(ones.double() @ weight.double().T, labels, reduction="sum")
        return float(fit + penalty / 2 * weight.double().square().sum())

    def judged(tol):
        model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=tol, max_iter=2000)
        return loss(torch.from_numpy(model.fit(ones.numpy(), labels.numpy()).coef_))

    head = solve_probe(features, labels, CLASSES, penalty=penalty)
    found, least = loss(torch.cat([head.weight, head.bias[:, None]], dim=1)), judged(1e-9)
    assert least * (1 - 1e-5) <= found <= least * 1.001
    assert found <= max(judged(1e-4), least * 1.0005)


@pytest.mark.slow
def test_probe_of_many_examples_ends_sooner_and_still_nearer_than_scikit_learn_does():
    random = np.random.default_rng(0)
    labels = np.arange(8_192) % 10
    vectors = 0.35 * random.standard_normal((10, 512))[labels] + random.standard_normal((8_192, 512))
    x = F.normalize(torch.from_numpy(vectors), dim=1).float()
    features = Features(x, x, None)

    def loss(weight, bias):
        fit = F.cross_entropy(x.double() @ weight.double().T + bias.double(), torch.from_numpy(labels), reduction="sum")
        return float(fit + 0.05 * (weight.double().square().sum() + bias.double().square().sum()))

    classes = torch.from_numpy(labels)
    heads = [solve_probe(features, classes, 10, penalty=0.1, **given) for given in ({}, {"steps": 100, "enough": 0.0})]
    found, least = (loss(head.weight, head.bias) for head in heads)
    judge = LogisticRegression(C=10).fit(x.numpy(), labels)
    assert least * (1 - 1e-6) <= found <= least * 1.005
    assert found <= loss(torch.from_numpy(judge.coef_), torch.from_numpy(judge.intercept_))


def test_probe_is_pulled_back_to_the_names():
    features, labels, _ = drawn(names=True)
    names = 10 * features.cosines
    strong = solve_probe(features, labels, CLASSES, penalty=1e6, names=10.0).logits(features, None)
    torch.testing.assert_close(strong, names, rtol=1e-3, atol=1e-3)
    weak = solve_probe(features, labels, CLASSES, penalty=0.1, names=10.0).logits(features, None)
    assert F.cross_entropy(weak, labels) < F.cross_entropy(names, labels)


def test_cache_counts_every_class_alike():
    features, labels, _ = drawn()
    found = solve_cache(features, labels, CLASSES).logits(features, features)
    affinity = torch.exp(-CACHE_SHARPNESS * (1 - features.unit @ features.unit.T))
    expected = torch.stack([affinity[:, labels == label].mean(dim=1) for label in range(CLASSES)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_heads_scale_and_add_up():
    features, labels, _ = drawn(names=True)
    one = solve_kernel(features, labels, CLASSES, ridge=0.3, names=10.0)
    other = solve_gaussian(features, labels, CLASSES, shrinkage=0.5, names=10.0)
    both = one.scaled(0.5).plus(other.scaled(2.0))
    expected = 0.5 * one.logits(features, features) + 2.0 * other.logits(features, None)
    torch.testing.assert_close(both.logits(features, features), expected)


def test_classes_without_examples_get_nothing_from_them():
    features, labels, _ = drawn(names=True)
    head = solve_kernel(features, labels, CLASSES, ridge=0.3)
    wide = head.among(torch.tensor([0, 2, 3, 5]), 6)
    found = wide.logits(features, features)
    assert not found[:, [1, 4]].any()
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(len(found)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["names", "kernel", "probe"])
def test_the_network_computes_its_head(method):
    features, labels, vectors = drawn()
    names = F.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    space = build("cosine", {"spaces": [[0, DIM, 0, DIM]], "scale": 10.0})
    features = features._replace(cosines=F.normalize(vectors, dim=1) @ names.T)
    head = {
        "names": Head.zero(CLASSES, DIM, names=10.0),
        "kernel": solve_kernel(features, labels, CLASSES, ridge=0.3, names=10.0),
        "probe": solve_probe(features, labels, CLASSES, penalty=0.1, names=10.0),
    }[method]
    network = ClassNetwork(
        image_dim=DIM, outputs=CLASSES, name_dim=DIM, names=10.0, space=space,
        examples=len(labels) if head.memories else 0,
        memories=[{"width": one.width, "on_unit": one.on_unit} for one in head.memories],
    )  # fmt: skip
    network.take(head, statistics_of(vectors), names, vectors)
    torch.testing.assert_close(network(vectors, torch.zeros(len(vectors), 0)), head.logits(features, features),
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    again = build(network.key, network.settings)
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(vectors, torch.zeros(len(vectors), 0)), network(vectors, torch.zeros(0)),
                               rtol=1e-2, atol=2e-2)  # fmt: skip


def test_a_gaussian_of_copies_is_the_nearest_mean_by_distance():
    features, _, _ = drawn(CLASSES)
    twice = features.select(torch.arange(CLASSES).repeat_interleave(2))
    labels = torch.arange(CLASSES).repeat_interleave(2)
    logits = solve_gaussian(twice, labels, CLASSES, shrinkage=0.3).logits(twice, None)
    assert torch.equal(logits.argmax(dim=1), labels)
