"""What a filter removes: groups that lose more than by chance, diversity, and the summary sentence."""

import json

import numpy as np
import pytest

import frevl
from frevl.diagnosis.curation.removal.diversity import MOST_MEASURED, varieties, vendi_score
from frevl.diagnosis.curation.removal.groups import columns_of_keys, quarters, shares_kept
from frevl.diagnosis.curation.removal.report import Removed, removed_of_lines, what_is_removed
from planted import plant


def test_the_vendi_score_counts_pictures_that_have_nothing_in_common():
    assert vendi_score(np.eye(7, 11)) == pytest.approx(7)
    assert vendi_score(np.ones((5, 4)) / 2) == pytest.approx(1)
    assert vendi_score(np.repeat(np.eye(3, 13), [5, 5, 5], axis=0)) == pytest.approx(3)
    vectors = np.random.default_rng(0).standard_normal((29, 17))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    values = np.linalg.eigvals(vectors @ vectors.T / 29).real.clip(1e-300)  # the definition, by the larger matrix
    assert vendi_score(vectors) == pytest.approx(np.exp(-(values * np.log(values)).sum()))


def test_removing_one_half_of_the_kinds_leaves_less_variety_than_chance():
    random = np.random.default_rng(1)
    kinds = random.integers(0, 20, 900)
    vectors = np.eye(20, 61)[kinds] + 0.1 * random.standard_normal((900, 61))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name, low in (("narrow", kinds < 10), ("wide", random.random(900) < 0.5)):
        for one in varieties(vectors.astype(np.float32), low):
            assert (one.after < one.low) == (name == "narrow"), one.name
            assert one.before > one.after
    copies = np.concatenate([vectors[:60], np.repeat(vectors[60:61], 60, axis=0)])
    vendi = varieties(copies, np.arange(120) < 61)[0]
    assert vendi.after > vendi.high  # copies went
    assert varieties(vectors, np.zeros(900, bool)) == varieties(vectors, np.ones(900, bool)) == []
    assert len(vectors) > MOST_MEASURED


def test_keys_become_groups():
    alike = {"one": 1, "list": [1]}
    extras = [
        {"kind": "cat" if n % 3 else "dog", "year": 1900 + n, "id": f"x{n}", "good": n % 2 == 0, **alike}
        for n in range(80)
    ]
    columns = columns_of_keys([*extras, {}], 81)
    assert list(columns) == ["kind", "year", "good"]
    assert columns["kind"][:4] == ["dog", "cat", "cat", "dog"]
    assert columns["good"][:2] == ["True", "False"]
    assert set(columns["year"]) == {"1900 to 1919", "1920 to 1939", "1940 to 1959", "1960 to 1979", None}
    assert columns_of_keys([], 0) == {}
    written = [{"age": str(n % 51), "row": str(n), "length": f"{n / 7:.3f}"} for n in range(204)]
    columns = columns_of_keys(written, 204)  # as in a table of text, which holds numbers and ids alike
    assert list(columns) == ["age", "length"]
    assert list(dict.fromkeys(columns["age"])) == ["0 to 12", "13 to 25", "26 to 38", "39 to 50"]
    ages = (1, 1.0, "1", " 2 ", "", None, float("nan"), "2")
    mixed = columns_of_keys(({"age": value} for value in ages), len(ages))
    assert {key: list(groups) for key, groups in mixed.items()} == {"age": ["1", "1", "1", "2", None, None, None, "2"]}


def test_quarters_of_few_values_and_of_none():
    assert list(quarters(np.array([3.0, 3.0, 3.0]))) == ["3"] * 3
    assert list(quarters(np.array([1.0, 2.0, 2.0, 2.0, 9.0, np.inf, np.nan]))) == ["1 to 2"] + ["1 to 2"] * 3 + [
        "9",
        None,
        None,
    ]
    assert list(quarters(np.array([np.nan]))) == [None]


def test_numbers_that_share_six_digits_stay_four_quarters():
    seconds = [1.7e9 + number for number in range(40)]
    assert list(dict.fromkeys(quarters(np.array(seconds)))) == [
        f"{1700000000 + low} to {1700000009 + low}" for low in (0, 10, 20, 30)
    ]


def removal(seed, bias=0.0, whole=False, images=200, each=5):
    """Keep nine tenths; of group b fewer by the bias. Whole images go, or single lines."""
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(images), each)
    groups = np.array(["a", "b"])[random.integers(0, 2, images)][clusters]
    chance = 0.1 + bias * (groups == "b")
    drawn = random.random(images)[clusters] if whole else random.random(len(clusters))
    columns = {"group": groups.tolist(), "other": [str(n) for n in random.integers(0, 10, len(clusters))]}
    return drawn >= chance, columns, clusters


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_a_group_that_loses_more_is_named_and_chance_is_not(whole):
    fair = [shares_kept(*removal(seed, whole=whole), seed=seed) for seed in range(20)]
    assert sum(any(one.beyond for one in found) for found in fair) <= 4
    worst = shares_kept(*removal(1, bias=0.25, whole=whole))[0]
    assert (worst.key, worst.value, worst.beyond) == ("group", "b", True)
    assert worst.kept < worst.low
    kept, columns, clusters = removal(1, bias=0.25, whole=whole)
    said = Removed(float(kept.mean()), shares_kept(kept, columns, clusters), [], []).sentence()
    assert said.startswith("The filters do not affect all groups equally:")
    assert "of the lines with 'group' = 'b' are kept" in said


def test_lines_of_removed_pictures_are_compared_with_removing_pictures():
    kept, columns, clusters = removal(3, whole=True)
    by_picture = {(one.key, one.value): one.high - one.low for one in shares_kept(kept, columns, clusters)}
    by_line = {(one.key, one.value): one.high - one.low for one in shares_kept(kept, columns, np.arange(len(kept)))}
    assert by_picture["group", "a"] > 1.5 * by_line["group", "a"]


