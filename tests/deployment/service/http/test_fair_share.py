"""Who gives way when the service is full: the longest wait of the client that uses the most."""

import asyncio
import gc
import threading
import weakref

import pytest

from frevl.deployment.service.http.connection import OpenConnections, allow_open_files
from frevl.deployment.service.http.fair_share import ASKING, FairShare, client_name
from frevl.deployment.service.http.limits import Keys, Limits, RefusedError
from frevl.deployment.service.http.metrics import Metrics
from frevl.deployment.service.http.middleware import CYCLE, Middleware
from frevl.deployment.service.queue import ModelQueue


class Request:
    """A request for `FairShare`."""

    def __init__(self):
        self.held, self.gone = 0, False

    def give_way(self):
        self.gone = True


def waiting(share, client, size=0):
    request = Request()
    share.begin_wait(client, request)
    share.hold(client, request, size)
    return request


def test_the_oldest_of_the_client_that_has_the_most_gives_way():
    share = FairShare(Limits(waiting_requests=5, client_share=1.0))
    small, large = share.enter("small"), share.enter("large")
    first = waiting(share, small)
    others = [waiting(share, large) for _ in range(5)]
    assert [one.gone for one in (first, *others)] == [False, True, False, False, False, False]
    waiting(share, small)
    assert [one.gone for one in (first, *others)] == [False, True, True, False, False, False]
    assert share.waiting == 5


def test_a_client_has_its_share_and_no_more():
    share = FairShare(Limits(requests=4, waiting_requests=10, held_bytes=1000, client_share=0.5))
    one, other = share.enter("one"), share.enter("other")
    requests = [waiting(share, one) for _ in range(7)]
    assert [request.gone for request in requests] == [True, True, False, False, False, False, False]
    for _ in range(2):
        share.begin_work(one)
    with pytest.raises(RefusedError, match="2 requests of this client are in progress, which is its share") as caught:
        share.begin_work(one)
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "client_limit", 1)
    for _ in range(2):
        share.begin_work(other)
    with pytest.raises(RefusedError, match="4 requests are in progress") as caught:
        share.begin_work(share.enter("third"))
    assert caught.value.status == 503
    # A request alone may hold more than the share of its client; further ones may not.
    worked_on = Request()
    share.hold(one, worked_on, 700)
    with pytest.raises(RefusedError, match="Too many large requests of this client") as caught:
        share.hold(one, Request(), 1)
    assert caught.value.status == 429
    with pytest.raises(RefusedError, match="Too many large requests are in progress") as caught:
        share.hold(other, Request(), 700)
    assert caught.value.status == 503


def test_bytes_of_those_who_wait_make_room_for_others():
    share = FairShare(Limits(held_bytes=1000, client_share=1.0))
    one, other = share.enter("one"), share.enter("other")
    requests = [waiting(share, one, 300) for _ in range(3)]
    share.hold(other, Request(), 350)
    assert [request.gone for request in requests] == [True, False, False]
    assert share.bytes == 950
    for request in requests:
        share.free(one, request)
    assert (share.bytes, one.bytes) == (350, 0)


def test_clients_are_forgotten_when_they_hold_nothing():
    share = FairShare(Limits())
    first, second = share.enter("x"), share.enter("x")
    assert first is second
    share.leave(first)
    assert share.enter("x") is first
    share.leave(first)
    share.leave(first)
    assert share._clients == {}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_what_tells_clients_apart(address, name):
    assert client_name(address) == name


def test_items_of_one_client_leave_room_in_the_queue():
    async def run():
        queue = ModelQueue(waiting_items=10, batch_items=1, client_share=0.5)
        door, begun = threading.Event(), threading.Event()

        def work(payloads):
            begun.set()
            door.wait()
            return payloads

        async def ask(client, items):
            ASKING.set(client)
            return await queue.submit(work, client, items=items)

        running = asyncio.create_task(ask("first", 1))
        await asyncio.to_thread(begun.wait)
        greedy = asyncio.create_task(ask("greedy", 4))
        await asyncio.sleep(0)
        with pytest.raises(
            RefusedError, match="4 of at most 5 items of this client are waiting for the model"
        ) as caught:
            await ask("greedy", 2)
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        modest = asyncio.create_task(ask("modest", 5))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="9 of at most 10 items are waiting for the model") as caught:
            await ask("third", 2)
        assert caught.value.status == 503
        greedy.cancel()
        await asyncio.sleep(0)
        assert queue._waiting_of == {"modest": 5}
        door.set()
        assert (await running, await modest) == ("first", "modest")
        assert queue._waiting_of == {}
        await asyncio.to_thread(queue.close)

    asyncio.run(run())


def test_files_for_connections_are_allowed_as_far_as_the_system_lets(monkeypatch):
    import resource

    asked = []
    for (soft, hard), connections, expected in (
        ((1024, 100_000), 2048, 2048),
        ((1024, 1024), 2048, 512),
        ((100, 100), 2048, 50),
        ((100_000, 100_000), 2048, 2048),
        ((1024, resource.RLIM_INFINITY), 2048, 2048),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, found=(soft, hard): found)
        monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
        assert allow_open_files(connections) == expected
    assert asked == [(2560, 100_000), (1024, 1024), (100, 100), (2560, resource.RLIM_INFINITY)]


class Made:
    """A connection for `OpenConnections`."""


def test_idle_connections_of_the_client_that_has_the_most_are_closed_first():
    closed = []

    def connection(name):
        made = Made()
        made.client_name, made.counted = name, True
        made.give_way = lambda: closed.append(made)
        return made

    everybody = OpenConnections(3)
    busy, idle, modest, late = (connection(name) for name in ("greedy", "greedy", "modest", "late"))
    everybody.add(busy)
    everybody.set_idle(busy, False)
    for one in (idle, modest, late):
        everybody.add(one)
    assert closed == [idle]
    everybody.set_idle(busy, True)
    everybody.add(connection("greedy"))
    assert closed == [idle, busy]
    for one in (modest, late, idle, busy):
        everybody.remove(one)
    assert everybody._total == 1


def test_nothing_of_a_request_waits_for_the_garbage_collection():
    """uvicorn's cycle knows the scope, so the scope must not know the cycle once it is answered."""

    class Cycle:
        more_body = response_complete = False

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})

    async def run():
        middleware = Middleware(app, limits=Limits(), keys=Keys(), metrics=Metrics())
        cycle = Cycle()
        cycle.scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [], "client": ("1.2.3.4", 5)}
        cycle.scope["extensions"] = {CYCLE: cycle}
        sent, gone = [], weakref.ref(cycle)

        async def send(message):
            sent.append(message["type"])

        await middleware(cycle.scope, None, send)
        del cycle
        return sent, gone() is None

    gc.disable()
    try:
        assert asyncio.run(run()) == (["http.response.start", "http.response.body"], True)
    finally:
        gc.enable()
