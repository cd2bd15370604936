"""Findings on many lines are arrays: the same results as from lists, and few bytes per line."""

import json
import os
import tracemalloc

import numpy as np
import pytest
import torch

import frevl
from frevl.data import pairs as pairs_module
from frevl.data.packed.columns import Coded, ranks, rows_at
from frevl.data.pairs import read_pairs
from frevl.diagnosis.curation import evidence
from frevl.diagnosis.curation.removal.groups import Groups
from frevl.diagnosis.curation.verdicts import judged_lines, values
from frevl.diagnosis.curation.verdicts.reasons import Reasons
from frevl.diagnosis.curation.verdicts.values import Values
from frevl.diagnosis.data_quality import mixture
from frevl.store.grouping import large_arrays
from frevl.store.grouping import unit_vectors as unit_vectors_module
from frevl.store.grouping.contents import numbers_by
from frevl.store.grouping.unit_vectors import in_float32, unit_vectors
from frevl.training.retrieval import reranker
from frevl.training.retrieval.reranker import centred
from planted import plant


@pytest.fixture(scope="module")
def mixed(captioned, tmp_path_factory):
    """A file of lines with repeats, wrong pairs, texts that are no captions, and further keys."""
    random, path = np.random.default_rng(5), tmp_path_factory.mktemp("mixed") / "mixed.jsonl"
    rows = []
    for number, row in enumerate(captioned.rows):
        line = {**row, "kind": "abc"[number % 3], "year": 1900 + number, "lists": [1], "sometimes": number % 2 == 0}
        line["target"] = "false" if number % 17 == 0 else "true"
        if number % 5 == 0:
            del line["sometimes"]
        rows += [line] * (2 if number % 11 == 0 else 1)
    with path.open("w") as file:
        for place in random.permutation(len(rows)).tolist():
            file.write(json.dumps(rows[place]) + "\n")
            if place % 50 == 0:
                file.write('{"image": "unreadable"\n')
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A store and a file of classes that its images show, a tenth of them wrong."""
    folder = tmp_path_factory.mktemp("labelled")
    world = plant(folder / "store", images=120)
    pairs = world.pairs(list(world.images), lambda image, _, random: image ^ (random.random() < 0.1), each=3)
    with (folder / "pairs.jsonl").open("w") as file:
        file.writelines(json.dumps({**row, "kind": "ab"[n % 2]}) + "\n" for n, row in enumerate(pairs.as_rows()))
        file.write('{"image": 1}\n' * 4)
    return world.store, folder / "pairs.jsonl"


def curated(store, pairs, tmp_path, name, **options):
    found = frevl.curate(store, pairs, tmp_path / f"{name}.jsonl", dropped=tmp_path / f"{name}-gone.jsonl", **options)
    record = found.record()
    for key in ("provenance", "out", "dropped"):
        del record[key]
    files = [(tmp_path / f"{name}{end}.jsonl").read_text() for end in ("", "-gone")]
    return list(found.lines), record, files


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"drop": ["match", "text", "image", "duplicate"], "keep": 0.7},
        {"drop": ["text", "duplicate"]},
        {"drop": ["label", "blind", "text"], "folds": 2},
    ],
    ids=["match", "cheap", "label"],
)
def test_a_large_file_gives_the_same_results_as_a_list(captioned, mixed, labelled, tmp_path, monkeypatch, options):
    store, path = labelled if "label" in options["drop"] else (captioned.store, mixed)
    small = read_pairs(path)
    assert isinstance(small.images, list)
    monkeypatch.setattr(pairs_module, "_LARGE", 0)
    large = read_pairs(path)
    assert isinstance(large.images, Coded)
    from_lists = curated(store, small, tmp_path, "lists", **options)
    monkeypatch.setattr(values, "AT_ONCE", 7)  # and blocks have other ends
    monkeypatch.setattr(judged_lines, "AT_ONCE", 11)
    monkeypatch.setattr(mixture, "_AT_ONCE", 13)
    monkeypatch.setattr(evidence, "_AT_ONCE", 64)
    monkeypatch.setattr(large_arrays, "_MOST_IN_MEMORY", 0)
    from_codes = curated(store, large, tmp_path, "codes", **options)
    assert from_codes == from_lists
    lines, record, (kept, gone) = from_lists
    assert record["kept"] == len(kept.splitlines()) > len(gone.splitlines()) > 0
    assert [line["curate"]["row"] for line in lines] == list(range(len(small)))
    assert len(record["rejects"]) == len(small.rejected) > 3


@pytest.mark.slow
def test_twenty_thousand_more_lines_take_few_bytes_each(captioned, tmp_path, monkeypatch):
    """A line was 1,670 bytes of Python objects; new texts would add their letters."""
    monkeypatch.setattr(pairs_module, "_LARGE", 0)
    monkeypatch.setattr(judged_lines, "AT_ONCE", 256)  # otherwise most of this small file is objects at a time
    monkeypatch.setattr(values, "AT_ONCE", 256)
    rows = [json.dumps({key: row[key] for key in ("image", "text")}) + "\n" for row in captioned.rows]
    options = {"drop": ["text", "image", "duplicate"], "find_groups": False}
    kept = []
    for times in (3, 2, 42):  # the first call loads modules
        path = tmp_path / f"{times}.jsonl"
        path.write_text("".join(rows * times))
        lines = read_pairs(path)
        tracemalloc.start()
        frevl.curate(captioned.store, lines, tmp_path / "kept.jsonl", **options)
        kept.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (kept[2] - kept[1]) / (40 * len(rows)) < 300


def test_values_are_made_for_the_lines_that_are_asked_for(monkeypatch):
    asked = []

    def make(part):
        asked.append((part.start, part.stop))
        return [{"n": row} for row in range(part.start, part.stop)]

    found = Values(7, make)
    assert (found[2], found[-1]) == ({"n": 2}, {"n": 6})
    assert found[2:4] == [{"n": 2}, {"n": 3}]
    assert found[5:2] == []
    assert found[::3] == [{"n": 0}, {"n": 3}, {"n": 6}]
    with pytest.raises(IndexError):
        found[7]
    monkeypatch.setattr(values, "AT_ONCE", 3)
    asked.clear()
    assert list(found) == [{"n": row} for row in range(7)]
    assert asked == [(0, 3), (3, 6), (6, 7)]
    same = Values.same(2, {"text": None})
    assert list(same) == [{"text": None}] * 2
    assert same[0] is not same[1]


def test_reasons_of_a_line_keep_their_order():
    why = Reasons(["match", "text", "duplicate"], 5)
    why.add("duplicate", np.array([0, 3]))
    why.add("match", np.array([False, True, False, True, False]))
    assert list(why) == [["duplicate"], ["match"], [], ["match", "duplicate"], []]
    assert why[3] == why[-2] == ["match", "duplicate"]
    assert why[1:3] == [["match"], []]
    assert why.clear.tolist() == [False, False, True, False, True]
    assert why.by("match").tolist() == [False, True, False, True, False]
    assert why.by_alone("match").tolist() == [False, True, False, False, False]
    assert not why.by("text").any()
    why[1].append("changed")
    assert why[1] == ["match"]


def test_groups_have_codes_for_names():
    groups = Groups.of(["b", None, "a", "b"])
    assert groups.codes.tolist() == [0, -1, 1, 0]
    assert (list(groups), groups[1], groups[2:]) == (["b", None, "a", "b"], None, ["a", "b"])
    assert Groups.of(groups) is groups


def test_contents_are_numbered_by_first_appearance_in_lists_and_codes():
    texts = ["b", " a", "a ", "c", "b", "A"]
    coded = Coded.of(np.array([0, 3, 2, 1, 0, 4]), ["b", "c", "a ", " a", "A", "unused"])
    assert list(coded) == texts
    for column in (texts, coded):
        assert numbers_by(column, str.strip).tolist() == [0, 1, 1, 2, 0, 3]
        assert numbers_by(column, lambda text: text.strip().lower()).tolist() == [0, 1, 1, 2, 0, 1]
        assert ranks(column).tolist() == [sorted(set(texts)).index(text) for text in texts]


def test_rows_of_places(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"image": "a", "text": "b"}\n' * 7)
    for _ in range(2):
        pairs = read_pairs(path)
        some = pairs.select([1, 4, 6])
        assert rows_at(pairs.places, some.places).tolist() == [1, 4, 6]
        assert rows_at(pairs.places, list(some.places)[::-1]).tolist() == [6, 4, 1]
        assert pairs.row(-1) == next(iter(pairs.as_rows())) == {"image": "a", "text": "b"}
        monkeypatch.setattr(pairs_module, "_LARGE", 0)


def test_many_texts_are_centred_in_blocks(monkeypatch):
    texts = torch.randn(61, 7, generator=torch.Generator().manual_seed(0)).half() + 1
    whole = centred(texts)
    monkeypatch.setattr(reranker, "_CENTRED_AT_ONCE", 70)
    for most in (1 << 20, 0):  # in memory, and in a file
        monkeypatch.setattr(large_arrays, "_MOST_IN_MEMORY", most)
        assert torch.allclose(centred(texts), whole, atol=1e-6)
    assert not torch.allclose(whole, torch.nn.functional.normalize(texts.float(), dim=1), atol=0.1)


def test_probabilities_of_many_lines_and_classes_are_in_a_file_for_which_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(large_arrays, "_MOST_IN_MEMORY", 7 * 3 * 4)
    assert not isinstance(large_arrays.blank((7, 3), np.float32).base, np.ndarray)
    mapped = large_arrays.blank((8, 3), np.float32)
    assert not mapped.any()
    mapped[3, 2] = 0.5
    assert (mapped.shape, mapped.dtype, mapped.sum()) == ((8, 3), np.float32, 0.5)
    asked = []

    def full(file, offset, length):
        asked.append((offset, length))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        frevl.FrevlError, match=r"the probabilities of 8 items .* \(No space left on device\); free some"
    ):
        large_arrays.blank((8, 3), np.float32)
    assert asked == [(0, 8 * 3 * 4)], "room is asked for at once: a page without it would end the process later"


def exchanged_slowly(image, group, source, seed):
    """Exchange with dictionaries and lists, as the definition says."""
    lines = {}
    for row in source.tolist():
        lines.setdefault(int(image[row]), []).append(row)
    several = [number for number, rows in lines.items() if len(rows) > 1]
    order = torch.randperm(len(several), generator=torch.Generator().manual_seed(seed)).tolist()
    mixed = [several[place] for place in order]
    return [
        (one, row)
        for one, other in zip(mixed, mixed[1:] + mixed[:1], strict=True)
        if group[lines[one][0]] != group[lines[other][0]]
        for row in lines[other]
    ]


@pytest.mark.parametrize("seed", range(5))
def test_exchanged_images_equal_those_of_a_slow_twin(seed):
    random = np.random.default_rng(seed)
    image = torch.from_numpy(random.integers(0, 23, 61))
    group = torch.from_numpy(random.integers(0, 7, 23))[image]
    source = torch.from_numpy(np.flatnonzero(random.random(61) < 0.8))
    images, lines = evidence.exchange_images(image, group, source, seed)
    assert list(zip(images.tolist(), lines.tolist(), strict=True)) == exchanged_slowly(image, group, source, seed)
    nothing = evidence.exchange_images(image, group, source[:0], seed)
    assert [len(one) for one in nothing] == [0, 0]


def test_vectors_that_do_not_fit_are_mapped_and_the_same(captioned, monkeypatch, tmp_path):
    ids, towers = [f"{n}.jpg" for n in range(0, 260, 3)], captioned.store.select_towers("image")
    there = {half: unit_vectors(captioned.store, ids, towers, half=half) for half in (False, True)}
    monkeypatch.setattr(large_arrays, "_MOST_IN_MEMORY", 0)
    monkeypatch.setattr(unit_vectors_module, "_ROWS_AT_ONCE", 11)
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))
    for half, expected in there.items():
        mapped = unit_vectors(captioned.store, ids, towers, half=half)
        assert mapped.dtype == expected.dtype == (np.float16 if half else np.float32)
        assert np.array_equal(mapped, expected)
        assert np.array_equal(in_float32(mapped), expected.astype(np.float32))
    assert list((tmp_path / "cache" / "vectors").iterdir()) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "file"))
    with pytest.raises(frevl.FrevlError, match="the vectors of 87 items do not fit in memory and cannot be written"):
        unit_vectors(captioned.store, ids, towers)
