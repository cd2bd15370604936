"""How a method is chosen: folds keep groups and classes whole, names are never lost, the table is complete."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from frevl.errors import UsageError
from frevl.models.classification.heads import Features, statistics_of, unit_features
from frevl.training.classification import learning_curve
from frevl.training.classification.candidates import candidates_of
from frevl.training.classification.choose import assign_folds, choose_head
from frevl.training.classification.trials import Labelled, Trials
from frevl.training.options import Session

SESSION = Session(seed=0, time_limit=None, device="cpu", progress=False)


def drawn(a_class, classes=5, *, noise=0.5, names_noise=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(a_class)
    vectors = torch.eye(16)[labels] + noise * torch.randn(len(labels), 16, generator=generator)
    unit = F.normalize(vectors, dim=1)
    cosines = None
    if names_noise is not None:
        names = torch.eye(16)[:classes] + names_noise * torch.randn(classes, 16, generator=generator)
        cosines = unit @ F.normalize(names, dim=1).T
    return Labelled(Features(unit, unit, cosines), labels, torch.arange(len(labels)))


def test_folds_keep_examples_of_every_class_and_groups_whole():
    examples = drawn(7)
    groups = Labelled(examples.features, examples.labels, torch.arange(len(examples)) // 3)
    for one in (examples, groups):
        folds = assign_folds(one, 5, 0)
        for fold in range(int(folds.max()) + 1):
            kept = one.labels[folds != fold]
            assert len(set(kept.tolist())) == 5
        for group in one.clusters.unique():
            assert len(set(folds[one.clusters == group].tolist())) == 1


def test_a_class_of_one_example_is_never_held_out():
    examples = drawn(4).select(torch.arange(17))  # the last class has one
    folds = assign_folds(examples, 5, 0)
    assert folds[16] == -1
    assert (folds[:16] >= 0).all()


def test_a_group_that_the_space_has_partly_learned_from_is_not_held_out():
    """Copies with one random label per group: whoever learns from half of a group knows the label of the other half."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(60).repeat_interleave(4)
    unit = F.normalize(torch.randn(60, 16, generator=generator), dim=1)[groups]
    labels = torch.randint(4, (60,), generator=generator)[groups]
    known = (torch.arange(len(groups)) % 4 < 2) & (groups < 40)
    examples = Labelled(Features(unit, unit, unit @ torch.eye(16)[:, :4]), labels, groups, known=known)
    choice = choose_head(examples, None, 4, method="means", names=20.0, session=SESSION)
    assert len(choice.held_out[1]) == 80, "the groups that are not known at all"
    for kept, out in choice.splits:
        assert not set(groups[kept].tolist()) & set(groups[out].tolist())
    everywhere = replace(examples, known=torch.arange(len(groups)) % 4 < 2)
    alone = choose_head(everywhere, None, 4, method="means", names=20.0, session=SESSION)
    assert not len(alone.held_out[1])
    assert "has learned from 240 of the 240 examples, or from images grouped with them" in alone.notes[1]
    assert "names alone are right for 60 of 240 examples, which is no better than chance" in alone.notes[0]


def test_useless_examples_leave_the_names_alone():
    """Labels at random: whatever is fitted to them is worse than the names."""
    held = drawn(12, names_noise=0.1, noise=0.4)
    shuffled = held.labels[torch.randperm(len(held), generator=torch.Generator().manual_seed(0))]
    choice = choose_head(
        Labelled(held.features, shuffled, held.clusters), held, 5, method="auto", names=20.0, session=SESSION
    )
    assert choice.method == "names"
    truth = drawn(40, names_noise=0.1, noise=0.4, seed=1)
    right = (choice.head.logits(truth.features, held.features).argmax(dim=1) == truth.labels).float().mean()
    alone = (truth.features.cosines.argmax(dim=1) == truth.labels).float().mean()
    assert right == alone


