"""The page on vector databases is executed: LanceDB (embedded) and Qdrant (local mode) find what a search finds."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import frevl
from frevl.cli.main import main
from frevl.training.training import train

PAGE = Path(__file__).parents[1] / "docs" / "search.md"


def blocks(language):
    marker = "<!-- executed by vectordb/test_vector_databases.py -->"
    return re.findall(rf"{marker}\n```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """A folder as the page has it, after its commands."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(made.store.path, folder / "STORE", ignore=shutil.ignore_patterns("vectors"))
    options = {"epochs": 2}
    train(folder / "STORE", made.captions_file, run=folder / "RUN/dual", task="matching", model="dual", options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in "".join(blocks("bash")).splitlines():
            patch.setattr(sys, "argv", shlex.split(line))
            with pytest.raises(SystemExit) as left:
                main()
            assert not left.value.code
    return folder


@pytest.mark.parametrize("database", ["lancedb", "qdrant_client"])
def test_the_database_finds_what_a_search_finds(folder, database, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (program,) = (block for block in blocks("python") if f"import {database}" in block or f"from {database}" in block)
    capsys.readouterr()
    exec(program, {})
    found = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    scorer = frevl.Scorer.open("RUN/dual", store="STORE")
    expected = frevl.search(scorer, "a red square", k=5, exact=True, copies=True).hits
    # Several images are equally near to the last digit of float16, so ids are compared by their similarity.
    own = scorer.image_vectors([id_ for id_, _ in found]) @ scorer.text_vectors(["a red square"])[0]
    nearest = [hit.similarity for hit in expected]
    assert own.tolist() == pytest.approx(nearest, abs=1e-3)
    assert [float(value) for _, value in found] == pytest.approx(nearest, abs=1e-3)
    assert len({id_ for id_, _ in found}) == 5
