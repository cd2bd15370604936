"""The head of a cluster is killed: a sentence of ours before Ray ends the process, and nothing is lost."""

import os
import subprocess
import sys
import time

import pytest

import frevl
from conftest import Nodes
from frevl.store.upkeep.verification import verify
from made import make
from test_extraction import content, plain, source  # noqa: F401 - fixtures

SLOW = """
import time
import PIL.Image
opened = PIL.Image.open
def open(*arguments, **named):
    time.sleep(0.2)
    return opened(*arguments, **named)
PIL.Image.open = open
"""


@pytest.mark.slow
def test_a_head_that_is_killed_ends_all_with_a_sentence(source, plain, tmp_path):  # noqa: F811
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    world = make(tmp_path / "world", ["toy"])
    store, run = tmp_path / "store", tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-m", "frevl"]
    cluster = Nodes()
    try:
        cluster.add(4, PYTHONPATH=os.pathsep.join([str(tmp_path / "slow"), os.environ["PYTHONPATH"]]))
        ray = ["--ray", cluster.address, "--quiet"]
        pictures = ["--images", source / "images", "--pairs", source / "pairs.jsonl", "--encoder", "toy"]
        network = ["--task", "classification", "--model", "mlp", "--set", "epochs=100000", "--set", "patience=100000"]
        training = ["train", "--store", world.store.path, "--pairs", world.train_file, "--run", run, *network]
        extracting = [*command, "extract", *pictures, "--workers", "2", "--store", store, *ray]
        commands = [extracting, [*command, *training, "--workers", "2", *ray]]
        begun = [
            subprocess.Popen([str(word) for word in one], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for one in commands
        ]
        until = time.monotonic() + 120
        while not ((run / "log.jsonl").exists() and any((store / "commits").glob("towers*"))):
            assert time.monotonic() < until
            time.sleep(0.1)
        cluster.kill_head()
        said = [one.communicate(timeout=100) for one in begun]
    finally:
        cluster.shutdown()
    for process, (out, error) in zip(begun, said, strict=True):
        assert (process.returncode, out) == (1, "")
        last = error.strip().splitlines()[-1]
        assert last.startswith(f"frevl: --ray: the head of the cluster, {cluster.address}, has not answered for 1")
        assert "Traceback" not in error
    frevl.extract(store, images=source / "images", pairs=source / "pairs.jsonl", encoder="toy")
    assert content(store) == content(plain[0])
    assert verify(store) == []
    assert (run / "log.jsonl").read_text().count("epoch") >= 1