def test_what_a_clean_filter_removes_says_that_no_group_is_hit(tmp_path):
    world = plant(tmp_path / "store", images=400)
    pairs = world.pairs(list(world.images), lambda image, *_: image, extras=lambda image, _: {"even": len(image) % 2})
    towers = world.store.select_towers("image")
    kept = np.random.default_rng(0).random(len(pairs)) > 0.2
    told = what_is_removed(world.store, pairs, kept, towers, task="classification")
    assert told.sentence().startswith("No group of")
    keys = {one.key for one in told.groups}
    assert keys == {"even", "target", "pictures like", "place in the file"}  # all texts have as many words
    record = told.record()
    assert record["groups"][0]["at_random"][0] <= record["kept"] <= record["groups"][0]["at_random"][1]
    assert record["vendi"]["before"] > 1
    assert what_is_removed(world.store, pairs, np.ones(len(pairs), bool), towers, task="classification") is None
    assert what_is_removed(world.store, pairs, np.zeros(len(pairs), bool), towers, task="classification") is None
    signs = np.array([world.images[image] for image in pairs.images])
    hit = what_is_removed(
        world.store, pairs, kept & ((signs == 0) | (np.arange(len(pairs)) % 3 == 0)), towers, task="matching"
    )
    assert "are kept, against" in hit.sentence()
    assert next(one for one in hit.groups).key == "pictures like"


def test_what_goes_of_judged_lines_is_compared_as_the_filter_was(tmp_path):
    world = plant(tmp_path / "store", images=100)
    pairs = world.pairs(list(world.images), lambda image, *_: image, extras=lambda image, _: {"even": len(image) % 2})
    towers, kept = world.store.select_towers("image"), np.random.default_rng(0).random(len(pairs)) > 0.2
    told = what_is_removed(world.store, pairs, kept, towers, task="classification", seed=3).record()
    assert told["asked"] == {"keys": None, "tower": towers[0].name, "seed": 3}
    lines = [{**pairs.row(row), "curate": {"kept": bool(kept[row])}} for row in range(len(pairs))]
    asked = {"task": "classification", "asked": told["asked"]}
    assert removed_of_lines(world.store, lines, kept, **asked) == told
    # Of images that are gone what needs no vectors is told all the same.
    lines[0]["image"] = "gone.png"
    found = removed_of_lines(world.store, lines, kept, **asked)
    assert "some of these images are not in the store" in found["sentence"]
    assert {one["key"] for one in found["groups"]} == {"even", "target", "place in the file"}
    assert removed_of_lines(world.store, lines, np.ones(len(lines), bool), **asked) is None


def test_without_scikit_learn_all_but_the_clusters_is_looked_at(tmp_path, monkeypatch):
    import sys

    world = plant(tmp_path / "store", images=60)
    pairs = world.pairs(list(world.images), lambda image, *_: image)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    kept = np.arange(len(pairs)) % 5 > 0
    told = what_is_removed(world.store, pairs, kept, world.store.select_towers("image"), task="classification")
    assert "pip install 'frevl[diagnose]'" in told.sentence()
    assert {one.key for one in told.groups} == {"target", "place in the file"}


def test_the_command_says_what_it_removed(tmp_path):
    """Names of files as captions, all in one group of the pairs."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    rows = []
    for number in range(60):
        Image.new("RGB", (70, 70), (4 * number, 90, 255 - 4 * number)).save(tmp_path / "images" / f"{number}.png")
        shop = "b" if number % 2 else "a"
        text = f"IMG_{number:04}.jpg" if number % 4 == 1 else f"a thing of colour {chr(97 + number % 26)}{number}"
        rows.append({"image": f"{number}.png", "text": text, "shop": shop})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frevl.extract(tmp_path / "store", images=tmp_path / "images", pairs=[tmp_path / "pairs.jsonl"], encoder=["toy"])
    found = frevl.curate(tmp_path / "store", tmp_path / "pairs.jsonl", drop=["text"])
    assert "50.0 % of the lines with 'shop' = 'b' are kept, against 75.0 % of all lines" in found.sentence()
    assert found.record()["removed"]["groups"][0]["value"] in ("b", "1")


def test_a_random_removal_takes_about_as_many_lines():
    """One image has 40 of 340 lines, and loses all but one: given to an image with one line, that would be nothing."""
    clusters = np.array([0] * 40 + list(range(1, 301)))
    kept = np.array([True] + [False] * 39 + [True] * 300)
    kept[50:80] = False
    columns = {"kind": ["a"] * 40 + ["a", "b"] * 150}
    found = {one.value: one for one in shares_kept(kept, columns, clusters)}
    for one in found.values():
        assert one.low <= one.kept <= one.high, one
    assert not any(one.beyond for one in found.values())


def test_a_stretch_of_the_file_is_named(tmp_path):
    """Lines 101 to 130 of 400 are wrong, as where captions are shifted by a line."""
    world = plant(tmp_path / "store", images=200)
    pairs = world.pairs(list(world.images), lambda image, *_: image)
    kept = np.ones(len(pairs), bool)
    kept[100:130] = False
    told = what_is_removed(world.store, pairs, kept, world.store.select_towers("image"), task="classification")
    assert "0.0 % of lines 101 to 125, counted without those left out, are kept, against 92.5 % of all lines" in (
        told.sentence()
    )
    few = what_is_removed(world.store, pairs.select(range(49)), kept[:49] & (np.arange(49) > 4), [], task="matching")
    assert all(one.key != "place in the file" for one in few.groups)
