"""Which folder may import which (ARCHITECTURE.md), and which part of a package may import which part."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Folder: the package whose modules stand in it.
FOLDERS = {
    "classifier/polyhead": "polyhead",
    "serving/polyhead_serving": "polyhead_serving",
    "rows/polyhead_rows": "polyhead_rows",
    "training/polyhead_training": "polyhead_training",
    "scoring/polyhead_scoring": "polyhead_scoring",
    "client/polyhead_client": "polyhead_client",
    "loadtest": "loadtest",
    "benchmarks": "benchmarks",
    "demo": "demo",
    "model_repository": "",
    "tests": "tests",
}
OURS = {package for package in FOLDERS.values() if package}
HEAVY = {"torch", "transformers", "datasets", "tritonclient", "locust", "sklearn", "matplotlib", "ray"}

# Folder: what of OURS and HEAVY its files may import, beside their own package. Benchmarks and tests may import all.
ALLOWED = {
    "classifier/polyhead": {"torch"},
    "serving/polyhead_serving": {"polyhead", "tritonclient"},
    "rows/polyhead_rows": set(),
    "training/polyhead_training": {
        "polyhead", "polyhead_rows", "polyhead_client", "torch", "transformers", "datasets", "sklearn", "matplotlib",
    },
    "scoring/polyhead_scoring": {"polyhead", "polyhead_rows", "polyhead_client", "torch", "ray"},
    "client/polyhead_client": {"tritonclient"},
    "loadtest": {"polyhead_client", "polyhead_rows", "locust", "matplotlib"},
    "benchmarks": (OURS | HEAVY) - {"tests"},
    "demo": {"polyhead_client", "loadtest"},
    "model_repository": {"polyhead", "polyhead_serving", "torch"},
    "tests": OURS | HEAVY,
}  # fmt: skip

# Package: its parts from the lowest to the highest. A part is a module or a subpackage; it may import parts that stand
# before it, and parts of its own line.
LAYERS = {
    "polyhead": [
        "errors files interrupt machine other_folders schema scripts template terminal windows",
        "precision heads checkpoint_files decode",
        "body distribution golden identity ngrams weights",
        "checkpoint",
        "cut_word",
        "encode",
        "engine gate",
        "predictor",
        "text_queue",
        "scheduler",
    ],
    "polyhead_training": ["errors config_keys", "config", "model data", "evaluation", "fitting"],
}  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            if package and "checkpoint" not in path.relative_to(ROOT).parts[:-1]:
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


@cache
def imported(path: Path) -> frozenset[str]:
    """What a file imports anywhere in it, also for types alone: dotted names of modules and of names in modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def top_level(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    return {name.partition(".")[0] for name in imported(path)}


def arrows() -> Iterator[tuple[str, str]]:
    """Each import of one of our modules by another."""
    for name, path in modules().items():
        for other in imported(path) & modules().keys() - {name}:
            # `from package import module` names the package too, but needs the module alone.
            if not any(longer.startswith(f"{other}.") for longer in imported(path) & modules().keys()):
                yield name, other


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_follow_the_arrows(folder: str) -> None:
    """No file imports what its folder may not."""
    files = [path for path in (ROOT / folder).rglob("*.py") if "checkpoint" not in path.relative_to(ROOT).parts]
    assert files
    for path in files:
        forbidden = top_level(path) & (OURS | HEAVY) - ALLOWED[folder] - {FOLDERS[folder]}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """The imports of all modules, those for types included, have an order."""
    graph: dict[str, set[str]] = {}
    for name, other in arrows():
        graph.setdefault(name, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("package", LAYERS)
def test_parts_import_only_what_stands_below_them(package: str) -> None:
    """Within a large package the parts have an order too; each part that the order names is there."""
    level = {part: number for number, line in enumerate(LAYERS[package]) for part in line.split()}
    known = {part for name in modules() if (part := part_of(name, package))}
    assert set(level) <= known
    for name, other in arrows():
        above, below = part_of(name, package), part_of(other, package)
        if above in level and below is not None and above != below:
            assert level.get(below, len(level)) <= level[above], f"{name} imports {other}"


def part_of(module: str, package: str) -> str | None:
    """The part of a package to which a module belongs."""
    found = re.match(rf"{package}\.(\w+)", module)
    return found and found[1]
