"""The linear probe of few pairs: all fits at once are what each would be alone, and nothing set aside is lost."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import frevl
from frevl.errors import PairsError
from frevl.models.baselines import Linear, best_of_path
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.calibration import fit_calibration
from frevl.runs.targets import Answers
from frevl.training.debiasing.debias import debias
from frevl.training.examples import Examples
from frevl.training.fitting.fit_model import fit_model
from frevl.training.fitting.linear_folds import (
    _folds,
    _SideBySide,
    fit_again_by_folds,
    fit_linear_by_folds,
    is_folded,
)
from frevl.training.losses import task_loss
from frevl.training.options import LinearOptions, Session
from frevl.training.run_folder import NOWHERE, Checkpoint, Clock

DIM, OUTPUTS = 7, 3
SESSION = Session(seed=3, time_limit=None, device="cpu", progress=False)


def drawn(n, seed=0, *, classes=None, clusters=None):
    """Pairs of images alone, around a centre a class."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.arange(n) % OUTPUTS if classes is None else torch.tensor(classes)
    centres = torch.randn(OUTPUTS, DIM, generator=torch.Generator().manual_seed(9))
    values = centres[classes] + torch.randn(len(classes), DIM, generator=random)
    truth = Answers(classes[:, None], torch.ones(len(classes), 1), soft=False)
    clusters = torch.arange(len(classes)) if clusters is None else torch.tensor(clusters)
    return Examples(EmbeddedPairs.images_alone(values), truth, clusters)


def split(examples, dev):
    rows = torch.arange(len(examples))
    return examples.select(rows[dev:]), examples.select(rows[:dev])


def fitted(examples, dev=6, options=None, checkpoint=NOWHERE, network=None):
    network = network or Linear(image_dim=DIM, text_dim=0, outputs=OUTPUTS)
    train, held = split(examples, dev)
    return network, fit_linear_by_folds(network, train, held, options or LinearOptions(), SESSION, checkpoint)


