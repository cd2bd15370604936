"""A service on the synthetic store, for tests."""

import base64
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from starlette.testclient import TestClient

from frevl.deployment.service.app import Application
from frevl.deployment.service.explorer.asking.reports import Reports
from frevl.deployment.service.http.limits import Keys, Limits
from frevl.deployment.service.models import Service
from frevl.deployment.service.start import service_config
from frevl.runs.scorer import Scorer
from frevl.training.training import train

__all__ = ["based", "client_of", "listening", "refused", "reranking_run", "runs", "served"]


_TRAINED: dict[Path, Path] = {}


@pytest.fixture(scope="session")
def runs(made, tmp_path_factory):
    """Runs of the made world.

    ``ask`` answers questions, ``match`` scores captions, ``find`` searches; ``look`` reads images alone, ``read``
    texts.
    """
    if made.folder in _TRAINED:  # a fixture that several files import is made once per file
        return _TRAINED[made.folder]
    folder = _TRAINED[made.folder] = tmp_path_factory.mktemp("runs")
    for name, task, pairs in (("ask", "classification", made.train_file), ("match", "matching", made.captions_file)):
        train(
            made.store,
            pairs,
            run=folder / name,
            task=task,
            model="tiny",
            options={"layers": 1, "epochs": 2, "batch_size": 64},
        )
    (folder / "ask" / "posterior.safetensors").unlink()  # as a run of an earlier version: it has no doubt
    train(made.store, made.captions_file, run=folder / "find", task="matching", model="dual", options={"epochs": 2})
    for name, side in (("look", "image"), ("read", "text")):
        train(made.store, made.train.only((side,)), run=folder / name, task="classification", model="linear")
    return folder


def reranking_run(store, captions, folder):
    """Train a run that reranks, and let hubness weigh so much that both orders differ."""
    run = train(
        store, captions, run=folder / "trained", task="matching", model="tiny", first_stage="dual",
        options={"layers": 1, "epochs": 1, "batch_size": 64},
    )  # fmt: skip
    weights = replace(run.network.weights, image_hubness=-3.0, text_hubness=-0.25)
    run.network = run.network.weighed(weights, 20)
    run.network_settings, run.path = run.network.settings, folder / "rerank"
    run.save()
    return run.path


@contextmanager
def listening(app, *, connections=0):
    """Serve an application on loopback, in a thread, as `serve` does; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = uvicorn.Server(service_config(app, connections))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield taken.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def client_of(made, runs, *, limits=None, keys=(), report=None, names=("ask", "match", "find"), trust=False):
    """Serve the runs in this process: ``.http`` asks, ``.service`` and ``.scorers`` are what answers."""
    scorers = {name: Scorer.open(runs / name, store=made.store) for name in names}
    service = Service(scorers, limits=limits or Limits())
    app = Application(service, keys=Keys(keys), reports=Reports(files=[] if report is None else [report]))
    with TestClient(app, raise_server_exceptions=trust) as http:
        yield SimpleNamespace(http=http, service=service, scorers=scorers, app=app)


@pytest.fixture(scope="module")
def served(made, runs):
    with client_of(made, runs) as client:
        yield client


def based(content):
    """Base64, as JSON holds it."""
    return base64.b64encode(content).decode()


def refused(response, status, code, sentence):
    """Check that a request was refused with one sentence, an id, and nothing of the server's inside."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"code", "message", "request_id"}
    assert error["code"] == code
    assert sentence in error["message"], error["message"]
    assert response.headers["x-request-id"] == error["request_id"]
    assert response.headers["content-type"] == "application/json"
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500
    for leak in ("Traceback", "site-packages", "/src/", ".py"):
        assert leak not in error["message"]
