"""A service in a process of its own, for tests in a browser."""

import json
import subprocess
import sys
from contextlib import contextmanager

__all__ = ["serving"]


@contextmanager
def serving(world, *options, command="serve"):
    """Serve the store of a made world; yields the address."""
    ready = world.folder / f"ready-{command}.json"
    ready.unlink(missing_ok=True)
    line = [sys.executable, "-m", "frevl", command, "--store", world.store.path, "--port", "0", "--json", ready]
    with subprocess.Popen([*line, *options], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout.readline().startswith("Ready at ")
            yield json.loads(ready.read_text())["url"]
        finally:
            process.terminate()
            assert process.wait(60) == 0
