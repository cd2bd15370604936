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
from frevl.runs.search.searching import Searcher, index_store, search
from frevl.runs.search.vectors import Shortlist
from frevl.store.commits.unfinished import Work
from frevl.store.extraction.extract import extract
from frevl.store.importing.vectors import import_embeddings
from frevl.store.upkeep.removal import compact, remove


def by_scoring_all(scorer, pairs):
    """Positions of pairs, the best first: every one is scored."""
    return np.argsort(-scorer.score(pairs), kind="stable")


# ---- the ranking


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    *first, only = found.notes
    assert (len(found.hits), only) == (120, "Only 120 images can be found, fewer than the requested 200.")
    assert [f"'frevl extract {more} --encoder toy', begun 20" in note for note in first] == [True] * (where == "append")
    extract(store, images=more, encoder=["toy"])
    again = search(Scorer.open(run, store=store), "a red square", k=200)
    assert (again.searched, len(again.notes)) == (121, 1)
    folder = Shortlist(scorer, "image").folder
    assert len(list(folder.glob("*.npy"))) == len(json.loads((folder / "state.json").read_text())["parts"])


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_search_in_a_store_that_is_not_complete_says_so_first(world):
    scorer, store, _ = world
    Work(store, "frevl import more.npy").begin()
    found = search(scorer, "a red square", k=3)
    assert found.notes[0].startswith("'frevl import more.npy', begun 20")
    assert index_store(scorer)[1][0] == found.notes[0]
    Work(store, "frevl import more.npy").end()
    assert not any("has not finished" in note for note in search(scorer, "a red square", k=3).notes)
