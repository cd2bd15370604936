"""Copies inside a test set change no retrieval metric and shrink no interval."""

import json
import shutil
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from frevl.data.pairs import Pairs, read_pairs
from frevl.evaluation.evaluation import evaluate
from frevl.evaluation.seeds import evaluate_seeds
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from frevl.store.grouping.copies import one_item_each
from frevl.store.reader import Store
from frevl.training.training import train


@pytest.fixture(scope="module")
def twins(made, tmp_path_factory):
    """The made world with four copies of every tested image under other names, some in a folder. Read only."""
    folder = tmp_path_factory.mktemp("twins")
    images = shutil.copytree(made.images, folder / "images")
    (images / "again").mkdir()
    tested = sorted(set(made.test.images))
    for image in tested:
        for copy in names_of(image)[1:]:
            shutil.copy(images / image, images / copy)
    files = {name: folder / f"{name}.jsonl" for name in ("captions", "questions", "judged")}
    captions = [made.captions.row(i) for i in range(len(made.captions)) if made.captions.images[i] in set(tested)]
    questions = [made.test.row(i) for i in range(len(made.test))]
    other = [captions[(i + 7) % len(captions)]["text"] for i in range(len(captions))]
    judged = [{**row, "target": "true"} for row in captions]
    judged += [{**row, "text": text, "target": "false"} for row, text in zip(captions, other, strict=True)]
    for name, rows in (("captions", captions), ("questions", questions), ("judged", judged)):
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
        copied = [{**row, "image": copy} for row in rows for copy in names_of(row["image"])]
        files[name].with_suffix(".copied.jsonl").write_text("".join(json.dumps(row) + "\n" for row in copied))
    extract(folder / "store", images=images, pairs=[*files.values(), made.captions_file], encoder=["toy"])
    store = Store.open(folder / "store")
    for name, options in (("dual", {"model": "dual"}), ("linear", {"model": "linear"}),
                          ("reranked", {"model": "tiny", "first_stage": "dual"})):  # fmt: skip
        train(
            store,
            made.captions_file,
            run=folder / name,
            task="matching",
            options={} if name == "linear" else {"epochs": 1},
            **options,
        )
    train(store, made.train_file, run=folder / "classes", task="classification", model="linear")
    return SimpleNamespace(folder=folder, store=store, files=files, copied={
        name: file.with_suffix(".copied.jsonl") for name, file in files.items()})  # fmt: skip


def names_of(image):
    return [image, f"copy_{image}", f"again/{image}", f"zz_{image}", f"0{image}"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["dual", "linear", "reranked"])
@pytest.mark.parametrize("pairs", ["captions", "judged"])
def test_every_metric_and_interval_of_retrieval_is_that_without_copies(twins, run, pairs):
    scorer = Scorer.open(twins.folder / run, store=twins.store)
    alone, copied = (evaluate(scorer, files[pairs]) for files in (twins.files, twins.copied))
    assert copied.n == 5 * alone.n
    for name, value in alone.metrics.items():
        assert copied.metrics[name] == pytest.approx(value, abs=1e-6), name
        assert copied.ci95[name] == pytest.approx(alone.ci95[name], abs=1e-6), name
    assert "i2t_r1" in alone.metrics
    assert alone.metrics["i2t_median_rank"] >= 1
    copies = 4 * len(set(alone.evaluated.images))
    assert any(f"({copies:,} copies were merged with the first image of the same content)" in n for n in copied.notes)
    assert any(f"{copies:,} images are copies of another one" in note for note in copied.notes)
    assert not any("cop" in note for note in alone.notes)


def test_intervals_of_a_classification_do_not_shrink(twins):
    scorer = Scorer.open(twins.folder / "classes", store=twins.store)
    alone, copied = (evaluate(scorer, files["questions"]) for files in (twins.files, twins.copied))
    for name, value in alone.metrics.items():
        assert copied.metrics[name] == pytest.approx(value, abs=1e-6), name
        assert copied.ci95[name] == pytest.approx(alone.ci95[name], abs=1e-6), name
    assert copied.slices["asked"].keys() == alone.slices["asked"].keys()
    for value, group in alone.slices["asked"].items():
        assert copied.slices["asked"][value]["ci95"] == pytest.approx(group["ci95"], abs=1e-9)
    assert copied.chance.record()["ci95"] == pytest.approx(alone.chance.record()["ci95"])
    apart = evaluate(scorer, twins.copied["questions"], find_groups=False)
    assert np.ptp(apart.ci95["accuracy"]) < np.ptp(copied.ci95["accuracy"]), "as if copies were independent"


