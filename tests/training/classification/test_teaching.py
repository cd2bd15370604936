"""The classifier fitted while somebody labels: that of `frevl classify`, but quick."""

import numpy as np
import pytest
import torch

from frevl.training.classification.fit_network import EmbeddedExamples, fit_network
from frevl.training.classification.teaching import teach
from frevl.training.options import Session


def planted(n, classes, dim=23, seed=0, noise=1.5):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    labels = np.arange(n) % classes
    vectors = centres[labels] + noise * rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def test_it_says_what_frevl_classify_says():
    vectors, labels = planted(90, 3)
    taught = teach(vectors, labels, range(90), 3)
    examples = EmbeddedExamples(torch.from_numpy(vectors), torch.from_numpy(labels), torch.arange(90))
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    network, choice = fit_network(examples, None, None, 3, method="probe", session=session)
    pool, truth = planted(200, 3, seed=1)
    with torch.no_grad():
        said = network(torch.from_numpy(pool)[:, None], torch.zeros(200, 1, 0)).softmax(dim=1).numpy()
    found = taught.probabilities(pool.astype(np.float16))
    np.testing.assert_allclose(found, said, atol=5e-3)  # half precision, in the store and in the network
    assert taught.method == choice.method
    assert np.mean(found.argmax(axis=1) == truth) > 0.8


def test_a_mapped_file_of_half_precision_gives_the_very_numbers(tmp_path):
    vectors, labels = planted(60, 3)
    taught, (pool, _) = teach(vectors, labels, range(60), 3), planted(100, 3, seed=1)
    np.save(tmp_path / "pool.npy", pool.astype(np.float16))
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")  # it cannot be written to
    expected = taught.probabilities(pool.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(taught.probabilities(mapped), expected)


def test_held_out_rows_are_those_that_the_probabilities_are_of():
    vectors, labels = planted(60, 2, noise=0.2)
    taught = teach(vectors, labels, range(60), 2)
    assert sorted(taught.held_out.tolist()) == list(range(60))
    assert (taught.held_out_probabilities.argmax(axis=1) == labels[taught.held_out]).all()


def test_copies_are_held_out_together():
    vectors, _ = planted(40, 2, noise=3)
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 20), 2)  # labels that nothing tells but the copy
    doubled = vectors[np.arange(40) // 2 * 2]
    alone = teach(doubled, labels, range(40), 2)
    together = teach(doubled, labels, np.arange(40) // 2, 2)

    def accuracy(taught):
        return np.mean(taught.held_out_probabilities.argmax(axis=1) == labels[taught.held_out])

    assert accuracy(alone) - accuracy(together) > 0.2


def test_a_quick_fit_keeps_the_choice_and_learns_a_new_class():
    vectors, labels = planted(60, 3)
    first = teach(vectors[labels < 2], labels[labels < 2], range(40), 2)
    quick = teach(vectors, labels, range(60), 3, before=first)
    assert (quick.method, len(quick.held_out)) == (first.method, 0)
    assert np.mean(quick.probabilities(vectors).argmax(axis=1) == labels) > 0.9


@pytest.mark.parametrize("dim", [3, 5000])
def test_two_labels_are_enough_for_an_order_and_nothing_is_measured(dim):
    vectors, labels = planted(2, 2, dim=dim)
    taught = teach(vectors, labels, range(2), 2)
    assert len(taught.held_out) == 0
    assert "Methods were not compared" in taught.notes[0]
    assert (taught.probabilities(vectors).argmax(axis=1) == labels).all()
    quick = teach(vectors, labels, range(2), 2, before=taught)
    np.testing.assert_allclose(quick.probabilities(vectors), taught.probabilities(vectors), atol=1e-6)


def test_no_pictures_have_no_probabilities():
    vectors, labels = planted(4, 2)
    assert teach(vectors, labels, range(4), 2).probabilities(vectors[:0]).shape == (0, 2)


def test_equal_pictures_with_different_labels_do_no_harm():
    vectors = np.tile(planted(1, 1)[0], (30, 1))
    taught = teach(vectors, np.arange(30) % 2, range(30), 2)
    found = taught.probabilities(vectors)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, 0.5, atol=0.1)


def named(classes, dim=23, far=0.0):
    """Vectors of names: the centres of the planted classes, or something that has nothing to do with them."""
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    other = np.random.default_rng(3).standard_normal((classes, dim))
    names = (1 - far) * centres + far * other
    return (names / np.linalg.norm(names, axis=1, keepdims=True)).astype(np.float32)


def right(taught, pool, truth):
    return float(np.mean(taught.probabilities(pool.astype(np.float16)).argmax(axis=1) == truth))


def test_names_alone_answer_before_the_first_label():
    pool, truth = planted(200, 3, seed=1)
    none = np.zeros((0, 23), np.float32), np.zeros(0, np.int64), [], 3
    taught = teach(*none, names=named(3), scale=20.0)
    assert (taught.method, len(taught.held_out)) == ("names alone", 0)
    assert right(taught, pool, truth) > 0.9
    expected = torch.from_numpy(20.0 * pool.astype(np.float16).astype(np.float32) @ named(3).T).softmax(dim=1)
    np.testing.assert_allclose(taught.probabilities(pool.astype(np.float16)), expected.numpy(), atol=1e-5)


def test_names_lift_what_few_labels_teach_and_a_class_that_has_only_its_name_is_found():
    vectors, labels = planted(6, 3, noise=2)
    pool, truth = planted(300, 3, seed=1, noise=2)
    alone = teach(vectors, labels, range(6), 3)
    taught = teach(vectors, labels, range(6), 3, names=named(3), scale=20.0)
    assert right(taught, pool, truth) > right(alone, pool, truth) + 0.05
    two = labels < 2
    partly = teach(vectors[two], labels[two], range(4), 3, names=named(3), scale=20.0)
    assert float(np.mean(partly.probabilities(pool)[truth == 2].argmax(axis=1) == 2)) > 0.5


def test_names_that_say_nothing_do_no_harm_once_labels_can_be_held_out():
    vectors, labels = planted(90, 3)
    pool, _ = planted(300, 3, seed=1)
    alone = teach(vectors, labels, range(90), 3)
    taught = teach(vectors, labels, range(90), 3, names=named(3, far=1.0), scale=100.0)
    assert not taught.by_names
    np.testing.assert_allclose(taught.probabilities(pool), alone.probabilities(pool), atol=1e-6)


def test_a_quick_fit_looks_at_the_names_that_were_chosen():
    vectors, labels = planted(60, 3, noise=2.5)
    first = teach(vectors, labels, range(60), 3, names=named(3, far=0.3), scale=20.0)
    assert first.by_names
    assert sorted(first.held_out.tolist()) == list(range(60))
    quick = teach(vectors, labels, range(60), 3, before=first, names=named(3, far=0.3), scale=20.0)
    pool, _ = planted(50, 3, seed=1)
    np.testing.assert_allclose(quick.probabilities(pool), first.probabilities(pool), atol=1e-5)
    fewer = teach(vectors, labels, range(60), 3, before=first)  # the names are gone, such as with a new class
    assert not fewer.by_names
