"""Help names types and ranges in words."""

import re

import pytest
import typer.main
from typer.testing import CliRunner

from frevl.cli.main import app


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_types_and_ranges_are_words(command):
    text = " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
    assert not re.findall(r"range>|<list|<Path>|[<>]=|default: \(", text)
    assert "Most seconds" not in text


def test_a_range_and_a_default_stand_beside_each_other():
    text = " ".join(CliRunner().invoke(app, ["serve", "--help"]).output.split())
    assert "--port <integer> Port to listen on. [default: 8000; 0 to 65535]" in text
