"""The service as a process: its documentation, its start, and a stop in the middle of requests."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from frevl.deployment.service.http import connection as service_connection
from frevl.deployment.service.http.connection import Connection
from served import runs

__all__ = ["runs"]  # a fixture

ROOT = Path(__file__).parents[3]


@pytest.fixture
def process(made, runs, tmp_path):
    """The command in a process of its own, on a free port; ``.url`` is where it answers."""
    ready = tmp_path / "ready.json"
    command = [Path(sys.executable).parent / "frevl", "serve", "--store", made.store.path, "--run", f"tiny={runs}/ask"]
    command += [
        "--run",
        f"captions={runs}/match",
        "--run",
        f"dual={runs}/find",
        "--port",
        "0",
        "--no-page",
        "--json",
        ready,
    ]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as started,
    ):
        try:
            said = started.stdout.readline()
            assert said.startswith("Ready at http://127.0.0.1:"), (tmp_path / "log").read_text()
            started.url = json.loads(ready.read_text())["url"]
            started.log = tmp_path / "log"
            yield started
        finally:
            started.kill()


@pytest.mark.slow
def test_the_examples_of_the_document_and_a_stop_in_the_middle_of_requests(process, made, tmp_path):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (example,) = re.findall(
        r"<!-- executed by tests/deployment/service/test_serving_process.py -->\n```bash\n(.*?)```", text, re.DOTALL
    )
    (tmp_path / "photo.png").write_bytes((made.images / "0.png").read_bytes())
    example = example.replace("http://127.0.0.1:8000", process.url).replace("curl -s ", "curl -sS --fail-with-body ")
    # Every answer ends without a line break: put one after each.
    example = example.replace("curl -sS", "curl -w '\\n' -sS")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stored, sent, scored, embedded, found, texts, models, state, *metrics = done.stdout.splitlines()
    assert json.loads(stored)["answers"][0]["probability"] == json.loads(sent)["answers"][0]["probability"]
    assert json.loads(scored)["task"] == "matching"
    assert len(json.loads(embedded)["images"][0]) == 64
    assert [one["name"] for one in json.loads(models)["models"]] == ["tiny", "captions", "dual"]
    assert len(json.loads(found)["hits"]) == 5
    assert json.loads(texts)["hits"][0]["id"] in made.store.texts
    assert json.loads(state) == {"status": "ready"}
    assert any(line.startswith("frevl_requests_total") for line in metrics)

    pairs = [{"image": image, "text": f"is the square red, {n}?"} for n, image in enumerate(made.store.image_ids)]
    outcomes = []

    def ask(_):
        """Ask until the service says that it stops, or takes no more connections."""
        with httpx.Client(base_url=process.url, timeout=30) as client:
            while True:
                try:
                    response = client.post("/v1/score", json={"pairs": pairs})
                except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError) as error:
                    # An idle connection may be closed just before the next request; an accepted one is answered.
                    outcomes.append(type(error).__name__)
                    return
                outcomes.append(response.status_code)
                if response.status_code != 200:
                    return
                assert len(response.json()["scores"]) == len(pairs)

    with ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(ask, n) for n in range(6)]
        while outcomes.count(200) < 12:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for one in asking:
            one.result()
    assert process.wait(20) == 0
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    answered = [line for line in lines if line["message"] == "request" and line.get("bytes", 0) > 1000]
    # Whatever reached a route was answered in full, and its client has got the answer.
    assert {line["status"] for line in answered} <= {200, 503}
    assert sum(line["status"] == 200 for line in answered) == outcomes.count(200)
    assert not [line for line in lines if line["level"] == "error"]


def test_a_port_that_is_taken_and_other_wrong_use(frevl, made, runs, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = frevl("serve", "--store", made.store.path, "--run", runs / "ask", "--port", port)
    assert said.code == 2
    assert f"Cannot listen on 127.0.0.1, port {port} (Address already in use); choose others with --host" in said.err
    for options, sentence in (
        (["--run", tmp_path / "none"], "expected a run"),
        (["--run", runs / "ask", "--run", f"ask={runs / 'match'}"], "the name 'ask' is already in use; choose another"),
        (["--run", runs / "ask", "--images", tmp_path / "none"], "no such folder; expected the folder of the images"),
        (["--run", runs / "ask", "--report", tmp_path / "none"], "no such file; expected the HTML file of a diagnosis"),
    ):
        said = frevl("serve", "--store", made.store.path, "--port", 0, *options)
        assert said.code in (1, 2)
        assert sentence in said.err
        assert "Traceback" not in said.err


@pytest.mark.slow
def test_a_connection_that_never_finishes_its_head_is_closed(monkeypatch):
    monkeypatch.setattr(service_connection, "_HEAD_SECONDS", 1.0)

    async def app(scope, receive, send):
        await asyncio.sleep(1.5)  # longer than a head may take: an answer may
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def talk(first, then=b"", after=0.02):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)
        if then:
            await asyncio.sleep(after)
            writer.write(then)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return answer

    async def run():
        nonlocal port
        config = uvicorn.Config(app, http=Connection, log_config=None, timeout_keep_alive=1)
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        async with server:
            assert await talk(b"GET / HTTP/1.1\r\nhost: x\r\n", b"x: y\r\n") == b""
            assert b"ok" in await talk(b"GET / HTTP/1.1\r\n", b"host: x\r\nconnection: close\r\n\r\n")
            assert await talk(b"") == b""
            # What still comes of a body after its answer keeps the connection open as long, not for ever.
            assert b"ok" in await talk(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n", b"ab", after=2)
            large = await talk(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000, b"b")
            assert large.startswith(b"HTTP/1.1 431 ")
            head, _, said = large.partition(b"\r\n\r\n")
            assert f"content-length: {len(said)}".encode() in head

    port = 0
    asyncio.run(run())


def test_the_command_line_loads_no_service():
    code = "import frevl.cli.main, sys; print(' '.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    # Nor numpy: half the time of ``frevl --help``.
    assert not loaded & {"fastapi", "uvicorn", "starlette", "prometheus_client", "pydantic", "numpy"}
    # Nor any room: each command imports what it needs when it runs.
    own = {name for name in loaded if name.startswith("frevl.") and not name.startswith("frevl.cli")}
    assert own == {"frevl.errors", "frevl.machine", "frevl.version"}  # threads are set before any library is loaded
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.slow
def test_a_relative_path_that_is_a_word_of_the_messages_leaves_them_alone(made, tmp_path):
    (tmp_path / "condition").symlink_to(made.store.path)
    command = [Path(sys.executable).parent / "frevl", "explore", "--store", "condition", "--no-labels", "--port", "0"]
    command += ["--json", "ready.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as started:
        try:
            assert started.stdout.readline().startswith("Ready at ")
            url = json.loads((tmp_path / "ready.json").read_text())["url"]
            answer = httpx.get(f"{url}/explore/images", params={"where": "nowhere = 1"})
        finally:
            started.kill()
    sentence = answer.json()["error"]["message"]
    assert sentence.startswith("The condition 'nowhere = 1' cannot be understood (there is no column 'nowhere')")
