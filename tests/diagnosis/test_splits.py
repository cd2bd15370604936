"""The parts of the pairs: wrong pairs, constant sides, shares, and what may not be in two parts."""

from dataclasses import replace

import pytest

from frevl.diagnosis.splits import constant, read_splits, share_of_clusters, with_wrong_pairs
from frevl.errors import PairsError
from planted import pairs_of, plant, xor

# ------------------------------------------------------------------------------------------- splits


def test_wrong_pairs_are_drawn_from_other_images():
    pairs = pairs_of(("1", "a", None), ("1", "b", None), ("2", "a", None), ("3", "c", None))
    both = with_wrong_pairs(pairs, 0)
    assert both.targets == ["true"] * 4 + ["false"] * 4
    right = set(zip(pairs.images, pairs.texts, strict=True))
    drawn = list(zip(both.images, both.texts, strict=True))[4:]
    assert right.isdisjoint(drawn)
    assert with_wrong_pairs(both, 0) is both
    with pytest.raises(PairsError, match="no wrong text can be drawn: expected at least two images with different"):
        with_wrong_pairs(pairs_of(("1", "a", None), ("2", "a", None)), 0)


def test_a_constant_side_keeps_the_clusters():
    pairs = pairs_of(("1", "a", "x"), ("2", "b", "y"))
    blind = constant(pairs, image="1")
    assert blind.images == ["1", "1"]
    assert blind.clusters == ["1", "2"]
    assert constant(pairs, text="a").texts == ["a", "a"]


def test_smaller_shares_are_part_of_larger_ones():
    pairs = pairs_of(*[(str(k // 2), "q", "a") for k in range(100)])
    small, large = (share_of_clusters(pairs, share, seed=0) for share in (0.2, 0.5))
    assert (len(small), len(large)) == (20, 50)
    assert set(small.images) < set(large.images)


def test_splits_refuse_pairs_without_answers_and_leave_single_ones_out(tmp_path):
    world = plant(tmp_path / "store", images=30)
    train = world.pairs([f"{k}.png" for k in range(20)], xor)
    test = world.pairs(["25.png"], xor)
    options = {"task": "classification", "dev": None, "encoder": None, "seed": 0}
    with pytest.raises(PairsError, match=r"field 'target': a diagnosis of a classification expects a target in every"):
        read_splits(world.store, train, replace(test, targets=[None, None]), **options)
    some = read_splits(world.store, train, replace(test, targets=[None, "yes"]), **options)
    assert some.test.targets == ["yes"]
    assert any("Left out: 1 pair" in note and "field 'target'" in note for note in some.notes), some.notes


def test_a_diagnosis_keeps_copies_together_and_draws_them_together(made):
    from frevl.diagnosis.splits import read_splits

    options = {"task": "classification", "dev": None, "encoder": None, "seed": 0}
    video = [{**extra, "video": row // 4} for row, extra in enumerate(made.train.extras)]
    train = replace(made.train, extras=video)
    splits = read_splits(made.store, train, made.test, **options)
    sides = [{extra["video"] for extra in part.extras} for part in (splits.train, splits.dev)]
    assert not sides[0] & sides[1]
    assert any("pairs with the same 'video' belong together" in note for note in splits.notes)
    apart = read_splits(made.store, train, made.test, **options, find_groups=False)
    assert not apart.notes
