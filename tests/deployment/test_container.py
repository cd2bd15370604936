"""The container's guarantees, read from its files: no root, a health check, fixed versions, little copied."""

import inspect
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from frevl.cli.commands.deployment import serve

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def instructions():
    """The Dockerfile's instructions as (word, rest), lines that go on joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def stages():
    """Instructions by stage, in order."""
    found = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


@pytest.fixture(scope="module")
def service():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["frevl"]


def of(stage, word):
    return [rest for name, rest in stage if name == word]


def test_images_and_libraries_have_fixed_versions(stages):
    for stage in stages:
        image = of(stage, "FROM")[0].split()[0]
        assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", image), image
    installs = [rest for stage in stages for rest in of(stage, "RUN") if "pip install" in rest]
    assert len(installs) == 2
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)
    assert f"torch=={pinned['torch']}" in installs[0]
    assert "-c constraints.txt" in installs[1]


def test_the_last_stage_runs_without_root_and_checks_its_health(stages):
    last = stages[-1]
    words = [word for word, _ in last]
    assert of(last, "USER") == ["10001:10001"]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY"))
    (check,) = of(last, "HEALTHCHECK")
    assert "http://127.0.0.1:8000/readyz" in check
    assert of(last, "ENTRYPOINT") == ['["frevl"]']
    assert of(last, "EXPOSE") == ["8000"]
    # Compilers, caches and sources stay in the first stage.
    assert len(stages) == 2
    assert not any("pip" in rest or "apt" in rest for rest in of(last, "RUN"))
    assert all(rest.startswith("--from=build ") for rest in of(last, "COPY"))


def test_only_what_the_build_needs_reaches_it(stages):
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    allowed = {name.removeprefix("!") for name in ignored if name.startswith("!")}
    copied = {name.removeprefix("./") for rest in of(stages[0], "COPY") for name in rest.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_compose_takes_away_what_is_not_needed(service):
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]  # reachable from this machine only
    assert service["image"] == f"frevl:{VERSION}"
    assert service["volumes"] == ["./data:/data:ro"]
    assert "http://127.0.0.1:8000/readyz" in service["healthcheck"]["test"][-1]
    assert service["mem_limit"]
    # Without a value the variable is passed on as it is; an empty one would be refused at the start.
    assert service["environment"]["FREVL_API_KEYS"] is None


def test_both_files_start_a_command_that_exists(stages, service):
    started = json.loads(of(stages[-1], "CMD")[0])
    assert started == service["command"]
    assert started[0] == "serve"
    flags = {name.lstrip("-") for name in started if name.startswith("--")}
    assert flags <= set(inspect.signature(serve).parameters)


def test_serving_stops_in_good_order_before_it_is_killed(stages, service):
    assert of(stages[-1], "STOPSIGNAL") == ["SIGTERM"]
    assert service["stop_grace_period"] == "40s"  # what was accepted is answered for 30 seconds at most
