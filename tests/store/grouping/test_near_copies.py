"""Near copies: planted ones are found in spaces of any dimension, ordinary neighbours are not called copies."""

import numpy as np
import pytest

from frevl.store.grouping import copies
from frevl.store.grouping.copies import FALSE_ALARMS, find_near_copies


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def ordinary(n, *, dimension, width=61, seed=0):
    """Points spread over a sphere of a low dimension that lies in a wide space."""
    random = np.random.default_rng(seed)
    return unit(random.standard_normal((n, dimension)) @ random.standard_normal((dimension, width)))


@pytest.mark.parametrize("width", [61, 509])  # with and without a sketch
@pytest.mark.parametrize("dimension", [9, 17, 29])
def test_planted_copies_are_found(dimension, width):
    vectors = ordinary(307, dimension=dimension, width=width)
    noise = np.random.default_rng(1).standard_normal((41, width))
    copies = unit(vectors[:41] + 0.02 * unit(noise))
    found = find_near_copies(np.concatenate([vectors, copies]))
    assert {(row, 307 + row) for row in range(41)} <= {tuple(link) for link in found.links.tolist()}
    assert len(found.links) <= 41 + 3


def test_several_copies_of_one_image_and_copies_of_all_images():
    vectors = ordinary(101, dimension=17)
    random = np.random.default_rng(2)
    near = [unit(vectors + 0.02 * unit(random.standard_normal(vectors.shape))) for _ in range(3)]
    everything = np.concatenate([vectors, *near])
    links = find_near_copies(everything).links
    assert {tuple(link) for link in links.tolist() if (link[0] - link[1]) % 101} == set()
    assert len({row for link in links.tolist() for row in link}) == len(everything)


def test_twenty_ordinary_sets_have_hardly_a_link():
    linked = [len(np.unique(find_near_copies(ordinary(499, dimension=13, seed=seed)).links)) for seed in range(20)]
    assert sum(linked) <= 2 * FALSE_ALARMS * 20 * 499


def test_two_unusual_images_are_not_copies():
    """They are each other's nearest by far, but no nearer than ordinary neighbours are."""
    vectors = ordinary(211, dimension=17)
    away = np.zeros((2, 61), np.float32)
    away[:, 0] = 1
    away[1, 1] = 0.9
    found = find_near_copies(unit(np.concatenate([np.abs(vectors) + 1, 40 * away])))
    assert [211, 212] not in found.links.tolist()


def test_a_set_without_a_scale_and_a_small_one_find_nothing():
    same = np.ones((64, 7), np.float32) / np.sqrt(7).astype(np.float32)
    assert len(find_near_copies(same).links) == 0
    assert np.isnan(find_near_copies(ordinary(31, dimension=5)).gap)


def test_the_same_links_whatever_the_order():
    vectors = ordinary(151, dimension=11)
    everything = np.concatenate([vectors, unit(vectors[:13] + 0.001)])
    order = np.random.default_rng(3).permutation(len(everything))
    place = np.argsort(order)
    there = {tuple(sorted(place[link].tolist())) for link in find_near_copies(everything).links}
    assert there == {tuple(link) for link in find_near_copies(everything[order]).links.tolist()}


def test_distances_of_many_close_pairs_are_computed_some_at_a_time(monkeypatch):
    random = np.random.default_rng(5)
    vectors = np.repeat(random.standard_normal((200, 40)), 4, axis=0) + 1e-3 * random.standard_normal((800, 40))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    expected = find_near_copies(vectors).links
    at_once = []
    distances = copies._distances

    def counting(vectors, pairs):
        at_once.append(pairs.size // 2 * vectors.shape[1])
        return distances(vectors, pairs)

    monkeypatch.setattr(copies, "_distances", counting)
    monkeypatch.setattr(copies, "_COSINES", 4_000)
    assert np.array_equal(find_near_copies(vectors).links, expected)
    assert sum(at_once) > 4_000
    assert max(at_once) <= 4_000
