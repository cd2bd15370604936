"""Research code is not installed and not tested here, but it must import, so that an experiment can be repeated."""

import importlib
import sys
from pathlib import Path

import pytest

RESEARCH = Path(__file__).parents[1] / "research"
MODULES = sorted(
    ".".join(path.relative_to(RESEARCH.parent).with_suffix("").parts)
    for path in RESEARCH.rglob("*.py")
    if not path.name.startswith(("__", "test_"))
)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_an_experiment_imports(module, monkeypatch):
    monkeypatch.syspath_prepend(RESEARCH.parent)
    sys.modules.pop(module, None)
    assert importlib.import_module(module).__doc__


def test_the_package_does_not_need_research():
    for path in (RESEARCH.parent / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "from research" not in text
        assert "import research" not in text
