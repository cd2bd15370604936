"""Labelling a whole store: the file appears complete, resumes after kill -9, and never hides a change."""

import json
import os
import shutil
import signal
import subprocess
import sys
from html import escape

import numpy as np
import pytest

import frevl
from frevl.errors import InputError, StoreError, UsageError
from frevl.runs.labelling.label_sheet import label_sheet, missing_images
from frevl.runs.labelling.label_store import Labelling, _lines, _Pieces, label_store
from frevl.runs.targets import Ranked, predictions, ranked
from frevl.store.importing.vectors import import_embeddings


@pytest.fixture(scope="module")
def scorer(named, tmp_path_factory):
    run = tmp_path_factory.mktemp("labelling") / "run"
    frevl.classify(named.store, named.classes, run=run, examples=named.examples, unknown=0.9)
    return frevl.Scorer.open(run, store=named.store)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_image_once_with_the_labels_of_the_scorer(named, scorer, tmp_path):
    found = label_store(scorer, tmp_path / "labels.jsonl")
    lines = lines_of(tmp_path / "labels.jsonl")
    assert [line["image"] for line in lines] == named.store.ids("image")
    predicted = scorer.label(named.store.ids("image"))
    assert [line["label"] for line in lines] == [one.label for one in predicted]
    assert lines[0]["top"][0] == [lines[0]["label"], lines[0]["probability"]]
    for line, one in zip(lines, predicted, strict=True):
        assert list(line) == ["image", "label", "probability", "top", "unknown"]
        assert [(label, np.float32(p)) for label, p in line["top"]] == [(label, np.float32(p)) for label, p in one.top]
        assert line["unknown"] is one.unknown
    assert found.labelled == len(lines)
    assert found.unknown == sum(line["unknown"] for line in lines) > 0
    assert sum(found.counts.values()) + found.unknown == found.labelled
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.jsonl"]


def test_stored_images_score_batch_by_batch_as_they_do_one_by_one(named, scorer):
    ids = named.store.ids("image")
    scorer = frevl.Scorer(scorer.run, named.store, batch_size=32)
    parts = list(scorer.score_stored(ids))
    assert [len(part) for part in parts] == [32] * 5 + [20]
    assert np.array_equal(np.concatenate(parts), scorer.score(ids))
    with pytest.raises(StoreError, match=r"no-such\.png"):
        list(scorer.score_stored(["no-such.png"]))


@pytest.mark.parametrize("apart", [1, 60, 1_000])
def test_what_is_kept_for_the_page_is_the_surest_whatever_the_blocks(monkeypatch, apart):
    random = np.random.default_rng(0)
    p = np.round(random.random((500, 1)), 2).astype(np.float32)  # many are equal
    rows = Ranked(random.integers(0, 3, (500, 1)), p, random.random(500) < 0.1)
    images, labels = [f'"{number}" é.png' for number in range(500)], ["a", "b\n", "ü"]
    monkeypatch.setattr("frevl.runs.labelling.label_store._APART", apart)
    one_by_one, in_blocks = Labelling(), Labelling()
    for image, row, probability, unknown in zip(images, rows.classes[:, 0], p[:, 0], rows.unknown, strict=True):
        one_by_one.add(image, labels[row], float(probability), unknown=bool(unknown))
    for part in (slice(0, 3), slice(3, 40), slice(40, 500)):
        in_blocks.add_all(images[part], Ranked(*(array[part] for array in rows)), labels)
    assert in_blocks.record() == one_by_one.record()
    assert in_blocks.sorted().surest == one_by_one.sorted().surest
    assert in_blocks.least_sure == one_by_one.least_sure
    written = bytes(_lines(images, rows, _Pieces.of(labels))).decode()
    lines = [json.loads(line) for line in written.split("\n")[:-1]]
    assert [line["image"] for line in lines] == images
    assert [line["label"] for line in lines] == [labels[row] for row in rows.classes[:, 0]]
    assert np.array_equal(np.array([line["probability"] for line in lines], np.float32), p[:, 0])


