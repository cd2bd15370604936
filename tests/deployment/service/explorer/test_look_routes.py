"""Looking into a store over HTTP, without a run: counts, images, thumbnails, search, and changes meanwhile."""

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_folders import clip_retrieval, unit
from explored import copied, explored
from frevl.deployment.service.app import Application
from frevl.deployment.service.explorer.asking.reports import Reports
from frevl.deployment.service.explorer.rows import Rows
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.store.upkeep.removal import remove
from served import based, refused, runs

__all__ = ["runs"]


@pytest.fixture(scope="module")
def looked(made, tmp_path_factory):
    place = copied(made, tmp_path_factory.mktemp("looked"))
    with explored(place.store, place.images) as found:
        found.place = place
        yield found


@pytest.mark.slow
def test_the_overview_counts_what_is_there(looked, made):
    seen = looked.http.get("/explore/overview").json()
    assert (seen["images"], seen["texts"]) == (120, len(made.store.texts))
    assert seen["picture_bytes"] == sum(path.stat().st_size for path in made.images.iterdir())
    assert [(one["name"], one["used"], one["image_dim"]) for one in seen["encoders"]] == [("toy", True, 64)]
    assert (seen["rejects"], seen["copies"], seen["without_embedding"]) == (0, 0, 0)
    assert seen["store_bytes"]["images.lance"] > 10_000
    assert (seen["searches_text"], seen["searches_pictures"], seen["pictures"], seen["writable"]) == (
        False,
        True,
        True,
        True,
    )
    assert "Text search with the encoder toy is not possible" in seen["notes"][0]


@pytest.mark.slow
def test_rejects_are_counted_by_reason(made, tmp_path):
    place = copied(made, tmp_path)
    for number in range(3):
        (place.images / f"bad{number}.png").write_bytes(b"no picture")
    extract(place.store, images=place.images, encoder=["toy"])
    with explored(place.store) as looked:
        seen = looked.http.get("/explore/overview").json()
        assert seen["rejects"] == sum(one["count"] for one in seen["reasons"]) == 3
        assert {one["id"] for of in seen["reasons"] for one in of["examples"]} == {f"bad{n}.png" for n in range(3)}


def test_pictures_come_in_pages_in_the_order_of_the_store(looked, made):
    ids = made.store.ids("image")
    found = looked.http.get("/explore/images?start=100&count=50").json()
    assert (found["total"], found["start"]) == (120, 100)
    assert [one["id"] for one in found["images"]] == ids[100:]
    assert looked.http.get("/explore/images?start=120").json()["images"] == []
    assert looked.http.get("/explore/images?start=1000000000000").json()["images"] == []


def test_pictures_are_filtered_by_sql_and_by_label(looked, made):
    ids = [id_ for id_ in made.store.ids("image") if id_.startswith("1")]
    where = {"where": "id LIKE '1%'"}
    assert [one["id"] for one in looked.http.get("/explore/images", params=where).json()["images"]] == ids
    label(looked, ids[0], "cat")
    label(looked, ids[1], "cat", by="bob")
    label(looked, ids[1], "dog")

    def shown(**filters):
        return [one["id"] for one in looked.http.get("/explore/images", params=filters).json()["images"]]

    assert sorted(shown(shown="labelled")) == sorted(ids[:2])
    assert shown(shown="disputed") == [ids[1]]
    assert sorted(shown(label="cat")) == sorted(ids[:2])
    assert shown(label="nothing") == []
    assert shown(shown="unlabelled", count=500) == [one for one in made.store.ids("image") if one not in ids[:2]]
    assert shown(shown="labelled", **where, label="dog") == [ids[1]]
    refused(looked.http.get("/explore/images?where=nonsense"), 422, "invalid", "Columns of the images of STORE")
    for name in (ids[0], ids[1]):
        for by in ("ada", "bob"):
            label(looked, name, None, by=by)


def label(looked, image, name, by="ada"):
    body = {"by": by, "labels": [{"image": image, "label": name}]}
    assert looked.http.post("/explore/label", json=body).status_code == 200


