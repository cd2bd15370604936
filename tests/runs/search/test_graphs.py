"""An index in parts: each is on disk once made, and together they find what a single graph finds."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frevl.errors import StoreError
from frevl.runs.search.distances import nearest_of_many, nearest_rows
from frevl.runs.search.graphs import Graphs, grown_graphs, rows_of_a_graph
from frevl.runs.search.index import NeighbourIndex, build_index


class Vectors:
    """What an index asks of a `Shortlist`, from vectors that are made."""

    def __init__(self, folder, rows, dim=16):
        random = np.random.default_rng(5)
        made = random.standard_normal((1_000, dim)).astype(np.float32)  # the first rows are the same for any number
        self.all = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)[:rows]
        self.folder, self.generation, self.notes, self.usable = folder, "made", [], rows
        self.blocks = [self.all[:130], self.all[130:]]

    def __len__(self):
        return len(self.all)

    def alive(self):
        return None

    def take(self, rows):
        return self.all[rows]


def asked(count=40):
    queries = np.random.default_rng(6).standard_normal((count, 16)).astype(np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def files(folder):
    return {path.name: path.stat().st_ino for path in folder.glob("*.usearch")}


def test_parts_find_together_what_exact_search_finds(tmp_path, monkeypatch):
    monkeypatch.setattr("frevl.runs.search.graphs._WORTH_THREADS", 2)
    made = Vectors(tmp_path, 350)
    report = build_index(made, asked(), queries_of="made", graph_rows=100, threads=2)
    assert (report.rows, report.graphs) == (350, 4)
    assert report.recall >= 0.99
    assert "Indexed 350 rows in 4 parts in " in report.sentence()
    index = NeighbourIndex.open(made)
    assert [part.rows for part in index.graphs.parts] == [100, 100, 100, 50]
    hits = 0
    for query in asked():
        truth = nearest_rows(made.blocks, query, 10)
        found = index.nearest(query, 10)
        np.testing.assert_array_equal(index.nearest(query, 10, threads=4)[0], found[0])
        hits += len(set(found[0]) & set(truth[0]))
        assert all(found[1][:-1] >= found[1][1:])
    assert hits >= 0.99 * 400
    rows, _ = index.nearest(asked()[0], 1_000)  # more than there are
    assert sorted(rows) == list(range(350))


def test_neighbours_that_8_bits_cannot_tell_apart_are_found(tmp_path):
    """The more rows there are, the more of them are alike in 8 bits: then more candidates have to be compared."""
    made = Vectors(tmp_path, 900)
    random = np.random.default_rng(7)
    near = made.all[:6].astype(np.float32).repeat(150, 0) + 0.03 * random.standard_normal((900, 16), np.float32)
    made.all = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float16)
    made.blocks = [made.all[:130], made.all[130:]]
    queries = near[::9] + 0.006 * random.standard_normal((100, 16), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    report = build_index(made, queries, queries_of="made", graph_rows=300)
    assert report.graphs == 3
    assert report.recall >= 0.95


@pytest.mark.slow
def test_every_row_of_a_small_graph_is_found_however_many_threads_have_made_it(tmp_path):
    """Threads that add the first rows of a graph at once leave some of them without a link that leads there."""
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        graphs = grown_graphs(Vectors(folder, 1_000), None, threads=8)
        assert sorted(graphs.candidates(asked()[0], 1_000, 1_000)) == list(range(1_000))


def test_the_last_part_grows_until_it_is_full_and_no_other_is_written_again(tmp_path):
    build_index(Vectors(tmp_path, 350), asked(), queries_of="made", graph_rows=100)
    before = files(tmp_path)
    build_index(Vectors(tmp_path, 420), asked(), queries_of="made", graph_rows=100)
    after = files(tmp_path)
    kept = [f"index-{start}-100.usearch" for start in (0, 100, 200)]
    assert sorted(after) == sorted([*kept, "index-300-100.usearch", "index-400-20.usearch"])
    assert all(before[name] == after[name] for name in kept)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import frevl.runs.search.graphs as graphs
from test_graphs import Vectors, asked
from frevl.runs.search.index import build_index

write, parts = graphs.replace_file, []
def dies_at_the_third(path, save):
    parts.append(path)
    if len(parts) == 3:
        path.with_name(f".{path.name}.1").write_bytes(b"half a graph")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, save)
graphs.replace_file = dies_at_the_third
build_index(Vectors(Path(sys.argv[1]), 350), asked(), queries_of="made", graph_rows=100)
"""


