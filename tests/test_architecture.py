"""The shape of the package: ten rooms, who may import whom, what is public, what is loaded when."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import frevl
from frevl.models.registry import NETWORKS

SOURCE = Path(frevl.__file__).parent

# One row a floor, the lowest first. A room imports from lower rows and from itself, never from a neighbour in its row.
# `root` are the files next to the rooms: errors, progress, version and the like.
ROWS = [
    {"root"},
    {"data", "encoders", "models"},
    {"store"},
    {"runs"},
    {"evaluation"},
    {"training", "deployment"},
    {"diagnosis"},
    {"cli"},
]
ENTRANCES = {
    "frevl",
    "frevl.__main__",
    "frevl.estimators",
}  # the public names, and ``python -m frevl``: they stand above everything
IMPURE = {"pathlib", "json", "logging", "lance", "pyarrow", "typer", "rich"}
MOST_LINES, MOST_FILES = 400, 10
MOST_FLOORS, MOST_ARROWS = 9, 97


@cache
def modules():
    """Return every module of the package with its file."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ("frevl", *path.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(module):
    """Return the top-level libraries and the modules of the package that a file imports, for types only too."""
    outside, inside = set(), set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else node.module for name in whole]
        for name in names:
            (inside if name.split(".")[0] == "frevl" else outside).add(name)
    return {name.split(".")[0] for name in outside}, inside - {module}


def room_of(module):
    return next((part for part in module.split(".")[1:2] if (SOURCE / part).is_dir()), "root")


def test_every_room_has_a_row():
    rooms = {room_of(module) for module in modules()}
    assert rooms == set().union(*ROWS)


def test_imports_point_down():
    floor = {room: number for number, row in enumerate(ROWS) for room in row}
    for module in set(modules()) - ENTRANCES:
        for imported in imports_of(module)[1]:
            assert imported in modules(), f"{module} imports {imported}, which is not there"
            own, other = room_of(module), room_of(imported)
            if imported == "frevl":
                raise AssertionError(f"{module} imports the public names; import from the module that has them")
            assert other == own or floor[other] < floor[own], f"{module} imports {imported}: up, or across its row"


def test_the_house_has_nine_floors():
    """A room, or a file next to the rooms, stands one floor above the highest that it imports."""
    below = {}
    for module in modules():
        own = _house_of(module)
        below.setdefault(own, set()).update(_house_of(one) for one in imports_of(module)[1])
        below[own].discard(own)

    @cache
    def floor(room):
        return 1 + max(map(floor, below[room]), default=0)

    assert max(map(floor, below)) <= MOST_FLOORS
    assert sum(map(len, below.values())) <= MOST_ARROWS


def _house_of(module):
    return "face" if module == "frevl" else module.split(".")[1]


def test_no_imports_run_in_a_circle():
    finished, path = set(), []

    def visit(module):
        assert module not in path, "circle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in finished:
            path.append(module)
            for imported in sorted(imports_of(module)[1] - ENTRANCES):
                visit(imported)
            finished.add(path.pop())

    for module in sorted(set(modules()) - ENTRANCES):
        visit(module)


def test_networks_read_no_files_and_the_store_loads_no_torch():
    for module in modules():
        outside, _ = imports_of(module)
        if room_of(module) == "models" and module != "frevl.models.hub":
            assert not outside & IMPURE, module
        if room_of(module) in ("store", "data"):
            assert "torch" not in outside, module


def test_files_and_folders_stay_small():
    for module, path in modules().items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, module
        assert path.stem not in {"utils", "util", "helpers", "common", "misc", "core", "base"}
    for folder in {path.parent for path in modules().values()}:
        files = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(files) <= MOST_FILES, f"{folder.name} has {len(files)} files"


OUTSIDE = ["tests", "browser", "onray", "objectstore", "vectordb", "azurite", "bench", "research", "examples"]