def test_a_thumbnail_is_made_once_and_kept(looked, monkeypatch):
    first = looked.http.get("/explore/thumbnail?image=3.png&side=160")
    assert first.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(first.content)).size == (40, 40)
    monkeypatch.setattr(
        "frevl.deployment.service.explorer.thumbnail_cache.thumbnail", lambda *_, **__: pytest.fail("made again")
    )
    assert looked.http.get("/explore/thumbnail?image=3.png&side=160").content == first.content


@pytest.mark.slow
def test_a_picture_that_changed_gets_a_new_thumbnail(made, tmp_path):
    place = copied(made, tmp_path)
    with explored(place.store, place.images) as looked:
        before = looked.http.get("/explore/thumbnail?image=3.png").content
        Image.new("RGB", (50, 30), "white").save(place.images / "3.png")
        after = looked.http.get("/explore/thumbnail?image=3.png").content
        assert Image.open(io.BytesIO(after)).size == (50, 30)
        assert after != before


@pytest.mark.slow
def test_pictures_that_cannot_be_shown_get_a_sentence(made, tmp_path):
    place = copied(made, tmp_path)
    (place.images / "0.png").unlink()
    (place.images / "1.png").write_bytes(b"broken")
    with explored(place.store, place.images) as looked:
        refused(looked.http.get("/explore/thumbnail?image=0.png"), 404, "no_picture", "was it moved?")
        refused(looked.http.get("/explore/thumbnail?image=1.png"), 422, "bad_image", "cannot be read")
        refused(looked.http.get("/explore/thumbnail?image=away.png"), 404, "unknown_image", "no image 'away.png'")
        refused(looked.http.get("/explore/thumbnail?image=../secret"), 404, "unknown_image", "no image")
        refused(looked.http.get("/explore/thumbnail?image=3.png&side=7"), 422, "invalid", "Field 'side'")
    with explored(place.store) as looked:
        refused(
            looked.http.get("/explore/thumbnail?image=3.png"), 404, "no_pictures", "start the service with --images DIR"
        )


def find(looked, **asked):
    return looked.http.post("/explore/find", json=asked)


def test_more_like_this_is_exactly_the_nearest(looked, made):
    ids = made.store.ids("image")
    vectors = made.store.read_images(ids)
    found = find(looked, image=ids[5], k=7).json()
    likeness = vectors @ vectors[5]
    likeness[5] = -2
    order = np.argsort(-likeness, kind="stable")[:7]
    assert [one["id"] for one in found["images"]] == [ids[row] for row in order]
    assert [one["similarity"] for one in found["images"]] == pytest.approx(likeness[order].tolist(), abs=2e-3)
    assert (found["searched"], found["by"]) == (120, "encoder")


def test_a_picture_that_is_sent_finds_itself(looked, made):
    content = (made.images / "7.png").read_bytes()
    found = find(looked, upload="x", uploads={"x": based(content)}, k=3).json()
    assert found["images"][0]["id"] == "7.png"
    assert found["images"][0]["similarity"] == pytest.approx(1, abs=2e-3)
    request = {"request": (None, '{"upload": "x", "k": 3}', "application/json"), "x": ("any", content)}
    assert looked.http.post("/explore/find", files=request).json() == found


def test_a_filter_holds_for_a_search(looked):
    found = find(looked, image="3.png", where="id LIKE '1%'", k=5).json()["images"]
    assert len(found) == 5
    assert all(one["id"].startswith("1") for one in found)


def test_searches_that_cannot_be_are_refused_in_words(looked):
    refused(find(looked), 422, "invalid", "one of 'text', 'image' and 'upload', found 0")
    refused(find(looked, image="3.png", text="a"), 422, "invalid", "found 2")
    long = "Field 'text': text should have at most 2,000 characters, found 2,001."
    refused(find(looked, text="a" * 2001), 422, "invalid", long)
    refused(find(looked, image="away.png"), 404, "unknown_image", "no image 'away.png'")
    refused(find(looked, upload="x"), 404, "unknown_upload", "not in the request")
    refused(find(looked, upload="x", uploads={"x": based(b"no picture")}), 422, "bad_image", "cannot be read")
    refused(find(looked, image="3.png", uploads={"x": "aaaa"}), 422, "invalid", "upload 'x' is not used")
    refused(find(looked, text="a red square"), 409, "cannot_embed", "The encoder toy cannot search for this text")
    refused(find(looked, image="3.png", where="nonsense"), 422, "invalid", "Columns of the images")


