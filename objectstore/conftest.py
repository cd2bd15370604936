"""What a test with an object store gets: a real S3 server in a process of its own, on this machine, and a bucket.

Not part of plain ``pytest``, because it wants the extra ``objectstore`` (moto): ``pytest objectstore`` runs them.
"""

import os
import re
import subprocess
import sys
import urllib.request
import uuid

import pytest

# The server of moto. Its first argument is how often it fails: of so many requests one is answered with 503, and the
# second, of so many one is cut in the middle. Which one is cut is drawn: else a command that makes as many requests
# each time would always lose the same. With a third it answers requests to Google's store, which has the same interface
# but for the names of headers.
SERVER = """
import random
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

busy, cut, count = int(sys.argv[1]), int(sys.argv[2]), 0
google = len(sys.argv) > 3
draw = random.Random(3).randrange
s3 = DomainDispatcherApplication(create_backend_app)

def as_s3(environ):  # a request to Google's XML interface
    key = "Credential=AKIAVISIBLE/20260101/us-east-1/s3/aws4_request"
    environ["HTTP_AUTHORIZATION"] = f"AWS4-HMAC-SHA256 {key}, SignedHeaders=host, Signature=0"
    for name in [name for name in environ if name.startswith("HTTP_X_GOOG_")]:
        value = environ.pop(name)
        if name == "HTTP_X_GOOG_IF_GENERATION_MATCH":
            assert value == "0", "only what does not exist may be written"
            environ["HTTP_IF_NONE_MATCH"] = "*"
        else:
            environ[name.replace("X_GOOG", "X_AMZ")] = value

def answer(environ, start):
    global count
    count += 1
    if busy and count % busy == 0:
        start("503 Slow Down", [("Content-Length", "0")])
        return [b""]
    if google:
        as_s3(environ)
    body = s3(environ, start)
    if cut and draw(cut) == 0 and environ["REQUEST_METHOD"] == "GET":
        whole = b"".join(body)
        return [whole[: len(whole) // 2]]
    return body

server = make_server("127.0.0.1", 0, answer, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


def serve(*faults):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, *map(str, faults or (0, 0))],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"


@pytest.fixture(scope="session")
def server():
    process, address = serve()
    yield address
    process.kill()
    process.communicate()


@pytest.fixture
def flaky():
    """Start servers that fail."""
    started = []

    def start(*faults):
        process, address = serve(*faults)
        started.append(process)
        return address

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """A new bucket, and an environment in which S3 is the server on this machine."""
    return new_bucket(server, monkeypatch, tmp_path)


def new_bucket(server, monkeypatch, tmp_path):
    for name in [name for name in os.environ if re.match("AWS_", name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAVISIBLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "VERYSECRET")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))
    name = f"b{uuid.uuid4().hex[:12]}"
    with urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")) as answer:  # noqa: S310
        assert answer.status == 200
    return f"s3://{name}"
