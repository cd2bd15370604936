"""`frevl select`: what is worth labelling next; known items are left out, counted, and cover the rest."""

import json
from dataclasses import replace

import numpy as np
import pytest

import frevl
from frevl.data import pairs as pairs_module
from frevl.data.packed.columns import Coded
from frevl.errors import PairsError, UsageError
from frevl.runs.labelling import selecting
from frevl.runs.labelling.selecting import select_pairs
from frevl.runs.targets import hash_prefixes
from frevl.store.importing.vectors import import_embeddings


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def world(named, tmp_path_factory):
    """A classifier that knows ten images of each class, and a pool of the others without their labels."""
    folder = tmp_path_factory.mktemp("selecting")
    frevl.classify(named.store, run=folder / "run", examples=named.examples)
    scorer = frevl.Scorer.open(folder / "run", store=named.store)
    rows = [{"image": row["image"], "page": "ü <b>"} for row in lines_of(named.test)]
    return scorer, write(folder / "pool.jsonl", rows), rows


def test_lines_ranks_and_what_the_run_says(world, tmp_path):
    scorer, pool, rows = world
    found = select_pairs(scorer, pool, tmp_path / "next.jsonl", k=7, by="margin")
    lines = lines_of(tmp_path / "next.jsonl")
    assert lines == found.lines
    assert [line["select"]["rank"] for line in lines] == list(range(1, 8))
    probabilities = scorer.probabilities(scorer.score([row["image"] for row in rows]))
    best = np.sort(probabilities, axis=1)
    margins = best[:, -1] - best[:, -2]
    order = np.argsort(margins, kind="stable")[:7]
    assert [line["image"] for line in lines] == [rows[row]["image"] for row in order]
    np.testing.assert_allclose([line["select"]["margin"] for line in lines], margins[order], atol=1e-6)
    assert lines[0]["select"]["label"] == scorer.run.labels[probabilities[order[0]].argmax()]
    assert lines[0]["page"] == "ü <b>"
    assert "target" not in lines[0]
    assert found.counts == {
        "pool": 120, "chosen": 7, "labelled": 0, "in_training": 0, "copies": 0, "near_copies": 0,
        "covered": 60,
    }  # fmt: skip
    again = select_pairs(scorer, pool, tmp_path / "again.jsonl", k=7, by="margin")
    assert again.lines == found.lines


def test_what_the_store_covers_is_found_without_a_hash_of_every_image_as_an_object(world, monkeypatch):
    scorer, pool, _ = world
    asked = []
    hashes = frevl.Store.content_hashes
    monkeypatch.setattr(frevl.Store, "content_hashes", lambda self, ids: asked.append(len(ids)) or hashes(self, ids))
    assert select_pairs(scorer, pool, k=3, by="margin").counts["covered"] == 60
    assert not asked  # neither of the 180 images of the store nor of those of the pool


@pytest.mark.parametrize("by", ["mixed", "cover", "doubt", "margin"])
def test_a_large_file_gives_the_same_choice_on_numbers(world, named, tmp_path, monkeypatch, by):
    scorer, _, rows = world
    twice = [{**row, "page": n} for n, row in enumerate([*rows, *rows[:9]])]
    pool = write(tmp_path / "pool.jsonl", twice)
    labelled = write(tmp_path / "labelled.jsonl", [row | {"target": scorer.run.labels[0]} for row in rows[3:8]])
    found = select_pairs(scorer, pool, k=9, by=by, labelled=labelled)
    assert found.counts == {
        "pool": 129, "chosen": 9, "labelled": 10, "in_training": 0, "copies": 4, "near_copies": 0,
        "covered": 65,
    }  # fmt: skip
    monkeypatch.setattr(pairs_module, "_LARGE", 1)
    assert type(pairs_module.read_pairs(pool).images) is Coded
    again = select_pairs(scorer, pool, k=9, by=by, labelled=labelled)
    assert (again.lines, again.counts) == (found.lines, found.counts)