def test_seeds_group_once_and_the_same(twins):
    scorer = Scorer.open(twins.folder / "classes", store=twins.store)
    one = evaluate(scorer, twins.copied["questions"])
    mean = evaluate_seeds([scorer, scorer], twins.copied["questions"], versus=[scorer])
    assert mean.ci95["accuracy"] == pytest.approx(one.ci95["accuracy"], abs=1e-9)
    assert mean.clusters == one.clusters
    assert [note for note in one.notes if "copies" in note] == [note for note in mean.notes if "copies" in note]
    assert mean.difference["difference"] == 0


@pytest.mark.slow
def test_the_command_line_takes_a_key_and_switches_it_off(twins, frevl):
    rows = [json.loads(line) for line in twins.files["questions"].read_text().splitlines()]
    keyed = twins.folder / "keyed.jsonl"
    keyed.write_text("".join(json.dumps({**row, "take": f"t{i // 6}"}) + "\n" for i, row in enumerate(rows)))
    arguments = ["evaluate", "--store", twins.store.path, "--run", twins.folder / "classes", "--pairs", keyed]
    widths = {}
    for flags in ((), ("--group-by", "take"), ("--no-groups",)):
        assert frevl(*arguments, *flags, "--json", twins.folder / "r.json").code == 0
        widths[flags] = np.ptp(json.loads((twins.folder / "r.json").read_text())["ci95"]["brier"])
    assert widths[("--group-by", "take")] != widths[()] == widths[("--no-groups",)]
    said = frevl(*arguments, "--group-by", "tale")
    assert said.code == 2
    assert "--group-by tale: no pair has this key. Did you mean 'take'?" in said.err


def test_texts_that_differ_in_blanks_or_composition_are_one_text():
    texts = ["un café noir", unicodedata.normalize("NFD", "un café noir"), " un  café\tnoir ", "un cafe noir"]
    pairs = Pairs(["a", "b", "a", "c"], texts, [None] * 4, [{} for _ in range(4)], [f"f:{i}" for i in range(4)])
    store = SimpleNamespace(content_hashes=lambda ids: {id_: "same" if id_ in "ab" else id_ for id_ in ids})
    kept, copies = one_item_each(pairs, store)
    assert (kept.images, kept.texts, kept.places) == (["a", "c"], [texts[0], texts[3]], ["f:0", "f:3"])
    assert copies == 3


@pytest.mark.slow
def test_copies_of_one_picture_alone_are_no_retrieval(twins, made):
    scorer = Scorer.open(twins.folder / "linear", store=twins.store)
    rows = [row for row in json_rows(twins.copied["judged"]) if row["image"] in names_of(made.test.images[0])]
    file = twins.folder / "one.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(scorer, file)
    assert set(result.metrics) == {"accuracy", "ece", "ece_debiased"}
    assert "No retrieval metrics: fewer than two images have right texts." in result.notes
    assert result.ci95["accuracy"] is None, "one picture tells nothing about others"
    assert len(read_pairs(file)) > 5


def json_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_search_shows_one_hit_for_a_content(twins, made, frevl):
    first = made.test.images[0]
    arguments = [
        "search",
        "--store",
        twins.store.path,
        "--run",
        twins.folder / "dual",
        "--json",
        twins.folder / "s.json",
    ]

    def hits(*more):
        assert frevl(*arguments, *more).code == 0
        record = json.loads((twins.folder / "s.json").read_text())
        return [(hit["id"], hit["copies"]) for hit in record["hits"]], record["notes"]

    merged, notes = hits("a red square", "-k", 12)
    everything, _ = hits("a red square", "-k", 60, "--all")
    assert len({origin(id_) for id_, _ in merged}) == len(merged) == 12
    assert [origin(id_) for id_, _ in merged] == list(dict.fromkeys(origin(id_) for id_, _ in everything))[:12]
    assert all(copies == [] for _, copies in everything)
    tested = [(id_, copies) for id_, copies in merged if origin(id_) in set(made.test.images)]
    assert tested
    assert all({id_, *copies} == set(names_of(origin(id_))) for id_, copies in tested)
    assert f"{4 * len(tested)} images with the same content as a hit are not shown; --all shows them." in notes

    similar, _ = hits("--image", first, "-k", 3)
    assert not {id_ for id_, _ in similar} & set(names_of(first)), "copies of what is searched with are no hits"
    similar, _ = hits("--image", first, "-k", 4, "--all")
    assert {id_ for id_, _ in similar} == set(names_of(first)[1:])


def origin(image):
    name = image.removeprefix("again/").removeprefix("copy_").removeprefix("zz_")
    return name.removeprefix("0") if name != "0.png" else name
