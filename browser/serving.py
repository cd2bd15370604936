"""A service in a process of its own, for tests in a browser."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

__all__ = ["AXE", "serious", "serving"]

AXE = Path(__file__).parents[1] / "web" / "node_modules" / "axe-core" / "axe.min.js"


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


def serious(page):
    """Return what axe-core finds serious or critical, in words."""
    assert AXE.is_file(), "axe-core is not there: run scripts/build_page"
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then((found) => found.violations)")
    return [
        f"{one['id']}: {one['help']}: {node['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