def test_of_a_very_large_pool_the_least_certain_or_a_sample_are_compared(world, monkeypatch):
    scorer, pool, rows = world
    least = [line["image"] for line in select_pairs(scorer, pool, k=40, by="margin").lines]
    monkeypatch.setattr(selecting, "_MOST_COMPARED", 40)
    assert [line["image"] for line in select_pairs(scorer, pool, k=10, by="margin").lines] == least[:10]
    mixed = select_pairs(scorer, pool, k=10, by="mixed")
    assert {line["image"] for line in mixed.lines} <= set(least)
    assert "Only the 40 least certain of the 120 pairs were compared by 'mixed'." in mixed.notes
    sample = [rows[round(n)]["image"] for n in np.linspace(0, 119, 40)]
    for by in ("cover", "doubt"):
        some = select_pairs(scorer, pool, k=10, by=by)
        assert {line["image"] for line in some.lines} <= set(sample)
        assert f"Only an even sample of 40 of the 120 pairs was compared by '{by}'." in some.notes
        assert some.counts["pool"] == 120


@pytest.mark.parametrize("by", ["mixed", "cover", "doubt", "margin"])
def test_it_goes_on_with_what_is_labelled_since(world, named, tmp_path, by):
    """Two calls with labels between them choose what one call chooses where no answer changes the order."""
    scorer, pool, _ = world
    whole = [line["image"] for line in select_pairs(scorer, pool, k=20, by=by).lines]
    first = select_pairs(scorer, pool, tmp_path / "1.jsonl", k=8, by=by)
    truth = {row["image"]: row["target"] for row in lines_of(named.test)}
    write(tmp_path / "1.jsonl", [{**line, "target": truth[line["image"]]} for line in first.lines])
    second = select_pairs(scorer, pool, k=12, by=by, labelled=[tmp_path / "1.jsonl"])
    assert [line["image"] for line in [*first.lines, *second.lines]] == whole
    assert (second.counts["labelled"], second.counts["covered"]) == (8, 68)


def test_what_was_written_trains_a_better_run(world, named, tmp_path):
    scorer, pool, _ = world
    found = select_pairs(scorer, pool, k=20)
    truth = {row["image"]: row["target"] for row in lines_of(named.test)}
    lines = [{**line, "target": truth[line["image"]]} for line in found.lines]
    examples = write(tmp_path / "examples.jsonl", [*lines_of(named.examples), *lines])
    run = frevl.classify(named.store, run=tmp_path / "run", examples=examples)
    assert run.results["train_pairs"] == 80
    left = select_pairs(frevl.Scorer.open(tmp_path / "run", store=named.store), pool, k=200)
    assert left.counts["in_training"] == 20
    assert left.counts["chosen"] == 100
    assert "no more are left" in left.sentence()
    assert "Left out: 20 with images or texts in training." in left.sentence()


