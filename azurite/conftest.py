"""What a test with Azure's blobs gets: its emulator in a process of its own, on this machine, and a container.

Not part of plain ``pytest``, because it wants Azurite (``npm install azurite``), whose program ``azurite-blob`` it
finds in the search path: ``pytest azurite`` runs them.
"""

import base64
import hashlib
import hmac
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from datetime import UTC, datetime

import pytest

ACCOUNT = "devstoreaccount1"
# The key of every Azurite, from its documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="session")
def server():
    """The address of an emulator."""
    program = shutil.which("azurite-blob")
    assert program, "azurite-blob is not in the search path: npm install azurite"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen(
        [program, *options, "--blobPort", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/{ACCOUNT}"
    process.kill()
    process.wait()


@pytest.fixture
def container(server, monkeypatch, tmp_path):
    """A new container, and an environment in which Azure is the emulator."""
    for name in [name for name in os.environ if re.match("AZURE_|AWS_", name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", server)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))
    name = f"c{uuid.uuid4().hex[:12]}"
    create(server, name)
    return f"az://{name}"


def create(server, name):
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{key}:{value}" for key, value in headers.items())]
    signed = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"])
    digest = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{digest}", "Content-Length": "0"}
    asked = urllib.request.Request(f"{server}/{name}?restype=container", method="PUT", headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(asked) as answer:  # noqa: S310
            assert answer.status == 201
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from error
