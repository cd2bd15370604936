"""Every command and flag that the README, the guides and the examples mention exists, by the generated reference."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "cli.md"),
]
SECTIONS = re.split(r"^## `frevl ?(.*?)`$", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
FLAGS = {
    name: set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text))
    for name, text in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True)
}
# `frevl models` alone lists the models; the reference shows it by its only sub-command.
FLAGS["models"] = FLAGS["models show"]


def commands(text):
    """Yield every ``frevl ...`` line of a page, from code blocks and from code in the text."""
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        yield from re.findall(r"(?:^|[\s(])(frevl [^#|\n]+)", block.replace("\\\n", " "), flags=re.MULTILINE)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from re.findall(r"`(frevl [^`]+)`", re.sub(r"\s+", " ", prose))


def parsed(command):
    """Return the name of a command, of one or two words, and its flags."""
    words = re.sub(r"'[^']*'|\"[^\"]*\"", "TEXT", command).split()[1:]
    flags = [word.split("=")[0].rstrip(",.;:)]") for word in words if re.match(r"\[?--?[a-z]", word)]
    pair = " ".join(words[:2])
    return (pair if pair in FLAGS else words[0]), [flag.lstrip("[") for flag in flags]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_flag_of_a_page_exists(page):
    for command in commands(page.read_text(encoding="utf-8")):
        name, flags = parsed(command)
        if name.startswith("--"):
            name, flags = "", [name]
        assert name in FLAGS or any(known.startswith(f"{name} ") for known in FLAGS), command
        assert set(flags) <= FLAGS.get(name, set().union(*FLAGS.values())), command


def test_a_flag_that_does_not_exist_is_noticed():
    assert parsed("frevl train --modle tiny")[1] == ["--modle"]
    assert "--modle" not in FLAGS["train"]
    assert parsed("frevl store verify STORE --images DIR") == ("store verify", ["--images"])
    assert "--images" in FLAGS["store verify"]
    assert len(list(commands((ROOT / "README.md").read_text(encoding="utf-8")))) > 20