def test_copies_are_chosen_once(tmp_path):
    """Two ids of one content, and a line that stands twice."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((30, 8)).astype(np.float32)
    vectors[21] = vectors[20]
    np.save(tmp_path / "v.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    ids = [f"{n}.png" for n in range(30)]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    store = tmp_path / "store"
    import_embeddings(tmp_path / "v.npy", of="images", ids=tmp_path / "ids.json", encoder="other", store=store)
    examples = write(tmp_path / "e.jsonl", [{"image": ids[n], "target": "ab"[n % 2]} for n in range(20)])
    frevl.classify(store, run=tmp_path / "run", examples=examples)
    scorer = frevl.Scorer.open(tmp_path / "run", store=store)
    same = len(set(scorer.store.content_hashes([ids[20], ids[21]]).values())) == 1
    pool = write(tmp_path / "pool.jsonl", [{"image": ids[n]} for n in (20, 21, 22, 22)])
    found = select_pairs(scorer, pool, k=10)
    assert same
    assert [found.counts[name] for name in ("pool", "chosen", "copies")] == [4, 2, 2]


def test_pairs_of_images_and_texts(made, tmp_path):
    run = frevl.train(made.store, made.train, run=tmp_path / "run", task="classification", model="linear").path
    scorer = frevl.Scorer.open(run, store=made.store)
    pool = [{name: row[name] for name in ("image", "text")} for row in lines_of(made.test_file)]
    found = select_pairs(scorer, write(tmp_path / "pool.jsonl", pool), k=9)
    images = [line["image"] for line in found.lines]
    assert len(set(images)) == len(images) == 9
    both = select_pairs(scorer, tmp_path / "pool.jsonl", k=99, per_image=2)
    assert both.counts["chosen"] == 60
    assert sorted((line["image"], line["text"]) for line in both.lines) == sorted(
        (row["image"], row["text"]) for row in pool
    )
    training = select_pairs_or_refusal(scorer, made.train_file)
    assert "no pair is left to choose from: of 180, 180 are labelled" in training


def select_pairs_or_refusal(scorer, pool):
    with pytest.raises(PairsError) as refused:
        select_pairs(scorer, pool)
    return str(refused.value)


def test_a_matching_run_is_asked_how_sure_it_is_of_a_match(made, tmp_path):
    run = frevl.train(
        made.store, made.captions.select(range(180)), run=tmp_path / "run", task="matching", model="linear"
    ).path
    scorer = frevl.Scorer.open(run, store=made.store)
    pool = made.captions.select(range(200, 240))
    line = select_pairs(scorer, pool, k=1, by="margin").lines[0]
    probabilities = scorer.match_probabilities(list(zip(pool.images, pool.texts, strict=True)))[1]
    nearest = int(np.abs(probabilities - 0.5).argmin())
    assert (line["image"], line["text"]) == (pool.images[nearest], pool.texts[nearest])
    assert line["select"]["margin"] == pytest.approx(abs(2 * probabilities[nearest] - 1), abs=1e-6)


def test_images_alone_and_texts_alone(one_side, tmp_path):
    run = frevl.train(one_side.store, one_side.train_file, run=tmp_path / "run", task="classification", model="linear")
    scorer = frevl.Scorer.open(run.path, store=one_side.store)
    rows = [{one_side.side: row[one_side.side], one_side.other: "x.png"} for row in lines_of(one_side.dev_file)]
    found = select_pairs(scorer, write(tmp_path / "pool.jsonl", rows), k=5)
    assert found.counts["chosen"] == 5
    assert found.counts["covered"] == 60
    assert any("are ignored" in note for note in found.notes)


def test_another_store_covers_nothing_and_says_so(named, world, tmp_path):
    vectors = np.random.default_rng(1).standard_normal((12, 24)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.json").write_text(json.dumps([f"{n}.png" for n in range(12)]))
    store = tmp_path / "store"
    import_embeddings(
        tmp_path / "v.npy", of="images", ids=tmp_path / "ids.json", encoder="clip", common_space=True, store=store
    )
    scorer = frevl.Scorer.open(world[0].run.path, store=store)
    found = select_pairs(scorer, write(tmp_path / "p.jsonl", [{"image": f"{n}.png"} for n in range(12)]), k=3)
    assert found.counts["covered"] == 0
    assert "No training item of the run is in the store" in found.sentence()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"k": 0}, "-k must be at least 1, found 0"),
        ({"per_image": 0}, "--per-image must be at least 1, found 0"),
        ({"by": "dubt"}, "Did you mean 'doubt'"),
    ],
)
def test_wrong_use(world, asked, said):
    scorer, pool, _ = world
    with pytest.raises(UsageError, match=said):
        select_pairs(scorer, pool, **asked)


@pytest.mark.slow
def test_refusals_of_the_command(world, tmp_path, frevl):
    scorer, pool, rows = world
    base = ["select", "--store", scorer.store.path, "--run", scorer.run.path, "--out", tmp_path / "o.jsonl", "--pairs"]
    said = frevl(*base, write(tmp_path / "a.jsonl", [{"image": "nobody.png"}]))
    assert (said.code, "the store has no image 'nobody.png'" in said.err) == (1, True)
    said = frevl(*base, pool, "--labelled", pool)
    assert (said.code, "expected a label, found none in any pair of --labelled" in said.err) == (1, True)
    said = frevl(*base, pool, "-k", "0")
    assert (said.code, "-k must be at least 1" in said.err) == (2, True)
    (tmp_path / "empty.jsonl").write_text("")
    assert frevl(*base, tmp_path / "empty.jsonl").code == 1
    said = frevl(*base, write(tmp_path / "b.jsonl", [*rows[:3], {"picture": 3}]), "--json", tmp_path / "o.json")
    assert said.code == 0, said.err
    assert said.out.startswith("Chose 3 of 3 pairs to label. Fewer than the requested 100: no more are left")
    record = json.loads((tmp_path / "o.json").read_text())
    assert (record["chosen"], len(record["rejects"])) == (3, 1)


@pytest.mark.slow
def test_the_page_holds_pictures_and_escapes_what_comes_from_data(made, tmp_path, frevl):
    run = tmp_path / "run"
    assert frevl("train", "--store", made.store.path, "--pairs", made.train_file, "--task", "classification",
                 "--model", "linear", "--run", run, "--quiet").code == 0  # fmt: skip
    rows = [{"image": row["image"], "text": row["text"]} for row in lines_of(made.test_file)[:6]]
    rows[0]["text"] = "<script>alert(1)</script>"
    pool = write(tmp_path / "pool.jsonl", rows)
    words = ["select", "--store", made.store.path, "--run", run, "--pairs", pool, "--out", tmp_path / "o.jsonl"]
    words += ["--per-image", "2"]
    said = frevl(*words, "--html", tmp_path / "o.html", "--images", made.images)
    assert said.code == 0, said.err
    page = (tmp_path / "o.html").read_text(encoding="utf-8")
    assert page.count('<img alt="') == page.count("data:image/jpeg;base64,") == 6
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "6 pairs to label next" in page
    assert frevl(*words, "--html", tmp_path / "p.html").code == 0
    assert (tmp_path / "p.html").read_text().count("no image") == 6
    refused = frevl(*words, "--images", made.images)
    assert (refused.code, "add --html" in refused.err) == (2, True)


def test_a_text_with_other_blanks_or_letters_composed_otherwise_is_labelled_too(made, tmp_path):
    run = frevl.train(made.store, made.train, run=tmp_path / "run", task="classification", model="linear")
    rows = [
        {"image": image, "text": text} for image, text in zip(made.test.images[:6], made.test.texts[:6], strict=True)
    ]
    known = [{**row, "text": f" {row['text']} ", "target": run.labels[0]} for row in rows[:3]]
    found = select_pairs(
        frevl.Scorer(run, made.store), write(tmp_path / "pool.jsonl", rows), k=6,
        labelled=[write(tmp_path / "known.jsonl", known)], per_image=9,
    )  # fmt: skip
    assert found.counts["labelled"] == 3
    assert len(found.lines) == 3


def test_pictures_that_only_the_space_of_the_names_has_seen_may_be_labelled(world, named, tmp_path):
    """They have no class yet; an example that the space has seen too has one and is left out."""
    scorer, _, rows = world
    example = lines_of(named.examples)[0]["image"]
    pool = write(tmp_path / "pool.jsonl", [*rows, {"image": example}])
    of_space = hash_prefixes(named.store.content_hashes([row["image"] for row in rows] + [example]).values())
    run = scorer.run
    of_space_alone = np.setdiff1d(of_space, run.train_image_hashes)
    seen = replace(
        run, train_image_hashes=np.union1d(run.train_image_hashes, of_space), space_image_hashes=of_space_alone
    )
    found = select_pairs(frevl.Scorer(seen, named.store), pool, k=200)
    assert {line["image"] for line in found.lines} == {row["image"] for row in rows}
    assert (found.counts["in_training"], found.counts["covered"]) == (1, 60)


def test_near_copies_are_one_image_to_the_margin(tmp_path, monkeypatch):
    """Every image of the pool comes twice, nearly the same; one more nearly repeats an image of the training."""
    random = np.random.default_rng(0)
    each = random.standard_normal((80, 16))
    vectors = np.concatenate([each, each[20:] + 0.002 * random.standard_normal((60, 16)), each[:1] + 0.002])
    ids = [f"{n}.png" for n in range(len(vectors))]
    np.save(tmp_path / "v.npy", (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    store = tmp_path / "store"
    import_embeddings(tmp_path / "v.npy", of="images", ids=tmp_path / "ids.json", encoder="other", store=store)
    examples = write(tmp_path / "e.jsonl", [{"image": ids[n], "target": "ab"[n % 2]} for n in range(20)])
    frevl.classify(store, run=tmp_path / "run", examples=examples)
    scorer = frevl.Scorer.open(tmp_path / "run", store=store)
    pool = write(tmp_path / "pool.jsonl", [{"image": image} for image in ids[20:]])
    found = select_pairs(scorer, pool, k=100, by="margin")
    chosen = [(int(line["image"].removesuffix(".png")) - 20) % 60 for line in found.lines]
    assert len(chosen) == len(set(chosen)) == 60
    assert "Left out: 1 near copy of an image that is labelled or in training." in found.sentence()
    assert not any("Near copies were looked for" in note for note in found.notes)
    with_labels = write(tmp_path / "l.jsonl", [{"image": ids[n], "target": "a"} for n in range(20, 80)])
    assert len(select_pairs(scorer, pool, by="mixed", labelled=with_labels).lines) == 61
    with pytest.raises(PairsError, match="near copies of images that are labelled or in training"):
        select_pairs(scorer, pool, by="margin", labelled=with_labels)
    monkeypatch.setattr(selecting, "_MOST_LINKED", 40)
    some = select_pairs(scorer, pool, k=9, by="margin")
    assert "Near copies were looked for among the 40 least certain of 121 pairs only." in some.notes