def test_the_table_names_every_candidate_once():
    choice = choose_head(drawn(8), None, 5, method="auto", names=0.0, session=SESSION)
    names = [row["name"] for row in choice.rows]
    assert len(names) == len(set(names))
    assert {"means", "cache"} < set(names)
    assert any(name.startswith("gaussian") for name in names)
    assert any("+" in name for name in names)
    assert choice.compared_on == "40 held-out examples in 5 folds"
    assert all("left_out" in row or row["log_loss"] > 0 for row in choice.rows)
    logits, labels = choice.held_out
    assert logits.shape == (40, 5)
    assert F.cross_entropy(logits, labels) < F.cross_entropy(torch.zeros_like(logits), labels)


def test_a_time_limit_leaves_out_what_would_take_too_long():
    short = Session(seed=0, time_limit=1e-6, device="cpu", progress=False)
    choice = choose_head(drawn(8), None, 5, method="auto", names=0.0, session=short)
    assert choice.method == "means"
    assert any(row.get("left_out") == "would take more than the remaining time" for row in choice.rows)


def test_a_method_that_keeps_every_example_has_a_most(monkeypatch):
    """Once the kernel matrix of 100,000 examples, 40 GB, was asked for."""
    from frevl.training.classification import candidates

    small = tuple(one if one.most is None else replace(one, most=30, beyond=0) for one in candidates._CANDIDATES)
    monkeypatch.setattr(candidates, "_CANDIDATES", small)
    choice = choose_head(drawn(8), None, 5, method="auto", names=0.0, session=SESSION)
    left_out = {row["name"]: row["left_out"] for row in choice.rows if "left_out" in row}
    assert left_out["cache"] == left_out["kernel ridge 1"] == "keeps every example, at most 30"
    assert not choice.head.memories
    with pytest.raises(UsageError, match="--method kernel: kernel ridge 1 keeps every example, at most 30; choose"):
        choose_head(drawn(8), None, 5, method="kernel", names=0.0, session=SESSION)


