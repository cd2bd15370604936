"""A service in a process of its own, for tests in a browser."""

import json
import subprocess
import sys
from contextlib import contextmanager

__all__ = ["running", "serving"]


@contextmanager
def running(world, command, *options):
    """Run a command that serves the store of a made world; yields the address and the process, which may be killed."""
    ready = world.folder / f"ready-{command}.json"
    ready.unlink(missing_ok=True)
    line = [sys.executable, "-m", "frevl", command, "--store", world.store.path, "--port", "0", "--json", ready]
    with subprocess.Popen([*line, *options], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout.readline().startswith("Ready at ")
            yield json.loads(ready.read_text())["url"], process
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def serving(world, *options, command="serve"):
    """Serve the store of a made world; yields the address."""
    with running(world, command, *options) as (url, process):
        yield url
    assert process.returncode == 0
