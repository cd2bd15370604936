"""Fitting a kernel fusion: which kernels and penalty are chosen, and on what."""

import math

import pytest
import torch
from torch.nn.functional import normalize, one_hot

from frevl.errors import TrainingError, UsageError
from frevl.models.kernel_ridge import MOST_PAIRS, KernelFusion, kernel_matrix, mixed
from frevl.training.kernel.fit import fit_kernel
from frevl.training.kernel.problem import known_pairs, penalties_of
from frevl.training.options import KernelOptions


def problem(what="both"):
    """Pairs whose class is the product of two signs, or the sign of the text or of the image alone."""
    random = torch.Generator().manual_seed(3)
    images, texts = torch.randn(60, 5, generator=random), torch.randn(11, 7, generator=random)
    image_rows = torch.arange(60).repeat_interleave(4)
    text_rows = torch.randint(0, 11, (240,), generator=random)
    of_text = texts[text_rows, 0] if what != "image" else 1.0
    of_image = images[image_rows, 0] if what != "text" else 1.0
    weights = one_hot((of_text * of_image > 0).long(), 2).float()
    return images, texts, image_rows, text_rows, weights


def solved(what="both", options=None):
    images, texts, image_rows, text_rows, weights = problem(what)
    return fit_kernel(images, texts, image_rows, text_rows, weights, image_rows, options)


def test_it_learns_what_needs_both_modalities():
    network, fit = solved()
    images, texts, image_rows, text_rows, weights = problem()
    assert fit.metric > 0.8
    assert fit.chosen.name == "product"
    scores = network(images[image_rows], texts[text_rows])
    assert (scores.argmax(dim=1) == weights.argmax(dim=1)).float().mean() > 0.95
    new = torch.randn(400, 5, generator=torch.Generator().manual_seed(9))
    rows = torch.arange(400) % 11
    right = (new[:, 0] * texts[rows, 0] > 0).long()
    assert (network(new, texts[rows]).argmax(dim=1) == right).float().mean() > 0.75


def test_a_side_that_says_nothing_is_not_looked_at_and_that_is_said():
    network, fit = solved("text")
    assert fit.chosen.name == "text alone"
    assert fit.notes == ("kernel: the image added nothing measurable, so the text alone answers.",)
    _, texts, _, text_rows, _ = problem("text")
    a, b = (network(torch.randn(240, 5), texts[text_rows]) for _ in range(2))
    torch.testing.assert_close(a, b)

    network, fit = solved("image")
    assert fit.chosen.name == "image alone"
    assert fit.notes == ("kernel: the text added nothing measurable, so the image alone answers.",)
    images, _, image_rows, _, _ = problem("image")
    a, b = (network(images[image_rows], torch.randn(240, 7)) for _ in range(2))
    torch.testing.assert_close(a, b)


def test_the_held_out_scores_are_those_of_the_kept_solution():
    for what in ("both", "image"):
        network, fit = solved(what)
        images, texts, image_rows, text_rows, weights = problem(what)
        rows = image_rows == 7
        other = ~rows
        twin = KernelFusion(**{**network.settings, "pairs": int(other.sum())})
        empty = torch.zeros(int(other.sum()), 2)
        changed = {"image_rows": image_rows[other], "text_rows": text_rows[other], "alphas": empty}
        twin.load_state_dict({**network.state_dict(), **changed})
        text = kernel_matrix(network.texts, network.texts, network.text_width)[text_rows][:, text_rows]
        image = kernel_matrix(network.images, network.images, network.image_width)[image_rows][:, image_rows]
        kernel = mixed(text, image, fit.chosen.shares)
        penalised = kernel[other][:, other] + fit.ridge * torch.eye(int(other.sum()))
        twin.alphas.copy_(torch.linalg.solve(penalised, weights[other] - network.mean))
        torch.testing.assert_close(
            twin(images[image_rows[rows]], texts[text_rows[rows]]), fit.held_out[rows], atol=1e-4, rtol=1e-4
        )


def test_constant_dimensions_do_no_harm_and_tokens_are_pooled():
    images, texts, image_rows, text_rows, weights = problem()
    images[:, 2] = 0.25
    network, fit = fit_kernel(images, texts, image_rows, text_rows, weights, image_rows)
    assert math.isfinite(fit.metric)
    image = torch.stack([images[:3] - 1, images[:3] + 1, images[:3] * 0 + 77], dim=1)
    mask = torch.tensor([[True, True, False]] * 3)
    torch.testing.assert_close(network(image, texts[:3], mask), network(images[:3], texts[:3]), atol=1e-5, rtol=1e-5)


def test_too_many_pairs_and_broken_embeddings_are_refused():
    rows = torch.zeros(MOST_PAIRS + 1, dtype=torch.long)
    with pytest.raises(TrainingError, match="at most 20,000 training pairs, found 20,001"):
        fit_kernel(torch.zeros(1, 1), torch.zeros(1, 1), rows, rows, torch.zeros(1, 1), rows)
    images, texts, image_rows, text_rows, weights = problem()
    images[4, 1] = math.nan
    with pytest.raises(TrainingError, match="not finite; run frevl store verify"):
        fit_kernel(images, texts, image_rows, text_rows, weights, image_rows)


