"""A store that grows while it is served: new ids become known, and no answer changes or is mixed up."""

import asyncio
import threading
import time

import pytest
from PIL import Image

from frevl.deployment.service import store_refresh as renewal
from frevl.deployment.service.http.limits import Limits
from frevl.deployment.service.models import Service
from frevl.deployment.service.served_model import ServedModel
from frevl.errors import StoreError
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.store.upkeep.removal import compact, remove
from frevl.training.training import train
from made import make
from served import client_of, refused


@pytest.fixture
def world(tmp_path):
    """A small world of its own, because these tests write to its store, and two runs."""
    world = make(tmp_path / "world", ["toy"], count=24)
    for name, task, pairs, model in (
        ("ask", "classification", world.train_file, "linear"),
        ("find", "matching", world.captions_file, "dual"),
    ):
        train(world.store, pairs, run=tmp_path / name, task=task, model=model)
    return world, tmp_path


def grow(world, name, colour):
    Image.new("RGB", (40, 40), colour).save(world.images / name)
    extract(world.store.path, images=world.images, pairs=[], encoder=["toy"])


def score(client, *ids):
    pairs = [{"image": id_, "text": "is the square red?"} for id_ in ids]
    return client.http.post("/v1/score", json={"model": "ask", "pairs": pairs})


@pytest.mark.slow
def test_ids_that_are_added_while_it_serves_are_known_and_nothing_else_changes(world, monkeypatch):
    world, runs = world
    monkeypatch.setattr(renewal, "_SECONDS", 0.0)
    old = world.store.image_ids[:7]
    with client_of(world, runs, names=("ask", "find")) as client:
        before = score(client, *old).json()["scores"]
        seen, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                seen.append(score(client, *old).json()["scores"])

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        try:
            refused(score(client, "new.png"), 404, "unknown_image", "The store has no image 'new.png'")
            grow(world, "new.png", "purple")
            after = score(client, "new.png", *old)
        finally:
            stop.set()
            for thread in asking:
                thread.join()
        assert after.status_code == 200, after.text
        fresh = Scorer.open(runs / "ask", store=world.store.path)
        expected = fresh.predict([(id_, "is the square red?") for id_ in ("new.png", *old)])
        for said, right in zip(after.json()["scores"], expected, strict=True):
            assert (said["label"], said["probability"]) == (right.label, pytest.approx(right.probability, abs=1e-5))
        assert len(seen) > 3
        for scores in seen:
            assert [one["probability"] for one in scores] == pytest.approx([one["probability"] for one in before])
        assert client.http.get("/v1/models").json()["images"] == 25
        grow(world, "newer.png", "orange")  # nobody names it, and still it is found
        found = client.http.post("/v1/search", json={"text": "a red square", "k": 26}).json()
        assert {"new.png", "newer.png"} < {hit["id"] for hit in found["hits"]}
        found = client.http.post("/v1/search", json={"image": "new.png", "k": 25}).json()
        assert found["searched"] == 25  # all but itself


@pytest.mark.slow
def test_it_looks_at_most_every_two_seconds(world, monkeypatch):
    world, runs = world
    assert renewal._SECONDS == 2
    monkeypatch.setattr(renewal, "_SECONDS", 600.0)  # on a busy machine a request takes seconds
    looks = []
    newer = renewal._newer
    monkeypatch.setattr(renewal, "_newer", lambda *of: looks.append(of[0].path) or newer(*of))
    with client_of(world, runs, names=("ask",)) as client:
        assert score(client, world.store.image_ids[0]).status_code == 200
        assert looks == []  # nobody asked for an id that is not there
        for _ in range(5):
            assert score(client, "no.png").status_code == 404
    assert looks == [world.store.path]