@pytest.mark.slow
def test_a_served_run_searches_by_texts_where_the_encoder_cannot(made, runs, tmp_path):
    place = copied(made, tmp_path)
    scorer = Scorer.open(runs / "find", store=Store.open(place.store))
    with explored(place.store, scorers={"find": scorer}) as looked:
        assert looked.http.get("/explore/overview").json()["searches_text"] is True
        found = find(looked, text="a red square", k=5).json()
        assert (found["by"], len(found["images"])) == ("run", 5)
        direct = looked.http.post("/v1/search", json={"text": "a red square", "k": 5}).json()
        assert [one["id"] for one in found["images"]] == [one["id"] for one in direct["hits"]]


@pytest.mark.slow
def test_an_encoder_of_one_space_searches_by_texts_of_the_store(tmp_path):
    clip_retrieval(tmp_path / "clip")
    import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="clip", common_space=True)
    with explored(tmp_path / "store") as looked:
        seen = looked.http.get("/explore/overview").json()
        assert (seen["searches_text"], seen["searches_pictures"]) == (True, False)
        store = Store.open(tmp_path / "store")
        likeness = store.read_images(store.image_ids) @ store.read_texts(["caption 3"])[0]
        found = find(looked, text="caption 3", k=1).json()["images"]
        assert found[0]["id"] == store.image_ids[int(likeness.argmax())]
        refused(find(looked, text="never seen"), 409, "cannot_embed", "the vectors were imported")
        upload = {"x": based(b"any")}
        refused(
            find(looked, upload="x", uploads=upload), 409, "cannot_embed", "The vectors of this store were imported"
        )


@pytest.mark.slow
def test_a_served_run_searches_by_texts_that_an_imported_encoder_cannot_read(made, runs, tmp_path):
    place = copied(made, tmp_path)
    store = Store.open(place.store)
    for of in ("image", "text"):
        ids = store.ids(of)
        np.save(tmp_path / f"{of}.npy", unit(len(ids)).astype(np.float16))
        (tmp_path / f"{of}.json").write_text(json.dumps(list(ids)))
        import_embeddings(
            tmp_path / f"{of}.npy",
            store=place.store,
            encoder="clip",
            of=f"{of}s",
            ids=tmp_path / f"{of}.json",
            common_space=True,
        )
    scorer = Scorer.open(runs / "find", store=Store.open(place.store))
    with explored(place.store, scorers={"find": scorer}, encoder="clip") as looked:
        found = find(looked, text="a text outside the store", k=5).json()
        assert (found["by"], len(found["images"])) == ("run", 5)
        assert find(looked, text=ids[0], k=5).json()["by"] == "encoder"


@pytest.mark.slow
def test_a_store_of_images_alone_says_that_it_has_no_texts_of_its_encoder(tmp_path):
    clip_retrieval(tmp_path / "clip", texts=False)
    import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="clip", common_space=True)
    with explored(tmp_path / "store") as looked:
        (note,) = [one for one in looked.http.get("/explore/overview").json()["notes"] if "Text search" in one]
        assert "the store had no texts of this encoder when" in note
        assert "common space" not in note
        refused(find(looked, text="a"), 409, "cannot_embed", "the store has none of its texts")


@pytest.mark.slow
def test_copies_are_one_hit(made, tmp_path):
    place = copied(made, tmp_path)
    shutil.copy(place.images / "3.png", place.images / "same.png")
    extract(place.store, images=place.images, encoder=["toy"])
    with explored(place.store) as looked:
        upload = {"upload": "x", "uploads": {"x": based((place.images / "3.png").read_bytes())}, "k": 4}
        first = find(looked, **upload).json()["images"][0]
        assert sorted([first["id"], *first["copies"]]) == ["3.png", "same.png"]
        assert len(find(looked, **upload, fold=False).json()["images"]) == 4
        assert "same.png" not in [one["id"] for one in find(looked, image="3.png").json()["images"]]
        assert looked.http.get("/explore/overview").json()["copies"] == 2


