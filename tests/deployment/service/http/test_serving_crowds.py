"""A service crowded by slow clients: everyone else is answered, and health checks always are."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import pytest
from starlette.responses import StreamingResponse

from frevl.deployment.service.app import Application
from frevl.deployment.service.http import connection as service_connection
from frevl.deployment.service.http.limits import Limits
from frevl.deployment.service.models import Service
from frevl.runs.scorer import Scorer
from served import listening, runs

__all__ = ["runs"]  # a fixture

GOOD = json.dumps({"pairs": [{"image": "0.png", "text": "is the square red?"}]}).encode()
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
SECONDS = 30  # until a test gives up; nothing here takes a tenth of it


def head(path, length, *more):
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


SCORE = head("/v1/score", len(GOOD), "connection: close") + GOOD


def finish(work):
    """Run to the end; what hangs is a failure."""

    async def within():
        async with asyncio.timeout(SECONDS):
            return await work

    return asyncio.run(within())


@asynccontextmanager
async def crowd(port, count, first=b""):
    """Connections from one address, each of which sends something and then waits."""
    opened = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            opened.append((reader, writer))
        await asyncio.sleep(0.2)
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def answered(port, request, source="127.0.0.1"):
    """Return the status that a new connection is answered with, and the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        writer.write(request)
        answer = await reader.read()
    finally:
        await shut(writer)
    return int(answer.split()[1]), answer


async def shut(writer):
    """Close a connection now: what was not sent would keep it open when the loop has ended."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def ended(opened):
    """Return how many connections the service has answered or closed."""
    counted = 0
    for reader, _ in opened:
        try:
            async with asyncio.timeout(0.001):
                await reader.read(1)
            counted += 1
        except TimeoutError:
            pass
        except ConnectionResetError:
            counted += 1
    return counted


async def read_on(reader):
    """Read until there is an end that is none: an answer that is cut off."""
    while True:
        assert await reader.read(1 << 20)


async def send_on(writer):
    while True:
        writer.write(bytes(1000))
        await writer.drain()
        await asyncio.sleep(0.01)


async def pieces(size: int):
    """Answer in pieces without an end, as the export of a curation does that is very long."""

    async def lines():
        while True:
            yield bytes(size)
            await asyncio.sleep(0.02)

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@pytest.fixture
def crowded(made, runs):
    """Serve with limits: ``crowded(limits)`` yields the port and the application."""
    opened = []

    def serve(limits, **options):
        service = Service({"ask": Scorer.open(runs / "ask", store=made.store)}, limits=limits)
        app = Application(service)
        app.api.get("/pieces")(pieces)
        context = listening(app, **options)
        port = context.__enter__()
        opened.append(context)
        return SimpleNamespace(port=port, app=app)

    yield serve
    for context in opened:
        context.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        b"",  # nothing at all
        b"POST /v1/score HTTP/1.1\r\nhost: x\r\nx-",  # half a head
        head("/v1/score", 1000) + b"{",  # a slow body
        b"GET /pieces?size=9 HTTP/1.1\r\nhost: x\r\n\r\n",  # an answer in pieces
    ],
)
def test_whoever_waits_takes_nobodys_place(crowded, first):
    served = crowded(Limits(requests=20, waiting_requests=40), connections=60)

    async def run():
        async with crowd(served.port, 150, first) as opened:
            for source in ("127.0.0.1", "127.0.0.2"):
                for request in (HEALTH, SCORE):
                    assert (await answered(served.port, request, source))[0] == 200
            assert await ended(opened) >= 150 - 60

    finish(run())


def test_large_bodies_that_never_end_give_way(crowded):
    served = crowded(Limits(body_bytes=1000, held_bytes=10_000))

    async def run():
        async with crowd(served.port, 30, head("/v1/score", 1000) + b" " * 999):
            assert served.app._middleware.share.bytes <= 10_000
            assert (await answered(served.port, SCORE))[0] == 200
            assert (await answered(served.port, SCORE, "127.0.0.2"))[0] == 200
        while served.app._middleware.share.bytes:
            await asyncio.sleep(0.01)

    finish(run())


def test_a_client_that_reads_nothing_is_cut_off(crowded):
    served = crowded(Limits(answer_seconds=0.2))
    body = json.dumps({"images": ["0.png"] * 1024}).encode()

    async def run():
        async with crowd(served.port, 1, b"") as ((reader, writer),):
            reader._transport.pause_reading()
            for _ in range(30):  # more answers than the system keeps for a client
                writer.write(head("/v1/embed", len(body)) + body)
                await asyncio.sleep(0.02)
            share = served.app._middleware.share
            while share.requests or share.waiting or share.bytes:
                await asyncio.sleep(0.05)
            reader._transport.resume_reading()
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await read_on(reader)

    finish(run())


@pytest.mark.slow
@pytest.mark.parametrize("size", [1 << 16, 1 << 20])
def test_an_answer_in_pieces_that_nobody_reads_is_cut_off(crowded, size):
    served = crowded(Limits(answer_seconds=0.3))

    async def run():
        request = f"GET /pieces?size={size} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        async with crowd(served.port, 1) as ((reader, writer),):
            reader._transport.pause_reading()
            writer.write(request)
            share = served.app._middleware.share
            while not share.waiting:
                await asyncio.sleep(0.01)
            while share.waiting:
                await asyncio.sleep(0.05)
            reader._transport.resume_reading()
            received = bytearray()
            with suppress(ConnectionResetError):
                while piece := await reader.read(1 << 20):
                    received += piece
            assert received.startswith(b"HTTP/1.1 200 ")
            assert not received.endswith(b"\r\n0\r\n\r\n")  # it does not look complete

    finish(run())


@pytest.mark.slow
@pytest.mark.parametrize("close", ["", "connection: close"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_gets_its_answer(crowded, close, chunked):
    """The client reads only after it has sent everything, as most do: closing at once would lose the answer."""
    served = crowded(Limits(body_bytes=1000))
    size, piece = 20 << 20, bytes(1 << 20)

    async def run():
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        first = head("/v1/score", size, *([close] if close else []))
        writer.write(
            first.replace(f"content-length: {size}".encode(), b"transfer-encoding: chunked") if chunked else first
        )
        for _ in range(size // len(piece)):
            writer.write(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
            await writer.drain()
        answer = await reader.read()  # until the service has closed its side
        await shut(writer)
        return answer

    answer = finish(run())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b"may have at most 1,000 bytes; send smaller images" in answer


def test_what_is_no_http_and_a_large_head_get_their_answers_too(crowded):
    served = crowded(Limits())

    async def run():
        for first, status in (
            (b"\x16\x03\x01\x02\x00" + bytes(1 << 20), 400),
            (b"GET / HTTP/1.1\r\nx: " + b"a" * (1 << 20), 431),
        ):
            assert (await answered(served.port, first))[0] == status

    finish(run())


def test_a_client_that_never_stops_sending_is_cut_off_at_last(crowded, monkeypatch):
    monkeypatch.setattr(service_connection, "_LINGER_SECONDS", 0.2)
    monkeypatch.setattr(service_connection, "_LINGER_STEP", 0.05)
    served = crowded(Limits(body_bytes=1000))

    async def run():
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(head("/v1/score", 10**15))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await send_on(writer)
        await shut(writer)

    finish(run())


def test_many_requests_in_a_row_on_one_connection_are_not_kept(crowded):
    served = crowded(Limits())

    async def run():
        async with crowd(served.port, 1, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 200) as ((reader, _),):
            assert await ended([(reader, None)]) == 1
        assert (await answered(served.port, HEALTH))[0] == 200

    finish(run())