@pytest.mark.slow
def test_it_goes_on_after_kill_9(named, scorer, tmp_path):
    whole = tmp_path / "whole.jsonl"
    label_store(scorer, whole)
    code = f"""
import os, signal, sys
import frevl.runs.labelling.label_store as module
from frevl import Scorer
module._AT_ONCE = 50
scorer = Scorer.open({str(scorer.run.path)!r}, store={str(named.store.path)!r})
score, calls = scorer.score_stored, []
def stopping(ids):
    calls.append(1)
    if len(calls) == 3 and sys.argv[1] == "stop":
        os.kill(os.getpid(), signal.SIGKILL)
    print(len(ids), flush=True)
    return score(ids)
scorer.score_stored = stopping
module.label_store(scorer, {str(tmp_path / "part.jsonl")!r})
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run([sys.executable, "-c", code, "stop"], env=environment, capture_output=True, check=False)
    assert first.returncode == -signal.SIGKILL
    assert not (tmp_path / "part.jsonl").exists()
    written = (tmp_path / ".part.jsonl.part").read_bytes().count(b"\n")
    assert written in (50, 100)  # the second block is written while the third is scored
    with (tmp_path / ".part.jsonl.part").open("ab") as lines:
        lines.write(b'{"image": "half a li')  # what a power cut leaves
    second = subprocess.run([sys.executable, "-c", code, "go"], env=environment, capture_output=True, check=True)
    assert sum(map(int, second.stdout.split())) == 180 - written, "only the blocks that were not written"
    assert (tmp_path / "part.jsonl").read_bytes() == whole.read_bytes()


def test_blocks_are_written_whole_and_in_order_beside_the_next_ones(named, scorer, tmp_path, monkeypatch):
    label_store(scorer, tmp_path / "whole.jsonl")
    monkeypatch.setattr("frevl.runs.labelling.label_store._AT_ONCE", 7)
    monkeypatch.setattr("frevl.runs.batches._READ_AT_ONCE", 3)
    found = label_store(frevl.Scorer(scorer.run, named.store, batch_size=2), tmp_path / "small.jsonl")
    small, whole = (lines_of(tmp_path / f"{name}.jsonl") for name in ("small", "whole"))
    assert [line["label"] for line in small] == [line["label"] for line in whole]
    assert [line["probability"] for line in small] == pytest.approx([line["probability"] for line in whole], rel=1e-5)
    assert found.labelled == 180


def test_a_full_disk_is_reported_though_another_thread_writes(scorer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("frevl.runs.labelling.label_store._AT_ONCE", 50)
    monkeypatch.setattr("frevl.runs.labelling.label_store._lines", full)
    with pytest.raises(InputError, match=r"labels\.jsonl: the labels cannot be written \(No space left on device\)"):
        label_store(scorer, tmp_path / "labels.jsonl")
    assert not (tmp_path / "labels.jsonl").exists()


def test_another_run_starts_again(named, scorer, tmp_path):
    out = tmp_path / "labels.jsonl"
    (tmp_path / ".labels.jsonl.part").write_text('{"image": "0.png", "label": "wrong", "probability": 1}\n')
    (tmp_path / ".labels.jsonl.state").write_text("{}")
    label_store(scorer, out)
    assert all(line["label"] != "wrong" for line in lines_of(out))


def test_two_writers_do_not_mix_their_lines(named, scorer, tmp_path, monkeypatch):
    """Both appended to one file, which then had every image twice, and some lines in pieces."""
    out = tmp_path / "labels.jsonl"
    score, refused = scorer.score_stored, []

    def meanwhile(ids):
        with pytest.raises(InputError) as error:
            label_store(frevl.Scorer(scorer.run, named.store), out)
        refused.append(str(error.value))
        return score(ids)

    monkeypatch.setattr(scorer, "score_stored", meanwhile)
    label_store(scorer, out)
    assert refused == [f"{out}: another labelling is writing this file; wait for it, or give another path with --out"]
    assert [line["image"] for line in lines_of(out)] == named.store.ids("image")
    monkeypatch.undo()
    label_store(scorer, out)  # the first is done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.jsonl"]


def test_links_stay_links_and_pipes_are_written_to(named, scorer, tmp_path):
    """A pipe or a device, such as /dev/stdout, was replaced by a file."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "there" / "labels.jsonl")
    label_store(scorer, tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        found = label_store(scorer, tmp_path / "pipe")
        written, _ = reader.communicate()
    assert (tmp_path / "pipe").is_fifo()
    assert written == (tmp_path / "there" / "labels.jsonl").read_bytes()
    assert found.labelled == len(named.store.ids("image"))


def test_what_is_refused(named, scorer, made, tmp_path):
    run = frevl.train(made.store, made.train, run=tmp_path / "run", task="classification", model="majority")
    with pytest.raises(UsageError, match="images only"):
        label_store(frevl.Scorer.open(run.path, store=made.store), tmp_path / "labels.jsonl")
    with pytest.raises(UsageError, match="would overwrite"):
        label_store(scorer, scorer.run.path / "run.json")
    with pytest.raises(UsageError, match=r"JSON lines; give it a name such as labels\.jsonl"):
        label_store(scorer, tmp_path / "labels.parquet")
    with pytest.raises(UsageError, match="expected a file for the labels, found a folder; name one in it"):
        label_store(scorer, tmp_path)
    assert not list(tmp_path.glob("*labels*"))


def test_the_page_shows_the_surest_and_escapes_names(scorer):
    labelling = label_store(scorer)
    page = label_sheet(labelling, images=None, notes=["<b>not</b> compared"])
    assert "&lt;b&gt;not" in page
    label, count = labelling.counts.most_common(1)[0]
    assert f"<h2>{label}: {count:,}</h2>" in page
    surest = [probability for probability, _ in labelling.surest[label]]
    assert surest == sorted(surest, reverse=True)


def test_images_that_are_not_in_the_folder_are_counted_on_the_page(scorer, tmp_path):
    """Every one was a grey box, without a word, if the folder was another one."""
    labelling = label_store(scorer)
    assert missing_images(labelling, None) == []
    (note,) = missing_images(labelling, tmp_path)
    shown = {image for some in (labelling.surest, labelling.least_sure) for kept in some.values() for _, image in kept}
    assert note.startswith(f"{len(shown):,} of {len(shown):,} images of the page are not in {tmp_path} (the first: '")
    assert escape(note) in label_sheet(labelling, images=tmp_path, notes=[])
    for image in sorted(shown)[1:]:
        (tmp_path / image).touch()
    (note,) = missing_images(labelling, tmp_path)
    assert note.startswith(f"1 of {len(shown):,} ")
    assert f"(the first: '{min(shown)}'); give with --images the folder" in note


@pytest.mark.parametrize(("k", "rows_at_once"), [(1, 1_000), (5, 1), (5, 7), (5, 1_000), (40, 7)])
def test_the_best_of_many_classes_are_those_of_a_full_sort(k, rows_at_once, monkeypatch):
    monkeypatch.setattr("frevl.runs.targets._NUMBERS_AT_ONCE", 300 * rows_at_once)
    random = np.random.default_rng(0)
    scores = random.standard_normal((40, 300)).astype(np.float32)
    scores[:5, 17] = scores[:5, 230] = 9.0  # of equals the first
    scores[5:8] = -np.inf
    scores[7, 20] = 1.0
    scores[8, 3] = np.nan
    labels, before = [str(n) for n in range(300)], scores.copy()
    best = ranked(scores, lambda some: some / 2, k=k, unknown_below=2.5)
    assert np.array_equal(best.probabilities, np.take_along_axis(scores, best.classes, axis=1) / 2, equal_nan=True)
    assert np.array_equal(best.unknown[9:], scores[9:].max(axis=1) < 2.5)
    assert 0 < best.unknown[9:].sum() < 31
    found = predictions(best, labels)
    assert np.array_equal(scores, before, equal_nan=True)
    for number, (one, row) in enumerate(zip(found, scores, strict=True)):
        if k == 40 and number in (5, 6, 7, 8):  # found by a partial sort, which promises nothing of what is not finite
            continue
        best = np.argsort(-row, kind="stable")[:k]
        assert [label for label, _ in one.top] == [str(n) for n in best]


def test_scores_that_cannot_be_written_to_or_lie_by_columns_rank_the_same():
    scores = np.random.default_rng(1).standard_normal((7, 83)).astype(np.float32)
    expected = np.argsort(-scores, axis=1)[:, :3]
    fixed, by_columns = scores.copy(), np.asfortranarray(scores)
    fixed.flags.writeable = False
    for given in (fixed, by_columns, np.broadcast_to(scores[:1], (7, 83))):
        before = given.copy()
        best = ranked(given, lambda some: some * 3, k=3, unknown_below=None)
        assert np.array_equal(best.classes, expected[:1].repeat(7, 0) if given.strides[0] == 0 else expected)
        assert np.array_equal(best.probabilities, 3 * np.take_along_axis(before, best.classes, axis=1))
        assert np.array_equal(given, before)


def test_a_store_that_grew_after_an_interruption_is_labelled_whole(named, scorer, tmp_path, monkeypatch):
    shutil.copytree(named.store.path, tmp_path / "store")
    monkeypatch.setattr("frevl.runs.labelling.label_store._AT_ONCE", 50)

    def of_now():
        return frevl.Scorer.open(scorer.run.path, store=tmp_path / "store")

    stopped = of_now()
    score, calls = stopped.score_stored, []

    def stopping(ids):
        calls.append(ids)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(ids)

    monkeypatch.setattr(stopped, "score_stored", stopping)
    with pytest.raises(KeyboardInterrupt):
        label_store(stopped, tmp_path / "labels.jsonl")
    np.save(tmp_path / "more.npy", named.store.read_images(["0.png", "1.png"]))
    (tmp_path / "more.json").write_text('["00.png", "01.png"]')
    import_embeddings(
        tmp_path / "more.npy", of="images", ids=tmp_path / "more.json", encoder="clip", common_space=True,
        store=tmp_path / "store",
    )  # fmt: skip
    grown = of_now()
    label_store(grown, tmp_path / "labels.jsonl")
    lines = lines_of(tmp_path / "labels.jsonl")
    assert [line["image"] for line in lines] == grown.store.ids("image")
    assert len(lines) == len(named.store.ids("image")) + 2


def test_no_list_of_all_ids_is_made(named, scorer, tmp_path, monkeypatch):
    asked = []
    ids = frevl.Store.ids
    monkeypatch.setattr(frevl.Store, "ids", lambda self, *given: asked.append(given) or ids(self, *given))
    found = label_store(frevl.Scorer(scorer.run, named.store), tmp_path / "labels.jsonl")
    assert found.labelled == 180
    assert asked == []
