"""Searches: the same ranking as scoring everything, whatever is cached, indexed, new, changed or broken."""

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

import frevl as package
import frevl.runs.search.vectors
from frevl.errors import UsageError
from frevl.files import write_json
from frevl.runs.scorer import Scorer
from frevl.runs.search.contact_sheet import contact_sheet
from frevl.runs.search.index import NeighbourIndex
from frevl.runs.search.searching import Searcher, index_store, search
from frevl.runs.search.vectors import Shortlist
from frevl.store.extraction import extract
from frevl.store.importing.vectors import import_embeddings
from frevl.store.upkeep.removal import compact, remove
from frevl.training.training import train


@pytest.fixture(scope="module")
def dual(made, tmp_path_factory):
    """A run with a first stage on the made world. Read only."""
    folder = tmp_path_factory.mktemp("dual") / "run"
    train(made.store.path, made.captions_file, run=folder, task="matching", model="dual", options={"epochs": 2})
    return folder


@pytest.fixture
def world(made, dual, tmp_path):
    """A store of one's own with the run: ``(scorer, store path, run)``."""
    store = tmp_path / "store"
    shutil.copytree(made.store.path, store, ignore=shutil.ignore_patterns("vectors"))
    return Scorer.open(dual, store=store), store, dual


def by_scoring_all(scorer, pairs):
    """Positions of pairs, the best first: every one is scored."""
    return np.argsort(-scorer.score(pairs), kind="stable")


# ---- the ranking


def test_a_text_finds_the_images_that_score_best(world, made):
    scorer, _, _ = world
    ids = scorer.store.image_ids
    for text in ("a red square", "something of blue that no caption says"):
        best = by_scoring_all(scorer, [(id_, text) for id_ in ids])
        found = search(scorer, text, k=7, images=made.images)
        scores = scorer.score([(hit.id, text) for hit in found.hits])
        assert [hit.score for hit in found.hits] == pytest.approx(scores.tolist(), abs=1e-4)
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        # Vectors are stored in float16: neighbours of nearly the same score may change places, no more.
        assert scores == pytest.approx(scorer.score([(ids[row], text) for row in best[:7]]), abs=5e-3)
        assert [hit.rank for hit in found.hits] == [1, 2, 3, 4, 5, 6, 7]
        probabilities = scorer.match_probabilities([(hit.id, text) for hit in found.hits])[1]
        assert [hit.probability for hit in found.hits] == pytest.approx(probabilities.tolist(), abs=1e-4)
        assert all(hit.path == str(made.images / hit.id) for hit in found.hits)
        assert (found.find, found.searched, found.exact) == ("images", 120, True)


def test_an_image_finds_texts_and_images(world, made):
    scorer, _, _ = world
    texts = scorer.store.texts
    best = by_scoring_all(scorer, [("5.png", text) for text in texts])
    of_id = search(scorer, image="5.png", find="texts", k=3)
    of_file = search(scorer, image=str(made.images / "5.png"), find="texts", k=3)
    of_bytes = search(scorer, image=(made.images / "5.png").read_bytes(), find="texts", k=3)
    assert [hit.id for hit in of_id.hits] == [texts[row] for row in best[:3]]
    for other in (of_file, of_bytes):
        assert [hit.id for hit in other.hits] == [hit.id for hit in of_id.hits]
        assert [hit.score for hit in other.hits] == pytest.approx([hit.score for hit in of_id.hits], abs=1e-3)

    vectors = scorer.image_vectors(scorer.store.image_ids)
    similarities = vectors @ scorer.image_vectors(["5.png"])[0]
    similar = search(scorer, image="5.png", k=4)
    assert similar.hits[0].id != "5.png"
    assert similar.searched == 119
    assert [hit.similarity for hit in similar.hits] == pytest.approx(
        np.sort(similarities)[::-1][1:5].tolist(), abs=2e-3
    )
    assert all(hit.probability is None for hit in similar.hits)
    assert search(scorer, image=Image.open(made.images / "5.png"), k=1).hits[0].id == "5.png"