@pytest.mark.slow
def test_a_kill_loses_one_part(tmp_path):
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, here], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    made = Vectors(tmp_path, 350)
    assert NeighbourIndex.open(made) is None  # nothing was measured yet, so searches are exact
    before = files(tmp_path)
    assert sorted(before) == ["index-0-100.usearch", "index-100-100.usearch"]
    report = build_index(made, asked(), queries_of="made", graph_rows=100)
    assert (report.rows, report.graphs) == (350, 4)
    assert {name: files(tmp_path)[name] for name in before} == before
    assert list(tmp_path.glob(".*.usearch.*")) == []


def test_parts_of_other_rows_are_not_taken_up(tmp_path):
    made = Vectors(tmp_path, 200)
    build_index(made, asked(), queries_of="made", graph_rows=100)
    before, made.generation = files(tmp_path), "other rows"
    assert NeighbourIndex.open(made) is None
    build_index(made, asked(), queries_of="made", graph_rows=100)
    assert all(files(tmp_path)[name] != inode for name, inode in before.items())


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_part_is_made_again_with_those_behind_it(tmp_path, damage):
    made = Vectors(tmp_path, 350)
    build_index(made, asked(), queries_of="made", graph_rows=100)
    before, broken = files(tmp_path), tmp_path / "index-100-100.usearch"
    if damage == "gone":
        broken.unlink()
    else:
        content = broken.read_bytes()
        broken.write_bytes(content[:-1000] if damage == "cut" else b"x" * len(content))
    assert NeighbourIndex.open(made) is None
    assert [note.endswith("run frevl store index") for note in made.notes] == ([] if damage == "gone" else [True])
    report = build_index(made, asked(), queries_of="made", graph_rows=100)
    assert (report.rows, report.graphs) == (350, 4)
    assert files(tmp_path)["index-0-100.usearch"] == before["index-0-100.usearch"]


def test_an_index_of_one_file_as_it_was_written_before_still_opens_and_grows(tmp_path):
    made = Vectors(tmp_path, 250)
    graphs = grown_graphs(made, None, most=250)
    (tmp_path / graphs.parts[0].file).rename(tmp_path / "index-250.usearch")
    (tmp_path / "index-parts.json").unlink()
    former = {"format": 1, "rows": 250, "scale": graphs.scale, "expansion": 64, "generation": "made"}
    (tmp_path / "index.json").write_text(json.dumps({**former, "file": "index-250.usearch"}))
    index = NeighbourIndex.open(made)
    assert (index.rows, index.expansion) == (250, 64)
    assert set(index.nearest(asked()[0], 5)[0]) == set(nearest_rows(made.blocks, asked()[0], 5)[0])
    before = files(tmp_path)["index-250.usearch"]
    report = build_index(Vectors(tmp_path, 300), asked(), queries_of="made", graph_rows=100)
    assert (report.rows, report.graphs) == (300, 2)
    assert files(tmp_path)["index-250.usearch"] == before


def test_a_full_disk_is_a_sentence_and_keeps_the_parts_before(tmp_path):
    made = Vectors(tmp_path, 350)
    build_index(Vectors(tmp_path, 100), asked(), queries_of="made", graph_rows=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(
            StoreError, match="the index cannot be written .*; free some space, and try again: finished parts"
        ):
            build_index(made, asked(), queries_of="made", graph_rows=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert sorted(files(tmp_path)) == ["index-0-100.usearch"]
    assert NeighbourIndex.open(made).rows == 100


def test_one_pass_for_many_queries_finds_what_a_pass_for_each_finds(monkeypatch):
    made, queries = Vectors(None, 1_000), asked(30)
    allowed = np.random.default_rng(7).random(1_000) < 0.3
    for rows in (64, 8_192):
        monkeypatch.setattr("frevl.runs.search.distances._PIECE_OF_MANY", rows)
        for k in (1, 10, 2_000):
            for only in (None, allowed):
                found = nearest_of_many(made.blocks, queries, k, allowed=only)
                expected = [nearest_rows(made.blocks, query, k, allowed=only)[0] for query in queries]
                assert [set(one) for one in found] == [set(one) for one in expected]
    assert [len(one) for one in nearest_of_many([], queries, 3)] == [0] * 30


def test_a_part_takes_about_a_gibibyte_in_whole_parts_of_vectors():
    assert rows_of_a_graph(512) == 24 * 65_536
    assert rows_of_a_graph(1_536) == 9 * 65_536
    assert rows_of_a_graph(10**7) == 65_536


def test_graphs_that_do_not_follow_each_other_are_refused(tmp_path):
    parts = grown_graphs(Vectors(tmp_path, 200), None, most=100).parts
    with pytest.raises(ValueError, match="a graph of other rows"):
        Graphs.open(tmp_path, parts[1:], 1.0)
