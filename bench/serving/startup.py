"""The time that ``import frevl`` and ``frevl --help`` take, as whole processes.

python bench/serving/startup.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from frevl.provenance import hardware

COMMANDS = {
    "python alone": [sys.executable, "-c", "pass"],
    "import frevl": [sys.executable, "-c", "import frevl, sys; assert 'torch' not in sys.modules"],
    "frevl --help": [sys.executable, "-m", "frevl", "--help"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(7):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        json.dumps({"what": "start-up, seconds", "median": medians, "all": seconds, "hardware": hardware()}, indent=2)
    )


if __name__ == "__main__":
    main()
