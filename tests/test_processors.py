"""The resources of this process: cores and memory, quotas of control groups, and what is released."""

import json
import math
import os
import subprocess
import sys

import pytest

from frevl.machine import cores_by_quota, give_memory_back, memory_limit, processors, share_processors


def process(folder, own, mounts):
    """Write the two files of a process; ``mounts`` are (root, mount point, kind, options)."""
    (folder / "cgroup").write_text("\n".join(own) + "\n")
    lines = [
        f"{number} 23 0:28 {root} {str(point).replace(' ', chr(92) + '040')} rw shared:9 - {kind} {kind} {options}"
        for number, (root, point, kind, options) in enumerate(mounts)
    ]
    (folder / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n" + "\n".join(lines) + "\n")
    return folder


def limit(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


def test_processors_is_at_least_one():
    assert 1 <= processors() <= os.cpu_count()


@pytest.mark.parametrize(
    ("outer", "inner", "cores"),
    [
        ("max 100000", "150000 100000", 1.5),
        ("50000 100000", "200000 100000", 0.5),
        ("max 100000", "max 100000", math.inf),
    ],
)
def test_quota_of_version_2_is_the_least_of_all_groups_above(tmp_path, outer, inner, cores):
    top = tmp_path / "with blank"
    limit(top / "slice", cpu_max=outer)
    limit(top / "slice" / "job", cpu_max=inner)
    assert cores_by_quota(process(tmp_path, ["0::/slice/job"], [("/", top, "cgroup2", "rw")])) == cores


def test_quota_of_version_1_stands_in_the_hierarchy_of_the_processor(tmp_path):
    limit(tmp_path / "cpu" / "job", cpu_cfs_quota_us=250_000, cpu_cfs_period_us=100_000)
    limit(tmp_path / "memory" / "job", cpu_cfs_quota_us=1, cpu_cfs_period_us=100_000)  # what nobody would read there
    mounts = [("/", tmp_path / "memory", "cgroup", "rw,memory"), ("/", tmp_path / "cpu", "cgroup", "rw,cpu,cpuacct")]
    files = process(tmp_path, ["5:memory:/job", "4:cpu,cpuacct:/job"], mounts)
    assert cores_by_quota(files) == 2.5
    limit(tmp_path / "cpu" / "job", cpu_cfs_quota_us=-1)
    assert cores_by_quota(files) == math.inf


def test_a_container_that_sees_its_group_as_the_whole_has_its_quota_too(tmp_path):
    limit(tmp_path / "top", cpu_max="300000 100000")
    for root in ("/docker/abc", "/elsewhere"):
        files = process(tmp_path, ["0::/docker/abc"], [(root, tmp_path / "top", "cgroup2", "rw")])
        assert cores_by_quota(files) == 3


@pytest.mark.parametrize("text", ["", "max", "100000", "0 100000", "100000 0", "x y", "\x00\xff"])
def test_what_is_no_quota_is_no_limit(tmp_path, text):
    limit(tmp_path / "top", cpu_max=text)
    assert (
        cores_by_quota(process(tmp_path, ["0::/", "nonsense"], [("/", tmp_path / "top", "cgroup2", "rw")])) == math.inf
    )


def test_another_system_has_no_quota(tmp_path):
    assert cores_by_quota(tmp_path / "none") == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(0.2, 1), (1.5, 2), (3.0, 3), (99.0, 4), (math.inf, 4)])
def test_processors_are_those_of_affinity_and_quota(monkeypatch, quota, cores):
    monkeypatch.setattr("frevl.machine._cores_by_affinity", lambda: 4)
    monkeypatch.setattr("frevl.machine.cores_by_quota", lambda: quota)
    assert processors() == cores


@pytest.mark.parametrize(
    ("given", "quota", "expected"),
    [
        ({}, math.inf, {"GOMP_SPINCOUNT": "1000"}),
        ({}, 1.5, {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "2"}),
        ({"GOMP_SPINCOUNT": "9"}, 1.5, {"OMP_NUM_THREADS": "2"}),
        ({"KMP_BLOCKTIME": "0"}, 5.0, {}),
        ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "8"}, 1.5, {}),
        ({"MKL_NUM_THREADS": "3"}, 1.5, {"GOMP_SPINCOUNT": "1000"}),
    ],
)
def test_what_the_user_has_set_stays(monkeypatch, given, quota, expected):
    monkeypatch.setattr("frevl.machine.os.environ", environment := dict(given))
    monkeypatch.setattr("frevl.machine._cores_by_affinity", lambda: 4)
    monkeypatch.setattr("frevl.machine.cores_by_quota", lambda: quota)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    share_processors()
    assert environment == {**given, **expected}