def of_images(images, label, clusters=None, outputs=None, options=None):
    """Fit on images alone, one pair an image."""
    rows = torch.arange(len(images))
    weights = one_hot(label, outputs or int(label.max()) + 1).float()
    none = torch.zeros(1, 0)
    return fit_kernel(images, none, rows, 0 * rows, weights, rows if clusters is None else clusters, options)


def test_near_copies_of_one_cluster_do_not_vouch_for_each_other():
    """Every image is there twice with one random label: only leaving both out tells that nothing is known."""
    random = torch.Generator().manual_seed(5)
    once = torch.randn(40, 5, generator=random)
    images = torch.cat([once, once + 1e-3])
    label = torch.randint(0, 2, (40,), generator=random).repeat(2)
    apart, together = (of_images(images, label, clusters)[1].metric for clusters in (None, torch.arange(80) % 40))
    assert apart > 0.75
    assert together < 0.65


def few_shot(examples, *, classes=25, seed=0):
    """Images around the centres of their classes, and other images of these."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 32, generator=random)
    label, new = torch.arange(classes).repeat(examples), torch.arange(classes).repeat(8)
    near = centres[label] + 0.7 * torch.randn(len(label), 32, generator=random)
    return near, label, centres[new] + 0.7 * torch.randn(len(new), 32, generator=random), new


def test_one_example_a_class_is_enough():
    """Leaving an example out leaves its class empty: then nothing is chosen by it (0.8 % right before)."""
    images, label, others, right = few_shot(1)
    network, fit = of_images(images, label)
    assert not fit.decided
    assert not fit.known.any()
    assert "fixed, not chosen" in fit.notes[0]
    scores = network(others, torch.zeros(len(others), 0))
    found = (scores.argmax(dim=1) == right).float().mean()
    nearest = (normalize(others) @ normalize(images).T).argmax(dim=1)
    assert found >= (label[nearest] == right).float().mean() - 0.02
    confidence = scores.softmax(dim=1).max(dim=1).values.mean()
    assert abs(confidence - found) < 0.2  # with unscaled scores all probabilities were 1 in 25


def test_one_example_a_class_with_image_and_text():
    """There is nothing to choose the sum by, so all three parts are in it, and either side may tell."""
    images, label, others, right = few_shot(1)
    rows, noise = torch.arange(25), torch.randn(225, 32, generator=torch.Generator().manual_seed(8))
    for telling, idle in (("image", "text"), ("text", "image")):
        sides = {telling: images, idle: noise[:25]}
        network, fit = fit_kernel(sides["image"], sides["text"], rows, rows, one_hot(label, 25).float(), rows)
        assert (fit.chosen.name, fit.ridge) == ("text, image and product", 1.0)
        assert "fixed, not chosen" in fit.notes[0]
        new = {telling: others, idle: noise[25:]}
        scores = network(new["image"], new["text"])
        assert (scores.argmax(dim=1) == right).float().mean() > 0.5


def test_classes_of_one_example_are_learned_and_passed_over_when_choosing():
    images, label, others, right = few_shot(3)
    kept = (label >= 5) | (torch.arange(len(label)) < 25)  # five classes keep one example
    network, fit = of_images(images[kept], label[kept])
    assert fit.decided
    assert fit.known.sum() == 60
    assert fit.notes == ()
    scores = network(others, torch.zeros(len(others), 0))
    rare = right < 5
    assert (scores.argmax(dim=1)[rare] == right[rare]).float().mean() > 0.5


def test_what_a_held_out_score_can_know():
    weights = one_hot(torch.tensor([0, 0, 1, 1, 2]), 4).float()
    weights[4, 0] = 0.5  # a second answer, which the first cluster has too
    found = known_pairs(weights, torch.tensor([0, 0, 1, 2, 3]))
    assert found.tolist() == [True, True, True, True, True]
    assert known_pairs(weights[:4], torch.tensor([0, 0, 1, 2])).tolist() == [False, False, True, True]


def test_activations_are_replaced_by_their_roots():
    images, texts, image_rows, text_rows, weights = problem()
    assert not fit_kernel(images, texts, image_rows, text_rows, weights, image_rows)[0].image_root
    assert fit_kernel(images.abs(), texts, image_rows, text_rows, weights, image_rows)[0].image_root


def test_a_large_set_is_compared_on_a_part(monkeypatch):
    monkeypatch.setattr("frevl.training.kernel.fit._SCREENED", 60)
    monkeypatch.setattr("frevl.training.kernel.fit.COMPARED", 160)
    network, fit = solved()
    assert fit.chosen.name == "product"
    assert fit.held_out.shape == (240, 2)
    assert network.settings["pairs"] == 240


def test_the_options_name_what_is_tried():
    assert solved("image", KernelOptions(image_alone=False))[1].chosen.name != "image alone"
    assert solved("both", KernelOptions(largest_penalty=7, smallest_penalty=7))[1].ridge == 7
    assert penalties_of(KernelOptions()) == [3.0, 0.95, 0.3, 0.095]
    with pytest.raises(UsageError, match="must not be above largest_penalty"):
        solved("both", KernelOptions(largest_penalty=1, smallest_penalty=2))
    nothing = KernelOptions(text_alone=False, image_alone=False, product=False, sums=False)
    with pytest.raises(UsageError, match="leave no sum of kernels to try"):
        solved("both", nothing)
    images, label, *_ = few_shot(2)
    assert of_images(images, label, options=nothing)[1].chosen.name == "image alone"  # of one side there is no choice