@pytest.mark.slow
@pytest.mark.parametrize(("directions", "carried"), [(1, True), (40, False)])
def test_landmarks_carry_the_kernel_where_they_lose_nothing(directions, carried):
    """With many directions a class, 1,024 of 10,000 examples lost 24 points of accuracy."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(4_400) % 4
    centres = torch.randn(4, directions, 60, generator=random)
    which = torch.randint(directions, (len(labels),), generator=random)
    images = F.normalize(0.8 * centres[labels, which] + torch.randn(len(labels), 60, generator=random), dim=1)
    features = Features(images, unit_features(images, statistics_of(images)), None)
    examples = Labelled(features, labels, torch.arange(len(labels)))
    choice = choose_head(examples, None, 4, method="kernel", names=0.0, session=SESSION)
    assert choice.method.endswith("landmarks 1024") == carried
    assert len(choice.head.memories[0].coefficients) == (1_024 if carried else 4_400)


def test_a_gaussian_of_two_examples_a_class_is_fitted_though_not_compared():
    """Without the held-out ones every class has one, which shows no covariance; this once ended in a traceback."""
    choice = choose_head(drawn(2, classes=12, noise=0.2), None, 12, method="gaussian", names=0.0, session=SESSION)
    assert choice.method == "gaussian"
    assert "needs 2 examples per class besides those held out" in choice.notes[0]
    truth = drawn(20, classes=12, noise=0.2, seed=2)
    right = (choice.head.logits(truth.features, None).argmax(dim=1) == truth.labels).float().mean()
    assert right > 0.5


def test_a_head_without_weights_says_so_and_saves_their_product():
    for method, linear in (("names", False), ("cache", False), ("kernel", False), ("means", True), ("probe", True)):
        one = drawn(8, names_noise=0.1)
        head = choose_head(one, None, 5, method=method, names=20.0, session=SESSION).head
        assert head.linear == linear == bool(head.weight.any())
        whole = replace(head, linear=True)
        assert torch.allclose(head.logits(one.features, one.features), whole.logits(one.features, one.features))


def test_a_pair_of_copies_among_single_examples_is_no_covariance():
    """They stay together, so every other class had one example in every fit: the solver found a singular matrix."""
    one = drawn(2, classes=12, noise=0.2)
    unit = one.features.unit.clone()
    unit[1] = unit[0]
    clusters = one.clusters.clone()
    clusters[1] = clusters[0]
    choice = choose_head(
        Labelled(Features(unit, unit, None), one.labels, clusters), None, 12, method="auto", names=0.0, session=SESSION
    )
    left_out = {row["name"]: row["left_out"] for row in choice.rows if "left_out" in row}
    assert left_out["gaussian shrinkage 0.9"] == "needs 2 examples per class besides those held out"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_confidence_is_that_of_a_fit_on_all_examples_not_on_those_of_the_folds(seed, monkeypatch):
    """A fit of the comparison has five of seven examples, is right less often, and alone would make it too timid."""
    monkeypatch.setattr(learning_curve, "FEWEST", 100)
    examples, fresh = drawn(7, 16, noise=0.35, seed=seed), drawn(200, 16, noise=0.35, seed=seed + 100)
    choice = choose_head(examples, None, 16, method="gaussian", names=0.0, session=SESSION)
    assert 1.0 < choice.scale < 1.5
    logits = choice.head.logits(fresh.features, examples.features)
    assert F.cross_entropy(logits, fresh.labels) < F.cross_entropy(logits / choice.scale, fresh.labels)
    # The kept logits are on the same scale, as thresholds on them apply to the final fit.
    kept = choice.held_out[0] / choice.scale
    assert F.cross_entropy(kept, choice.held_out[1]) < F.cross_entropy(choice.held_out[0], choice.held_out[1])


def test_too_few_held_out_examples_extrapolate_nothing():
    choice = choose_head(drawn(4, 16), None, 16, method="gaussian", names=0.0, session=SESSION)
    assert choice.scale == 1.0


def test_the_winner_is_fitted_once_more_in_two_and_in_ten_folds():
    """Fits on a half and on nine tenths: the last tenth is an eighth of that way in reciprocals, 1/9 of 8/9."""
    examples = drawn(20, 16, noise=0.4, seed=3)
    asked = []

    def divided(folds):
        asked.append(folds)
        return Trials(examples, assign_folds(examples, 16, 0, most=folds), None, 16, 0.0)

    trials = divided(5)
    (winner,) = trials.compare([one for one in candidates_of("gaussian", has_names=False) if one.name.endswith("0.5")])
    found = math.log(learning_curve.scale_for_all(winner, trials, divided))
    assert asked == [5, 2, 10]

    def likeliest(part):
        logits, truth = part.logits(winner.members), part.truth.labels
        grid = torch.linspace(-0.5, 0.5, 2001)
        return float(min(grid, key=lambda log: float(F.cross_entropy(log.exp() * logits, truth))))

    fewer, most = likeliest(divided(2)), likeliest(divided(10))
    assert most > fewer
    assert found == pytest.approx(most + (most - fewer) / 8, abs=2e-3)
    assert learning_curve.scale_for_all(winner, trials, None) == pytest.approx(math.exp(likeliest(trials)), abs=2e-3)


def test_labels_in_another_order_than_the_names_are_noticed():
    right = drawn(8, 5, names_noise=0.1)
    other = replace(right, labels=(right.labels + 1) % 5)
    few = other.select(torch.arange(10))
    said = [choose_head(one, None, 5, method="auto", names=20.0, session=SESSION).notes for one in (right, other, few)]
    assert said[1][0].startswith("The names alone are right for 2 of 40 examples, which is no better than chance: ")
    assert not any("names alone are right" in note for notes in (said[0], said[2]) for note in notes)


def test_why_nothing_could_be_held_out_is_said_in_numbers():
    whole, uneven = drawn(4, 4), drawn(5, 4)
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 10, 15])  # all of the first class, one of each other
    said = [
        choose_head(one, None, 4, method="auto", names=0.0, session=SESSION).notes[0]
        for one in (whole, uneven.select(kept), drawn(1, 4))
    ]
    assert "calibrated: only 16 of the 16 examples can be held out (at least 20 are needed), so nothing" in said[0]
    assert "only 5 of the 8 examples can be held out (a class with one example, or one group of examples, " in said[1]
    assert "none of the 4 examples can be held out (a class with one example, or one group" in said[2]
