"""A kernel fusion of many pairs with landmarks: against the exact one, and refitted without a cluster."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from frevl.errors import TrainingError, UsageError
from frevl.models.kernel_ridge import KernelFusion
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.targets import Answers
from frevl.training.examples import Examples
from frevl.training.fitting.fit_model import fit_model
from frevl.training.kernel.approximate import fit_kernel_approximately
from frevl.training.kernel.fit import fit_kernel_on
from frevl.training.kernel.landmarks import Landmarks, Regression, whole_clusters
from frevl.training.options import KernelOptions, Session

ALL = KernelOptions(landmarks=10_000)


def pairs_of(images, texts, image_rows, text_rows):
    return EmbeddedPairs(
        images[:, None],
        torch.ones(len(images), 1, dtype=torch.bool),
        texts[:, None],
        torch.ones(len(texts), 1, dtype=torch.bool),
        image_rows,
        text_rows,
    )


def examples(what="both", count=240, seed=3):
    """Four pairs per image; their class is the product of two signs, or the sign of the text or of the image alone."""
    random = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(count // 4, 5, generator=random), torch.randn(11, 7, generator=random)
    image_rows = torch.arange(count // 4).repeat_interleave(4)
    text_rows = torch.randint(0, 11, (count,), generator=random)
    of_text = texts[text_rows, 0] if what != "image" else 1.0
    of_image = images[image_rows, 0] if what != "text" else 1.0
    label = (of_text * of_image > 0).long()
    answers = Answers(label[:, None], torch.ones(count, 1), soft=False)
    return Examples(pairs_of(images, texts, image_rows, text_rows), answers, image_rows)


def scores(network, given):
    with torch.inference_mode():
        return network(*given.pairs.inputs(given.pairs.image_rows, given.pairs.text_rows))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["both", "text", "image"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_where_all_pairs_are_landmarks_it_is_the_exact_solution(what, class_weight):
    given, options = examples(what), KernelOptions(landmarks=10_000, class_weight=class_weight)
    exact, solved = fit_kernel_on(given, 2, options)
    network, fit = fit_kernel_approximately(given, 2, options)
    assert (fit.chosen, fit.ridge) == (solved.chosen, solved.ridge)
    torch.testing.assert_close(scores(network, given), scores(exact, given), atol=2e-4, rtol=0)
    assert fit.rows.tolist() == list(range(240))
    torch.testing.assert_close(fit.held_out, solved.held_out, atol=2e-4, rtol=0)
    assert fit.known.equal(solved.known)
    assert fit.metric == pytest.approx(solved.metric, abs=1e-6)


@pytest.mark.slow
def test_fewer_landmarks_answer_nearly_as_well_and_the_run_says_so():
    given, others = examples(count=800), examples(count=400, seed=4)
    network, fit = fit_kernel_approximately(given, 2, KernelOptions(landmarks=150))
    assert network.settings["pairs"] == 150
    assert len(network.images) <= 150
    said = f"Held out, {100 * fit.metric:.1f} % of its answers are right, with half as many "
    assert "150 of 800 training pairs serve as landmarks. " + said in fit.notes[0]
    assert fit.notes[0].startswith("kernel: approximate")
    assert fit.approximation["landmarks"] == 150
    assert fit.approximation["held_out"]["accuracy"] == 100 * fit.metric
    right = others.truth.classes[:, 0]
    of_pairs = EmbeddedPairs(
        others.pairs.images, others.pairs.image_mask, given.pairs.texts, given.pairs.text_mask,
        others.pairs.image_rows, others.pairs.text_rows,
    )  # fmt: skip
    signs = others.pairs.images[others.pairs.image_rows, 0, 0] * given.pairs.texts[others.pairs.text_rows, 0, 0]
    right = (signs > 0).long()
    found, best = (
        (scores(one, Examples(of_pairs, others.truth, others.clusters)).argmax(dim=1) == right).float().mean()
        for one in (network, fit_kernel_on(given, 2)[0])
    )
    assert best > 0.8
    assert found > best - 0.05


def regression(given, landmarks, *, pair_weights=None):
    """A regression with the first pairs as landmarks."""
    room = KernelFusion(
        image_dim=5, text_dim=7, outputs=2, pairs=landmarks, images=60, texts=11, shares=(0.25, 0.0, 0.75)
    )
    for statistic in (room.image_scale, room.text_scale, room.image_width, room.text_width):
        statistic.fill_(1.0)
    room.images.copy_(normalize(given.pairs.images[:, 0]))
    room.texts.copy_(normalize(given.pairs.texts[:, 0]))
    room.image_rows.copy_(given.pairs.image_rows[:landmarks])
    room.text_rows.copy_(given.pairs.text_rows[:landmarks])
    room.mean.copy_(torch.tensor([0.4, 0.6]))
    carried = Landmarks.of(room, given, given.truth, pair_weights)
    return Regression.of(carried, torch.arange(len(given)))


@pytest.mark.parametrize("large", [False, True])
def test_held_out_scores_equal_solving_again_without_the_cluster(large, monkeypatch):
    """Small clusters in closed form, large ones by another solution."""
    if large:
        monkeypatch.setattr("frevl.training.kernel.landmarks._PAIRS_AT_ONCE", 3)
    given = examples()
    given = Examples(given.pairs, given.truth, torch.arange(240) // (60 if large else 7))
    weights = torch.rand(240, generator=torch.Generator().manual_seed(2)) + 0.5
    whole = regression(given, 50, pair_weights=weights)
    rows = torch.arange(120 if large else 119)
    alphas, found = whole.held_out(0.3, rows)
    torch.testing.assert_close(alphas, whole.solve(0.3)[0])
    for cluster in given.clusters[rows].unique():
        inside, outside = (given.clusters == cluster).nonzero()[:, 0], (given.clusters != cluster).nonzero()[:, 0]
        kernels, targets = whole.landmarks.kernels(outside), whole.landmarks.targets(outside)
        between = whole.landmarks.factor @ whole.landmarks.factor.T
        left = kernels.T @ (weights[outside, None] * kernels) + 0.3 * between
        again = torch.linalg.solve(left, kernels.T @ (weights[outside, None] * targets))
        own = inside[inside < len(rows)]
        torch.testing.assert_close(found[own], whole.landmarks.kernels(own) @ again, atol=1e-6, rtol=1e-6)


def test_the_first_landmarks_alone_are_a_regression_of_their_own():
    given = examples()
    first, alone = regression(given, 50).first(20), regression(given, 20)
    torch.testing.assert_close(first.solve(0.3)[0], alone.solve(0.3)[0], atol=1e-8, rtol=1e-6)
    for one, other in zip(first.held_out(0.3, torch.arange(240)), alone.held_out(0.3, torch.arange(240)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-6)


def test_whole_clusters_are_drawn():
    clusters = torch.tensor([5, 5, 5, 1, 1, 2, 5, 5])
    assert clusters[whole_clusters(clusters, 3)].tolist() == [1, 1, 2]
    assert whole_clusters(clusters, 100).tolist() == list(range(8))
    assert whole_clusters(torch.zeros(9, dtype=torch.long), 3).tolist() == list(range(9))


def test_equal_pairs_are_one_landmark():
    """Text alone: eleven texts carry everything, however many pairs have them."""
    network, fit = fit_kernel_approximately(examples("text"), 2, ALL)
    assert fit.chosen.name == "text alone"
    assert network.settings["pairs"] == 11


def test_above_the_limit_the_model_is_approximate_and_below_it_exact(monkeypatch):
    given = examples()
    part = given.select(torch.arange(40))

    def fitted():
        session = Session(seed=0, time_limit=None, device="cpu", progress=False)
        return fit_model("kernel", given, part, 2, KernelOptions(landmarks=60), session, dev_is_spare=True)

    assert fitted().approximation is None
    assert fitted().network.settings["pairs"] == 280
    monkeypatch.setattr("frevl.training.fitting.fit_model.MOST_PAIRS", 279)
    found = fitted()
    assert found.network.settings["pairs"] == 60
    assert found.approximation["pairs"] == 280
    assert found.notes[0].startswith("kernel: approximate")
    logits, truth = found.held_out
    assert len(logits) == len(truth.classes) == len(found.held_out_clusters)
    assert (logits.argmax(dim=1) == truth.classes[:, 0]).float().mean() > 0.7


def test_one_example_a_class_and_one_side_alone():
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(25, 32, generator=random)
    answers = Answers(torch.arange(25)[:, None], torch.ones(25, 1), soft=False)
    given = Examples(EmbeddedPairs.images_alone(centres), answers, torch.arange(25))
    exact, solved = fit_kernel_on(given, 25)
    network, fit = fit_kernel_approximately(given, 25, ALL)
    assert not fit.decided
    assert "fixed, not chosen" in fit.notes[1]
    assert (fit.chosen, fit.ridge) == (solved.chosen, solved.ridge)
    torch.testing.assert_close(scores(network, given), scores(exact, given), atol=1e-2, rtol=1e-3)


def test_soft_answers_and_roots_are_those_of_the_exact_solution():
    given = examples()
    weights = torch.rand(240, 2, generator=torch.Generator().manual_seed(1))
    classes = torch.stack([given.truth.classes[:, 0], 1 - given.truth.classes[:, 0]], dim=1)
    classes[:5, 1] = -1
    pairs = pairs_of(
        given.pairs.images[:, 0].abs(), given.pairs.texts[:, 0], given.pairs.image_rows, given.pairs.text_rows
    )
    soft = Examples(pairs, Answers(classes, weights.where(classes >= 0, 0), soft=True), given.clusters)
    exact, _ = fit_kernel_on(soft, 2)
    network, _ = fit_kernel_approximately(soft, 2, ALL)
    assert network.image_root
    torch.testing.assert_close(scores(network, soft), scores(exact, soft), atol=2e-4, rtol=0)


def test_broken_embeddings_and_matching_are_refused():
    for side in ("images", "texts"):
        given = examples()
        getattr(given.pairs, side)[4, 0, 1] = math.nan
        with pytest.raises(TrainingError, match="not finite; run frevl store verify"):
            fit_kernel_approximately(given, 2)
    given = examples()
    with pytest.raises(UsageError, match="does classification only"):
        fit_kernel_approximately(Examples(given.pairs, torch.ones(240), given.clusters), 1)
