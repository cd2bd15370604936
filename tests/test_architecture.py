"""The shape of the package: who imports whom, what is public, what is loaded when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import frevl

SOURCE = Path(frevl.__file__).parent

# Modules by layer; a module imports from its own layer or a lower one, never from a higher one.
LAYERS = [
    {"errors"},
    {"rejects", "jsonfile", "provenance", "progress", "embeddings", "folder", "images", "hub", "model_card", "cores"},
    {"tables", "answers", "intervals", "metrics", "retrieval", "wups", "chance", "measures", "slices", "metadata"},
    {
        "precision",
        "blocks",
        "pooled",
        "fusion",
        "loss",
        "baselines",
        "kernel",
        "average",
        "dual",
        "alignment",
        "rerank",
    },
    {"encoders", "pairs", "towers", "benchmarks"},
    {"store", "canaries", "cosine"},
    {"writer", "batches", "calibration", "run"},
    {
        "pending",
        "extraction",
        "verification",
        "examples",
        "loop",
        "descent",
        "contrastive",
        "mining",
        "rerank_loop",
        "blend",
        "itemwise",
        "judgement",
    },
    {"preparation", "standardisation", "distillation", "warm_start", "fitting"},
    {"candidates", "selection", "matching", "matching_choice", "folds", "encoder_choice"},
    {"onnxfile", "onnxgraph", "quantisation"},
    {"training", "scorer"},
    {"scoring", "recall", "evaluation"},
    {"seeds", "export"},
    {"importing", "searching", "demo", "lessons", "report", "ablation", "ablation_report", "costs"},
    {"diagnosis"},
    {"service"},
    {"efficiency"},
    {"commands"},
    {"cli", "__init__"},
    {"__main__"},
]
PURE = {
    "alignment",
    "precision",
    "blocks",
    "pooled",
    "dual",
    "rerank",
    "fusion",
    "kernel",
    "loss",
    "baselines",
    "metrics",
    "intervals",
    "answers",
}
IMPURE = {"pathlib", "os", "json", "logging", "lance", "pyarrow", "typer", "rich"}


def modules():
    return sorted(SOURCE.rglob("*.py"))


def name_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path):
    """Names of top-level modules that a file imports, and the frevl modules among them."""
    outside, inside = set(), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {id(node) for branch in ast.walk(tree) if _is_type_checking(branch) for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            parts = name.split(".")
            (inside if parts[0] == "frevl" else outside).add(
                parts[1] if parts[0] == "frevl" and parts[1:] else parts[0]
            )
    return outside, inside - {"frevl"}


def _is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_imports_point_one_way():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    assert {name_of(path) for path in modules()} == set(level)
    for path in modules():
        for imported in imports_of(path)[1]:
            assert level[imported] <= level[name_of(path)], f"{path.name} imports {imported}, which stands above it"


def test_maths_knows_no_files_and_the_store_no_torch():
    for path in modules():
        outside, _ = imports_of(path)
        if name_of(path) in PURE:
            assert not outside & IMPURE, path.name
        if name_of(path) in ("store", "towers", "writer", "pairs", "extraction", "verification", "canaries"):
            assert "torch" not in outside, path.name


def test_files_are_short_and_named_for_one_thing():
    for path in modules():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name
        assert path.stem not in {"utils", "util", "helpers", "common", "misc", "core", "base"}


@pytest.mark.parametrize("ending", ["Trainer", "Manager", "Runner", "Engine"])
def test_there_are_no_god_classes(ending):
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ClassDef) and node.name.endswith(ending)), f"{path.name}: {node.name}"


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
    assert not loaded_after("import frevl.cli") & heavy
    assert not loaded_after("import frevl.store") & {"torch", "transformers", "onnxruntime"}
    assert not loaded_after("import frevl.extraction") & {"torch", "transformers"}
