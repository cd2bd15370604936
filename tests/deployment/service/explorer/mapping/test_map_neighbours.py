"""The map that keeps neighbours together, and clusters: computed in a process of its own, cached, refused."""

import base64
import sys
import time

import numpy as np
import pytest

from explored import copied, explored
from frevl.deployment.service.explorer.mapping import neighbours
from frevl.deployment.service.explorer.mapping.clusters import cluster_numbers
from served import refused

# In place of the library, which is an extra and takes a minute: the first two numbers of each embedding.
_LIBRARY = """
import numpy as np
class PaCMAP:
    def __init__(self, n_components, random_state): assert (n_components, random_state) == (2, 0)
    def fit_transform(self, vectors, init): return vectors[:, :2].astype(np.float32)
"""


@pytest.fixture
def mapped(made, tmp_path):
    place = copied(made, tmp_path)
    with explored(place.store, place.images) as found:
        found.place = place
        yield found


@pytest.fixture
def library(tmp_path, monkeypatch):
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "pacmap.py").write_text(_LIBRARY)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path / "library"), *sys.path]))
    monkeypatch.setattr(neighbours.NeighbourMaps, "offered", True)
    return tmp_path / "library" / "pacmap.py"


def ask(mapped):
    for _ in range(600):
        found = mapped.http.get("/explore/map", params={"method": "neighbours"}).json()
        if not found["computing"]:
            return found
        time.sleep(0.05)
    raise AssertionError("it is computed for ever")


@pytest.mark.slow
def test_neighbours_are_computed_in_a_process_and_kept(mapped, library, monkeypatch):
    assert mapped.http.get("/explore/map").json()["methods"] == ["components", "neighbours"]
    found = ask(mapped)
    assert (found["problem"], found["count"], found["method"]) == ("", 120, "neighbours")
    points = np.frombuffer(base64.b64decode(found["points"]), "<f4").reshape(-1, 2)
    rows = mapped.explorer._newest_rows()
    assert np.abs(points).max() == pytest.approx(1)
    assert np.corrcoef(points[:, 0], rows.vectors[:, 0].astype(np.float32))[0, 1] == pytest.approx(1, abs=1e-4)
    body = {"key": found["key"], "method": "neighbours", "points": [0, 3]}
    shown = mapped.http.post("/explore/map/images", json=body).json()["images"]
    assert [one["id"] for one in shown] == [rows.ids[0], rows.ids[3]]
    colours = mapped.http.get("/explore/map/colours", params={"by": "label", "method": "neighbours"}).json()
    assert len(colours["values"]) == 120
    library.write_text("raise SystemExit('not again')")
    with explored(mapped.place.store) as again:
        assert again.http.get("/explore/map", params={"method": "neighbours"}).json()["points"] == found["points"]


@pytest.mark.slow
def test_a_library_that_fails_is_said_and_the_other_map_stays(mapped, library):
    library.write_text("raise ValueError('no such thing')")
    said = ask(mapped)
    assert said["problem"] == "The map could not be computed: ValueError: no such thing."
    refused(
        mapped.http.get("/explore/map/colours", params={"method": "neighbours"}), 409, "no_map", "could not be computed"
    )
    assert mapped.http.get("/explore/map").json()["count"] == 120


@pytest.mark.slow
def test_without_the_library_it_is_not_offered_and_words_say_how_to_get_it(mapped, monkeypatch):
    monkeypatch.setattr(neighbours.NeighbourMaps, "offered", False)
    assert mapped.http.get("/explore/map").json()["methods"] == ["components"]
    assert "pip install 'frevl[map]'" in ask(mapped)["problem"]


@pytest.mark.slow
def test_a_service_that_stops_ends_the_computation(made, tmp_path, library):
    library.write_text("import time; time.sleep(60)")
    with explored(copied(made, tmp_path / "place").store) as here:
        assert here.http.get("/explore/map", params={"method": "neighbours"}).json()["computing"]
        while here.explorer.neighbours._process is None:
            time.sleep(0.02)
        process = here.explorer.neighbours._process
    process.wait(10)
    assert process.returncode


def test_clusters_are_those_that_were_planted_the_largest_first():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 31))
    truth = np.repeat([0, 1, 2], [50, 20, 30])
    vectors = centres[truth] + 0.1 * rng.standard_normal((100, 31))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    found = cluster_numbers(vectors, np.arange(100), 3)
    assert found.tolist() == np.array([0, 2, 1])[truth].tolist()
    some = np.arange(0, 100, 7)
    assert len(cluster_numbers(vectors, some, 3)) == len(some)


def test_what_is_alike_is_one_cluster_and_nothing_has_none():
    assert cluster_numbers(np.ones((5, 7), np.float16) / np.sqrt(7), np.arange(5), 12).tolist() == [0] * 5
    assert cluster_numbers(np.zeros((0, 7), np.float16), np.zeros(0, int), 12).tolist() == []


@pytest.mark.slow
def test_the_map_is_coloured_by_cluster(mapped):
    found = mapped.http.get("/explore/map/colours", params={"by": "cluster"}).json()
    assert len(found["values"]) == 120
    assert found["names"][0].startswith("cluster 1: ")
    assert sum(int(name.split(": ")[1].split()[0]) for name in found["names"]) == 120


@pytest.mark.slow
def test_a_page_of_another_site_starts_no_computation(mapped, library):
    other = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    by = {"method": "neighbours"}
    said = [mapped.http.get(f"/explore/map{route}", params=by, headers=other) for route in ("", "/colours")]
    body = {"key": mapped.http.get("/explore/map", headers=other).json()["key"], "points": [0], **by}
    for one in (*said, mapped.http.post("/explore/map/images", json=body, headers=other)):
        refused(one, 403, "other_site", "start work")
    assert mapped.explorer.neighbours._key == ""


@pytest.mark.slow
def test_a_failure_is_told_and_after_a_while_tried_again(mapped, library, monkeypatch):
    right = library.read_text()
    library.write_text("raise ValueError('no memory')")
    assert "no memory" in ask(mapped)["problem"]
    library.write_text(right)
    assert "no memory" in ask(mapped)["problem"]
    monkeypatch.setattr(neighbours, "_FAILED_SECONDS", -1.0)
    found = mapped.http.get("/explore/map", params={"method": "neighbours"}).json()
    assert (found["computing"], found["problem"]) == (True, "")
    assert ask(mapped)["count"] == 120
