"""Help names types and ranges in words, and fits on one screen."""

import re

import pytest
import typer.main
from typer.testing import CliRunner

from frevl.cli.main import app

LINES, COLUMNS = 45, 80
"""The screen on which the help of each command fits."""


def commands():
    """Return every command by its words; those of a group, such as ``store info``, too."""
    found = {"": typer.main.get_command(app)}
    for name, command in found[""].commands.items():
        found[name] = command
        found |= {f"{name} {below}": one for below, one in getattr(command, "commands", {}).items()}
    return found


def help_of(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=COLUMNS)
    assert done.exit_code == 0
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(commands()))
def test_types_and_ranges_are_words(command):
    text = " ".join(help_of(command).split())
    assert not re.findall(r"range>|<list|<Path>|[<>]=|default: \(", text)
    assert "Most seconds" not in text


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(commands()))
def test_the_help_fits_on_one_screen_and_names_every_option(command):
    lines = help_of(command).rstrip().splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    listed = " ".join(lines)
    assert all(option in listed for parameter in commands()[command].params for option in parameter.opts)


def test_a_range_and_a_default_stand_beside_each_other():
    assert "--port <integer> Port to listen on. [default: 8000; 0 to 65535]" in " ".join(help_of("serve").split())
