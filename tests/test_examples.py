"""Every example runs as it is, in a process of its own, with the encoder that needs no weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrained import save_clip

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTED = {
    "arrays": " % of held-out answers are right",
    "captions_and_search": "1. ",
    "export_onnx": "is it ",
    "few_shot": " % of the other images are right",
    "new_encoder": " % of held-out answers are right",
    "own_vectors": " % of held-out answers are right",
    "questions": "difference from the linear probe: +",
    "serving": "'answer': 'yes'",
    "zero_shot": " % of 120 images are right, without an example",
}


def test_every_example_has_a_test_and_stands_in_the_list():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"drawn_shapes"}
    assert scripts == set(PRINTED)
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}.py)" in listed for name in scripts)


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_runs(name, tmp_path):
    # Names need a space of images and texts, which the encoder without weights has not.
    encoder = f"hf:{save_clip(tmp_path / 'clip')}" if name == "zero_shot" else "toy"
    command = [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", "--folder", tmp_path, "--encoder", encoder]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    assert PRINTED[name] in done.stdout
