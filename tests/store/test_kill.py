"""``kill -9`` at any moment: the next extraction continues, and the result shows no trace of the kill."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify

pytestmark = pytest.mark.slow

COMMIT_ROWS = 4
IMAGES, TEXTS = 48, 22

# The command line, in a process that kills itself some milliseconds into its n-th commit (of any kind), and that writes
# down what it embeds. Small files are merged after 4 commits here, so that merging is interrupted too.
DOOMED = """
import os, signal, sys, threading, time
import lance
import frevl.store.commits.table_writer
from frevl.cli.main import main
from frevl.encoders.toy import ToyImageTower, ToyTextTower

log, fatal_call, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
del sys.argv[1:4]
frevl.store.commits.table_writer._SMALL_FRAGMENTS = 4
calls = 0

def kill_soon():
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)

def fatal(owner, name):
    original = getattr(owner, name)
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == fatal_call:
            threading.Thread(target=kill_soon).start()
            if delay == 0:
                time.sleep(9)
        return original(*arguments, **options)
    setattr(owner, name, call)

fatal(lance, "write_dataset")
fatal(lance.LanceDataset, "add_columns")
fatal(lance.LanceDataset, "cleanup_old_versions")
fatal(sys.modules["lance.dataset"].MergeInsertBuilder, "execute")
fatal(sys.modules["lance.dataset"].DatasetOptimizer, "compact_files")

def counted(tower):
    original, asked = tower.embed, set()
    def embed(self, prepared):
        if self.name in asked:  # the first ones are the canaries
            with open(log, "a") as lines:
                lines.write(f"{self.name}\\n" * len(prepared))
        asked.add(self.name)
        return original(self, prepared)
    tower.embed = embed

counted(ToyImageTower)
counted(ToyTextTower)
main()
"""


@pytest.fixture
def files(tmp_path, draw):
    images = draw(tmp_path / "images", range(IMAGES))
    (images / "broken.jpg").write_bytes(b"no picture")
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"image": f"{number}.png", "text": f"words of {number} " + "many " * (number % 5)} for number in range(TEXTS)
    ]
    pairs.write_text("\n".join([*map(json.dumps, rows), "no pair"]))
    return images, pairs


def command(files, store, encoder, tokens, log, fatal_call=0, delay=0.0):
    arguments = [
        "extract",
        "--images",
        files[0],
        "--pairs",
        files[1],
        "--store",
        store,
        "--encoder",
        encoder,
        "--quiet",
    ]
    arguments += ["--commit-rows", COMMIT_ROWS, *(["--tokens", "--grid", "2x2"] if tokens else [])]
    return [sys.executable, "-c", DOOMED, *map(str, [log, fatal_call, delay, *arguments])]


def extracted(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def killed_within(*arguments):
    """Whether the process killed itself; it may also have nothing to do, or too little for so many commits."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    return done.returncode != 0


def kill_after(seconds, *arguments):
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def content(path):
    """Every embedding that is in a store, exact, by id and tower."""
    if not (path / "towers.lance").is_dir():
        return {}
    store = Store.open(path)
    said = {}
    for modality in ("image", "text"):
        ids, states = store.ids(modality), store.states(modality)
        assert len(ids) == len(set(ids))
        for tower in store.select_towers(modality):
            present = [id_ for id_, has in zip(ids, states[f"has:{tower.name}"], strict=True) if has]
            if not present:
                continue
            values, mask = store.read(modality, present, [tower])
            for row, id_ in enumerate(present):
                hashed = states["content_hash"][ids.index(id_)]
                said[modality, id_, tower.name] = (hashed, values[row][mask[row]].tobytes())
    return said


@pytest.mark.parametrize("tokens", [False, True])
def test_killed_many_times_the_store_is_that_of_an_undisturbed_run(tmp_path, files, tokens):
    undisturbed = tmp_path / "undisturbed"
    for encoder in ("toy", "toy2"):
        extracted(files, undisturbed, encoder, tokens, tmp_path / "undisturbed.log")
    reference = content(undisturbed)
    assert len(reference) == 2 * IMAGES + TEXTS

    rng = random.Random(17 + tokens)
    store, log = tmp_path / "store", tmp_path / "killed.log"
    kills, before = 0, {}
    for encoder in ("toy", "toy2"):
        # At any time after the start, then in the middle of commits, ever later ones.
        kill_after(rng.uniform(0, 0.7), files, store, encoder, tokens, log)
        for fatal_call in (rng.randint(1, 5), rng.randint(5, 9), rng.randint(9, 15), rng.randint(9, 20)):
            delay = rng.choice([0, 0.001, 0.002, 0.004, 0.008])
            kills += killed_within(files, store, encoder, tokens, log, fatal_call, delay)
            # What was there is there; what is there is right; what is not there is merely missing.
            now = content(store)
            assert before.items() <= now.items() <= reference.items()
            problems = verify(store) if now else []
            assert all("lack an embedding" in problem for problem in problems)
            before = now
        extracted(files, store, encoder, tokens, log)
        before = content(store)
    assert kills >= 6
    assert before == reference
    assert verify(store) == []
    opened, other = Store.open(store), Store.open(undisturbed)
    assert opened.fingerprint == other.fingerprint
    assert sorted(opened.rejects(), key=str) == sorted(other.rejects(), key=str)
    assert len(opened.rejects()) == 2
    assert sorted(opened.image_ids) == sorted(other.image_ids)
    ids = opened.image_ids
    assert opened.read_images(ids).tobytes() == other.read_images(ids).tobytes()
    # A kill costs the batch in flight and no more.
    embedded = Counter(log.read_text().split())
    assert embedded.total() <= len(reference) + (kills + 2) * COMMIT_ROWS
    assert all(embedded[tower] >= count for tower, count in Counter(key[2] for key in reference).items())
