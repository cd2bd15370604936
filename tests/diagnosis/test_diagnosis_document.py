"""The page on diagnosis, executed: its command, its Python, and what it names."""

import json
import re
import shlex
from pathlib import Path

import pytest

from frevl.diagnosis.findings import SECTIONS
from frevl.diagnosis.model_specs import MODEL_SPECS
from frevl.diagnosis.performance.skills import RULES
from frevl.diagnosis.verdict import KINDS
from planted import FASTEST

pytestmark = pytest.mark.slow


# ---------------------------------------------------------------------------------------- document

DOCUMENT = Path(__file__).parents[2] / "docs" / "diagnosis.md"


def executed(language):
    marked = rf"<!-- executed by tests/diagnosis/test_diagnosis_document.py -->\n```{language}\n(.*?)```"
    (block,) = re.findall(marked, DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    return block


@pytest.fixture
def newcomer(made, tmp_path, monkeypatch):
    """A folder with the files that the document's examples name."""
    (tmp_path / "STORE").symlink_to(made.store.path)
    (tmp_path / "train.jsonl").write_bytes(made.train_file.read_bytes())
    (tmp_path / "test.jsonl").write_bytes(made.test_file.read_bytes())
    (tmp_path / "images").symlink_to(made.images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_of_the_document_works(newcomer, frevl):
    extract, diagnose = executed("bash").splitlines()
    (newcomer / "STORE").unlink()
    assert frevl(*shlex.split(extract.replace("--encoder packaged", "--encoder toy"))[1:]).code == 0
    models = [argument for model in FASTEST for argument in ("--model", model)]
    said = frevl(*shlex.split(diagnose)[1:], *models)
    assert said.code == 0, said.err
    record = json.loads((newcomer / "report.json").read_text())
    assert said.out.startswith(record["verdict"]["sentence"])
    assert (newcomer / "report.md").read_text().startswith(f"# {record['verdict']['sentence']}")
    assert record["verdict"]["sentence"] in (newcomer / "report.html").read_text()
    assert "training and comparing models on" in said.err
    assert record["provenance"]["command"].startswith("frevl diagnose --store STORE")


def test_the_python_of_the_document_works(newcomer, capsys):
    code = executed("python").replace("probes=False", f"probes=False, models={FASTEST}")
    exec(compile(code, "diagnosis.md", "exec"), {})  # noqa: S102
    assert "verdict The fusion" in capsys.readouterr().out


def test_the_document_names_what_there_is():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in [*RULES, "yes/no", "object", *(spec.name for spec in MODEL_SPECS), *KINDS]:
        assert f"`{name}`" in text, name
    for heading in SECTIONS.values():
        assert f"**{heading.rstrip('?')}" in text, heading