def test_a_loaded_torch_is_left_alone(monkeypatch):
    monkeypatch.setattr("frevl.machine.os.environ", environment := {})
    monkeypatch.setitem(sys.modules, "torch", sys)
    share_processors()
    assert environment == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "entrance",
    [
        "import frevl; frevl.FrevlError",
        "import frevl.cli.main as m, sys; sys.argv = ['frevl', '--version']\ntry: m.main()\nexcept SystemExit: pass",
        "import frevl.estimators",
    ],
)
def test_every_entrance_comes_before_torch(entrance):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    code = f"{entrance}\nimport os, json; print(json.dumps({{name: os.environ.get(name) for name in {names}}}))"
    environment = {name: value for name, value in os.environ.items() if name not in names}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.splitlines()[-1])["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize(
    ("given", "loaded", "expected"), [(None, False, "system"), (None, True, None), ("jemalloc", False, "jemalloc")]
)
def test_arrow_is_told_where_to_take_memory_from(monkeypatch, given, loaded, expected):
    name = "ARROW_DEFAULT_MEMORY_POOL"
    monkeypatch.setattr("frevl.machine.os.environ", environment := {name: given} if given else {})
    monkeypatch.setattr("frevl.machine.sys.modules", {"pyarrow": sys} if loaded else {})
    give_memory_back()
    assert environment.get(name) == expected


MEMORY = """
def counted():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmData")) >> 10

before = counted()
import pyarrow as pa
values = pa.nulls(1 << 23, pa.int64()).fill_null(7)  # 64 MiB
held = counted() - before
del values
print(held, counted() - before)
"""


@pytest.mark.slow
def test_a_command_gives_back_what_arrow_freed():
    """Before, the gigabyte that Arrow's own pool reserves stayed, and with it what was freed: 4 GiB were not enough."""
    run = "import frevl.cli.main as m, sys; sys.argv = ['frevl', '--version']\ntry: m.main()\nexcept SystemExit: pass"
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    found = subprocess.run(
        [sys.executable, "-c", run + MEMORY], env=environment, capture_output=True, text=True, check=True
    )
    held, left = map(int, found.stdout.splitlines()[-1].split())
    assert held >= 64
    assert left <= held - 60


@pytest.mark.parametrize(
    ("outer", "inner", "bytes_"), [("max", "5000000", 5_000_000), ("3000000", "5000000", 3_000_000)]
)
def test_memory_of_version_2_is_the_least_of_all_groups_above(tmp_path, outer, inner, bytes_):
    top = tmp_path / "top"
    limit(top / "slice", memory_max=outer)
    limit(top / "slice" / "job", memory_max=inner)
    assert memory_limit(process(tmp_path, ["0::/slice/job"], [("/", top, "cgroup2", "rw")])) == bytes_


def test_memory_of_version_1_stands_in_a_hierarchy_of_its_own(tmp_path):
    limit(tmp_path / "memory" / "job", memory_limit_in_bytes=7_000_000)
    limit(tmp_path / "cpu" / "job", memory_limit_in_bytes=1)  # what nobody would read there
    mounts = [("/", tmp_path / "memory", "cgroup", "rw,memory"), ("/", tmp_path / "cpu", "cgroup", "rw,cpu,cpuacct")]
    assert memory_limit(process(tmp_path, ["5:memory:/job", "4:cpu,cpuacct:/job"], mounts)) == 7_000_000


def test_memory_without_a_group_is_that_of_the_machine_or_of_ulimit(tmp_path):
    whole = memory_limit(tmp_path / "none")
    assert whole <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    code = "from pathlib import Path; from frevl.machine import memory_limit; print(memory_limit(Path('none')))"
    asked = f'ulimit -d 1000000; {sys.executable} -c "{code}"'
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1_000_000 * 1024