def test_a_reranking_run_scores_its_depth_again(world):
    scorer, _, _ = world

    class Reranking(Scorer):
        rerank_depth = 50

        def match_probabilities(self, pairs, *, images=None):
            asked.append(len(pairs))
            scores, probabilities = super().match_probabilities(pairs, images=images)
            # The worst of the candidates becomes the best.
            return -scores, probabilities

    asked = []
    first = search(scorer, "a red square", k=50)
    scorer.__class__ = Reranking
    found = search(scorer, "a red square", k=2)
    assert asked == [50]
    assert [hit.id for hit in found.hits] == [hit.id for hit in first.hits[:-3:-1]]
    assert found.reranked == 50
    assert found.hits[0].similarity == pytest.approx(first.hits[-1].similarity)


def test_conditions_and_their_metadata(world, made, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    scorer, store, run = world
    found = search(scorer, "a red square", k=200, where="id LIKE '1%.png' AND bytes > 10")
    assert {hit.id for hit in found.hits} == {id_ for id_ in scorer.store.image_ids if id_.startswith("1")}
    assert found.searched == 31  # 1, 10 to 19, 100 to 119
    assert "Only 31 images can be found, fewer than the requested 200." in found.notes
    nothing = search(scorer, "a red square", where="id = 'it''s not there'")
    assert (nothing.hits, nothing.notes) == ([], ["No image can be found: none meets the condition."])
    with pytest.raises(UsageError) as refused:
        search(scorer, "a red square", where="colour = 1")
    assert str(refused.value) == (
        "The condition 'colour = 1' cannot be understood (there is no column 'colour'). "
        f"Columns of the images of {store}: id, bytes"
    )
    similar = search(scorer, image="5.png", k=9, where="id IN ('6.png', '7.png')")
    assert ({hit.id for hit in similar.hits}, similar.searched) == ({"6.png", "7.png"}, 2)
    itself = search(scorer, image="5.png", where="id = '5.png'")
    assert (itself.hits, itself.searched) == ([], 0)
    with pytest.raises(UsageError, match="cannot be understood"):
        search(scorer, "a red square", where="id LIKE")

    # Metadata of an import stands beside images that were extracted, too.
    rows = [[1.0, 0.0], [0.0, 1.0]]
    taken = [datetime(1999, 12, 31, 23, 59, tzinfo=UTC), datetime(2001, 2, 3, tzinfo=UTC)]
    columns = {"Licence": ["free", None], "year": [1999, 2001], "taken": taken}
    table = pa.table({"id": ["3.png", "4.png"], "v": rows, **columns})
    pq.write_table(table, tmp_path / "t.parquet")
    import_embeddings(tmp_path / "t.parquet", store=store, encoder="other", of="images")
    scorer = Scorer.open(run, store=store)
    found = search(scorer, "a red square", where="year > 2000")
    assert [(hit.id, hit.metadata) for hit in found.hits] == [
        ("4.png", {"Licence": None, "year": 2001, "taken": taken[1]})
    ]
    write_json(tmp_path / "found.json", found.record())
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["hits"][0]["metadata"]["taken"] == "2001-02-03T00:00:00+00:00"
    assert [hit.id for hit in search(scorer, "a red square", where="taken < timestamp '2000-01-01'").hits] == ["3.png"]
    assert [hit.id for hit in search(scorer, "a red square", where="Licence = 'free'").hits] == ["3.png"]


# ---- what is kept


def forbidden(*arguments, **options):
    raise AssertionError("nothing should be computed here")


def test_vectors_are_computed_once(world, monkeypatch):
    scorer, store, run = world
    first = search(scorer, "a red square")
    again = Scorer.open(run, store=store)
    monkeypatch.setattr(again, "image_vectors", forbidden)
    assert search(again, "a red square").hits == first.hits


def test_new_and_changed_images_are_found(world, draw, tmp_path, monkeypatch):
    scorer, store, run = world
    search(scorer, "a red square")
    folder = draw(tmp_path / "more", [500, 501])
    Image.new("RGB", (40, 40), (230, 30, 30)).save(folder / "7.png")  # the store has another 7.png
    extract(store, images=folder, encoder=["toy"])

    scorer = Scorer.open(run, store=store)
    computed = []
    original = scorer.image_vectors
    monkeypatch.setattr(scorer, "image_vectors", lambda ids: computed.extend(ids) or original(ids))
    found = search(scorer, "a red square", k=200)
    assert sorted(computed) == ["500.png", "501.png", "7.png"]
    assert sorted(hit.id for hit in found.hits) == sorted(scorer.store.image_ids)
    assert found.searched == 122
    by_id = {hit.id: hit.similarity for hit in found.hits}
    vectors = original(list(by_id)) @ scorer.text_vectors(["a red square"])[0]
    assert list(by_id.values()) == pytest.approx(vectors.tolist(), abs=2e-3)


def test_a_scorer_that_opened_the_store_earlier_goes_on(world, draw, tmp_path):
    scorer, store, run = world
    assert len(scorer.store.image_ids) == 120  # it has looked, and will not look again by itself
    extract(store, images=draw(tmp_path / "more", [500]), encoder=["toy"])
    np.save(tmp_path / "v.npy", np.eye(2))
    (tmp_path / "ids.jsonl").write_text('{"id": "500.png", "n": 5}\n{"id": "501.png", "n": 6}\n')
    import_embeddings(tmp_path / "v.npy", store=store, encoder="e", of="images", ids=tmp_path / "ids.jsonl")
    later = search(Scorer.open(run, store=store), "a red square", k=200)
    state = (Shortlist(scorer, "image").folder / "state.json").read_text()
    earlier = search(scorer, "a red square", k=200)
    assert earlier.hits == later.hits
    assert len(earlier.hits) == 121  # 501.png lacks the run's tower
    assert next(hit for hit in later.hits if hit.id == "500.png").metadata == {"n": 5}
    assert (Shortlist(scorer, "image").folder / "state.json").read_text() == state


def test_many_changed_images_start_anew(world, draw, tmp_path):
    scorer, store, run = world
    before = Shortlist(scorer, "image")
    extract(store, images=draw(tmp_path / "other", range(60)), encoder=["toy"])
    scorer = Scorer.open(run, store=store)
    after = Shortlist(scorer, "image")
    assert after.generation != before.generation
    assert (len(after), after.usable) == (120, 120)
    assert len(list(after.folder.glob("*.npy"))) == 1


def test_parts_are_filled_and_rows_keep_their_numbers(world, draw, tmp_path, monkeypatch):
    monkeypatch.setattr(frevl.runs.search.vectors, "PART_ROWS", 50)
    scorer, store, run = world
    before = Shortlist(scorer, "image")
    assert [len(block) for block in before.blocks] == [50, 50, 20]
    extract(store, images=draw(tmp_path / "more", range(500, 523)), encoder=["toy"])
    after = Shortlist(Scorer.open(run, store=store), "image")
    assert [len(block) for block in after.blocks] == [50, 50, 43]
    rows = np.array([119, 3, 77])
    assert after.ids(rows) == before.ids(rows)
    assert np.array_equal(after.take(rows), before.take(rows))
    assert len(list(after.folder.glob("*.npy"))) == 3


@pytest.mark.parametrize("damage", ["state", "cut", "lost", "swapped"])
def test_damaged_vectors_are_computed_again(world, damage):
    scorer, store, run = world
    expected = search(scorer, "a red square")
    folder = Shortlist(scorer, "image").folder
    part = next(folder.glob("*.npy"))
    if damage == "state":
        (folder / "state.json").write_text("{")
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:1000])
    elif damage == "lost":
        part.unlink()
    else:
        np.save(part, np.load(part)[:7])
    again = search(Scorer.open(run, store=store), "a red square")
    assert again.hits == expected.hits
    assert any("was damaged; the vectors were recomputed" in note for note in again.notes)
    assert search(Scorer.open(run, store=store), "a red square").notes == []


