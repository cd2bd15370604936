"""The map over HTTP: principal components, computed once; colours; the images of points."""

import base64

import numpy as np
import pytest
from sklearn.decomposition import PCA

from explored import copied, explored
from frevl.deployment.service.explorer.mapping import projection
from frevl.deployment.service.explorer.mapping.projection import principal_plane
from frevl.training.classification.teaching import teach
from served import refused


@pytest.fixture
def mapped(made, tmp_path):
    place = copied(made, tmp_path)
    with explored(place.store, fit=teach) as found:
        found.place = place
        yield found


def points_of(mapped):
    record = mapped.http.get("/explore/map").json()
    return record, np.frombuffer(base64.b64decode(record["points"]), "<f4").reshape(-1, 2)


def label(mapped, image, name, by="ada"):
    body = {"by": by, "labels": [{"image": image, "label": name}]}
    assert mapped.http.post("/explore/label", json=body).status_code == 200


@pytest.mark.parametrize("widest", [2_048, 4])
def test_the_plane_is_that_of_scikit_learn(monkeypatch, widest):
    monkeypatch.setattr(projection, "_WIDEST", widest)
    monkeypatch.setattr(projection, "_AT_ONCE", 50)
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((211, 13)) * np.array([9, 5, *[1] * 11]) + 3).astype(np.float32)
    drawn = np.arange(0, 211, 2)
    points, explained = principal_plane(vectors, drawn)
    judge = PCA(2, svd_solver="full").fit(vectors[drawn])
    theirs = judge.transform(vectors[drawn])
    np.testing.assert_allclose(explained, judge.explained_variance_ratio_, rtol=1e-4)
    for axis in (0, 1):  # up to sign, shift and the one scale
        assert abs(np.corrcoef(points[:, axis], theirs[:, axis])[0, 1]) > 0.9999
    assert np.abs(points).max() == pytest.approx(1)
    assert np.ptp(points[:, 0]) / np.ptp(points[:, 1]) == pytest.approx(
        np.ptp(theirs[:, 0]) / np.ptp(theirs[:, 1]), rel=1e-3
    )


@pytest.mark.parametrize(("n", "width"), [(0, 5), (1, 5), (7, 1)])
def test_what_has_no_plane_is_a_point(n, width):
    points, explained = principal_plane(np.ones((n, width), np.float32), np.arange(n))
    assert points.tolist() == [[0, 0]] * n
    assert explained == (0, 0)


def test_equal_pictures_are_one_point():
    points, _ = principal_plane(np.ones((9, 4), np.float32), np.arange(9))
    assert np.isfinite(points).all()
    assert np.ptp(points) == 0


@pytest.mark.slow
def test_the_map_is_computed_once_and_kept(mapped, monkeypatch):
    record, points = points_of(mapped)
    assert (record["count"], record["total"], points.shape) == (120, 120, (120, 2))
    monkeypatch.setattr(projection, "principal_plane", lambda *_: pytest.fail("computed again"))
    mapped.explorer._views.clear()
    assert points_of(mapped)[0] == record


@pytest.mark.slow
def test_a_damaged_map_is_computed_again(mapped):
    record, _ = points_of(mapped)
    (path,) = (mapped.place.store / "explore").glob("map-*.npz")
    path.write_bytes(b"damaged")
    mapped.explorer._views.clear()
    assert points_of(mapped)[0] == record


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 10, 100, 400, -1, "bytes"])
def test_a_map_that_was_cut_off_is_computed_again(mapped, cut):
    record, _ = points_of(mapped)
    (path,) = (mapped.place.store / "explore").glob("map-*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + b"\xff" * 9 + whole[309:] if cut == "bytes" else whole[:cut])
    mapped.explorer._views.clear()
    assert points_of(mapped)[0] == record
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_a_damaged_compressed_map_is_computed_again(mapped):
    record, _ = points_of(mapped)
    (path,) = (mapped.place.store / "explore").glob("map-*.npz")
    with np.load(path) as kept:
        np.savez_compressed(path, **kept)
    whole = path.read_bytes()
    for at in range(50, 400, 50):
        path.write_bytes(whole[:at] + b"\xff" * 9 + whole[at + 9 :])
        mapped.explorer._views.clear()
        assert points_of(mapped)[0] == record


@pytest.mark.slow
def test_more_pictures_than_can_be_drawn_are_thinned(mapped, monkeypatch):
    monkeypatch.setattr(projection, "MOST_POINTS", 50)
    record, points = points_of(mapped)
    assert (record["count"], record["total"], len(points)) == (50, 120, 50)
    asked = {"key": record["key"], "points": [0, 49]}
    ids = [one["id"] for one in mapped.http.post("/explore/map/images", json=asked).json()["images"]]
    store_ids = mapped.service.store.ids("image")
    assert store_ids.index(ids[0]) < store_ids.index(ids[1])


@pytest.mark.slow
def test_points_lead_to_their_pictures(mapped):
    record, _ = points_of(mapped)
    ids = mapped.service.store.ids("image")
    label(mapped, ids[7], "cat")
    found = mapped.http.post("/explore/map/images", json={"key": record["key"], "points": [7, 3]}).json()["images"]
    assert [(one["id"], one["labels"]) for one in found] == [(ids[7], {"ada": "cat"}), (ids[3], {})]
    old = {"key": "old", "points": [1]}
    refused(mapped.http.post("/explore/map/images", json=old), 409, "store_changed", "reload the map")
    beyond = {"key": record["key"], "points": [120]}
    refused(mapped.http.post("/explore/map/images", json=beyond), 422, "invalid", "The map has 120 points")


@pytest.mark.slow
def test_points_are_coloured_by_label_and_by_what_the_classifier_says(mapped):
    ids = mapped.service.store.ids("image")
    while mapped.http.get("/explore/teach").json()["busy"]:
        pass
    refused(mapped.http.get("/explore/map/colours?by=doubt"), 409, "not_taught", "requires a classifier. Label at")
    for number in range(8):
        label(mapped, ids[number], "ab"[number % 2])
    label(mapped, ids[0], "b", by="bob")
    found = mapped.http.get("/explore/map/colours").json()
    assert found["names"] == ["a", "b"]
    assert found["values"] == [-2, 1, 0, 1, 0, 1, 0, 1, *[-1] * 112]
    while mapped.http.get("/explore/teach").json()["busy"]:
        pass
    for by in ("guess", "doubt", "probability"):
        values = mapped.http.get(f"/explore/map/colours?by={by}&of=a").json()["values"]
        assert len(values) == 120
        assert min(values) >= 0
        assert max(values) <= (1 if by == "guess" else 255)
    refused(mapped.http.get("/explore/map/colours?by=probability&of=x"), 409, "not_taught", "knows no class 'x'")
