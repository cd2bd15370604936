"""Groups: related pairs are joined by any of the rules, with a note; the rest stays separate."""

from dataclasses import replace

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.errors import UsageError
from frevl.store.grouping.groups import group_pairs
from frevl.store.reader import Store
from frevl.store.writer import StoreWriter
from handmade import item, pooled, tower


def store_of(path, vectors, contents=None):
    """A store whose images are ``0, 1, ...``; equal contents are copies under two names."""
    with StoreWriter(path) as writer:
        writer.register([tower(dim=vectors.shape[1])])
        rows = [item(str(row), (contents or {}).get(row, f"content {row}")) for row in range(len(vectors))]
        writer.append("image", rows, {"eye": pooled(*vectors)})
    return Store.open(path)


def spread(n, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, 13)) @ np.random.default_rng(9).standard_normal((13, 23))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def pairs_of(images, extras=None, texts=None, targets=None):
    images = [str(image) for image in images]
    n = len(images)
    return Pairs(
        images=images,
        texts=texts or [f"text {image}" for image in images],
        targets=targets or [f"class {row % 3}" for row in range(n)],
        extras=extras or [{} for _ in range(n)],
        places=[f"p.jsonl:{row + 1}" for row in range(n)],
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Eighty images; 70 to 79 are copies of 0 to 9, 60 to 64 are nearly the same as 10 to 14."""
    vectors = spread(80)
    vectors[60:65] = vectors[10:15] + 0.003
    vectors[70:80] = vectors[0:10]
    return store_of(tmp_path_factory.mktemp("groups") / "s", vectors, {70 + row: f"content {row}" for row in range(10)})


def test_copies_and_near_copies_are_one_group(store):
    (grouped,), (note,) = group_pairs(store, [pairs_of(range(80))])
    assert [grouped.clusters[70 + row] == grouped.clusters[row] for row in range(10)] == [True] * 10
    assert [grouped.clusters[60 + row] == grouped.clusters[10 + row] for row in range(5)] == [True] * 5
    assert len(set(grouped.clusters)) == 65
    assert note.startswith(
        "Kept on one side of every split, 65 groups of 80 pairs: 10 images are copies of another one; "
    )
    assert "10 images are nearly the same as another one" in note
    assert note.endswith("Switch off with --no-groups.")


def test_groups_reach_across_parts(store):
    (train, dev), _ = group_pairs(store, [pairs_of(range(60)), pairs_of(range(60, 80))])
    assert set(dev.clusters[10:]) == set(train.clusters[:10])
    assert set(dev.clusters[:5]) == set(train.clusters[10:15])
    assert not set(dev.clusters[5:10]) & set(train.clusters)


def test_without_looking_every_image_stands_alone(store):
    (grouped,), notes = group_pairs(store, [pairs_of(range(80))], find=False)
    assert (len(set(grouped.clusters)), notes) == (80, [])


def test_ordinary_pairs_have_no_note(store):
    (grouped,), notes = group_pairs(store, [pairs_of(range(10, 60))])
    assert (len(set(grouped.clusters)), notes) == (50, [])


@pytest.mark.parametrize("key", ["video", "Video", "video_id", "videoId", "scene", "product", "patient", "group"])
def test_keys_that_look_like_a_group(store, key):
    extras = [{key: row // 2} for row in range(10, 60)]
    (grouped,), (note,) = group_pairs(store, [pairs_of(range(10, 60), extras)])
    assert len(set(grouped.clusters)) == 25
    assert f"pairs with the same '{key}' belong together (25 groups)" in note


def test_a_key_with_few_values_is_a_category(store):
    extras = [{"scene": ["kitchen", "street", "beach"][row % 3]} for row in range(10, 60)]
    (grouped,), (note,) = group_pairs(store, [pairs_of(range(10, 60), extras)])
    assert len(set(grouped.clusters)) == 50
    assert note.startswith("The key 'scene' has 3 values over 50 images and was treated as a category, not as groups")
    (forced,), _ = group_pairs(store, [pairs_of(range(10, 60), extras)], group_by="scene")
    assert len(set(forced.clusters)) == 3


def test_a_key_that_repeats_the_target_is_a_category(store):
    targets = [f"class {row // 2}" for row in range(10, 60)]
    extras = [{"product": row // 2} for row in range(10, 60)]
    (grouped,), _ = group_pairs(store, [pairs_of(range(10, 60), extras, targets=targets)])
    assert len(set(grouped.clusters)) == 50


def test_a_named_key_groups_whatever_it_is_called(store):
    extras = [{"shop": row // 25} if row else {} for row in range(50)]
    (grouped,), _ = group_pairs(store, [pairs_of(range(10, 60), extras)], group_by="shop")
    assert len(set(grouped.clusters)) == 1 + 2
    empty = [{"shop": [None, float("nan"), "", " ", "NA"][row % 5]} if row else {"shop": 1} for row in range(50)]
    empty[1:3] = {"shop": 1.0}, {"shop": "1 "}
    (grouped,), _ = group_pairs(store, [pairs_of(range(10, 60), empty)], group_by="shop")
    assert len(set(grouped.clusters)) == 1 + 47, "what is not known is no group, and 1, 1.0 and '1' are one"
    own = pairs_of(range(10, 60), [{"cluster": value["shop"]} for value in empty]).clusters
    assert len(set(own)) == 1 + 47
    with pytest.raises(UsageError, match="--group-by shp: no pair has this key. Did you mean 'shop'"):
        group_pairs(store, [pairs_of(range(10, 60), extras)], group_by="shp")


def test_the_key_cluster_is_kept_and_may_grow(store):
    extras = [{"cluster": f"room {row // 4}"} for row in range(80)]
    (grouped,), _ = group_pairs(store, [pairs_of(range(80), extras)])
    assert len(set(grouped.clusters)) == 20 - 3 - 2  # rooms 17 to 19 hold copies of rooms 0 to 2, 15 and 16 of 2 and 3
    assert grouped.clusters[0] == grouped.clusters[71]


def test_texts_that_always_have_one_label(store):
    texts = [f"sentence {row // 5}" for row in range(50)]
    targets = ["true" if row // 5 % 2 else "false" for row in range(50)]
    (grouped,), (note,) = group_pairs(store, [pairs_of(range(10, 60), texts=texts, targets=targets)])
    assert len(set(grouped.clusters)) == 10
    assert "10 texts occur with several images but always the same label" in note


def test_what_would_be_one_great_group_is_not_grouped(store):
    extras = [{"video": 0 if row < 25 else row} for row in range(50)]
    (grouped,), (note,) = group_pairs(store, [pairs_of(range(10, 60), extras)])
    assert len(set(grouped.clusters)) == 50
    assert note.startswith("Not grouped, because 25 of 50 pairs would be one group: pairs with the same 'video'")


def test_texts_with_a_set_of_images_of_their_own(tmp_path):
    store = store_of(tmp_path / "s", spread(80))
    pairs = pairs_of(range(80), texts=[f"sentence {row % 20}" for row in range(80)])
    (grouped,), (note,) = group_pairs(store, [pairs])
    assert "20 texts each have several images of their own" in note
    assert grouped.clusters == [str(row % 20) for row in range(80)]
    captions = replace(pairs, targets=[None] * 80)
    (apart,), notes = group_pairs(store, [captions])
    assert (len(set(apart.clusters)), notes) == (80, [])