def test_a_store_that_cannot_be_written_is_searched_all_the_same(world):
    scorer, store, run = world
    expected = search(scorer, "a red square")
    shutil.rmtree(store / "vectors")
    (store / "vectors").write_text("in the way")
    found = search(Scorer.open(run, store=store), "a red square")
    assert [hit.id for hit in found.hits] == [hit.id for hit in expected.hits]
    assert "every process recomputes" in found.notes[0]


DOOMED = """
import os, signal, sys
import frevl.runs.search.vectors, frevl.runs.search.index
from frevl.cli.main import main

where = sys.argv.pop(1)
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "second":
    frevl.runs.search.vectors.PART_ROWS = 50
    original, calls = frevl.runs.search.vectors.write_json, []
    def second(*arguments):
        calls.append(1)
        die() if len(calls) == 2 else original(*arguments)
    frevl.runs.search.vectors.write_json = second  # the files of the second part are there, and do not count
elif where == "index":
    frevl.runs.search.index.write_json = die
else:
    import frevl.store.commits.table_writer
    frevl.store.commits.table_writer.append_rows = die
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["second", "index", "append"])
def test_after_a_kill_searches_go_on(world, draw, tmp_path, where):
    scorer, store, run = world
    more = draw(tmp_path / "more", [700])
    arguments = {
        "index": ["store", "index", "--store", store, "--run", run, "--quiet"],
        "append": ["extract", "--store", store, "--images", more, "--encoder", "toy", "--quiet"],
    }.get(where, ["search", "--store", store, "--run", run, "a red square", "--quiet"])
    killed = subprocess.run([sys.executable, "-c", DOOMED, where, *map(str, arguments)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    found = search(Scorer.open(run, store=store), "a red square", k=200)
    assert [hit.id for hit in found.hits][:9] == [hit.id for hit in search(scorer, "a red square", k=9).hits]
    assert (len(found.hits), found.notes) == (
        120,
        ["Only 120 images can be found, fewer than the requested 200."],
    )
    extract(store, images=more, encoder=["toy"])
    assert search(Scorer.open(run, store=store), "a red square", k=200).searched == 121
    folder = Shortlist(scorer, "image").folder
    assert len(list(folder.glob("*.npy"))) == len(json.loads((folder / "state.json").read_text())["parts"])


def test_removed_images_are_not_found_and_nothing_else_changes(world, monkeypatch):
    scorer, store, run = world
    before = search(scorer, "a red square", k=200)
    gone = {hit.id for hit in before.hits[::9]}
    remove(store, ids=sorted(gone))
    after = search(Scorer.open(run, store=store), "a red square", k=200)
    assert [hit.id for hit in after.hits] == [hit.id for hit in before.hits if hit.id not in gone]
    assert [hit.score for hit in after.hits] == pytest.approx([hit.score for hit in before.hits if hit.id not in gone])
    assert after.searched == before.searched - len(gone)
    # A scorer that opened the store before does not find them either, and fails on none.
    late = search(scorer, "a red square", k=200)
    assert [hit.id for hit in late.hits] == [hit.id for hit in after.hits]
    compact(store)
    for one in (scorer, Scorer.open(run, store=store)):
        assert [hit.id for hit in search(one, "a red square", k=200).hits] == [hit.id for hit in after.hits]


def test_moved_images_are_found_under_their_new_name(world, made, tmp_path):
    scorer, store, run = world
    images = tmp_path / "images"
    shutil.copytree(made.images, images)
    before = search(scorer, "a red square", k=200)
    best = before.hits[0].id
    (images / best).rename(images / "moved.png")
    assert extract(store, images=images, encoder=["toy"]).images_moved == 1
    after = search(Scorer.open(run, store=store), "a red square", k=200)
    assert [hit.id for hit in after.hits] == ["moved.png" if hit.id == best else hit.id for hit in before.hits]


# ---- the index


@pytest.mark.slow
def test_an_index_of_which_the_nearest_were_removed_still_finds_enough(tmp_path):
    """Nine of ten neighbours of a query may be gone, far more than a graph is asked for."""
    rng = np.random.default_rng(2)
    near = np.array([1.0, 0, 0, 0]) + 0.01 * rng.normal(size=(900, 4))
    far = np.array([0.0, 1, 0, 0]) + 0.3 * rng.normal(size=(20_000, 4))
    vectors = np.concatenate([near, far]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(tmp_path / "images.npy", vectors)
    np.save(tmp_path / "texts.npy", np.concatenate([near[:1], far[:40]]).astype(np.float32))
    (tmp_path / "images.txt").write_text("".join(f"{n}\n" for n in range(len(vectors))))
    (tmp_path / "texts.txt").write_text("".join(f"text {n}\n" for n in range(41)))
    for of in ("images", "texts"):
        import_embeddings(
            tmp_path / f"{of}.npy", store=tmp_path / "s", encoder="e", of=of, ids=tmp_path / f"{of}.txt",
            common_space=True,
        )  # fmt: skip
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"image": str(n), "text": f"text {n}"}) + "\n" for n in range(41)))
    run = train(tmp_path / "s", pairs, run=tmp_path / "run", task="matching", model="cosine")
    index_store(Scorer.open(run.path, store=tmp_path / "s"))
    remove(tmp_path / "s", ids=[str(n) for n in range(895)])
    scorer = Scorer.open(run.path, store=tmp_path / "s")
    found, exact = search(scorer, "text 0", k=20), search(scorer, "text 0", k=20, exact=True)
    assert not found.exact
    assert len(found.hits) == 20
    left = {str(n) for n in range(895, 900)}
    assert {hit.id for hit in exact.hits[:5]} == left
    assert len(left.intersection(hit.id for hit in found.hits)) >= 4


def test_an_index_finds_what_exact_search_finds(world):
    scorer = world[0]
    report, notes = index_store(scorer)
    assert (report.rows, report.recall, report.queries_of, notes) == (120, 1.0, "text", [])
    assert re.fullmatch(
        r"Indexed 120 rows in [\d.]+ s: recall@10 against exact search 100.0 % on 6 text queries of the store, "
        r"[\d.]+ ms per query instead of [\d.]+ ms.",
        report.sentence(),
    )
    for text in ("a red square", "the blue thing"):
        indexed, exact = search(scorer, text), search(scorer, text, exact=True)
        assert (indexed.exact, exact.exact) == (False, True)
        assert [hit.id for hit in indexed.hits] == [hit.id for hit in exact.hits]
    assert search(scorer, "a red square", where="id LIKE '1%'").exact
    texts, _ = index_store(scorer, find="texts")
    assert (texts.queries_of, texts.recall) == ("image", 1.0)
    assert not search(scorer, image="3.png", find="texts").exact


def test_an_index_older_than_the_store_finds_new_images(world, draw, tmp_path):
    scorer, store, run = world
    index_store(scorer)
    folder = draw(tmp_path / "more", [500, 501])
    Image.new("RGB", (40, 40), (230, 30, 30)).save(folder / "7.png")
    extract(store, images=folder, encoder=["toy"])
    scorer = Scorer.open(run, store=store)
    for text in ("a red square", "the yellow thing"):
        indexed, exact = search(scorer, text, k=122), search(scorer, text, k=122, exact=True)
        assert not indexed.exact
        assert {"500.png", "501.png", "7.png"} < {hit.id for hit in indexed.hits}
        assert [hit.id for hit in indexed.hits] == [hit.id for hit in exact.hits]
    report, _ = index_store(scorer)  # adds the new ones
    assert report.rows == 123  # the former 7.png keeps its number, and is never found
    assert report.recall == 1.0
    assert len(list(Shortlist(scorer, "image").folder.glob("*.usearch"))) == 1
    assert len(search(scorer, "a red square", k=130).hits) == 122


def test_an_index_that_does_not_fit_is_not_used(world, draw, tmp_path):
    scorer, store, run = world
    index_store(scorer)
    shortlist = Shortlist(scorer, "image")
    assert NeighbourIndex.open(shortlist) is not None
    extract(store, images=draw(tmp_path / "other", range(60)), encoder=["toy"])  # rows get other numbers
    found = search(Scorer.open(run, store=store), "a red square")
    assert found.exact
    index_store(Scorer.open(run, store=store))
    next(shortlist.folder.glob("*.usearch")).write_bytes(b"no index")
    damaged = search(Scorer.open(run, store=store), "a red square")
    assert damaged.exact
    assert damaged.hits == found.hits
    assert "the index is damaged" in damaged.notes[0]


def test_the_recall_that_was_asked_for_is_measured_and_missed_aloud(world, monkeypatch):
    import frevl.runs.search.index

    monkeypatch.setattr(frevl.runs.search.index, "_recall", lambda *_: 0.5)
    report, notes = index_store(world[0], recall=0.9)
    assert report.expansion == 4096  # the greatest effort
    assert notes == [
        "The index finds 50.0 % of the exact neighbours, fewer than the requested 90.0 %; use --exact if that matters."
    ]


# ---- bad input


BAD = {
    "empty": (["  "], 2, "The query is empty; write what to look for"),
    "nothing": ([], 2, "A search needs either a text or an image, not both"),
    "both": (["a dog", "--image", "3.png"], 2, "A search needs either a text or an image, not both"),
    "texts for a text": (["a dog", "--for", "texts"], 2, "to find texts, give an image with --image"),
    "for": (["--image", "3.png", "--for", "videos"], 2, "must be 'images' or 'texts', found 'videos'"),
    "k": (["a dog", "-k", "0"], 2, "The number of results must be a whole number of at least 1, found 0"),
    "no column": (["a dog", "--where", "colour = 'red'"], 2, "(there is no column 'colour'). Columns of the images of"),
    "no condition": (["a dog", "--where", " "], 2, "The condition is empty; write one such as id LIKE 'kitchen/%'"),
    "half": (["a dog", "--where", "bytes >"], 2, "cannot be understood (Expected: an expression, found: EOF). Columns"),
    "kinds": (["a dog", "--where", "bytes = 'many'"], 2, 'cannot be understood ("many" is not of the type Int64)'),
    "function": (["a dog", "--where", "f(bytes) = 1"], 2, "cannot be understood (there is no function 'f')"),
    "quotes": (["a dog", "--where", '"bytes" > 1'], 2, "write bytes without quotes, and texts in single quotes"),
    "two conditions": (["a dog", "--where", "1 = 1; DROP TABLE x"], 2, "must be a single condition, found ';'"),
    "division": (
        ["a dog", "--where", "1 / (bytes - bytes) = 1"],
        2,
        "fails on a row (Divide by zero error). Columns of",
    ),
    "cast": (["a dog", "--where", "CAST(id AS INT) = 1"], 2, "fails on a row (Cast error: Cannot cast string"),
    "no image": (["--image", "nowhere.png"], 2, "nowhere.png: expected an image file, or the id of an image of"),
    "no picture": (["--image", __file__], 1, "Cannot read image"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_queries_get_one_sentence(made, dual, frevl, case):
    arguments, code, words = BAD[case]
    said = frevl("search", "--store", made.store.path, "--run", dual, "--quiet", *arguments)
    assert said.code == code, said
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": 3}, "The query must be a string, found int"),
        ({"text": "a dog", "k": "5"}, "must be a whole number of at least 1, found '5'"),
        ({"text": "a dog", "k": 2.5}, "must be a whole number of at least 1, found 2.5"),
    ],
)
def test_values_of_another_type(made, dual, asked, words):
    with pytest.raises(UsageError, match=words):
        search(Scorer.open(dual, store=made.store), **asked)


def test_a_long_query_is_cut_and_said(made, dual):
    found = search(Scorer.open(dual, store=made.store), "a red square " * 300, k=1)
    assert found.notes == ["The query is longer than the encoder can read and was truncated."]
    assert len(found.hits) == 1


def test_more_results_than_the_store_has(made, dual):
    found = search(Scorer.open(dual, store=made.store), "a red square", k=1000)
    assert len(found.hits) == 120
    assert found.notes == ["Only 120 images can be found, fewer than the requested 1,000."]


def test_runs_that_cannot_search(made, tmp_path, frevl):
    train(made.store.path, made.captions_file, run=tmp_path / "m", task="matching", model="linear")
    train(made.store.path, made.train_file, run=tmp_path / "c", task="classification", model="majority")
    for run, words in (
        ("m", "the model 'linear' has no first stage to search with"),
        ("c", "a search needs a matching"),
    ):
        for command in (["search", "a dog"], ["store", "index"]):
            said = frevl(*command, "--store", made.store.path, "--run", tmp_path / run)
            assert said.code == 2
            assert words in said.err


def test_a_run_of_another_store_is_refused(made, dual, frevl, tmp_path, draw):
    extract(tmp_path / "s", images=draw(tmp_path / "i", [1]), pairs=[made.captions_file], encoder=["toy2"])
    said = frevl("search", "--store", tmp_path / "s", "--run", dual, "a dog")
    assert said.code == 1
    assert "the run needs the image tower 'toy-image', the store has" in said.err


def test_a_store_without_images(made, dual, tmp_path):
    extract(tmp_path / "s", pairs=[made.captions_file], encoder=["toy"])
    scorer = Scorer.open(dual, store=tmp_path / "s")
    found = search(scorer, "a red square")
    assert (found.hits, found.notes) == ([], ["No image can be found: there is none."])
    with pytest.raises(UsageError, match="an index needs vectors and at least two queries"):
        index_store(scorer)


# ---- imported embeddings


@pytest.mark.slow
def test_imported_embeddings_of_a_common_space_are_searched(tmp_path, frevl, monkeypatch):
    from clip_folders import clip_retrieval

    monkeypatch.chdir(tmp_path)
    images, texts = clip_retrieval(tmp_path / "clip", sizes=(30, 30))
    made = frevl("import", "clip", "--store", "s", "--encoder", "ViT", "--common-space", "--write-pairs", "p.jsonl",
                 "--quiet")  # fmt: skip
    assert "Wrote 60 pairs to p.jsonl." in made.out
    trained = frevl("train", "--store", "s", "--pairs", "p.jsonl", "--task", "matching", "--model", "cosine",
                    "--run", "r", "--quiet")  # fmt: skip
    assert trained.code == 0, trained.err
    said = frevl("search", "--store", "s", "--run", "r", "caption 7", "-k", 3, "--json", "out.json", "--quiet")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "out.json").read_text())
    best = np.argsort(-images @ texts[7])[:3]
    assert [hit["id"] for hit in found["hits"]] == [f"/data/pictures/dir/{row}.jpg" for row in best]
    assert found["hits"][0]["metadata"]["width"] == 640 + best[0]
    assert frevl("evaluate", "--store", "s", "--run", "r", "--pairs", "p.jsonl").code == 0
    assert frevl("score", "--store", "s", "--run", "r", "--pairs", "p.jsonl", "--out", "scores.jsonl").code == 0

    unknown = frevl("search", "--store", "s", "--run", "r", "no caption of the store")
    assert unknown.code == 1
    assert unknown.err == (
        "frevl: s: the vectors of 'ViT-text' were imported, so texts outside the store cannot be embedded in the "
        "same way; use its own texts, or import more vectors\n"
    )


def test_new_texts_are_found_where_only_the_images_were_imported(made, tmp_path, frevl):
    ids, texts = made.store.image_ids, made.store.texts
    for of, vectors, names, encoder, dtype in (
        ("images", made.store.read_images(ids), ids, "bought", "float16"),
        ("texts", made.store.read_texts(texts), texts, "toy", "float32"),
    ):
        np.save(tmp_path / "v.npy", vectors)
        (tmp_path / "ids.json").write_text(json.dumps(names))
        import_embeddings(
            tmp_path / "v.npy", store=tmp_path / "s", encoder=encoder, of=of, ids=tmp_path / "ids.json", dtype=dtype
        )
    train(tmp_path / "s", made.captions_file, run=tmp_path / "r", task="matching", model="dual", options={"epochs": 1})
    scorer = Scorer.open(tmp_path / "r", store=tmp_path / "s")
    assert len(search(scorer, "a red square that no caption names", k=3).hits) == 3
    said = frevl("search", "--store", tmp_path / "s", "--run", tmp_path / "r", "--image", made.images / "3.png")
    assert said.code == 1
    assert "the vectors of 'bought-image' were imported, so images outside the store cannot be" in said.err


# ---- what it looks like


def test_the_command_writes_json_and_a_contact_sheet(made, dual, frevl, tmp_path):
    said = frevl("search", "--store", made.store.path, "--run", dual, "a red square", "-k", 2, "--images", made.images,
                 "--json", tmp_path / "out.json", "--html", tmp_path / "out.html")  # fmt: skip
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["query"] == "a red square"
    assert [hit["path"] for hit in record["hits"]] == [str(made.images / hit["id"]) for hit in record["hits"]]
    assert said.out.splitlines()[2].split()[0] == "1"
    assert record["hits"][0]["path"] in said.out.splitlines()[2]
    page = (tmp_path / "out.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|<script', page)


def test_a_contact_sheet_escapes_what_comes_from_data(made, dual):
    scorer = Scorer.open(dual, store=made.store)
    page = contact_sheet(search(scorer, '<script>alert("1")</script>', k=1))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "no image" in page


def test_the_public_name(made, dual):
    scorer = package.Scorer.open(dual, store=made.store)
    assert package.search(scorer, "a red square", k=1).hits == package.search(scorer, "a red square", k=1).hits
    searcher = Searcher(scorer)
    assert searcher.search("a red square", k=1).hits == package.search(scorer, "a red square", k=1).hits
