"""Fixtures for every test: fixed seeds, no network, small images, the command line in this process."""

import os
import random
import socket
import sys
from pathlib import Path
from typing import NamedTuple

# Small networks are as fast on one thread, and spinning threads of several processes would slow all of them down.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from captioned import captioned
from made import made, made_tokens, made_twice
from named import named
from one_side import one_side
from pretrained import pretrained

__all__ = ["captioned", "made", "made_tokens", "made_twice", "named", "one_side", "pretrained"]

# The same examples in every run, no folder of examples left behind, and nothing that depends on the machine's load.
settings.register_profile(
    "frevl", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("frevl")


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Random numbers that a test draws without a seed of its own are the same in every run."""
    random.seed(20250804)
    np.random.seed(20250804)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(20250804)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Connections that leave this machine fail."""

    def guarded(connect):
        def checked(self, address):
            local = self.family not in (socket.AF_INET, socket.AF_INET6) or address[0] in (
                "localhost",
                "127.0.0.1",
                "::1",
            )
            if not local:
                raise AssertionError(f"a test tried to connect to {address}")
            return connect(self, address)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


def picture(number: int, size: tuple[int, int] = (11, 7)) -> Image.Image:
    """Draw an image of noise; every number gives another one."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def draw():
    """Write images: ``draw(folder, [0, 1])`` makes ``0.png`` and ``1.png``, or with ``seed`` other ones."""

    def write(folder: Path, numbers, seed: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            picture(1000 * seed + number).save(folder / f"{number}.png")
        return folder

    return write


class Said(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def frevl(monkeypatch, capfd):
    """Call the command line in this process: ``frevl("extract", "--store", path).code``."""
    from frevl.cli.main import main

    def call(*arguments) -> Said:
        monkeypatch.setattr(sys, "argv", ["frevl", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code or 0
        captured = capfd.readouterr()
        return Said(code, captured.out, captured.err)

    return call