def test_files_and_folders_of_tests_and_benchmarks_stay_small():
    """As in the package; a conftest, which pytest reads by itself, is not counted."""
    for name in OUTSIDE:
        files = [path for path in (SOURCE.parents[1] / name).rglob("*.py") if "commit_6a8fb0f" not in path.parts]
        assert files, name
        for path in files:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path
        for folder in {path.parent for path in files}:
            own = [path for path in files if path.parent == folder and path.stem not in ("__init__", "conftest")]
            assert len(own) <= MOST_FILES, f"{folder} has {len(own)} files"


def test_folders_of_tests_are_named_as_the_rooms():
    """So that the tests of a file are found where the file is."""
    tests = Path(__file__).parent
    others = {"fuzz", "models/numerics", "runs/on_devices", "training/examples"}  # the last: of training/examples.py
    for folder in {path.parent for path in tests.rglob("test_*.py")}:
        name = folder.relative_to(tests).as_posix()
        assert (SOURCE / name).is_dir() or name in others, f"tests/{name} has no counterpart in src/frevl"


def test_every_file_named_for_a_change_exists():
    """The table "Where a change goes" in docs/architecture.md; a bare name lies next to the file named before it."""
    root = SOURCE.parents[1]
    table = (root / "docs/architecture.md").read_text(encoding="utf-8").partition("## Where a change goes")[2]
    rows = [line.split("|")[2] for line in table.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 30
    for row in rows:
        folder = SOURCE
        for name in re.findall(r"`([\w./]+)`", row):
            if "/" not in name and not name.endswith(".py"):
                continue
            found = [place / name for place in (folder, SOURCE, root) if (place / name).exists()]
            assert found, f"{name}, named for{row}, does not exist"
            folder = found[0] if found[0].is_dir() else found[0].parent


def test_every_package_says_what_it_is_for():
    for path in SOURCE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.parent.name
    for folder in {path.parent for path in modules().values()}:
        assert (folder / "__init__.py").exists(), folder.name


def test_no_room_but_models_asks_for_the_class_of_a_network():
    """`PairNetwork` says what a network can do; who looks at its class would have to be changed for every new one."""
    classes = {kind.__name__ for kind in NETWORKS.values()} | {"PairNetwork", "FirstStage", "Standardised"}
    for module, path in modules().items():
        if room_of(module) == "models":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asked = (
                {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} if _looks_at_a_class(node) else set()
            )
            assert not asked & classes, f"{module}, line {node.lineno}: asks for {sorted(asked & classes)}"


def _looks_at_a_class(node):
    """Tell whether this is ``isinstance(...)``, ``type(...) is ...``, or a ``case Network():``."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass")
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(isinstance(s, ast.Call) and isinstance(s.func, ast.Name) and s.func.id == "type" for s in sides)
    return isinstance(node, ast.MatchClass)


@cache
def classes_by_file():
    parsed = [(path.name, ast.parse(path.read_text(encoding="utf-8"))) for path in modules().values()]
    return [(name, node.name) for name, tree in parsed for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("ending", ["Trainer", "Manager", "Runner", "Engine"])
def test_there_are_no_god_classes(ending):
    assert len(classes_by_file()) > 100
    for file, name in classes_by_file():
        assert not name.endswith(ending), f"{file}: {name}"


def test_public_names_exist_and_are_complete():
    for name in frevl.__all__:
        assert getattr(frevl, name) is not None
    assert set(frevl.__all__) == set(frevl._HOMES)
    with pytest.raises(AttributeError, match="module 'frevl' has no attribute 'Fussion'"):
        _ = frevl.Fussion


def loaded_after(statement):
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_loads_nothing_heavy():
    heavy = {"torch", "transformers", "onnxruntime", "lance", "pyarrow", "sklearn", "matplotlib", "fastapi", "PIL"}
    assert not loaded_after("import frevl") & heavy
    assert not loaded_after("import frevl.cli.main") & heavy
    assert not loaded_after("import frevl.store.reader") & {"torch", "transformers", "onnxruntime"}
    assert not loaded_after("import frevl.store.extraction.extract") & {"torch", "transformers"}


def test_no_two_files_of_tests_have_one_name():
    """pytest would refuse to run both in one call."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