@pytest.mark.slow
def test_what_is_removed_while_it_serves_is_soon_unknown(world, monkeypatch):
    world, runs = world
    monkeypatch.setattr(renewal, "_SECONDS", 0.0)
    first, second, *others = world.store.image_ids
    with client_of(world, runs, names=("ask", "find")) as client:
        right = score(client, *others[:4]).json()["scores"]
        remove(world.store.path, ids=[first])
        found = client.http.post("/v1/search", json={"text": "a red square", "k": 30}).json()
        assert sorted(hit["id"] for hit in found["hits"]) == sorted([second, *others])
        refused(score(client, first), 404, "unknown_image", f"The store has no image '{first}'")
        refused(client.http.post("/v1/search", json={"image": first}), 404, "unknown_image", first)
        # Somebody who only asks for what is known has it looked up in the background.
        remove(world.store.path, ids=[second])
        for _ in range(1000):
            if score(client, second).status_code == 404:
                break
        else:
            raise AssertionError("the service never noticed")
        compact(world.store.path)
        assert score(client, *others[:4]).json()["scores"] == right
        assert client.http.get("/v1/models").json()["images"] == len(others)
        remove(world.store.path, where="id LIKE '%'")
        for _ in range(1000):  # a look that began before may still be under way
            found = client.http.post("/v1/search", json={"text": "a red square"}).json()
            if not found["hits"]:
                break
        assert (found["hits"], found["searched"]) == ([], 0)


@pytest.mark.slow
def test_a_large_store_that_another_process_compacts_is_served_on(world, monkeypatch):
    """Ids of a large store are looked up in its files, which a compaction deletes."""
    world, runs = world
    monkeypatch.setattr("frevl.store.lance_tables._MOST_IN_MEMORY", 0)
    first, second, *others = world.store.image_ids
    with client_of(world, runs, names=("ask", "find")) as client:
        right = score(client, *others[:4]).json()["scores"]
        remove(world.store.path, ids=[first])
        compact(world.store.path)
        assert score(client, *others[:4]).json()["scores"] == right
        assert client.http.post("/v1/search", json={"image": second, "k": 3}).status_code == 200
        monkeypatch.setattr(renewal, "_SECONDS", 0.0)
        refused(score(client, first), 404, "unknown_image", f"The store has no image '{first}'")
        found = client.http.post("/v1/search", json={"text": "a red square", "k": 30}).json()
        assert sorted(hit["id"] for hit in found["hits"]) == sorted([second, *others])  # switched, though it had moved
        assert client.http.get("/v1/models").json()["images"] == len(others) + 1


@pytest.mark.slow
def test_an_image_that_is_removed_between_the_check_and_the_score_is_unknown(world, monkeypatch):
    world, runs = world
    monkeypatch.setattr(renewal, "_SECONDS", 0.0)
    gone = world.store.image_ids[0]
    with client_of(world, runs, names=("ask",)) as client:
        original = Service.check_images
        checks = []

        async def check(service, ids):
            await original(service, ids)
            if not checks:
                remove(world.store.path, ids=[gone])
                await service._store_refresh.look()
            checks.append(ids)

        monkeypatch.setattr(Service, "check_images", check)
        refused(score(client, gone), 404, "unknown_image", f"The store has no image '{gone}'")


@pytest.mark.slow
def test_a_newest_version_that_cannot_be_served_leaves_the_old_one(world, monkeypatch, caplog):
    world, runs = world
    monkeypatch.setattr(renewal, "_SECONDS", 0.0)
    with client_of(world, runs, names=("ask",)) as client:
        before = score(client, world.store.image_ids[0]).json()
        looking = client.service._store_refresh._looking
        while looking is not None and not looking.done():  # the next request would wait for this look, of a sound store
            time.sleep(0.01)

        def damaged(path):
            raise StoreError("the table 'images' cannot be read")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "open", damaged)
            refused(score(client, "new.png"), 404, "unknown_image", "no image 'new.png'")
        assert "cannot be served: the table 'images' cannot be read" in caplog.text
        assert score(client, world.store.image_ids[0]).json() == before


@pytest.mark.slow
def test_a_run_that_joins_just_after_the_store_has_changed_reads_the_new_one(world):
    world, runs = world

    async def join(service):
        former = ServedModel("find", Scorer.open(runs / "find", store=service.store))
        grow(world, "new.png", "purple")
        newer = Store.open(world.store.path)
        switching = asyncio.create_task(service._switch_to(newer))
        joining = asyncio.create_task(service.queue.submit(service._join, former, items=1))
        await asyncio.sleep(0)  # both wait in the queue now
        while "find" not in service.models:
            time.sleep(0.01)  # the event loop learns of the first only after the second is done
        await asyncio.gather(switching, joining)
        assert service.store is newer
        return [model.scorer.store is newer for model in service.models.values()]

    service = Service({"ask": Scorer.open(runs / "ask", store=world.store.path)}, limits=Limits())
    try:
        assert asyncio.run(join(service)) == [True, True]
    finally:
        service.close()