def test_the_sum_and_its_gradients_are_those_of_the_loss_of_each_fit():
    random = torch.Generator().manual_seed(1)
    n = 23
    features, folds = torch.randn(n, DIM, generator=random), torch.arange(n) % 5
    shares = torch.rand(n, OUTPUTS, generator=random)
    shares = shares / shares.sum(dim=1, keepdim=True)
    shares[4] = 0  # no answer is known
    weights = torch.tensor([0.5, 1.0, 2.0])
    problem = _SideBySide(features, shares, shares @ weights, folds, float("inf"))
    weight = torch.randn(6 * OUTPUTS, DIM, generator=random, requires_grad=True)
    bias = torch.randn(6 * OUTPUTS, generator=random, requires_grad=True)
    total = torch.zeros(())
    for fit in range(6):
        inside, own = folds != fit, slice(fit * OUTPUTS, (fit + 1) * OUTPUTS)
        logits = (features @ problem.directions @ weight[own].T + bias[own])[inside]
        total = total + task_loss(logits, shares[inside], kind="class", smoothing=0.0, class_weights=weights)
    by_weight, by_bias = torch.autograd.grad(total, (weight, bias))
    value, own_by_weight, own_by_bias = problem.value(weight.detach(), bias.detach())
    assert value == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(own_by_weight, by_weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own_by_bias, by_bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_every_fit_is_logistic_regression_on_its_pairs(penalty):
    examples, folds = drawn(60), torch.arange(60) % 5
    x = examples.pairs.images[:, 0]
    x, y = (x - x.mean(dim=0)) / x.std(dim=0, correction=0), examples.truth.classes[:, 0]
    shares = examples.truth.dense(torch.arange(60), OUTPUTS)
    problem = _SideBySide(x, shares, torch.ones(60), folds, float("inf"))
    _, weight, bias = best_of_path(problem, torch.zeros(6 * OUTPUTS), lambda *_: 0.0, penalties=(penalty,))
    found = problem.held_out(weight, bias).softmax(dim=1)
    for fold in range(5):
        inside = folds != fold
        judge = LogisticRegression(C=1 / (penalty * int(inside.sum())), tol=1e-8, max_iter=5_000)
        judge.fit(x[inside].numpy(), y[inside].numpy())
        expected = judge.predict_proba(x[~inside].numpy())
        np.testing.assert_allclose(found[~inside].numpy(), expected, atol=1e-3)


def test_the_network_knows_all_pairs_and_the_scores_do_not():
    examples = drawn(60)
    network, held_out = fitted(examples)
    assert len(held_out.logits) == 60
    x = examples.pairs.images[:, 0]
    torch.testing.assert_close(network.mean.data, x.mean(dim=0))  # of the set-aside pairs too
    with torch.inference_mode():
        own = network(x, torch.zeros(60, 0))
    order = torch.cat([torch.arange(6, 60), torch.arange(6)])  # training part, development part
    assert torch.equal(held_out.truth.classes, examples.truth.classes[order])
    assert torch.equal(held_out.clusters, examples.clusters[order])
    truth = held_out.truth.classes[:, 0]
    losses = [torch.nn.functional.cross_entropy(logits, truth).item() for logits in (own[order], held_out.logits)]
    assert losses[0] < losses[1]


def test_clusters_stay_whole_and_classes_are_dealt_to_all_folds():
    clusters = [number // 2 for number in range(60)]
    examples = drawn(60, classes=[number // 2 % OUTPUTS for number in range(60)], clusters=clusters)
    folds = _folds(examples, 0)
    assert torch.equal(folds[0::2], folds[1::2])
    for one in range(OUTPUTS):
        counts = torch.bincount(folds[examples.truth.classes[:, 0] == one], minlength=5)
        assert counts.tolist() == [4] * 5
    assert not torch.equal(folds, _folds(examples, 1))


def test_a_class_of_one_example_does_not_ruin_the_calibration():
    """The fit without it sent its logit towards minus infinity, and the scale of all logits went to zero."""
    examples = drawn(0, classes=[0, 1] * 20 + [2])
    _, held_out = fitted(examples)
    assert len(held_out.logits) == 40
    assert 2 not in held_out.truth.classes
    assert held_out.logits.isfinite().all()
    assert held_out.logits.abs().max() < 100
    assert fit_calibration(held_out.logits, held_out.truth)["scale"] > 0.3


def test_a_fit_goes_on_from_its_file(tmp_path):
    examples = drawn(60)
    place = Checkpoint(tmp_path, "linear", Clock())
    network, held_out = fitted(examples, checkpoint=place)
    again, same = fitted(drawn(60, seed=5), checkpoint=place)  # other pairs would give another fit
    assert torch.equal(again.linear.weight, network.linear.weight)
    assert torch.equal(same.logits, held_out.logits)


def test_balanced_classes_count_alike():
    examples = drawn(0, classes=[0] * 40 + [1] * 8 + [2] * 8)
    frequent = []
    for class_weight in (None, "balanced"):
        network, _ = fitted(examples, options=LinearOptions(class_weight=class_weight))
        with torch.inference_mode():
            p = network(torch.zeros(1, DIM) + network.mean, torch.zeros(1, 0)).softmax(dim=1)
        frequent.append(float(p[0, 0]))
    assert frequent[1] < frequent[0]


def test_only_few_pairs_with_one_right_answer_each_are_folded(monkeypatch):
    train, dev = split(drawn(60), 6)
    assert is_folded(train, dev, OUTPUTS, dev_is_spare=True)
    assert not is_folded(train, dev, OUTPUTS, dev_is_spare=False)
    assert not is_folded(train, dev, 501, dev_is_spare=True)
    soft = Answers(train.truth.classes, train.truth.weights, soft=True)
    assert not is_folded(Examples(train.pairs, soft, train.clusters), dev, OUTPUTS, dev_is_spare=True)
    matching = Examples(train.pairs, torch.ones(54), train.clusters)
    assert not is_folded(matching, dev, 1, dev_is_spare=True)
    four = Examples(train.pairs, train.truth, train.clusters % 4)
    assert not is_folded(four, Examples(dev.pairs, dev.truth, dev.clusters % 4), OUTPUTS, dev_is_spare=True)
    monkeypatch.setattr("frevl.training.fitting.linear_folds.MOST_FOLDED", 59)
    assert not is_folded(train, dev, OUTPUTS, dev_is_spare=True)


@pytest.mark.parametrize("spare", [True, False])
def test_given_development_pairs_are_not_fitted_to(spare):
    train, dev = split(drawn(60), 6)
    found = fit_model("linear", train, dev, OUTPUTS, LinearOptions(), SESSION, dev_is_spare=spare)
    assert found.pairs == (60 if spare else None)
    assert len(found.development(dev)[0]) == (60 if spare else 6)


def test_the_fits_without_each_fold_can_be_repeated():
    examples = drawn(60)
    train, dev = split(examples, 6)
    network, held_out = fitted(examples)
    again = fit_again_by_folds(train, dev, network.eval(), LinearOptions(), SESSION.seed)
    torch.testing.assert_close(again.logits(lambda one: one), held_out.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(again.examples.truth.classes, held_out.truth.classes)
    for one in again.networks:
        assert not torch.allclose(one.linear.weight, network.linear.weight, atol=1e-3)
    with pytest.raises(ValueError, match="other fits"):
        fit_again_by_folds(train, dev, network, LinearOptions(), SESSION.seed + 1)


@pytest.mark.slow
def test_a_run_records_all_its_pairs_and_is_debiased_by_the_fits_without_each_fold(made, tmp_path):
    run = frevl.train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="linear")
    lines = made.train_file.read_text().splitlines()
    assert run.results["train_pairs"] == len(lines)
    assert run.results["development"]["n"] == len(lines)
    less = debias(tmp_path / "run", out=tmp_path / "out", without="image")
    assert less.results["development"]["n"] == len(lines)
    chosen = less.results["debias"]["strength"]
    tried = {one["strength"]: one["accuracy"] for one in less.results["debias"]["tried"]}
    assert tried[0] == pytest.approx(run.results["development"]["accuracy"]), "that of the fits without each pair"
    assert less.results["development"]["accuracy"] == pytest.approx(tried[chosen])
    assert any(
        f"recalibrated on {len(lines)} training pairs, each by a fit without it" in one for one in less.results["notes"]
    )
    debias(tmp_path / "run", out=tmp_path / "given", without="image", dev=made.test_file)


@pytest.mark.slow
def test_fits_of_another_training_do_not_judge_a_run(made, tmp_path):
    run = frevl.train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="linear")
    run.network.linear.bias.data[0] += 3  # as if the time had ended
    run.save()
    with pytest.raises(PairsError, match=r"a linear probe of few pairs also trains on its development part"):
        debias(tmp_path / "run", out=tmp_path / "out", without="image")
    fixed = debias(tmp_path / "run", out=tmp_path / "fixed", without="image", strength=0.5)
    assert fixed.calibration == run.calibration