@pytest.mark.slow
def test_a_store_that_grows_and_shrinks_under_the_page(made, tmp_path, monkeypatch):
    monkeypatch.setattr("frevl.deployment.service.store_refresh._SECONDS", 0.0)
    place = copied(made, tmp_path)
    with explored(place.store, place.images) as looked:
        assert looked.http.get("/explore/images").json()["total"] == 120
        find(looked, image="3.png")
        Image.new("RGB", (40, 40), "black").save(place.images / "new.png")
        extract(place.store, images=place.images, encoder=["toy"])
        assert looked.http.get("/explore/images").json()["total"] == 121
        assert find(looked, image="new.png").status_code == 200
        label(looked, "3.png", "cat")
        remove(place.store, ids=["3.png"])
        body = {"by": "ada", "labels": [{"image": "3.png", "label": "dog"}]}
        refused(looked.http.post("/explore/label", json=body), 404, "unknown_image", "no image '3.png'")
        assert looked.http.get("/explore/images").json()["total"] == 120
        refused(find(looked, image="3.png"), 404, "unknown_image", "no image '3.png'")
        assert looked.http.get("/explore/images?shown=labelled").json()["total"] == 0
        assert '"3.png"' in looked.http.get("/explore/labels/export").text  # nothing is lost
        kept = sorted(path.name for path in (place.store / "explore").glob("vectors-*"))
        assert len(kept) == 1  # of the newest version


def test_vectors_are_kept_and_a_damaged_file_is_made_again(made, tmp_path):
    place = copied(made, tmp_path)
    store = Store.open(place.store)
    (tower,) = store.select_towers("image")
    rows = Rows(store, tower, keep=True)
    expected = made.store.read_images(rows.ids).astype(np.float16)
    np.testing.assert_array_equal(rows.vectors, expected)
    path = rows.kept("vectors", ".npy")
    assert isinstance(Rows(store, tower, keep=True).vectors, np.memmap)
    os.truncate(path, 200)
    np.testing.assert_array_equal(Rows(store, tower, keep=True).vectors, expected)
    path.unlink()
    np.testing.assert_array_equal(Rows(store, tower, keep=False).vectors, expected)
    assert not path.exists()


def test_the_page_is_sent_with_a_policy_that_runs_nothing_else(looked):
    assert looked.http.get("/", follow_redirects=False).headers["location"] == "/explore/"
    page = looked.http.get("/explore/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    for name in ("index.js", "index.css", "licences.txt"):
        assert looked.http.get(f"/explore/page/{name}").status_code == 200
    assert "svelte" in looked.http.get("/explore/page/licences.txt").text
    for name in ("..%2Fexplorer.py", "away.js", "%2e%2e", "index.html%00"):
        assert looked.http.get(f"/explore/page/{name}").status_code == 404


def test_without_a_run_the_other_routes_say_so(looked):
    body = {"pairs": [{"image": "0.png", "text": "x"}]}
    refused(looked.http.post("/v1/score", json=body), 409, "no_model", "start the service with --run RUN")
    refused(looked.http.post("/v1/search", json={"text": "x"}), 409, "wrong_task", "No model here can search")
    assert looked.http.get("/v1/models").json()["models"] == []


@pytest.mark.slow
def test_every_body_is_described_in_the_document_also_beside_a_report(looked, tmp_path):
    (tmp_path / "report.html").write_text("<h1>report</h1>")
    reports = Reports(files=[tmp_path / "report.html"])
    app = Application(looked.service, explorer=looked.explorer, reports=reports, opens_explorer=True)
    document = app.api.openapi()
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert {"FindRequest", "LabelsRequest", "ScoreRequest"} <= named
    assert named <= set(document["components"]["schemas"])


def test_every_route_is_in_the_documents_and_every_documented_route_is_there(looked):
    own = {"/", "/docs", "/explore", "/explore/", "/openapi.json"}  # pages, the document itself, and a prefix
    given = looked.http.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, methods in given.items() for method in methods}
    told = set()
    for page in ("serving.md", "explore.md"):
        for line in (Path(__file__).parents[4] / "docs" / page).read_text(encoding="utf-8").splitlines():
            method = None
            for word in re.findall(r"`([^`]+)`", line.split(" | ")[0]) if line.startswith("| `") else []:
                verb, _, path = word.rpartition(" ")
                method = verb or method
                if path.startswith("/") and method is not None:
                    told.add((method, path.split("?")[0]))
    assert {one for one in told if one[1] not in own} == routes
